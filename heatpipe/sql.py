"""The analysts' DuckDB connection: a view over the dataset with the right types, in UTC."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from heatpipe import layout
from heatpipe.config import choose_root
from heatpipe.disk import text_name
from heatpipe.errors import ConfigError
from heatpipe.store import Store

if TYPE_CHECKING:
    import duckdb

PARTITIONS = {"unit": "VARCHAR", "depth": "BIGINT", "interval": "VARCHAR", "coin": "VARCHAR", "date": "DATE"}
PATTERNS = (*(f"{key}=*" for key in PARTITIONS if key != "date"), "date=[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]")
COLUMNS = {"timestamp": "TIMESTAMPTZ", "price": "DOUBLE", "volume": "DOUBLE", **PARTITIONS}


def connect(root: str | None = None) -> "duckdb.DuckDBPyConnection":
    """Open an in-memory DuckDB with the view ``liquidations`` over the dataset, its time zone UTC.

    Every series is in the view: name unit, depth and interval in the query when the dataset holds several. Volumes are
    a **stock**: sum them over prices, never over time.

    Parameters
    ----------
    root : str, optional
        The dataset's folder; else that of HEATPIPE_DATA, else ``data``. A view made on an empty one stays
        empty; connect again after the first backfill. So it is where something lies among the files that is not the
        dataset's own: the view then has the files of the moment, and no others.

    Returns
    -------
    duckdb.DuckDBPyConnection
        The view's columns: timestamp (TIMESTAMPTZ), price (USD), volume (in coin or USD, as unit says), unit, depth,
        interval, coin, date.

    Raises
    ------
    ConfigError
        DuckDB is not installed, or cannot open a root of that name.
    DatasetError
        The root is no dataset, or its name is no UTF-8.

    Examples
    --------
    >>> con = heatpipe.connect("data")  # doctest: +SKIP
    >>> con.sql("SELECT coin, count(*) FROM liquidations GROUP BY coin")  # doctest: +SKIP
    """
    try:
        import duckdb
    except ImportError as exc:
        raise ConfigError("DuckDB is not installed: pip install 'heatpipe[duckdb]'") from exc
    store = Store(str(Path(choose_root(root)).absolute()))
    store.check_dataset()
    for part in re.split(r"[/\\]", str(store.root)):  # DuckDB parts names at both
        if part.split("=")[0] in PARTITIONS and "=" in part:
            raise ConfigError(
                f"DuckDB reads partition keys from the whole path, and {store.root} has its own {part!r}: move it"
            )
    connection = duckdb.connect()
    connection.execute("SET GLOBAL TimeZone = 'UTC'")  # for the cursors of other threads as well
    connection.execute(f"CREATE VIEW {layout.TABLE} AS {_select(connection, store)}")
    return connection


def _select(connection: "duckdb.DuckDBPyConnection", store: Store) -> str:
    files = [name for series in store.all_series() for name in store.files(series)]
    if not files:
        empty = ", ".join(f"NULL::{kind} AS {name}" for name, kind in COLUMNS.items())
        return f"SELECT {empty} WHERE false"
    types = ", ".join(f"'{key}': {kind}" for key, kind in PARTITIONS.items())
    return (
        f"SELECT {', '.join(COLUMNS)} FROM read_parquet({_sources(connection, store, files)}, "  # noqa: S608 - quoted
        f"hive_partitioning = true, hive_types_autocast = false, hive_types = {{{types}}})"
    )


def _sources(connection: "duckdb.DuckDBPyConnection", store: Store, files: list[str]) -> str:
    """Return what the view reads: a pattern, which finds what is written later too, where it finds the files alone."""
    table = text_name(store.root / layout.TABLE)
    if "\\" not in table:
        pattern = _quote("/".join([_escape(table), *PATTERNS, layout.FILE_NAME]))
        found = connection.execute(f"SELECT file FROM glob({pattern})").fetchall()  # noqa: S608 - quoted
        if {name for (name,) in found} == set(files):
            return pattern
    elif _escape(table) != table:  # a bracket would have a backslash before it
        raise ConfigError(rf"DuckDB cannot open {store.root}: its name has both a \ and one of * ? [; rename it")
    else:
        return f"[{', '.join(map(_quote, files))}]"
    return f"[{', '.join(_quote(_escape(name)) for name in files)}]"


def _escape(name: str) -> str:
    """Keep a pattern from seeing one in a name."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _quote(text: str) -> str:
    return "'{}'".format(text.replace("'", "''"))

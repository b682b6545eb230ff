"""The analysts' DuckDB connection: a view over the dataset with the right types, in UTC."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from heatpipe import layout
from heatpipe.config import default_root
from heatpipe.errors import ConfigError
from heatpipe.store import Store

if TYPE_CHECKING:
    import duckdb

PARTITIONS = {"unit": "VARCHAR", "depth": "BIGINT", "interval": "VARCHAR", "coin": "VARCHAR", "date": "DATE"}
COLUMNS = {"timestamp": "TIMESTAMPTZ", "price": "DOUBLE", "volume": "DOUBLE", **PARTITIONS}


def connect(root: str | None = None) -> "duckdb.DuckDBPyConnection":
    """Open an in-memory DuckDB with the view ``liquidations`` over the dataset, its time zone UTC.

    Every series is in the view: name unit, depth and interval in the query when the dataset holds several. Volumes are
    a **stock**: sum them over prices, never over time.

    Parameters
    ----------
    root : str, optional
        The dataset's folder; else that of HEATPIPE_DATA, else ``data``. A view made on an empty one stays
        empty; connect again after the first backfill.

    Returns
    -------
    duckdb.DuckDBPyConnection
        The view's columns: timestamp (TIMESTAMPTZ), price (USD), volume (in coin or USD, as unit says), unit, depth,
        interval, coin, date.

    Raises
    ------
    ConfigError
        DuckDB is not installed, or the root's own path would be taken for a partition.

    Examples
    --------
    >>> con = heatpipe.connect("data")  # doctest: +SKIP
    >>> con.sql("SELECT coin, count(*) FROM liquidations GROUP BY coin")  # doctest: +SKIP
    """
    try:
        import duckdb
    except ImportError as exc:
        raise ConfigError("DuckDB is not installed: pip install 'heatpipe[duckdb]'") from exc
    connection = duckdb.connect()
    connection.execute("SET GLOBAL TimeZone = 'UTC'")  # for the cursors of other threads as well
    connection.execute(f"CREATE VIEW {layout.TABLE} AS {_select(root or default_root())}")
    return connection


def _select(root: str) -> str:
    store = Store(root)
    for part in store.root.absolute().parts:
        if part.split("=")[0] in PARTITIONS and "=" in part:
            raise ConfigError(
                f"DuckDB reads partition keys from the whole path, and {root} has its own {part!r}: move it"
            )
    if not any(store.days(series) for series in store.all_series()):
        empty = ", ".join(f"NULL::{kind} AS {name}" for name, kind in COLUMNS.items())
        return f"SELECT {empty} WHERE false"
    types = ", ".join(f"'{key}': {kind}" for key, kind in PARTITIONS.items())
    # A root may have characters in its name that a glob gives a meaning.
    folder = re.sub(r"([*?[])", r"[\1]", str(Path(root).absolute() / layout.TABLE)).replace("'", "''")
    pattern = "/".join([folder, *(f"{key}=*" for key in PARTITIONS), layout.FILE_NAME])
    return (
        f"SELECT {', '.join(COLUMNS)} FROM read_parquet('{pattern}', hive_partitioning = true, "  # noqa: S608 - quoted
        f"hive_types_autocast = false, hive_types = {{{types}}})"
    )

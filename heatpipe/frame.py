"""The analysts' LazyFrame: the dataset as polars sees it, with the right types and no other series mixed in."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Final

import polars as pl

from heatpipe import layout
from heatpipe.config import default_root, parse_instant
from heatpipe.store import Store
from heatpipe.survey import choose_series

PARTITIONS: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "unit": pl.String,
    "depth": pl.Int64,
    "interval": pl.String,
    "coin": pl.String,
    "date": pl.Date,
}
ROWS: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "timestamp": pl.Datetime("us", "UTC"),
    "price": pl.Float64,
    "volume": pl.Float64,
}
SCHEMA: Final = pl.Schema({**ROWS, **PARTITIONS})


def scan(
    root: str | None = None,
    coin: str | Sequence[str] | None = None,
    start: str | date | int | None = None,
    end: str | date | int | None = None,
    *,
    interval: str | None = None,
    unit: str | None = None,
    depth: int | None = None,
) -> pl.LazyFrame:
    """Scan the dataset lazily: only the days and columns that a query needs are read.

    Volumes are a **stock**, not a flow: what would be liquidated at that price, standing at that time. Sum them over
    prices, never over time; over time take the mean, or the last. A timestamp is taken as its interval's start, so a
    row is known only from ``timestamp`` + interval on. There is no side: a level above the price of the moment
    liquidates shorts, one below it longs.

    Parameters
    ----------
    root : str, optional
        The dataset's folder; else that of HEATPIPE_DATA, else ``data``.
    coin : str or sequence of str, optional
        Which coins; all by default.
    start, end : date, datetime, str or int, optional
        Half-open span of timestamps: dates, ISO 8601 instants (UTC without an offset) or Unix seconds.
    interval, unit, depth : optional
        Which series. Each defaults to the only one on disk.

    Returns
    -------
    polars.LazyFrame
        timestamp (microseconds, UTC), price (USD), volume (in coin or USD, as `unit` says), and the partition keys
        unit, depth, interval, coin, date. Within a coin sorted by timestamp, then price.

    Raises
    ------
    ConfigError
        Nothing on disk matches, or `interval`, `unit` or `depth` has several values on disk and none was chosen.

    Notes
    -----
    A frame remembers the sizes of the files from its first collect: after a backfill scan again. polars 2.1 refuses to
    collect the old frame once a file of it has grown, and may not return where one has shrunk.

    Examples
    --------
    >>> frame = heatpipe.scan("data", coin="BTC", start="2026-03-01", end="2026-03-08")  # doctest: +SKIP
    """
    store = Store(root or default_root())
    found = [series for series in store.all_series() if store.days(series)]
    bounds = [None if at is None else _as_datetime(at, name) for at, name in ((start, "start"), (end, "end"))]
    if not found:
        return pl.LazyFrame(schema=SCHEMA)
    chosen = choose_series(found, coin, interval=interval, unit=unit, depth=depth)
    # The whole table is named, and polars leaves out by their folders' names what the filters exclude: named one by
    # one, files below a root such as env=prod/ would bring that key along.
    # The schema is given, so that a frame that was collected before a file was replaced fails on it, and does not read
    # the new bytes by the old footer.
    table = pl.scan_parquet(
        f"{store.root / layout.TABLE}/", glob=False, schema=ROWS, hive_partitioning=True, hive_schema=PARTITIONS
    )
    only = chosen[0]
    frame = table.filter(
        pl.col("unit") == only.unit,
        pl.col("depth") == only.depth,
        pl.col("interval") == only.interval,
        pl.col("coin").is_in([series.coin for series in chosen]),
    )
    return _between(frame, *bounds).select(SCHEMA.names())


def _as_datetime(value: str | date | int, name: str) -> datetime:
    return datetime.fromtimestamp(value if isinstance(value, int) else parse_instant(value, name), UTC)


def _between(frame: pl.LazyFrame, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
    """Filter by time, and by date as well, so that other days' files are not opened."""
    if start is not None:
        frame = frame.filter(pl.col("date") >= start.date(), pl.col("timestamp") >= start)
    if end is not None:
        frame = frame.filter(pl.col("date") <= end.date(), pl.col("timestamp") < end)
    return frame

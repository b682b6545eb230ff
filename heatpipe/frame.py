"""The analysts' LazyFrame: the dataset as polars sees it, with the right types and no other series mixed in."""

from collections.abc import Container, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import polars as pl

from heatpipe.config import choose_root
from heatpipe.model import ALL_DAYS, Series
from heatpipe.store import Store
from heatpipe.survey import choose_series
from heatpipe.times import EPOCH, Instant, read_instant

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
    start: Instant | None = None,
    end: Instant | None = None,
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

    **Rows exist only where volume stands**: a mean over rows, ``group_by(hour, price).mean()``, divides by the
    snapshots in which the level stood, and is too high. Divide the sum by the number of snapshots known in the hour:
    of distinct timestamps, and of the intervals that `heatpipe status` counts as empty, which have no rows.

    **Beyond the depth cap is unknown, not zero**: a snapshot with as many rows as `depth` says nothing of prices below
    its lowest and above its highest. `heatpipe status` counts such snapshots. In a mean leave them out of sum and
    number alike, or out of those of the prices that they do not reach.

    Parameters
    ----------
    root : str, optional
        The dataset's folder; else that of HEATPIPE_DATA, else ``data``. An empty one gives an empty frame.
    coin : str or sequence of str, optional
        Which coins; all by default.
    start, end : instant, optional
        Half-open span of timestamps: what Python, numpy and pandas call a date or an instant, ISO 8601 text (UTC
        without an offset), or Unix seconds.
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
    DatasetError
        The root is no dataset, or its name is one that polars cannot open.

    Notes
    -----
    Only what `heatpipe verify` counts as the dataset's own files is read, whatever else lies beside them. They are
    chosen when the frame is made, and read as they are when it is collected: scan again after a backfill.

    Examples
    --------
    >>> frame = heatpipe.scan("data", coin="BTC", start="2026-03-01", end="2026-03-08")  # doctest: +SKIP
    """
    store = Store(choose_root(root))
    store.check_dataset()
    bounds = [None if at is None else read_instant(at, name) for at, name in ((start, "start"), (end, "end"))]
    found = [series for series in store.all_series() if store.has_files(series)]
    if not found:
        return pl.LazyFrame(schema=SCHEMA)
    chosen = choose_series(found, coin, interval=interval, unit=unit, depth=depth)
    return scan_series(store, chosen, *bounds)


def scan_series(
    store: Store,
    chosen: Sequence[Series],
    start: datetime | None = None,
    end: datetime | None = None,
    *,
    days: Container[int] | None = None,
) -> pl.LazyFrame:
    """Scan the files of some series' days, and nothing that lies beside them.

    Parameters
    ----------
    store : Store
        The dataset.
    chosen : sequence of Series
        Which; equal but for the coin.
    start, end : datetime, optional
        Half-open span of timestamps.
    days : container of int, optional
        Which days' files, counted from the epoch; by default those in which a timestamp of the span can lie.
    """
    days = _days_between(start, end) if days is None else days
    found = ((series, store.files(series, days)) for series in chosen)
    files = {series: names for series, names in found if names}
    if not files:
        return pl.LazyFrame(schema=SCHEMA)
    # Below a root such as env=prod/, polars would take that for a key of each file as well.
    read = _scan_named if "=" in str(store.root) else _scan_hive
    return _between(read(files), start, end).select(SCHEMA.names())


def _scan_hive(files: Mapping[Series, list[str]]) -> pl.LazyFrame:
    """Take the keys from the folders' names: a filter on them leaves out files before one is opened.

    The schema is given: else polars would open the first file, whichever are asked for.
    """
    names = [name for some in files.values() for name in some]
    return pl.scan_parquet(names, glob=False, schema=ROWS, hive_partitioning=True, hive_schema=PARTITIONS)


def _scan_named(files: Mapping[Series, list[str]]) -> pl.LazyFrame:
    """Write the keys beside the rows."""
    return pl.concat(
        pl.scan_parquet(names, glob=False, schema=ROWS, hive_partitioning=False).with_columns(
            pl.lit(series.unit).alias("unit"),
            pl.lit(series.depth, pl.Int64).alias("depth"),
            pl.lit(series.interval).alias("interval"),
            pl.lit(series.coin).alias("coin"),
            pl.col("timestamp").dt.date().alias("date"),
        )
        for series, names in files.items()
    )


def _days_between(start: datetime | None, end: datetime | None) -> range:
    """Return the days, counted from the epoch, in which a timestamp of a span can lie."""
    day = timedelta(days=1)
    first = ALL_DAYS.start if start is None else (start - EPOCH) // day
    return range(first, ALL_DAYS.stop if end is None else -((EPOCH - end) // day))


def _between(frame: pl.LazyFrame, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
    if start is not None:
        frame = frame.filter(pl.col("timestamp") >= start)
    if end is not None:
        frame = frame.filter(pl.col("timestamp") < end)
    return frame

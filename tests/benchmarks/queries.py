"""Five analyst queries in polars and DuckDB: heatpipe's files beside the same rows in pyarrow's default layout.

Both roots have the same folders and rows, and are read through `heatpipe.scan` and `heatpipe.connect`: the ratio is
that of the files alone. The two take turns; every figure is a median. By itself::

    python -m tests.benchmarks.queries --days 30 --runs 5
"""

import argparse
import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import polars as pl
import pyarrow.parquet as pq

import heatpipe
from heatpipe.layout import Day, day_path, encode_day
from heatpipe.model import DAY_S, Coverage, Snapshots, Spans, day_span
from heatpipe.plan import plan_slabs
from heatpipe.sandbox import Market
from heatpipe.store import Store
from tests.benchmarks.table import Row, lay_out

if TYPE_CHECKING:
    import duckdb

BTC: Final = heatpipe.Series("BTC")
FIRST_DAY: Final = 1_774_915_200 // DAY_S  # 2026-03-31
PEER: Final = "pyarrow's default layout"
NUMBER: Final = 5
NAME: Final = "queries"

BAR: Final = 1.15
MEAN_BAR: Final = 1.0
SAMPLE_S: Final = 0.2
"""A query that takes less is asked several times a run: milliseconds drown in the noise of a shared machine."""

BAND: Final = 0.005
"""Half the width of the price band, as a share of the price in its middle."""
PRICE_BIN: Final = 100
TIME_BIN: Final = timedelta(hours=1)
LARGEST: Final = 10


@dataclass(frozen=True, slots=True)
class Question:
    """What the analyst wants, the same for both roots.

    Attributes
    ----------
    days : int
        How many days the dataset holds, from `FIRST_DAY` on.
    price : float
        USD; the middle of the price band.
    """

    days: int
    price: float

    @property
    def start(self) -> datetime:
        """Midnight of the first day."""
        return datetime.fromtimestamp(FIRST_DAY * DAY_S, UTC)

    @property
    def middle(self) -> datetime:
        """Midnight of the day in the middle."""
        return self.start + timedelta(days=self.days // 2)

    @property
    def early(self) -> datetime:
        """A minute of that day, in its first half."""
        return self.middle + timedelta(hours=5, minutes=17)

    @property
    def late(self) -> datetime:
        """A minute of that day, near its end."""
        return self.middle + timedelta(hours=21, minutes=43)

    @property
    def band(self) -> tuple[float, float]:
        """Lowest and highest price of the band, USD."""
        return self.price * (1 - BAND), self.price * (1 + BAND)


Query = Callable[[], pl.DataFrame]


def measure_queries(runs: int = 5, days: int = 30) -> list[Row]:
    """Compare CPU and wall seconds of each query; row 5 of the table.

    Parameters
    ----------
    runs : int
        Counted runs of each query; one more warms up.
    days : int
        Days of one-minute snapshots at full depth, about 1.5 million rows each; 30 are the bar's month.

    Returns
    -------
    list of Row
        Per query and engine its CPU ratio, then the geometric means of the CPU and the wall ratios.

    Raises
    ------
    AssertionError
        The two layouts do not give the same answer.
    """
    with tempfile.TemporaryDirectory(prefix="heatpipe-queries-") as folder:
        ours, theirs = str(Path(folder, "ours")), str(Path(folder, "theirs"))
        question = Question(days, write_roots(ours, theirs, days))
        return list(compare_roots(ours, theirs, question, runs))


def write_roots(ours: str, theirs: str, days: int) -> float:
    """Write the same days as heatpipe does and as pyarrow would; return a price in their middle."""
    store, price = Store(ours), math.nan
    for number in range(FIRST_DAY, FIRST_DAY + days):
        day = make_day(number)
        store.write_day(day, plan_slabs(BTC, day_span(number))[0])
        path = Path(theirs) / day_path(BTC, number)
        path.parent.mkdir(parents=True)
        pq.write_table(encode_day(day).replace_schema_metadata(), path)
        if number == FIRST_DAY + days // 2:
            price = float(day.snapshots.price[day.snapshots.rows // 2])
    return price


def make_day(number: int) -> Day:
    """Make up a day of the sandbox's market."""
    points = Market().snapshots(BTC.coin, BTC.interval_s, *day_span(number))
    snapshots = Snapshots(points.timestamp_us, points.levels, points.price, points.volume)
    return Day(BTC, number, snapshots, Coverage.of_answer(Spans((day_span(number),)), snapshots, BTC.interval_s))


def compare_roots(ours: str, theirs: str, question: Question, runs: int) -> Iterator[Row]:
    """Time the queries on two roots."""
    queries = [engine(root, question) for root in (ours, theirs) for engine in (polars_queries, duckdb_queries)]
    both = [queries[0] | queries[1], queries[2] | queries[3]]
    ratios: list[tuple[float, float]] = []
    for name in both[0]:
        mine, other = (root[name] for root in both)
        assert_same(name, mine(), other())
        (cpu, wall), (peer_cpu, peer_wall) = time_both(runs, mine, other)
        ratios.append((cpu / peer_cpu, wall / peer_wall))
        yield Row(NUMBER, NAME, name, cpu * 1000, "CPU ms", PEER, peer_cpu * 1000, BAR)
    for unit, column in zip(("CPU", "wall"), zip(*ratios, strict=True), strict=True):
        mean = statistics.geometric_mean(column)
        yield Row(NUMBER, NAME, f"geometric mean of the ratios, {unit}", mean, "×", PEER, 1.0, MEAN_BAR)


def time_both(runs: int, *queries: Query) -> list[tuple[float, float]]:
    """Return each query's median CPU and wall seconds, the queries taking turns."""
    repeats = [max(1, math.ceil(SAMPLE_S / seconds(query)[1])) for query in queries]
    most = min(max(repeats), 50)
    taken: list[list[tuple[float, float]]] = [[] for _ in queries]
    for _ in range(runs):
        for query, own in zip(queries, taken, strict=True):
            own.append(seconds(query, most))
    return [
        (statistics.median(cpu), statistics.median(wall)) for cpu, wall in (zip(*own, strict=True) for own in taken)
    ]


def seconds(query: Query, repeats: int = 1) -> tuple[float, float]:
    """Return CPU and wall seconds of one call, all threads of this process included."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        query()
    return (time.process_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats


def assert_same(name: str, mine: pl.DataFrame, other: pl.DataFrame) -> None:
    """Hold the answers of the two roots against each other; a sum may be added up in another order."""
    assert mine.height > 0, f"{name}: no rows"
    keys = [key for key in ("time", "timestamp", "level", "price") if key in mine.columns]
    answers = [frame.sort(keys) for frame in (mine, other)]
    assert answers[0].drop("volume").equals(answers[1].drop("volume")), f"{name}: the answers differ"
    difference = (answers[0]["volume"] - answers[1]["volume"]).abs() > 1e-9 * answers[1]["volume"]
    assert not difference.any(), f"{name}: the volumes differ"


def polars_queries(root: str, question: Question) -> dict[str, Query]:
    """Return the five queries by name, as a polars user would write them."""
    low, high = question.band
    rows = ["timestamp", "price", "volume"]

    def scan(start: datetime | None = None, length: timedelta | None = None) -> pl.LazyFrame:
        end = None if start is None or length is None else start + length
        return heatpipe.scan(root, "BTC", start, end).select(rows)

    minute = timedelta(seconds=BTC.interval_s)
    matrix = scan().group_by(
        time=pl.col("timestamp").dt.truncate(TIME_BIN), level=(pl.col("price") / PRICE_BIN).floor().cast(pl.Int64)
    )
    frames = {
        "a day's slice": scan(question.middle, timedelta(days=1)),
        "a price band over the span": scan().filter(pl.col("price").is_between(low, high)),
        "the span's time × price matrix": matrix.agg(pl.col("volume").sum()),
        f"the {LARGEST} largest levels at a time": scan(question.late, minute).top_k(LARGEST, by="volume"),
        "one snapshot": scan(question.early, minute),
    }
    return {f"{name}, polars": frame.collect for name, frame in frames.items()}


def duckdb_queries(root: str, question: Question) -> dict[str, Query]:
    """Return the five queries by name, as a DuckDB user would write them."""
    connection = heatpipe.connect(root)
    low, high = question.band
    rows = "SELECT timestamp, price, volume FROM liquidations WHERE coin = 'BTC'"
    at = "AND date = '{0:%Y-%m-%d}' AND timestamp = '{0:%Y-%m-%d %H:%M}+00'"
    texts = {
        "a day's slice": f"{rows} AND date = '{question.middle:%Y-%m-%d}'",
        "a price band over the span": f"{rows} AND price BETWEEN {low!r} AND {high!r}",
        "the span's time × price matrix": (
            f"SELECT time_bucket(INTERVAL {TIME_BIN.total_seconds():.0f} SECOND, timestamp) AS time, "
            f"floor(price / {PRICE_BIN})::BIGINT AS level, sum(volume) AS volume "
            "FROM liquidations WHERE coin = 'BTC' GROUP BY ALL"
        ),
        f"the {LARGEST} largest levels at a time": (
            f"{rows} {at.format(question.late)} ORDER BY volume DESC LIMIT {LARGEST}"
        ),
        "one snapshot": f"{rows} {at.format(question.early)}",
    }
    return {f"{name}, DuckDB": functools.partial(ask, connection, text) for name, text in texts.items()}


def ask(connection: "duckdb.DuckDBPyConnection", text: str) -> pl.DataFrame:
    """Run a query to its last row."""
    answer: pl.DataFrame = connection.sql(text).pl()
    return answer


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the rows of the table that these queries are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each (default 5)")
    parser.add_argument("--days", type=int, default=30, help="days of data (default 30)")
    options = parser.parse_args(arguments)
    print(lay_out(measure_queries(options.runs, options.days)))


if __name__ == "__main__":
    main()

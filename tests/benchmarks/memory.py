"""Peak memory of a backfill, and whether it grows with the span; row 6."""

import statistics
from collections.abc import Iterator
from functools import partial

from tests.benchmarks.bodies import DAY_S
from tests.benchmarks.commands import run_backfill
from tests.benchmarks.measure import take_turns
from tests.benchmarks.table import Row, pair
from tests.benchmarks.upstream import run_upstream

NAME = "memory"
LONG_DAYS = 30
MIDDLE_DAYS = 10
SHORT_DAYS = 3
LIMIT_MIB = 450
GROWTH = 1.05


def measure_memory(runs: int) -> Iterator[Row]:
    """Compare the peak of whole processes over a month, ten days and three."""
    with run_upstream("BTC") as upstream:

        def peak(days: int) -> float:
            return run_backfill(upstream.url, ["BTC"], days * DAY_S).usage.peak_bytes / 2**20

        month, middle, short = take_turns(runs, *(partial(peak, days) for days in (LONG_DAYS, MIDDLE_DAYS, SHORT_DAYS)))
    work = f"backfill of {LONG_DAYS} days, peak"
    yield Row(6, NAME, work, statistics.median(month), "MiB", "limit", LIMIT_MIB, 1.0)
    for days, peaks, bar in ((SHORT_DAYS, short, GROWTH), (MIDDLE_DAYS, middle, None)):
        yield Row(6 if bar else None, NAME, work, unit="MiB", against=f"{days} days", bar=bar, **pair(month, peaks))

"""Peak memory of a backfill, and whether it grows with the span; row 6."""

from collections.abc import Iterator

from tests.benchmarks.bodies import DAY_S
from tests.benchmarks.commands import run_backfill
from tests.benchmarks.measure import take_turns
from tests.benchmarks.table import Row, pair
from tests.benchmarks.upstream import run_upstream

NAME = "memory"
LONG_DAYS = 30
SHORT_DAYS = 3
LIMIT_MIB = 450
GROWTH = 1.05


def measure_memory(runs: int) -> Iterator[Row]:
    """Compare the peak of whole processes over a month and over three days."""
    with run_upstream("BTC") as upstream:

        def peak(days: int) -> float:
            return run_backfill(upstream.url, ["BTC"], days * DAY_S).usage.peak_bytes / 2**20

        figures = pair(*take_turns(runs, lambda: peak(LONG_DAYS), lambda: peak(SHORT_DAYS)))
    work = f"backfill of {LONG_DAYS} days, peak"
    yield Row(6, NAME, work, figures["measured"], "MiB", "limit", LIMIT_MIB, 1.0)
    yield Row(6, NAME, work, unit="MiB", against=f"{SHORT_DAYS} days", bar=GROWTH, **figures)

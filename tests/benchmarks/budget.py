"""At the wall: the real pace with a latency, and with the deepest answers; rows 7 and 8."""

from collections.abc import Iterator
from dataclasses import dataclass

from heatpipe.upstream import WEIGHT_PER_MINUTE
from tests.benchmarks.bodies import DEEP, QUIET, Lot
from tests.benchmarks.commands import Run, run_backfill
from tests.benchmarks.table import Row
from tests.benchmarks.upstream import run_upstream

NAME = "budget"
SUSTAINED_NAME = "sustained"
FLOOR_BAR = 1.03
LATENCY_S = 0.3
CORES_BAR = 0.5
CEILING = 3.75
"""Million rows a second that the real budget allows at depth 1,500."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A budget.

    Attributes
    ----------
    per_minute, burst : int
        Weight.
    """

    per_minute: int
    burst: int

    def floor_s(self, weight: int) -> float:
        """Seconds below which nobody gets so much weight."""
        return (weight - self.burst) / self.per_minute * 60


BUCKET = Bucket(per_minute=WEIGHT_PER_MINUTE, burst=50)
"""The real pace; the real burst would be more than all that is asked for."""


def measure_budget(_runs: int) -> Iterator[Row]:
    """Hold the wall time of some hundred requests against the floor; once, for the clock decides, not the CPU."""
    run, refused = spend(QUIET, BUCKET, LATENCY_S)
    floor_s = BUCKET.floor_s(run.report["weight"])
    work = f"{run.report['requests']} requests, {LATENCY_S * 1000:.0f} ms latency"
    yield Row(7, NAME, work, run.report["seconds"], "s", "limit", floor_s, FLOOR_BAR)
    yield Row(7, NAME, "requests refused", refused, "429", "limit", 0, 0)


def measure_sustained(_runs: int) -> Iterator[Row]:
    """Fetch snapshots of 1,500 levels at the real budget for a minute; once."""
    run, refused = spend(DEEP, BUCKET, 0.0)
    seconds = run.report["seconds"]
    paced = run.rows * (1 - BUCKET.burst / run.report["weight"])  # the burst came before the clock began to count
    yield Row(
        *(8, SUSTAINED_NAME, f"depth 1,500 for {seconds:.0f} s", paced / seconds / 1e6, "M rows / s"),
        *("limit", CEILING, 1 / FLOOR_BAR),
        at_least=True,
    )
    yield Row(
        8, SUSTAINED_NAME, "the process's CPU", run.usage.cpu_s / run.usage.wall_s, "cores", "limit", 1, CORES_BAR
    )
    yield Row(8, SUSTAINED_NAME, "requests refused", refused, "429", "limit", 0, 0)


def spend(lot: Lot, bucket: Bucket, latency_s: float) -> tuple[Run, int]:
    """Fetch all of a lot; return the run, and how often it was told to wait."""
    per_minute, burst = bucket.per_minute, bucket.burst
    with run_upstream(lot.coins[0], per_minute=per_minute, burst=burst, latency_s=latency_s) as upstream:
        run = run_backfill(upstream.url, lot.coins, lot.ends[-1], per_minute=per_minute, burst=burst)
        return run, upstream.count().get("429", 0)

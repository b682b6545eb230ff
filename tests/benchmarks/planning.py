"""What spends nothing: a covered root, a large plan, the help; rows 9 and 10."""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from heatpipe.layout import Day
from heatpipe.model import Coverage, Series, Snapshots, Span, Spans, day_span
from heatpipe.plan import plan_slabs
from heatpipe.sandbox import Market
from heatpipe.store import Store
from heatpipe.upstream import LIQUIDATIONS
from tests.benchmarks.bodies import DAY_S, MINUTE_S, START, coins_named, folder_of_all
from tests.benchmarks.commands import HEATPIPE, empty_root, environment, name_series
from tests.benchmarks.measure import Usage, measure_command
from tests.benchmarks.table import Row, pair
from tests.benchmarks.upstream import run_upstream

NAME = "plan"
START_NAME = "start"
COVERED_COINS = coins_named("OLD", 10)
PLANNED_COINS = coins_named("NEW", 200)
YEAR_S = 365 * DAY_S
YEAR_START = START - YEAR_S + 3 * DAY_S  # in the middle of a slab, as a year is
YEAR_END = YEAR_START + YEAR_S
COVERED_BAR_S = 1.5
PLANNED_BAR_S = 1.0
OVER_MINIMUM = 1.005
HELP_BAR_S = 0.3
PLAN_BAR_S = 0.7
NOBODY = "http://127.0.0.1:9"
STARTS_PER_RUN = 3
"""A start is short: take more of them."""


def measure_planning(runs: int) -> Iterator[Row]:
    """Time a backfill that has nothing to do, and a plan that has everything to do."""
    root = make_covered()
    with run_upstream("TINY") as upstream:

        def cover() -> Usage:
            flags = ["--data", str(root), "--quiet"]
            command = [*HEATPIPE, "backfill", *name_series(COVERED_COINS, YEAR_START, YEAR_END), *flags]
            return measure_command(command, environment(upstream.url))

        work = f"a covered year × {len(COVERED_COINS)} coins"
        yield from _time(9, NAME, work, COVERED_BAR_S, [cover() for _ in range(runs)])
        yield Row(9, NAME, "requests for it", sum(upstream.count().values()), "requests", "limit", 0, 0)
    yield from _measure_large_plan(runs)


def _measure_large_plan(runs: int) -> Iterator[Row]:
    with empty_root() as root:
        # Shallow, so that what the plan would take fits any disk; planning does not look at the depth.
        flags = ["--depth", "100", "--data", root]
        command = [*HEATPIPE, "plan", *name_series(PLANNED_COINS, YEAR_START, YEAR_END), *flags]
        usages = [measure_command(command, environment(NOBODY)) for _ in range(runs)]
        plan = json.loads(measure_command([*command, "--json"], environment(NOBODY)).stdout)
    yield from _time(9, NAME, f"plan a year × {len(PLANNED_COINS)} coins", PLANNED_BAR_S, usages)
    least = len(PLANNED_COINS) * LIQUIDATIONS.weigh(YEAR_S // MINUTE_S, 1500)
    yield Row(9, NAME, "its weight", plan["weight"], "weight", "minimum", least, OVER_MINIMUM)


def measure_start(runs: int) -> Iterator[Row]:
    """Time how long a person waits for the help, and for a small plan."""
    with empty_root() as root:
        plan = ["plan", *name_series(["BTC"], START, START + DAY_S), "--data", root]
        for arguments, bar in ((["--help"], HELP_BAR_S), (plan, PLAN_BAR_S)):
            command = [str(Path(sys.executable).with_name("heatpipe")), *arguments]
            usages = [measure_command(command, environment(NOBODY)) for _ in range(runs * STARTS_PER_RUN)]
            yield from _time(10, START_NAME, f"heatpipe {arguments[0]}", bar, usages)


def _time(number: int, name: str, work: str, bar_s: float, usages: Sequence[Usage]) -> Iterator[Row]:
    """Give the median wall time with its bar, and the CPU time without one: other programs share the clock."""
    wall, cpu = ([getattr(usage, what) for usage in usages] for what in ("wall_s", "cpu_s"))
    limits = [bar_s] * len(usages)
    yield Row(number, name, work, unit="s", against="limit", bar=1.0, **pair(wall, limits))
    yield Row(None, name, f"{work}, CPU", unit="CPU s", against="limit", **pair(cpu, limits))


def make_covered() -> Path:
    """Return a root with a year of covered days of some coins; write it first where that was not done before."""
    root = folder_of_all() / f"covered-{YEAR_START}-{len(COVERED_COINS)}"
    if root.exists():
        return root
    print(f"writing {len(COVERED_COINS) * 365:,} covered days, once: {root}", flush=True)
    scratch = root.with_suffix(".part")
    shutil.rmtree(scratch, ignore_errors=True)
    for coin in COVERED_COINS:
        _cover(Store(str(scratch)), Series(coin))
    scratch.rename(root)
    return root


def _cover(store: Store, series: Series) -> None:
    """Write a year's days, with one point each."""
    span = Span(YEAR_START, YEAR_END)
    for slab in plan_slabs(series, span):
        for number in range(max(slab.span.start, span.start) // DAY_S, min(slab.span.end, span.end) // DAY_S):
            at = day_span(number)
            points = Market().snapshots("BTC", MINUTE_S, at.start, at.start + MINUTE_S, depth=10)
            snapshots = Snapshots(points.timestamp_us, points.levels, points.price, points.volume)
            store.write_day(Day(series, number, snapshots, Coverage(Spans((at,)))), slab)

"""What spends nothing: a covered root, a large plan, the help; rows 9 and 10."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from heatpipe.layout import Day
from heatpipe.model import Coverage, Series, Snapshots, Span, Spans, day_span
from heatpipe.sandbox import Market
from heatpipe.store import Store
from heatpipe.upstream import LIQUIDATIONS
from tests.benchmarks.bodies import DAY_S, MINUTE_S, START, coins_named
from tests.benchmarks.commands import HEATPIPE, days_in, empty_root, environment, make_once, name_series, time_rows
from tests.benchmarks.measure import Usage, measure_command
from tests.benchmarks.table import Row
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
        yield from time_rows(9, NAME, work, COVERED_BAR_S, [cover() for _ in range(runs)])
        yield Row(9, NAME, "requests for it", sum(upstream.count().values()), "requests", "limit", 0, 0)
    yield from _measure_large_plan(runs)


def _measure_large_plan(runs: int) -> Iterator[Row]:
    with empty_root() as root:
        # Shallow, so that what the plan would take fits any disk; planning does not look at the depth.
        flags = ["--depth", "100", "--data", root]
        command = [*HEATPIPE, "plan", *name_series(PLANNED_COINS, YEAR_START, YEAR_END), *flags]
        usages = [measure_command(command, environment(NOBODY)) for _ in range(runs)]
        plan = json.loads(measure_command([*command, "--json"], environment(NOBODY)).stdout)
    yield from time_rows(9, NAME, f"plan a year × {len(PLANNED_COINS)} coins", PLANNED_BAR_S, usages)
    least = len(PLANNED_COINS) * LIQUIDATIONS.weigh(YEAR_S // MINUTE_S, 1500)
    yield Row(9, NAME, "its weight", plan["weight"], "weight", "minimum", least, OVER_MINIMUM)


def measure_start(runs: int) -> Iterator[Row]:
    """Time how long a person waits for the help, and for a small plan."""
    with empty_root() as root:
        plan = ["plan", *name_series(["BTC"], START, START + DAY_S), "--data", root]
        for arguments, bar in ((["--help"], HELP_BAR_S), (plan, PLAN_BAR_S)):
            command = [str(Path(sys.executable).with_name("heatpipe")), *arguments]
            usages = [measure_command(command, environment(NOBODY)) for _ in range(runs * STARTS_PER_RUN)]
            yield from time_rows(10, START_NAME, f"heatpipe {arguments[0]}", bar, usages)


def make_covered() -> Path:
    """Return a root with a year of covered days of some coins; write it first where that was not done before."""

    def write(root: Path) -> None:
        for coin in COVERED_COINS:
            _cover(Store(str(root)), Series(coin))

    return make_once(f"covered-{YEAR_START}-{len(COVERED_COINS)}", write)


def _cover(store: Store, series: Series) -> None:
    """Write a year's days, with one point each."""
    span = Span(YEAR_START, YEAR_END)
    for slab, number in days_in(series, span):
        at = day_span(number)
        points = Market().snapshots("BTC", MINUTE_S, at.start, at.start + MINUTE_S, depth=10)
        snapshots = Snapshots(points.timestamp_us, points.levels, points.price, points.volume)
        store.write_day(Day(series, number, snapshots, Coverage(Spans((at,)))), slab)

"""What is wanted against what is on disk: which series are meant, a plan, whether it may be done. Spends nothing."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Final

from heatpipe.config import Settings, Target, resolve_span
from heatpipe.errors import ClockError, ConfigError, UnreadableError
from heatpipe.model import DAY_S, Series, Spans, days_of, show_time
from heatpipe.plan import Plan, SlabPlan, bar_slab, clip_span, estimate, plan_slab, plan_slabs, weigh_window
from heatpipe.report import Report
from heatpipe.store import Store
from heatpipe.upstream import LOOKBACK

EARLIEST_NOW: Final = 1_767_225_600
"""2026-01-01: heatpipe is not older."""
LATEST_NOW: Final = 3_345_062_400
"""2076-01-01: nor does anyone plan by this version then."""
CLOCK_BEHIND_S: Final = 300
"""What is on disk may have ended so long after now: the clock may have been set meanwhile."""
CLOCK_WRONG_S: Final = 3600
"""What ended so long after now proves the clock wrong."""
MOST_NAMED: Final = 3
"""Coins that a warning names; the others are counted."""


def make_plan(
    targets: Iterable[Target],
    store: Store,
    settings: Settings,
    now: float,
    *,
    last_s: int | None = None,
    refetch: bool = False,
    refetch_absent: bool = False,
    lookback: int = 0,
) -> Plan:
    """Look at what is on disk and plan the rest. Spends nothing.

    Parameters
    ----------
    targets : iterable of Target
        What is wanted.
    store : Store
        Where it is to be.
    settings : Settings
        The budget's burst, the history, the settling time.
    now : float
        Unix seconds.
    last_s : int, optional
        Length of the span of a target that names no start.
    refetch : bool
        Plan as if nothing were on disk.
    refetch_absent : bool
        Plan as if nothing were recorded as absent.
    lookback : int
        How many of the newest intervals on disk to ask for again, as far as that costs no weight.

    Raises
    ------
    ConfigError
        A target cannot be asked for; see `heatpipe.plan.clip_span`.
    ClockError
        The clock cannot be right: see `check_clock`.
    """
    if lookback < 0:
        raise ConfigError(f"the lookback is {lookback} intervals: it cannot be negative")
    check_clock(now)
    slabs: list[SlabPlan] = []
    warned: defaultdict[str, list[str]] = defaultdict(list)
    behind: tuple[str, ...] = ()
    still_open = 0
    horizon = settings.horizon(now)
    for target in targets:
        step = target.series.interval_s
        behind = _compare_with_disk(target.series, store, now) or behind  # each may prove the clock wrong
        wanted = resolve_span(target.start, target.end, last_s, horizon.closed_end(step))
        clipped = clip_span(wanted, step, horizon)
        still_open += clipped.open_s // step
        for warning in clipped.warnings:
            warned[warning].append(target.series.coin)
        stored, barred = store.survey(target.series, days_of(clipped.span))
        covered = Spans()
        if not refetch:
            covered = (stored.covered - stored.absent if refetch_absent else stored.covered).within(clipped.span)
        newest = covered.spans[-1].end if covered else 0
        again = Spans.of([(newest - lookback * step, newest)])
        for slab in plan_slabs(target.series, clipped.span):
            plan = plan_slab(slab, clipped.span, covered.within(slab.span), again)
            obstacle = name_obstacle(barred[day] for day in days_of(plan.span) if day in barred)
            slabs.append(bar_slab(slab, plan.span, obstacle) if obstacle else plan)
    history = (f"{_name_some(coins)}: {warning}" for warning, coins in warned.items())
    return Plan(tuple(slabs), (*behind, *history), still_open)


def _name_some(coins: Iterable[str]) -> str:
    """Name a few coins, each once, and count the others."""
    names = list(dict.fromkeys(coins))
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def name_obstacle(errors: Iterable[UnreadableError]) -> str:
    """Say in a line what cannot be read now; nothing where there is nothing."""
    first, *others = list(dict.fromkeys(map(str, errors))) or [""]
    return f"{first} (and {len(others)} more such files)" if others else first


def check_clock(now: float) -> None:
    """Raise a ClockError where no clock can be right."""
    if not EARLIEST_NOW <= now < LATEST_NOW:
        raise ClockError(f"the clock of this machine says {show_time(now)}: set it right")


def _compare_with_disk(series: Series, store: Store, now: float) -> tuple[str, ...]:
    """Return a warning where what is stored ended after now; raise a ClockError where it ended an hour or more after.

    By a clock that is behind, an update would have nothing to fetch.
    """
    covered_end = store.last_instant(series)
    if covered_end is None or covered_end - now <= CLOCK_BEHIND_S:
        return ()
    points = store.points(series)  # an absence proves nothing: a clock that was ahead may have stored it
    newest = now if points is None else points.end
    if newest - now <= CLOCK_BEHIND_S:
        return ()
    behind = (
        f"the clock of this machine says {show_time(now)}, but {series.coin} is on disk until {show_time(newest)}: "
        "set it right"
    )
    if newest - now > CLOCK_WRONG_S:
        raise ClockError(behind)
    return (behind,)


def make_update_plan(
    targets: Iterable[Target],
    store: Store,
    settings: Settings,
    now: float,
    *,
    last_s: int | None = None,
    lookback: int = LOOKBACK,
) -> Plan:
    """Plan what is missing since the first covered instant of each target, with a lookback. Spends nothing.

    A target with nothing missing is not asked for at all: the lookback costs nothing only beside something else.

    Parameters
    ----------
    targets : iterable of Target
        What is wanted; one that names no start begins where its series does on disk.
    store, settings, now, last_s
        As `make_plan`.
    lookback : int
        How many of the newest intervals on disk to ask for again, as far as that costs no weight.

    Raises
    ------
    ConfigError
        A target names no start, and nothing of its series is on disk; or as `make_plan`.
    """
    check_clock(now)
    horizon = settings.horizon(now)
    started: list[Target] = []
    for target in targets:
        start = target.start
        if start is None and last_s is None:
            reach = horizon.reach(target.series.interval_s)
            try:
                start = max(_first_instant(store, target.series), reach.start)
            except UnreadableError:  # as the plan will find, and say, for any day of it
                start = max(reach.end - DAY_S, reach.start)
            if start >= min(reach.end, reach.end if target.end is None else target.end):
                _compare_with_disk(target.series, store, now)  # by a clock that is behind, nothing is closed
                continue  # all that is wanted is older than the history
        started.append(Target(target.series, start, target.end))
    return make_plan(started, store, settings, now, last_s=last_s, lookback=lookback)


def _first_instant(store: Store, series: Series) -> int:
    first = store.first_instant(series)
    if first is None:
        there = [str(other) for other in store.all_series() if other.coin == series.coin and _has_days(store, other)]
        hint = f" (there is {', '.join(there)})" if there else ""
        raise ConfigError(f"nothing of {series} is on disk{hint}: say with --start from when on it is wanted")
    return first


def leave_out_retired(targets: Iterable[Target], settings: Settings) -> list[Target]:
    """Return the targets whose coins are not retired.

    Raises
    ------
    ConfigError
        All of them are.
    """
    found = list(targets)
    retired = frozenset(settings.retired)
    left = [target for target in found if target.series.coin not in retired]
    if found and not left:
        raise ConfigError(
            f"nothing to update: {', '.join(sorted({target.series.coin for target in found}))} are retired "
            "([dataset] retired, HEATPIPE_RETIRED); name one with --coin to update it all the same"
        )
    return left


def without_rows(plan: Plan, report: Report, store: Store) -> list[str]:
    """Return the coins that a plan asked for, that did not fail, and of which no row is on disk: misspelt, perhaps."""
    asked = {slab.slab.series for slab in plan.slabs if slab.requests}
    asked -= {failure.series for failure in report.failures}
    return sorted({series.coin for series in asked if not store.has_rows(series)})


def choose_to_update(
    store: Store, *, interval: str | None = None, unit: str | None = None, depth: int | None = None
) -> list[Series]:
    """Return the series that have anything on disk: all of them, or those with the parts that are given.

    Raises
    ------
    ConfigError
        There is none, or no series can have such a part.
    """
    wanted = {
        name: part for name, part in (("interval", interval), ("unit", unit), ("depth", depth)) if part is not None
    }
    Series("any", **wanted)  # type: ignore[arg-type] # a word that is not known is told from one that is not there
    found = [
        series
        for series in store.all_series()
        if all(getattr(series, name) == part for name, part in wanted.items()) and _has_days(store, series)
    ]
    if not found:
        such = "".join(f", {name} {part}" for name, part in wanted.items())
        raise ConfigError(f"nothing to update in {store.root}{such}: name a series with --coin, and its --start")
    return found


def _has_days(store: Store, series: Series) -> bool:
    """Whether anything of a series is on disk; what cannot be looked at may be."""
    try:
        return bool(store.days(series))
    except UnreadableError:
        return True


def check_plan(plan: Plan, store: Store, settings: Settings, max_weight: int | None = None) -> None:
    """Refuse, before anything is spent, a plan that costs too much or will not fit.

    Raises
    ------
    ConfigError
        It is over `max_weight`, one request is over the burst, or the disk is too small.
    """
    if max_weight is not None and max_weight < 0:
        raise ConfigError(f"--max-weight {max_weight} is negative")
    if max_weight is not None and plan.weight > max_weight:
        raise ConfigError(f"the plan costs a weight of {plan.weight:,}, allowed are {max_weight:,} (--max-weight)")
    heaviest = max((weigh_window(slab.slab.series) for slab in plan.slabs if slab.requests), default=0)
    if heaviest > settings.burst:
        raise ConfigError(f"one request weighs {heaviest}, the budget's burst is only {settings.burst}")
    free, needed = store.free_bytes(), estimate(plan).disk_bytes
    if needed > free:
        raise ConfigError(
            f"the plan needs about {needed / 1e9:,.3f} GB in {store.root}, {free / 1e9:,.3f} GB are free; "
            "plan a shorter span, or point --data to a larger disk"
        )


def choose_series(
    found: Sequence[Series],
    coin: str | Sequence[str] | None = None,
    *,
    interval: str | None = None,
    unit: str | None = None,
    depth: int | None = None,
) -> list[Series]:
    """Choose among the series on disk.

    Raises
    ------
    ConfigError
        Nothing matches: names the nearest; or a part other than the coin is ambiguous: lists its values.
    """
    left = choose_coins(found, [coin] if isinstance(coin, str) else coin)
    for part, wanted in (("interval", interval), ("unit", unit), ("depth", depth)):
        there = {getattr(series, part) for series in left}
        if wanted is None and len(there) > 1:
            choices = ", ".join(f"{part}={value!r}" for value in sorted(there))
            raise ConfigError(f"the dataset holds several: choose one of {choices}")
        if wanted is not None:
            _check_found(part, wanted, there)
            left = [series for series in left if getattr(series, part) == wanted]
    coins = {series.coin for series in left}
    for one in [] if coin is None or isinstance(coin, str) else coin:
        if one not in coins:
            raise ConfigError(f"no {one} in the dataset with {left[0].interval}, {left[0].unit}, depth {left[0].depth}")
    return left


def choose_coins(found: Sequence[Series], coins: Sequence[str] | None) -> list[Series]:
    """Return the series of some coins, or of all; an unknown one raises a ConfigError that names the nearest."""
    if coins is not None and not coins:
        raise ConfigError("the list of coins is empty")
    if coins is None:
        return list(found)
    there, wanted = {series.coin for series in found}, frozenset(coins)
    for coin in coins:
        _check_found("coin", coin, there)
    return [series for series in found if series.coin in wanted]


def _check_found(part: str, wanted: str | int, there: Collection[str | int]) -> None:
    if wanted in there:
        return
    names = {str(value): value for value in there}
    near = get_close_matches(str(wanted).upper(), {name.upper(): name for name in names}, n=3, cutoff=0.5)
    nearest = [name for name in sorted(names) if name.upper() in near] or sorted(names)[:10]
    there_is = f"there is {', '.join(nearest)}" if nearest else "it is empty"
    raise ConfigError(f"no {part} {wanted!r} in the dataset; {there_is}")

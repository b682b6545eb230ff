"""The planner, against a search of every way to cut a timeline and against a bound that no cut can beat."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heatpipe.config import parse_last, resolve_span
from heatpipe.errors import ConfigError
from heatpipe.model import DAY_S, Series, Span, Spans, day_span, days_of
from heatpipe.plan import (
    Clipped,
    Horizon,
    Plan,
    Slab,
    clip_span,
    count_windows,
    estimate,
    plan_slab,
    plan_slabs,
    plan_windows,
    slab_days,
    weigh_window,
)
from heatpipe.upstream import LIQUIDATIONS, Interval

BTC = Series("BTC")
STEP = BTC.interval_s
FIRST = 29_601_334  # 2026-04-13T11:34Z, counted in minutes
NOW = 1_776_080_100.0

intervals = st.sampled_from([each.name for each in Interval])
depths = st.sampled_from([1, 1500, 1501, 3000, 4501, 10_501])


@st.composite
def hole_points(draw: st.DrawFn, most: int) -> list[tuple[int, int]]:
    """Holes as point numbers, their edges near multiples of a thousand from one another, where cuts are decided."""
    edges, at = [], 0
    for _ in range(draw(st.integers(1, 7)) * 2):
        at += draw(st.sampled_from([1, 2, 250, 499, 500, 998, 999, 1000, 1001, 1999, 2000]) | st.integers(1, 1100))
        edges.append(at)
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if end <= most]


def holes_of(points: list[tuple[int, int]], series: Series = BTC) -> Spans:
    step = series.interval_s
    return Spans.of(((FIRST + start) * step, (FIRST + end) * step) for start, end in points)


def wanted_of(points: list[tuple[int, int]], size: int) -> NDArray[np.bool_]:
    wanted = np.zeros(size, np.bool_)
    for start, end in points:
        wanted[start:end] = True
    return wanted


def least_weight(wanted: NDArray[np.bool_], depth: int) -> int:
    """Search every set of windows, at every point and of every length that the upstream takes, for the cheapest."""
    size = len(wanted)
    longest = min(size, LIQUIDATIONS.max_points)
    price = np.array([LIQUIDATIONS.weigh(points, depth) for points in range(1, longest + 1)])
    least = np.zeros(size + 1, np.int64)  # of all that is wanted from this point on
    for at in range(size - 1, -1, -1):
        reach = min(longest, size - at)
        asked = int((price[:reach] + least[at + 1 : at + 1 + reach]).min())
        least[at] = asked if wanted[at] else min(asked, int(least[at + 1]))
    return int(least[0])


@given(hole_points(most=5000), depths)
@settings(deadline=None, max_examples=150)
def test_windows_cover_the_holes_at_the_least_weight_of_all_cuts(points: list[tuple[int, int]], depth: int) -> None:
    series = Series("BTC", depth=depth)
    windows = list(plan_windows(series, holes_of(points)))
    assert count_windows(series, holes_of(points)) == len(windows)
    assert {window.weight for window in windows} <= {weigh_window(series)}
    size = max((end for _, end in points), default=0)
    assert sum(window.weight for window in windows) == least_weight(wanted_of(points, size), depth)


def test_the_search_for_the_least_weight_knows_what_it_is_looking_for() -> None:
    assert least_weight(wanted_of([], 10), 1500) == 0
    assert least_weight(wanted_of([(0, 1000)], 1000), 1500) == 5
    assert least_weight(wanted_of([(0, 1001)], 1001), 1500) == 10
    assert least_weight(wanted_of([(0, 1), (999, 1001)], 1001), 1500) == 10
    assert least_weight(wanted_of([(0, 1), (1500, 1501), (3000, 3001)], 3001), 1501) == 18


@given(hole_points(most=20_000), intervals, depths)
@settings(deadline=None)
def test_no_cut_is_cheaper_because_the_windows_begin_a_thousand_points_apart(
    points: list[tuple[int, int]], interval: str, depth: int
) -> None:
    # A window that costs n quanta reaches over n thousand points at most, so over n of these beginnings at most;
    # each of them is wanted: whatever covers them all pays as many quanta as there are windows.
    series = Series("BTC", interval, depth=depth)
    holes = holes_of(points, series)
    windows = list(plan_windows(series, holes))
    assert count_windows(series, holes) == len(windows)
    reach = 1000 * series.interval_s
    assert all(later.span.start - sooner.span.start >= reach for sooner, later in pairwise(windows))
    assert all(Spans.of([(window.span.start, window.span.start + 1)]) & holes for window in windows)
    assert {window.weight for window in windows} <= {LIQUIDATIONS.weigh(1, depth)}


@given(hole_points(most=20_000), intervals)
@settings(deadline=None)
def test_each_wanted_interval_is_in_one_window_and_none_begins_or_ends_in_a_covered_one(
    points: list[tuple[int, int]], interval: str
) -> None:
    series = Series("BTC", interval)
    holes = holes_of(points, series)
    windows = list(plan_windows(series, holes))
    asked = Spans.of(window.span for window in windows)
    assert all(sooner.span.end <= later.span.start for sooner, later in pairwise(windows))
    assert not holes - asked
    for window in windows:
        assert 1 <= window.points <= 1000
        first, last = Span(window.span.start, window.span.start + 1), Span(window.span.end - 1, window.span.end)
        assert not Spans.of([first, last]) - holes


@pytest.mark.parametrize(
    ("holes", "windows"),
    [
        ([], []),
        ([(0, 1)], [(0, 1)]),
        ([(0, 1000)], [(0, 1000)]),
        ([(0, 1001)], [(0, 1000), (1000, 1001)]),
        ([(0, 1), (999, 1000)], [(0, 1000)]),  # bridged
        ([(0, 1), (1000, 1001)], [(0, 1), (1000, 1001)]),  # a point too far
        ([(0, 10), (990, 1010)], [(0, 1000), (1000, 1010)]),  # a hole cut in two
        ([(0, 10), (20, 30), (2000, 2001)], [(0, 30), (2000, 2001)]),  # no byte asked for in vain
    ],
)
def test_windows_are_cut_greedily_from_the_leftmost_hole(
    holes: list[tuple[int, int]], windows: list[tuple[int, int]]
) -> None:
    found = [
        (span.start // STEP - FIRST, span.end // STEP - FIRST)
        for span in (window.span for window in plan_windows(BTC, holes_of(holes)))
    ]
    assert found == windows


# Slabs


@pytest.mark.parametrize(
    ("interval", "days", "windows"),
    [
        ("MINUTE", 25, 36),
        ("FIVE_MINUTES", 125, 36),
        ("FIFTEEN_MINUTES", 125, 12),
        ("HOUR", 125, 3),
        ("FOUR_HOURS", 1000, 6),
        ("DAY", 1000, 1),
    ],
)
def test_a_slab_is_a_run_of_days_that_wastes_no_weight(interval: str, days: int, windows: int) -> None:
    series = Series("BTC", interval)
    slab = Slab(series, 7)
    assert slab.span == Span(7 * days * DAY_S, 8 * days * DAY_S)
    assert slab_days(series.interval_s) == days
    plan = plan_slab(slab, slab.span, Spans())
    assert [window.points for window in plan.windows] == [1000] * windows


@given(intervals, st.integers(0, 10**9), st.integers(1, 4 * 10**8))
@settings(deadline=None)
def test_slabs_tile_a_span_on_a_fixed_grid(interval: str, start: int, length: int) -> None:
    series = Series("BTC", interval)
    span = Span(start, start + length)
    slabs = plan_slabs(series, span)
    assert slabs[0].span.start <= span.start < slabs[0].span.end
    assert slabs[-1].span.start < span.end <= slabs[-1].span.end
    assert all(sooner.span.end == later.span.start for sooner, later in pairwise(slabs))
    whole = plan_slabs(series, Span(0, span.end))
    assert slabs == whole[-len(slabs) :]  # the grid does not depend on the span


@given(intervals, st.integers(0, 40_000))
def test_a_day_belongs_to_one_slab(interval: str, day: int) -> None:
    series = Series("BTC", interval)
    (slab,) = plan_slabs(series, day_span(day))
    assert day in days_of(slab.span)
    for other in (Slab(series, slab.number - 1), Slab(series, slab.number + 1)):
        assert day not in days_of(other.span)


def test_a_slab_is_shown_by_its_dates() -> None:
    assert str(Slab(BTC, 822)) == "BTC MINUTE 2026-04-07/2026-05-01"  # the last day is part of it


def test_a_slab_plans_only_its_part_of_the_span_and_only_what_is_missing() -> None:
    slab = Slab(BTC, 822)
    start = slab.span.start
    wanted = Span(start - 10 * DAY_S, start + DAY_S)
    covered = Spans.of([(start, start + 3600), (start + DAY_S - 60, start + 2 * DAY_S)])
    plan = plan_slab(slab, wanted, covered)
    assert plan.span == Span(start, start + DAY_S)
    assert plan.missing_s == DAY_S - 3600 - 60
    assert [window.span for window in plan.windows] == [
        Span(start + 3600, start + 3600 + 60_000),
        Span(start + 63_600, start + DAY_S - 60),
    ]
    assert plan.weight == 10


def test_a_covered_slab_asks_for_nothing() -> None:
    slab = Slab(BTC, 822)
    plan = plan_slab(slab, slab.span, Spans.of([slab.span]))
    assert (plan.windows, plan.weight, plan.missing_s) == ((), 0, 0)


# Plans


def plan_year(coin: str, start: int) -> Plan:
    span = Span(start, start + 365 * DAY_S)
    series = Series(coin)
    return Plan(tuple(plan_slab(slab, span, Spans()) for slab in plan_slabs(series, span)))


def test_two_hundred_coins_over_a_year_cost_half_a_percent_above_the_floor_at_most() -> None:
    floor_weight = LIQUIDATIONS.weigh(365 * 1440, 1500)
    # A year may begin on any day of a slab, and at any minute of a day: 200 coins, 200 beginnings.
    weights = [plan_year(f"C{number}", number * (3 * 3600 + 17 * 60)).weight for number in range(200)]
    assert max(weights) <= 1.005 * floor_weight
    assert min(weights) >= floor_weight
    assert sum(weights) <= 1.005 * 200 * floor_weight


def test_a_plan_adds_its_slabs_up() -> None:
    plan = plan_year("BTC", 25 * DAY_S * 800)
    assert (len(plan.slabs), plan.requests, plan.weight) == (15, 526, 2630)
    assert plan.intervals == plan.missing == 365 * 1440
    assert [window.span.start for window in plan.windows] == sorted(window.span.start for window in plan.windows)
    assert plan.seconds(750, 1500) == pytest.approx((2630 - 1500) * 60 / 750)
    assert plan.seconds(750, 5000) == 0


def test_day_sized_windows_would_cost_two_fifths_more() -> None:
    plan = plan_year("BTC", 25 * DAY_S * 800)
    assert 365 * LIQUIDATIONS.weigh(1440, 1500) / plan.weight == pytest.approx(1.39, abs=0.01)


def test_an_estimate_grows_with_what_is_missing_and_is_cut_by_the_depth() -> None:
    plan = plan_year("BTC", 0)
    assert estimate(plan).rows == 365 * 1440 * 1000
    shallow = Series("BTC", depth=10)
    slab = Slab(shallow, 0)
    half = plan_slab(slab, slab.span, Spans.of([(0, slab.span.end // 2)]))
    assert estimate(Plan((half,))).rows == 18_000 * 10
    assert estimate(Plan(())).rows == 0


# Horizon


@given(st.floats(1e9, 2e9), st.integers(0, 86_400), st.integers(0, 1000), intervals)
@settings(deadline=None)
def test_the_horizon_lies_between_the_oldest_sold_and_the_last_settled_interval(
    now: float, settle_s: int, days: int, interval: str
) -> None:
    step = Interval[interval].seconds
    horizon = Horizon(now, settle_s, days)
    end = horizon.closed_end(step)
    assert end % step == 0
    assert end + settle_s <= now < end + step + settle_s
    start = horizon.history_start(step)
    assert start % step == 0
    if days:
        assert start - step < now - days * DAY_S <= start
    else:
        assert start == 0
    assert horizon.reach(step) == Span(start, end)


@pytest.mark.parametrize(
    ("now", "end"),
    [(180.0, 60), (179.99, 0), (239.99, 60), (240.0, 120)],
)
def test_an_interval_is_closed_when_it_ended_a_settling_time_ago(now: float, end: int) -> None:
    assert Horizon(now, settle_s=120, history_days=0).closed_end(60) == end


# Clipping

HORIZON = Horizon(NOW, settle_s=120, history_days=365)
HISTORY_START = 1_744_544_100  # 365 days before NOW, a whole minute
CLOSED_END = 1_776_079_980


def test_the_tables_below_know_their_horizon() -> None:
    assert HORIZON.reach(60) == Span(HISTORY_START, CLOSED_END)


@pytest.mark.parametrize(
    ("wanted", "clipped"),
    [
        (Span(1_776_000_000, 1_776_000_600), Span(1_776_000_000, 1_776_000_600)),
        (Span(1_776_000_001, 1_776_000_659), Span(1_776_000_060, 1_776_000_600)),  # inward
        (Span(1_776_000_000, CLOSED_END + 1), Span(1_776_000_000, CLOSED_END)),
        (Span(1_776_000_000, 1_999_999_999), Span(1_776_000_000, CLOSED_END)),  # ends in the future
        (Span(HISTORY_START, CLOSED_END), Span(HISTORY_START, CLOSED_END)),
    ],
)
def test_a_span_is_rounded_inward_and_clipped_to_what_is_closed(wanted: Span, clipped: Span) -> None:
    found = clip_span(wanted, 60, HORIZON)
    assert (found.span, found.warnings) == (clipped, ())
    assert found.open_s == max(0, wanted.end // 60 * 60 - CLOSED_END)


@pytest.mark.parametrize("wanted", [Span(CLOSED_END, 1_999_999_980), Span(1_900_000_000, 1_999_999_999)])
def test_a_span_that_is_still_open_is_empty_and_no_fault(wanted: Span) -> None:
    clipped = clip_span(wanted, 60, HORIZON)
    assert clipped.span.seconds == 0
    assert not clipped.warnings


def test_a_span_partly_beyond_the_history_is_clipped_with_a_warning() -> None:
    clipped = clip_span(Span(HISTORY_START - 86_400, CLOSED_END), 60, HORIZON)
    assert clipped.span == Span(HISTORY_START, CLOSED_END)
    (warning,) = clipped.warnings
    assert warning == (
        "the span starts 2025-04-12T11:35:00Z, beyond the 365 days of history that the tier sells; "
        "clipped to 2025-04-13T11:35:00Z"
    )


def test_unlimited_history_clips_nothing() -> None:
    assert clip_span(Span(0, CLOSED_END), 60, Horizon(NOW, 120, 0)) == Clipped(Span(0, CLOSED_END))


@pytest.mark.parametrize(
    ("wanted", "interval_s", "says"),
    [
        (Span(600, 600), 60, "is empty: it starts and ends 1970-01-01T00:10:00Z"),
        (Span(1_776_000_060, 1_776_000_000), 60, "before it starts"),
        (Span(1_776_000_001, 1_776_000_059), 60, "holds no whole interval of 60 seconds"),
        (Span(1_776_000_001, 1_776_000_119), 60, "holds no whole interval"),
        (Span(1_776_000_001, 1_776_003_600), 86_400, "holds no whole interval of 86400 seconds"),
        (Span(HISTORY_START - 600, HISTORY_START), 60, "wholly beyond the 365 days of history"),
        (Span(0, 86_400), 60, "wholly beyond the 365 days of history"),
    ],
)
def test_a_span_that_can_never_be_answered_is_refused_in_one_line(wanted: Span, interval_s: int, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        clip_span(wanted, interval_s, HORIZON)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@given(
    st.integers(1_744_000_000, 1_777_000_000),
    st.integers(1, 40_000_000),
    intervals,
    st.integers(0, 7200),
    st.sampled_from([0, 30, 365]),
)
@settings(deadline=None)
def test_a_clipped_span_is_the_largest_on_the_grid_within_what_was_wanted_and_can_be_asked(
    start: int, length: int, interval: str, settle_s: int, days: int
) -> None:
    wanted, step, horizon = Span(start, start + length), Interval[interval].seconds, Horizon(NOW, settle_s, days)
    reach = horizon.reach(step)
    try:
        span = clip_span(wanted, step, horizon).span
    except ConfigError:
        first = -(-max(wanted.start, reach.start) // step) * step
        assert first + step > wanted.end  # no whole interval of it is sold
        return
    assert span.seconds >= 0
    assert span.start % step == span.end % step == 0
    if span.seconds:
        assert wanted.clip(reach).clip(span) == span  # within both
        for before in (span.start - step, span.end):  # neither neighbour would do
            neighbour = Span(before, before + step)
            assert wanted.clip(reach).clip(neighbour) != neighbour


def test_a_start_long_before_the_epoch_is_clipped_like_any_other() -> None:
    wanted = resolve_span(None, None, parse_last("36500d"), CLOSED_END)
    assert clip_span(wanted, 60, HORIZON).span == Span(HISTORY_START, CLOSED_END)


def test_a_window_is_never_longer_than_the_upstream_allows() -> None:
    windows = plan_windows(BTC, holes_of([(0, 36_000)]))
    assert all(window.points <= LIQUIDATIONS.max_points for window in windows)

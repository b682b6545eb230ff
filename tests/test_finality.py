"""What of an answer is final: closed intervals, and absences that are sure."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatpipe.finality import SURE_S, YOUNG_S, Answer, borders_points, is_odd, join_hulls, judge, settle_doubt
from heatpipe.model import Series, Snapshots, Span, Spans, Window
from tests.conftest import DAY, HOUR, MINUTE, TODAY

BTC = Series("BTC", depth=2)
NOON = TODAY + 12 * HOUR


def points(*starts: int, levels: int = 1) -> Snapshots:
    stamps = np.array(starts, np.int64) * 1_000_000
    rows = np.ones(len(starts) * levels)
    return Snapshots(stamps, np.full(len(starts), levels), rows, rows)


def minutes(*spans: tuple[int, int]) -> Spans:
    """Spans in minutes from noon."""
    return Spans.of((NOON + MINUTE * start, NOON + MINUTE * end) for start, end in spans)


TEN = Window(BTC, Span(NOON, NOON + 600))
EVERY = points(*range(NOON, NOON + 600, 60))


@pytest.mark.parametrize(
    ("asked_at", "settle_s", "covered", "opened"),
    [
        (NOON + 600 + 120, 120, [(0, 10)], []),
        (NOON + 600 + 119.9, 120, [(0, 9)], [(9, 10)]),
        (NOON + 600, 0, [(0, 10)], []),
        (NOON + 599.9, 0, [(0, 9)], [(9, 10)]),
        (NOON + 180, 120, [(0, 1)], [(1, 10)]),
        (NOON + 179, 120, [], [(0, 10)]),
        (NOON - 3600, 120, [], [(0, 10)]),
        (NOON + DAY, 120, [(0, 10)], []),
        (0, 120, [], [(0, 10)]),
    ],
)
def test_only_closed_intervals_are_kept(
    asked_at: float, settle_s: int, covered: list[tuple[int, int]], opened: list[tuple[int, int]]
) -> None:
    answer = judge(TEN, EVERY, asked_at, settle_s, dated=False)
    assert answer.coverage.covered == minutes(*covered)
    assert answer.open == minutes(*opened)
    assert answer.snapshots.points == sum(end - start for start, end in covered)
    assert not answer.young


@pytest.mark.parametrize(
    ("age_s", "absent", "young"),
    [
        (15 * 60, [(4, 6)], []),
        (15 * 60 - 1, [(4, 5)], [(5, 6)]),
        (14 * 60, [(4, 5)], [(5, 6)]),
        (14 * 60 - 1, [], [(4, 6)]),
    ],
)
def test_an_absence_is_believed_when_it_is_a_quarter_of_an_hour_old(
    age_s: int, absent: list[tuple[int, int]], young: list[tuple[int, int]]
) -> None:
    """Counted from the interval's end; two intervals are left out, the later one ends six minutes past noon."""
    came = points(*(NOON + 60 * at for at in (0, 1, 2, 3, 6, 7, 8, 9)))
    answer = judge(TEN, came, NOON + 6 * MINUTE + age_s, 0, dated=False)
    assert answer.coverage.absent == minutes(*absent)
    assert answer.young == minutes(*young)
    assert answer.coverage.covered == minutes((0, 10)) - minutes(*young)
    assert answer.snapshots.points == 8


def test_a_point_without_levels_is_an_answer_however_young() -> None:
    answer = judge(TEN, points(*range(NOON, NOON + 600, 60), levels=0), NOON + 600, 0, dated=False)
    assert answer.coverage.empty == answer.coverage.covered == minutes((0, 10))
    assert not answer.young


def test_an_hour_is_young_a_quarter_of_an_hour_after_its_end() -> None:
    window = Window(Series("BTC", "HOUR"), Span(NOON, NOON + 2 * HOUR))
    hour = Spans.of([(NOON + HOUR, NOON + 2 * HOUR)])
    assert judge(window, Snapshots(), NOON + 2 * HOUR + 899, 0, dated=True).young == hour
    assert judge(window, Snapshots(), NOON + 2 * HOUR + 900, 0, dated=True).young == Spans()


def test_a_point_between_two_intervals_belongs_to_the_one_it_falls_in() -> None:
    answer = judge(TEN, points(NOON + 59, NOON + 121), NOON + DAY, 0, dated=False)
    assert answer.coverage.present == minutes((0, 1), (2, 3))
    assert answer.coverage.absent == minutes((1, 2))
    assert answer.points == Span(NOON, NOON + 3 * MINUTE)


# --- absences that are sure ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age_s", "dated", "absent", "doubtful"),
    [
        (SURE_S, True, [(6, 10)], []),
        (SURE_S - 1, True, [(6, 9)], [(9, 10)]),
        (SURE_S, False, [], [(6, 10)]),
        (100 * DAY, False, [], [(6, 10)]),
        (HOUR, True, [], [(6, 10)]),
    ],
)
def test_nothing_after_the_last_point_is_absent_before_it_is_a_week_old_by_two_clocks(
    age_s: int, dated: bool, absent: list[tuple[int, int]], doubtful: list[tuple[int, int]]
) -> None:
    """The third minute is left out too: there are points after it, so it is absent whatever the clocks say."""
    came = points(*(NOON + 60 * at for at in (0, 1, 3, 4, 5)))
    answer = judge(TEN, came, NOON + 10 * MINUTE + age_s, 0, dated=dated)
    assert answer.coverage.absent == minutes((2, 3), *absent)
    assert answer.doubtful == minutes(*doubtful)
    assert answer.coverage.covered == minutes((0, 10)) - answer.doubtful


@pytest.mark.parametrize(
    ("known", "complete", "sure"),
    [
        (None, False, []),
        (None, True, [(2, 4), (6, 10)]),  # a series without any point
        (Span(NOON - HOUR, NOON), True, []),
        (Span(NOON - HOUR, NOON + 3 * MINUTE), True, [(2, 3)]),
        (Span(NOON + 5 * MINUTE, NOON + 6 * MINUTE), False, [(2, 4)]),
        (Span(NOON - HOUR, NOON + HOUR), False, [(2, 4), (6, 10)]),
    ],
)
def test_a_point_further_on_settles_the_doubt(known: Span | None, complete: bool, sure: list[tuple[int, int]]) -> None:
    assert settle_doubt(minutes((2, 4), (6, 10)), known, complete=complete) == minutes(*sure)


@pytest.mark.parametrize(
    ("known", "odd"),
    [
        (None, False),
        (Span(NOON - HOUR, NOON), False),  # the series has ended
        (Span(NOON + 600, NOON + HOUR), False),  # it has not begun
        (Span(NOON - HOUR, NOON + HOUR), True),
        (Span(NOON - HOUR, NOON + 60), True),  # what is stored of the window has points
        (Span(NOON + 540, NOON + HOUR), True),
    ],
)
def test_a_window_without_a_point_is_odd_where_the_series_has_points(known: Span | None, odd: bool) -> None:
    blank = judge(TEN, Snapshots(), NOON + DAY, 0, dated=True)
    assert is_odd(blank, TEN, known) is odd
    one = judge(TEN, points(NOON), NOON + DAY, 0, dated=True)
    assert not is_odd(one, TEN, known)


@pytest.mark.parametrize(
    ("known", "borders"),
    [
        (None, False),
        (Span(NOON - HOUR, NOON), True),
        (Span(NOON - HOUR, NOON - 540), True),
        (Span(NOON - HOUR, NOON - 600), False),
        (Span(NOON + 600, NOON + HOUR), True),
        (Span(NOON + 1140, NOON + HOUR), True),
        (Span(NOON + 1200, NOON + HOUR), False),
    ],
)
def test_a_window_without_a_point_borders_on_points(known: Span | None, borders: bool) -> None:
    blank = judge(TEN, Snapshots(), NOON + 600 + SURE_S, 0, dated=True)
    assert borders_points(blank, TEN, known) is borders
    doubtful = judge(TEN, Snapshots(), NOON + DAY, 0, dated=True)
    assert not borders_points(doubtful, TEN, known)  # nothing of it would be recorded


def test_a_forming_point_is_not_stored_and_still_a_point() -> None:
    """It says that the series goes on, and that the window is not blank."""
    answer = judge(TEN, points(NOON + 9 * MINUTE), NOON + 9 * MINUTE + YOUNG_S, 0, dated=False)
    assert answer.points == Span(NOON + 9 * MINUTE, NOON + 10 * MINUTE)
    assert answer.coverage.absent == minutes((0, 9))


@given(
    came=st.sets(st.integers(0, 9)),
    age_s=st.integers(-600, 2 * SURE_S),
    settle_s=st.integers(0, 600),
    dated=st.booleans(),
)
def test_every_interval_of_a_window_is_one_thing(came: set[int], age_s: int, settle_s: int, dated: bool) -> None:
    answer = judge(TEN, points(*(NOON + 60 * at for at in sorted(came))), NOON + 600 + age_s, settle_s, dated=dated)
    states = (answer.coverage.covered, answer.open, answer.young, answer.doubtful)
    for one, other in itertools.combinations(states, 2):
        assert not one & other
    assert sum(state.seconds for state in states) == 600
    assert answer.coverage.present | answer.coverage.absent == answer.coverage.covered
    assert answer.snapshots.points == answer.coverage.present.seconds // 60


def test_hulls_join() -> None:
    assert join_hulls(None, None) is None
    assert join_hulls(Span(3, 5), None) == join_hulls(None, Span(3, 5)) == Span(3, 5)
    assert join_hulls(Span(3, 5), Span(1, 4)) == Span(1, 5)


def test_an_answer_without_news_of_points_is_blank() -> None:
    assert Answer(Snapshots(), judge(TEN, Snapshots(), NOON, 0, dated=True).coverage, Spans(), Spans()).points is None

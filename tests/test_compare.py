"""What changed between two answers, against a look at every interval for itself."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from heatpipe.compare import compare_days
from heatpipe.layout import Day
from heatpipe.model import Coverage, Series, Snapshots, Span, Spans

BTC = Series("BTC")
STEP = BTC.interval_s
INTERVALS = 40

Level = tuple[float, float]
Interval = dict[int, list[Level]]
"""What came of one interval: levels by the microsecond in it; nothing where it is absent."""

levels = st.sampled_from([[], [(1.0, 0.0)], [(1.0, -0.0)], [(1.0, 2.0)], [(2.0, 2.0)], [(1.0, 2.0), (3.0, 2.0)]])
answers = st.dictionaries(st.sampled_from([0, 1, 59_999_999]), levels, max_size=2)


def day_of(intervals: list[Interval], *, stored: bool) -> Day:
    """Make a day of what came; one that is stored knows no points without levels."""
    points = [(start * STEP * 10**6 + at, one[at]) for start, one in enumerate(intervals) for at in sorted(one)]
    whole = Spans.of([(0, len(intervals) * STEP)])
    came = snapshots_of(points)
    coverage = Coverage.of_answer(whole, came, STEP)
    return Day(BTC, 0, snapshots_of([point for point in points if point[1]]) if stored else came, coverage)


def snapshots_of(points: list[tuple[int, list[Level]]]) -> Snapshots:
    rows = [level for _, levels in points for level in levels]
    return Snapshots(
        np.array([at for at, _ in points], np.int64),
        np.array([len(levels) for _, levels in points], np.int64),
        np.array([price for price, _ in rows], np.float64),
        np.array([volume for _, volume in rows], np.float64),
    )


def how_it_differs(old: Interval, new: Interval) -> str:
    def rows(one: Interval) -> list[tuple[int, str]]:
        return [(at, repr(one[at])) for at in sorted(one) if one[at]]

    if bool(rows(old)) != bool(rows(new)):
        return "vanished" if rows(old) else "appeared"
    same = rows(old) == rows(new) and (rows(old) or bool(old) == bool(new))
    return "unchanged" if same else "changed"


@given(st.data(), st.integers(1, INTERVALS))
def test_each_interval_is_told_as_what_it_is(data: st.DataObject, size: int) -> None:
    old = data.draw(st.lists(answers, min_size=size, max_size=size))
    new = [data.draw(st.just(one) | answers) for one in old]
    spans = Spans.of(
        (first * STEP, last * STEP)
        for first, last in data.draw(st.lists(st.tuples(st.integers(0, size), st.integers(0, size)), max_size=3))
    )
    difference = compare_days(day_of(old, stored=True), day_of(new, stored=False), spans)
    expected: dict[str, list[Span]] = {"unchanged": [], "changed": [], "appeared": [], "vanished": []}
    for number in range(size):
        span = Span(number * STEP, (number + 1) * STEP)
        if spans.within(span):
            expected[how_it_differs(old[number], new[number])].append(span)
    assert {name: getattr(difference, name) for name in expected} == {
        name: Spans.of(found) for name, found in expected.items()
    }


def test_a_level_that_moves_to_another_point_of_its_interval_is_a_change() -> None:
    old: Interval = {0: [(1.0, 2.0)], 1: [(2.0, 2.0), (3.0, 2.0)]}
    new: Interval = {0: [(1.0, 2.0), (2.0, 2.0)], 1: [(3.0, 2.0)]}
    whole = Spans.of([(0, STEP)])
    assert compare_days(day_of([old], stored=True), day_of([new], stored=False), whole).changed == whole

"""The words: sets of time against sets of integers, and values that cannot be wrong."""

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatpipe.errors import ConfigError
from heatpipe.model import (
    DAY_S,
    Coverage,
    Series,
    Snapshots,
    Span,
    Spans,
    Window,
    check_choice,
    day_span,
    days_of,
    show_time,
)
from tests.conftest import count_lines

BTC = Series("BTC")

instants = st.integers(0, 40)
pairs = st.lists(st.tuples(instants, instants), max_size=8)


def seconds_in(spans: Iterable[tuple[int, int]]) -> set[int]:
    return {second for start, end in spans for second in range(start, end)}


def is_normal(spans: Spans) -> bool:
    ends = [at for span in spans for at in span]
    return all(a < b for a, b in pairwise(ends))


# Series


@pytest.mark.parametrize(
    "coin", ["BTC", "kPEPE", "PURR/USDC", "@107", "xyz:SILVER", "007", "é x", "..", "a=b", '"flat_points":[']
)
def test_any_printable_name_is_a_coin(coin: str) -> None:
    assert Series(coin).coin == coin


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"coin": ""}, "empty"),
        ({"coin": " BTC"}, "spaces around"),
        ({"coin": "BTC\n"}, "spaces around"),
        ({"coin": "B\0C"}, "cannot be printed"),
        ({"coin": "B\x1b[31mC"}, "cannot be printed"),
        ({"coin": "B\u202eC"}, "cannot be printed"),
        ({"coin": "\ud800"}, "cannot be printed"),
        ({"coin": "x" * 65}, "longer than 64 bytes"),
        ({"coin": "é" * 33}, "longer than 64 bytes"),
        ({"coin": "__HIVE_DEFAULT_PARTITION__"}, "no value"),
        ({"interval": "MINUT"}, "unknown interval 'MINUT'; did you mean 'MINUTE'?"),
        ({"interval": "minute"}, "did you mean 'MINUTE'?"),
        ({"interval": "1m"}, "known are MINUTE, FIVE_MINUTES, FIFTEEN_MINUTES, HOUR, FOUR_HOURS, DAY"),
        ({"interval": "WEEK"}, "interval WEEK is refused: on which day"),
        ({"unit": "USD"}, "did you mean 'usd'?"),
        ({"unit": "eur"}, "known are coin, usd"),
        ({"depth": 0}, "depth 0 is not between 1 and 100000"),
        ({"depth": -1500}, "depth -1500"),
        ({"depth": 100_001}, "depth 100001"),
    ],
)
def test_an_impossible_series_is_refused_with_the_way_out(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Series(**{"coin": "BTC"} | fields)  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_choice_without_a_neighbour_lists_all() -> None:
    check_choice("colour", "red", ["red", "blue"])
    with pytest.raises(ConfigError, match="unknown colour 'xyz'; known are red, blue"):
        check_choice("colour", "xyz", ["red", "blue"])


# Time


def test_times_are_shown_in_utc_to_the_second() -> None:
    assert show_time(1_774_800_000) == "2026-03-29T16:00:00Z"
    assert show_time(0.9) == "1970-01-01T00:00:00Z"
    assert str(Span(0, 60)) == "[1970-01-01T00:00:00Z, 1970-01-01T00:01:00Z)"


@pytest.mark.parametrize(
    ("span", "days"),
    [
        (Span(0, DAY_S), [0]),
        (Span(0, DAY_S + 1), [0, 1]),
        (Span(DAY_S - 1, DAY_S), [0]),
        (Span(DAY_S - 1, DAY_S + 1), [0, 1]),
        (Span(3 * DAY_S, 6 * DAY_S), [3, 4, 5]),
    ],
)
def test_a_span_touches_the_days_that_it_shares_a_second_with(span: Span, days: list[int]) -> None:
    assert list(days_of(span)) == days
    assert all(span.clip(day_span(day)).seconds > 0 for day in days)


# Spans


@given(pairs)
def test_spans_are_sorted_merged_and_hold_the_same_seconds(given_pairs: list[tuple[int, int]]) -> None:
    spans = Spans.of(given_pairs)
    assert is_normal(spans)
    assert seconds_in(spans) == seconds_in(given_pairs)
    assert spans.seconds == len(seconds_in(given_pairs))
    assert bool(spans) == bool(seconds_in(given_pairs))


@given(pairs, pairs)
def test_spans_add_subtract_and_meet_like_sets(ones: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    one, other = Spans.of(ones), Spans.of(others)
    for found, wanted in (
        (one | other, seconds_in(ones) | seconds_in(others)),
        (one - other, seconds_in(ones) - seconds_in(others)),
        (one & other, seconds_in(ones) & seconds_in(others)),
    ):
        assert seconds_in(found) == wanted
        assert is_normal(found)


@given(pairs, instants, instants)
def test_spans_within_a_span_are_their_common_part(ones: list[tuple[int, int]], start: int, end: int) -> None:
    found = Spans.of(ones).within(Span(start, end))
    assert seconds_in(found) == seconds_in(ones) & set(range(start, end))
    assert is_normal(found)


@given(st.lists(pairs, max_size=5))
def test_many_sets_join_at_once_as_one_by_one(many: list[list[tuple[int, int]]]) -> None:
    found = Spans.union(map(Spans.of, many))
    assert seconds_in(found) == {second for ones in many for second in seconds_in(ones)}
    assert is_normal(found)


@given(pairs, st.lists(instants, min_size=1, max_size=6).map(sorted))
def test_the_seconds_between_edges_are_those_within_each_pair(ones: list[tuple[int, int]], edges: list[int]) -> None:
    found = Spans.of(ones).seconds_between(np.array(edges, np.int64)).tolist()
    assert found == [len(seconds_in(ones) & set(range(*bin_))) for bin_ in pairwise(edges)]


OPERATIONS: dict[str, Callable[[Spans, Spans], object]] = {
    "|": lambda one, other: one | other,
    "-": lambda one, other: one - other,
    "&": lambda one, other: one & other,
    "union": lambda one, other: Spans.union([one, other] * 3),
    "within, cut by cut": lambda one, _: [one.within(Span(at, at + 40)) for at in range(0, one.hull.end, 40)],
    "without one after the other": lambda one, _: [one - Spans((span,)) for span in one.spans[::10]],
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_twice_as_many_spans_are_twice_the_work(name: str) -> None:
    def work(size: int) -> Callable[[], object]:
        one, other = (
            Spans.of((at, at + 2) for at in range(0, 4 * size, 4)),
            Spans.of((at, at + 4) for at in range(1, 4 * size, 6)),
        )
        return lambda: OPERATIONS[name](one, other)

    assert count_lines(work(800)) < 2.5 * count_lines(work(400))


@given(st.sets(instants), st.sampled_from([1, 60, 3600]))
def test_intervals_merge_where_they_touch(numbers: set[int], step: int) -> None:
    starts = np.array(sorted(numbers), np.int64) * step
    assert Spans.of_intervals(starts, step) == Spans.of((at, at + step) for at in starts.tolist())


def test_spans_have_a_hull_and_a_text() -> None:
    spans = Spans.of([(120, 180), (0, 60)])
    assert spans.hull == Span(0, 180)
    assert str(spans) == ("[1970-01-01T00:00:00Z, 1970-01-01T00:01:00Z), [1970-01-01T00:02:00Z, 1970-01-01T00:03:00Z)")
    assert str(Spans()) == "nothing"


# Window


@pytest.mark.parametrize("span", [Span(0, 0), Span(60, 0), Span(1, 60), Span(0, 61), Span(30, 90)])
def test_a_window_off_the_grid_or_empty_cannot_be_built(span: Span) -> None:
    with pytest.raises(ValueError, match="is not a window of BTC MINUTE"):
        Window(BTC, span)


def test_a_window_knows_its_points_and_its_weight() -> None:
    window = Window(Series("BTC", "HOUR", depth=3001), Span(0, 1001 * 3600))
    assert (window.points, window.weight) == (1001, 14)
    assert str(window) == "BTC HOUR [1970-01-01T00:00:00Z, 1970-02-11T17:00:00Z)"


@given(st.integers(2, 5000), st.integers(0, 10**6))
def test_halves_tile_the_window_and_differ_by_a_point_at_most(points: int, first: int) -> None:
    window = Window(BTC, Span(first * 60, (first + points) * 60))
    one, other = window.halves()
    assert (one.span.start, one.span.end, other.span.end) == (window.span.start, other.span.start, window.span.end)
    assert one.points - other.points in (0, 1)


def test_a_single_point_has_no_halves() -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        Window(BTC, Span(0, 60)).halves()


# Snapshots


def snapshots_at(seconds: list[int], levels: list[int]) -> Snapshots:
    rows = np.arange(float(sum(levels)))
    return Snapshots(np.array(seconds, np.int64) * 1_000_000, np.array(levels, np.int64), rows, -rows)


def as_points(snapshots: Snapshots) -> list[tuple[int, list[float], list[float]]]:
    ends = np.cumsum(snapshots.levels).tolist()
    return [
        (stamp, snapshots.price[end - count : end].tolist(), snapshots.volume[end - count : end].tolist())
        for stamp, count, end in zip(snapshots.timestamp.tolist(), snapshots.levels.tolist(), ends, strict=True)
    ]


@given(st.dictionaries(instants, st.integers(0, 3), max_size=8), instants, instants)
def test_snapshots_between_are_those_whose_stamp_lies_in_the_span(levels: dict[int, int], a: int, b: int) -> None:
    seconds = sorted(levels)
    snapshots = snapshots_at(seconds, [levels[at] for at in seconds])
    span = Span(min(a, b), max(a, b))
    found = snapshots.between(span)
    wanted = [each for each in as_points(snapshots) if span.start <= each[0] // 1_000_000 < span.end]
    assert as_points(found) == wanted
    assert found.points == len(wanted)
    assert found.rows == sum(len(price) for _, price, _ in wanted)


@given(st.dictionaries(instants, st.integers(0, 3), min_size=1, max_size=8), instants)
def test_snapshots_cut_anywhere_join_again(levels: dict[int, int], cut: int) -> None:
    seconds = sorted(levels)
    snapshots = snapshots_at(seconds, [levels[at] for at in seconds])
    parts = [snapshots.between(Span(0, cut)), snapshots.between(Span(cut, 100))]
    assert as_points(Snapshots.concatenate(parts)) == as_points(snapshots)


def test_a_row_has_the_stamp_of_its_point() -> None:
    snapshots = snapshots_at([1, 2, 5], [2, 0, 1])
    assert snapshots.row_timestamps().tolist() == [1_000_000, 1_000_000, 5_000_000]
    assert Snapshots().row_timestamps().tolist() == []


def test_no_parts_make_no_snapshots() -> None:
    assert (Snapshots.concatenate([]).points, Snapshots.concatenate([]).rows) == (0, 0)


@pytest.mark.parametrize("seconds", [[5, 1], [1, 1]])
def test_parts_that_overlap_are_our_own_mistake(seconds: list[int]) -> None:
    with pytest.raises(ValueError, match="overlap or are out of order"):
        Snapshots.concatenate([snapshots_at([at], [1]) for at in seconds])


# Coverage


@given(st.dictionaries(st.integers(0, 12 * 60 - 1), st.integers(0, 2), max_size=12), pairs)
def test_an_answer_divides_its_intervals_into_present_empty_and_absent(
    levels: dict[int, int], minutes: list[tuple[int, int]]
) -> None:
    step = 60
    answered = Spans.of((start % 13 * step, end % 13 * step) for start, end in minutes)
    seconds = sorted(at for at in levels if at in seconds_in(answered))  # stamps off the grid among them
    found = Coverage.of_answer(answered, snapshots_at(seconds, [levels[at] for at in seconds]), step)

    present: set[int] = set()
    empty: set[int] = set()
    absent: set[int] = set()
    for interval in {second // step for second in seconds_in(answered)}:
        counts = [levels[at] for at in seconds if at // step == interval]
        kind = present if any(counts) else empty if counts else absent
        kind |= set(range(interval * step, interval * step + step))
    assert seconds_in(found.covered) == seconds_in(answered)
    assert seconds_in(found.present) == present
    assert seconds_in(found.empty) == empty
    assert seconds_in(found.absent) == absent


def test_coverage_joins_cuts_and_clips_all_its_parts() -> None:
    one = Coverage(Spans.of([(0, 180)]), absent=Spans.of([(0, 60)]), empty=Spans.of([(60, 120)]))
    other = Coverage(Spans.of([(180, 240)]), absent=Spans.of([(180, 240)]))
    joined = one | other
    assert joined == Coverage(Spans.of([(0, 240)]), Spans.of([(0, 60), (180, 240)]), Spans.of([(60, 120)]))
    assert joined.present == Spans.of([(120, 180)])
    assert Coverage.union([one, other]) == joined
    assert Coverage.union([]) == Coverage()
    assert joined.within(Span(0, 180)) == one
    assert joined - Spans.of([(0, 180)]) == other

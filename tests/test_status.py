"""Coverage added up: every interval is exactly one of seven things, and each is seen once for real."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatpipe.config import Target
from heatpipe.errors import ConfigError
from heatpipe.ingest import backfill
from heatpipe.model import Coverage, Series, Span, Spans
from heatpipe.plan import Horizon
from heatpipe.status import COUNTS, Tally, take_stock, tally
from heatpipe.store import Store
from tests.conftest import (
    DATED,
    DAY,
    HOUR,
    MINUTE,
    NOW_S,
    TODAY,
    Asked,
    Clock,
    MakeSettings,
    MakeUpstream,
    document,
    http,
    plain_levels,
)

HOURS = Series("BTC", "HOUR", depth=2)
EDGE = 24

hours = st.integers(0, EDGE)
subsets = st.sets(st.integers(0, EDGE - 1))


def spans(of: set[int]) -> Spans:
    return Spans.of((hour * HOUR, (hour + 1) * HOUR) for hour in of)


def counts(found: Tally) -> dict[str, int]:
    return {name: getattr(found, name) for name in COUNTS}


@given(
    start=hours,
    length=hours,
    covered=subsets,
    absent=subsets,
    empty=subsets,
    failed=st.sets(st.tuples(hours, hours)),
    now=st.integers(0, 2 * EDGE * HOUR),
    settle_s=st.sampled_from([0, 120, DAY]),
    history_days=st.sampled_from([0, 1]),
)
def test_the_counts_sum_to_the_span(
    start: int,
    length: int,
    covered: set[int],
    absent: set[int],
    empty: set[int],
    failed: set[tuple[int, int]],
    now: int,
    settle_s: int,
    history_days: int,
) -> None:
    span = Span(start * HOUR, (start + length) * HOUR)
    coverage = Coverage(spans(covered), spans(covered & absent), spans(covered & empty - absent)).within(span)
    given_up = Spans.of((first * HOUR, last * HOUR) for first, last in failed)
    horizon = Horizon(now, settle_s, history_days)
    found = tally(HOURS, span, coverage, given_up, horizon)
    assert sum(counts(found).values()) == length
    assert min(counts(found).values()) >= 0
    # One by one, what is on disk goes before all else, whatever its age.
    expected = dict.fromkeys(COUNTS, 0)
    for hour in range(start, start + length):
        expected[
            "absent"
            if hour in covered & absent
            else "empty"
            if hour in covered & empty
            else "present"
            if hour in covered
            else "beyond"
            if hour * HOUR < horizon.history_start(HOUR)
            else "open"
            if (hour + 1) * HOUR > horizon.closed_end(HOUR)
            else "failed"
            if any(first <= hour < last for first, last in failed)
            else "missing"
        ] += 1
    assert counts(found) == expected


@pytest.fixture
def upstream_of_all_kinds(upstream: MakeUpstream) -> str:
    """Today by the hour: 1 has no level, 2 is left out, 3 breaks the contract; all else is in order."""

    def answer(asked: Asked) -> bytes:
        points = {start: plain_levels(start) for start in asked.starts}
        for start in asked.starts:
            if start == TODAY + HOUR:
                points[start] = []
            elif start == TODAY + 2 * HOUR:
                del points[start]
            elif start == TODAY + 3 * HOUR:
                points[start] = [(1.0, -1.0)]
        return http(body=document(asked, points))

    return upstream(answer).url


def test_each_of_the_seven_is_seen_for_real(upstream_of_all_kinds: str, settings: MakeSettings) -> None:
    chosen = settings(upstream_of_all_kinds, history_days=2)
    backfill(HOURS, TODAY, TODAY + 5 * HOUR, settings=chosen, clock=Clock())
    target = Target(HOURS, TODAY - 3 * DAY, TODAY + DAY)
    (found,) = take_stock(Store(chosen.root), [target], chosen, NOW_S)
    # It is noon and half a minute: the history begins two days ago at 13:00, and 11:00 ends the last closed hour.
    assert counts(found) == {
        "present": 2,
        "empty": 1,
        "absent": 1,
        "failed": 1,
        "missing": 11 + 24 + 6,
        "open": 13,
        "beyond": 24 + 13,
    }
    assert found.as_document() == {
        "coin": "BTC",
        "interval": "HOUR",
        "unit": "coin",
        "depth": 2,
        "from": TODAY - 3 * DAY,
        "to": TODAY + DAY,
        **counts(found),
    }


def test_what_failed_is_present_once_it_came(upstream: MakeUpstream, settings: MakeSettings) -> None:
    healed: list[bool] = []

    def answer(asked: Asked) -> bytes:
        levels = plain_levels if healed else lambda _: [(1.0, -1.0)]
        return http(body=document(asked, {start: levels(start) for start in asked.starts}))

    chosen = settings(upstream(answer).url)
    target = Target(HOURS, TODAY, TODAY + HOUR)
    for failed, present in ((1, 0), (0, 1)):
        backfill(HOURS, TODAY, TODAY + HOUR, settings=chosen, clock=Clock())
        (found,) = take_stock(Store(chosen.root), [target], chosen, NOW_S)
        assert (found.failed, found.present, found.missing) == (failed, present, 0)
        healed.append(True)


def test_a_young_absence_is_missing(upstream: MakeUpstream, settings: MakeSettings) -> None:
    chosen = settings(upstream(lambda _: http(body=b'{"series":[]}', headers=DATED)).url)
    minutes = Series("BTC", depth=2)
    backfill(minutes, TODAY + 11 * HOUR, settings=chosen, clock=Clock())
    (found,) = take_stock(Store(chosen.root), [Target(minutes, TODAY + 11 * HOUR)], chosen, NOW_S)
    # 11:58 has just closed; what ended after 11:45 may still come.
    assert (found.absent, found.missing, found.open) == (45, 13, 0)


@pytest.mark.parametrize("history_days", [1, 2, 0])
def test_what_is_on_disk_counts_as_that_however_old(
    upstream_of_all_kinds: str, settings: MakeSettings, history_days: int
) -> None:
    start = TODAY - 5 * DAY
    backfill(HOURS, start, start + HOUR, settings=settings(upstream_of_all_kinds), clock=Clock())
    chosen = settings(upstream_of_all_kinds, history_days=history_days)
    (found,) = take_stock(Store(chosen.root), [Target(HOURS, start, start + 2 * HOUR)], chosen, NOW_S)
    assert (found.present, found.beyond, found.missing) == (1, *((0, 1) if history_days == 0 else (1, 0)))


# --- which span ---------------------------------------------------------------------------------------------------


def test_without_a_span_it_is_from_the_first_covered_to_the_last_closed(
    upstream_of_all_kinds: str, settings: MakeSettings
) -> None:
    chosen = settings(upstream_of_all_kinds)
    backfill(HOURS, TODAY - DAY + 5 * HOUR, TODAY, settings=chosen, clock=Clock())
    (found,) = take_stock(Store(chosen.root), [Target(HOURS)], chosen, NOW_S)
    assert found.span == Span(TODAY - DAY + 5 * HOUR, TODAY + 11 * HOUR)
    assert (found.present, found.missing) == (19, 11)


def test_nothing_on_disk_is_an_empty_span(settings: MakeSettings) -> None:
    chosen = settings("http://127.0.0.1:9")
    (found,) = take_stock(Store(chosen.root), [Target(HOURS)], chosen, NOW_S)
    assert sum(counts(found).values()) == found.span.seconds == 0


def test_a_length_counts_back_from_the_last_closed_interval(settings: MakeSettings) -> None:
    chosen = settings("http://127.0.0.1:9")
    (found,) = take_stock(Store(chosen.root), [Target(HOURS)], chosen, NOW_S, last_s=DAY)
    assert found.span == Span(TODAY + 11 * HOUR - DAY, TODAY + 11 * HOUR)
    assert found.missing == 24


def test_a_span_off_the_grid_rounds_inward(settings: MakeSettings) -> None:
    chosen = settings("http://127.0.0.1:9")
    (found,) = take_stock(Store(chosen.root), [Target(HOURS, TODAY + 1, TODAY + 5 * HOUR - 1)], chosen, NOW_S)
    assert found.span == Span(TODAY + HOUR, TODAY + 4 * HOUR)


@pytest.mark.parametrize("span", [(TODAY + HOUR, TODAY), (TODAY + MINUTE, TODAY + HOUR - MINUTE)])
def test_a_span_without_an_interval_is_refused(settings: MakeSettings, span: tuple[int, int]) -> None:
    chosen = settings("http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="no whole interval of HOUR"):
        take_stock(Store(chosen.root), [Target(HOURS, *span)], chosen, NOW_S)


def test_coverage_outside_of_the_span_does_not_count(upstream_of_all_kinds: str, settings: MakeSettings) -> None:
    chosen = settings(upstream_of_all_kinds)
    backfill(HOURS, TODAY - DAY, TODAY, settings=chosen, clock=Clock())
    target = Target(HOURS, TODAY - 4 * HOUR, TODAY + 2 * HOUR)
    (found,) = take_stock(Store(chosen.root), [target], chosen, NOW_S)
    assert (found.present, found.missing) == (4, 2)


def test_series_are_counted_one_by_one(upstream_of_all_kinds: str, settings: MakeSettings) -> None:
    chosen = settings(upstream_of_all_kinds)
    other = Series("ETH", "HOUR", depth=2)
    backfill(other, TODAY - DAY, TODAY, settings=chosen, clock=Clock())
    found = take_stock(Store(chosen.root), [Target(s, TODAY - DAY, TODAY) for s in (HOURS, other)], chosen, NOW_S)
    assert [(tallied.series, tallied.present, tallied.missing) for tallied in found] == [(HOURS, 0, 24), (other, 24, 0)]


def test_a_damaged_day_is_missing(upstream_of_all_kinds: str, settings: MakeSettings) -> None:
    chosen = settings(upstream_of_all_kinds)
    backfill(HOURS, TODAY - DAY, TODAY, settings=chosen, clock=Clock())
    store = Store(chosen.root)
    store._path(HOURS, TODAY // DAY - 1).write_bytes(b"PAR1")
    (found,) = take_stock(store, [Target(HOURS, TODAY - DAY, TODAY)], chosen, NOW_S)
    assert found.missing == 24

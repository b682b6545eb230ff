"""Coverage added up: every interval is exactly one of seven things, and each is seen once for real."""

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatpipe import layout
from heatpipe.config import Settings, Target
from heatpipe.errors import ConfigError, DamagedError
from heatpipe.ingest import backfill
from heatpipe.layout import Day
from heatpipe.model import Coverage, Series, Snapshots, Span, Spans
from heatpipe.plan import Horizon
from heatpipe.status import COUNTS, Tally, take_stock, tally
from heatpipe.store import Store, encode_file
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
from tests.test_heatmap import as_before, damage_column, put_points

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
        "capped": 2,
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


# --- the depth cap ------------------------------------------------------------------------------------------------

TWO = Series("BTC", depth=2)
FOLDER = "liquidations/unit=coin/depth=2/interval=MINUTE/coin=BTC"
FILE = f"{FOLDER}/date=2026-03-31/part-0.parquet"


def put_capped(root: Path, series: Series = TWO) -> Path:
    """Write a day with 4 snapshots of two levels: at minutes 0, 10, 20 and 30; of one at 5; of none at 6."""
    points = {minute: [(10.0, 1.0), (20.0, 2.0)] for minute in (0, 10, 20, 30)} | {5: [(10.0, 1.0)], 6: []}
    put_points(root, points, covered=60, series=series)
    return root / layout.day_path(series, TODAY // DAY)


def capped_in(root: Path, span: Span, series: Series = TWO) -> int | None:
    (found,) = take_stock(Store(str(root)), [Target(series, *span)], Settings(root=str(root)), NOW_S)
    assert not found.unreadable
    assert sum(counts(found).values()) == span.seconds // MINUTE
    return found.capped


@pytest.mark.parametrize("old", [False, True], ids=["counted", "from-before"])
@pytest.mark.parametrize(
    ("first", "end", "capped"),
    [(0, 1440, 4), (0, 60, 4), (-600, 3000, 4), (0, 30, 3), (1, 1440, 3), (10, 20, 1), (1, 10, 0), (31, 60, 0)],
)
def test_snapshots_with_as_many_levels_as_the_depth_are_counted_within_the_span(
    tmp_path: Path, old: bool, first: int, end: int, capped: int
) -> None:
    path = put_capped(tmp_path)
    if old:
        as_before(path)
    assert (pq.read_metadata(path).metadata.get(b"heatpipe.capped") is None) == old
    assert capped_in(tmp_path, Span(TODAY + first * MINUTE, TODAY + end * MINUTE)) == capped


def test_deeper_series_have_none(tmp_path: Path) -> None:
    deeper = Series("BTC", depth=3)
    put_capped(tmp_path, deeper)
    assert capped_in(tmp_path, Span(TODAY, TODAY + DAY), deeper) == 0
    assert capped_in(tmp_path, Span(TODAY, TODAY + 7 * MINUTE), deeper) == 0


def test_days_add_up(settings: MakeSettings, upstream_of_all_kinds: str) -> None:
    chosen = settings(upstream_of_all_kinds)
    backfill(HOURS, TODAY - 2 * DAY, TODAY, settings=chosen, clock=Clock())
    (found,) = take_stock(Store(chosen.root), [Target(HOURS, TODAY - 2 * DAY, TODAY - HOUR)], chosen, NOW_S)
    assert (found.present, found.capped) == (47, 47)


def test_of_a_whole_day_no_row_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = put_capped(tmp_path)
    for column in range(3):
        damage_column(path, column)
    assert capped_in(tmp_path, Span(TODAY, TODAY + DAY)) == 4
    assert not caplog.messages


@pytest.mark.parametrize("column", [1, 2])
def test_of_a_day_that_did_not_count_nothing_but_timestamps_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, column: int
) -> None:
    path = put_capped(tmp_path)
    as_before(path)
    damage_column(path, column)
    assert capped_in(tmp_path, Span(TODAY, TODAY + DAY)) == 4
    assert not caplog.messages


def test_timestamps_that_are_damaged_are_told_and_not_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = put_capped(tmp_path)
    damage_column(path, 0)
    with caplog.at_level(logging.WARNING):
        assert capped_in(tmp_path, Span(TODAY, TODAY + 30 * MINUTE)) == 0
    (told,) = caplog.messages
    assert told.startswith(str(path))
    assert told.endswith("its snapshots at the depth cap are not counted: see heatpipe verify")


def test_timestamps_that_cannot_be_read_now_are_a_failure(tmp_path: Path) -> None:
    path = put_capped(tmp_path)
    damage_column(path, 0)
    data = bytearray(path.read_bytes())
    layout.seal(data)  # as if the parser had no memory
    path.write_bytes(data)
    (found,) = take_stock(Store(str(tmp_path)), [Target(TWO, TODAY, TODAY + HOUR // 2)], Settings(), NOW_S)
    assert found.capped == 0
    (told,) = found.unreadable
    assert told.startswith(f"{path} is sound, and cannot be read now")


def test_the_count_is_not_part_of_the_footer(tmp_path: Path) -> None:
    path = put_capped(tmp_path)
    metadata = pq.read_metadata(path).metadata
    assert metadata[b"heatpipe.capped"] == b"4"
    assert "capped" not in json.loads(metadata[b"heatpipe"])


@pytest.mark.parametrize("text", [b"", b"x", b"-1", b"04", b" 4", b"4_0", "٤".encode(), b"9" * 5000])
def test_a_count_that_is_none_is_damage(text: bytes) -> None:
    day = Day(TWO, TODAY // DAY, Snapshots(), Coverage())
    metadata = pq.read_metadata(pa.BufferReader(encode_file(day))).metadata | {layout.CAPPED_KEY: text}
    with pytest.raises(DamagedError, match="footer that cannot be read"):
        layout.decode_footer(metadata, "x")

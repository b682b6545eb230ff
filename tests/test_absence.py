"""What does not come, and when it is believed: hiccups, delisted coins, clocks that are wrong."""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from heatpipe.config import Settings, Target
from heatpipe.errors import ClockError, ConfigError
from heatpipe.ingest import backfill, update
from heatpipe.model import Series, Span, Spans
from heatpipe.report import Report
from heatpipe.store import Store
from heatpipe.survey import leave_out_retired, make_plan, make_update_plan, without_rows
from tests.conftest import (
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
    read_tree,
)

BTC = Series("BTC", depth=2)
THOUSAND = 1000 * MINUTE
SLAB = 25 * DAY
LONG_AGO = TODAY // SLAB * SLAB - SLAB
"""The start of the last slab that is over for more than a week."""
RECENT = TODAY - 4 * DAY


def known(settings: Settings, part: str = "covered", series: Series = BTC) -> Spans:
    store = Store(settings.root)
    return Spans.of(span for day in store.days(series) for span in getattr(store.coverage(series, day), part))


def window(start: int, number: int) -> Span:
    """The nth window of a span."""
    return Span(start + number * THOUSAND, start + (number + 1) * THOUSAND)


def date_of(now_s: float) -> dict[str, str]:
    return {"Date": formatdate(now_s, usegmt=True)}


def answering(
    has: Callable[[int], bool] = lambda _: True,
    *,
    date_s: float | None = NOW_S,
    blank: Callable[[Asked], bool] = lambda _: False,
) -> Callable[[Asked], bytes]:
    """An upstream that has some minutes, says what time it is, and now and then answers with nothing."""

    def answer(asked: Asked) -> bytes:
        there = {} if blank(asked) else {start: plain_levels(start) for start in asked.starts if has(start)}
        body = document(asked, there) if there else b'{"series":[]}'
        return http(body=body, headers={} if date_s is None else date_of(date_s))

    return answer


def fill(settings: Settings, *span: int, clock: Clock | None = None, **more: Any) -> Report:
    return backfill(BTC, *span, settings=settings, clock=clock or Clock(), **more)


# --- one hiccup ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hiccup", range(6))
@pytest.mark.parametrize("start", [LONG_AGO, RECENT - 6 * DAY])
def test_one_blank_answer_among_many_costs_one_request_and_no_minute(
    upstream: MakeUpstream, settings: MakeSettings, start: int, hiccup: int
) -> None:
    odd = window(start, hiccup)
    tries = itertools.count()

    def blank(asked: Asked) -> bool:
        return asked.span == odd and next(tries) == 0

    server = upstream(answering(blank=blank))
    chosen, end = settings(server.url, concurrency=1), start + 6 * THOUSAND
    report = fill(chosen, start, end)
    assert known(chosen, "present") == Spans.of([(start, end)])
    assert server.spans.count(odd) == 2
    assert (report.absent, report.requests, report.failures) == (0, 7, ())


def test_a_blank_answer_at_the_end_of_what_is_wanted_is_not_stored(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    """Nothing tells it from the end of the series: the next run asks."""
    odd = window(RECENT, 1)
    tries = itertools.count()
    server = upstream(answering(blank=lambda asked: asked.span == odd and next(tries) == 0))
    chosen = settings(server.url, concurrency=1)
    report = fill(chosen, RECENT, odd.end)
    assert (report.absent, report.young, report.requests) == (0, 1000, 2)
    assert known(chosen) == Spans.of([(RECENT, odd.start)])
    assert fill(chosen, RECENT, odd.end).points == 1000
    assert known(chosen, "present") == Spans.of([(RECENT, odd.end)])


def test_a_hiccup_at_the_end_of_a_slab_is_asked_once_more(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """What follows is in another slab, which may be filled by another task: it is not known yet."""
    odd = window(LONG_AGO, 35)
    assert odd.end == LONG_AGO + SLAB
    tries = itertools.count()
    server = upstream(answering(blank=lambda asked: asked.span == odd and next(tries) == 0))
    chosen = settings(server.url, concurrency=1)
    report = fill(chosen, odd.start - THOUSAND, LONG_AGO + SLAB)
    assert known(chosen, "present") == Spans.of([(odd.start - THOUSAND, odd.end)])
    assert (report.absent, report.requests) == (0, 3)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_gap_of_whole_windows_is_absent_once_it_was_asked_for_twice(
    upstream: MakeUpstream, settings: MakeSettings, concurrency: int
) -> None:
    gap = Span(LONG_AGO + 1500 * MINUTE, LONG_AGO + 4200 * MINUTE)
    server = upstream(answering(lambda start: not gap.start <= start < gap.end))
    chosen, end = settings(server.url, concurrency=concurrency), LONG_AGO + 6 * THOUSAND
    report = fill(chosen, LONG_AGO, end)
    assert known(chosen) == Spans.of([(LONG_AGO, end)])
    assert known(chosen, "absent") == Spans.of([gap])
    assert (report.absent, report.points) == (2700, 3300)
    assert sorted(server.spans) == sorted(
        [*(window(LONG_AGO, n) for n in range(6)), *map(window, [LONG_AGO] * 2, [2, 3])]
    )
    assert fill(chosen, LONG_AGO, end).requests == 0
    gone = fill(chosen, LONG_AGO, end, refetch_absent=True)
    assert (gone.requests, gone.weight) == (6, 30)  # three windows hold the gap, and nothing else
    assert (gone.absent, gone.unchanged, gone.days) == (0, 2700, 0)


def test_days_are_the_same_however_often_a_window_was_blank(
    upstream: MakeUpstream, settings: MakeSettings, tmp_path: Path
) -> None:
    """Every answer is blank at first: the tree is that of an upstream without hiccups."""
    asked_before: set[Span] = set()

    def blank(asked: Asked) -> bool:
        first = asked.span not in asked_before and asked.span.start > LONG_AGO
        asked_before.add(asked.span)
        return first and asked.span.start < LONG_AGO + 5 * THOUSAND

    trees = []
    for name, script in (("clean", answering()), ("odd", answering(blank=blank))):
        chosen = settings(upstream(script).url, root=str(tmp_path / name))
        fill(chosen, LONG_AGO, LONG_AGO + 6 * THOUSAND)
        trees.append(read_tree(tmp_path / name / "liquidations"))
    assert trees[0] == trees[1]


def test_what_is_recorded_as_absent_is_asked_for_again_on_demand(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    late = {LONG_AGO + at * MINUTE for at in (10, 11, 700)}
    published: list[bool] = []
    server = upstream(answering(lambda start: bool(published) or start not in late))
    chosen, end = settings(server.url), LONG_AGO + DAY
    report = fill(chosen, LONG_AGO, end)
    assert (report.absent, report.as_document()["absent"]) == (3, 3)
    published.append(True)
    assert fill(chosen, LONG_AGO, end).requests == 0
    report = fill(chosen, LONG_AGO, end, refetch_absent=True)
    assert server.spans[-1] == Span(min(late), max(late) + MINUTE)
    assert (report.requests, report.appeared, report.absent, report.points) == (1, 3, 0, 3)
    assert known(chosen, "present") == Spans.of([(LONG_AGO, end)])


def test_a_blank_answer_takes_no_lookback_away(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """The window of an update holds minutes that are on disk: one answer without any of them is asked for again."""
    tries = itertools.count()
    server = upstream(answering(date_s=None, blank=lambda asked: asked.span.end > RECENT + HOUR and next(tries) == 0))
    chosen = settings(server.url)
    fill(chosen, RECENT, RECENT + HOUR)
    report = update(BTC, settings=chosen, clock=Clock(RECENT + 2 * HOUR))
    assert (report.vanished, report.requests) == (0, 2)
    assert known(chosen, "present") == Spans.of([(RECENT, RECENT + 2 * HOUR - 2 * MINUTE)])


# --- the time after the last point --------------------------------------------------------------------------------


def test_the_end_of_a_coin_is_absent_after_a_week_and_costs_nothing_from_then_on(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    gone_at = LONG_AGO + 3 * HOUR
    server = upstream(answering(lambda start: start < gone_at))
    chosen = settings(server.url)
    report = fill(chosen, LONG_AGO)
    week_ago = (NOW_S - 7 * DAY) // MINUTE * MINUTE
    assert known(chosen) == Spans.of([(LONG_AGO, week_ago)])
    assert known(chosen, "present") == Spans.of([(LONG_AGO, gone_at)])
    assert report.absent == (week_ago - gone_at) // MINUTE
    assert report.requests == len(set(server.spans)) + 1  # the first window without a point was asked for twice
    before = len(server.asked)
    fill(chosen, LONG_AGO)
    assert min(server.spans[before:]).start == week_ago


def test_a_pause_of_the_upstream_is_not_stored_before_it_is_over(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    """An hour without a point, half a day ago: nobody knows yet whether there will be some after it."""
    paused = Span(TODAY, TODAY + HOUR)
    clock = Clock(TODAY + HOUR)
    server = upstream(answering(lambda start: not paused.start <= start < paused.end, date_s=None))
    chosen = settings(server.url, settle_s=0)
    report = fill(chosen, TODAY - HOUR, clock=clock)
    assert known(chosen) == Spans.of([(TODAY - HOUR, TODAY)])
    assert (report.absent, report.young) == (0, 60)
    clock.now_s += HOUR
    report = fill(chosen, TODAY - HOUR, clock=clock)
    assert known(chosen, "absent") == Spans.of([paused])
    assert (report.absent, report.young, report.points) == (60, 0, 60)


def test_points_on_disk_settle_what_came_before_them(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """No Date, so that no absence is sure by its age; the later half is fetched first."""
    gap = Span(LONG_AGO + HOUR, LONG_AGO + 2 * HOUR)
    server = upstream(answering(lambda start: not gap.start <= start < gap.end, date_s=None))
    chosen = settings(server.url)
    fill(chosen, LONG_AGO + 3 * HOUR, LONG_AGO + 4 * HOUR)
    report = fill(chosen, LONG_AGO, LONG_AGO + 2 * HOUR)
    assert known(chosen, "absent") == Spans.of([gap])
    assert (report.absent, report.young) == (60, 0)


@pytest.mark.parametrize(("date_s", "absent"), [(NOW_S, 120), (NOW_S - 299, 120), (NOW_S - 301, 0), (None, 0)])
def test_a_series_without_any_point_is_absent_where_the_clocks_agree(
    upstream: MakeUpstream, settings: MakeSettings, date_s: float | None, absent: int
) -> None:
    chosen = settings(upstream(answering(lambda _: False, date_s=date_s)).url)
    for coin in ("BTC", "ETH"):
        report = backfill(Series(coin), RECENT, RECENT + 2 * HOUR, settings=chosen, clock=Clock())
        assert (report.absent, report.young) == (absent, 120 - absent)


# --- clocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead_s", [2 * HOUR, 366 * DAY, -2 * HOUR, -DAY])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_clock_that_is_hours_off_ends_the_run_after_one_request(
    upstream: MakeUpstream, settings: MakeSettings, ahead_s: int, concurrency: int
) -> None:
    server = upstream(answering(date_s=NOW_S - ahead_s))
    chosen = settings(server.url, concurrency=concurrency)
    with pytest.raises(ClockError, match="set this machine's clock right"):
        fill(chosen, RECENT, RECENT + 3 * DAY)
    assert len(server.asked) == 1
    assert known(chosen) == Spans()


@pytest.mark.parametrize(
    ("apart_s", "warned"), [(0, False), (299, False), (-299, False), (600, True), (-600, True), (3600, True)]
)
def test_a_clock_that_is_minutes_off_is_told_once(
    upstream: MakeUpstream,
    settings: MakeSettings,
    caplog: pytest.LogCaptureFixture,
    apart_s: int,
    warned: bool,
) -> None:
    chosen = settings(upstream(answering(date_s=NOW_S + apart_s)).url)
    report = fill(chosen, RECENT, RECENT + 2 * DAY)
    assert report.points == 2880
    assert [record.message for record in caplog.records if "clock" in record.message] == caplog.messages
    assert len(caplog.messages) == warned


def test_one_odd_date_among_right_ones_is_a_passing_fault(upstream: MakeUpstream, settings: MakeSettings) -> None:
    tries = itertools.count()

    def answer(asked: Asked) -> bytes:
        off_s = DAY if next(tries) == 1 else 0
        return answering(date_s=NOW_S - off_s)(asked)

    server = upstream(answer)
    report = fill(settings(server.url, concurrency=1), RECENT, RECENT + 2 * DAY)
    assert (report.points, report.requests, report.failures) == (2880, 4, ())


def test_without_a_date_a_clock_ahead_stores_no_future(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """A year ahead: all that is asked for beyond today comes back without a point."""
    server = upstream(answering(lambda start: start < NOW_S, date_s=None))
    chosen, clock = settings(server.url, history_days=0), Clock(NOW_S + 30 * DAY)
    report = fill(chosen, TODAY, TODAY + 20 * DAY, clock=clock)
    assert known(chosen).hull.end <= NOW_S + MINUTE
    assert report.absent == 0
    assert report.young == 20 * 1440 - report.points


def test_the_first_answer_tells_the_clock_whatever_its_status(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """By a clock a year behind, all that is asked for is beyond the history."""
    body = json.dumps({"error": "FORBIDDEN", "message": "Time range exceeds history depth"}).encode()
    server = upstream(lambda _: http(403, body, date_of(NOW_S + 366 * DAY)))
    with pytest.raises(ClockError):
        fill(settings(server.url), RECENT, RECENT + 2 * DAY)
    assert len(server.asked) == 1


@pytest.mark.parametrize("now_s", [0, 1_700_000_000, 4_102_444_800, 9e11])
def test_a_clock_that_no_clock_can_be_plans_nothing(settings: MakeSettings, now_s: float) -> None:
    chosen = settings("http://127.0.0.1:1")
    for plan in (make_plan, make_update_plan):
        with pytest.raises(ClockError, match="the clock of this machine says"):
            plan([Target(BTC, TODAY)], Store(chosen.root), chosen, now_s)


@pytest.mark.parametrize(("behind_s", "says"), [(0, 0), (200, 0), (1800, 1), (2 * HOUR, 2), (60 * DAY, 2)])
def test_a_clock_behind_what_is_on_disk_is_not_nothing_to_fetch(
    upstream: MakeUpstream, settings: MakeSettings, behind_s: int, says: int
) -> None:
    chosen = settings(upstream(answering()).url)
    fill(chosen, TODAY - HOUR)
    # The newest minute on disk ended two minutes, and some, before now.
    now_s = NOW_S - 150 - behind_s
    for plan, target in ((make_plan, Target(BTC, TODAY - HOUR, TODAY)), (make_update_plan, Target(BTC))):
        if says == 2:
            with pytest.raises(ClockError, match=r"says 20.*, but BTC is on disk until 2026-03-31T11:58:00Z: set it"):
                plan([target], Store(chosen.root), chosen, now_s)
        else:
            assert len(plan([target], Store(chosen.root), chosen, now_s).warnings) == says


# --- coins that are gone ------------------------------------------------------------------------------------------

GONE = json.dumps({"error": "INVALID_SYMBOL", "message": "unknown coin"}).encode()


def test_a_coin_that_is_gone_is_named_once_and_can_be_retired(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """In two intervals and several slabs: one request each, one line each, the way out in it."""
    gone: list[bool] = []
    server = upstream(lambda asked: http(400, GONE) if gone and asked.params["coin"] == "GONE" else answering()(asked))
    chosen = settings(server.url)
    start = LONG_AGO + SLAB - DAY
    stored = [Series(coin, depth=2) for coin in ("BTC", "GONE")]
    backfill(stored, start, start + DAY, settings=chosen, clock=Clock())
    gone.append(True)
    before = len(server.asked)
    report = update(stored, settings=chosen, clock=Clock())
    (failure,) = report.failures
    assert failure.series.coin == "GONE"
    assert "HEATPIPE_RETIRED" in failure.reason
    assert Counter(asked.params["coin"] for asked in server.asked[before:])["GONE"] == 1
    assert known(chosen).hull.end > NOW_S - HOUR
    targets = [Target(series) for series in stored]
    retired = settings(server.url, retired=("GONE",))
    assert leave_out_retired(targets, retired) == targets[:1]
    assert leave_out_retired(targets, chosen) == targets
    with pytest.raises(ConfigError, match="GONE are retired"):
        leave_out_retired(targets[1:], retired)


def test_a_coin_that_brings_no_row_is_told_by_its_name(upstream: MakeUpstream, settings: MakeSettings) -> None:
    server = upstream(lambda asked: answering(lambda _: asked.params["coin"] == "BTC", date_s=NOW_S)(asked))
    chosen = settings(server.url)
    series = [Series(coin, depth=2) for coin in ("BTC", "BTV", "BTW")]
    store = Store(chosen.root)
    plan = make_plan([Target(one, TODAY - DAY, TODAY) for one in series], store, chosen, NOW_S)
    assert without_rows(plan, Report(), store) == ["BTC", "BTV", "BTW"]
    backfill(series[:2], TODAY - DAY, TODAY, settings=chosen, clock=Clock())
    assert without_rows(plan, Report(), store) == ["BTV", "BTW"]

"""Updates over loopback: what is asked for again, what it costs, what it finds, and what is left alone."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

import heatpipe
from heatpipe.config import Settings, Target
from heatpipe.errors import ConfigError
from heatpipe.model import Series, Span, Spans
from heatpipe.plan import Slab, plan_slab, plan_windows, slab_days
from heatpipe.report import Report
from heatpipe.store import Store
from heatpipe.survey import choose_to_update, make_update_plan
from tests.conftest import (
    DAY,
    HOUR,
    MINUTE,
    NOW_S,
    TODAY,
    Asked,
    Clock,
    Level,
    MakeSettings,
    MakeUpstream,
    Sandbox,
    Upstream,
    document,
    http,
    plain_levels,
    read_tree,
)

BTC = Series("BTC", depth=2)
ETH = Series("ETH", depth=2)
YESTERDAY = TODAY - DAY
CLOSED = TODAY + 11 * HOUR + 58 * MINUTE
"""What is closed when the clock stands at `NOW_S`."""
SLAB_S = slab_days(MINUTE) * DAY


@dataclass
class World:
    """An upstream that can be revised: what it says of an interval, where that is not the usual."""

    revised: dict[int, list[Level] | None] = field(default_factory=dict)
    """levels by an interval's start; None where there is no point"""

    def levels(self, start: int) -> list[Level] | None:
        return self.revised.get(start, plain_levels(start))

    def answer(self, asked: Asked) -> bytes:
        points = {start: levels for start in asked.starts if (levels := self.levels(start)) is not None}
        return http(body=document(asked, points))


@dataclass
class Bench:
    """A dataset, its upstream, and a clock that they share."""

    world: World
    server: Upstream
    settings: Settings
    clock: Clock

    def backfill(self, start: int, end: int | None = None, series: Series = BTC, **more: Any) -> Report:
        return heatpipe.backfill(series, start, end, settings=self.settings, clock=self.clock, **more)

    def update(self, series: Series | list[Series] = BTC, start: int | None = None, **more: Any) -> Report:
        self.server.asked.clear()
        return heatpipe.update(series, start, settings=self.settings, clock=self.clock, **more)

    def known(self, part: str = "covered", series: Series = BTC) -> Spans:
        store = Store(self.settings.root)
        return Spans.of(span for day in store.days(series) for span in getattr(store.coverage(series, day), part))

    def tree(self) -> dict[str, bytes]:
        return read_tree(Path(self.settings.root) / "liquidations")

    def quarantine(self) -> dict[str, bytes]:
        return {Path(path).name: data for path, data in read_tree(Path(self.settings.root) / "_quarantine").items()}


@pytest.fixture
def bench(upstream: MakeUpstream, settings: MakeSettings) -> Bench:
    world = World()
    server = upstream(world.answer)
    return Bench(world, server, settings(server.url), Clock())


def counts(report: Report) -> dict[str, int]:
    """The four counts, without those that are 0."""
    names = ("unchanged", "changed", "appeared", "vanished")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def stamps(bench: Bench) -> dict[str, tuple[int, int]]:
    paths = Path(bench.settings.root).rglob("*.parquet")
    return {path.parent.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}


# --- the lookback as a plan ---------------------------------------------------------------------------------------

slab_points = st.lists(st.tuples(st.integers(0, 36_000), st.integers(1, 2500)), max_size=6)


@given(slab_points, st.integers(0, 3000), st.sampled_from([1, 1500, 4501]))
@hypothesis.settings(deadline=None)
def test_a_lookback_is_the_newest_that_costs_nothing(
    covered_points: list[tuple[int, int]], lookback: int, depth: int
) -> None:
    slab = Slab(Series("BTC", depth=depth), 700)
    first, step = slab.span.start, slab.series.interval_s
    covered = Spans.of((first + at * step, first + (at + size) * step) for at, size in covered_points).within(slab.span)
    newest = covered.hull.end if covered else first
    wish = Spans.of([(newest - lookback * step, newest)])
    without, found = plan_slab(slab, slab.span, covered), plan_slab(slab, slab.span, covered, wish)

    assert found.weight == without.weight
    assert (found.missing_s, without.again) == (without.missing_s, Spans())
    holes = Spans.of([slab.span]) - covered
    assert found.windows == tuple(plan_windows(slab.series, holes | found.again))
    # What is left out is older than what is taken, and one more interval would have cost something.
    assert not found.again - (wish & covered)
    left = (wish & covered) - found.again
    if left and holes:
        end = left.hull.end
        assert not found.again or end <= found.again.hull.start
        more = list(plan_windows(slab.series, holes | found.again | Spans.of([(end - step, end)])))
        assert sum(window.weight for window in more) > without.weight
    if not holes:
        assert found.windows == ()


# --- an hourly update ---------------------------------------------------------------------------------------------


def test_what_is_new_is_fetched_with_an_hour_before_it_in_one_request(bench: Bench) -> None:
    bench.backfill(TODAY)
    bench.clock.now_s += HOUR
    report = bench.update()
    assert bench.server.spans == [Span(CLOSED - HOUR, CLOSED + HOUR)]
    assert (report.requests, report.weight, report.points, report.days) == (1, 5, 60, 1)
    assert counts(report) == {"unchanged": 60}
    assert bench.known() == Spans.of([(TODAY, CLOSED + HOUR)])


def test_where_nothing_is_missing_nothing_is_asked(bench: Bench) -> None:
    """A lookback alone would cost what the next run has for nothing."""
    bench.backfill(TODAY)
    before = bench.tree(), stamps(bench)
    assert bench.update() == Report()
    assert bench.server.asked == []
    assert (bench.tree(), stamps(bench)) == before


def test_days_that_come_back_the_same_are_not_rewritten(bench: Bench) -> None:
    bench.clock.now_s = TODAY + 30 * MINUTE
    bench.backfill(YESTERDAY)
    before = stamps(bench)
    bench.clock.now_s = TODAY + 70 * MINUTE
    report = bench.update()
    # 00:28 was the last that was closed: 32 minutes of the lookback lie in yesterday.
    assert bench.server.spans == [Span(YESTERDAY + 23 * HOUR + 28 * MINUTE, TODAY + 68 * MINUTE)]
    assert (report.days, report.points, counts(report)) == (1, 40, {"unchanged": 60})
    after = stamps(bench)
    assert after["date=2026-03-30"] == before["date=2026-03-30"]
    assert after["date=2026-03-31"] != before["date=2026-03-31"]


def test_a_day_is_rewritten_for_one_interval_of_the_lookback(bench: Bench) -> None:
    bench.clock.now_s = TODAY + 30 * MINUTE
    bench.backfill(YESTERDAY)
    bench.world.revised[TODAY - MINUTE] = [(1.0, 2.0)]
    bench.clock.now_s += HOUR
    report = bench.update()
    assert (report.days, report.points, counts(report)) == (2, 61, {"unchanged": 59, "changed": 1})
    bench.backfill(YESTERDAY, TODAY, refetch=True)
    assert known_rows(bench, TODAY - MINUTE) == [(1.0, 2.0)]


def known_rows(bench: Bench, start: int) -> list[Level]:
    day = Store(bench.settings.root).read_day(BTC, start // DAY)
    assert day is not None
    found = day.snapshots.between(Span(start, start + MINUTE))
    return list(zip(found.price.tolist(), found.volume.tolist(), strict=True))


MOMENT = TODAY + 11 * HOUR + 20 * MINUTE
"""In the lookback, and more than a quarter of an hour old."""
KINDS: dict[str, tuple[list[Level] | None, list[Level] | None, str]] = {
    "the same rows": ([(1.0, 2.0)], [(1.0, 2.0)], "unchanged"),
    "another volume": ([(1.0, 2.0)], [(1.0, 2.5)], "changed"),
    "another price": ([(1.0, 2.0)], [(1.5, 2.0)], "changed"),
    "a level more": ([(1.0, 2.0)], [(1.0, 2.0), (3.0, 1.0)], "changed"),
    "published late": (None, [(1.0, 2.0)], "appeared"),
    "filled": ([], [(1.0, 2.0)], "appeared"),
    "emptied": ([(1.0, 2.0)], [], "vanished"),
    "withdrawn": ([(1.0, 2.0)], None, "vanished"),
    "a point without levels": (None, [], "changed"),
    "no more a point": ([], None, "changed"),
    "still absent": (None, None, "unchanged"),
    "still empty": ([], [], "unchanged"),
}


@pytest.mark.parametrize(("before", "after", "how"), KINDS.values(), ids=KINDS)
def test_what_comes_back_different_is_counted_and_replaces_what_is_stored(
    bench: Bench, before: list[Level] | None, after: list[Level] | None, how: str
) -> None:
    bench.world.revised[MOMENT] = before
    bench.backfill(TODAY)
    stored = bench.tree()
    bench.world.revised[MOMENT] = after
    bench.clock.now_s += MINUTE
    report = bench.update()
    assert counts(report) == dict(Counter({"unchanged": 59}) + Counter([how]))
    assert known_rows(bench, MOMENT) == (after or [])
    moment = Spans.of([(MOMENT, MOMENT + MINUTE)])
    assert bool(bench.known("absent") & moment) == (after is None)
    assert bool(bench.known("empty") & moment) == (after == [])
    assert bench.known() == Spans.of([(TODAY, CLOSED + MINUTE)])
    # What nobody else has any more is kept.
    assert list(bench.quarantine().values()) == (list(stored.values()) if how == "vanished" else [])


def test_what_vanishes_in_several_runs_is_kept_of_each(bench: Bench) -> None:
    bench.backfill(TODAY)
    copies: list[bytes] = []
    for minutes in (20, 25, 30):
        copies.append(*bench.tree().values())
        bench.world.revised[TODAY + 11 * HOUR + minutes * MINUTE] = None
        bench.clock.now_s += MINUTE
        assert counts(bench.update())["vanished"] == 1
    assert bench.quarantine() == {
        "2026-03-31.parquet.old": copies[0],
        "2026-03-31-2.parquet.old": copies[1],
        "2026-03-31-3.parquet.old": copies[2],
    }


def test_an_absence_that_is_young_erases_nothing(bench: Bench) -> None:
    """A point that is gone may be back in a moment: only what is final replaces what is stored."""
    bench.backfill(TODAY)
    young, old = CLOSED - 5 * MINUTE, CLOSED - 20 * MINUTE
    bench.world.revised |= {young: None, old: None}
    bench.clock.now_s += MINUTE
    report = bench.update()
    assert counts(report) == {"unchanged": 58, "vanished": 1}
    assert (report.young, report.points) == (0, 1)
    assert known_rows(bench, young) == plain_levels(young)
    assert known_rows(bench, old) == []
    bench.clock.now_s += 15 * MINUTE
    assert counts(bench.update()) == {"unchanged": 59, "vanished": 1}
    assert known_rows(bench, young) == []


def test_a_lookback_takes_no_more_than_what_is_paid_for(bench: Bench) -> None:
    bench.backfill(YESTERDAY, CLOSED - 970 * MINUTE)
    report = bench.update()
    assert bench.server.spans == [Span(CLOSED - 1000 * MINUTE, CLOSED)]
    assert (report.weight, counts(report)) == (5, {"unchanged": 30})
    bench.clock.now_s += 1000 * MINUTE
    report = bench.update()
    assert bench.server.spans == [Span(CLOSED, CLOSED + 1000 * MINUTE)]
    assert (report.weight, counts(report)) == (5, {})


@pytest.mark.parametrize(("lookback", "asked"), [(0, 0), (1, 1), (500, 500), (10**9, 718)])
def test_the_lookback_is_as_long_as_was_said(bench: Bench, lookback: int, asked: int) -> None:
    bench.backfill(TODAY)  # 718 minutes
    bench.clock.now_s += MINUTE
    report = bench.update(lookback=lookback)
    assert report.asked_again == asked
    assert bench.server.spans == [Span(CLOSED - asked * MINUTE, CLOSED + MINUTE)]


def test_a_negative_lookback_is_refused(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="lookback is -1"):
        bench.update(start=TODAY, lookback=-1)


def test_a_lookback_into_the_slab_before_rides_along_only_where_that_is_asked_anyway(bench: Bench) -> None:
    edge = TODAY // SLAB_S * SLAB_S
    bench.clock.now_s = edge + 32 * MINUTE
    bench.backfill(edge - 5 * HOUR)  # to half past midnight
    bench.clock.now_s += 10 * MINUTE
    report = bench.update()
    assert bench.server.spans == [Span(edge, edge + 40 * MINUTE)]
    assert counts(report) == {"unchanged": 30}


def test_holes_are_filled_and_only_the_newest_is_asked_for_again(bench: Bench) -> None:
    hole = Span(YESTERDAY + 2 * HOUR, YESTERDAY + 3 * HOUR)
    bench.backfill(YESTERDAY, hole.start)
    bench.backfill(hole.end)
    bench.clock.now_s += HOUR
    report = bench.update()
    assert sorted(bench.server.spans) == [hole, Span(CLOSED - HOUR, CLOSED + HOUR)]
    assert (report.weight, report.points, counts(report)) == (10, 120, {"unchanged": 60})
    assert bench.known() == Spans.of([(YESTERDAY, CLOSED + HOUR)])


def test_a_lookback_rides_along_with_a_hole_that_reaches_it(bench: Bench) -> None:
    bench.backfill(TODAY, CLOSED - 2 * HOUR)
    bench.backfill(CLOSED - HOUR)
    report = bench.update()
    assert bench.server.spans == [Span(CLOSED - 2 * HOUR, CLOSED)]
    assert (report.weight, report.points, counts(report)) == (5, 60, {"unchanged": 60})


def test_an_earlier_start_is_filled_from_there_and_a_later_one_leaves_holes_alone(bench: Bench) -> None:
    bench.backfill(YESTERDAY, YESTERDAY + HOUR)
    bench.update(start=TODAY)
    assert bench.known() == Spans.of([(YESTERDAY, YESTERDAY + HOUR), (TODAY, CLOSED)])
    bench.update(start=YESTERDAY - HOUR)
    assert bench.known() == Spans.of([(YESTERDAY - HOUR, CLOSED)])


def test_late_publication_is_found_within_the_lookback(bench: Bench) -> None:
    late = [CLOSED - 40 * MINUTE, CLOSED - 30 * MINUTE]
    bench.world.revised |= dict.fromkeys(late)
    bench.backfill(TODAY)
    assert bench.known("absent").seconds == 2 * MINUTE
    bench.world.revised.clear()
    bench.clock.now_s += 10 * MINUTE
    assert counts(bench.update()) == {"unchanged": 58, "appeared": 2}
    assert not bench.known("absent")


# --- where it begins ----------------------------------------------------------------------------------------------


def test_a_series_with_nothing_on_disk_needs_a_start(bench: Bench) -> None:
    bench.backfill(TODAY)
    bench.server.asked.clear()
    with pytest.raises(ConfigError, match="nothing of ETH MINUTE in coin at depth 2 is on disk: say with --start"):
        bench.update([BTC, ETH])
    assert bench.server.asked == []
    bench.backfill(TODAY, series=Series("ETH", "HOUR", depth=2))
    with pytest.raises(ConfigError, match=r"on disk \(there is ETH HOUR in coin at depth 2\): say with --start"):
        bench.update(ETH)
    assert bench.server.asked == []
    bench.update(ETH, TODAY)
    assert bench.known(series=ETH) == Spans.of([(TODAY, CLOSED)])


def test_all_that_is_on_disk_can_be_chosen_by_its_parts(bench: Bench) -> None:
    store = Store(bench.settings.root)
    with pytest.raises(ConfigError, match="nothing to update in"):
        choose_to_update(store)
    hours = Series("ETH", "HOUR", depth=2)
    bench.backfill(TODAY)
    bench.backfill(TODAY, series=hours)
    (Path(bench.settings.root) / "liquidations/unit=coin/depth=2/interval=MINUTE/coin=LEFT").mkdir()  # by a crash
    assert choose_to_update(store) == [BTC, hours]
    assert choose_to_update(store, interval="HOUR") == [hours]
    assert choose_to_update(store, unit="coin", depth=2) == [BTC, hours]
    with pytest.raises(ConfigError, match=r"nothing to update in .*, unit usd: name a series"):
        choose_to_update(store, unit="usd")
    with pytest.raises(ConfigError, match="did you mean 'MINUTE'"):
        choose_to_update(store, interval="MINUT")


def test_a_first_day_that_is_damaged_is_fetched_again(bench: Bench) -> None:
    bench.backfill(YESTERDAY + 6 * HOUR)
    Store(bench.settings.root)._path(BTC, YESTERDAY // DAY).write_bytes(b"PAR1")
    report = bench.update()
    assert report.failures == ()
    assert bench.known() == Spans.of([(YESTERDAY, CLOSED)])
    assert bench.quarantine() == {"2026-03-30.parquet.old": b"PAR1"}


def test_a_damaged_day_in_the_lookback_is_set_aside_and_told(bench: Bench) -> None:
    bench.backfill(TODAY)
    (path,) = Path(bench.settings.root).rglob("*.parquet")
    data = path.read_bytes()
    path.write_bytes(data[:60] + bytes(20) + data[80:])
    bench.clock.now_s += MINUTE
    report = bench.update()
    assert "was damaged and is set aside" in report.failures[0].reason
    assert counts(report) == {}
    assert bench.known() == Spans.of([(CLOSED - HOUR, CLOSED + MINUTE)])
    assert len(bench.quarantine()) == 1


def test_what_is_older_than_the_history_is_left_alone_without_a_word(
    bench: Bench, settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    bench.backfill(TODAY - 5 * DAY, TODAY - 4 * DAY)
    bench.backfill(YESTERDAY, TODAY)
    bench.settings = settings(bench.server.url, history_days=2)
    report = bench.update()
    start = int(NOW_S - 2 * DAY) // MINUTE * MINUTE + MINUTE
    assert bench.known() == Spans.of([(TODAY - 5 * DAY, TODAY - 4 * DAY), (start, CLOSED)])
    assert (report.failures, caplog.text) == ((), "")


def test_a_target_whose_end_is_past_has_nothing_to_do(bench: Bench) -> None:
    bench.backfill(YESTERDAY, TODAY)
    store = Store(bench.settings.root)
    for end in (YESTERDAY, YESTERDAY - DAY, TODAY):
        assert make_update_plan([Target(BTC, end=end)], store, bench.settings, NOW_S).requests == 0


# --- faults, neighbours -------------------------------------------------------------------------------------------


def test_a_fault_in_the_lookback_costs_nothing_but_two_requests(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """What is on disk stays; what is new is asked for alone."""
    world, bad = World(), CLOSED - 10 * MINUTE
    server = upstream(world.answer)
    bench = Bench(world, server, settings(server.url), Clock())
    bench.backfill(TODAY)
    world.revised[bad] = [(-1.0, 1.0)]
    bench.clock.now_s += 30 * MINUTE
    report = bench.update()
    whole, new = Span(CLOSED - HOUR, CLOSED + 30 * MINUTE), Span(CLOSED, CLOSED + 30 * MINUTE)
    assert server.spans == [whole, whole, new]
    assert (report.failures, report.points, counts(report)) == ((), 30, {})
    assert bench.known() == Spans.of([(TODAY, CLOSED + 30 * MINUTE)])
    assert known_rows(bench, bad) == plain_levels(bad)
    assert bench.quarantine() == {}


def test_a_fault_in_what_is_new_is_found_as_in_any_backfill(bench: Bench) -> None:
    bench.backfill(TODAY)
    bad = CLOSED + 7 * MINUTE
    bench.world.revised[bad] = [(-1.0, 1.0)]
    bench.clock.now_s += HOUR
    report = bench.update()
    assert [failure.span for failure in report.failures] == [Span(bad, bad + MINUTE)]
    assert bench.known() == Spans.of([(TODAY, bad), (bad + MINUTE, CLOSED + HOUR)])


def test_two_updates_at_once_ask_once_and_lose_nothing(bench: Bench) -> None:
    series = [BTC, ETH]
    for one in series:
        bench.backfill(YESTERDAY, series=one)
    bench.clock.now_s += HOUR
    bench.server.asked.clear()
    reports: list[Report] = []

    def work(order: list[Series]) -> None:
        reports.append(heatpipe.update(order, settings=bench.settings, clock=bench.clock))

    threads = [threading.Thread(target=work, args=(order,)) for order in (series, series[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [report.failures for report in reports] == [(), ()]
    assert sum(report.requests for report in reports) == len(bench.server.asked) == 2
    assert counts(sum(reports, Report())) == {"unchanged": 120}
    for one in series:
        assert bench.known(series=one) == Spans.of([(YESTERDAY, CLOSED + HOUR)])


def test_the_sandbox_is_updated_as_it_goes_on(make_sandbox: Callable[..., Sandbox], settings: MakeSettings) -> None:
    sandbox = make_sandbox()
    series = [Series("ETH", depth=8), Series("BTC", "HOUR", "usd", 8)]
    first, second = settings(sandbox.url), settings(sandbox.url, root=settings().root + "-at-once")
    heatpipe.backfill(series, YESTERDAY, settings=first, clock=sandbox.clock)
    for hours in (1, 1, 13):
        sandbox.clock.now_s += hours * HOUR
        with sandbox.listening() as heard:
            report = heatpipe.update(series, settings=first, clock=sandbox.clock)
        assert len(heard) == report.requests == 2
        assert set(counts(report)) == {"unchanged"}
    heatpipe.backfill(series, YESTERDAY, settings=second, clock=sandbox.clock)
    assert read_tree(Path(first.root) / "liquidations") == read_tree(Path(second.root) / "liquidations")


# --- any history --------------------------------------------------------------------------------------------------

Revision = tuple[int, list[Level] | None]
revisions = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from([None, [], [(1.0, 2.0)], [(1.0, 2.0), (4.0, 0.0)]])), max_size=5
)
steps = st.lists(
    st.tuples(st.integers(1, 90) | st.sampled_from([940, 1000, 2100]), st.integers(0, 100), revisions, revisions),
    min_size=1,
    max_size=3,
)
BEGINNINGS = {"within a slab": TODAY + 20 * HOUR, "before the slab's end": (TODAY // SLAB_S + 1) * SLAB_S - 90 * MINUTE}
roots = itertools.count()


@pytest.fixture
def benches(upstream: MakeUpstream, settings: MakeSettings) -> Callable[[int], Bench]:
    """Make a dataset of its own, with an upstream that all share, for each example."""
    world = World()
    server = upstream(world.answer)

    def make(now: int) -> Bench:
        root = f"{settings().root}-{next(roots)}"
        return Bench(world, server, settings(server.url, root=root), Clock(now))

    return make


@given(steps)
@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
@hypothesis.settings(
    deadline=None, max_examples=15, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_updates_leave_what_a_backfill_from_scratch_would_at_no_more_weight(
    benches: Callable[[int], Bench],
    beginning: int,
    steps: list[tuple[int, int, list[Revision], list[Revision]]],
) -> None:
    bench = benches(beginning)
    bench.world.revised.clear()
    start = beginning - 100 * MINUTE
    bench.backfill(start)
    for minutes, lookback, old, new in steps:
        bench.clock.now_s += minutes * MINUTE
        target, store = Target(BTC), Store(bench.settings.root)
        plan = make_update_plan([target], store, bench.settings, bench.clock(), lookback=lookback)
        plain = make_update_plan([target], store, bench.settings, bench.clock(), lookback=0)
        again = [at for slab in plan.slabs for span in slab.again for at in range(*span, MINUTE)]
        wanted = Spans.of(slab.span for slab in plan.slabs)
        missing = [at for span in wanted - bench.known() for at in range(*span, MINUTE)]
        expected: dict[int, str] = dict.fromkeys(again, "unchanged")
        for number, levels in old if again else []:
            at = again[number % len(again)]
            if levels is None and at > bench.clock() - 20 * MINUTE:
                continue  # too young to be believed
            revise(bench, at, levels, expected)
        for number, levels in new if missing else []:
            bench.world.revised[missing[number % len(missing)]] = levels

        report = bench.update(lookback=lookback)

        assert report.weight == plan.weight == plain.weight
        assert report.failures == ()
        assert counts(report) == Counter(expected[at] for at in again if not is_young(bench, at))
        scratch = benches(int(bench.clock()))
        scratch.backfill(start)
        assert bench.tree() == scratch.tree()
        before = bench.tree(), stamps(bench)
        assert bench.update(lookback=lookback).requests == (report.young > 0) * len(bench.server.asked)
        assert (bench.tree(), stamps(bench)) == before


def test_an_absence_at_the_end_of_a_slab_waits_for_the_next_slab_s_answer(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    border = (TODAY // SLAB_S + 1) * SLAB_S
    world, early = World({border - MINUTE: None}), threading.Event()

    def answer(asked: Asked) -> bytes:
        if asked.starts[0] < border:
            early.set()
        else:
            assert early.wait(10)
            time.sleep(0.3)  # the other answer has been taken in, as a rule
        return world.answer(asked)

    server = upstream(answer)
    bench = Bench(world, server, settings(server.url), Clock(border + 2 * HOUR))
    report = bench.backfill(border - HOUR)

    assert (report.requests, report.young, report.absent, report.failures) == (2, 0, 1, ())
    assert bench.known("absent") == Spans.of([(border - MINUTE, border)])


def revise(bench: Bench, at: int, levels: list[Level] | None, expected: dict[int, str]) -> None:
    """Change what the upstream says of an interval on disk; note how the update should tell it."""
    ((was, absent),) = [(known_rows(bench, at), bool(bench.known("absent").within(Span(at, at + MINUTE))))]
    bench.world.revised[at] = levels
    if bool(was) != bool(levels):
        expected[at] = "appeared" if levels else "vanished"
    elif was != (levels or []) or (not was and absent != (levels is None)):
        expected[at] = "changed"
    else:
        expected[at] = "unchanged"


def is_young(bench: Bench, at: int) -> bool:
    """Whether the upstream has no point there now, and that is too early to be believed."""
    closed = (bench.clock() - 15 * MINUTE) // MINUTE * MINUTE
    return bench.world.levels(at) is None and at + MINUTE > closed

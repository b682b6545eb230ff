"""Twice as much is twice the work, and not four times: in days, coins, records, windows and failures."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from heatpipe import cli
from heatpipe.config import Settings, Target
from heatpipe.fetch import Crew
from heatpipe.heatmap import build_heatmap
from heatpipe.ingest import carry_out, tidy
from heatpipe.layout import Day, day_path
from heatpipe.model import Coverage, Series, Snapshots, Span, Spans, day_span
from heatpipe.plan import plan_slabs
from heatpipe.report import Progress
from heatpipe.status import take_stock
from heatpipe.store import Store, encode_file
from heatpipe.survey import check_plan, choose_series, leave_out_retired, make_plan, make_update_plan
from tests.conftest import DAY, MINUTE, NOW_S, TODAY, Clock, MakeSettings, MakeUpstream, count_lines, honest

BTC = Series("BTC")
ABSENT_A_DAY = 60


def put_day(root: Path, series: Series, number: int) -> None:
    """Write a day of which every second minute of two hours is absent, and the others hold a level."""
    span = day_span(number)
    absent = Spans.of((at, at + MINUTE) for at in range(span.start, span.start + ABSENT_A_DAY * 120, 120))
    stamps = np.array([at for part in Spans((span,)) - absent for at in range(*part, MINUTE)], np.int64)
    ones = np.ones(len(stamps))
    snapshots = Snapshots(stamps * 1_000_000, ones.astype(np.int64), ones, ones)
    path = root / day_path(series, number)
    path.parent.mkdir(parents=True)
    path.write_bytes(encode_file(Day(series, number, snapshots, Coverage(Spans((span,)), absent))))


def span_of(days: int) -> Span:
    return Span(TODAY - days * DAY, TODAY)


def name_coins(coins: int) -> list[Target]:
    return [Target(Series(f"C{number:04}", depth=2), TODAY - 300 * DAY, TODAY) for number in range(coins)]


WORK: dict[str, Callable[[str, Span], object]] = {
    "status": lambda root, span: take_stock(Store(root), [Target(BTC, *span)], Settings(root=root), NOW_S),
    "plan --update": lambda root, _: make_update_plan([Target(BTC)], Store(root), Settings(root=root), NOW_S),
    "heatmap": lambda root, span: build_heatmap(root, BTC, span),
}


@pytest.mark.parametrize("name", WORK)
def test_twice_the_days_are_twice_the_work(tmp_path: Path, name: str) -> None:
    def work(days: int) -> int:
        root = tmp_path / str(days)
        for number in range(1, days + 1):
            put_day(root, BTC, TODAY // DAY - number)
        return count_lines(lambda: WORK[name](str(root), span_of(days)))

    work(1)  # imports
    assert work(40) < 2.5 * work(20)


def test_twice_the_coins_are_twice_the_plan_and_one_warning(tmp_path: Path) -> None:
    def work(coins: int) -> int:
        chosen = Settings(root=str(tmp_path), history_days=100)

        def plan() -> None:
            found = make_plan(name_coins(coins), Store(chosen.root), chosen, NOW_S)
            check_plan(found, Store(chosen.root), chosen)
            assert found.requests == coins * -(-100 * 1440 // 1000)
            assert found.weight == sum(window.weight for window in found.windows)
            assert [warning.split(":")[0] for warning in found.warnings] == [
                f"C0000, C0001, C0002 and {coins - 3} more"
            ]

        return count_lines(plan)

    assert work(20) < 2.5 * work(10)


def test_twice_the_coins_in_a_file_are_twice_the_work(tmp_path: Path) -> None:
    def work(coins: int) -> int:
        file = tmp_path / f"{coins}.toml"
        file.write_text(f"[[series]]\ncoins = {[f'C{number}' for number in range(coins)]}")
        return count_lines(lambda: Settings.load(file=str(file), environment={}))

    assert work(400) < 2.5 * work(200)


def test_an_answer_costs_the_same_whatever_is_still_ahead(
    upstream: MakeUpstream, settings: MakeSettings, tmp_path: Path
) -> None:
    server = upstream(honest)

    def work(coins: int, answers: int) -> int:
        """Count what the engine's own thread does until so many answers have come."""
        chosen = settings(server.url, root=str(tmp_path / f"{coins}-{answers}"))
        plan = make_plan(name_coins(coins), Store(chosen.root), chosen, NOW_S)

        def stop(progress: Progress) -> None:
            if progress.windows_done == answers:
                raise InterruptedError

        def run() -> None:
            with Crew(chosen, clock=Clock()) as crew, pytest.raises(InterruptedError):
                carry_out(plan, Store(chosen.root), crew, on_progress=stop)

        return count_lines(run)

    one, many = (work(coins, 21) - work(coins, 1) for coins in (1, 300))
    assert many < 1.25 * one


def test_records_are_listed_once_and_coverage_is_read_once_a_day(tmp_path: Path) -> None:
    store, number = Store(str(tmp_path)), TODAY // DAY - 1
    put_day(tmp_path, BTC, number)
    folder = tmp_path / "_quarantine" / day_path(BTC, number).parent.parent.relative_to("liquidations")
    folder.mkdir(parents=True)

    def work(records: int) -> int:
        for at in range(day_span(number).start, day_span(number).start + records * MINUTE, MINUTE):
            (folder / f"{at}-{at + MINUTE}.json").write_text("{}")
        assert store.quarantined(BTC).seconds == records * MINUTE
        lines = count_lines(lambda: store.release(BTC, day_span(number)))
        assert not list(folder.iterdir())
        return lines

    assert work(800) < 2.5 * work(400)
    # A footer's ranges alone take as many lines as it has: read for each record, it would be some thousand a record.
    assert work(800) < 60 * 800


@pytest.mark.parametrize("coins", [1, 3])
def test_a_plan_with_nothing_to_do_lists_the_records_of_a_series_once(tmp_path: Path, coins: int) -> None:
    chosen = Settings(root=str(tmp_path))
    series = [Series(f"C{number}") for number in range(coins)]
    for one in series:
        (tmp_path / "_quarantine" / day_path(one, 0).parent.parent.relative_to("liquidations")).mkdir(parents=True)
        for day in range(1, 61):
            put_day(tmp_path, one, TODAY // DAY - day)
    plan = make_plan([Target(one, *span_of(60)) for one in series], Store(chosen.root), chosen, NOW_S)
    assert (plan.requests, len(plan.slabs)) == (0, 3 * coins)
    listed: Counter[str] = Counter()

    def count(event: str, arguments: tuple[object, ...]) -> None:  # stays for good: a hook cannot be taken away
        if event == "os.scandir" and str(arguments[0]).startswith(f"{tmp_path}/_quarantine/"):
            listed[str(arguments[0])] += 1

    sys.addaudithook(count)
    tidy(plan, Store(chosen.root))
    assert list(listed.values()) == [1] * coins


def test_records_of_many_slabs_are_listed_once_and_dropped_slab_by_slab(tmp_path: Path) -> None:
    """What is dropped changes the folder, and that alone is no reason to list it anew."""
    listed: Counter[str] = Counter()

    def count(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.scandir" and "/_quarantine/" in str(arguments[0]):
            listed[str(arguments[0])] += 1

    def work(days: int) -> int:
        root, records = tmp_path / str(days), 20
        folder = root / "_quarantine" / day_path(BTC, 0).parent.parent.relative_to("liquidations")
        folder.mkdir(parents=True)
        for day in range(1, days + 1):
            put_day(root, BTC, TODAY // DAY - day)
            for at in range(TODAY - day * DAY, TODAY - day * DAY + records * MINUTE, MINUTE):
                (folder / f"{at}-{at + MINUTE}.json").write_text("{}")
        late = TODAY - days * DAY - MINUTE
        (folder / f"{late}-{late + 2 * MINUTE}.json").write_text("{}")
        store, chosen = Store(str(root)), Settings(root=str(root))
        plan = make_plan([Target(BTC, *span_of(days))], store, chosen, NOW_S)
        lines = count_lines(lambda: tidy(plan, store))
        assert [path.name for path in folder.iterdir()] == [f"{late}-{late + 2 * MINUTE}.json"], "half of it is missing"
        assert listed[str(folder)] == 1
        assert store.quarantined(BTC) == Spans((Span(late, late + 2 * MINUTE),))
        (folder / f"{TODAY}-{TODAY + MINUTE}.json").write_text("{}")
        assert store.quarantined(BTC).seconds == 3 * MINUTE, "what another process writes is seen"
        return lines

    sys.addaudithook(count)
    work(1)
    assert work(200) < 2.5 * work(100)


def test_a_slab_is_locked_in_the_same_time_however_long_its_series_is(tmp_path: Path) -> None:
    def work(days: int) -> int:
        root = tmp_path / str(days)
        for number in range(1, days + 1):
            (root / day_path(BTC, TODAY // DAY - number)).parent.mkdir(parents=True)
        [slab, *_] = plan_slabs(BTC, Span(TODAY - 60 * DAY, TODAY - 59 * DAY))

        def lock() -> None:
            with Store(str(root)).lock(slab):
                pass

        return count_lines(lock)

    work(60)
    assert work(600) < 1.1 * work(100)


def test_days_that_are_not_there_cost_nothing(tmp_path: Path) -> None:
    put_day(tmp_path, BTC, TODAY // DAY)
    assert Store(str(tmp_path)).covered(BTC, range(10**12)) == Spans((day_span(TODAY // DAY),))


class Name(str):
    """A coin's name that counts how often it is compared."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_many_coins_are_looked_up_and_not_searched_for(tmp_path: Path) -> None:
    names = [Name(f"C{number}") for number in range(400)]
    series = [Series(str(name)) for name in names]
    targets = [Target(one) for one in series]
    assert choose_series(series, names) == series
    assert leave_out_retired(targets, Settings(retired=tuple(names[1:]))) == targets[:1]
    assert Name.compared < 10 * len(names)

    def work(coins: int) -> int:
        root = tmp_path / str(coins)
        for one in series[:coins]:
            (root / day_path(one, 0)).parent.parent.mkdir(parents=True)
        chosen, flags = Settings(root=str(root)), cli.SeriesFlags(last="1d")
        found: list[Target] = []
        lines = count_lines(lambda: found.extend(cli._targets_on_disk(flags, chosen)))
        assert [target.series for target in found] == sorted(series[:coins])
        return lines

    work(1)
    assert work(400) < 2.5 * work(200)

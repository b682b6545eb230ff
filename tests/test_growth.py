"""Twice as much is twice the work, and not four times: in days, coins, records, windows and failures."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from heatpipe.config import Settings, Target
from heatpipe.fetch import Crew
from heatpipe.heatmap import build_heatmap
from heatpipe.ingest import carry_out, tidy
from heatpipe.layout import Day, day_path
from heatpipe.model import Coverage, Series, Snapshots, Span, Spans, day_span
from heatpipe.report import Progress
from heatpipe.status import take_stock
from heatpipe.store import Store, encode_file
from heatpipe.survey import check_plan, make_plan, make_update_plan
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

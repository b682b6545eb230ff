"""Locks whose files are removed or replaced while they are held: no second owner, no row lost, nothing undone."""

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from heatpipe.config import Settings, Target
from heatpipe.errors import DatasetError, HeatpipeError, LockedError
from heatpipe.fetch import Crew
from heatpipe.ingest import carry_out
from heatpipe.layout import Day, day_path, slab_name
from heatpipe.model import Coverage, Snapshots, Span, Spans
from heatpipe.plan import Slab
from heatpipe.report import Report
from heatpipe.store import Store, encode_file
from heatpipe.survey import make_plan
from tests.conftest import (
    DAY,
    HOUR,
    MINUTE,
    NOW_S,
    TODAY,
    Answer,
    Asked,
    Clock,
    MakeSettings,
    MakeUpstream,
    document,
    honest,
    http,
    plain_levels,
    read_tree,
)
from tests.test_store import BTC as DEEP
from tests.test_store import LEFT, NUMBER, SLAB, make_day, run_python, same
from tests.test_unreadable import BTC, fill

LOCK: Final = f"_locks/{slab_name(SLAB)}.lock"
YESTERDAY: Final = TODAY - DAY
NOON: Final = YESTERDAY + 12 * HOUR
PLACE: Final = day_path(BTC, YESTERDAY // DAY)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))


def remove_file(root: Path) -> None:
    for path in (root / "_locks").iterdir():
        path.unlink()


def replace_file(root: Path) -> None:
    """As a program does that syncs folders, or restores a copy."""
    for path in (root / "_locks").iterdir():
        other = path.with_name("copy")
        other.write_bytes(path.read_bytes())
        other.replace(path)


def remove_folder(root: Path) -> None:
    shutil.rmtree(root / "_locks")


def remove_both(root: Path) -> None:
    shutil.rmtree(root / "_locks")
    shutil.rmtree(root / "_tmp", ignore_errors=True)


Take = Callable[[Path], None]
TAKES: Final[list[Take]] = [remove_file, replace_file, remove_folder, remove_both]


def is_held(root: Path) -> bool:
    with suppress(LockedError), Store(str(root)).lock(SLAB):
        return False
    return True


# --- the lock itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("take", TAKES)
def test_a_lock_whose_file_is_gone_is_taken_again_and_said_once(
    store: Store, caplog: pytest.LogCaptureFixture, take: Take
) -> None:
    with store.lock(SLAB) as renew:
        for _ in range(2):
            take(store.root)
            renew()
            assert (store.root / LOCK).read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"
            assert is_held(store.root)
            renew()
    (line,) = caplog.messages
    assert line.startswith(f"{store.root / LOCK} was removed or replaced while BTC MINUTE")
    assert "\n" not in line
    assert not is_held(store.root)


@pytest.mark.parametrize("take", TAKES)
def test_a_lock_that_another_one_has_by_now_is_lost_and_he_is_named(store: Store, take: Take) -> None:
    with store.lock(SLAB) as renew:
        take(store.root)
        with Store(str(store.root)).lock(SLAB):
            for _ in range(2):
                with pytest.raises(LockedError, match=f"removed or replaced .* process {os.getpid()} on") as lost:
                    renew()
                assert str(store.root / LOCK) in str(lost.value)
        renew()
        assert is_held(store.root)


@pytest.mark.parametrize("take", TAKES)
def test_who_waits_does_not_get_a_file_that_has_lost_its_name(store: Store, take: Take) -> None:
    """The first holder ends while a second one, who found no file, works on."""
    waits: list[str] = []
    first, second = store.lock(SLAB), Store(str(store.root)).lock(SLAB)

    def wait(_: float) -> None:
        waits.append("")
        if len(waits) == 1:
            take(store.root)
            second.__enter__()
        elif len(waits) == 2:
            first.__exit__(None, None, None)
        elif len(waits) == 4:
            second.__exit__(None, None, None)

    first.__enter__()
    with Store(str(store.root)).lock(SLAB, wait=wait):
        assert len(waits) == 4
        assert is_held(store.root)


def test_a_lock_can_be_taken_while_somebody_removes_its_file_all_the_time(store: Store) -> None:
    over = threading.Event()

    def remove() -> None:
        while not over.wait(0.0001):
            with suppress(OSError):
                (store.root / LOCK).unlink()

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for _ in range(20):
            with store.lock(SLAB) as renew, suppress(LockedError):
                renew()
    finally:
        over.set()
        remover.join()


def test_what_lies_in_the_place_of_a_lock_that_is_gone_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("mine")
    with store.lock(SLAB) as renew:
        (store.root / LOCK).unlink()
        (store.root / LOCK).symlink_to(tmp_path / "theirs")
        with pytest.raises(DatasetError, match="a symbolic link, where a lock's file belongs"):
            renew()
        (store.root / LOCK).unlink()
        (store.root / "_locks").rmdir()
        (store.root / "_locks").symlink_to(tmp_path)
        with pytest.raises(DatasetError, match="a symbolic link, which is not followed here"):
            renew()
    assert (tmp_path / "theirs").read_text() == "mine"
    assert not list(tmp_path.glob("*.lock"))


# --- one writes at a time -------------------------------------------------------------------------------------------


def test_a_turn_has_one_owner_and_leaves_nothing(store: Store) -> None:
    order: list[str] = []
    with store.lock(SLAB):
        with store.turn(SLAB):
            other = threading.Thread(target=lambda: order.append(take_a_turn(store.root)))
            other.start()
            other.join(0.2)
            order.append("first")
        other.join()
        assert order == ["first", "second"]
    assert read_tree(store.root / "_tmp") == {}
    assert not list((store.root / "_tmp").iterdir())


def take_a_turn(root: Path) -> str:
    with Store(str(root)).turn(SLAB):
        return "second"


def test_a_turn_ends_with_the_process_that_had_it(store: Store) -> None:
    program = """
        import os, sys
        from heatpipe.store import Store
        from tests.test_store import SLAB
        with Store(sys.argv[1]).turn(SLAB):
            os._exit(0)
    """
    run_python(program, str(store.root))
    with store.lock(SLAB), store.turn(SLAB):
        """It is free."""
    assert not list((store.root / "_tmp").iterdir())


def test_who_takes_the_lock_leaves_alone_what_is_being_written_at_that_moment(store: Store) -> None:
    """He found no lock's file, so that there are two."""

    def meet_another() -> bool:
        remove_folder(store.root)
        before = read_tree(store.root / "_tmp")
        assert any(LEFT in path for path in before)
        with Store(str(store.root)).lock(SLAB):
            assert read_tree(store.root / "_tmp") == before
        assert read_tree(store.root / "_tmp") == before
        return True

    with store.lock(SLAB), store.turn(SLAB):
        store.write_day(make_day(), SLAB, meet_another)
    assert same(store.read_day(DEEP, NUMBER), make_day())
    assert not list((store.root / "_tmp").iterdir())


def test_a_day_that_may_not_be_replaced_in_the_end_stays_and_nothing_is_left(store: Store) -> None:
    store.write_day(make_day(60), SLAB)
    with store.lock(SLAB), store.turn(SLAB):
        assert store.write_day(make_day(61), SLAB, lambda: False) is None
        assert [path for path in read_tree(store.root / "_tmp") if LEFT in path] == []
    assert same(store.read_day(DEEP, NUMBER), make_day(60))


def test_a_day_is_written_though_somebody_removes_the_temporary_files(store: Store) -> None:
    removed: list[bool] = []

    def remove() -> bool:
        if len(removed) < 2:
            removed.append(True)
            shutil.rmtree(store.root / "_tmp")
        return True

    with store.lock(SLAB), store.turn(SLAB):
        assert store.write_day(make_day(), SLAB, remove)
    assert len(removed) == 2
    assert same(store.read_day(DEEP, NUMBER), make_day())


# --- a run whose lock is taken away ---------------------------------------------------------------------------------

Script = Callable[[Asked], Answer]


def interrupted_at(number: int, meanwhile: Callable[[], object], script: Script = honest) -> Script:
    """Answer as a script does; but before the answer to one request something else happens, once."""
    asked_for: list[Asked] = []

    def answer(asked: Asked) -> Iterable[bytes]:
        asked_for.append(asked)
        found = script(asked)
        if len(asked_for) == number:
            meanwhile()
        yield from [found] if isinstance(found, bytes) else found

    return answer


def undisturbed(upstream: MakeUpstream, settings: MakeSettings, tmp_path: Path, *span: int) -> dict[str, bytes]:
    chosen = settings(upstream(honest).url, root=str(tmp_path / "undisturbed"))
    fill(chosen, BTC, *span)
    return read_tree(tmp_path / "undisturbed" / "liquidations")


@pytest.mark.parametrize("take", TAKES)
@pytest.mark.parametrize(
    "span", [(NOON, TODAY), (YESTERDAY, TODAY), (YESTERDAY + HOUR, TODAY + HOUR)], ids=["rest", "same", "overlap"]
)
def test_what_another_run_stores_meanwhile_is_merged_and_all_is_there(
    upstream: MakeUpstream, settings: MakeSettings, tmp_path: Path, take: Take, span: tuple[int, int]
) -> None:
    """The second run finds no lock, begins and ends while the first one waits for its answer."""
    reports: list[Report] = []

    def meanwhile() -> None:
        take(Path(chosen.root))
        reports.append(fill(chosen, BTC, *span))

    server = upstream(interrupted_at(1, meanwhile))
    chosen = settings(server.url)
    first = fill(chosen, BTC, YESTERDAY, NOON)
    (second,) = reports
    assert first.failures == second.failures == ()
    twice = max(0, NOON - max(span[0], YESTERDAY)) // MINUTE
    assert first.points + first.unchanged == 720
    assert (first.unchanged, first.changed, first.appeared, first.vanished) == (twice, 0, 0, 0)
    assert second.points == (span[1] - span[0]) // MINUTE
    end = max(span[1], NOON)
    tree = read_tree(Path(chosen.root) / "liquidations")
    assert tree == undisturbed(upstream, settings, tmp_path, YESTERDAY, end)
    assert read_tree(Path(chosen.root) / "_tmp") == read_tree(Path(chosen.root) / "_quarantine") == {}


def test_what_came_is_the_newer_one_but_gives_up_no_rows(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """The second run is answered with other rows for one minute, and with rows where the first is told of none."""

    def answer(asked: Asked) -> bytes:
        points = {start: plain_levels(start) for start in asked.starts}
        if len(server.asked) == 2:
            points[YESTERDAY] = [(7.0, 7.0)]
        else:
            points[YESTERDAY + MINUTE] = []
            del points[YESTERDAY + 2 * MINUTE]
        return http(body=document(asked, points))

    def meanwhile() -> None:
        remove_folder(Path(chosen.root))
        assert fill(chosen, BTC, YESTERDAY, NOON).points == 720

    server = upstream(interrupted_at(1, meanwhile, answer))
    chosen = settings(server.url)
    report = fill(chosen, BTC, YESTERDAY, NOON)
    assert (report.changed, report.unchanged, report.appeared, report.vanished) == (1, 717, 0, 0)
    assert (report.points, report.rows, report.absent, report.failures) == (1, 2, 0, ())
    day = Store(chosen.root).read_day(BTC, YESTERDAY // DAY)
    assert day is not None
    assert day.coverage == Coverage(Spans.of([(YESTERDAY, NOON)]))
    assert day.snapshots.volume[:2].tolist() == [volume for _, volume in plain_levels(YESTERDAY)]
    assert not (Path(chosen.root) / "_quarantine").exists()


@pytest.mark.parametrize("how", ["refetch", "refetch_absent"])
def test_a_refetch_merges_with_what_another_one_stores(
    upstream: MakeUpstream, settings: MakeSettings, tmp_path: Path, how: str
) -> None:
    chosen = settings(upstream(honest).url)
    fill(chosen, BTC, YESTERDAY + HOUR, YESTERDAY + 2 * HOUR)

    def meanwhile() -> None:
        remove_folder(Path(chosen.root))
        assert fill(chosen, BTC, YESTERDAY, TODAY).points == 1380

    chosen = settings(upstream(interrupted_at(1, meanwhile)).url)
    report = fill(chosen, BTC, YESTERDAY, NOON, **{how: True})
    assert report.failures == ()
    assert report.unchanged == 720 if how == "refetch" else report.unchanged == 660
    tree = read_tree(Path(chosen.root) / "liquidations")
    assert tree == undisturbed(upstream, settings, tmp_path, YESTERDAY, TODAY)


def stored(start: int, end: int, volume: float = 5.0) -> bytearray:
    """A day's file as another program may bring it: of some minutes, one level each."""
    stamps = np.arange(start, end, MINUTE) * 1_000_000
    ones = np.ones(len(stamps))
    rows = Snapshots(stamps, ones.astype(np.int64), ones, volume * ones)
    return encode_file(Day(BTC, start // DAY, rows, Coverage(Spans.of([(start, end)]))))


def bring(root: str, data: bytes | bytearray) -> Path:
    path = Path(root) / PLACE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name("brought").write_bytes(data)
    return path.with_name("brought").replace(path)


def test_a_day_that_another_program_brings_is_merged_though_the_lock_is_held(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    server = upstream(interrupted_at(1, lambda: bring(chosen.root, stored(NOON, TODAY))))
    chosen = settings(server.url)
    assert fill(chosen, BTC, YESTERDAY, NOON).points == 720
    day = Store(chosen.root).read_day(BTC, YESTERDAY // DAY)
    assert day is not None
    assert day.coverage.covered == Spans.of([(YESTERDAY, TODAY)])
    assert day.snapshots.rows == 2 * 720 + 720


def test_a_day_that_has_vanished_is_a_failure_and_what_came_is_stored(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    server = upstream(interrupted_at(2, lambda: (Path(chosen.root) / PLACE).unlink()))
    chosen = settings(server.url)
    fill(chosen, BTC, YESTERDAY, YESTERDAY + HOUR)
    report = fill(chosen, BTC, YESTERDAY + HOUR, NOON)
    (failure,) = report.failures
    assert (report.points, failure.series, failure.span) == (660, BTC, Span(YESTERDAY, TODAY))
    assert "the day's file had vanished when it was to be extended" in failure.reason
    assert Store(chosen.root).covered(BTC, [YESTERDAY // DAY]) == Spans.of([(YESTERDAY + HOUR, NOON)])


def test_a_day_that_is_damaged_meanwhile_is_set_aside(upstream: MakeUpstream, settings: MakeSettings) -> None:
    server = upstream(interrupted_at(1, lambda: bring(chosen.root, b"PAR1 and no more")))
    chosen = settings(server.url)
    report = fill(chosen, BTC, YESTERDAY, NOON)
    assert "was damaged and is set aside" in report.failures[0].reason
    assert b"PAR1 and no more" in read_tree(Path(chosen.root) / "_quarantine").values()
    assert Store(chosen.root).covered(BTC, [YESTERDAY // DAY]) == Spans.of([(YESTERDAY, NOON)])


class SlowStore(Store):
    """A store that takes its time: something happens after a day was merged and before its file is replaced."""

    def __init__(self, root: str, meanwhile: Callable[[int], object]) -> None:
        super().__init__(root)
        self.meanwhile = meanwhile
        self.merges = 0

    def write_day(self, day: Day, slab: Slab, may_replace: Callable[[], bool] = lambda: True) -> int | None:
        def slow() -> bool:
            self.merges += 1
            self.meanwhile(self.merges)
            return may_replace()

        return super().write_day(day, slab, slow)


def fill_slowly(chosen: Settings, meanwhile: Callable[[int], object]) -> tuple[SlowStore, Report]:
    store = SlowStore(chosen.root, meanwhile)
    plan = make_plan([Target(BTC, YESTERDAY, NOON)], store, chosen, NOW_S)
    with Crew(chosen, clock=Clock()) as crew:
        return store, carry_out(plan, store, crew)


def test_a_day_replaced_after_it_was_merged_is_merged_anew(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """The small window: by somebody who asks for no lock."""
    chosen = settings(upstream(honest).url)
    pieces = {1: (NOON, NOON + HOUR), 2: (NOON, NOON + 2 * HOUR)}
    store, report = fill_slowly(
        chosen, lambda merges: merges in pieces and bring(chosen.root, stored(*pieces[merges], volume=merges))
    )
    assert (store.merges, report.points, report.days, report.failures) == (3, 720, 1, ())
    day = store.read_day(BTC, YESTERDAY // DAY)
    assert day is not None
    assert day.coverage.covered == Spans.of([(YESTERDAY, NOON + 2 * HOUR)])
    assert day.snapshots.volume[1440:].tolist() == [2.0] * 120


def test_the_same_file_put_back_is_no_reason_to_merge_anew(upstream: MakeUpstream, settings: MakeSettings) -> None:
    chosen = settings(upstream(honest).url)
    bring(chosen.root, stored(NOON, TODAY))
    store, report = fill_slowly(chosen, lambda _: bring(chosen.root, stored(NOON, TODAY)))
    assert (store.merges, report.points, report.failures) == (1, 720, ())
    assert store.covered(BTC, [YESTERDAY // DAY]).seconds == DAY


def test_a_day_that_is_replaced_again_and_again_is_a_failure(upstream: MakeUpstream, settings: MakeSettings) -> None:
    chosen = settings(upstream(honest).url)
    _, report = fill_slowly(chosen, lambda merges: bring(chosen.root, stored(NOON, NOON + HOUR, volume=merges)))
    (failure,) = report.failures
    assert str(PLACE) in failure.reason
    assert "something replaces it again and again" in failure.reason
    assert Store(chosen.root).covered(BTC, [YESTERDAY // DAY]) == Spans.of([(NOON, NOON + HOUR)])


def test_locks_and_temporary_files_removed_at_the_last_moment_cost_nothing(
    upstream: MakeUpstream, settings: MakeSettings, tmp_path: Path
) -> None:
    """And another run begins, writes and ends there, with the lock that it finds free."""
    chosen = settings(upstream(honest).url)

    def meanwhile(merges: int) -> None:
        if merges == 1:
            remove_both(Path(chosen.root))
            assert fill(chosen, BTC, NOON, TODAY).points == 720

    store, report = fill_slowly(chosen, meanwhile)
    assert (store.merges, report.points, report.failures) == (2, 720, ())
    tree = read_tree(Path(chosen.root) / "liquidations")
    assert tree == undisturbed(upstream, settings, tmp_path, YESTERDAY, TODAY)


def test_many_runs_on_one_folder_whose_locks_are_removed_all_the_time_lose_nothing(
    upstream: MakeUpstream, settings: MakeSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each asks for other pieces of the same days; what one has paid for no other may write over."""
    caplog.set_level(logging.ERROR)
    chosen = settings(upstream(honest).url)
    over = threading.Event()
    failures: list[object] = []

    def remove() -> None:
        while not over.wait(0.003):
            shutil.rmtree(Path(chosen.root) / "_locks", ignore_errors=True)

    def run(first: int) -> None:
        for hour in range(first, 34, 4):
            at = YESTERDAY + hour * HOUR
            try:
                failures.extend(fill(chosen, BTC, at - HOUR // 2, at + HOUR).failures)
            except HeatpipeError as exc:
                failures.append(exc)

    threads = [threading.Thread(target=run, args=(first,)) for first in range(4)]
    remover = threading.Thread(target=remove)
    for thread in [remover, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    remover.join()
    assert failures == []
    end = YESTERDAY + 34 * HOUR
    tree = read_tree(Path(chosen.root) / "liquidations")
    assert tree == undisturbed(upstream, settings, tmp_path, YESTERDAY - HOUR // 2, end)

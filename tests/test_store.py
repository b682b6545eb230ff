"""Day files on a real disk: atomic, locked, and honest about what is wrong with them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from heatpipe import layout
from heatpipe.disk import Disk, same_bytes
from heatpipe.errors import DamagedError, DatasetError, LockedError, UnreadableError
from heatpipe.layout import Day
from heatpipe.model import Coverage, Series, Snapshots, Span, Spans
from heatpipe.plan import Slab, plan_slabs
from heatpipe.store import Store, encode_file
from tests.conftest import DAY, HOUR, MINUTE, TODAY, Mortal, read_tree

BTC = Series("BTC")
NUMBER = TODAY // DAY
SLAB = plan_slabs(BTC, Span(TODAY, TODAY + DAY))[0]
LEFT = "date=2026-03-31-part-0.parquet"
PLACE = "liquidations/unit=coin/depth=1500/interval=MINUTE/coin=BTC/date=2026-03-31/part-0.parquet"


def make_day(minutes: int = 60, *, series: Series = BTC, levels: int = 3, number: int = NUMBER) -> Day:
    """A day whose first minutes are covered, each with as many levels."""
    start = number * DAY
    stamps = (start + MINUTE * np.arange(minutes)) * 1_000_000
    prices = np.tile(np.arange(1.0, levels + 1) * 10.1, minutes)
    snapshots = Snapshots(stamps, np.full(minutes, levels), prices, np.arange(minutes * levels) / 7)
    return Day(series, number, snapshots, Coverage(Spans.of([(start, start + minutes * MINUTE)])))


def same(one: Day | None, other: Day) -> bool:
    assert one is not None
    columns = ("timestamp", "levels", "price", "volume")
    return one.coverage == other.coverage and all(
        getattr(one.snapshots, name).tobytes() == getattr(other.snapshots, name).tobytes() for name in columns
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "a root"))


def test_a_day_comes_back_bit_for_bit(store: Store) -> None:
    day = make_day()
    size = store.write_day(day, SLAB)
    assert same(store.read_day(BTC, NUMBER), day)
    assert store.coverage(BTC, NUMBER) == day.coverage
    assert store.days(BTC) == [NUMBER]
    assert store.all_series() == [BTC]
    assert store.size_bytes(BTC) == size == (store.root / PLACE).stat().st_size


def test_a_day_without_rows_comes_back_as_covered(store: Store) -> None:
    day = Day(BTC, NUMBER, Snapshots(), Coverage(*(Spans.of([(TODAY, TODAY + HOUR)]),) * 2))
    store.write_day(day, SLAB)
    assert same(store.read_day(BTC, NUMBER), day)
    assert pq.read_metadata(store.root / PLACE).num_rows == 0


def test_what_was_never_written_is_nothing(store: Store) -> None:
    assert store.read_day(BTC, NUMBER) is None
    assert store.footer(BTC, NUMBER) is None
    assert store.coverage(BTC, NUMBER) == Coverage()
    assert (store.days(BTC), store.all_series(), store.size_bytes(BTC)) == ([], [], 0)
    assert not store.root.exists()


def test_equal_content_gives_equal_bytes_wherever_it_lies(store: Store, tmp_path: Path) -> None:
    other = Store(str(tmp_path / "elsewhere"))
    for each in (store, other):
        each.write_day(make_day(), SLAB)
    assert read_tree(store.root) == read_tree(other.root)


def test_a_file_is_encoded_as_readers_like_it(store: Store) -> None:
    store.write_day(make_day(1440, levels=200), SLAB)
    file = pq.ParquetFile(store.root / PLACE)
    group = file.metadata.row_group(0)
    assert [group.column(at).compression for at in range(3)] == ["ZSTD"] * 3
    assert [(column.column_index, column.descending) for column in group.sorting_columns] == [(0, False), (1, False)]
    assert all(group.column(at).has_offset_index and group.column(at).has_column_index for at in range(3))
    file.close()


def test_every_page_has_a_checksum(store: Store) -> None:
    store.write_day(make_day(), SLAB)
    path = store.root / PLACE
    intact = path.read_bytes()
    metadata = pq.read_metadata(path).row_group(0)
    for column in map(metadata.column, range(3)):
        offsets = [column.data_page_offset, *([column.dictionary_page_offset] if column.has_dictionary_page else [])]
        for offset in offsets:
            damaged = bytearray(intact)
            # Past the page's header, in what is compressed.
            damaged[offset + 40] ^= 0xFF
            path.write_bytes(damaged)
            with pytest.raises(OSError, match="CRC"):
                pq.read_table(path, page_checksum_verification=True)
            with pytest.raises(DatasetError, match="part-0"):
                store.read_day(BTC, NUMBER)


# --- replacing, whole or not at all -------------------------------------------------------------------------------


def test_nothing_but_the_day_is_left_behind(store: Store) -> None:
    with store.lock(SLAB):
        store.write_day(make_day(60), SLAB)
        store.write_day(make_day(61), SLAB)
    assert [path for path in read_tree(store.root) if not path.startswith("_locks/")] == [PLACE]
    assert list((store.root / "_tmp").iterdir()) == []


def test_a_write_that_finds_no_room_leaves_the_old_day(store: Store) -> None:
    """The limit on a file's size, set in a process of its own, stands for a full disk."""
    store.write_day(make_day(60), SLAB)
    before = read_tree(store.root)
    program = """
        import resource, sys
        from heatpipe.errors import DatasetError
        from heatpipe.store import Store
        from tests.test_store import SLAB, make_day
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        store = Store(sys.argv[1])
        try:
            with store.lock(SLAB):
                store.write_day(make_day(900), SLAB)
        except DatasetError as exc:
            print(exc)
    """
    ended = run_python(program, str(store.root))
    assert "cannot write" in ended.stdout
    assert "too large" in ended.stdout
    after = read_tree(store.root)
    assert {path: after[path] for path in before} == before
    assert [path for path in after if not path.startswith("_locks/")] == [PLACE]


def test_a_folder_where_the_file_should_go_is_named(store: Store) -> None:
    (store.root / PLACE).mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"cannot write .*irectory"), store.lock(SLAB):
        store.write_day(make_day(), SLAB)
    assert (store.root / PLACE).is_dir()


def test_a_file_where_the_root_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(DatasetError, match="cannot write"):
        Store(str(tmp_path / "taken")).write_day(make_day(), SLAB)
    assert (tmp_path / "taken").read_text() == "mine"


# --- damaged and foreign files ------------------------------------------------------------------------------------


def damage_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def damage_start(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_footer(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    table = pq.read_table(path)
    document = json.loads(table.schema.metadata[b"heatpipe"])
    document.update(change(document) or {})
    pq.write_table(table.replace_schema_metadata({b"heatpipe": json.dumps(document).encode()}), path)


def without_footer(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def of_another_series(path: Path) -> None:
    path.write_bytes(encode_file(make_day(series=Series("ETH"))))


def of_another_day(path: Path) -> None:
    path.write_bytes(encode_file(make_day(number=NUMBER - 1)))


def of_a_later_version(path: Path) -> None:
    replace_footer(path, lambda _: {"version": 2})


def with_unsorted_ranges(path: Path) -> None:
    replace_footer(path, lambda _: {"covered": [[TODAY + HOUR, TODAY + 2 * HOUR], [TODAY, TODAY + HOUR]]})


def with_a_wrong_digest(path: Path) -> None:
    replace_footer(path, lambda _: {"digest": "0" * 32})


UNREADABLE = [
    damage_end,
    empty,
    without_footer,
    of_another_series,
    of_another_day,
    with_unsorted_ranges,
]


@pytest.mark.parametrize("damage", [*UNREADABLE, of_a_later_version, damage_start, with_a_wrong_digest])
def test_a_day_that_cannot_be_trusted_is_refused_by_its_path(store: Store, damage: Callable[[Path], None]) -> None:
    store.write_day(make_day(), SLAB)
    damage(store.root / PLACE)
    with pytest.raises(DatasetError) as caught:
        store.read_day(BTC, NUMBER)
    assert caught.value.path == str(store.root / PLACE)
    assert caught.value.path in str(caught.value)


@pytest.mark.parametrize("damage", UNREADABLE)
def test_a_footer_that_cannot_be_trusted_covers_nothing(store: Store, damage: Callable[[Path], None]) -> None:
    store.write_day(make_day(), SLAB)
    damage(store.root / PLACE)
    with pytest.raises(DamagedError):
        store.footer(BTC, NUMBER)
    assert store.coverage(BTC, NUMBER) == Coverage()


def test_a_file_of_a_later_version_is_no_damage(store: Store) -> None:
    """It must not pass for a day that was never fetched, and be replaced."""
    store.write_day(make_day(), SLAB)
    of_a_later_version(store.root / PLACE)
    with pytest.raises(UnreadableError, match="version 2"):
        store.coverage(BTC, NUMBER)


# --- what cannot be read now ---------------------------------------------------------------------------------------


def test_no_shortage_of_memory_makes_a_sound_day_a_damaged_one(store: Store) -> None:
    """In a process of its own, which may grow by ever less than a day takes."""
    store.write_day(make_day(1440, levels=400), SLAB)
    program = """
        import resource, sys
        from pathlib import Path
        from heatpipe.errors import UnreadableError
        from heatpipe.store import Store
        from heatpipe.verify import verify_files
        from tests.test_store import BTC, NUMBER

        def size():
            return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

        store = Store(sys.argv[1])
        sound = store.read_day(BTC, NUMBER).coverage
        told = set()
        for grows in [0, 1, 4, 16, 64, 256, 1000, 2000, 4000, 8000, 12000, 16000, 24000, 32000, 64000, 1 << 20]:
            try:
                resource.setrlimit(resource.RLIMIT_AS, (size() + (grows << 10), -1))
                try:
                    for read in (store.footer, store.read_day):
                        assert read(BTC, NUMBER).coverage == sound
                except UnreadableError as exc:
                    told.add(str(exc))
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        assert store.read_day(BTC, NUMBER).coverage == sound
        print(*told, sep="\\n")
    """
    told = run_python(program, str(store.root)).stdout.splitlines()
    assert told
    assert all("cannot be read now" in line and PLACE in line for line in told)


@pytest.mark.parametrize("damage", [damage_start, damage_end])
def test_what_a_parser_refuses_is_damage_only_where_the_seal_is_wrong(
    store: Store, damage: Callable[[Path], None]
) -> None:
    """A file that is sealed as it is stands for one that is sound, and whose parser had no memory, or is too old."""
    store.write_day(make_day(), SLAB)
    damage(store.root / PLACE)
    with pytest.raises(DamagedError):
        store.read_day(BTC, NUMBER)
    data = bytearray((store.root / PLACE).read_bytes())
    layout.seal(data)
    (store.root / PLACE).write_bytes(data)
    with pytest.raises(UnreadableError, match=r"part-0.parquet is sound, and cannot be read now: \w"):
        store.read_day(BTC, NUMBER)
    if damage is damage_end:  # the footer is in it
        with pytest.raises(UnreadableError, match="is sound, and cannot be read now"):
            store.footer(BTC, NUMBER)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def lead_nowhere(path: Path) -> None:
    """To a disk, say, that is not mounted now."""
    path.symlink_to("/nowhere/at/all")


def of_nobody(path: Path) -> None:
    """The root user may read what nobody may: to be refused, one has to be somebody else."""
    path.write_bytes(b"")
    path.chmod(0)


@pytest.mark.parametrize("bar", [loop, lead_nowhere, os.mkfifo, Path.mkdir, of_a_later_version, of_nobody])
def test_a_day_that_cannot_be_read_now_is_there_all_the_same(
    store: Store, bar: Callable[[Path], None], mortal: Mortal
) -> None:
    store.write_day(make_day(), SLAB)
    if bar is not of_a_later_version:
        (store.root / PLACE).unlink()
    bar(store.root / PLACE)
    with mortal(store.root):
        assert store.days(BTC) == [NUMBER]
        for read in (store.footer, store.read_day, store.coverage):
            with pytest.raises(UnreadableError) as caught:
                read(BTC, NUMBER)
            assert caught.value.path == str(store.root / PLACE)


@pytest.mark.parametrize("depth", range(6))
def test_a_folder_that_cannot_be_looked_into_is_named(store: Store, depth: int, mortal: Mortal) -> None:
    store.write_day(make_day(), SLAB)
    folder = (store.root / PLACE).parents[depth]
    with mortal(store.root):
        folder.chmod(0)
        try:
            with pytest.raises(UnreadableError, match="cannot be read now: Permission denied"):
                [store.footer(series, day) for series in store.all_series() for day in store.days(series)]
        finally:
            folder.chmod(0o755)


@pytest.mark.parametrize("depth", range(6))
def test_a_link_to_a_folder_that_is_not_there_now_is_named(store: Store, depth: int) -> None:
    store.write_day(make_day(), SLAB)
    folder = (store.root / PLACE).parents[depth]
    folder.rename(store.root / "unmounted")
    folder.symlink_to("/nowhere/at/all")
    with pytest.raises(UnreadableError, match="cannot be read now: it has vanished, or a link leads nowhere"):
        store.footer(BTC, NUMBER)
    with pytest.raises(UnreadableError, match="cannot be read now: it has vanished, or a link leads nowhere"):
        [store.footer(series, day) for series in store.all_series() for day in store.days(series)]


def test_a_folder_without_its_file_is_an_unwritten_day(store: Store) -> None:
    """What a process leaves that is killed between making the folder and moving the file there."""
    (store.root / PLACE).parent.mkdir(parents=True)
    assert store.read_day(BTC, NUMBER) is None
    assert store.coverage(BTC, NUMBER) == Coverage()
    assert store.size_bytes(BTC) == 0


@pytest.mark.parametrize(
    "foreign",
    [
        "notes",
        "unit=coin/depth=many/interval=MINUTE/coin=BTC",
        "unit=coin/depth=1500/interval=SECOND/coin=BTC",
        "unit=eur/depth=1500/interval=MINUTE/coin=BTC",
        "unit=coin/depth=1500/interval=MINUTE/coin=a b",
        "unit=coin/depth=1500/interval=MINUTE/coin=__HIVE_DEFAULT_PARTITION__",
        "unit=coin/depth=1500/interval=MINUTE/coin=BTC/date=yesterday",
        "unit=coin/depth=1500/interval=MINUTE/coin=BTC/date=20260330",
    ],
)
def test_folders_that_heatpipe_did_not_make_are_passed_over(store: Store, foreign: str) -> None:
    store.write_day(make_day(), SLAB)
    (store.root / "liquidations" / foreign).mkdir(parents=True)
    assert store.all_series() == [BTC]
    assert store.days(BTC) == [NUMBER]


# --- locks --------------------------------------------------------------------------------------------------------


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


@contextmanager
def another_process_holding(root: Path) -> Iterator[subprocess.Popen[str]]:
    program = """
        import sys
        from heatpipe.store import Store
        from tests.test_store import SLAB
        with Store(sys.argv[1]).lock(SLAB):
            print("held", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_lock_held_elsewhere_is_an_error_that_names_the_holder(store: Store) -> None:
    with another_process_holding(store.root) as process:
        with pytest.raises(LockedError, match=f"BTC MINUTE .* process {process.pid} on ."), store.lock(SLAB):
            pytest.fail("the lock was given twice")
        process.kill()
        process.wait()
        with store.lock(SLAB):
            """A process that is killed holds nothing."""


def test_a_lock_is_exclusive_within_a_process_too(store: Store) -> None:
    with store.lock(SLAB):
        with pytest.raises(LockedError, match=f"process {os.getpid()} on"), store.lock(SLAB):
            pytest.fail("the lock was given twice")
        with store.lock(Slab(BTC, SLAB.number + 1)), store.lock(Slab(Series("ETH"), SLAB.number)):
            """Other slabs are free."""
    with store.lock(SLAB):
        """It is free again."""


def test_a_lock_is_free_again_after_an_exception(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.lock(SLAB):
        raise ZeroDivisionError
    with store.lock(SLAB):
        """It is free again."""


def test_who_may_wait_gets_the_lock_when_it_is_free(store: Store) -> None:
    waits: list[float] = []
    with another_process_holding(store.root) as process:

        def wait(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                process.send_signal(signal.SIGKILL)
                process.wait()

        with store.lock(SLAB, wait=wait):
            assert len(waits) == 3


def test_who_does_not_get_the_lock_leaves_the_holder_s_files_alone(store: Store) -> None:
    with store.lock(SLAB):
        temporary = store.root / "_tmp" / f"coin-1500-MINUTE-BTC-{SLAB.number}" / LEFT
        temporary.parent.mkdir(parents=True)
        temporary.write_bytes(b"half a day, about to be renamed")
        with pytest.raises(LockedError), store.lock(SLAB):
            pytest.fail("the lock was given twice")
        assert temporary.exists()


def test_leftovers_of_a_killed_process_go_under_the_lock(store: Store) -> None:
    leftovers = [store.root / "_tmp" / f"coin-1500-MINUTE-{name}-{SLAB.number}" / LEFT for name in ("BTC", "ETH")]
    for path in leftovers:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    with store.lock(SLAB):
        assert [path.exists() for path in leftovers] == [False, True]


def test_leftovers_of_the_killed_are_swept_and_those_of_the_living_are_not(store: Store) -> None:
    def leave(coin: str) -> Path:
        path = store.root / "_tmp" / f"coin-1500-MINUTE-{coin}-{SLAB.number}" / LEFT
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
        return path

    dead = leave("ETH")
    with another_process_holding(store.root) as process:
        alive = leave("BTC")
        store.sweep()
        assert (alive.exists(), dead.exists()) == (True, False)
        process.kill()
        process.wait()
    store.sweep()
    assert not alive.exists()
    assert not list((store.root / "_tmp").iterdir())


def test_what_a_killed_process_had_not_synced_is_synced(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was renamed, but whose folder was not synced, looks as if it would last."""
    synced: list[bool] = []
    monkeypatch.setattr(os, "sync", lambda: synced.append(True))
    with store.lock(SLAB):
        store.write_day(make_day(60), SLAB)
    assert not synced
    (store.root / "_tmp" / f"coin-1500-MINUTE-BTC-{SLAB.number}").mkdir()
    with store.lock(SLAB):
        assert synced == [True]
    with store.lock(SLAB):
        assert synced == [True]


def test_a_root_that_is_not_there_needs_no_sweeping(store: Store) -> None:
    store.sweep()
    assert not store.root.exists()


# --- setting aside ------------------------------------------------------------------------------------------------


ASIDE = "_quarantine/unit=coin/depth=1500/interval=MINUTE/coin=BTC/2026-03-31.parquet.old"


def test_a_day_set_aside_is_what_it_was_whatever_replaces_it(store: Store) -> None:
    store.write_day(make_day(60), SLAB)
    before = (store.root / PLACE).read_bytes()
    with store.lock(SLAB):
        store.set_aside(SLAB, NUMBER)
        store.set_aside(SLAB, NUMBER)  # killed before it was replaced, and run again
        store.write_day(make_day(61), SLAB)
        after = (store.root / PLACE).read_bytes()
        store.set_aside(SLAB, NUMBER)
    kept = {path: data for path, data in read_tree(store.root).items() if path.startswith("_quarantine")}
    assert kept == {ASIDE: before, ASIDE.replace("31.", "31-2."): after}


def test_no_pattern_for_parquet_files_finds_what_was_set_aside(store: Store) -> None:
    """Else a glob over the root counts its rows twice."""
    store.write_day(make_day(60), SLAB)
    with store.lock(SLAB):
        store.set_aside(SLAB, NUMBER)
    assert [str(path.relative_to(store.root)) for path in store.root.rglob("*.parquet")] == [PLACE]


def test_a_huge_file_with_holes_is_set_aside_without_being_copied(store: Store) -> None:
    path = store.root / PLACE
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(3 << 30)
    with store.lock(SLAB):
        store.set_aside(SLAB, NUMBER)
    assert (store.root / ASIDE).samefile(path)


def test_where_there_are_no_links_a_copy_is_made_with_the_holes_that_the_file_has(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    with tempfile.TemporaryDirectory(dir=elsewhere) as folder:
        path = Path(folder) / "day"
        with path.open("wb") as file:
            file.write(b"PAR1")
            file.seek(100 << 20)
            file.write(b"PAR1")
            file.truncate(200 << 20)
        Disk().keep_aside(path, tmp_path / "copy", tmp_path / "temporary")
        assert same_bytes(tmp_path / "copy", path)
    assert (tmp_path / "copy").stat().st_blocks * 512 < 8 << 20
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


# --- quarantine ---------------------------------------------------------------------------------------------------


FIRST, SECOND = Span(TODAY, TODAY + HOUR), Span(TODAY + 2 * HOUR, TODAY + 3 * HOUR)
RECORDS = "_quarantine/unit=coin/depth=1500/interval=MINUTE/coin=BTC"


def test_a_record_goes_with_its_answer_when_its_span_is_covered(store: Store) -> None:
    store.quarantine(SLAB, FIRST, {"reason": "volume is nan"}, b"[nan]")
    store.quarantine(SLAB, SECOND, {"reason": "never came"})
    assert store.quarantined(BTC) == Spans.of([FIRST, SECOND])
    assert store.quarantined(Series("ETH")) == Spans()
    store.write_day(make_day(59), SLAB)
    store.release(BTC, SLAB.span)
    assert store.quarantined(BTC) == Spans.of([FIRST, SECOND])
    store.write_day(make_day(60), SLAB)
    store.release(BTC, SLAB.span)
    assert store.quarantined(BTC) == Spans.of([SECOND])
    store.write_day(make_day(1440), SLAB)
    store.release(BTC, SLAB.span, keep=[SECOND])
    store.release(BTC, Span(TODAY - DAY, TODAY))
    store.release(Series("ETH"), SLAB.span)
    assert store.quarantined(BTC) == Spans.of([SECOND])
    store.release(BTC, SLAB.span)
    assert [path for path in read_tree(store.root) if not path.startswith("_tmp")] == [PLACE]


def test_a_record_says_why_and_keeps_the_answer(store: Store) -> None:
    with store.lock(SLAB):
        store.quarantine(SLAB, FIRST, {"reason": "volume is nan", "request": "GET /"}, b"[nan]")
    tree = read_tree(store.root)
    assert tree[f"{RECORDS}/{TODAY}-{TODAY + HOUR}.body"] == b"[nan]"
    assert json.loads(tree[f"{RECORDS}/{TODAY}-{TODAY + HOUR}.json"]) == {
        "from": TODAY,
        "to": TODAY + HOUR,
        "reason": "volume is nan",
        "request": "GET /",
    }
    assert not [path for path in tree if path.startswith("_tmp")]


@pytest.mark.parametrize("name", ["0-60.txt", "60.json", "a-b.json", "-1-60.json", "2026-03-31.parquet", "0-60.json~"])
def test_what_is_no_record_explains_nothing(store: Store, name: str) -> None:
    store.quarantine(SLAB, FIRST, {"reason": "never came"})
    (store.root / RECORDS / name).write_bytes(b"notes of somebody")
    assert store.quarantined(BTC) == Spans.of([FIRST])
    store.write_day(make_day(1440), SLAB)
    store.release(BTC, SLAB.span)
    assert (store.root / RECORDS / name).exists()
    assert store.quarantined(BTC) == Spans()


def test_a_record_longer_than_a_slab_is_none_of_heatpipe_s(store: Store) -> None:
    """To look at each of its days would take for ever."""
    store.quarantine(SLAB, Span(0, 10**14), {"reason": "somebody's joke"})
    assert store.quarantined(BTC) == Spans()
    store.release(BTC, SLAB.span)


def test_what_is_no_file_in_a_day_s_place_is_named_and_not_waited_for(store: Store) -> None:
    (store.root / PLACE).parent.mkdir(parents=True)
    os.mkfifo(store.root / PLACE)
    with pytest.raises(UnreadableError, match="is no regular file"):
        store.footer(BTC, TODAY // DAY)


def test_an_answer_whose_record_was_never_written_goes_as_well(store: Store) -> None:
    """A process was killed between the two."""
    store.quarantine(SLAB, FIRST, {"reason": "volume is nan"}, b"[nan]")
    (store.root / RECORDS / f"{FIRST.start}-{FIRST.end}.json").unlink()
    assert store.quarantined(BTC) == Spans()
    store.write_day(make_day(1440), SLAB)
    store.release(BTC, SLAB.span)
    assert not list((store.root / RECORDS).iterdir())


def test_free_space_is_known_before_the_root_is(store: Store) -> None:
    assert store.free_bytes() > 0
    assert not store.root.exists()

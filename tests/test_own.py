"""What is not heatpipe's stays as it is: other people's files below the root, links, hard links, other disks."""

import os
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import pytest

from heatpipe.cli import app, run
from heatpipe.errors import DatasetError, LockedError
from heatpipe.ingest import backfill
from heatpipe.layout import day_path, series_path, slab_name
from heatpipe.model import Series, Span
from heatpipe.plan import Slab
from heatpipe.store import Store, encode_file
from tests.conftest import HOUR, TODAY, Clock, MakeSettings, MakeUpstream, honest, read_tree
from tests.test_store import BTC, LEFT, NUMBER, SLAB, make_day

NAME: Final = slab_name(SLAB)
PLACE: Final = day_path(BTC, NUMBER)
LOCK: Final = f"_locks/{NAME}.lock"
COIN: Final = series_path(BTC)
RECORD: Final = f"{TODAY}-{TODAY + HOUR}.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def store(root: Path) -> Store:
    return Store(str(root))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody else's, in which everything looks as if it were heatpipe's."""
    folder = tmp_path / "outside"
    for path in (f"{NAME}/{LEFT}", "notes/draft.txt", f"{NAME}.lock", COIN.relative_to("liquidations") / RECORD):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("mine")
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another disk."""
    disk = Path("/dev/shm")
    if not disk.is_dir() or disk.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    with tempfile.TemporaryDirectory(dir=disk) as folder:
        yield Path(folder)


def put(path: Path, text: str = "mine") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_something(store: Store) -> None:
    with store.lock(SLAB):
        store.write_day(make_day(), SLAB)
        store.quarantine(SLAB, Span(TODAY, TODAY + HOUR), {"reason": "never came"}, b"[]")
        store.set_aside(SLAB, NUMBER)


# --- below _tmp/ --------------------------------------------------------------------------------------------------

FOREIGN: Final = [
    "notes/draft.txt",
    f"{NAME}/draft.txt",
    f"{NAME}/folder/{LEFT}",
    f"{NAME}/date=2026-03-31-part-1.parquet",
    f"{NAME}/coin=ETH-0-60.json",
    f"{NAME}x/{LEFT}",
    f"{NAME}-/{LEFT}",
    f"0{NAME}/{LEFT}",
    f"coin-01500-MINUTE-BTC-{SLAB.number}/{LEFT}",
    f"coin-1500-MINUTE-BTC-0{SLAB.number}/{LEFT}",
    f"coin-1500-MINUTE-a b-{SLAB.number}/{LEFT}",
    f"coin-1500-SECOND-BTC-{SLAB.number}/{LEFT}",
    f"eur-1500-MINUTE-BTC-{SLAB.number}/{LEFT}",
    f"coin-0-MINUTE-BTC-{SLAB.number}/{LEFT}",
    f"coin-1500-MINUTE--{SLAB.number}/{LEFT}",
    "a-1-B-c-1/x",
    LEFT,
]


@pytest.mark.parametrize("path", FOREIGN)
def test_what_heatpipe_did_not_leave_below_tmp_is_not_swept(store: Store, path: str) -> None:
    put(store.root / "_tmp" / path)
    put(store.root / "_tmp" / f"coin-1500-MINUTE-ETH-{SLAB.number}" / LEFT)
    store.sweep()
    write_something(store)
    tree = read_tree(store.root / "_tmp")
    assert tree == {path: b"mine"}


@pytest.mark.parametrize(
    "name",
    [
        LEFT,
        f"coin=BTC-{RECORD}",
        f"coin=BTC-{RECORD.replace('json', 'body')}",
        "coin=BTC-2026-03-31.parquet.old",
        "coin=BTC-2026-03-31-2.parquet",  # of an older version
    ],
)
def test_what_a_killed_process_left_below_tmp_is_swept(store: Store, name: str) -> None:
    put(store.root / "_tmp" / NAME / name)
    store.sweep()
    assert list((store.root / "_tmp").iterdir()) == []


def test_a_leftover_beside_something_foreign_is_replaced(store: Store) -> None:
    put(store.root / "_tmp" / NAME / LEFT)
    put(store.root / "_tmp" / NAME / ".DS_Store")
    write_something(store)
    assert read_tree(store.root / "_tmp") == {f"{NAME}/.DS_Store": b"mine"}
    assert store.read_day(BTC, NUMBER) is not None


def test_a_link_below_tmp_is_not_followed_by_the_sweep(store: Store, outside: Path) -> None:
    before = read_tree(outside)
    (store.root / "_tmp").mkdir()
    (store.root / "_tmp" / NAME).symlink_to(outside / NAME)
    (store.root / "_tmp" / f"coin-1500-MINUTE-ETH-{SLAB.number}").mkdir()
    (store.root / "_tmp" / f"coin-1500-MINUTE-ETH-{SLAB.number}" / LEFT).symlink_to(outside / NAME / LEFT)
    store.sweep()
    assert read_tree(outside) == before
    assert (store.root / "_tmp" / f"coin-1500-MINUTE-ETH-{SLAB.number}" / LEFT).is_symlink()


def test_a_folder_of_a_project_that_is_called_like_heatpipe_s_is_left_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``--data .`` in a project with a ``_tmp/`` of its own, where there is nothing to fetch."""
    for path in ("_tmp/build/a.o", "_tmp/notes.txt", "_quarantine/virus.exe", "_locks/door"):
        put(root / path)
    before = read_tree(root)
    for name, value in {"KIYOTAKA_API_KEY": "k", "HEATPIPE_API_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(root)
    (root / PLACE).parent.mkdir(parents=True)
    (root / PLACE).write_bytes(encode_file(make_day(1440)))
    span = ("--start", "2026-03-31", "--end", "2026-04-01", "--coin", "BTC")
    monkeypatch.setenv("HEATPIPE_HISTORY_DAYS", "0")
    assert run(app, ["backfill", *span, "--data", "."]) == 0
    assert {path: data for path, data in read_tree(root).items() if path != str(PLACE)} == before


# --- links in the place of heatpipe's own ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        "_tmp",
        "_locks",
        "_quarantine",
        f"_tmp/{NAME}",
        *(f"_quarantine/{path}" for path in (COIN.relative_to("liquidations"), "unit=coin")),
    ],
)
def test_a_link_in_the_place_of_heatpipe_s_own_folder_is_refused_before_anything_is_paid_for(
    store: Store, outside: Path, place: str
) -> None:
    path = store.root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)
    before = read_tree(outside)
    store.sweep()
    with pytest.raises(DatasetError, match="symbolic link") as refused, store.lock(SLAB):
        pytest.fail("it was followed")
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    store.quarantined(BTC)
    store.release(BTC, SLAB.span)
    assert read_tree(outside) == before
    assert path.is_symlink()


def test_a_link_in_the_place_of_a_temporary_file_is_refused_before_anything_is_paid_for(
    store: Store, outside: Path
) -> None:
    path = store.root / "_tmp" / NAME / LEFT
    path.parent.mkdir(parents=True)
    path.symlink_to(outside / "notes/draft.txt")
    with pytest.raises(DatasetError, match="is in its place") as refused, store.lock(SLAB):
        pytest.fail("it was followed")
    assert str(path) in str(refused.value)
    assert (outside / "notes/draft.txt").read_text() == "mine"


def test_a_second_name_of_a_temporary_file_keeps_its_bytes(store: Store, outside: Path) -> None:
    (store.root / "_tmp" / NAME).mkdir(parents=True)
    (store.root / "_tmp" / NAME / LEFT).hardlink_to(outside / "notes/draft.txt")
    put(store.root / "_tmp" / NAME / "keeps the leftover from being swept")
    write_something(store)
    assert (outside / "notes/draft.txt").read_text() == "mine"


def test_a_link_in_the_place_of_a_record_is_no_record(store: Store, outside: Path) -> None:
    path = store.root / "_quarantine" / COIN.relative_to("liquidations") / RECORD
    path.parent.mkdir(parents=True)
    path.symlink_to(outside / "notes/draft.txt")
    store.write_day(make_day(1440), SLAB)
    store.release(BTC, SLAB.span)
    assert not store.quarantined(BTC)
    assert path.is_symlink()


# --- locks ----------------------------------------------------------------------------------------------------------


def as_link(path: Path, other: Path) -> None:
    path.symlink_to(other)


def as_dangling_link(path: Path, other: Path) -> None:
    path.symlink_to(other.with_name("new"))


def as_pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [as_link, as_dangling_link, as_pipe])
def test_what_is_no_plain_file_in_a_lock_s_place_is_refused_by_its_name(
    store: Store, outside: Path, make: Callable[[Path, Path], None]
) -> None:
    before = read_tree(outside)
    (store.root / "_locks").mkdir()
    make(store.root / LOCK, outside / "notes/draft.txt")
    with pytest.raises(DatasetError, match=LOCK), store.lock(SLAB):
        pytest.fail("it was taken for a lock")
    assert read_tree(outside) == before


@pytest.mark.parametrize("content", ["mine", "", "process 12 on a machine\n", "process 12 on a machine\nand more\n"])
def test_another_name_of_somebody_s_file_is_locked_and_not_written_to(
    store: Store, tmp_path: Path, content: str
) -> None:
    put(tmp_path / "theirs", content)
    (store.root / "_locks").mkdir()
    (store.root / LOCK).hardlink_to(tmp_path / "theirs")
    with store.lock(SLAB), pytest.raises(LockedError), store.lock(SLAB):
        pytest.fail("the lock was given twice")
    assert (tmp_path / "theirs").read_text() == content


def test_a_lock_s_file_that_holds_something_else_is_not_overwritten(store: Store) -> None:
    put(store.root / LOCK, "the key to my heart\n")
    with store.lock(SLAB), pytest.raises(LockedError, match="another process"), store.lock(SLAB):
        pytest.fail("the lock was given twice")
    assert (store.root / LOCK).read_text() == "the key to my heart\n"


def test_a_lock_s_file_names_the_last_holder_however_long_the_name_before_was(store: Store) -> None:
    put(store.root / LOCK, f"process 1 on {'a' * 200}\n")
    with store.lock(SLAB):
        assert (store.root / LOCK).read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"


def test_all_that_is_made_follows_the_umask(store: Store) -> None:
    before = os.umask(0o002)
    try:
        write_something(store)
    finally:
        os.umask(before)
    paths = list(store.root.rglob("*"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o664}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o775}


AS_USER: Final = """
    import os, sys
    from heatpipe.model import Series, Span
    from heatpipe.store import Store
    from tests.test_store import BTC, SLAB, NUMBER, make_day
    user, minutes = int(sys.argv[2]), int(sys.argv[3])
    os.setgroups([])
    os.setresgid(54321, 54321, 54321)
    os.setresuid(user, user, user)
    os.umask(int(sys.argv[4], 8))
    store = Store(sys.argv[1])
    store.sweep()
    with store.lock(SLAB):
        if minutes:
            if store.days(BTC):
                store.set_aside(SLAB, NUMBER)
            store.quarantine(SLAB, Span(0, 60), {"reason": "never came"}, b"[]")
            store.write_day(make_day(minutes), SLAB)
"""


def as_user(root: Path, user: int, minutes: int, umask: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(AS_USER), str(root), str(user), str(minutes), umask]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that two users of one group may write to."""
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, -1, 54321)
        Path(folder).chmod(0o2775)
        yield Path(folder)


def test_two_users_of_a_group_share_a_dataset(shared: Path) -> None:
    put(shared / "_tmp" / NAME / LEFT)  # of the first one, killed
    for path in (shared / "_tmp", shared / "_tmp" / NAME):
        os.chown(path, 51111, 54321)
        path.chmod(0o775)
    for user, minutes in ((52222, 60), (51111, 61), (52222, 62)):
        ended = as_user(shared, user, minutes, "002")
        assert (ended.returncode, ended.stderr) == (0, "")
    assert Store(str(shared)).coverage(BTC, NUMBER).covered.seconds == 62 * 60
    aside = {path.suffixes[-1] for path in (shared / "_quarantine").rglob("*") if path.is_file()}
    assert aside == {".old", ".json", ".body"}


def test_a_lock_that_may_only_be_read_is_locked_all_the_same(shared: Path) -> None:
    """As those are that older versions made."""
    put(shared / LOCK, "process 1 on a machine\n")
    (shared / LOCK).chmod(0o644)
    for folder in ("_locks", "_tmp", "_quarantine"):
        (shared / folder).mkdir(exist_ok=True)
        (shared / folder).chmod(0o2777)
    ended = as_user(shared, 51111, 0, "022")
    assert (ended.returncode, ended.stderr) == (0, "")
    with Store(str(shared)).lock(SLAB):
        (shared / LOCK).write_text("process 1 on a machine\n")
        ended = as_user(shared, 51111, 0, "022")
        assert "LockedError" in ended.stderr
        assert (shared / LOCK).read_text() == "process 1 on a machine\n"


# --- other disks ----------------------------------------------------------------------------------------------------


def test_the_table_may_be_a_link_to_another_disk(store: Store, elsewhere: Path) -> None:
    (elsewhere / "days").mkdir()
    (store.root / "liquidations").symlink_to(elsewhere / "days")
    left = elsewhere / "_tmp" / NAME / LEFT
    put(left)
    put(elsewhere / "_tmp" / "notes" / "draft.txt")
    store.sweep()
    assert not left.exists()
    write_something(store)
    assert store.read_day(BTC, NUMBER) is not None
    assert (store.root / "liquidations").is_symlink()
    assert (elsewhere / "days" / PLACE.relative_to("liquidations")).is_file()
    assert read_tree(elsewhere / "_tmp") == {"notes/draft.txt": b"mine"}
    assert read_tree(store.root / "_tmp") == {}
    data = (store.root / PLACE).read_bytes()
    assert data in read_tree(store.root / "_quarantine").values()
    assert store.free_bytes() == pytest.approx(Store(str(elsewhere)).free_bytes(), rel=0.01)


def test_two_roots_with_one_table_share_its_locks(tmp_path: Path, elsewhere: Path) -> None:
    (elsewhere / "days").mkdir()
    stores: list[Store] = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "liquidations").symlink_to(elsewhere / "days")
        stores.append(Store(str(tmp_path / name)))
    with stores[0].lock(SLAB):
        with pytest.raises(LockedError), stores[1].lock(SLAB):
            pytest.fail("the lock was given twice")
        with stores[1].lock(Slab(BTC, SLAB.number + 1)):
            """Other slabs are free."""


@pytest.mark.parametrize("place", ["_tmp", "_locks"])
def test_links_beside_the_table_s_target_are_refused_too(
    store: Store, outside: Path, elsewhere: Path, place: str
) -> None:
    (elsewhere / "days").mkdir()
    (store.root / "liquidations").symlink_to(elsewhere / "days")
    (elsewhere / place).symlink_to(outside)
    before = read_tree(outside)
    store.sweep()
    with pytest.raises(DatasetError, match="symbolic link") as refused, store.lock(SLAB):
        pytest.fail("it was followed")
    assert str(elsewhere / place) in str(refused.value)
    assert read_tree(outside) == before


@pytest.mark.parametrize("place", [COIN, COIN.parent.parent.parent, PLACE.parent])
def test_a_part_of_the_table_on_another_disk_is_refused_before_anything_is_paid_for(
    store: Store, elsewhere: Path, place: PurePosixPath
) -> None:
    """By a rename from one disk to another no file can be replaced in one step."""
    path = store.root / place
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    with pytest.raises(DatasetError, match="another file system") as refused, store.lock(SLAB):
        pytest.fail("what is fetched now cannot be stored")
    assert str(path) in str(refused.value)
    assert str(store.root / "_tmp") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_day_on_another_disk_keeps_only_its_own_slab_from_being_written(store: Store, elsewhere: Path) -> None:
    path = store.root / PLACE.parent
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    with store.lock(Slab(BTC, SLAB.number - 1)), store.lock(Slab(BTC, SLAB.number + 1)):
        """These are on the root's own disk."""


MOUNTED: Final = """
    import os, subprocess, sys
    from pathlib import Path, PurePosixPath
    from heatpipe.errors import DatasetError
    from heatpipe.store import Store
    from tests.test_store import SLAB
    root, place, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    (root / place).mkdir(parents=True)
    (root / "other").mkdir()
    how = ["-t", "tmpfs", "tmpfs"] if kind == "tmpfs" else ["--bind", str(root / "other")]
    subprocess.run(["mount", *how, str(root / place)], check=True)
    try:
        with Store(str(root)).lock(SLAB):
            print("locked")
    except DatasetError as exc:
        print(exc)
"""


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
@pytest.mark.parametrize("place", ["liquidations", str(COIN), "_tmp", "_quarantine", "_locks"])
def test_a_mount_point_within_the_dataset_is_refused_where_files_are_moved(root: Path, place: str, kind: str) -> None:
    """Bound to a folder of the same file system as well: the two look alike but for what a rename says."""
    namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-r", "-m"]
    if subprocess.run([*namespace, "mount", "-t", "tmpfs", "tmpfs", root], capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    command = [*namespace, sys.executable, "-c", textwrap.dedent(MOUNTED), str(root), place, kind]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    if place == "_locks":
        assert said == "locked"
    else:
        assert f"{root}/{place.partition('/')[0]}" in said
        assert f"{root}/_tmp" in said
        assert "another file system" in said
        assert "\n" not in said


def test_a_table_that_is_a_link_to_a_mount_point_itself_is_refused(store: Store) -> None:
    """Beside it is another disk: a folder below it must be named."""
    disk = Path("/dev/shm")
    if not disk.is_mount():
        pytest.skip("there is no second file system here")
    (store.root / "liquidations").symlink_to(disk)
    before = set(disk.iterdir())
    with pytest.raises(DatasetError, match=r"another file system|Read-only"), store.lock(SLAB):
        pytest.fail("what is fetched now cannot be stored")
    assert set(disk.iterdir()) == before


def test_a_coin_on_another_disk_is_told_before_another_one_is_paid_for(
    root: Path, elsewhere: Path, upstream: MakeUpstream, settings: MakeSettings
) -> None:
    server = upstream(honest)
    path = root / series_path(Series("ETH", depth=2))
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    coins = [Series("BTC", depth=2), Series("ETH", depth=2)]
    with pytest.raises(DatasetError, match="another file system"):
        backfill(coins, TODAY, TODAY + HOUR, settings=settings(server.url, root=str(root)), clock=Clock())
    assert server.asked == []

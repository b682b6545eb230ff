"""A power cut at any moment of a real run: what the disk may hold then is readable, and what was done stays done."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pytest

import heatpipe
from heatpipe import layout
from heatpipe.config import Settings
from heatpipe.errors import HeatpipeError
from heatpipe.redaction import Secret
from heatpipe.store import Store
from tests.conftest import read_tree
from tests.crash.launcher import Operation
from tests.crash.power import Disk, State, least, lose_power
from tests.crash.rig import SERIES, SPAN, Rig, Undisturbed, check_sound, check_version, files_below

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are named by /proc")

RESUMED = 8
DAMAGED = b"PAR1 was here"


@dataclass(frozen=True)
class Recorded:
    """A run, as its disk saw it.

    Parameters
    ----------
    root : PurePosixPath
        The dataset's.
    before : mapping
        What was there.
    operations : sequence of Operation
        What was done.
    """

    root: PurePosixPath
    before: State
    operations: Sequence[Operation]

    @property
    def table(self) -> PurePosixPath:
        return self.root / layout.TABLE


def state_of(folder: Path) -> State:
    paths = [folder, *folder.rglob("*")] if folder.exists() else []
    return {PurePosixPath(path): None if path.is_dir() else path.read_bytes() for path in paths}


def put(state: State, root: PurePosixPath, folder: Path) -> None:
    """Write a state down, below another folder."""
    for path, content in state.items():
        if path.is_relative_to(root):
            target = folder / path.relative_to(root)
            if content is None:
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)


def with_nothing_there(folder: Path) -> Path:
    return folder / "new" / "folders" / "data"


def with_part_of_a_day(folder: Path) -> Path:
    put(state_of(folder / "start"), PurePosixPath(folder / "start"), folder / "extended")
    return folder / "extended"


def with_a_damaged_day(folder: Path) -> Path:
    path = Store(str(folder / "damaged"))._path(SERIES[0], SPAN.start // 86_400 + 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(DAMAGED)
    return folder / "damaged"


@pytest.fixture(scope="module")
def record(stage: tuple[Rig, Undisturbed]) -> Callable[[Callable[[Path], Path]], Recorded]:
    known: dict[Callable[[Path], Path], Recorded] = {}

    def run(prepare: Callable[[Path], Path]) -> Recorded:
        if prepare not in known:
            root = prepare(stage[0].folder)
            before = state_of(root)
            known[prepare] = Recorded(PurePosixPath(root), before, stage[0].record(root).operations)
        return known[prepare]

    return run


Record = Callable[[Callable[[Path], Path]], Recorded]


def problems_of(recorded: Recorded, tree: dict[str, bytes], folder: Path) -> list[str]:
    """Say what a power cut could do to a run: something unreadable, a day less than before, a day lost at the end."""
    wrong: dict[tuple[str, bytes], str | None] = {}
    found: set[str] = set()
    for number, state in lose_power(recorded.before, recorded.operations):
        for path, content in state.items():
            if content is not None and path.is_relative_to(recorded.table):
                name = str(path.relative_to(recorded.root))
                if (name, content) not in wrong:
                    wrong[name, content] = _unsound(name, content, recorded, folder / str(len(wrong)))
                if problem := wrong[name, content]:
                    found.add(f"{name} after {number} operations: {problem}")
        gone = [path for path, content in recorded.before.items() if content is not None and path not in state]
        found |= {f"{path} is gone after {number} operations" for path in gone if path.is_relative_to(recorded.table)}
    end = least(recorded.before, recorded.operations)
    left = {str(path.relative_to(recorded.table)): end[path] for path in end if path.is_relative_to(recorded.table)}
    found |= {f"{path} is lost at the end" for path in tree if left.get(path) != tree[path]}
    return sorted(found)


def _unsound(name: str, content: bytes, recorded: Recorded, root: Path) -> str | None:
    if content == DAMAGED:
        return None
    before = recorded.before.get(recorded.root / name)
    try:
        put({PurePosixPath(name): content}, PurePosixPath(), root)
        check_sound(root)
        covered = check_version(root / name).covered
        if before not in (None, DAMAGED):
            (root / name).write_bytes(before)
            assert not check_version(root / name).covered - covered, "covers less than before"
    except (AssertionError, HeatpipeError, OSError) as exc:
        return repr(exc)
    return None


@pytest.mark.parametrize("prepare", [with_nothing_there, with_part_of_a_day, with_a_damaged_day])
def test_no_power_cut_makes_a_day_unreadable_or_loses_one(
    record: Record, stage: tuple[Rig, Undisturbed], tmp_path: Path, prepare: Callable[[Path], Path]
) -> None:
    assert problems_of(record(prepare), stage[1].tree, tmp_path) == []


def test_a_damaged_day_is_somewhere_whenever_the_power_goes(record: Record) -> None:
    recorded = record(with_a_damaged_day)
    assert all(DAMAGED in state.values() for _, state in lose_power(recorded.before, recorded.operations))


@pytest.mark.parametrize("prepare", [with_nothing_there, with_part_of_a_day])
def test_the_same_command_completes_whatever_is_left(
    record: Record, stage: tuple[Rig, Undisturbed], tmp_path: Path, prepare: Callable[[Path], Path]
) -> None:
    rig, undisturbed = stage
    recorded = record(prepare)
    states = [state for _, state in lose_power(recorded.before, recorded.operations)]
    assert len(states) > 100
    for number, state in enumerate(random.Random(7).sample(states, RESUMED)):
        root = tmp_path / str(number)
        put(state, recorded.root, root)
        report = heatpipe.backfill(
            list(SERIES),
            *SPAN,
            settings=Settings(
                api_key=Secret("sandbox-key"),
                url=rig.url,
                root=str(root),
                weight_per_minute=10**9,
                burst=10**9,
                history_days=0,
            ),
        )
        assert report.failures == ()
        assert read_tree(root / layout.TABLE) == undisturbed.tree
        assert files_below(root / "_tmp") == []


# --- the model itself: what a writer may get wrong is told -------------------------------------------------------

Tamper = Callable[[Recorded], list[Operation]]


def no_file_synced(recorded: Recorded) -> list[Operation]:
    return [one for one in recorded.operations if not (one.kind == "fsync" and "_tmp" in one.path)]


def no_folder_of_a_day_synced(recorded: Recorded) -> list[Operation]:
    return [one for one in recorded.operations if not (one.kind == "fsync" and "/date=" in one.path)]


def no_parent_synced(folder: str) -> Tamper:
    def without(recorded: Recorded) -> list[Operation]:
        parent = str(next(PurePosixPath(one.path).parent for one in recorded.operations if one.path.endswith(folder)))
        return [one for one in recorded.operations if not (one.kind == "fsync" and one.path == parent)]

    without.__name__ = f"no_parent_of_{PurePosixPath(folder).name}_synced"
    return without


def written_in_place(recorded: Recorded) -> list[Operation]:
    places = {one.source: one.path for one in recorded.operations if one.kind == "rename"}
    return [replace(one, path=places.get(one.path, one.path)) for one in recorded.operations if one.kind != "rename"]


def removed_first(recorded: Recorded) -> list[Operation]:
    pairs = [
        [Operation("remove", one.path), Operation("fsync", str(PurePosixPath(one.path).parent)), one]
        if one.kind == "rename"
        else [one]
        for one in recorded.operations
    ]
    return [one for pair in pairs for one in pair]


@pytest.mark.parametrize(
    ("prepare", "tamper", "told"),
    [
        (with_nothing_there, no_file_synced, "Parquet"),
        (with_part_of_a_day, no_file_synced, "Parquet"),
        (with_nothing_there, no_folder_of_a_day_synced, "is lost at the end"),
        (with_nothing_there, no_parent_synced("/new/folders"), "is lost at the end"),
        (with_nothing_there, no_parent_synced("/data"), "is lost at the end"),
        (with_nothing_there, no_parent_synced("/liquidations"), "is lost at the end"),
        (with_part_of_a_day, no_parent_synced("/date=2026-06-03"), "is lost at the end"),
        (with_nothing_there, written_in_place, "Parquet"),
        (with_part_of_a_day, removed_first, "is gone after"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_step_left_out_of_a_run_is_told(
    record: Record,
    stage: tuple[Rig, Undisturbed],
    tmp_path: Path,
    prepare: Callable[[Path], Path],
    tamper: Tamper,
    told: str,
) -> None:
    recorded = record(prepare)
    tampered = tamper(recorded)
    assert tampered != list(recorded.operations)
    problems = problems_of(replace(recorded, operations=tampered), stage[1].tree, tmp_path)
    assert any(told in problem for problem in problems), problems


def contents(disk: Disk, path: str) -> set[bytes | None]:
    return {state.get(PurePosixPath(path)) for state in disk.states(random.Random(0))}


def test_a_file_may_be_empty_or_cut_short_until_it_is_synced() -> None:
    disk = Disk({PurePosixPath("/d"): None})
    disk.do(Operation("create", "/d/a"))
    disk.do(Operation("fsync", "/d"))
    disk.do(Operation("write", "/d/a", content=b"1234"))
    assert contents(disk, "/d/a") == {b"", b"12", b"\0\0\0\0", b"1234"}
    disk.do(Operation("fsync", "/d/a"))
    assert contents(disk, "/d/a") == {b"1234"}


def test_a_name_may_be_the_old_or_the_new_until_its_folder_is_synced() -> None:
    disk = Disk({PurePosixPath("/d"): None, PurePosixPath("/d/a"): b"old", PurePosixPath("/t"): b"new"})
    disk.do(Operation("rename", "/d/a", "/t"))
    assert contents(disk, "/d/a") == {b"old", b"new"}
    disk.do(Operation("fsync", "/d/a"))
    assert contents(disk, "/d/a") == {b"old", b"new"}
    disk.do(Operation("fsync", "/d"))
    assert contents(disk, "/d/a") == {b"new"}


def test_what_is_in_a_folder_is_lost_with_the_folder_s_name() -> None:
    disk = Disk({PurePosixPath("/d"): None})
    disk.do(Operation("mkdir", "/d/e"))
    disk.do(Operation("create", "/d/e/a"))
    disk.do(Operation("fsync", "/d/e/a"))
    disk.do(Operation("fsync", "/d/e"))
    assert contents(disk, "/d/e/a") == {None, b""}
    disk.do(Operation("fsync", "/d"))
    assert contents(disk, "/d/e/a") == {b""}

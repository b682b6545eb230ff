"""Full, read-only and obstructed disks: the command line in a process of its own, on real small file systems.

The small disk is a tmpfs in a mount namespace of its own, which ends with the test, whatever happens. Where neither
root nor an unprivileged user may have one, those tests are skipped; limits and obstacles need nothing.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from heatpipe import disk as disks
from heatpipe.cli import app, run
from heatpipe.config import Settings
from heatpipe.ingest import backfill
from heatpipe.layout import TABLE, day_path, series_path, slab_name
from heatpipe.model import Series, Span, Spans, days_of, show_time
from heatpipe.plan import plan_slabs
from heatpipe.redaction import Secret
from heatpipe.store import Store
from tests.conftest import (
    DAY,
    HOUR,
    MINUTE,
    TODAY,
    Answer,
    Asked,
    Clock,
    MakeSettings,
    MakeUpstream,
    Sandbox,
    document,
    honest,
    http,
    plain_levels,
    read_tree,
)

SERIES: Final = Series("BTC", depth=1)
"""A day of it takes 12 kB, six times what a plan estimates from its rows: plans pass that will not fit."""
END: Final = TODAY - DAY
START: Final = END - 12 * DAY
ROOM: Final = "size=80k"
"""For half of these days."""
DEEP: Final = Series("BTC", depth=40)
"""A day of it takes 118 kB, and a plan estimates 68 kB."""
TWO: Final = Series("BTC", depth=2)
HOURLY: Final = Series("BTC", "HOUR", depth=20)
NO_ROOM: Final = "No space left on device"

Run = subprocess.CompletedProcess[str]
Heatpipe = Callable[..., Run]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def environment(request: pytest.FixtureRequest) -> Callable[[Path, str | None], dict[str, str]]:
    """Say what a command line is told about a root and an upstream, the shared sandbox by default."""
    return lambda root, url: {
        "KIYOTAKA_API_KEY": "sandbox-key",
        "HEATPIPE_API_URL": url or request.getfixturevalue("today_s_sandbox").url,
        "HEATPIPE_WEIGHT_PER_MINUTE": "1000000000",
        "HEATPIPE_BURST": "1000000000",
        "HEATPIPE_HISTORY_DAYS": "0",
        "HEATPIPE_DATA": str(root),
    }


@pytest.fixture
def heatpipe(environment: Callable[[Path, str | None], dict[str, str]], tmp_path: Path) -> Heatpipe:
    """Run the command line in a process of its own; `limit` bounds the size of its files."""

    def call(*arguments: str, root: Path, url: str | None = None, limit: int | None = None) -> Run:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEATPIPE_", "KIYOTAKA_"))}
        program = ["-m", "heatpipe"] if limit is None else ["-c", LIMITED, str(limit)]
        command = [sys.executable, *program, *arguments]
        env = kept | environment(root, url)
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    return call


@pytest.fixture
def heatpipe_here(
    environment: Callable[[Path, str | None], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Heatpipe:
    """Run the command line in this process, for tables with many rows: all of it but the process's own end."""

    def call(*arguments: str, root: Path, url: str | None = None) -> Run:
        for name, value in environment(root, url).items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        code = run(app, list(arguments))
        return Run(arguments, code, *capfd.readouterr())

    return call


LIMITED: Final = """
import resource, runpy, sys
size = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
runpy.run_module("heatpipe", run_name="__main__", alter_sys=True)
"""


def asked_for(series: Series, start: int, end: int) -> list[str]:
    """The flags that name a series and a span."""
    named = {"coin": series.coin, "interval": series.interval, "unit": series.unit, "depth": str(series.depth)}
    named |= {"start": show_time(start), "end": show_time(end)}
    return [part for name, value in named.items() for part in (f"--{name}", value)]


def days_on_disk(root: Path) -> dict[str, bytes]:
    return read_tree(root / TABLE)


def check_failure(ended: Run, *said: str) -> None:
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout in ("", "Nothing was fetched.\n")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert all(part in ended.stderr for part in said), ended.stderr


def check_sound(root: Path) -> None:
    """Every day there is is whole; below liquidations/ and _tmp/ there is nothing else."""
    store = Store(str(root))
    days = {str(day_path(series, day)): (series, day) for series in store.all_series() for day in store.days(series)}
    assert {f"{TABLE}/{path}" for path in days_on_disk(root)} == set(days)
    assert all(store.read_day(*day) is not None for day in days.values())


def check_no_leftovers(root: Path) -> None:
    assert read_tree(root / "_tmp") == {}
    assert read_tree(root / "_quarantine") == {}


# --- a small disk -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disk:
    """A file system of its own, that can be made larger or read-only at any time.

    Parameters
    ----------
    shell : Popen
        Lives in the mount namespace, and keeps it alive.
    mounted_at : Path
        Where it is mounted there.
    """

    shell: subprocess.Popen[str]
    mounted_at: Path

    @property
    def path(self) -> Path:
        """Where it is found from outside of the namespace."""
        return Path(f"/proc/{self.shell.pid}/root{self.mounted_at}")

    def remount(self, options: str) -> None:
        # With the source named, mount takes no old options along: some of them no unprivileged user may give.
        assert self.do(f"mount -o remount,{options} tmpfs '{self.mounted_at}'") == ""

    def do(self, command: str) -> str:
        """Run a command in the namespace; return what it says, which is nothing where it succeeds."""
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        self.shell.stdin.write(f"{command} 2>&1 || echo failed; echo done\n")
        self.shell.stdin.flush()
        return "".join(iter(self.shell.stdout.readline, "done\n"))

    def fill(self, leave_bytes: int) -> Path:
        """Let a file of somebody else's take the room, but for so much; return it."""
        ballast = self.path / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(self.path).free - leave_bytes))
        return ballast


MakeDisk = Callable[[str], Disk]


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[MakeDisk]:
    """Mount a tmpfs with the options given, in a namespace that ends with the test."""
    shells: list[subprocess.Popen[str]] = []

    def mount(options: str) -> Disk:
        namespace = ["-m"] if os.geteuid() == 0 else ["-r", "-m"]
        command = ["unshare", *namespace, "sh", "-c", "echo ready; exec sh"]
        if shutil.which("unshare") is None:
            pytest.skip("there is no unshare here, so no file system of a test's own")
        shell = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        shells.append(shell)
        assert shell.stdout is not None
        refused = shell.stdout.readline().strip()
        if refused != "ready":
            pytest.skip(f"no mount namespace is to be had here: {refused}")
        disk = Disk(shell, tmp_path / "disk")
        disk.mounted_at.mkdir()
        if said := disk.do(f"mount -t tmpfs -o {options} tmpfs '{disk.mounted_at}'"):
            pytest.skip(f"no file system may be mounted here: {said.splitlines()[0]}")
        return disk

    yield mount
    for shell in shells:
        shell.communicate(timeout=10)


Fill = Callable[..., Path]


@pytest.fixture
def fill(settings: MakeSettings) -> Fill:
    """Backfill in this process, which meets no obstacle."""

    def call(root: Path, series: Series, start: int, end: int, *, url: str | None = None) -> Path:
        report = backfill(series, start, end, settings=settings(url, root=str(root)), clock=Clock())
        assert report.failures == ()
        return root

    return call


@pytest.fixture(scope="module")
def clean(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the twelve days are where nothing is in the way."""
    root = tmp_path_factory.mktemp("clean")
    settings = Settings(api_key=Secret("sandbox-key"), url=sandbox.url, burst=10**9, root=str(root))
    backfill(SERIES, START, END, settings=settings, clock=Clock())
    return days_on_disk(root)


@pytest.mark.parametrize(
    ("little", "enough"), [(ROOM, "size=1m"), ("nr_inodes=22", "nr_inodes=1000")], ids=["bytes", "inodes"]
)
def test_a_disk_that_fills_in_mid_run_keeps_what_fits_and_the_same_command_brings_the_rest(
    make_disk: MakeDisk,
    heatpipe: Heatpipe,
    fill: Fill,
    today_s_sandbox: Sandbox,
    clean: dict[str, bytes],
    little: str,
    enough: str,
) -> None:
    disk = make_disk(little)
    root = fill(disk.path / "data", SERIES, START, START + 36 * HOUR)
    command = ["backfill", *asked_for(SERIES, START, END)]
    with today_s_sandbox.listening() as heard:
        check_failure(heatpipe(*command, root=root), f"cannot write {root}/", NO_ROOM)
    check_sound(root)
    check_no_leftovers(root)
    kept = days_on_disk(root)
    assert 2 < len(kept) < 10
    assert len(heard) < 14, "it went on paying for what it could not keep: 16 windows are missing in all"
    assert kept[min(clean)] == clean[min(clean)]

    disk.remount(enough)
    assert heatpipe(*command, root=root).returncode == 0
    assert days_on_disk(root) == clean
    check_no_leftovers(root)


def test_a_day_that_cannot_grow_stays_as_it_was_and_one_that_fits_is_written(
    make_disk: MakeDisk, heatpipe: Heatpipe, fill: Fill, tmp_path: Path
) -> None:
    start, end = TODAY - DAY, TODAY + HOUR
    clean = days_on_disk(fill(tmp_path / "clean", DEEP, start, end))
    first, second = sorted(clean)
    disk = make_disk("size=1m")
    root = fill(disk.path / "data", DEEP, start, TODAY - 6 * HOUR)
    before = days_on_disk(root)
    ballast = disk.fill(leave_bytes=len(clean[first]) * 8 // 10)
    command = ["backfill", *asked_for(DEEP, start, end)]
    check_failure(heatpipe(*command, root=root), f"cannot write {root}/{TABLE}/{first}", NO_ROOM)
    assert days_on_disk(root) == before | {second: clean[second]}
    check_no_leftovers(root)

    ballast.unlink()
    assert heatpipe(*command, root=root).returncode == 0
    assert days_on_disk(root) == clean
    check_no_leftovers(root)


def test_a_limit_on_the_size_of_files_stops_the_day_that_is_over_it_and_no_other(
    heatpipe: Heatpipe, fill: Fill, root: Path, tmp_path: Path
) -> None:
    """What a quota does; needs no mount."""
    start = TODAY - 2 * DAY
    clean = days_on_disk(fill(tmp_path / "clean", DEEP, start, TODAY))
    fill(root, DEEP, start, start + 18 * HOUR)
    before = days_on_disk(root)
    command = ["backfill", *asked_for(DEEP, start, TODAY - 18 * HOUR)]
    limit = max(len(data) for data in before.values()) + 4096
    check_failure(heatpipe(*command, root=root, limit=limit), f"cannot write {root}/", "File too large")
    check_sound(root)
    check_no_leftovers(root)
    after = days_on_disk(root)
    assert {path: after[path] for path in before} == before
    assert len(after) == 2, "the day that fits is kept, though another one does not"

    assert heatpipe("backfill", *asked_for(DEEP, start, TODAY), root=root).returncode == 0
    assert days_on_disk(root) == clean
    check_no_leftovers(root)


def test_a_disk_that_fills_while_an_answer_goes_to_the_quarantine(
    make_disk: MakeDisk, heatpipe: Heatpipe, fill: Fill, upstream: MakeUpstream, tmp_path: Path
) -> None:
    """Of three windows the last is answered for another coin, at a length that the disk has no room for."""
    start, end = TODAY - 2 * DAY, TODAY
    sane = threading.Event()

    def script(asked: Asked) -> Answer:
        if sane.is_set() or asked.span.end < end:
            return honest(asked)
        return http(body=document(asked, {asked.span.start: plain_levels(0)}, coin="ETH") + b" " * 200_000)

    url = upstream(script).url
    disk = make_disk("size=160k")
    root = disk.path / "data"
    command = ["backfill", *asked_for(TWO, start, end)]
    check_failure(heatpipe(*command, root=root, url=url), f"cannot write {root}/_quarantine/", NO_ROOM)
    check_sound(root)
    assert Store(str(root)).covered(TWO, days_of(Span(start, end))) == Spans.of([(start, start + 2000 * MINUTE)])
    assert read_tree(root / "_tmp") == {}

    disk.remount("size=1m")
    sane.set()
    assert heatpipe(*command, root=root, url=url).returncode == 0
    assert days_on_disk(root) == days_on_disk(fill(tmp_path / "clean", TWO, start, end, url=url))
    check_no_leftovers(root)


# --- a disk that may only be read ---------------------------------------------------------------------------------


def read_only_by_mount(request: pytest.FixtureRequest) -> tuple[Path, Callable[[bool], None]]:
    disk: Disk = request.getfixturevalue("make_disk")("size=1m")
    return disk.path / "data", lambda read_only: disk.remount("ro" if read_only else "rw")


def read_only_by_mode(request: pytest.FixtureRequest) -> tuple[Path, Callable[[bool], None]]:
    if os.geteuid() == 0:
        pytest.skip("root may write to a folder whatever its mode")
    root: Path = request.getfixturevalue("root")

    def switch(read_only: bool) -> None:
        for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
            folder.chmod(0o555 if read_only else 0o755)

    return root, switch


@pytest.mark.parametrize(
    ("make", "reason"), [(read_only_by_mount, "Read-only file system"), (read_only_by_mode, "Permission denied")]
)
def test_a_root_that_may_only_be_read_is_read(
    request: pytest.FixtureRequest,
    heatpipe: Heatpipe,
    fill: Fill,
    tmp_path: Path,
    make: Callable[[pytest.FixtureRequest], tuple[Path, Callable[[bool], None]]],
    reason: str,
) -> None:
    root, switch = make(request)
    start, end = TODAY - 9 * DAY, TODAY - DAY
    fill(root, HOURLY, start, end - 12 * HOUR)
    before = days_on_disk(root)
    switch(True)

    command = ["backfill", *asked_for(HOURLY, start, end)]
    check_failure(heatpipe(*command, root=root), f"cannot write {root}/", reason)
    status = heatpipe("status", "--json", *asked_for(HOURLY, start, end - 12 * HOUR), root=root)
    assert json.loads(status.stdout)["series"][0]["missing"] == 0, status.stderr
    plan = heatpipe("plan", "--json", *asked_for(HOURLY, start, end), root=root)
    assert json.loads(plan.stdout)["missing"] == 12, plan.stderr
    picture = heatpipe("heatmap", "--coin", "BTC", "-o", str(tmp_path / "btc.png"), root=root)
    assert (picture.returncode, picture.stderr) == (0, "")
    verdict = heatpipe("verify", "--json", root=root)
    assert verdict.returncode == 0, verdict.stderr
    document = json.loads(verdict.stdout)
    assert (document["files"], document["problems"]) == (8, [])
    assert heatpipe("backfill", *asked_for(HOURLY, start, end - 12 * HOUR), root=root).returncode == 0, "nothing to do"
    assert days_on_disk(root) == before

    switch(False)
    assert heatpipe(*command, root=root).returncode == 0
    assert days_on_disk(root) == days_on_disk(fill(tmp_path / "clean", HOURLY, start, end))
    check_no_leftovers(root)


# --- things that are in the way -----------------------------------------------------------------------------------


def put_file(path: Path) -> None:
    path.write_bytes(b"mine")


def put_folder(path: Path) -> None:
    path.mkdir()
    put_file(path / "inside")


def put_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def put_loop(path: Path) -> None:
    path.symlink_to(path.name)


NOT_A_FOLDER: Final = "it is not a folder"
SLAB_NAME: Final = slab_name(plan_slabs(HOURLY, Span(START, END))[0])
DATE: Final = day_path(HOURLY, START // DAY).parent
OBSTACLES: Final = [
    pytest.param("", put_file, NOT_A_FOLDER, id="root-is-a-file"),
    pytest.param("", put_dangling_link, "a link leads nowhere", id="root-is-a-dangling-link"),
    pytest.param("", put_loop, "levels of symbolic links", id="root-is-a-link-to-itself"),
    pytest.param("_locks", put_file, NOT_A_FOLDER, id="locks-is-a-file"),
    pytest.param("_locks", put_dangling_link, NOT_A_FOLDER, id="locks-is-a-dangling-link"),
    pytest.param(f"_locks/{SLAB_NAME}.lock", put_folder, "s a directory", id="lock-is-a-folder"),
    pytest.param("_tmp", put_file, NOT_A_FOLDER, id="tmp-is-a-file"),
    pytest.param(f"_tmp/{SLAB_NAME}", put_file, NOT_A_FOLDER, id="own-part-of-tmp-is-a-file"),
    *(
        pytest.param(str(folder), put_file, NOT_A_FOLDER, id=f"{folder.name}-is-a-file")
        for folder in [DATE, *DATE.parents[:-1]]
    ),
    pytest.param(str(DATE), put_dangling_link, "a link leads nowhere", id="date-is-a-dangling-link"),
    pytest.param(f"{DATE}/part-0.parquet", put_folder, "s a ", id="day-is-a-folder"),
    pytest.param(f"{DATE}/part-0.parquet", Path.mkdir, "s a ", id="day-is-an-empty-folder"),
    pytest.param("_quarantine", put_file, NOT_A_FOLDER, id="quarantine-is-a-file"),
    pytest.param("_quarantine", put_dangling_link, NOT_A_FOLDER, id="quarantine-is-a-dangling-link"),
]


@pytest.mark.parametrize(("place", "put", "reason"), OBSTACLES)
def test_what_is_in_the_way_is_named_and_left_alone(
    heatpipe_here: Heatpipe,
    fill: Fill,
    root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    place: str,
    put: Callable[[Path], None],
    reason: str,
) -> None:
    path = root / place
    if not path.exists() and path != root:  # something of another series is there before, where that is possible
        fill(root, Series("ETH", "DAY", "usd", depth=3), START, END)
    moved = tmp_path / "moved away"
    if path.exists():
        path.rename(moved)
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path)
    before = read_tree(tmp_path)
    command = ["backfill", *asked_for(HOURLY, START, START + 2 * DAY)]
    ended = heatpipe_here(*command, root=root)
    check_failure(ended, str(path), reason)
    assert caplog.messages == []
    after = read_tree(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert not path.is_symlink() or not path.exists()

    path.rename(tmp_path / "out of the way")
    if moved.exists():
        moved.rename(path)
    assert heatpipe_here(*command, root=root).returncode == 0
    check_no_leftovers(root)
    check_sound(root)
    clean = days_on_disk(fill(tmp_path / "clean", HOURLY, START, START + 2 * DAY))
    assert {name: days_on_disk(root)[name] for name in clean} == clean


def test_a_root_far_below_what_there_is_is_made(heatpipe_here: Heatpipe, tmp_path: Path) -> None:
    root = tmp_path / "not" / "there" / "yet"
    ended = heatpipe_here("backfill", *asked_for(HOURLY, START, START + DAY), root=root)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(days_on_disk(root)) == 1


def test_a_folder_that_another_program_makes_and_removes_at_the_same_moment_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, left = os.mkdir, iter(range(2))

    def make(path: Path, mode: int = 0o777) -> None:
        if next(left, None) is not None:  # there when it is made, gone when it is looked at
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        really(path, mode)

    monkeypatch.setattr(os, "mkdir", make)
    disks.Disk().make_folders(tmp_path / "one" / "two")
    assert (tmp_path / "one" / "two").is_dir()


def test_a_folder_in_the_place_of_a_record_is_named_when_it_is_needed(
    heatpipe_here: Heatpipe, fill: Fill, upstream: MakeUpstream, root: Path, tmp_path: Path
) -> None:
    sane = threading.Event()
    start, end = TODAY - 2 * DAY, TODAY

    def script(asked: Asked) -> Answer:
        identity = {} if sane.is_set() or asked.span.end < end else {"coin": "ETH"}
        return http(body=document(asked, {start: plain_levels(start) for start in asked.starts}, **identity))

    url = upstream(script).url
    aside = root / "_quarantine" / series_path(TWO).relative_to(TABLE) / f"{start + 2000 * MINUTE}-{end}.json"
    aside.parent.mkdir(parents=True)
    put_folder(aside)
    command = ["backfill", *asked_for(TWO, start, end)]
    check_failure(heatpipe_here(*command, root=root, url=url), f"cannot write {aside}", "s a directory")
    assert Store(str(root)).covered(TWO, days_of(Span(start, end))) == Spans.of([(start, start + 2000 * MINUTE)])
    assert (aside / "inside").read_bytes() == b"mine"

    sane.set()
    assert heatpipe_here(*command, root=root, url=url).returncode == 0
    assert days_on_disk(root) == days_on_disk(fill(tmp_path / "clean", TWO, start, end, url=url))

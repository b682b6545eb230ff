"""The command line in processes that die where they are told to, or write down what they do to the disk.

``python -m tests.crash.launcher`` reads a `Job` a line on stdin and answers with its exit code, a signal's negated.
Modules are imported once and each run is a fork, so that it takes no longer than its work.
"""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

WRITERS: Final = ("heatpipe.store", "heatpipe.disk", "heatpipe.slab", "heatpipe.layout", "heatpipe.ingest", "shutil")
"""Modules whose lines are counted: on their way to the disk, and back from a fault."""
LIMIT_S: Final = 60
"""A run that takes longer is killed, which no test takes for the death that it ordered."""
PROJECT: Final = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Order:
    """Where a run is to die; without any of it, it lives.

    Parameters
    ----------
    line : int
        At so many lines executed in the modules that write.
    before, after : str
        At the first operation that matches, such as ``rename */date=2026-06-02/*``.
    size_bytes : int, optional
        In the middle of a write, at the byte that makes a file larger than this.
    signal : int
        What it dies of.
    again_s : float
        The signal comes once more so much later.
    """

    line: int = 0
    before: str = ""
    after: str = ""
    size_bytes: int | None = None
    signal: int = signal.SIGKILL
    again_s: float = 0.0

    @property
    def expected(self) -> int:
        """The exit code of who dies of it."""
        if self.size_bytes is not None:
            return -signal.SIGXFSZ
        return 130 if self.signal in (signal.SIGINT, signal.SIGTERM) else -self.signal

    def __str__(self) -> str:
        chosen = {name: value for name, value in asdict(self).items() if value != getattr(Order(), name)}
        return " ".join(f"{name}={value}" for name, value in chosen.items()) or "none"


@dataclass(frozen=True, slots=True)
class Job:
    """One run: what is typed, where, and where it dies."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    root: str
    order: Order
    output: str
    log: str = ""
    """where operations and the number of lines are written down"""


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that a run did to the disk, in order.

    Parameters
    ----------
    kind : str
        mkdir, create, truncate, write, fsync, link, rename, remove, rmdir or flock. A write is seen when its bytes are
        wanted: before the file is synced or renamed.
    path : str
        What it was done to; of a link or a rename, the new name.
    source : str
        The old name.
    content : bytes
        All of a file, after a write.
    """

    kind: str
    path: str
    source: str = ""
    content: bytes = b""

    def text(self, root: Path) -> str:
        """Return what an order's pattern is held against."""
        where = Path(self.path)
        return f"{self.kind} {where.relative_to(root) if where.is_relative_to(root) else where}"


@dataclass(slots=True)
class Record:
    """What a run has done."""

    lines: int = 0
    operations: list[Operation] = field(default_factory=list)


# --- in the process that dies -------------------------------------------------------------------------------------


class _Watch:
    """Sees each line and each operation of its own process; kills it at the one that was ordered."""

    def __init__(self, job: Job) -> None:
        self.record = Record()
        self._order = job.order
        # With the folders above the root that it is the first to make.
        self._root = Path(job.root)
        self._above = next(folder for folder in self._root.parents if folder.exists())
        self._files = {sys.modules[name].__file__ for name in WRITERS}
        self._contents: dict[str, bytes] = {}
        self._thread = threading.get_ident()
        self._busy = False
        self._met = False
        self._dies_at_next_line = False
        self._fsync = os.fsync

    def begin(self) -> None:
        sys.addaudithook(self._hear)
        os.fsync = self._synced
        sys.settrace(self._enter)

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        return self._step if frame.f_code.co_filename in self._files else None

    def _step(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            self.record.lines += 1
            if self._dies_at_next_line or self.record.lines == self._order.line:
                self._dies_at_next_line = False
                self._die()
        return self._step

    def _die(self) -> None:
        if self._order.again_s:
            signal.signal(signal.SIGALRM, signal.getsignal(self._order.signal))
            signal.setitimer(signal.ITIMER_REAL, self._order.again_s)
        os.kill(os.getpid(), self._order.signal)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take note of what the interpreter is about to ask of the system."""
        if self._busy or threading.get_ident() != self._thread or event not in _KINDS:
            return
        self._busy = True  # what is done in here is nobody's business
        try:
            for operation in _KINDS[event](*arguments):
                if Path(operation.path).is_relative_to(self._above):
                    self._see(operation)
        finally:
            self._busy = False

    def _see(self, operation: Operation) -> None:
        if operation.kind in ("fsync", "rename"):
            self._see_content(operation.source or operation.path)
        self.record.operations.append(operation)
        pattern = self._order.before or self._order.after
        if pattern and not self._met and fnmatch(operation.text(self._root), pattern):
            self._met = True
            self._dies_at_next_line = bool(self._order.after)
            if self._order.before:
                self._die()

    def _see_content(self, path: str) -> None:
        if Path(path).is_file():
            content = Path(path).read_bytes()
            if self._contents.get(path) != content:
                self._contents[path] = content
                self.record.operations.append(Operation("write", path, content=content))

    def _synced(self, fd: Any) -> None:
        descriptor = fd if isinstance(fd, int) else fd.fileno()
        self._hear("os.fsync", (descriptor,))
        self._fsync(descriptor)


def _opened(path: Any, _mode: Any, flags: int) -> list[Operation]:
    if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR):
        return []
    name = os.fsdecode(path)
    if not Path(name).exists():
        return [Operation("create", name)]
    return [Operation("truncate", name)] if flags & os.O_TRUNC else []


def _made(path: Any, _mode: int, folder: int) -> list[Operation]:
    name = _name(path, folder)
    return [] if Path(name).exists() or not Path(name).parent.is_dir() else [Operation("mkdir", name)]


def _renamed(source: Any, path: Any, from_folder: int, to_folder: int) -> list[Operation]:
    if os.fsdecode(path).endswith("/."):  # which the system refuses: only what it says is wanted
        return []
    return [Operation("rename", _name(path, to_folder), _name(source, from_folder))]


def _linked(source: Any, path: Any, from_folder: int, to_folder: int) -> list[Operation]:
    return [Operation("link", _name(path, to_folder), _name(source, from_folder))]


def _removed(path: Any, folder: int) -> list[Operation]:
    name = _name(path, folder)
    return [Operation("remove", name)] if Path(name).exists() else []


def _folder_removed(path: Any, folder: int) -> list[Operation]:
    name = _name(path, folder)
    empty = Path(name).is_dir() and not any(Path(name).iterdir())
    return [Operation("rmdir", name)] if empty else []


def _name(path: Any, folder: int) -> str:
    return str(Path("" if folder < 0 else _name_of(folder), os.fsdecode(path)))


def _name_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


_KINDS: Final[Mapping[str, Any]] = {
    "open": _opened,
    "os.mkdir": _made,
    "os.link": _linked,
    "os.rename": _renamed,
    "os.remove": _removed,
    "os.rmdir": _folder_removed,
    "os.fsync": lambda descriptor: [Operation("fsync", _name_of(descriptor))],
    "fcntl.flock": lambda descriptor, _: [Operation("flock", _name_of(descriptor))],
}


def _carry_out(job: Job) -> None:
    from heatpipe.cli import main

    output = os.open(job.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(job.environment)
    sys.argv = ["heatpipe", *job.arguments]
    if job.order.size_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (job.order.size_bytes, resource.RLIM_INFINITY))
    watch = _Watch(job)
    if job.log or job.order != Order():
        watch.begin()
    try:
        main()
    finally:
        sys.settrace(None)
        if job.log:
            watch._busy = True
            Path(job.log).write_bytes(pickle.dumps(watch.record))


def _fork(job: Job) -> int:
    """Do a job in a process of its own; return its exit code."""
    process = os.fork()
    if not process:
        code = 99
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            _carry_out(job)
        except SystemExit as exc:
            code = int(exc.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(code)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(process, signal.SIGKILL))
    signal.alarm(LIMIT_S)
    _, status = os.waitpid(process, 0)
    return 98 if not signal.alarm(0) else os.waitstatus_to_exitcode(status)


def serve_jobs() -> None:
    """Do the jobs that come on stdin."""
    import heatpipe.cli
    import heatpipe.fetch
    import heatpipe.ingest
    import heatpipe.progress  # noqa: F401 - imported once, for all forks

    warnings.simplefilter("ignore", DeprecationWarning)  # the threads that fork() warns of are numpy's and idle
    for line in sys.stdin:
        given = json.loads(line)
        job = Job(**given | {"order": Order(**given["order"]), "arguments": tuple(given["arguments"])})
        print(_fork(job), flush=True)


# --- in the process that tests ------------------------------------------------------------------------------------


class Launcher:
    """A process that runs command lines and lives on when they die."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.launcher"],
            cwd=PROJECT,
            env={name: value for name, value in os.environ.items() if not name.startswith(("HEATPIPE_", "KIYOTAKA_"))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.__exit__(kind, exc, traceback)  # closes its stdin, which ends it

    def run(self, job: Job) -> int:
        """Do a job; return its exit code."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(asdict(job)) + "\n")
        stdin.flush()
        return int(stdout.readline())


if __name__ == "__main__":
    # Under its own name: what is pickled here is unpickled elsewhere.
    from tests.crash.launcher import serve_jobs as serve

    serve()

"""Threads that turn windows into answers: fetch, decode, keep what is final. Writes nothing.

The threads are daemons: one that hangs in a socket must not keep an interrupted program alive.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Final, Self

from heatpipe.budget import Budget, Lease
from heatpipe.client import Body, Client, Spent, body_cap
from heatpipe.config import Settings
from heatpipe.decode import decode_text
from heatpipe.errors import (
    ConfigError,
    DecodeError,
    HeatpipeError,
    HistoryError,
    RequestError,
    Stopped,
    TooHeavyError,
    TransientError,
    UnreachableError,
)
from heatpipe.finality import Answer, judge
from heatpipe.model import Series, Span, Window

HISTORY_MARGIN_S: Final = 10
"""What leaves the history within so many seconds is no longer asked for: one second late costs the whole window."""
ROOM_BYTES: Final = 56 << 20
"""Bound on what decoded answers may hold, at `BYTES_PER_ROW` a row that could come: two windows of usual depth, of
which one is decoded while the other is written. As many answers as there are threads wait outside, as they came."""
BYTES_PER_ROW: Final = 16
"""A price and a volume."""
KEPT_BYTES: Final = 32 << 20
"""Most that is kept of an answer that broke the contract: one of usual depth is smaller. All that wait to be written
down, or asked for again, may take as much together."""
KEY_BYTES: Final = 1 << 16
"""Longer than any key, however it is spelt: one that the end of what is kept would cut is found all the same."""
RESERVE_S: Final = 0.5
"""Longest that one request may take longer to arrive than another: each opens a connection of its own."""
POLL_S: Final = 0.2
"""How soon a request to stop is seen."""


class Stop:
    """A request to end, seen by every thread of a run within a moment."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._children: list[Stop] = []
        self._lock = threading.Lock()

    def child(self) -> "Stop":
        """Return one that is set with this one, or alone."""
        child = Stop()
        with self._lock:
            self._children.append(child)
            if self.is_set():
                child.set()
        return child

    def is_set(self) -> bool:
        """Whether the end was asked for."""
        return self._event.is_set()

    def set(self) -> None:
        """Ask for the end."""
        with self._lock:
            self._event.set()
            for child in self._children:
                child.set()

    def check(self) -> None:
        """Raise Stopped if the end was asked for."""
        if self.is_set():
            raise Stopped("stopped")

    def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until the end is asked for; then raise Stopped."""
        if self._event.wait(seconds):
            raise Stopped("stopped")


@dataclass(slots=True, eq=False)
class Job:
    """A window on its way: what to ask for, what it has cost, and in the end the answer or the fault.

    Parameters
    ----------
    window : Window
        What to ask for.
    reply : SimpleQueue
        Where the job goes when it is done.
    spent : Spent
        Shared with the windows that this one was split from.
    tries : Counter
        How often this very window has come back with each kind of fault.
    """

    window: Window
    reply: "SimpleQueue[Job]"
    spent: Spent = field(default_factory=Spent)
    tries: Counter[str] = field(default_factory=Counter)
    answer: Answer | None = None
    fault: BaseException | None = None
    body: bytes | None = None
    """the raw answer, or its first `KEPT_BYTES`, kept where it broke the contract"""
    in_room: bool = False
    """whether its answer is counted"""
    on_shelf: bool = False
    """whether its body is"""

    @property
    def weighs_bytes(self) -> int:
        """Memory that its answer may take, decoded."""
        return BYTES_PER_ROW * self.window.points * (self.window.series.depth + 1)

    @property
    def body_bytes(self) -> int:
        """Memory that its body may take."""
        return min(KEPT_BYTES, body_cap(self.window))


class Crew:
    """The threads of a run, with their client, their budget and a bound on what their answers may hold.

    Parameters
    ----------
    settings : Settings
        How many threads, which upstream.
    budget : Lease, optional
        Shared with others; else one of its own.
    stop : Stop, optional
        Ends all waiting.
    clock : callable
        Unix seconds.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        budget: Lease | None = None,
        stop: Stop | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.stop = (stop or Stop()).child()
        self.clock = clock
        self._client = Client(
            settings,
            budget or Budget(settings.weight_per_minute, settings.burst, reserve_s=RESERVE_S),
            sleep=self.stop.sleep,
            clock=clock,
        )
        self._answered: set[Series | None] = set()
        self._refused: dict[Series | None, HeatpipeError] = {}
        self._scouts: dict[Series | None, threading.Lock] = {}
        self._guard = threading.Lock()  # a Series is hashed in Python, where another thread may come between
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._left = Stop()
        self._room = _Room(ROOM_BYTES, self._left)  # not until the end is asked for: what waits for it is paid for
        self._shelf = _Room(KEPT_BYTES, self._left)
        self._alone = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"heatpipe-fetch-{number}", daemon=True)
            for number in range(settings.concurrency)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.wind_down()
        self._left.set()
        for _ in self._threads:
            self._jobs.put(None)
        self._client.close()

    def wind_down(self) -> None:
        """Send no further request; jobs that are in line come back at once, those on their way when they come."""
        self.stop.set()

    def submit(self, job: Job) -> None:
        """Put a job in line; it comes back through its own queue."""
        self._jobs.put(job)

    def release(self, job: Job) -> None:
        """Say that a job that came back is no longer held in memory."""
        job.answer = job.body = job.fault = None
        self._leave_room(job)

    def _leave_room(self, job: Job) -> None:
        if job.in_room:
            job.in_room = False
            self._room.leave(job.weighs_bytes)
        if job.on_shelf:
            job.on_shelf = False
            self._shelf.leave(job.body_bytes)

    def _work(self) -> None:
        while job := self._jobs.get():
            try:
                self._do(job)
            except BaseException as exc:  # noqa: BLE001 - whatever it is belongs to who waits for the job
                job.fault = exc
            job.reply.put(job)

    def _do(self, job: Job) -> None:
        """Let the first request of the run go alone, then the first of each series: a cause costs one request."""
        with self._scout(None), self._scout(job.window.series):
            self._ask(job)

    @contextmanager
    def _scout(self, whose: Series | None) -> Iterator[None]:
        """Let nobody else ask for a series, or for anything at all, until one request of it was answered."""
        with self._guard:
            scout = self._scouts.setdefault(whose, threading.Lock())
        with ExitStack() as alone:
            alone.enter_context(scout)
            if whose in self._answered:
                alone.close()
            yield

    def _ask(self, job: Job) -> None:
        self.stop.check()
        window = self._still_sold(job.window)
        for whose in (None, window.series):
            if whose in self._refused:
                raise self._refused[whose]
        try:
            job.answer = self._client.fetch(window, job.spent, partial(self._read, job, window))
        except (ConfigError, UnreachableError) as exc:
            of_one_series = isinstance(exc, UnreachableError) and exc.is_there
            self._refused[window.series if of_one_series else None] = exc
            raise
        except HistoryError:
            raise
        except RequestError as exc:
            self._refused[window.series] = exc
            raise

    def _still_sold(self, window: Window) -> Window:
        """Leave out what has moved beyond the history since the plan was made."""
        horizon = self.settings.horizon(self.clock() + HISTORY_MARGIN_S)
        start = horizon.history_start(window.series.interval_s)
        if window.span.start < start < window.span.end:
            return Window(window.series, Span(start, window.span.end))
        return window

    def _read(self, job: Job, window: Window, body: Body) -> Answer:
        """Decode an answer, which takes many times the memory of its compressed form: not all of them at once."""
        self._answered |= {None, window.series}
        self._room.enter(job.weighs_bytes)
        job.in_room = True
        try:
            snapshots = decode_text(body.text, window, self._alone)
        except (TransientError, TooHeavyError) as exc:  # asked for again, perhaps after a while
            self._leave_room(job)
            raise exc.with_traceback(None)  # noqa: B904 - its frames hold what was decoded so far
        except DecodeError as exc:
            fault = exc.with_traceback(None)  # its frames hold what was decoded so far
        else:
            return judge(
                window,
                snapshots,
                body.asked_at,
                self.settings.settle_s,
                dated=body.dated,
                wire_bytes=body.wire_bytes,
            )
        # Out here it has no context: a traceback would show the words of the answer as they came.
        raise self._keep(job, window, body, fault)

    def _keep(self, job: Job, window: Window, body: Body, fault: DecodeError) -> DecodeError:
        """Keep an answer that breaks the contract; return what is wrong with it, in words without the key."""
        self._shelf.enter(job.body_bytes)
        job.on_shelf = True
        text = body.text.beginning(KEPT_BYTES + KEY_BYTES)
        clean = self._client.redact(text)
        job.body = clean[:KEPT_BYTES]
        if clean != text:  # the words may be a part of it
            return type(fault)(f"{window}: {fault.say(_hide)}; the answer repeats the API key")
        if len(text) == KEPT_BYTES + KEY_BYTES:  # nobody knows what else stands there
            return type(fault)(f"{window}: {fault.say(_hide)}")
        return type(fault)(f"{window}: {fault.say(self._client.clean)}")


def _hide(_text: str) -> str:
    return "(not shown)"


class _Room:
    """A bound on bytes; who is larger than all of it comes in alone. Whoever came first goes in first.

    In any other order a window that is overtaken keeps its day, and the answers of those that overtook it, in memory.
    """

    def __init__(self, size_bytes: int, stop: Stop) -> None:
        self._free = self._size = size_bytes
        self._stop = stop
        self._line: deque[object] = deque()
        self._changed = threading.Condition()

    def enter(self, size_bytes: int) -> None:
        own = object()
        with self._changed:
            self._line.append(own)
            try:
                while self._line[0] is not own or self._free < min(size_bytes, self._size):
                    self._stop.check()
                    self._changed.wait(POLL_S)
                self._free -= size_bytes
            finally:
                self._line.remove(own)
                self._changed.notify_all()

    def leave(self, size_bytes: int) -> None:
        with self._changed:
            self._free += size_bytes
            self._changed.notify_all()

"""Threads that turn windows into answers: fetch, decode, and judge what is final. Writes nothing.

The threads are daemons: one that hangs in a socket must not keep an interrupted program alive.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Final, Self

from heatpipe.budget import Budget, Lease
from heatpipe.client import Body, Client, Spent
from heatpipe.config import Settings
from heatpipe.decode import decode_body
from heatpipe.errors import DecodeError, Stopped
from heatpipe.model import Coverage, Snapshots, Span, Spans, Window

YOUNG_S: Final = 15 * 60
"""An interval that ended later than this before the request may still be published: not yet absent."""
HISTORY_MARGIN_S: Final = 10
"""What leaves the history within so many seconds is no longer asked for: one second late costs the whole window."""
BYTES_IN_FLIGHT: Final = 192 << 20
"""Bound on what requests in flight may hold, at `BYTES_PER_ROW` a row that could come."""
BYTES_PER_ROW: Final = 32


class Stop:
    """A request to end, seen by every thread of a run within a moment."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask for the end."""
        self._event.set()

    def check(self) -> None:
        """Raise Stopped if the end was asked for."""
        if self._event.is_set():
            raise Stopped("stopped")

    def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until the end is asked for; then raise Stopped."""
        if self._event.wait(seconds):
            raise Stopped("stopped")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came for a window, as far as it is final.

    Parameters
    ----------
    snapshots : Snapshots
        Points of closed intervals.
    coverage : Coverage
        The intervals that this answers for good.
    open, young : Spans
        Intervals that were not closed, or had no point but may still get one: not covered.
    wire_bytes : int
        Size of the body as it travelled.
    """

    snapshots: Snapshots
    coverage: Coverage
    open: Spans
    young: Spans
    wire_bytes: int


def judge(window: Window, snapshots: Snapshots, asked_at: float, settle_s: int) -> Answer:
    """Keep of an answer what was final when it was asked for.

    Parameters
    ----------
    window : Window
        What was asked.
    snapshots : Snapshots
        What came.
    asked_at : float
        Unix seconds, by the earlier of our clock and the upstream's.
    settle_s : int
        Seconds after its end at which an interval is closed.
    """
    step = window.series.interval_s
    closed = window.span.clip(Span(0, int((asked_at - settle_s) // step) * step))
    answered = Spans.of([closed])
    final = snapshots.between(closed) if answered else Snapshots()
    coverage = Coverage.of_answer(answered, final, step)
    old_until = int((asked_at - YOUNG_S) // step) * step
    young = coverage.absent - Spans.of([(0, old_until)])
    return Answer(final, coverage - young, Spans.of([window.span]) - answered, young, 0)


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
    tries : int
        How often this very window has come back with the same kind of fault.
    """

    window: Window
    reply: "SimpleQueue[Job]"
    spent: Spent = field(default_factory=Spent)
    tries: int = 0
    answer: Answer | None = None
    fault: BaseException | None = None
    body: bytearray | None = None
    """the raw answer, kept where it broke the contract"""

    @property
    def weighs_bytes(self) -> int:
        """Memory that it may take."""
        return BYTES_PER_ROW * self.window.points * (self.window.series.depth + 1)


class Crew:
    """The threads of a run, with their client, their budget and a bound on the bytes in flight.

    Parameters
    ----------
    settings : Settings
        How many threads, which upstream.
    budget : Lease, optional
        Shared with others; else one of its own.
    stop : Stop
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
        self.stop = stop or Stop()
        self.clock = clock
        self.proven = False
        """Whether an answer has come: until then only one request is sent, so that a wrong key costs one"""
        budget = budget or Budget(settings.weight_per_minute, settings.burst, sleep=self.stop.sleep)
        self._client = Client(settings, budget, sleep=self.stop.sleep, clock=clock)
        self._winding_down = threading.Event()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._room = _Room(BYTES_IN_FLIGHT)
        self._threads = [
            threading.Thread(target=self._work, name=f"heatpipe-fetch-{number}", daemon=True)
            for number in range(settings.concurrency)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        self._client.close()

    def wind_down(self) -> None:
        """Send no further request; jobs that are in line come back at once."""
        self._winding_down.set()

    def submit(self, job: Job) -> None:
        """Put a job in line; it comes back through its own queue."""
        self._jobs.put(job)

    def release(self, job: Job) -> None:
        """Say that a job's answer is no longer held in memory."""
        self._room.leave(job.weighs_bytes)

    def _work(self) -> None:
        while job := self._jobs.get():
            self._room.enter(job.weighs_bytes)
            try:
                self._do(job)
            except BaseException as exc:  # noqa: BLE001 - whatever it is belongs to who waits for the job
                job.fault = exc
            job.reply.put(job)

    def _do(self, job: Job) -> None:
        self.stop.check()
        if self._winding_down.is_set():
            raise Stopped("winding down")
        window = self._still_sold(job.window)
        body = self._client.fetch(window, job.spent)
        self.proven = True
        try:
            job.answer = self._read(body, window)
        except DecodeError as exc:
            job.body = body.data
            raise type(exc)(f"{window}: {exc}") from exc

    def _still_sold(self, window: Window) -> Window:
        """Leave out what has moved beyond the history since the plan was made."""
        horizon = self.settings.horizon(self.clock() + HISTORY_MARGIN_S)
        start = horizon.history_start(window.series.interval_s)
        if window.span.start < start < window.span.end:
            return Window(window.series, Span(start, window.span.end))
        return window

    def _read(self, body: Body, window: Window) -> Answer:
        snapshots = decode_body(body.data, window)
        answer = judge(window, snapshots, body.asked_at, self.settings.settle_s)
        return Answer(answer.snapshots, answer.coverage, answer.open, answer.young, body.wire_bytes)


class _Room:
    """A bound on bytes; who is larger than all of it comes in alone."""

    def __init__(self, size_bytes: int) -> None:
        self._free = self._size = size_bytes
        self._changed = threading.Condition()

    def enter(self, size_bytes: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._free >= min(size_bytes, self._size))
            self._free -= size_bytes

    def leave(self, size_bytes: int) -> None:
        with self._changed:
            self._free += size_bytes
            self._changed.notify_all()

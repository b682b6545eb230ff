"""A plan carried out as Prefect tasks, one a slab, a few at a time. What is done is on disk: any run resumes."""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from queue import Empty, SimpleQueue
from threading import Lock, Timer
from types import FrameType
from typing import Any, Final, Self

from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture, wait
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.account import Gauge, show_plan, show_report
from flows.lease import open_lease
from flows.settings import COMMAND_LINE, find_key, load_settings
from heatpipe import cli, process
from heatpipe.config import Settings
from heatpipe.errors import DatasetError, HeatpipeError, IncompleteError, Stopped
from heatpipe.fetch import Crew, Stop
from heatpipe.ingest import Standing, carry_out, check_places, report_obstacles, tidy
from heatpipe.model import Series, show_time
from heatpipe.plan import Plan, SlabPlan
from heatpipe.progress import show_bytes, show_seconds
from heatpipe.report import Progress, Report
from heatpipe.store import Store
from heatpipe.survey import check_plan, without_rows

SLABS_AT_ONCE: Final = 2
"""While one slab waits for its last answer, the next is under way."""
SUBMITTED_AT_ONCE: Final = 2 * SLABS_AT_ONCE
"""Tasks that Prefect knows of: of years of many coins it gets a handful at a time."""
SHOWN_EVERY_S: Final = 2.0
LEAVE_S: Final = 10.0
"""How long a run that is ended waits for its slabs to write what has arrived; they take little more than a second."""
GOODBYE_S: Final = 10.0
"""How long Prefect may take after that to tell its server; of a server that stalls it would wait for a minute."""
MOST_REASONS: Final = 3
"""Reasons that the message of a failed run tells; the others are counted, and stand in its report."""

MakePlan = Callable[[Store, Settings], Plan]


def make_task_runner() -> Any:
    """Return the task runner of every flow."""
    return ThreadPoolTaskRunner(max_workers=SLABS_AT_ONCE)


def run_plan(
    flow: str,
    make_plan: MakePlan,
    *,
    data: str,
    dry_run: bool,
    max_weight: int,
    named: bool = True,
    refetch: bool = False,
    refetch_absent: bool = False,
    wait: bool = True,
) -> State[Any]:
    """Plan, say what it costs, fetch, give an account. Spends weight, but for a dry run.

    Parameters
    ----------
    flow : str
        Name of the flow.
    make_plan : callable
        Makes the plan of what is on disk.
    data : str
        Folder of the dataset; empty for that of HEATPIPE_DATA.
    dry_run : bool
        End after the plan.
    max_weight : int
        Refuse a plan that costs more; 0 for none.
    named : bool
        Whether the coins were asked for by name.
    refetch : bool
        Ask again for what is covered, and replace it.
    refetch_absent : bool
        Ask again for what is recorded as absent.
    wait : bool
        Wait for a slab that another run works on; else it is left to that one, which is no failure.

    Returns
    -------
    State
        Completed, with the report as a document; or Failed, with one sentence and the error itself.
    """
    with told_once(), forward_warnings():
        try:
            with known_errors():
                settings = load_settings(data)
                if not dry_run:
                    settings = find_key(settings)
                store = Store(settings.root)
                plan = make_plan(store, settings)
                check_plan(plan, store, settings, max_weight or None)
                costs = _tell_plan(flow, plan, settings, store)
                if dry_run:
                    return Completed(message=f"nothing was fetched: a real run {costs}")
                how = {"refetch": refetch, "refetch_absent": refetch_absent, "wait_for_locks": wait}
                return _carry_out(flow, plan, store, settings, named=named, **how)
        except HeatpipeError as exc:
            return fail(exc)


def fail(exc: HeatpipeError) -> State[Any]:
    """Return a Failed state; raised, the error would fill the log with a traceback that helps no one."""
    for name in ("prefect.flow_runs", "prefect.engine"):  # a run's own process raises it after all, and logs that
        logging.getLogger(name).addFilter(_is_no_known_error)
    return Failed(message=str(exc), data=exc)


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """Let the first SIGTERM end what is done, and the others neither hurt nor hurry: Prefect raises with each.

    Not in a process of a worker, which tells it once: Prefect would take a run that was cancelled for one that crashed.
    """
    known = signal.getsignal(signal.SIGTERM)
    here = threading.current_thread() is threading.main_thread() and runtime.deployment.id is None
    if not here or not callable(known):
        yield
        return

    def receive(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        known(number, frame)

    signal.signal(signal.SIGTERM, receive)
    yield
    signal.signal(signal.SIGTERM, known)  # of one that has come, Prefect itself tells whoever waited for it before


@contextlib.contextmanager
def known_errors() -> Iterator[None]:
    """Translate what the system refuses: raised on, it would fill the log with tracebacks that help no one."""
    try:
        yield
    except (OSError, MemoryError) as exc:
        raise DatasetError(process.describe(exc)[0]) from exc


def _is_no_known_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HeatpipeError))


@contextlib.contextmanager
def forward_warnings() -> Iterator[None]:
    """Let the engine's warnings into the run's log, from whatever thread they come; with ``--verbose``, more."""
    logger = get_run_logger()
    engine = logging.getLogger("heatpipe")

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logger.log(record.levelno, record.getMessage())

    lowest = logging.INFO if COMMAND_LINE.get().verbose else logging.WARNING
    handler, propagate, level = Forward(lowest), engine.propagate, engine.level
    engine.addHandler(handler)
    engine.setLevel(min(lowest, engine.getEffectiveLevel()))
    engine.propagate = False  # Prefect's root logger would say it a second time
    try:
        yield
    finally:
        engine.propagate = propagate
        engine.setLevel(level)
        engine.removeHandler(handler)


def _tell_plan(flow: str, plan: Plan, settings: Settings, store: Store) -> str:
    """Say in the run's log and as an artifact what it will cost; return the words."""
    logger = get_run_logger()
    show_plan(flow, plan, settings, store.free_bytes())
    for warning in [*plan.warnings, *plan.left_out]:
        logger.warning(warning)
    missing, intervals, requests, weight = (
        f"{number:,}" for number in (plan.missing, plan.intervals, plan.requests, plan.weight)
    )
    costs = f"fetches {missing} of {intervals} intervals with {requests} requests of weight {weight}"
    least_s = plan.seconds(settings.weight_per_minute, settings.burst)
    if least_s:
        costs += f", which takes {show_seconds(least_s)} at the budget"
    logger.info("This run %s, into %s", costs, settings.root)
    if plan.open:
        logger.info("%s intervals are not closed yet, and left out", f"{plan.open:,}")
    return costs


class Shared:
    """What the tasks of one run share, and what they have to tell. For threads only: it is never written down.

    Parameters
    ----------
    plan : Plan
        What is to be done.
    store : Store
        Where to.
    settings : Settings
        With the key.
    how : bool
        What else to do, as `carry_out` takes it: `refetch`, `refetch_absent`, `wait_for_locks`.
    """

    def __init__(self, plan: Plan, store: Store, settings: Settings, **how: bool) -> None:
        self.store = store
        self.how = how
        self.stop = Stop()
        self.standing = Standing()
        self.refusal: HeatpipeError | None = None
        self.reports: dict[Series, Report] = {}
        self.settings = settings
        self._books = {slab.slab: _Book(weight_left=slab.weight) for slab in plan.slabs if slab.requests}
        self._lock = Lock()
        self._began = time.monotonic()
        with contextlib.ExitStack() as opened:
            lease = open_lease(settings, sleep=self.stop.sleep)
            if lease is not None:
                opened.callback(lease.close)
            self.crew = opened.enter_context(Crew(settings, budget=lease, stop=self.stop))
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop.set()
        self._opened.close()

    def refuse(self, exc: HeatpipeError) -> None:
        """End the run: what was refused, a wrong key or a full disk, is so for every slab."""
        with self._lock:
            self.refusal = self.refusal or exc
        self.stop.set()

    def wants(self, plan: SlabPlan) -> bool:
        """Whether a slab is still to be filled: neither the run nor its series has ended."""
        return not self.stop.is_set() and plan.slab.series not in self.standing.ended

    def note(self, plan: SlabPlan, progress: Progress) -> None:
        """Note where a slab stands."""
        done = progress.done
        self._books[plan.slab] = _Book(done.rows, done.weight, progress.weight_left)

    def add(self, plan: SlabPlan, report: Report) -> None:
        """Note that a slab is done."""
        series = plan.slab.series
        with self._lock:
            self.reports[series] = self.reports.get(series, Report()) + report
            self._books[plan.slab] = _Book(report.rows, report.weight, done=1)

    def stands(self) -> tuple[float, str]:
        """Return the share that is done, and where the run stands in words."""
        books = list(self._books.values())  # of years of many coins there are some ten thousand
        total = _Book(*(sum(getattr(book, f.name) for book in books) for f in fields(_Book)))
        weight = total.weight + total.weight_left
        words = f"{total.done:,} of {len(self._books):,} slabs"
        if total.weight_left and not self.stop.is_set():
            words += f", expected end {self._expected_end(total)} UTC"  # early: the page cuts a long line off
        words += f", {total.rows:,} rows, weight {total.weight:,} of {weight:,}"
        return (total.weight / weight if weight else 1.0), words

    def _expected_end(self, total: "_Book") -> str:
        """Go by the pace so far, but never above the budget: its burst lets a run begin faster than it goes on."""
        so_far_s = time.monotonic() - self._began
        pace_s = so_far_s * total.weight_left / total.weight if total.weight else 0.0
        beyond_burst = max(0, total.weight + total.weight_left - self.settings.burst)
        budget_s = beyond_burst * 60 / self.settings.weight_per_minute - so_far_s
        return show_time(time.time() + max(pace_s, budget_s))[:19].replace("T", " ")


@dataclass(frozen=True, slots=True)
class _Book:
    """Where one slab, or all of them together, stand."""

    rows: int = 0
    weight: int = 0
    weight_left: int = 0
    done: int = 0


def _carry_out(flow: str, plan: Plan, store: Store, settings: Settings, *, named: bool, **how: bool) -> State[Any]:
    """Fill the slabs, give an account of them, and say how it went."""
    began = time.monotonic()
    tidy(plan, store)
    check_places(plan, store)
    left_out = report_obstacles(plan)
    if not plan.requests and not left_out.failures:
        done = f"nothing to fetch: {plan.intervals - plan.missing:,} intervals are on disk already"
        return Completed(message=done, data=Report().as_document())
    with Shared(plan, store, settings, **how) as shared:
        gauge = Gauge(f"{flow}-progress")
        states = _fill_slabs([slab for slab in plan.slabs if slab.requests], shared, gauge)
    total = sum(shared.reports.values(), left_out)
    gauge.show(*shared.stands())
    if named and total.requests:
        for coin in without_rows(plan, total, store):
            get_run_logger().warning("%s: %s", coin, cli.NO_ROWS)
    show_report(flow, plan, shared.reports, total.failures, settings, time.monotonic() - began)
    if shared.refusal is not None:
        raise shared.refusal
    reasons = plan.left_out
    reasons += [state.message or "a task failed" for state in states if state.is_failed() or state.is_crashed()]
    if reasons:
        raise IncompleteError(f"not all of it came, a new run fetches the rest: {_name_some(reasons)}")
    return Completed(message=_describe(total), data=total.as_document())


def _name_held(report: Report) -> str:
    held = [failure.reason for failure in report.failures if failure.held]
    return f"left to another run: {_name_some(held)}" if held else ""


def _fill_slabs(slabs: list[SlabPlan], shared: Shared, gauge: Gauge) -> list[State[Any]]:
    """Run a task for each slab, never more than a few at a time; end them all when this run is ended."""
    waiting = deque(slabs)
    under_way: set[PrefectFuture[Any]] = set()
    ended: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
    states: list[State[Any]] = []
    shown_at = 0.0
    try:
        while waiting or under_way:
            while waiting and len(under_way) < SUBMITTED_AT_ONCE:
                slab = waiting.popleft()
                if shared.wants(slab):
                    future = fill_slab.submit(slab, shared)
                    under_way.add(future)
                    future.add_done_callback(ended.put)
            with contextlib.suppress(Empty):
                future = ended.get(timeout=SHOWN_EVERY_S if under_way else 0)
                under_way.remove(future)
                future.wait()
                states.append(future.state)
            if time.monotonic() - shown_at >= SHOWN_EVERY_S:
                shown_at = time.monotonic()
                gauge.show(*shared.stands())
    finally:
        shared.stop.set()
        wait(list(under_way), timeout=LEAVE_S)  # they take in what is paid for, and write it
        if isinstance(sys.exception(), TerminationSignal):
            _leave_soon()
    return states


def _leave_soon() -> None:
    """See to it that a process that was told to end does: all is written, and its worker tells the server, too."""

    def leave() -> None:
        with contextlib.suppress(OSError):
            os.write(2, b"heatpipe: interrupted; what had arrived is on disk; the Prefect server was not told\n")
        os._exit(cli.INTERRUPTED)

    if PREFECT_API_URL.value():  # a server of our own ends with this process, in order
        timer = Timer(GOODBYE_S, leave)
        timer.daemon = True
        timer.start()


def _never(*_: object) -> bool:
    return False


# Prefect logs a Failed state that a task returns as an exception, which there is none of ("NoneType: None"), unless
# a condition declines to retry. The engine has done all retrying by then.
@task(
    name="fill-slab",
    task_run_name="{plan}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_condition_fn=_never,
)
def fill_slab(plan: SlabPlan, shared: Shared) -> State[Any]:
    """Fetch and store what is missing of one slab."""
    if not shared.wants(plan):
        return Cancelled(message=f"{plan}: not begun, the run or its series was ended")
    try:
        with known_errors():
            report = carry_out(
                Plan((plan,)),
                shared.store,
                shared.crew,
                **shared.how,
                on_progress=lambda progress: shared.note(plan, progress),
                standing=shared.standing,
            )
    except Stopped:
        return Cancelled(message=f"{plan}: stopped, what had arrived is on disk")
    except HeatpipeError as exc:
        shared.refuse(exc)
        return Failed(message=str(exc))
    shared.add(plan, report)
    reasons = [failure.reason for failure in report.failures if failure.counts and not failure.held]
    if reasons:
        return Failed(message=_name_some(reasons))
    if plan.slab.series in shared.standing.ended and report.requests < plan.requests:
        return Cancelled(message=f"{plan}: cut short, {plan.slab.series} was given up")
    return Completed(message=f"{plan}: {_describe(report)}")  # Prefect logs it: the one line of this slab


def _describe(report: Report) -> str:
    held = _name_held(report)
    if not report.requests:
        return held or "nothing left to fetch: another run has brought it"
    return (
        f"{report.rows:,} rows of {report.points:,} snapshots, {report.days:,} days, "
        f"{show_bytes(report.bytes_written)}, {report.requests:,} requests, weight {report.weight:,}"
        + (f", {report.absent:,} intervals absent" if report.absent else "")
        + (f"; {held}" if held else "")
    )


def _name_some(reasons: list[str]) -> str:
    found = list(dict.fromkeys(reasons))
    more = len(found) - MOST_REASONS
    return "; ".join([*found[:MOST_REASONS], *([f"and {more} more"] if more > 0 else [])])

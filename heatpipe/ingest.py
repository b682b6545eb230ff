"""The pipe: slab to windows to bodies to rows to days. Where every failure finds its owner."""

import contextlib
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Final

from heatpipe.budget import Lease
from heatpipe.client import Spent, show_request
from heatpipe.config import Settings, Target
from heatpipe.errors import (
    ConfigError,
    DatasetError,
    DecodeError,
    EnvelopeError,
    HeatpipeError,
    HistoryError,
    LockedError,
    RequestError,
    Stopped,
    SymbolError,
    TooHeavyError,
    UnreachableError,
    UnreadableError,
)
from heatpipe.fetch import KEPT_BYTES, POLL_S, Crew, Job, Stop
from heatpipe.model import Series, Spans, show_time
from heatpipe.plan import NOTHING, Plan, Slab, SlabPlan, bar_slab, weigh_window
from heatpipe.report import Failure, Progress, Report
from heatpipe.slab import KnownPoints, OpenSlab
from heatpipe.store import Store
from heatpipe.survey import check_plan, make_plan, make_update_plan
from heatpipe.times import Instant, read_instant, whole_seconds
from heatpipe.upstream import LOOKBACK

GRACE_S: Final = 1.0
"""How long a run that is ended waits for the answers to requests that were sent already."""
ATTEMPTS_AT_A_POINT: Final = 3
"""How often a single point may be too heavy for the upstream before it is given up."""
ATTEMPTS_AT_BAD_BYTES: Final = 2
"""How often a window may come with bytes that break the contract before it is halved, or given up."""
ALIKE: Final = 3
"""Windows of one series of which nothing came, for the same cause, before the series ends."""

ENDS_ALL: Final = (ConfigError, DatasetError, Stopped, UnreachableError)
"""What is so for every window of a run."""

GONE: Final = (
    "; the coin is on disk: if it is gone for good, name it in HEATPIPE_RETIRED or [dataset] retired, "
    "and an update leaves it out"
)

LOG: Final = logging.getLogger("heatpipe")

OnProgress = Callable[[Progress], None]
Wanted = Series | str | Iterable[Series | str]


def backfill(
    series: Wanted,
    start: Instant | None = None,
    end: Instant | None = None,
    *,
    settings: Settings | None = None,
    refetch: bool = False,
    refetch_absent: bool = False,
    wait_for_locks: bool = True,
    max_weight: int | None = None,
    on_progress: OnProgress | None = None,
    budget: Lease | None = None,
    stop: Stop | None = None,
    clock: Callable[[], float] = time.time,
) -> Report:
    """Fetch what is missing of some series in a span, and store it. Spends weight.

    Parameters
    ----------
    series : Series, str, or several of them
        What to fetch; a coin's name means its series by the minute, in coin, at the included depth.
    start, end : instant, optional
        Half-open span: dates, ISO 8601 instants (UTC without an offset) or Unix seconds. `end` defaults to the end of
        the last closed interval.
    settings : Settings, optional
        Else from the environment.
    refetch : bool
        Ask again for what is covered, and replace it.
    refetch_absent : bool
        Ask again for what is recorded as absent.
    wait_for_locks : bool
        Wait for what another process works on; else it is left out, which is a failure.
    max_weight : int, optional
        Refuse a plan that costs more.
    on_progress : callable, optional
        Called with a `Progress` after every answer.
    budget : Lease, optional
        A budget that is shared with others.
    stop : Stop, optional
        Lets another thread end the run; what has arrived is written.
    clock : callable
        Unix seconds.

    Returns
    -------
    Report
        What was done, and what did not come. An incomplete run is no exception: look at `Report.failures`.

    Raises
    ------
    ConfigError
        Nothing can be fetched like this: no key, a wrong one, a span that is not for sale.
    DatasetError
        The folder cannot be written.
    UnreachableError
        Nobody has answered anything for `patience_s`.
    Stopped
        `stop` was set.
    """
    settings = settings or Settings.load()
    store = Store(settings.root)
    targets = _targets(series, start, end)
    plan = make_plan(targets, store, settings, clock(), refetch=refetch, refetch_absent=refetch_absent)
    check_plan(plan, store, settings, max_weight)
    return _run_plan(
        plan,
        store,
        lambda: Crew(settings, budget=budget, stop=stop, clock=clock),
        refetch=refetch,
        refetch_absent=refetch_absent,
        wait_for_locks=wait_for_locks,
        on_progress=on_progress,
    )


def update(
    series: Wanted,
    start: Instant | None = None,
    *,
    settings: Settings | None = None,
    lookback: int = LOOKBACK,
    wait_for_locks: bool = True,
    max_weight: int | None = None,
    on_progress: OnProgress | None = None,
    budget: Lease | None = None,
    stop: Stop | None = None,
    clock: Callable[[], float] = time.time,
) -> Report:
    """Fetch what is missing of some series up to the last closed interval. Spends weight.

    Where something is missing, the newest of what is on disk is asked for again as well, as far as that costs no
    weight; what comes back different replaces it, and is counted in the report.

    Parameters
    ----------
    series : Series, str, or several of them
        What to bring up to date.
    start : instant, optional
        From when on, as in `backfill`; by default from the first covered instant of each series.
    lookback : int
        How many intervals to ask for again.
    settings, wait_for_locks, max_weight, on_progress, budget, stop, clock
        As in `backfill`.

    Returns
    -------
    Report
        What was done, and what did not come.

    Raises
    ------
    ConfigError
        A series has nothing on disk and no `start` was given; or as `backfill`.
    DatasetError, UnreachableError, Stopped
        As `backfill`.
    """
    settings = settings or Settings.load()
    store = Store(settings.root)
    plan = make_update_plan(_targets(series, start), store, settings, clock(), lookback=lookback)
    check_plan(plan, store, settings, max_weight)
    return _run_plan(
        plan,
        store,
        lambda: Crew(settings, budget=budget, stop=stop, clock=clock),
        wait_for_locks=wait_for_locks,
        on_progress=on_progress,
    )


def _targets(series: Wanted, start: Instant | None, end: Instant | None = None) -> list[Target]:
    bounds = {name: _instant(value, name) for name, value in (("start", start), ("end", end))}
    if isinstance(series, Series | str | bytes) or not isinstance(series, Iterable):
        series = [series]
    return [Target(one, **bounds) for one in dict.fromkeys(map(_series, series))]


def _series(wanted: Any) -> Series:
    if isinstance(wanted, Series):
        return wanted
    if isinstance(wanted, str):
        return Series(wanted)
    raise ConfigError(
        f'{wanted!r} is no series: give a coin\'s name, such as "BTC", a heatpipe.Series, or a list of them'
    )


def _instant(value: Instant | None, name: str) -> int | None:
    return None if value is None else whole_seconds(read_instant(value, name), name)


def _run_plan(plan: Plan, store: Store, make_crew: Callable[[], Crew], **how: Any) -> Report:
    for warning in plan.warnings:
        LOG.warning("%s", warning)
    if not plan.requests:
        tidy(plan, store)
        return report_obstacles(plan)
    with make_crew() as crew:
        return carry_out(plan, store, crew, **how)


@dataclass(frozen=True, slots=True)
class Standing:
    """What a run has learned of its series; runs that share a crew may share it.

    Parameters
    ----------
    ended : set of Series
        Not asked for any more.
    alike : mapping
        The windows, by what they have cost, that failed for one series and cause.
    points : KnownPoints
        Between which instants a series has points.
    """

    ended: set[Series] = field(default_factory=set)
    alike: defaultdict[tuple[Series, str], set[Spent]] = field(default_factory=lambda: defaultdict(set))
    points: KnownPoints = field(default_factory=KnownPoints)


def carry_out(
    plan: Plan,
    store: Store,
    crew: Crew,
    *,
    refetch: bool = False,
    refetch_absent: bool = False,
    wait_for_locks: bool = True,
    on_progress: OnProgress | None = None,
    standing: Standing | None = None,
) -> Report:
    """Do what a plan says. Each slab is planned once more under its lock. Spends weight.

    Parameters
    ----------
    plan : Plan
        Which slabs.
    store : Store
        Where to.
    crew : Crew
        Who fetches.
    refetch : bool
        Ask again for what is covered, and replace it.
    refetch_absent : bool
        Ask again for what is recorded as absent.
    wait_for_locks : bool
        Wait for a slab that another process works on; else it is left out, which is a failure.
    on_progress : callable, optional
        Called with a `Progress` after every answer.
    standing : Standing, optional
        Shared with the other runs of the same crew.

    Raises
    ------
    ConfigError, DatasetError, UnreachableError, Stopped
        As `backfill`.
    """
    tidy(plan, store)
    slabs = [slab for slab in plan.slabs if slab.requests]
    check_places(plan, store)
    run = _Run(
        crew,
        store,
        slabs,
        refetch=refetch,
        refetch_absent=refetch_absent,
        wait_for_locks=wait_for_locks,
        on_progress=on_progress,
        standing=standing or Standing(),
    )
    return report_obstacles(plan) + run.carry_out()


def check_places(plan: Plan, store: Store) -> None:
    """Refuse, before anything is paid for, a plan whose files cannot be put where they belong.

    Raises
    ------
    DatasetError
        Names the place, and what is wrong with it.
    """
    asked = {slab.slab.series for slab in plan.slabs if slab.requests}
    for series in sorted(asked):
        store.check_series(series)
    store.check_apart(asked)


def report_obstacles(plan: Plan) -> Report:
    """Return, as failures, what a plan leaves out because it cannot be known now what is on disk."""
    barred = [slab for slab in plan.slabs if slab.obstacle]
    return Report(failures=tuple(Failure(slab.slab.series, slab.span, slab.told_obstacle) for slab in barred))


def tidy(plan: Plan, store: Store) -> None:
    """Remove what runs that were killed have left: temporary files, and records of what has come since.

    A slab in which something is missing is not looked at: whoever fills it removes its records.
    """
    store.sweep()
    idle: defaultdict[Series, list[Slab]] = defaultdict(list)
    for one in plan.slabs:
        if not (one.requests or one.obstacle):
            idle[one.slab.series].append(one.slab)
    for series, slabs in idle.items():
        with contextlib.suppress(UnreadableError):
            records = store.quarantined(series)  # once: there may be a hundred thousand
            for slab in slabs:
                if records.within(slab.span):
                    with contextlib.suppress(DatasetError), store.lock(slab):
                        store.release(series, slab.span)


class _Waiting:
    """Slabs that are still to be opened, in line, and what they come to: told after every answer, so counted along."""

    def __init__(self, slabs: Iterable[SlabPlan]) -> None:
        self.windows = self.weight = 0
        self._line: deque[SlabPlan] = deque()
        self._windows_of: Counter[Series] = Counter()
        self._counted_out: set[Series] = set()
        for slab in slabs:
            self.put(slab)

    def __len__(self) -> int:
        return len(self._line)

    def put(self, plan: SlabPlan) -> None:
        """Put a slab in line, last."""
        self._line.append(plan)
        self._count(plan.slab.series, plan.requests)

    def take(self) -> SlabPlan:
        """Take the first slab out of the line."""
        plan = self._line.popleft()
        self._count(plan.slab.series, -plan.requests)
        return plan

    def count_out(self, series: Series) -> None:
        """Count the slabs of a series that has ended no more; they stay in line."""
        self._count(series, -self._windows_of[series])
        self._counted_out.add(series)

    def others(self, series: Series) -> bool:
        """Whether slabs of another series stand in line."""
        left_out = {series, *self._counted_out}
        return any(count and other not in left_out for other, count in self._windows_of.items())

    def _count(self, series: Series, windows: int) -> None:
        if series not in self._counted_out:
            self._windows_of[series] += windows
            self.windows += windows
            self.weight += windows * weigh_window(series)


class _Run:
    """One run over some slabs: keeps the crew busy, gives every answer and every fault to its slab."""

    def __init__(
        self,
        crew: Crew,
        store: Store,
        slabs: Sequence[SlabPlan],
        *,
        refetch: bool,
        refetch_absent: bool,
        wait_for_locks: bool,
        on_progress: OnProgress | None,
        standing: Standing,
    ) -> None:
        self._standing = standing
        self._crew = crew
        self._store = store
        self._refetch = refetch
        self._refetch_absent = refetch_absent
        self._wait_for_locks = wait_for_locks
        self._on_progress = on_progress or (lambda _: None)
        self._waiting = _Waiting(slabs)
        self._open: list[OpenSlab] = []
        self._replies: SimpleQueue[Job] = SimpleQueue()
        self._in_flight = 0
        self._report = Report()
        self._windows_done = 0
        self._answered: dict[Slab, Spans] = {}
        """what had come of a slab before its lock was lost"""
        self._doubtful: set[Series] = set()
        """of which nothing came for a whole patience, nor of any other since"""

    def carry_out(self) -> Report:
        try:
            while True:
                self._top_up()
                if not self._in_flight:
                    return self._report
                self._settle(self._next_reply())
        finally:
            self._leave()

    # Keeping the crew busy

    def _top_up(self) -> None:
        """Hand out windows until enough are on their way; open slabs as they are needed."""
        enough = self._crew.settings.concurrency + 1
        while self._in_flight < enough:
            self._crew.stop.check()
            slab = next((slab for slab in self._open if slab.queued), None)
            if slab is not None:
                self._in_flight += 1
                self._crew.submit(slab.queued.popleft())
            elif not self._open_next():
                return

    def _open_next(self) -> bool:
        """Lock and plan the next slab that nobody else works on; return whether there was one."""
        for _ in range(len(self._waiting)):
            plan = self._waiting.take()
            if plan.slab.series in self._standing.ended:
                self._waiting.count_out(plan.slab.series)
                continue
            try:
                self._open_slab(plan, wait=None)
            except LockedError as exc:
                if self._wait_for_locks:
                    self._waiting.put(plan)
                else:
                    self._report += Report(failures=(Failure(plan.slab.series, plan.span, str(exc), held=True),))
            else:
                return True
        if self._waiting and not self._in_flight:
            self._open_slab(self._waiting.take(), wait=self._crew.stop.sleep)
            return True
        return False

    def _open_slab(self, plan: SlabPlan, wait: Callable[[float], None] | None) -> None:
        slab = OpenSlab(
            self._store,
            plan,
            self._replies,
            self._standing.points,
            refetch=self._refetch,
            refetch_absent=self._refetch_absent,
            answered=self._answered.get(plan.slab, NOTHING),
        )
        self._open.append(slab)
        try:
            slab.open(wait)
        except LockedError:
            self._open.remove(slab)
            raise
        except UnreadableError as exc:
            self._open.remove(slab)
            self._report += report_obstacles(Plan((bar_slab(plan.slab, plan.span, str(exc)),)))
        else:
            self._close_what_is_done()
            self._tell()

    def _next_reply(self) -> Job:
        while True:
            with contextlib.suppress(Empty):
                job = self._replies.get(timeout=POLL_S)
                self._in_flight -= 1
                return job
            self._crew.stop.check()

    # Giving answers and faults to their slab

    def _settle(self, job: Job) -> None:
        slab = next(slab for slab in self._open if job in slab.jobs)
        awaited = set(slab.jobs)
        try:
            if job.answer is not None:
                self._doubtful.clear()
                self._report += slab.accept(job, job.answer)
            elif job.fault is not None:
                self._face(slab, job, job.fault)
        finally:
            self._crew.release(job)
        self._windows_done += len(awaited - slab.jobs)
        self._close_what_is_done()
        self._tell()

    def _face(self, slab: OpenSlab, job: Job, fault: BaseException) -> None:
        """Decide what a fault means: ask again, ask for less, give up a window or a series, or end the run."""
        series = job.window.series
        of_one_series = isinstance(fault, UnreachableError) and self._may_be_had_elsewhere(fault, series)
        if not isinstance(fault, HeatpipeError) or (isinstance(fault, ENDS_ALL) and not of_one_series):
            raise fault
        job.tries[type(fault).__name__] += 1
        if of_one_series:
            self._doubtful.add(series)
            self._report += slab.drop(job)
            self._end_series(Failure(series, None, str(fault)))
        elif isinstance(fault, RequestError) and not isinstance(fault, HistoryError):
            self._report += slab.drop(job)
            gone = isinstance(fault, SymbolError) and self._store.days(series)
            self._end_series(Failure(series, None, f"{fault}{GONE if gone else ''}"))
        elif not slab.ended and _worth_asking_again(job, fault):
            LOG.info("asking again: %s", fault)
            job.fault = None
            slab.ask_again(job)
        elif not slab.ended and _worth_splitting(job, fault):
            LOG.info("asking for halves: %s", fault)
            self._report += slab.split(job)
        elif slab.lost:
            self._report += slab.leave(job)
        else:
            self._give_up(slab, job, fault)

    def _may_be_had_elsewhere(self, fault: UnreachableError, series: Series) -> bool:
        """Whether another series is worth a try before the run ends: perhaps nothing comes of this one alone."""
        if not fault.is_there or self._doubtful - {series}:
            return False
        begun = {slab.slab.series for slab in self._open} - self._standing.ended - {series}
        return bool(begun) or self._waiting.others(series)

    def _give_up(self, slab: OpenSlab, job: Job, fault: HeatpipeError) -> None:
        """Leave a window uncovered, with a record of why; after too many alike, end the series."""
        series, cause = job.window.series, type(fault).__name__
        beyond = isinstance(fault, HistoryError)
        self._report += Report(failures=(Failure(series, job.window.span, str(fault), counts=not beyond),))
        if not beyond:
            record = {
                "request": show_request(job.window),
                "reason": str(fault),
                "given_up_at": show_time(self._crew.clock()),
            }
            if job.body is not None and len(job.body) == KEPT_BYTES:
                record["body"] = f"the answer's first {KEPT_BYTES:,} bytes"
            with self._store.turn(slab.slab):
                self._store.quarantine(slab.slab, job.window.span, record, job.body)
        self._report += slab.drop(job)
        if not beyond and slab.came_to_nothing(job.spent):
            self._standing.alike[series, cause].add(job.spent)
        if len(self._standing.alike[series, cause]) >= ALIKE:
            self._end_series(
                Failure(series, None, f"{series}: {ALIKE} windows failed alike; the rest was not asked for")
            )

    def _end_series(self, failure: Failure) -> None:
        if failure.series not in self._standing.ended:
            self._standing.ended.add(failure.series)
            self._waiting.count_out(failure.series)
            self._report += Report(failures=(failure,))
        for slab in [slab for slab in self._open if slab.slab.series == failure.series]:
            slab.abandon()
        self._close_what_is_done()

    def _close_what_is_done(self) -> None:
        """Close the slabs that await nothing, neither an answer of their own nor one that ends their doubt."""
        for slab in [slab for slab in self._open if not slab.jobs and not self._may_learn(slab)]:
            self._open.remove(slab)  # first: what cannot be closed is not closed twice
            self._report += slab.close()
            if slab.lost:
                self._hand_over(slab)

    def _hand_over(self, slab: OpenSlab) -> None:
        """Leave the rest of a slab to the run that has its lock now, or look at it again when that is done."""
        series, told = slab.slab.series, f"{slab.lost}; what came is stored"
        if slab.left and not self._wait_for_locks:
            told += ", and nothing more was asked for"
            self._report += Report(failures=(Failure(series, slab.plan.span, told, held=True),))
            return
        LOG.warning("%s", told)
        if slab.left:
            self._answered[slab.slab] = slab.answered
            self._waiting.put(slab.plan)

    def _may_learn(self, slab: OpenSlab) -> bool:
        """Whether a slab has absences in doubt, and later answers of its series, which may end it, are on their way."""
        later = [other for other in self._open if other.jobs and other.slab.span.start > slab.slab.span.start]
        return any(other.slab.series == slab.slab.series for other in later) and slab.in_doubt

    def _tell(self) -> None:
        jobs = [(len(slab.jobs), slab.slab.series) for slab in self._open]
        self._on_progress(
            Progress(
                done=sum((slab.bill for slab in self._open), self._report),
                windows_done=self._windows_done,
                windows=self._windows_done + sum(count for count, _ in jobs) + self._waiting.windows,
                weight_left=sum(count * weigh_window(series) for count, series in jobs) + self._waiting.weight,
            )
        )

    # Leaving

    def _leave(self) -> None:
        """Write what has arrived, whatever the reason for leaving, and let go of every lock."""
        with contextlib.ExitStack() as stack:
            for slab in self._open:
                stack.callback(slab.close)
            if self._in_flight:
                self._crew.wind_down()
                self._collect_paid()

    def _collect_paid(self) -> None:
        """Take in the answers that are on their way and come within a moment: they are paid for."""
        deadline = time.monotonic() + GRACE_S
        while self._in_flight:
            try:
                job = self._replies.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                return
            self._in_flight -= 1
            slab = next((slab for slab in self._open if job in slab.jobs), None)
            if slab is not None and job.answer is not None:
                slab.accept(job, job.answer)
            self._crew.release(job)


def _worth_asking_again(job: Job, fault: HeatpipeError) -> bool:
    """Whether the same request may still be answered: bad bytes once more, a single heavy point twice more."""
    tries = job.tries[type(fault).__name__]
    if isinstance(fault, TooHeavyError):
        worth = job.window.points == 1 and tries < ATTEMPTS_AT_A_POINT
    else:
        worth = isinstance(fault, DecodeError) and tries < ATTEMPTS_AT_BAD_BYTES
    return worth and job.spent.allows(1)


def _worth_splitting(job: Job, fault: HeatpipeError) -> bool:
    """Whether halves may come where the whole did not. A wrong envelope is wrong for any part of it."""
    kind = isinstance(fault, TooHeavyError | DecodeError) and not isinstance(fault, EnvelopeError)
    return kind and job.window.points > 1 and job.spent.allows(2)

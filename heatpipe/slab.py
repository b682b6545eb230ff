"""One slab at work: its lock, its open windows, its days in memory until they are whole."""

import contextlib
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from typing import Final

from heatpipe.client import Spent
from heatpipe.compare import Difference, compare_days
from heatpipe.disk import Mark
from heatpipe.errors import DamagedError, DatasetError, LockedError, UnreadableError
from heatpipe.fetch import Job
from heatpipe.finality import Answer, borders_points, is_odd, join_hulls, settle_doubt
from heatpipe.layout import Day, Footer, day_date, day_path
from heatpipe.model import Coverage, Series, Snapshots, Span, Spans, Window, day_span, days_of
from heatpipe.plan import NOTHING, Slab, SlabPlan, plan_slab, plan_windows
from heatpipe.report import Failure, Report
from heatpipe.store import Store

LOG: Final = logging.getLogger("heatpipe")
BLANK: Final = "blank"
"""How a job's tries name answers without any point."""
DAMAGED: Final = "was damaged and is set aside in the quarantine"
MERGES: Final = 20
"""How often a day is merged anew because its file was replaced meanwhile."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What one answer brought for one day. One value, so that an interrupt finds all of it or nothing."""

    snapshots: Snapshots
    coverage: Coverage
    doubtful: Spans
    dated: bool


@dataclass(frozen=True, slots=True)
class _Sight:
    """What a day's file said when it was looked at; by default that there was none."""

    mark: Mark | None = None
    footer: Footer | None = None
    """None also where it told nothing that can be believed"""

    @property
    def coverage(self) -> Coverage:
        return Coverage() if self.footer is None else self.footer.coverage


class KnownPoints:
    """From the first to the last point of each series, on disk and in a run's answers. Threads may share it."""

    def __init__(self) -> None:
        self._stored: dict[Series, Span | None] = {}
        self._came: dict[Series, Span | None] = {}
        self._lock = Lock()

    def note(self, series: Series, points: Span | None) -> None:
        """Add what came."""
        with self._lock:
            self._came[series] = join_hulls(self._came.get(series), points)

    def tell(self, series: Series, store: Store) -> Span | None:
        """Return what is known now; what is on disk is looked up once, when it is first asked for."""
        with self._lock:
            if series not in self._stored:
                self._stored[series] = store.points(series)
            return join_hulls(self._stored[series], self._came.get(series))


class OpenSlab:
    """A slab between taking its lock and letting go of it.

    Parameters
    ----------
    store : Store
        Where its days are.
    plan : SlabPlan
        The slab, which part of it is wanted, and what to ask for again. The windows are planned anew, under the lock.
    replies : SimpleQueue
        Where its jobs are to come back.
    known_points : KnownPoints
        The run's.
    refetch : bool
        Ask for what is covered as well, and replace it.
    refetch_absent : bool
        Ask for what is recorded as absent as well.
    answered : Spans
        What of it has come in this run already, before its lock was lost: not to be asked for again.

    Attributes
    ----------
    plan : SlabPlan
        As it was given.
    jobs : set of Job
        Windows that have not come yet.
    queued : deque of Job
        Those of them that nobody has been sent for.
    ended : bool
        Whether nothing more is to be asked for.
    lost : str
        What happened to its lock, where another run has it now.
    left : bool
        Whether something is left to that run.
    answered : Spans
        What has come in this run.
    """

    def __init__(
        self,
        store: Store,
        plan: SlabPlan,
        replies: "SimpleQueue[Job]",
        known_points: KnownPoints,
        *,
        refetch: bool = False,
        refetch_absent: bool = False,
        answered: Spans = NOTHING,
    ) -> None:
        self.plan = plan
        self.slab: Slab = plan.slab
        self.jobs: set[Job] = set()
        self.queued: deque[Job] = deque()
        self.ended = False
        self.lost = ""
        self.left = False
        self.answered = answered
        self._store = store
        self._span = plan.span
        self._holes = Spans()
        self._lookback = plan.again
        self._again = Spans()
        self._replies = replies
        self._refetch = refetch
        self._refetch_absent = refetch_absent
        self._known_points = known_points
        self._blank: dict[Job, Answer] = {}
        self._seen: dict[int, _Sight] = {}
        self._parts: defaultdict[int, list[_Part]] = defaultdict(list)
        self._bills: list[Spent] = []
        self._damaged: dict[int, tuple[Failure, ...]] = {}
        self._vanished: dict[int, Spans] = {}
        self._given_up: list[Span] = []
        self._lock = contextlib.ExitStack()
        self._renew_lock: Callable[[], None] = lambda: None

    def open(self, wait: Callable[[float], None] | None) -> None:
        """Take the lock, read the coverage, plan.

        Raises
        ------
        LockedError
            Another process has the lock, and `wait` is None.
        UnreadableError
            A day of it cannot be read now; the lock is free again.
        """
        self._renew_lock = self._lock.enter_context(self._store.lock(self.slab, wait=wait))
        try:
            self._seen = {day: self._look(day) for day in days_of(self._span)}
        except UnreadableError:
            self._lock.close()
            raise
        stored = Coverage.union(sight.coverage for sight in self._seen.values())
        known = self.answered if self._refetch else stored.covered
        if self._refetch_absent:
            known -= stored.absent - self.answered
        plan = plan_slab(self.slab, self._span, known, self._lookback - self.answered)
        self._holes = Spans.of([self._span]) - known
        self._lookback = plan.again
        self._again = plan.again
        if self._refetch:
            self._again |= Spans.of([self._span])
        elif self._refetch_absent:
            self._again |= stored.absent.within(self._span)
        for window in plan.windows:
            self._line_up(Job(window, self._replies))
        self._bills.extend(job.spent for job in self.queued)

    def _look(self, day: int) -> _Sight:
        """Read what a day's file says. Its mark is older, so that a file that comes between the two is seen later."""
        mark = self._store.mark(self.slab.series, day)
        self._damaged.pop(day, None)
        try:
            return _Sight(mark, self._store.footer(self.slab.series, day))
        except DamagedError as exc:
            self._store.tell_damage(exc)
            self._damaged[day] = self._lost(day)
            return _Sight(mark)

    def _look_again(self, day: int) -> bool:
        """Look at a day's file if it is another one by now; return whether it says something else."""
        before, damaged = self._seen[day], day in self._damaged
        if self._store.mark(self.slab.series, day) == before.mark:
            return False
        now = self._seen[day] = self._look(day)
        if now.mark is None:
            self._vanished[day] = before.coverage.covered
        else:
            self._vanished.pop(day, None)
        return now.footer != before.footer or damaged != (day in self._damaged)

    @property
    def in_doubt(self) -> bool:
        """Whether days wait for a point after them: without one, their last absences are not sure."""
        return not self.ended and any(self._sum_up(parts, complete=False)[1] for parts in self._parts.values())

    @property
    def bill(self) -> Report:
        """What its requests have cost so far."""
        return Report(
            requests=sum(spent.requests for spent in self._bills),
            weight=sum(spent.weight for spent in self._bills),
        )

    def accept(self, job: Job, answer: Answer) -> Report:
        """Take an answer in, and write the days that are whole with it.

        A window that came without any point is taken in later, when more is known of the series: between points, or
        next to some, it is asked for once more first, for it may have been a hiccup.
        """
        self._known_points.note(self.slab.series, answer.points)
        job.spent.fruitful = True
        report = Report(wire_bytes=answer.wire_bytes)
        if answer.points is None and not job.tries[BLANK] and job.spent.allows(1):
            self._blank[job] = answer
        else:
            report += self._take_in(job, answer)
        return report + self._settle_blanks()

    def _take_in(self, job: Job, answer: Answer) -> Report:
        self.answered |= answer.coverage.covered
        for day in days_of(job.window.span):
            span = day_span(day)
            part = _Part(
                answer.snapshots.between(span), answer.coverage.within(span), answer.doubtful.within(span), answer.dated
            )
            self._parts[day].append(part)
        self.jobs.discard(job)
        return self._write_whole_days(job) + Report(
            open=self._count(answer.open & self._holes),
            young=self._count(answer.young & self._holes),
        )

    def _settle_blanks(self) -> Report:
        """Ask once more for windows that came blank between points; take in the others when nothing else is awaited."""
        if not self._blank:
            return Report()
        points = self._points
        for job, answer in list(self._blank.items()):
            if is_odd(answer, job.window, points):
                self._ask_once_more(job)
        if len(self._blank) < len(self.jobs):
            return Report()
        for job, answer in list(self._blank.items()):
            if borders_points(answer, job.window, points):
                self._ask_once_more(job)
        if len(self._blank) < len(self.jobs):
            return Report()
        blank, self._blank = self._blank, {}
        return sum((self._take_in(job, answer) for job, answer in blank.items()), Report())

    def _ask_once_more(self, job: Job) -> None:
        LOG.info("asking again: %s: no point came, and the series has some next to it", job.window)
        del self._blank[job]
        job.tries[BLANK] += 1
        self.ask_again(job)

    @property
    def _points(self) -> Span | None:
        """From the first to the last point of the series that is known now."""
        return self._known_points.tell(self.slab.series, self._store)

    def ask_again(self, job: Job) -> None:
        """Put a window back in line, first."""
        self._line_up(job, first=True)

    def split(self, job: Job) -> Report:
        """Put less than a window in line in its place, first; where nothing is left of it, write what waited for it."""
        for window in reversed(self._parts_of(job.window)):
            self._line_up(Job(window, self._replies, job.spent), first=True)
        self.jobs.discard(job)
        return self._write_whole_days(job)

    def _parts_of(self, window: Window) -> Sequence[Window]:
        """Return what is missing of a window that looks back: that was to cost nothing. Of any other, its halves."""
        if self._lookback.within(window.span):
            missing = tuple(plan_windows(window.series, self._holes.within(window.span)))
            if missing != (window,):
                return missing
        return window.halves()

    def _line_up(self, job: Job, *, first: bool = False) -> None:
        job.spent.commit()
        self.jobs.add(job)
        if first:
            self.queued.appendleft(job)
        else:
            self.queued.append(job)

    def drop(self, job: Job) -> Report:
        """Give a window up; write the days that waited for nothing else."""
        self._given_up.append(job.window.span)
        self.jobs.discard(job)
        return self._write_whole_days(job) + self._settle_blanks()

    def came_to_nothing(self, spent: Spent) -> bool:
        """Whether no part of a window has come, and none is still to come."""
        return not spent.fruitful and all(job.spent is not spent for job in self.jobs)

    def leave(self, job: Job) -> Report:
        """Leave a window to whoever has the lock now; write the days that waited for nothing else."""
        self.left = True
        self.jobs.discard(job)
        return self._write_whole_days(job)

    def abandon(self) -> None:
        """Ask for nothing more: give up every window that nobody has been sent for, or of which no point came."""
        self.ended = True
        self.jobs.difference_update(self.queued, self._blank)
        self.queued.clear()
        self._blank.clear()

    def close(self) -> Report:
        """Write what has arrived, whole days or not, and let go of the lock."""
        with self._lock:
            report = self.bill
            faults: list[DatasetError] = []
            for day in sorted(self._parts):
                try:
                    report += self._write_day(day, last=True)
                except UnreadableError as exc:  # it stays as it is
                    report += Report(failures=(Failure(self.slab.series, day_span(day), str(exc)),))
                except DatasetError as exc:  # the other days may still be written
                    faults.append(exc)
            if faults:
                raise faults[0]
            self._store.release(self.slab.series, self.slab.span, keep=self._given_up)
            return report

    def _write_whole_days(self, job: Job) -> Report:
        """Write the days of a window, and those that were in doubt, for which no other window is still to come."""
        awaited = [other.window.span for other in self.jobs]
        whole = [
            day
            for day in sorted(self._parts.keys() | days_of(job.window.span))
            if all(span.clip(day_span(day)).seconds <= 0 for span in awaited)
        ]
        report = Report()
        for day in whole:
            try:
                report += self._write_day(day)
            except UnreadableError:  # once more when the slab is closed; until then nothing more is paid for
                self.abandon()
        return report

    def _write_day(self, day: int, *, last: bool = False) -> Report:
        """Merge what came for a day into what is on disk, and replace the file if that changes it.

        A day with absences that are not sure yet is left for later, but for the `last` time.
        """
        parts = self._parts.get(day, [])
        came, doubtful = self._sum_up(parts, complete=last and not self.jobs)
        if not parts or (doubtful and not last):
            return Report()
        if not last:
            self._watch_lock()
        path = str(self._store.root / day_path(self.slab.series, day))
        try:
            with self._store.turn(self.slab) as await_turn:
                for _ in range(MERGES):
                    self._look_again(day)
                    report = self._merge_day(day, parts, came, await_turn)
                    if report is not None:
                        self._parts.pop(day)
                        return report + Report(young=self._count(doubtful & self._holes))
        except MemoryError as exc:
            raise UnreadableError(f"{path} cannot be written now: not enough memory", path) from exc
        raise UnreadableError(f"{path} cannot be written now: something replaces it again and again", path)

    def _watch_lock(self) -> None:
        """See that the lock is held still; where another run has it by now, leave to it what nobody was sent for."""
        try:
            if not self.lost:
                self._renew_lock()
        except LockedError as exc:
            self.lost = str(exc)
            self.left = bool(self.queued or self._blank)
            self.abandon()

    def _merge_day(
        self, day: int, parts: Sequence[_Part], came: Coverage, await_turn: Callable[[], None]
    ) -> Report | None:
        """Merge what came for a day into what its file holds by now; None where that is replaced meanwhile."""
        known = self._seen[day].coverage.covered
        new, again = came.covered - known, came.covered & known & (self._again | self._came_twice(day, came))
        old = self._read_old(day, came) if known and (new or again) else None
        counted = Report()
        if old is None:
            fresh = came.covered if new or again else Spans()
        else:
            difference = self._compare(old, Day(old.series, day, _join(_within(parts, again)), came), again)
            counted = self._count_up(difference)
            fresh = new | (again if self._refetch else again - difference.unchanged)
        if not fresh:
            return counted
        written = self._replace_day(day, old, came, _within(parts, fresh), fresh, await_turn)
        return None if written is None else counted + written

    def _came_twice(self, day: int, came: Coverage) -> Spans:
        """Return what was missing when it was asked for, and is stored by now: by another run, or another program.

        What came is the newer one, and replaces it, but for rows where none came: for want of a lock none are given up.
        """
        stored = self._seen[day].coverage
        return (stored.covered & self._holes) - (stored.present - came.present)

    def _sum_up(self, parts: Sequence[_Part], *, complete: bool) -> tuple[Coverage, Spans]:
        """Return what the parts cover, as far as it is sure by now, and which absences are not."""
        came = [part.coverage for part in parts]
        doubtful = Spans()
        for part in parts:
            if part.doubtful:
                sure = settle_doubt(part.doubtful, self._points, complete=complete and part.dated)
                came.append(Coverage(sure, absent=sure))
                doubtful |= part.doubtful - sure
        return Coverage.union(came), doubtful

    def _compare(self, old: Day, new: Day, spans: Spans) -> Difference:
        difference = compare_days(old, new, spans)
        for how in ("changed", "appeared"):  # what vanished is told by who keeps it
            if where := getattr(difference, how):
                LOG.info("%s: asked for again, and %s: %s", self.slab.series, how, where)
        return difference

    def _count_up(self, difference: Difference) -> Report:
        return Report(
            unchanged=self._count(difference.unchanged),
            changed=self._count(difference.changed),
            appeared=self._count(difference.appeared),
            vanished=self._count(difference.vanished),
        )

    def _count(self, spans: Spans) -> int:
        return spans.seconds // self.slab.series.interval_s

    def _replace_day(
        self,
        day: int,
        old: Day | None,
        came: Coverage,
        arrived: list[Snapshots],
        fresh: Spans,
        await_turn: Callable[[], None],
    ) -> Report | None:
        """Write a day as it was, but for what is fresh; None where its file has become another one meanwhile."""

        def may_replace() -> bool:
            await_turn()
            return not self._look_again(day)

        if day in self._damaged:
            self._store.set_aside(self.slab, day)
        failures = self._damaged.get(day, ())
        if self._vanished.get(day, NOTHING) - came.covered:
            failures += self._failure_of(day, "had vanished when it was to be extended")
        known = Coverage() if old is None else old.coverage
        kept = known - fresh
        pieces = [] if old is None else [old.snapshots.between(span) for span in kept.covered]
        coverage = kept | (came - (came.covered - fresh))
        self._keep_what_vanishes(day, known, coverage)
        whole = Day(self.slab.series, day, _join(pieces + arrived), coverage)
        size = self._store.write_day(whole, self.slab, may_replace)
        if size is None:
            return None
        self._seen[day] = _Sight()  # what was written is looked at when it is to be extended
        self._damaged.pop(day, None)
        self._vanished.pop(day, None)
        return Report(
            points=sum(piece.points for piece in arrived),
            rows=sum(piece.rows for piece in arrived),
            absent=self._count(coverage.absent - known.absent),
            days=1,
            bytes_written=size,
            failures=failures,
        )

    def _keep_what_vanishes(self, day: int, known: Coverage, now: Coverage) -> None:
        """Set a file aside that has rows where the upstream has none any more: they may be had nowhere else."""
        gone = known.present - now.present
        if gone:
            self._store.set_aside(self.slab, day)
            count = gone.seconds // self.slab.series.interval_s
            LOG.warning(
                "%s %s: %s intervals had rows, and the upstream has none now: the file as it was is in the quarantine",
                *(self.slab.series, day_date(day), f"{count:,}"),
            )

    def _read_old(self, day: int, came: Coverage) -> Day | None:
        """Read a day back; None where nothing of it can be believed, which costs what has not come in this run."""
        try:
            return self._store.read_day(self.slab.series, day)
        except DamagedError as exc:
            LOG.warning("%s", exc)
            lost = self._seen[day].coverage.covered - came.covered
            self._damaged[day] = self._failure_of(day, DAMAGED) if lost else ()
            return None

    def _lost(self, day: int) -> tuple[Failure, ...]:
        """Name a day whose file told nothing, unless all of it is asked for in this run."""
        return () if day_span(day).clip(self._span) == day_span(day) else self._failure_of(day, DAMAGED)

    def _failure_of(self, day: int, what: str) -> tuple[Failure, ...]:
        span = day_span(day)
        reason = (
            f"{Window(self.slab.series, span)}: the day's file {what}; "
            "what came in this run replaced it: fetch the day again for the rest"
        )
        return (Failure(self.slab.series, span, reason),)


def _within(parts: Iterable[_Part], spans: Spans) -> list[Snapshots]:
    """Return what the parts answer of some spans."""
    return [part.snapshots.between(span) for part in parts for span in part.coverage.covered & spans]


def _join(pieces: Iterable[Snapshots]) -> Snapshots:
    return Snapshots.concatenate(sorted((piece for piece in pieces if piece.points), key=_first_timestamp))


def _first_timestamp(snapshots: Snapshots) -> int:
    return int(snapshots.timestamp[0])

"""One slab at work: its lock, its open windows, its days in memory until they are whole."""

import contextlib
import logging
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

from heatpipe.client import Spent
from heatpipe.errors import DamagedError, DatasetError
from heatpipe.fetch import Answer, Job
from heatpipe.layout import Day, day_date
from heatpipe.model import Coverage, Snapshots, Span, Spans, Window, day_span, days_of
from heatpipe.plan import Slab, SlabPlan, plan_slab
from heatpipe.report import Failure, Report
from heatpipe.store import Store

LOG: Final = logging.getLogger("heatpipe")


@dataclass(frozen=True, slots=True)
class _Part:
    """What one answer brought for one day. One value, so that an interrupt finds all of it or nothing."""

    snapshots: Snapshots
    coverage: Coverage


class OpenSlab:
    """A slab between taking its lock and letting go of it.

    Parameters
    ----------
    store : Store
        Where its days are.
    plan : SlabPlan
        The slab, and which part of it is wanted. The windows are planned anew, under the lock.
    replies : SimpleQueue
        Where its jobs are to come back.
    refetch : bool
        Ask for what is covered as well, and replace it.

    Attributes
    ----------
    jobs : set of Job
        Windows that have not come yet.
    queued : deque of Job
        Those of them that nobody has been sent for.
    """

    def __init__(self, store: Store, plan: SlabPlan, replies: "SimpleQueue[Job]", *, refetch: bool = False) -> None:
        self.slab: Slab = plan.slab
        self.jobs: set[Job] = set()
        self.queued: deque[Job] = deque()
        self._store = store
        self._span = plan.span
        self._replies = replies
        self._refetch = refetch
        self._coverage: dict[int, Coverage] = {}
        self._parts: defaultdict[int, list[_Part]] = defaultdict(list)
        self._bills: list[Spent] = []
        self._damaged: set[int] = set()
        self._given_up: list[Span] = []
        self._lock = contextlib.ExitStack()

    def open(self, wait: Callable[[float], None] | None) -> None:
        """Take the lock, read the coverage, plan.

        Raises
        ------
        LockedError
            Another process has the lock, and `wait` is None.
        """
        self._lock.enter_context(self._store.lock(self.slab, wait=wait))
        covered = Spans()
        for day in days_of(self._span):
            self._coverage[day] = self._read_coverage(day)
            covered |= self._coverage[day].covered
        plan = plan_slab(self.slab, self._span, Spans() if self._refetch else covered)
        for window in plan.windows:
            self._line_up(Job(window, self._replies))
        self._bills.extend(job.spent for job in self.queued)

    def _read_coverage(self, day: int) -> Coverage:
        try:
            footer = self._store.footer(self.slab.series, day)
        except DamagedError as exc:
            self._store.tell_damage(exc)
            self._damaged.add(day)
            return Coverage()
        return Coverage() if footer is None else footer.coverage

    @property
    def bill(self) -> Report:
        """What its requests have cost so far."""
        return Report(
            requests=sum(spent.requests for spent in self._bills),
            weight=sum(spent.weight for spent in self._bills),
        )

    def accept(self, job: Job, answer: Answer) -> Report:
        """Take an answer in, and write the days that are whole with it."""
        for day in days_of(job.window.span):
            span = day_span(day)
            self._parts[day].append(_Part(answer.snapshots.between(span), answer.coverage.within(span)))
        job.spent.fruitful = True
        self.jobs.discard(job)
        return self._write_whole_days(job) + Report(
            wire_bytes=answer.wire_bytes,
            open=answer.open.seconds // self.slab.series.interval_s,
            young=answer.young.seconds // self.slab.series.interval_s,
        )

    def ask_again(self, job: Job) -> None:
        """Put a window back in line, first."""
        self._line_up(job, first=True)

    def split(self, job: Job) -> None:
        """Put the halves of a window in line in its place, first."""
        for window in reversed(job.window.halves()):
            self._line_up(Job(window, self._replies, job.spent), first=True)
        self.jobs.discard(job)

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
        return self._write_whole_days(job)

    def came_to_nothing(self, spent: Spent) -> bool:
        """Whether no part of a window has come, and none is still to come."""
        return not spent.fruitful and all(job.spent is not spent for job in self.jobs)

    def abandon(self) -> None:
        """Give up every window that nobody has been sent for."""
        self.jobs.difference_update(self.queued)
        self.queued.clear()

    def close(self) -> Report:
        """Write what has arrived, whole days or not, and let go of the lock."""
        with self._lock:
            report = self.bill
            faults: list[DatasetError] = []
            for day in sorted(self._parts):
                try:
                    report += self._write_day(day)
                except DatasetError as exc:  # the other days may still be written
                    faults.append(exc)
            if faults:
                raise faults[0]
            self._store.release(self.slab.series, self.slab.span, keep=self._given_up)
            return report

    def _write_whole_days(self, job: Job) -> Report:
        """Write the days of a window that no other window is still to come for."""
        awaited = [other.window.span for other in self.jobs]
        whole = [
            day for day in days_of(job.window.span) if all(span.clip(day_span(day)).seconds <= 0 for span in awaited)
        ]
        return sum((self._write_day(day) for day in whole), Report())

    def _write_day(self, day: int) -> Report:
        """Merge what came for a day into what is on disk, and replace the file if that changes it."""
        parts = self._parts.get(day, [])
        known = self._coverage[day]
        answered = Coverage()
        for part in parts:
            answered |= part.coverage
        fresh = answered.covered if self._refetch else answered.covered - known.covered
        if not fresh:
            self._parts.pop(day, None)
            return Report()
        kept = known - fresh
        old, failures = self._read_old(day) if kept.covered else (None, ())
        if old is None:
            kept = Coverage()
        if day in self._damaged:
            self._store.set_aside(self.slab, day)
            self._damaged.discard(day)
            failures = failures or self._lost(day)
        pieces = [] if old is None else [old.snapshots.between(span) for span in kept.covered]
        arrived = [part.snapshots.between(span) for part in parts for span in part.coverage.covered & fresh]
        merged = Day(
            self.slab.series,
            day,
            Snapshots.concatenate(sorted((p for p in pieces + arrived if p.points), key=_first_timestamp)),
            kept | (answered - (answered.covered - fresh)),
        )
        self._keep_what_vanishes(day, known, merged.coverage)
        size = self._store.write_day(merged, self.slab)
        self._coverage[day] = merged.coverage
        self._parts.pop(day, None)
        return Report(
            points=sum(piece.points for piece in arrived),
            rows=sum(piece.rows for piece in arrived),
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

    def _read_old(self, day: int) -> tuple[Day | None, tuple[Failure, ...]]:
        try:
            return self._store.read_day(self.slab.series, day), ()
        except DamagedError as exc:
            self._damaged.add(day)
            LOG.warning("%s", exc)
            return None, self._failure_of(day)

    def _lost(self, day: int) -> tuple[Failure, ...]:
        """Name a day whose file told nothing, unless all of it is asked for in this run."""
        return () if day_span(day).clip(self._span) == day_span(day) else self._failure_of(day)

    def _failure_of(self, day: int) -> tuple[Failure, ...]:
        span = day_span(day)
        reason = (
            f"{Window(self.slab.series, span)}: the day's file was damaged and is set aside in the quarantine; "
            "what came in this run replaced it: fetch the day again for the rest"
        )
        return (Failure(self.slab.series, span, reason),)


def _first_timestamp(snapshots: Snapshots) -> int:
    return int(snapshots.timestamp[0])

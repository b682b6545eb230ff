"""Span and coverage to slabs and weighed windows. Pure: no I/O, no clock.

Weight steps at 1,000 points, so windows ignore midnight and covered stretches: cut greedily from the leftmost
hole, 1,000 points each, they are as few, and so as cheap, as windows of a slab can be.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from heatpipe.errors import ConfigError
from heatpipe.model import DAY_S, Series, Span, Spans, Window, show_time
from heatpipe.upstream import LIQUIDATIONS, Interval

NOTHING: Final = Spans()
POINTS_PER_WINDOW: Final = LIQUIDATIONS.points_per_weight


@dataclass(frozen=True, slots=True)
class Slab:
    """A run of whole UTC days of one series on a fixed grid: the unit of orchestration, locking and planning.

    Parameters
    ----------
    series : Series
        Whose days.
    number : int
        Position on the grid, counted from the epoch.
    """

    series: Series
    number: int

    @property
    def span(self) -> Span:
        """All of its days."""
        length = slab_days(self.series.interval_s) * DAY_S
        return Span(self.number * length, (self.number + 1) * length)

    def __str__(self) -> str:
        return f"{self.series.coin} {self.series.interval} {_show_days(self.span)}"


def _show_days(span: Span) -> str:
    """First and last day, as ISO 8601 writes a span of time; both are part of it."""
    return f"{show_time(span.start)[:10]}/{show_time(span.end - 1)[:10]}"


def slab_days(interval_s: int) -> int:
    """Days in a slab: 25 of minutes are exactly 36 windows; longer intervals make longer slabs."""
    if interval_s <= Interval.MINUTE.seconds:
        return 25
    return 125 if interval_s <= Interval.HOUR.seconds else 1000


def plan_slabs(series: Series, span: Span) -> list[Slab]:
    """Cut a span at the grid; every slab that it touches, in order."""
    length = slab_days(series.interval_s) * DAY_S
    return [Slab(series, number) for number in range(span.start // length, -(-span.end // length))]


def plan_windows(series: Series, holes: Spans) -> Iterator[Window]:
    """Cover the holes of one slab with windows whose weight is the least possible."""
    return (Window(series, span) for span in cut_windows(series, holes))


def cut_windows(series: Series, holes: Spans) -> Iterator[Span]:
    """Return the spans of `plan_windows`.

    Leftmost hole first; a window bridges covered intervals that come along, and ends with the last interval in
    it that is wanted, so that no byte is asked for in vain.
    """
    reach = _reach_of(series)
    wanted = holes.spans
    at = 0
    start = wanted[0].start if wanted else 0
    while at < len(wanted):
        limit = start + reach
        end = start
        while at < len(wanted) and wanted[at].start < limit:
            end = min(wanted[at].end, limit)
            if wanted[at].end > limit:
                break
            at += 1
        yield Span(start, end)
        if at < len(wanted):
            start = max(end, wanted[at].start)


def count_windows(series: Series, holes: Spans) -> int:
    """Return how many windows `plan_windows` makes, without making them."""
    reach = _reach_of(series)
    count = limit = 0  # where the last window may end
    for hole in holes:
        start = max(hole.start, limit)
        if start < hole.end:
            more = -(-(hole.end - start) // reach)
            count += more
            limit = start + more * reach
    return count


def weigh_window(series: Series) -> int:
    """Return what one window of a plan, or a part of one, costs: all of them lie within the same step of weight."""
    return LIQUIDATIONS.weigh(POINTS_PER_WINDOW, series.depth)


def _reach_of(series: Series) -> int:
    return POINTS_PER_WINDOW * series.interval_s


@dataclass(frozen=True, slots=True)
class Horizon:
    """What can be asked for at one moment: not what is still open, nor what is beyond the history.

    Parameters
    ----------
    now : float
        The moment, in Unix seconds.
    settle_s : int
        How long after its end an interval is closed.
    history_days : int
        Days of history that the tier sells; 0 for all.
    """

    now: float
    settle_s: int
    history_days: int

    def closed_end(self, interval_s: int) -> int:
        """Return the end of the last closed interval."""
        return int((self.now - self.settle_s) // interval_s) * interval_s

    def history_start(self, interval_s: int) -> int:
        """Return the start of the first interval that lies wholly in the history."""
        if not self.history_days:
            return 0
        return int(-(-(self.now - self.history_days * DAY_S) // interval_s)) * interval_s

    def reach(self, interval_s: int) -> Span:
        """From the first interval of the history to the last closed one."""
        return Span(self.history_start(interval_s), self.closed_end(interval_s))


@dataclass(frozen=True, slots=True)
class Clipped:
    """A span that can be asked for, and what was said about the rest of what the user named."""

    span: Span
    warnings: tuple[str, ...] = ()
    open_s: int = 0
    """seconds of what was named that are not closed yet"""


def clip_span(wanted: Span, interval_s: int, horizon: Horizon) -> Clipped:
    """Round a user's span inward to the grid and clip it to what the upstream can answer now.

    Returns
    -------
    Clipped
        The span, empty where all of it is still open, with a warning where history cut it.

    Raises
    ------
    ConfigError
        The span ends before it starts, holds no whole interval, or lies wholly beyond the history.
    """
    if wanted.seconds == 0:
        raise ConfigError(f"the span is empty: it starts and ends {show_time(wanted.start)}")
    if wanted.seconds < 0:
        raise ConfigError(f"the span ends ({show_time(wanted.end)}) before it starts ({show_time(wanted.start)})")
    inward = Span(-(-wanted.start // interval_s) * interval_s, wanted.end // interval_s * interval_s)
    if inward.seconds <= 0:
        raise ConfigError(f"the span {wanted} holds no whole interval of {interval_s} seconds")
    reach = horizon.reach(interval_s)
    if inward.end <= reach.start:
        raise ConfigError(
            f"the span {inward} lies wholly beyond the {horizon.history_days} days of history that the tier sells, "
            f"which start at {show_time(reach.start)}; ask for later days, or set history_days if your tier sells more"
        )
    warnings: tuple[str, ...] = ()
    if inward.start < reach.start:
        warning = (
            f"the span starts {show_time(inward.start)}, beyond the {horizon.history_days} days of history that the "
            f"tier sells; clipped to {show_time(reach.start)}"
        )
        warnings = (warning,)
    clipped = inward.clip(reach)
    open_s = Span(max(inward.start, reach.end), inward.end).seconds
    return Clipped(Span(clipped.start, max(clipped.start, clipped.end)), warnings, max(0, open_s))


@dataclass(frozen=True, slots=True)
class SlabPlan:
    """What to ask for in one slab. It counts its windows, and holds none: years of many coins have millions.

    Parameters
    ----------
    slab : Slab
        Where.
    span : Span
        The part of the slab that is wanted.
    wanted : Spans
        What of it is asked for; nothing where all is covered.
    requests : int
        The number of windows that takes.
    missing_s : int
        Seconds of the span that are not covered.
    again : Spans
        What is covered and asked for again all the same, since that costs no weight.
    obstacle : str
        Why it cannot be known now what is on disk, so that nothing is asked for.
    """

    slab: Slab
    span: Span
    wanted: Spans
    requests: int
    missing_s: int
    again: Spans = NOTHING
    obstacle: str = ""

    @property
    def windows(self) -> tuple[Window, ...]:
        """The requests, in order of time; made anew each time."""
        return tuple(plan_windows(self.slab.series, self.wanted))

    @property
    def weight(self) -> int:
        """What its requests cost."""
        return self.requests * weigh_window(self.slab.series)

    @property
    def told_obstacle(self) -> str:
        """Why nothing of it is asked for, in a line."""
        return f"{self.obstacle}; nothing of {self} was asked for"

    def __str__(self) -> str:
        return f"{self.slab.series.coin} {self.slab.series.interval} {_show_days(self.span)}"


def plan_slab(slab: Slab, span: Span, covered: Spans, lookback: Spans = NOTHING) -> SlabPlan:
    """Plan the windows of one slab for the part of `span` in it.

    Parameters
    ----------
    slab : Slab
        Where.
    span : Span
        What is wanted.
    covered : Spans
        What is on disk of the slab.
    lookback : Spans
        What of that is asked for again where it costs nothing: the newest of it first, as much as there is room for
        in windows that are paid for anyway.
    """
    wanted = slab.span.clip(span)
    holes = Spans.of([wanted]) - covered
    again = _ride_along(slab.series, holes, (lookback & covered).within(wanted))
    asked = holes | again
    return SlabPlan(slab, wanted, asked, count_windows(slab.series, asked), holes.seconds, again)


def bar_slab(slab: Slab, span: Span, obstacle: str) -> SlabPlan:
    """Plan nothing for a part of a slab, because of what cannot be read now."""
    return SlabPlan(slab, span, NOTHING, 0, 0, obstacle=obstacle)


def _ride_along(series: Series, holes: Spans, lookback: Spans) -> Spans:
    """Return the newest part of `lookback` with which the windows weigh what they weigh without it."""
    if not lookback:
        return NOTHING

    def newest(intervals: int) -> Spans:
        end = lookback.hull.end
        return lookback.within(Span(end - intervals * series.interval_s, end))

    def weigh(intervals: int) -> int:
        return count_windows(series, holes | newest(intervals))

    # More to ask for never weighs less, so that the first number that weighs more can be searched for by halves.
    every = range(1, lookback.hull.seconds // series.interval_s + 1)
    return newest(bisect_left(every, weigh(0) + 1, key=weigh))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a backfill would do.

    Parameters
    ----------
    slabs : tuple of SlabPlan
        In the order of work; those with nothing to do included.
    warnings : tuple of str
        What the user should know before anything is spent.
    open : int
        Intervals that were named and are not closed yet: left out.
    """

    slabs: tuple[SlabPlan, ...]
    warnings: tuple[str, ...] = ()
    open: int = 0

    @property
    def windows(self) -> Iterator[Window]:
        """All windows, in the order of work, made as they are asked for."""
        return (window for slab in self.slabs for window in plan_windows(slab.slab.series, slab.wanted))

    @property
    def requests(self) -> int:
        """Number of requests, if none has to be repeated or split."""
        return sum(slab.requests for slab in self.slabs)

    @property
    def weight(self) -> int:
        """What they cost."""
        return sum(slab.weight for slab in self.slabs)

    @property
    def left_out(self) -> list[str]:
        """What cannot be asked for now, and why: a line a slab."""
        return [slab.told_obstacle for slab in self.slabs if slab.obstacle]

    @property
    def intervals(self) -> int:
        """Intervals in the span that can be asked for."""
        return sum(slab.span.seconds // slab.slab.series.interval_s for slab in self.slabs if not slab.obstacle)

    @property
    def missing(self) -> int:
        """Intervals of them that are not on disk."""
        return sum(slab.missing_s // slab.slab.series.interval_s for slab in self.slabs)

    def seconds(self, weight_per_minute: int, burst: int) -> float:
        """Least time in which the budget allows it, if the bucket is full at the start."""
        return max(0, self.weight - burst) * 60 / weight_per_minute


LEVELS_PER_POINT: Final = 1_000
"""Levels a snapshot of a deep market such as BTC has on average, on the sandbox's market; quiet ones have half."""
WIRE_BYTES_PER_ROW: Final = 2.5
"""Compressed bytes on the wire for a row, on the sandbox's market (``make demo`` prints both)."""
DISK_BYTES_PER_ROW: Final = 1.2
"""Bytes of Parquet for a row, on the sandbox's market."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What to expect of a plan, at the rates measured on the sandbox's market; real ones depend on the coin."""

    rows: int
    wire_bytes: int
    disk_bytes: int


def estimate(plan: Plan) -> Estimate:
    """Estimate rows, download and disk space of what is missing."""
    rows = sum(
        slab.missing_s // slab.slab.series.interval_s * min(slab.slab.series.depth, LEVELS_PER_POINT)
        for slab in plan.slabs
    )
    return Estimate(rows, int(rows * WIRE_BYTES_PER_ROW), int(rows * DISK_BYTES_PER_ROW))

"""Which intervals of an answer are final: closed, and, where no point came, surely absent. Pure: no I/O, no clock.

An absence is sure when a point of the series is known after it, or when it is a week old by two clocks that agree: what
is published late, or was left out by one hiccup, must not count as absent for good.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from heatpipe.model import DAY_S, Coverage, Snapshots, Span, Spans, Window

YOUNG_S: Final = 15 * 60
"""An interval that ended later than this before the request may still be published: not yet absent."""
SURE_S: Final = 7 * DAY_S
"""An interval that ended so long before the request is absent, though no point is known after it: else the time after
a coin was delisted would be paid for by every run."""


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
    doubtful : Spans
        Closed intervals without a point that are absent only if the series goes on after them: see `settle_doubt`.
    points : Span or None
        From the first to the last interval with a point, final or not; None where no point came.
    dated : bool
        Whether the upstream's clock agreed with ours.
    wire_bytes : int
        Size of the body as it travelled.
    """

    snapshots: Snapshots
    coverage: Coverage
    open: Spans
    young: Spans
    doubtful: Spans = field(default_factory=Spans)
    points: Span | None = None
    dated: bool = False
    wire_bytes: int = 0


def judge(
    window: Window,
    snapshots: Snapshots,
    asked_at: float,
    settle_s: int,
    *,
    dated: bool,
    wire_bytes: int = 0,
) -> Answer:
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
    dated : bool
        Whether the upstream's clock agreed with ours: else no absence is sure by its age.
    wire_bytes : int
        Size of the body as it travelled.
    """
    step = window.series.interval_s

    def ended(before_s: float) -> Span:
        return Span(0, int((asked_at - before_s) // step) * step)

    closed = window.span.clip(ended(settle_s))
    answered = Spans.of([closed])
    final = snapshots.between(closed) if answered else Snapshots()
    coverage = Coverage.of_answer(answered, final, step)
    young = coverage.absent - Spans.of([ended(YOUNG_S)])
    points = _hull(snapshots, step)
    sure = Spans.of([ended(SURE_S)] if dated else []) | Spans.of([] if points is None else [(0, points.end)])
    doubtful = coverage.absent - young - sure
    return Answer(
        final,
        coverage - young - doubtful,
        Spans.of([window.span]) - answered,
        young,
        doubtful,
        points,
        dated,
        wire_bytes,
    )


def _hull(snapshots: Snapshots, interval_s: int) -> Span | None:
    if not snapshots.points:
        return None
    first, last = (snapshots.timestamp[np.array([0, -1])] // 1_000_000 // interval_s * interval_s).tolist()
    return Span(first, last + interval_s)


def settle_doubt(doubtful: Spans, points: Span | None, *, complete: bool) -> Spans:
    """Return which absences are sure, by what is known of the series now.

    Parameters
    ----------
    doubtful : Spans
        Of an answer.
    points : Span or None
        From the first to the last interval of the series that is known to have a point; None where none has.
    complete : bool
        Whether all was asked that is to be asked, by clocks that agree: a series without any point is absent then.
    """
    if points is None:
        return doubtful if complete else Spans()
    return doubtful.within(Span(0, points.end))


def is_odd(answer: Answer, window: Window, points: Span | None) -> bool:
    """Whether a whole window came without a point although the series has some in it, or on both sides of it."""
    if answer.points is not None or points is None:
        return False
    return points.start < window.span.end and window.span.start < points.end


def borders_points(answer: Answer, window: Window, points: Span | None) -> bool:
    """Whether a whole window is to be recorded as absent, and the series has points less than its length away.

    A coin is listed once and delisted once: to ask for the window at that edge twice costs little, and a hiccup there
    can be told from it by nothing else.
    """
    if answer.points is not None or points is None or not answer.coverage.absent:
        return False
    return max(window.span.start - points.end, points.start - window.span.end) < window.span.seconds


def join_hulls(one: Span | None, other: Span | None) -> Span | None:
    """Return the span from the first to the last of two."""
    if one is None or other is None:
        return other if one is None else one
    return Span(min(one.start, other.start), max(one.end, other.end))

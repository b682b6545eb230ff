"""What came again against what is stored: in which intervals it differs, and how. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from heatpipe.layout import Day
from heatpipe.model import Snapshots, Span, Spans


@dataclass(frozen=True, slots=True)
class Difference:
    """Intervals that were answered twice, by how the second answer differs from the first; disjoint.

    Parameters
    ----------
    unchanged : Spans
        Not at all.
    changed : Spans
        In the rows; or absent where it was empty, or the other way round.
    appeared : Spans
        There are rows where none were.
    vanished : Spans
        There are none where rows were.
    """

    unchanged: Spans
    changed: Spans
    appeared: Spans
    vanished: Spans


def compare_days(old: Day, new: Day, spans: Spans) -> Difference:
    """Compare what two days say of some spans that both of them cover."""
    had, has = old.coverage.present & spans, new.coverage.present & spans
    step = old.series.interval_s
    before, after = _with_levels(old.snapshots), _with_levels(new.snapshots)
    rewritten = Spans.of(one for span in had & has for one in _differing(before, after, span, step))
    renamed = (old.coverage.absent & new.coverage.empty | old.coverage.empty & new.coverage.absent) & spans
    changed, appeared, vanished = rewritten | renamed, has - had, had - has
    return Difference(spans - changed - appeared - vanished, changed, appeared, vanished)


def _with_levels(snapshots: Snapshots) -> Snapshots:
    """Leave out the points without levels: no file has a place for them."""
    filled = snapshots.levels > 0
    return Snapshots(snapshots.timestamp[filled], snapshots.levels[filled], snapshots.price, snapshots.volume)


def _differing(old: Snapshots, new: Snapshots, span: Span, interval_s: int) -> Iterator[Span]:
    """Yield the intervals of a span in which the rows differ. Few do: the whole is compared, then its halves."""
    old, new = old.between(span), new.between(span)
    if _are_same(old, new):
        return
    if span.seconds == interval_s:
        yield span
        return
    middle = span.start + span.seconds // interval_s // 2 * interval_s
    yield from _differing(old, new, Span(span.start, middle), interval_s)
    yield from _differing(old, new, Span(middle, span.end), interval_s)


def _are_same(old: Snapshots, new: Snapshots) -> bool:
    """Whether all of it is the same, bit for bit."""
    return (
        np.array_equal(old.timestamp, new.timestamp)
        and np.array_equal(old.levels, new.levels)
        and np.array_equal(old.price, new.price)
        and np.array_equal(old.volume.view(np.int64), new.volume.view(np.int64))  # 0.0 equals -0.0 as a number
    )

"""What a run did, as values that add up. Pure."""

from dataclasses import dataclass, field, fields
from typing import Any

from heatpipe.model import Series, Span


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that was asked for and did not come.

    Parameters
    ----------
    series : Series
        Whose.
    span : Span or None
        Which window; None where the series as a whole was refused.
    reason : str
        One line: what happened, in the words of the error.
    """

    series: Series
    span: Span | None
    reason: str
    counts: bool = True
    """whether it makes the run a failed one; what lies beyond the history does not"""
    held: bool = False
    """whether it was left to another run, which works on it"""


@dataclass(frozen=True, slots=True)
class Report:
    """Totals of a run, or of a part of one; reports add up.

    Parameters
    ----------
    requests, weight : int
        Attempts, retries included, and what they cost.
    wire_bytes : int
        Received, compressed.
    points, rows : int
        Points that came, and the levels in them, as far as they were stored.
    days, bytes_written : int
        Files written, and their size.
    absent : int
        Intervals of which the upstream has no point, recorded as absent in this run.
    open, young : int
        Intervals that were not closed yet, or without a point but not yet sure to be absent; the next run asks.
    unchanged, changed, appeared, vanished : int
        Intervals on disk that were asked for again, by how the answer differs: not at all; in its rows, or in why it
        has none; it has rows where none were, or none where rows were.
    failures : tuple of Failure
        What did not come.
    """

    requests: int = 0
    weight: int = 0
    wire_bytes: int = 0
    points: int = 0
    rows: int = 0
    days: int = 0
    bytes_written: int = 0
    absent: int = 0
    open: int = 0
    young: int = 0
    unchanged: int = 0
    changed: int = 0
    appeared: int = 0
    vanished: int = 0
    failures: tuple[Failure, ...] = field(default=())

    def __add__(self, other: "Report") -> "Report":
        return Report(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Report)))

    @property
    def asked_again(self) -> int:
        """Intervals that were on disk and were answered again."""
        return self.unchanged + self.changed + self.appeared + self.vanished

    def as_document(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        document: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(Report) if f.name != "failures"}
        document["failures"] = [
            {
                "coin": failure.series.coin,
                "interval": failure.series.interval,
                "unit": failure.series.unit,
                "depth": failure.series.depth,
                "from": failure.span and failure.span.start,
                "to": failure.span and failure.span.end,
                "reason": failure.reason,
                "counts": failure.counts,
                "held": failure.held,
            }
            for failure in self.failures
        ]
        return document


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, told after every answer.

    Parameters
    ----------
    done : Report
        What has been done so far.
    windows_done, windows : int
        Windows finished, and planned so far; splitting adds to both.
    weight_left : int
        What the windows still to come will cost at least.
    """

    done: Report
    windows_done: int
    windows: int
    weight_left: int

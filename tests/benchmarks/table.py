"""The table that ``make bench`` prints: rows, their ratios, whether they hold. Pure."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

HEADINGS = ("#", "row", "work", "measured", "", "peer or limit", "", "ratio", "bar", "holds")
ALIGNED_RIGHT = ("measured", "", "ratio", "bar")


@dataclass(frozen=True, slots=True)
class Row:
    """One line.

    Attributes
    ----------
    number : int or None
        Its row in the table of docs/performance.md; None for what has no bar.
    name : str
        What it is chosen by.
    work : str
        What was done.
    measured, reference : float
        Our figure, and that of the peer or the limit, in one unit.
    unit : str
        Of both.
    against : str
        The peer's name, or "limit".
    bar : float or None
        What the ratio measured / reference is held to; None where it is only shown.
    at_least : bool
        Whether the bar is the least that the ratio may be; else it is the most.
    paired : float or None
        The ratio, where it was taken in every round by itself: what the machine does to one round it does to both.
    """

    number: int | None
    name: str
    work: str
    measured: float
    unit: str
    against: str
    reference: float
    bar: float | None = None
    at_least: bool = False
    paired: float | None = None

    @property
    def ratio(self) -> float | None:
        """Measured by reference; None where the reference is nothing at all, as in "no 429"."""
        if self.paired is not None:
            return self.paired
        return self.measured / self.reference if self.reference else None

    @property
    def holds(self) -> bool | None:
        """Whether the bar is met; None without a bar. To be held to nothing is to be nothing."""
        if self.bar is None:
            return None
        if self.ratio is None:
            return self.measured == 0
        return self.ratio >= self.bar if self.at_least else self.ratio <= self.bar

    def as_document(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "ratio": self.ratio, "holds": self.holds}

    def cells(self) -> tuple[str, ...]:
        """Text of each column."""
        bar = "" if self.bar is None else f"{'≥' if self.at_least else '≤'} {self.bar:.4g}×"
        holds = {True: "yes", False: "NO", None: ""}[self.holds]
        return (
            "" if self.number is None else str(self.number),
            self.name,
            self.work,
            show_figure(self.measured),
            self.unit,
            self.against,
            show_figure(self.reference),
            "" if self.ratio is None else f"{self.ratio:.3f}×",
            "none" if self.ratio is None and self.bar is not None else bar,
            holds,
        )


class Pair(TypedDict):
    """What a row says of two that took turns."""

    measured: float
    reference: float
    paired: float


def pair(measured: Sequence[float], reference: Sequence[float]) -> Pair:
    """Return what a row says of rounds in which two took turns: both medians, and that of the rounds' ratios."""
    return {
        "measured": statistics.median(measured),
        "reference": statistics.median(reference),
        "paired": statistics.median(one / other for one, other in zip(measured, reference, strict=True)),
    }


def show_figure(value: float) -> str:
    """Three digits or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def lay_out(rows: Iterable[Row]) -> str:
    """Return the rows as text, in the columns of Markdown: what is printed can be pasted."""
    cells = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [heading in ALIGNED_RIGHT for heading in HEADINGS]
    rule = tuple("-" * (width - flush) + ":" * flush for width, flush in zip(widths, right, strict=True))
    return "\n".join(_lay_line(line, widths, right) for line in [cells[0], rule, *cells[1:]])


def _lay_line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (
        cell.rjust(width) if flush else cell.ljust(width)
        for cell, width, flush in zip(cells, widths, right, strict=True)
    )
    return f"| {' | '.join(padded)} |"

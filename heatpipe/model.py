"""The words of heatpipe as small frozen values: Series, Spans, Window, Request, Snapshots, Coverage. Pure.

Times are Unix seconds, UTC, unless a name says otherwise; spans are half-open.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from itertools import chain
from operator import itemgetter
from typing import Final, Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray

from heatpipe.errors import ConfigError
from heatpipe.memory import POOL
from heatpipe.upstream import LIQUIDATIONS, UNSUPPORTED_INTERVALS, Interval

DAY_S: Final = 86400
"""Seconds in a UTC day, the unit of storage."""
ALL_DAYS: Final = range(-(10**9), 10**9)
"""Every day that there could be, counted from the epoch."""

Unit = Literal["coin", "usd"]
UNITS: Final[tuple[str, ...]] = get_args(Unit)

LENGTHS_S: Final = {interval.name: interval.seconds for interval in Interval}
"""Asked for some hundred thousand times by a plan for years, for which an Enum is slow."""
MAX_COIN_LENGTH: Final = 64
HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True, order=True)
class Series:
    """What is fetched as one: every request parameter that changes the rows.

    Parameters
    ----------
    coin : str
        Base asset in the upstream's spelling, such as ``BTC``, ``kPEPE``, ``PURR/USDC``.
    interval : str
        Name of the snapshot interval, such as ``MINUTE``.
    unit : {"coin", "usd"}
        What volumes are counted in.
    depth : int
        Most levels per snapshot.

    Raises
    ------
    ConfigError
        One of them is not possible; names it and the nearest that is.
    """

    coin: str
    interval: str = "MINUTE"
    unit: str = "coin"
    depth: int = LIQUIDATIONS.included_depth

    def __post_init__(self) -> None:
        _check_coin(self.coin)
        if self.interval in UNSUPPORTED_INTERVALS:
            raise ConfigError(f"interval {self.interval} is refused: {UNSUPPORTED_INTERVALS[self.interval]}")
        check_choice("interval", self.interval, Interval.__members__)
        check_choice("unit", self.unit, UNITS)
        if not 1 <= self.depth <= LIQUIDATIONS.max_depth:
            raise ConfigError(f"depth {self.depth} is not between 1 and {LIQUIDATIONS.max_depth}")

    @property
    def interval_s(self) -> int:
        """Length of the interval in seconds."""
        return LENGTHS_S[self.interval]

    def __str__(self) -> str:
        return f"{self.coin} {self.interval} in {self.unit} at depth {self.depth}"


def _check_coin(coin: str) -> None:
    if not coin or coin != coin.strip():
        raise ConfigError(f"coin {coin!r} is empty or has spaces around it")
    if not coin.isprintable():
        raise ConfigError(f"coin {coin!r} has characters that cannot be printed")
    if len(coin.encode()) > MAX_COIN_LENGTH:
        raise ConfigError(f"coin {coin[:20]!r}… is longer than {MAX_COIN_LENGTH} bytes")
    if coin == HIVE_NULL:
        raise ConfigError(f"coin {coin!r} is what Hive writes for 'no value'; readers could not tell it apart")


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Raise a ConfigError with the nearest choice unless `value` is one of them."""
    names = list(choices)
    if value in names:
        return
    upper = {name.upper(): name for name in names}
    near = get_close_matches(value.upper(), upper, n=1)
    hint = f"did you mean {upper[near[0]]!r}?" if near else f"known are {', '.join(names)}"
    raise ConfigError(f"unknown {what} {value!r}; {hint}")


class Span(NamedTuple):
    """A half-open span of time, in Unix seconds."""

    start: int
    end: int

    @property
    def seconds(self) -> int:
        """Length in seconds; negative or 0 where nothing lies within."""
        return self.end - self.start

    def clip(self, other: "Span") -> "Span":
        """Return what lies within both; empty (`seconds` ≤ 0) where they do not meet."""
        return Span(max(self.start, other.start), min(self.end, other.end))

    def __str__(self) -> str:
        return f"[{show_time(self.start)}, {show_time(self.end)})"


def show_time(time_s: float) -> str:
    """ISO 8601 in UTC, to the second; as a number where no calendar has a date for it."""
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{time_s:.0f} s"


def day_span(day: int) -> Span:
    """Span of the UTC day with this number, counted from the epoch."""
    return Span(day * DAY_S, (day + 1) * DAY_S)


def days_of(span: Span) -> range:
    """Return the numbers, counted from the epoch, of the UTC days that a span touches."""
    return range(span.start // DAY_S, -(-span.end // DAY_S))


_START: Final = itemgetter(0)
_END: Final = itemgetter(1)


@dataclass(frozen=True, slots=True)
class Spans:
    """A set of instants as spans: sorted, disjoint, merged, none empty. Supports ``|``, ``-``, ``&``."""

    spans: tuple[Span, ...] = ()

    @classmethod
    def of(cls, spans: Iterable[tuple[int, int]]) -> Self:
        """Sort and merge; empty spans vanish."""
        merged: list[Span] = []
        for start, end in sorted(spans):
            if end <= start:
                continue
            if merged and start <= merged[-1].end:
                if end > merged[-1].end:
                    merged[-1] = Span(merged[-1].start, end)
            else:
                merged.append(Span(start, end))
        return cls(tuple(merged))

    @classmethod
    def union(cls, many: "Iterable[Spans]") -> Self:
        """Join many sets at once: a loop over ``|`` would sort the whole for each of them."""
        return cls.of(chain.from_iterable(many))

    @classmethod
    def of_intervals(cls, starts: NDArray[np.int64], interval_s: int) -> Self:
        """Merge the intervals that begin at `starts`, sorted ascending, in seconds."""
        if starts.size == 0:
            return cls()
        breaks = np.flatnonzero(np.diff(starts) > interval_s) + 1
        firsts = starts[np.concatenate(([0], breaks))].tolist()
        lasts = starts[np.concatenate((breaks - 1, [-1]))].tolist()
        return cls(tuple(Span(a, b + interval_s) for a, b in zip(firsts, lasts, strict=True)))

    def __iter__(self) -> Iterator[Span]:
        return iter(self.spans)

    def __bool__(self) -> bool:
        return bool(self.spans)

    @property
    def seconds(self) -> int:
        """Total length in seconds."""
        return sum(span.seconds for span in self.spans)

    @property
    def hull(self) -> Span:
        """From the first instant to the last."""
        return Span(self.spans[0].start, self.spans[-1].end)

    def __or__(self, other: "Spans") -> "Spans":
        if not (self.spans and other.spans):
            return self if self.spans else other
        return Spans.of(self.spans + other.spans)

    def __sub__(self, other: "Spans") -> "Spans":
        if not (self.spans and other.spans):
            return self
        touched = self._meeting(other.hull)
        cuts = other.spans[other._meeting(self.hull)]
        left = list(self.spans[: touched.start])
        at = 0  # cuts before this one end before the span at hand does
        for start, end in self.spans[touched]:
            while at < len(cuts):
                cut_start, cut_end = cuts[at]
                if cut_start >= end:
                    break
                if cut_start > start:
                    left.append(Span(start, cut_start))
                if cut_end > start:
                    start = cut_end
                if cut_end > end:
                    break
                at += 1
            if start < end:
                left.append(Span(start, end))
        return Spans((*left, *self.spans[touched.stop :]))

    def __and__(self, other: "Spans") -> "Spans":
        if not (self.spans and other.spans):
            return Spans()
        mine, others = self.within(other.hull).spans, other.within(self.hull).spans
        common: list[Span] = []
        at = of = 0
        while at < len(mine) and of < len(others):
            part = mine[at].clip(others[of])
            if part.end > part.start:
                common.append(part)
            if mine[at].end < others[of].end:
                at += 1
            else:
                of += 1
        return Spans(tuple(common))

    def within(self, span: Span) -> "Spans":
        """Return the part that lies in one span."""
        if span.seconds <= 0:
            return Spans()
        parts = list(self.spans[self._meeting(span)])
        for end in (0, -1) if parts else ():
            parts[end] = parts[end].clip(span)
        return Spans(tuple(parts))

    def _meeting(self, span: Span) -> slice:
        """Find the spans that share an instant with one span that is not empty, by halves: the set may be large."""
        first = bisect_right(self.spans, span.start, key=_END)
        return slice(first, bisect_left(self.spans, span.end, first, key=_START))

    def seconds_between(self, edges: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (edges - 1,), the seconds of the set between each edge and the next; edges are (n,), ascending."""
        bounds = np.array(self.spans, np.int64).reshape(-1, 2)
        before = np.concatenate(([0], np.cumsum(bounds[:, 1] - bounds[:, 0])))  # the set's seconds up to each span
        begun = np.searchsorted(bounds[:, 0], edges, side="right")
        ends = np.concatenate((edges[:1], bounds[:, 1]))[begun]
        spent: NDArray[np.int64] = np.diff(before[begun] - np.where(begun > 0, np.maximum(ends - edges, 0), 0))
        return spent

    def __str__(self) -> str:
        return ", ".join(map(str, self.spans)) or "nothing"


@dataclass(frozen=True, slots=True)
class Window:
    """The half-open span that one request asks for, on its series' grid.

    Parameters
    ----------
    series : Series
        Whose snapshots.
    span : Span
        From when to when; a whole number of the series' intervals, at least one.
    """

    series: Series
    span: Span

    def __post_init__(self) -> None:
        step = self.series.interval_s
        if self.span.seconds <= 0 or self.span.start % step or self.span.end % step:
            raise ValueError(f"{self.span} is not a window of {self.series}")

    @property
    def points(self) -> int:
        """Number of intervals."""
        return self.span.seconds // self.series.interval_s

    @property
    def weight(self) -> int:
        """What one request for it costs."""
        return LIQUIDATIONS.weigh(self.points, self.series.depth)

    def halves(self) -> "tuple[Window, Window]":
        """Split in two; the first half is the longer one where they differ."""
        if self.points < 2:
            raise ValueError("a window of one point cannot be split")
        middle = self.span.start + -(-self.points // 2) * self.series.interval_s
        return (
            Window(self.series, Span(self.span.start, middle)),
            Window(self.series, Span(middle, self.span.end)),
        )

    def __str__(self) -> str:
        return f"{self.series.coin} {self.series.interval} {self.span}"


def _no_integers() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


def _no_floats() -> NDArray[np.float64]:
    return np.empty(0, np.float64)


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Snapshots as columns: two of points, two of rows.

    The rows of point ``i`` are the `levels[i]` ones that follow those of the points before it.
    """

    timestamp: NDArray[np.int64] = field(default_factory=_no_integers)
    """(points,) microseconds since the epoch, UTC; strictly ascending"""
    levels: NDArray[np.int64] = field(default_factory=_no_integers)
    """(points,) rows of each point, 0 or more"""
    price: NDArray[np.float64] = field(default_factory=_no_floats)
    """(rows,) USD, strictly ascending within a point"""
    volume: NDArray[np.float64] = field(default_factory=_no_floats)
    """(rows,) liquidation volume standing at that price, in coin or USD as the series says"""

    @property
    def points(self) -> int:
        """Number of points, those without levels included."""
        return len(self.timestamp)

    @property
    def rows(self) -> int:
        """Number of levels in all points."""
        return len(self.price)

    def row_timestamps(self) -> NDArray[np.int64]:
        """(rows,) microseconds: each point's timestamp, once a level."""
        stamps = POOL.integers(self.rows)
        at = 0
        for stamp, count in zip(self.timestamp.tolist(), self.levels.tolist(), strict=True):
            stamps[at : at + count] = stamp
            at += count
        return stamps

    def between(self, span: Span) -> "Snapshots":
        """Return the points within a span, as views."""
        first, last = np.searchsorted(self.timestamp, np.array(span) * 1_000_000).tolist()
        if first == 0 and last == self.points:
            return self
        skipped = int(self.levels[:first].sum())
        rows = slice(skipped, skipped + int(self.levels[first:last].sum()))
        return Snapshots(self.timestamp[first:last], self.levels[first:last], self.price[rows], self.volume[rows])

    @staticmethod
    def concatenate(parts: "list[Snapshots]") -> "Snapshots":
        """Join parts that follow each other in time."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return Snapshots()
        joined = Snapshots(
            np.concatenate([part.timestamp for part in parts]),
            np.concatenate([part.levels for part in parts]),
            np.concatenate([part.price for part in parts], out=POOL.floats(sum(part.rows for part in parts))),
            np.concatenate([part.volume for part in parts], out=POOL.floats(sum(part.rows for part in parts))),
        )
        if not (np.diff(joined.timestamp) > 0).all():
            raise ValueError("parts of a day overlap or are out of order")
        return joined


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which intervals have been asked and answered, and which of those the upstream had nothing for.

    Every span lies on the series' grid; `absent` and `empty` are disjoint parts of `covered`.
    """

    covered: Spans = Spans()
    absent: Spans = Spans()
    """answered without a point"""
    empty: Spans = Spans()
    """answered with points, none of which has a level"""

    @classmethod
    def of_answer(cls, answered: Spans, snapshots: Snapshots, interval_s: int) -> Self:
        """Read off an answer which of the intervals in `answered` have a point, and which have levels."""
        starts = snapshots.timestamp // 1_000_000 // interval_s * interval_s
        pointed = Spans.of_intervals(np.unique(starts), interval_s)
        present = Spans.of_intervals(np.unique(starts[snapshots.levels > 0]), interval_s)
        return cls(answered, answered - pointed, (pointed - present) & answered)

    @classmethod
    def union(cls, many: "Iterable[Coverage]") -> Self:
        """Join many at once: a loop over ``|`` would sort the whole for each of them."""
        parts = list(many)
        return cls(
            Spans.union(part.covered for part in parts),
            Spans.union(part.absent for part in parts),
            Spans.union(part.empty for part in parts),
        )

    @property
    def present(self) -> Spans:
        """Answered with levels."""
        return self.covered - self.absent - self.empty

    def within(self, span: Span) -> "Coverage":
        """Return the part that lies in one span."""
        return Coverage(self.covered.within(span), self.absent.within(span), self.empty.within(span))

    def __or__(self, other: "Coverage") -> "Coverage":
        return Coverage(self.covered | other.covered, self.absent | other.absent, self.empty | other.empty)

    def __sub__(self, spans: Spans) -> "Coverage":
        return Coverage(self.covered - spans, self.absent - spans, self.empty - spans)

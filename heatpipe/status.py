"""Coverage added up: each interval of a span is exactly one of seven things. Reads footers.

And timestamps, to count snapshots at the depth cap, of a day that the span cuts, or that an older heatpipe wrote.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from heatpipe.config import Settings, Target, resolve_span
from heatpipe.errors import ConfigError, DamagedError, UnreadableError
from heatpipe.layout import Footer
from heatpipe.model import Coverage, Series, Span, Spans, days_of
from heatpipe.plan import Horizon
from heatpipe.store import Store

LOG: Final = logging.getLogger("heatpipe")


@dataclass(frozen=True, slots=True)
class Tally:
    """A series over a span, in intervals. They sum to the span.

    Parameters
    ----------
    series : Series
        Which.
    span : Span
        What was counted; on the series' grid.
    present, empty, absent : int
        On disk: with levels; with none; the upstream had no point.
    failed : int
        Given up, with a record in the quarantine.
    missing : int
        Not asked, or not answered yet.
    open : int
        Not closed yet.
    beyond : int
        Not on disk, and older than the history the tier sells.
    capped : int, optional
        How many snapshots have as many levels as the depth allows, which says nothing of prices beyond the outermost.
        They are among those that are present. None: not counted.
    unreadable : tuple of str
        What cannot be read now, a line each; what it would tell is not counted.
    """

    series: Series
    span: Span
    present: int
    empty: int
    absent: int
    failed: int
    missing: int
    open: int
    beyond: int
    capped: int | None = None
    unreadable: tuple[str, ...] = ()

    def as_document(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "coin": self.series.coin,
            "interval": self.series.interval,
            "unit": self.series.unit,
            "depth": self.series.depth,
            "from": self.span.start,
            "to": self.span.end,
            **{name: getattr(self, name) for name in COUNTS},
            "capped": self.capped,
        }


COUNTS = ("present", "empty", "absent", "failed", "missing", "open", "beyond")


def tally(series: Series, span: Span, coverage: Coverage, failed: Spans, horizon: Horizon) -> Tally:
    """Count the intervals of a span; what is on disk counts as that, however old it is."""
    step = series.interval_s
    reach = horizon.reach(step)
    on_disk = coverage.within(span)
    left = Spans.of([span]) - on_disk.covered
    covered, empty, absent = (part.seconds // step for part in (on_disk.covered, on_disk.empty, on_disk.absent))
    counts: list[int] = []
    for part in (
        Spans.of([(0, reach.start)]),  # beyond
        Spans.of([(reach.end, max(reach.end, span.end))]),  # open
        failed,
    ):
        found = left & part
        counts.append(found.seconds // step)
        left -= found
    beyond, still_open, given_up = counts
    missing = left.seconds // step
    return Tally(series, span, covered - empty - absent, empty, absent, given_up, missing, still_open, beyond)


def take_stock(
    store: Store,
    targets: Iterable[Target],
    settings: Settings,
    now: float,
    *,
    last_s: int | None = None,
    capped: bool = True,
) -> list[Tally]:
    """Add up the coverage of some series.

    Parameters
    ----------
    store : Store
        The dataset.
    targets : iterable of Target
        Which series; a start or an end that is not given is that of what is on disk, or the last closed interval.
    settings : Settings
        The history and the settling time.
    now : float
        Unix seconds.
    last_s : int, optional
        Length of the span of a target that names no start.
    capped : bool
        Count the snapshots at the depth cap as well.

    Raises
    ------
    ConfigError
        A span holds no whole interval.
    """
    return [_stock(store, target, settings, now, last_s=last_s, capped=capped) for target in targets]


def choose_span(
    store: Store, target: Target, settings: Settings, now: float, *, last_s: int | None = None
) -> tuple[Span, list[UnreadableError]]:
    """Return the span of a target that is counted, on the series' grid, and what could not be read to find it.

    Parameters
    ----------
    store, target, settings, now, last_s
        As `take_stock`, of one target.

    Raises
    ------
    ConfigError
        It holds no whole interval.
    """
    series, step = target.series, target.series.interval_s
    closed_end = settings.horizon(now).closed_end(step)
    start = target.start
    unreadable: list[UnreadableError] = []
    if start is None and last_s is None:
        first = None
        try:
            first = store.first_instant(series)
        except UnreadableError as exc:
            unreadable.append(exc)
        start = closed_end if first is None else first
    wanted = resolve_span(start, target.end, last_s, closed_end)
    span = Span(-(-wanted.start // step) * step, wanted.end // step * step)
    if span.seconds < 0 or wanted.seconds < 0:
        raise ConfigError(f"the span {wanted} holds no whole interval of {series.interval}")
    return span, unreadable


def _stock(store: Store, target: Target, settings: Settings, now: float, *, last_s: int | None, capped: bool) -> Tally:
    series = target.series
    span, unreadable = choose_span(store, target, settings, now, last_s=last_s)
    footers, barred = store.footers(series, days_of(span))
    coverage = Coverage.union([footer.coverage for footer in footers.values()])
    unreadable += barred.values()
    failed = Spans()
    try:
        failed = store.quarantined(series)
    except UnreadableError as exc:
        unreadable.append(exc)
    counted = tally(series, span, coverage, failed, settings.horizon(now))
    if capped:
        counted = replace(counted, capped=_count_capped(store, footers, span, unreadable))
    return replace(counted, unreadable=tuple(dict.fromkeys(map(str, unreadable))))


def _count_capped(store: Store, footers: Mapping[int, Footer], span: Span, unreadable: list[UnreadableError]) -> int:
    """Count the snapshots at the depth cap, and say which days are left out."""
    found = 0
    for day, footer in footers.items():
        try:
            found += store.count_capped(day, footer, span)
        except DamagedError as exc:
            LOG.warning("%s; its snapshots at the depth cap are not counted: see heatpipe verify", exc)
        except UnreadableError as exc:
            unreadable.append(exc)
    return found

"""Every file below ``liquidations/`` read back and proved sound, and whatever else lies there named. Writes nothing.

A file is read once, so that one that a backfill replaces meanwhile is judged as it was at one moment. What can be told
of its rows, its coverage and its place comes first, because it names the cause; the seal over all its bytes comes last.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np

from heatpipe import layout
from heatpipe.config import Settings, Target, resolve_span
from heatpipe.errors import ConfigError, DamagedError, DatasetError, UnreadableError
from heatpipe.layout import Footer
from heatpipe.model import ALL_DAYS, DAY_S, Series, Snapshots, Span, Spans, day_span, days_of
from heatpipe.store import Store, decode_file

THREADS: Final = min(8, os.cpu_count() or 1)
"""No more: each holds a day in memory, some 100 MB where snapshots are deep."""
CAPPED: Final = layout.CAPPED_KEY.decode()
MAX_CAUSE: Final = 300
"""Characters; a doctored footer can quote thousands of ranges."""

OnFile = Callable[[int, int], None]
"""Takes the number of files done, and of all."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something that is not as heatpipe leaves it.

    Parameters
    ----------
    path : str
        The file or folder, relative to the root.
    cause : str
        One line: what is wrong with it.
    unreadable : bool
        It cannot be read now, which says nothing of what it is: to fetch it again would not help.
    """

    path: str
    cause: str
    unreadable: bool = False


@dataclass(frozen=True, slots=True)
class Findings:
    """What was read, and what is wrong.

    Parameters
    ----------
    files, rows, size_bytes : int
        The day files that were read, the rows in the sound ones, and the size of all.
    problems : tuple of Problem
        Sorted by path.
    """

    files: int = 0
    rows: int = 0
    size_bytes: int = 0
    problems: tuple[Problem, ...] = ()

    def __add__(self, other: "Findings") -> "Findings":
        return Findings(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Findings)))

    def as_document(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "files": self.files,
            "rows": self.rows,
            "bytes": self.size_bytes,
            "problems": [{"path": problem.path, "cause": problem.cause} for problem in self.problems],
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """A series, and the days of it, that are to be verified."""

    series: Series
    days: range = ALL_DAYS


@dataclass(frozen=True, slots=True)
class _DayFile:
    """A file where one belongs."""

    path: PurePosixPath
    series: Series
    day: int


def choose_days(
    targets: Iterable[Target], settings: Settings, now: float, *, last_s: int | None = None
) -> list[Choice]:
    """Turn targets into the days that their spans touch; all days where a target names no span.

    Parameters
    ----------
    targets : iterable of Target
        Which series.
    settings : Settings
        The settling time, for a length that counts back from the last closed interval.
    now : float
        Unix seconds.
    last_s : int, optional
        Length of the span of a target that names no start.

    Raises
    ------
    ConfigError
        A span is empty.
    """
    chosen: list[Choice] = []
    for target in targets:
        end = target.end
        if target.start is None and last_s is not None:
            closed_end = settings.horizon(now).closed_end(target.series.interval_s)
            start, end = resolve_span(None, target.end, last_s, closed_end)
        else:
            start = ALL_DAYS.start * DAY_S if target.start is None else target.start
        span = Span(start, ALL_DAYS.stop * DAY_S if end is None else end)
        if span.seconds <= 0:
            raise ConfigError(f"the span {span} is empty")
        chosen.append(Choice(target.series, days_of(span)))
    return chosen


def verify_files(store: Store, chosen: Iterable[Choice] | None = None, *, on_file: OnFile | None = None) -> Findings:
    """Read files back, all columns, and prove them sound.

    Parameters
    ----------
    store : Store
        The dataset.
    chosen : iterable of Choice, optional
        What to verify; by default all that lies below ``liquidations/``.
    on_file : callable, optional
        Called after every file with the number of files done, and of all.
    """
    found = dict.fromkeys(_walk(store, chosen))  # series may be chosen twice
    files = [one for one in found if isinstance(one, _DayFile)]
    total = Findings()
    problems = [one for one in found if isinstance(one, Problem)]
    pool = ThreadPoolExecutor(THREADS, "verify")
    try:
        for done, judged in enumerate(pool.map(partial(_verify_file, store), files), 1):
            total += replace(judged, problems=())  # a sum would copy all of them for each
            problems += judged.problems
            if on_file is not None:
                on_file(done, len(files))
    finally:
        pool.shutdown(cancel_futures=True)
    return replace(total, problems=tuple(sorted(problems)))


# The tree


def _walk(store: Store, chosen: Iterable[Choice] | None) -> Iterator[_DayFile | Problem]:
    if chosen is None:
        yield from _walk_folder(store, PurePosixPath(layout.TABLE), {})
        return
    for choice in chosen:
        series = choice.series
        store.check_spelling(series)
        parts = {key: getattr(series, key) for key in layout.PARTITIONS if key != "date"}
        yield from _walk_folder(store, layout.series_path(series), parts, choice.days)


def _walk_folder(
    store: Store, folder: PurePosixPath, parts: Mapping[str, str | int], days: range = ALL_DAYS
) -> Iterator[_DayFile | Problem]:
    """Find the files below a folder whose place in the tree is known by its parts, and what does not belong there."""
    key = layout.PARTITIONS[len(parts)]
    try:
        entries = store.list_folder(folder)
    except UnreadableError as exc:
        yield Problem(_printable(folder), _cause(exc), unreadable=True)
        return
    for name, kind in entries:
        path = folder / name
        if kind != "folder":
            yield Problem(_printable(path), f"is a {kind}, where only folders {key}=… belong")
        else:
            try:
                part = layout.parse_part(key, name)
            except (ValueError, ConfigError) as exc:
                yield Problem(_printable(path), f"is no folder that heatpipe makes: {_cause(exc)}")
                continue
            if key != "date":
                yield from _walk_folder(store, path, {**parts, key: part}, days)
            elif part in days:
                yield from _walk_day(store, path, Series(**parts), int(part))  # type: ignore[arg-type]


def _walk_day(store: Store, folder: PurePosixPath, series: Series, day: int) -> Iterator[_DayFile | Problem]:
    try:
        entries = store.list_folder(folder)
    except UnreadableError as exc:
        yield Problem(_printable(folder), _cause(exc), unreadable=True)
        return
    for name, kind in entries:
        path = folder / name
        if name != layout.FILE_NAME:
            yield Problem(_printable(path), f"is a {kind} that does not belong here, beside {layout.FILE_NAME}")
        elif kind != "file":
            yield Problem(_printable(path), f"is a {kind}, where the day's file belongs")
        else:
            yield _DayFile(path, series, day)


# One file


def _verify_file(store: Store, file: _DayFile) -> Findings:
    data = b""
    try:
        data = _read(store, file)
        return Findings(1, prove_file(data, str(file.path), file.series, file.day), len(data))
    except (DatasetError, OSError) as exc:
        problem = Problem(_printable(file.path), _cause(exc), not isinstance(exc, DamagedError))
    except MemoryError:
        problem = Problem(_printable(file.path), "cannot be read now: not enough memory", unreadable=True)
    return Findings(1, 0, len(data), (problem,))


def _read(store: Store, file: _DayFile) -> bytes:
    for _ in range(2):  # it may have been taken away to be put back, as copying tools do
        data = store.read_file(file.path, file.series)
        if data is not None:
            return data
    raise UnreadableError(f"{file.path} was there, and has vanished", str(file.path))


def prove_file(data: bytes, path: str, series: Series, day: int) -> int:
    """Prove the bytes of one file sound.

    Parameters
    ----------
    data : bytes
        The whole file.
    path : str
        What errors call it.
    series : Series
        Whose it must be.
    day : int
        Which day it must be, counted from the epoch.

    Returns
    -------
    int
        The number of its rows.

    Raises
    ------
    DamagedError
        It is not what heatpipe wrote there; says what is wrong with it.
    UnreadableError
        It cannot be read now, or it is of another version.
    """
    if not data:
        raise DamagedError(f"{path} is empty", path)
    table, footer = decode_file(data, series, day, path)
    rows = layout.decode_rows(table)
    for fault in _faults(rows, footer, day):
        raise DamagedError(f"{path} {fault}", path)
    if table.schema.metadata[layout.FOOTER_KEY] != layout.encode_footer(footer):
        raise DamagedError(f"{path} has a footer that is not written as heatpipe writes it", path)
    return rows.rows


def _faults(rows: Snapshots, footer: Footer, day: int) -> Iterator[str]:
    """Hold the rows against the contract, then against the footer; each check may rely on those before it."""
    for check in (_check_values, _check_order):
        yield from check(rows)
    outside = rows.points - rows.between(day_span(day)).points
    if outside:
        yield f"has {outside} snapshots of other days than its folder says"
    if rows.rows != footer.rows:
        yield f"has {rows.rows} rows, its footer says {footer.rows}"
    if rows.points != footer.snapshots:
        yield f"has {rows.points} snapshots, its footer says {footer.snapshots}"
    deepest = int(rows.levels.max(initial=0))
    if deepest > footer.series.depth:
        yield f"has a snapshot of {deepest} levels, its depth is {footer.series.depth}"
    capped = layout.count_capped(rows.levels, footer.series.depth)
    if footer.capped not in (None, capped):
        yield f"has {capped} snapshots of {footer.series.depth} levels, its key {CAPPED} says {footer.capped}"
    yield from _check_coverage(rows, footer)
    if layout.digest_rows(rows.row_timestamps(), rows.price, rows.volume) != footer.digest:
        yield "holds other rows than its footer vouches for"


def _check_values(rows: Snapshots) -> Iterator[str]:
    """Look for a price or a volume that cannot be; nan fails every comparison."""
    for name, values, least in (("price", rows.price, np.nextafter(0, 1)), ("volume", rows.volume, 0.0)):
        if rows.rows and not (values.min() >= least and values.max() < np.inf):
            at = int(np.argmin((values >= least) & (values < np.inf)))
            yield f"has the {name} {values[at]} in row {at}"


def _check_order(rows: Snapshots) -> Iterator[str]:
    firsts = np.cumsum(rows.levels)[:-1]  # the first row of each snapshot but the first one
    backward = rows.timestamp[1:] < rows.timestamp[:-1]
    if backward.any():
        yield f"has rows out of order: row {firsts[np.argmax(backward)]} is earlier than the one before"
    ascends = rows.price[1:] > rows.price[:-1]
    ascends[firsts - 1] = True
    if not ascends.all():
        at = int(np.argmin(ascends)) + 1
        twice = rows.price[at] == rows.price[at - 1]
        yield f"has the price of row {at} twice" if twice else f"has rows out of order: the price of row {at} descends"


def _check_coverage(rows: Snapshots, footer: Footer) -> Iterator[str]:
    """Compare the intervals that have rows with those that the footer says have some."""
    step = footer.series.interval_s
    found = Spans.of_intervals(np.unique(rows.timestamp // 1_000_000 // step * step), step)
    told = footer.coverage.present
    if not footer.coverage.covered:
        yield "has a footer that covers nothing"
    if found - told:
        yield f"has rows where its footer says that there are none: {found - told}"
    if told - found:
        yield f"has no rows where its footer says that there are some: {told - found}"


# Words


def _cause(exc: Exception) -> str:
    """Return what an error says, without the path at its head: the problem names it already."""
    text = str(exc).removeprefix(f"{getattr(exc, 'path', '')} ") or type(exc).__name__
    line = _printable(text)
    return line if len(line) <= MAX_CAUSE else f"{line[: MAX_CAUSE - 1]}…"


def _printable(text: object) -> str:
    """Escape what a terminal would not print as it stands: names are from outside."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))

"""Day files: coverage, atomic replacement, locks, quarantine. The only file that reads or writes below the root.

What may be below ``liquidations/`` at any moment is whole days. A file is encoded in memory, written below ``_tmp/``,
synced, renamed into place, and its folder synced: after a crash a day is the old one or the new one.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import stat
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heatpipe import layout
from heatpipe.disk import (
    Disk,
    Mark,
    check_free,
    check_move,
    check_own,
    check_way,
    file_errors,
    fold_name,
    holds_only,
    is_missing,
    is_own,
    mark_file,
    read_errors,
    reason,
    remove_leftovers,
    same_bytes,
    text_name,
)
from heatpipe.errors import ConfigError, DamagedError, DatasetError, LockedError, UnreadableError
from heatpipe.layout import Bounds, Day, Footer
from heatpipe.lock import Lock
from heatpipe.model import ALL_DAYS, DAY_S, Coverage, Series, Span, Spans, days_of
from heatpipe.pages import AnnouncedError, ReadAt, measure_pages
from heatpipe.plan import Slab, slab_days

TMP: Final = "_tmp"
LOCKS: Final = "_locks"
QUARANTINE: Final = "_quarantine"

RECORD_NAME: Final = re.compile(r"([0-9]+)-([0-9]+)\.(body|json)")
LOCK_POLL_S: Final = 0.2
TURN_POLL_S: Final = 0.01
TURN_PATIENCE_S: Final = 30.0
"""How long a day that is ready waits for another process that writes: that takes it a second or two."""
LOG: Final = logging.getLogger("heatpipe")
T = TypeVar("T")

PARQUET: Final[dict[str, Any]] = {
    # Price repeats from snapshot to snapshot: a dictionary. Volume stands PLAIN, so that zstd can match the
    # snapshot before; few large pages, so that its window reaches that far. Half of the default's bytes. Where most
    # volumes change, zstd from level 2 on finds a quarter more in them than level 1; docs/performance.md.
    "compression": "zstd",
    "compression_level": {"timestamp": 1, "price": 3, "volume": 3},
    "use_dictionary": ["timestamp", "price"],
    "column_encoding": {"volume": "PLAIN"},
    "max_rows_per_page": 131_072,
    "data_page_size": 16 << 20,
    "write_page_index": True,
    "write_page_checksum": True,
    "sorting_columns": (pq.SortingColumn(0), pq.SortingColumn(1)),
}
ROWS_PER_GROUP: Final = 8 * 131_072
PARQUET_END: Final = bytes(4) + b"PAR1"
"""The length of the metadata stands there, then this word."""
MOST_PAGE_BYTES: Final = 32 << 20
"""Of a page when it is inflated: twice what `PARQUET` allows."""
MOST_PAGES: Final = 1000
LEAST_IN_A_PAGE: Final = 1000
"""Rows, on average, but for the first pages."""
MOST_LISTED: Final = 10_000
"""Most members of any list in the metadata."""


class _Listed(NamedTuple):
    """The records of a series, as they were when their folder was changed last."""

    folder: Path
    changed_ns: int
    records: list[tuple[Span, str]]  # sorted


class Store:
    """The dataset below one root.

    Parameters
    ----------
    root : str
        A folder; made when the first thing is written. A ``~`` in front is the user's home.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(os.path.expanduser(root))  # noqa: PTH111 - a Path raises where there is no such user
        self._disk = Disk()
        self._told: set[str] = set()
        self._listed: _Listed | None = None
        self._spelt: set[PurePosixPath] = set()

    # Reading

    def all_series(self) -> list[Series]:
        """Return every series that has a folder, sorted."""
        found: list[tuple[dict[str, Any], Path]] = [({}, self.root / layout.TABLE)]
        for key in layout.PARTITIONS[:-1]:
            found = [
                ({**parts, key: part}, folder / name) for parts, folder in found for part, name in _parts(folder, key)
            ]
        return sorted(Series(**parts) for parts, _ in found)

    def days(self, series: Series) -> list[int]:
        """Return the days on disk, counted from the epoch, sorted."""
        # a crash may leave a folder that never got its file
        return sorted(day for day, folder in self._day_folders(series) if _is_there(folder / layout.FILE_NAME))

    def files(self, series: Series, days: Container[int] = ALL_DAYS) -> list[str]:
        """Return the files of a series' days, in order: what readers are given, and nothing that lies beside them.

        Their names are text as `text_name` makes it.

        Raises
        ------
        DamagedError
            One is larger than any day of the series: readers would take its word for what it holds.
        """
        folder = text_name(self.root / layout.series_path(series))
        there = sorted((day, path) for day, path in self._day_folders(series) if day in days)
        return [f"{folder}/{path.name}/{layout.FILE_NAME}" for _, path in there if self._has_file(path, series)]

    def has_files(self, series: Series) -> bool:
        """Whether there is any file of a series; most often the first look tells."""
        return any(self._has_file(path) for _, path in self._day_folders(series))

    def _has_file(self, day_folder: Path, series: Series | None = None) -> bool:
        """Whether there is a day's file; its size is looked at where it is said whose it is."""
        path = day_folder / layout.FILE_NAME
        with read_errors(day_folder):
            status = _status(path)
        if status is None or not stat.S_ISREG(status.st_mode):
            return False
        if series is not None:
            layout.check_size(status.st_size, series, str(path))
        return True

    def check_dataset(self) -> None:
        """Raise a DatasetError unless there is a dataset at the root, or an empty folder that may become one."""
        path = self.root
        with read_errors(path):
            try:
                names = os.listdir(path)  # noqa: PTH208 - names, not paths
            except (FileNotFoundError, NotADirectoryError) as exc:
                raise DatasetError(f"{path} is no dataset: {reason(exc)}", str(path)) from exc
        if layout.TABLE in names:
            path /= layout.TABLE
            if not path.is_dir():
                raise DatasetError(f"{path} is no folder, where a dataset's belongs", str(path))
        elif any(name[0] not in "._" for name in names):
            raise DatasetError(f"{path} is no dataset: there is no folder {layout.TABLE}/ in it", str(path))

    def _day_folders(self, series: Series) -> Iterator[tuple[int, Path]]:
        self.check_spelling(series)
        folder = self.root / layout.series_path(series)
        names = _names_in(folder)
        for day, name in _parse_names(names, "date"):
            yield int(day), folder / name
        for meant in {name.lower() for name in names}.difference(names):
            if any(_parse_names([meant], "date")) and (found := self._spelling(folder, meant) or meant) != meant:
                self._refuse_spelling(folder, meant, found)

    def check_spelling(self, series: Series) -> None:
        """Raise a DatasetError if what a series' path leads to is spelt otherwise: most likely it is another coin's."""
        self._check_spelling(layout.series_path(series))

    def _check_spelling(self, folder: PurePosixPath) -> None:
        if folder in self._spelt:
            return
        place = self.root
        for part in folder.parts:
            found = self._spelling(place, part)
            if found is None:
                return
            if found != part:
                self._refuse_spelling(place, part, found)
            place /= part
        self._spelt.add(folder)

    def _spelling(self, folder: Path, name: str) -> str | None:
        """Return how what a name leads to is spelt; None where it leads nowhere, as far as that can be known now."""
        with contextlib.suppress(OSError):  # whoever reads there will say so
            return self._disk.spelling(folder, name)
        return None

    def _refuse_spelling(self, folder: Path, name: str, other: str) -> NoReturn:
        raise DatasetError(
            f"{folder / name} is {other} on this disk, which takes the two for one: spell it as it is there, or keep "
            "one of them on a disk that tells them apart",
            str(folder / name),
        )

    def footer(self, series: Series, day: int) -> Footer | None:
        """Return what a day's file says of itself; None where there is no file.

        Raises
        ------
        DamagedError
            There is one that cannot be what heatpipe wrote there.
        UnreadableError
            There is one that cannot be read now, or by this version.
        """
        self.check_spelling(series)
        path = self._path(series, day)
        with read_errors(path):
            if not _is_file(path):  # much cheaper than an error, and planning asks for every day there could be
                return None
            metadata = _read_part(path, series, _parse_metadata)
            footer = layout.decode_footer(metadata.metadata, str(path))
            layout.check_place(footer, series, day, str(path))
            layout.check_announced(metadata, series, str(path))
            return footer

    def mark(self, series: Series, day: int) -> Mark | None:
        """Return what tells a day's file from any that was, or will be, in its place; None where there is no file.

        Raises
        ------
        UnreadableError
            It cannot be looked at now.
        """
        path = self._path(series, day)
        with read_errors(path):
            return mark_file(path)

    def coverage(self, series: Series, day: int) -> Coverage:
        """Return what of a day is covered; nothing where there is no file, or a damaged one, which is told."""
        footer = self._sound_footer(series, day)
        return Coverage() if footer is None else footer.coverage

    def _sound_footer(self, series: Series, day: int) -> Footer | None:
        """Return a day's footer; None where there is no file, or a damaged one, which is told."""
        try:
            return self.footer(series, day)
        except DamagedError as exc:
            self.tell_damage(exc)
            return None

    def first_instant(self, series: Series) -> int | None:
        """Return where a series begins on disk; with its first day, where that says nothing. None: it is not there."""
        for day in self.days(series):
            try:
                footer = self.footer(series, day)
            except UnreadableError:
                return day * DAY_S
            except DamagedError as exc:
                self.tell_damage(exc)
                return day * DAY_S
            if footer is not None and footer.coverage.covered:
                return footer.coverage.covered.hull.start
        return None

    def last_instant(self, series: Series) -> int | None:
        """Return where a series ends on disk; None where nothing of it is there."""
        for day in reversed(self._days_that_tell(series)):
            with contextlib.suppress(DatasetError):  # a day that cannot be read says nothing
                if covered := self.coverage(series, day).covered:
                    return covered.hull.end
        return None

    def hull(self, series: Series) -> Span | None:
        """Return the span from the first covered instant on disk to the last; None where there is none.

        Raises
        ------
        UnreadableError
            The first day or the last cannot be read now.
        """
        days = self.days(series)
        first, last = (
            next(filter(None, (self.coverage(series, day).covered for day in order)), None)
            for order in (days, reversed(days))
        )
        return None if first is None or last is None else Span(first.hull.start, last.hull.end)

    def has_rows(self, series: Series) -> bool:
        """Whether any day of a series on disk has a row."""
        for day in reversed(self._days_that_tell(series)):
            with contextlib.suppress(DatasetError):  # a day that cannot be read says nothing
                if self.coverage(series, day).present:
                    return True
        return False

    def points(self, series: Series) -> Span | None:
        """Return the span from the first to the last interval on disk that has a point; None where none has."""
        days = self._days_that_tell(series)
        first = next(self._points_of(series, days), None)
        last = next(self._points_of(series, reversed(days)), None)
        return None if first is None or last is None else Span(first.start, last.end)

    def _days_that_tell(self, series: Series) -> list[int]:
        """Return the days that there may be, sorted; none where their folder cannot be read now."""
        with contextlib.suppress(UnreadableError):
            return sorted(day for day, _ in self._day_folders(series))
        return []

    def _points_of(self, series: Series, days: Iterable[int]) -> Iterator[Span]:
        """Yield, for each day that has points, the span from the first to the last."""
        for day in days:
            with contextlib.suppress(DatasetError):  # a day that cannot be read says nothing
                coverage = self.coverage(series, day)
                if pointed := coverage.covered - coverage.absent:
                    yield pointed.hull

    def tell_damage(self, damage: DamagedError) -> None:
        """Warn, once, that a file counts as not there."""
        self._tell_once(
            damage.path, f"{damage}; it counts as not covered: a backfill sets it aside and fetches the day again"
        )

    def _tell_once(self, what: str, warning: str) -> None:
        if what not in self._told:
            self._told.add(what)
            LOG.warning("%s", warning)

    def coverage_of(self, series: Series, days: Iterable[int]) -> Coverage:
        """Return the coverage of some days, joined; an UnreadableError where one of them cannot be read now."""
        coverage, barred = self.survey(series, days)
        for exc in barred.values():
            raise exc
        return coverage

    def survey(self, series: Series, days: Iterable[int]) -> tuple[Coverage, dict[int, UnreadableError]]:
        """Return the coverage of some days, joined, and which of them cannot be read now."""
        footers, barred = self.footers(series, days)
        return Coverage.union([footer.coverage for footer in footers.values()]), barred

    def footers(self, series: Series, days: Iterable[int]) -> tuple[dict[int, Footer], dict[int, UnreadableError]]:
        """Return the footers of those of some days that have a sound one, and which days cannot be read now."""
        try:
            there = {day for day, _ in self._day_folders(series)}  # planning asks for every day that there could be
        except UnreadableError as exc:
            return {}, dict.fromkeys(days, exc)
        found: dict[int, Footer] = {}
        barred: dict[int, UnreadableError] = {}
        wanted = days if isinstance(days, range) else frozenset(days)
        for day in sorted(day for day in there if day in wanted):
            try:
                footer = self._sound_footer(series, day)
            except UnreadableError as exc:
                barred[day] = exc
            else:
                found |= {} if footer is None else {day: footer}
        return found, barred

    def count_capped(self, day: int, footer: Footer, span: Span) -> int:
        """Count the snapshots of a day, within a span, that have as many levels as the depth allows.

        The footer tells, but for a day that the span cuts and a file from before it did: of those the timestamps
        are read.

        Raises
        ------
        DamagedError, UnreadableError
            They cannot be read.
        """
        series, covered = footer.series, footer.coverage.covered
        if footer.rows < series.depth:
            return 0
        if footer.capped is not None and (footer.capped == 0 or covered == covered.within(span)):
            return footer.capped
        path = self._path(series, day)
        with read_errors(path):
            timestamp, levels = layout.decode_points(_read_columns(path, series, ["timestamp"]))
        first, last = np.searchsorted(timestamp, np.array(span) * 1_000_000)
        return layout.count_capped(levels[first:last], series.depth)

    def read_bounds(self, series: Series, day: int) -> Bounds:
        """Return how far the snapshots of a day reach; no volume is read, and the digest is not checked.

        Raises
        ------
        DamagedError, UnreadableError
            They cannot be read.
        """
        path = self._path(series, day)
        with read_errors(path):
            return layout.decode_bounds(_read_columns(path, series, ["timestamp", "price"]))

    def check_pages(self, series: Series, day: int) -> None:
        """Raise an error where a day's pages are larger than its rows: for readers who take a file's word for it.

        Raises
        ------
        DamagedError, UnreadableError
            They are, or cannot be read.
        """
        path = self._path(series, day)
        with read_errors(path):
            _read_part(path, series, partial(_open_columns, path, series))

    def covered(self, series: Series, days: Iterable[int]) -> Spans:
        """Return what is covered of some days."""
        return self.coverage_of(series, days).covered

    def read_day(self, series: Series, day: int) -> Day | None:
        """Return a whole day; None where there is no file.

        Raises
        ------
        DamagedError, UnreadableError
            As `footer`; or its rows are not those that its footer vouches for.
        """
        self.check_spelling(series)
        path = self._path(series, day)
        with read_errors(path):
            data = self.read_file(layout.day_path(series, day), series) if _is_file(path) else None
            if data is None:
                return None
            table, footer = decode_file(data, series, day, str(path))
            rows = layout.decode_rows(table)
            if layout.digest_rows(rows.row_timestamps(), rows.price, rows.volume) != footer.digest:
                raise DamagedError(f"{path} holds other rows than its footer vouches for", str(path))
            return Day(series, day, rows, footer.coverage)

    def list_folder(self, folder: PurePosixPath) -> list[tuple[str, str]]:
        """Return name and kind of what lies in a folder, sorted; nothing where there is no folder.

        Raises
        ------
        UnreadableError
            It cannot be read now.
        """
        path = self.root / folder
        with read_errors(path), contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
            return sorted((entry.name, _kind(entry)) for entry in entries)
        return []

    def read_file(self, path: PurePosixPath, series: Series) -> bytes | None:
        """Return a day's file as it is at one moment, whoever replaces it meanwhile; None where there is none.

        Raises
        ------
        DamagedError
            It is larger than any day of the series, and is not read.
        UnreadableError
            It cannot be read now.
        """
        place = self.root / path
        with read_errors(place), contextlib.suppress(FileNotFoundError), place.open("rb") as file:
            layout.check_size(os.fstat(file.fileno()).st_size, series, str(place))
            return file.read()
        return None

    def size_bytes(self, series: Series) -> int:
        """Size of a series' files."""
        return sum(self._path(series, day).stat().st_size for day in self.days(series))

    # Writing

    def write_day(self, day: Day, slab: Slab, may_replace: Callable[[], bool] = lambda: True) -> int | None:
        """Replace one day's file, whole and atomically.

        The caller holds the slab's lock, and it is its turn.

        Parameters
        ----------
        day : Day
            What the file is to hold.
        slab : Slab
            Whose day it is.
        may_replace : callable
            Asked when all is ready; the file is replaced at once, or stays.

        Returns
        -------
        int or None
            Its size in bytes; None where it was not replaced.

        Raises
        ------
        UnreadableError
            It has more rows than a day can have.
        """
        path = self._path(day.series, day.number)
        rows, most = day.snapshots.rows, layout.most_rows(day.series)
        if rows > most:  # nobody would take it for a day
            said = f"it would have {rows:,} rows, and a day of {day.series} has {most:,} at most"
            raise UnreadableError(f"{path} cannot be written: {said}", str(path))
        try:
            data = encode_file(day)
        except (OSError, RuntimeError, pa.ArrowException) as exc:  # as libraries say that there was no memory
            raise MemoryError(f"{path} cannot be encoded now: {exc}") from exc

        def is_right() -> bool:
            self.check_spelling(day.series)  # another run may have made the folder meanwhile, for another coin
            return may_replace()

        return len(data) if self._replace(path, data, slab, is_right) else None

    def _replace(
        self, path: Path, data: bytes | bytearray, slab: Slab, may_replace: Callable[[], bool] = lambda: True
    ) -> bool:
        with file_errors(path):
            return self._disk.put(path, data, self._temporary(path, slab), may_replace)

    def free_bytes(self) -> int:
        """Free space where the days are, or will be."""
        folder = (self.root / layout.TABLE).absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    @contextlib.contextmanager
    def lock(self, slab: Slab, *, wait: Callable[[float], None] | None = None) -> Iterator[Callable[[], None]]:
        """Hold the slab's lock; it ends with this process, however that ends.

        Parameters
        ----------
        slab : Slab
            Whose days nobody else works on meanwhile.
        wait : callable, optional
            Sleeps for so many seconds while another process holds it; without one that is an error.

        Yields
        ------
        callable
            To be called now and then: takes the lock again where its file has lost its name, or raises a LockedError
            where another process has it by now.

        Raises
        ------
        LockedError
            Another process holds it; says which.
        """
        self._check_slab(slab)
        with contextlib.ExitStack() as stack:
            locks = [stack.enter_context(self._hold(home, slab, wait)) for home in self._homes()]
            yield partial(self._renew, locks, slab)

    def _renew(self, locks: Iterable[Lock], slab: Slab) -> None:
        for lock in locks:
            if not lock.is_held():
                lost = f"{lock.path} was removed or replaced while {slab} was being worked on"
                if not lock.renew():
                    raise LockedError(f"{lost}, and {lock.holder} works on it by now", str(lock.path))
                self._tell_once(LOCKS, f"{lost}, and is locked again: keep other programs away from it")

    @contextlib.contextmanager
    def turn(self, slab: Slab) -> Iterator[Callable[[], None]]:
        """Be the only one who writes files of a slab, for as long as that takes, whoever holds its lock.

        Where a lock's file was taken away there may be two who hold it; what one of them writes must not undo what the
        other has written.

        Yields
        ------
        callable
            To be called at the last moment: waits for another turn where this one's file has lost its name.

        Raises
        ------
        UnreadableError
            Somebody else's turn does not end.
        """
        lock = self._turn(slab)
        try:
            self._await(lock)
            yield partial(self._await, lock)
        finally:
            lock.free()  # its file goes with the slab's other temporary files

    def _await(self, lock: Lock) -> None:
        deadline = time.monotonic() + TURN_PATIENCE_S
        while not lock.renew():
            if time.monotonic() > deadline:
                said = f"for {TURN_PATIENCE_S:.0f} s {lock.holder} has been writing there: end it, if it hangs"
                raise UnreadableError(f"{lock.path} is locked: {said}", str(lock.path))
            time.sleep(TURN_POLL_S)

    def _turn(self, slab: Slab) -> Lock:
        home = self._homes()[-1]  # which all have in common who write to the same table
        return Lock(self._scratch(home, slab) / layout.TURN_NAME, home, self._disk, signed=False)

    def check_apart(self, run: Iterable[Series]) -> None:
        """Raise a DatasetError if two series of a run are one to this disk, which may fold the case of coins."""
        alike: defaultdict[str, list[PurePosixPath]] = defaultdict(list)
        for series in sorted(set(run)):
            path = layout.series_path(series)
            alike[fold_name(str(path))].append(path)
        for one, *others in alike.values():
            for other in others:
                with file_errors(self.root / one):
                    if self._disk.are_one(self.root / one, self.root / other):
                        self._refuse_spelling(self.root / one.parent, other.name, one.name)

    def check_series(self, series: Series) -> None:
        """Raise a DatasetError if something is wrong with the places of a series' files.

        A link in the place of heatpipe's own folders, a mount point on a file's way, a folder that is spelt otherwise.
        All of a run's series can be looked at before anything is paid for.
        """
        aside = self._quarantine_folder(series)
        self.check_spelling(series)
        self._check_spelling(PurePosixPath(aside.relative_to(self.root)))
        for home in self._homes():
            check_own(home / LOCKS, home)
            check_own(home / TMP, home)
        check_own(aside, self.root)
        for folder in (self.root / layout.series_path(series), aside):
            check_move(self._home_of(folder) / TMP, folder)

    def _check_slab(self, slab: Slab) -> None:
        """Raise a DatasetError where something is in the way of what may have to be written."""
        series = slab.series
        self.check_series(series)
        for home in self._homes():
            scratch = self._scratch(home, slab)
            check_own(scratch, home)
            check_way(scratch)
            check_free(scratch, partial(layout.is_temporary_name, slab=slab))
        days = (self._path(series, day).parent for day in days_of(slab.span))
        there = filter(os.path.lexists, days)  # a listing would have all of the series' days, for each of its slabs
        for folder in (self.root / layout.series_path(series), self._quarantine_folder(series), *there):
            check_way(folder)
            check_move(self._home_of(folder) / TMP, folder)

    def sweep(self) -> None:
        """Remove what processes that were killed left below ``_tmp/``; not what others still work on."""
        for home in self._homes():
            for slab in _slabs_named(home / TMP) if is_own(home / TMP, home) else []:
                if holds_only(self._scratch(home, slab), partial(layout.is_temporary_name, slab=slab)):
                    with contextlib.suppress(DatasetError):
                        self._check_slab(slab)
                        with self._hold(home, slab, None):
                            pass  # whoever has the lock has removed them

    @contextlib.contextmanager
    def _hold(self, home: Path, slab: Slab, wait: Callable[[float], None] | None) -> Iterator[Lock]:
        """Hold the lock of a slab's temporary files, beside which it lies."""
        lock = Lock(home / LOCKS / f"{layout.slab_name(slab)}.lock", home, self._disk)
        try:
            told = False
            while not lock.renew():
                held = f"{slab} is being worked on by {lock.holder}"
                if wait is None:
                    raise LockedError(held, str(lock.path))
                if not told:
                    LOG.warning("waiting: %s", held)
                told = True
                wait(LOCK_POLL_S)
            if self._scratch(home, slab).exists():  # of one that was killed, perhaps before it could sync a folder
                os.sync()
                self._tidy_scratch(home, slab)
            try:
                yield lock
            finally:
                self._tidy_scratch(home, slab)
        finally:
            lock.free()

    def _tidy_scratch(self, home: Path, slab: Slab) -> None:
        """Remove a slab's temporary files, but where somebody writes some at this moment, who will remove them."""
        scratch, turn = self._scratch(home, slab), self._turn(slab)
        try:
            with contextlib.suppress(DatasetError):
                if scratch.exists() and turn.renew():
                    remove_leftovers(scratch, partial(layout.is_temporary_name, slab=slab))
        finally:
            turn.remove()

    # Quarantine

    def quarantine(
        self, slab: Slab, span: Span, record: Mapping[str, str], body: bytes | bytearray | None = None
    ) -> None:
        """Keep what is known of a window that was given up.

        The caller holds the slab's lock, and it is its turn.

        Parameters
        ----------
        slab : Slab
            Where the window lies.
        span : Span
            The window.
        record : mapping
            What to tell of it, by name: the reason, the request.
        body : bytes-like, optional
            The raw answer, if there is one.
        """
        path = self._quarantine_folder(slab.series) / f"{span.start}-{span.end}.json"
        document = {"from": span.start, "to": span.end, **record}
        self._replace(path, json.dumps(document, indent=1).encode(), slab)
        if body is not None:
            self._replace(path.with_suffix(".body"), body, slab)
        else:  # what an earlier run got is no answer to this one's request
            with file_errors(path):
                path.with_suffix(".body").unlink(missing_ok=True)

    def quarantined(self, series: Series) -> Spans:
        """Return the spans of a series that were given up and have not come since."""
        return Spans.of(span for span, name in self._records(series) if name.endswith(".json"))

    def release(self, series: Series, span: Span, keep: Collection[Span] = ()) -> None:
        """Drop the records that touch a span and are wholly covered now, but for those to `keep`."""
        kept, folder = frozenset(keep), self._quarantine_folder(series)
        records = self._records(series)
        begin = bisect_left(records, span.start - slab_days(series.interval_s) * DAY_S, key=_start_of)
        end = bisect_left(records, span.end, key=_start_of)
        found = [one for one in records[begin:end] if one[0].end > span.start and one[0] not in kept]
        covered = self.survey(series, {day for record, _ in found for day in days_of(record)})[0].covered
        lacking = Spans.of(record for record, _ in found) - covered
        gone = [one for one in found if not lacking.within(one[0])] if lacking else found
        if gone:
            with file_errors(folder):
                for _, name in gone:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(f"{folder}/{name}")  # noqa: PTH108 - a Path takes as long as the system does
            left = set(records[begin:end]).difference(gone)
            self._listed = _Listed(folder, _changed_ns(folder), [*records[:begin], *sorted(left), *records[end:]])

    def set_aside(self, slab: Slab, day: int) -> None:
        """Keep a file that is about to be replaced, beside earlier ones.

        The caller holds the slab's lock, and it is its turn.
        """
        path = self._path(slab.series, day)
        folder, date = self._quarantine_folder(slab.series), layout.day_date(day)
        names = (f"{date}{f'-{number}' if number > 1 else ''}{layout.ASIDE}" for number in count(1))
        with file_errors(path):
            copy = next(
                copy for copy in map(folder.joinpath, names) if not os.path.lexists(copy) or same_bytes(copy, path)
            )
            if not os.path.lexists(copy):
                self._disk.keep_aside(path, copy, self._temporary(copy, slab))

    def _records(self, series: Series) -> "list[tuple[Span, str]]":
        """Return the files of each record by the span in their name, the answer before what is said of it.

        There may be a hundred thousand, and each slab of a run asks: they are listed anew when the folder has changed.
        One that was missed, for it came in the same instant, is dropped by the next run.
        """
        folder = self._quarantine_folder(series)
        longest_s = slab_days(series.interval_s) * DAY_S
        if not is_own(folder, self.root):
            return []
        self._check_spelling(PurePosixPath(folder.relative_to(self.root)))
        changed_ns = _changed_ns(folder)
        if self._listed is not None and self._listed[:2] == (folder, changed_ns):
            return self._listed.records
        found: list[tuple[Span, str]] = []
        for name, kind in self.list_folder(PurePosixPath(folder.relative_to(self.root))):
            parsed = RECORD_NAME.fullmatch(name) if kind == "file" else None
            span = Span(int(parsed[1]), int(parsed[2])) if parsed else Span(0, 0)
            if 0 < span.seconds <= longest_s:
                found.append((span, name))
        found.sort()
        self._listed = _Listed(folder, changed_ns, found)
        return found

    # Places

    def _path(self, series: Series, day: int) -> Path:
        return self.root / layout.day_path(series, day)

    def _homes(self) -> list[Path]:
        """Where heatpipe keeps files of its own: the root; and, if the table is a link, beside what it leads to."""
        table = self.root / layout.TABLE
        beside = Path(os.path.realpath(table)).parent
        linked = table.is_symlink() and beside != Path(os.path.realpath(self.root))
        return [self.root, beside] if linked else [self.root]

    def _home_of(self, path: Path) -> Path:
        """Where a file is to be written down, so that it can be moved to its place in one step."""
        return self._homes()[-1 if path.is_relative_to(self.root / layout.TABLE) else 0]

    def _scratch(self, home: Path, slab: Slab) -> Path:
        return home / TMP / layout.slab_name(slab)

    def _temporary(self, path: Path, slab: Slab) -> Path:
        return self._scratch(self._home_of(path), slab) / layout.temporary_name(PurePosixPath(path))

    def _quarantine_folder(self, series: Series) -> Path:
        return self.root / QUARANTINE / layout.series_path(series).relative_to(layout.TABLE)


def _changed_ns(folder: Path) -> int:
    """Return when a folder was changed last; 0 where there is none."""
    with read_errors(folder), contextlib.suppress(FileNotFoundError):
        return folder.stat().st_mtime_ns
    return 0


def _start_of(record: tuple[Span, str]) -> int:
    return record[0].start


def encode_file(day: Day) -> bytearray:
    """Encode a day as the bytes of a Parquet file: a pure function of its rows and coverage."""
    table = layout.encode_day(day)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **PARQUET) as writer:
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        capped = layout.count_capped(day.snapshots.levels, day.series.depth)
        writer.add_key_value_metadata({layout.CAPPED_KEY: b"%d" % capped, layout.SEAL_KEY: layout.blank_seal()})
    data = bytearray(sink.getvalue())
    layout.seal(data)
    return data


def decode_file(data: bytes, series: Series, day: int, path: str) -> tuple[pa.Table, Footer]:
    """Return the rows of a day's file and what it says of itself; the rows are not held against that yet.

    Its seal is checked before a column is read, and what its metadata announces: a page of some hundred bytes may
    become gigabytes.

    Raises
    ------
    DamagedError
        It is no Parquet file, has no footer of heatpipe's, lies in another day's place, or is not what was written.
    UnreadableError
        It cannot be read now, or by this version.
    """
    with _parsing(data, path):
        file = _open_parquet(pa.BufferReader(data))
    footer = layout.decode_footer(file.metadata.metadata, path)
    layout.check_place(footer, series, day, path)
    layout.check_columns(file.schema_arrow, path)
    layout.check_announced(file.metadata, series, path)
    layout.check_seal(data, path)
    with _parsing(data, path):
        _measure(file.metadata, len(data), partial(_read_bytes, memoryview(data)))
        return file.read(use_threads=False), footer


def _read_part(path: Path, series: Series, parse: Callable[[Any], T]) -> T:
    """Return what a parser makes of a part of a file; all of the file is read where that part does not parse."""
    with path.open("rb") as file:
        layout.check_size(os.fstat(file.fileno()).st_size, series, str(path))
        with contextlib.suppress(Exception):  # whatever it says of a part, all of the bytes are asked next
            return parse(file)
        file.seek(0)
        data = file.read()
    with _parsing(data, str(path)):
        return parse(pa.BufferReader(data))


def _parse_metadata(source: Any) -> pq.FileMetaData:
    """Return the metadata at a file's end."""
    return _open_parquet(source).metadata


def _read_columns(path: Path, series: Series, names: list[str]) -> pa.Table:
    """Return some columns of a day's file; of its seal and its digest nothing is known."""
    return _read_part(
        path,
        series,
        lambda source: _open_columns(path, series, source).read(columns=names, use_threads=False),
    )


def _open_columns(path: Path, series: Series, source: Any) -> pq.ParquetFile:
    """Open a day's file of which no column, and no page, is more than its rows can be."""
    file = _open_parquet(source)
    layout.check_columns(file.schema_arrow, str(path))
    layout.check_announced(file.metadata, series, str(path))

    def read_at(size: int, at: int) -> bytes:
        source.seek(at)
        found: bytes = source.read(size)
        return found

    _measure(file.metadata, source.seek(0, os.SEEK_END), read_at)
    return file


def _read_bytes(data: memoryview, size: int, at: int) -> memoryview:
    return data[at : at + size]


def _measure(metadata: pq.FileMetaData, size: int, read_at: ReadAt) -> None:
    """Raise an AnnouncedError where the parts of a file do not sum up to it, or its pages to more than its rows."""
    rows = pages = inflated = 0
    most = MOST_PAGES + metadata.num_rows // LEAST_IN_A_PAGE
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        rows += group.num_rows
        for column in map(group.column, range(group.num_columns)):
            start = column.data_page_offset
            if not start and not group.num_rows:  # as Arrow writes down that there are no pages
                continue
            if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
                start = column.dictionary_page_offset
            stop = start + column.total_compressed_size
            if not 0 <= start <= stop <= size or not 0 <= group.num_rows == column.num_values:
                raise AnnouncedError("its footer says what cannot be of its columns")
            found = measure_pages(read_at, start, stop, most=most - pages, most_inflated=MOST_PAGE_BYTES)
            pages, inflated = pages + found[0], inflated + found[1]
    if rows != metadata.num_rows:
        raise AnnouncedError(f"its row groups have {rows:,} rows, its footer says {metadata.num_rows:,}")
    if inflated > layout.MOST_BYTES_PER_ROW * rows + layout.MOST_FOOTER_BYTES:
        raise AnnouncedError(f"its pages have {inflated:,} bytes when inflated, which are too many for {rows:,} rows")


def _open_parquet(source: Any) -> pq.ParquetFile:
    """Read a file's metadata, if it is no longer, and lists no more, than that of any day."""
    source.seek(max(0, source.seek(0, os.SEEK_END) - len(PARQUET_END)))
    size = int.from_bytes(source.read(len(PARQUET_END))[:4], "little")
    if size > layout.MOST_FOOTER_BYTES:
        raise ValueError(f"its metadata would take {size:,} bytes, no day has more than {layout.MOST_FOOTER_BYTES:,}")
    source.seek(0)
    return pq.ParquetFile(
        source,
        page_checksum_verification=True,
        thrift_string_size_limit=layout.MOST_FOOTER_BYTES,
        thrift_container_size_limit=MOST_LISTED,
    )


@contextlib.contextmanager
def _parsing(data: bytes, path: str) -> Iterator[None]:
    """Tell damage from what a parser cannot do now: it may refuse what heatpipe wrote, for want of memory or of age.

    How it says so is not to be relied upon ("ZSTD decompression failed"), but the seal needs next to no memory.
    """
    try:
        yield
    except (MemoryError, DatasetError):
        raise
    except Exception as exc:
        with contextlib.suppress(DamagedError):
            layout.check_seal(data, path)
            raise UnreadableError(f"{path} is sound, and cannot be read now: {reason(exc)}", path) from exc
        raise DamagedError(f"{path} cannot be read: {reason(exc)}", path) from exc


def _is_file(path: Path) -> bool:
    """Whether there is a file; an UnreadableError where there is something else."""
    status = _status(path)
    if status and not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise UnreadableError(f"{path} is {kind}, where a day's file belongs: move it away", str(path))
    return status is not None


def _status(path: Path) -> os.stat_result | None:
    """Return what the system says of what is there, None where there is nothing."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if not is_missing(path):
            raise
        return None


def _is_there(path: Path) -> bool:
    """Whether there is anything; what cannot be looked at is there."""
    try:
        return not is_missing(path)
    except OSError:
        return True


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "symbolic link"
    if entry.is_dir():
        return "folder"
    return "file" if entry.is_file() else "special file"


def _parts(folder: Path, key: str) -> Iterator[tuple[str | int, str]]:
    """Yield what the partition folders of one key stand for, and their names; the rest is not heatpipe's."""
    yield from _parse_names(_names_in(folder), key)


def _parse_names(names: Iterable[str], key: str) -> Iterator[tuple[str | int, str]]:
    for name in names:
        with contextlib.suppress(ValueError, ConfigError):
            yield layout.parse_part(key, name), name


def _names_in(folder: Path) -> list[str]:
    """Return the names in a folder; none where there is no folder."""
    with read_errors(folder):
        try:
            return os.listdir(folder)  # noqa: PTH208 - names, not paths
        except NotADirectoryError:
            return []
        except FileNotFoundError:
            if not is_missing(folder):
                raise
            return []


def _slabs_named(folder: Path) -> list[Slab]:
    """Return the slabs that have a folder of their own; what else lies there is not heatpipe's."""
    found: list[Slab] = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder)):  # noqa: PTH208 - names are all that is wanted
            with contextlib.suppress(ValueError, ConfigError):
                found.append(layout.parse_slab_name(name))
    return found

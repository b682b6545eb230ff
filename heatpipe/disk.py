"""What heatpipe asks of a file system: files that are written whole, folders that last. Knows no dataset.

Where heatpipe keeps files of its own, only plain files in real folders are touched: a link there is never followed.
"""

import contextlib
import errno
import io
import logging
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from heatpipe.errors import DatasetError, UnreadableError

PIECE_BYTES: Final = 1 << 20
NOT_KNOWN: Final = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system says that does not know what it is asked for."""
TRIES: Final = 3
"""How often a file is written, or a folder made, that vanishes at the same moment."""

LOG: Final = logging.getLogger("heatpipe")


class Disk:
    """The file system of one dataset. Lives for what is to be told, and listed, only once."""

    def __init__(self) -> None:
        self._told = False
        self._names: dict[Path, frozenset[str]] = {}

    def put(
        self, path: Path, data: bytes | bytearray, temporary: Path, may_replace: Callable[[], bool] = lambda: True
    ) -> bool:
        """Write a file whole: under another name first, so that none is ever seen, or left behind, in part.

        `may_replace` has the last word, when all is written but the name; returns what it said.
        """
        for _ in range(TRIES - 1):
            with contextlib.suppress(FileNotFoundError):  # somebody has removed the temporary file, or its folder
                return self._put(path, data, temporary, may_replace)
        return self._put(path, data, temporary, may_replace)

    def _put(self, path: Path, data: bytes | bytearray, temporary: Path, may_replace: Callable[[], bool]) -> bool:
        self.make_folders(temporary.parent)
        with _new_file(temporary) as file:
            file.write(data)
        self.make_folders(path.parent)
        try:
            if not may_replace():
                return False
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self.sync_folder(path.parent)
        return True

    def keep_aside(self, path: Path, copy: Path, temporary: Path) -> None:
        """Give a file that is about to be replaced a second name: by a link, which takes no room, else by a copy."""
        self.make_folders(copy.parent)
        try:
            os.link(path, copy)
        except FileExistsError:
            raise
        except OSError:  # no links on this file system, or not to a file of another user's
            self.make_folders(temporary.parent)
            _copy(path, temporary)
            temporary.replace(copy)
        self.sync_folder(copy.parent)

    def make_folders(self, folder: Path) -> None:
        """Make a folder and those above it, each synced into its parent: a crash must not lose the way to a file."""
        for _ in range(TRIES):
            # what mkdir finds there may be removed before it is looked at, and so may the folder above
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                return self._make_folders(folder)
        return self._make_folders(folder)

    def _make_folders(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        self.sync_folder(folder.parent)

    def spelling(self, folder: Path, name: str) -> str | None:
        """Return how what a name leads to is spelt in its folder; None where it leads nowhere.

        That is another spelling only where the file system folds case, or forms of Unicode. A folder is listed once,
        and again for a name that was not in it then.
        """
        if name in self._names.get(folder, ()):
            return name
        try:
            (folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        self._names[folder] = frozenset(os.listdir(folder))  # noqa: PTH208 - names, not paths
        return other_spelling(name, self._names[folder]) or name

    def are_one(self, one: Path, other: Path) -> bool:
        """Whether two folders that need not be there are one to the file system; tries it, and leaves nothing."""
        if one.exists() or other.exists():
            return one.exists() and other.exists() and one.samefile(other)
        made = [folder for folder in (one, *one.parents) if not folder.exists()]
        try:
            one.mkdir(parents=True, exist_ok=True)
            return other.exists()
        finally:
            for folder in made:
                with contextlib.suppress(OSError):  # by now somebody has put something there
                    folder.rmdir()

    def sync_folder(self, folder: Path) -> None:
        """See that the names in a folder last; where the file system does not know how, say so, once."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as exc:
            if exc.errno not in NOT_KNOWN:
                raise OSError(exc.errno, exc.strerror, str(folder)) from exc
            if not self._told:
                LOG.warning("%s cannot be synced: a power cut may take what was written last (%s)", folder, reason(exc))
            self._told = True
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file under a name that only heatpipe uses, and see that its bytes last; leave nothing where that fails."""
    if is_plain(path):  # left by one that was killed
        path.unlink()
    with path.open("xb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)  # on a full disk, half of one day must not take the room of another
            raise


def _copy(path: Path, copy: Path) -> None:
    """Copy a file in pieces, and leave holes where it has some, or holds zeros."""
    with path.open("rb", buffering=0) as source, _new_file(copy) as target:
        while piece := _read_on(source):
            target.seek(source.tell() - len(piece))
            if piece.count(0) < len(piece):
                target.write(piece)
        target.truncate(source.tell())


def _read_on(source: io.FileIO) -> bytes:
    """Return the next piece of a file, behind a hole where there is one; at its end nothing."""
    with contextlib.suppress(OSError):  # a file system that knows no holes
        try:
            source.seek(os.lseek(source.fileno(), source.tell(), os.SEEK_DATA))
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but a hole is left
                source.seek(0, os.SEEK_END)
    return source.read(PIECE_BYTES)


def same_bytes(one: Path, other: Path) -> bool:
    """Whether a plain file is another one, or holds the same."""
    if not is_plain(one):
        return False
    if one.samefile(other):
        return True
    with one.open("rb") as first, other.open("rb") as second:
        if os.fstat(first.fileno()).st_size != os.fstat(second.fileno()).st_size:
            return False
        while piece := first.read(PIECE_BYTES):
            if piece != second.read(len(piece)):
                return False
    return True


Mark = tuple[int, int, int, int]
"""What tells a file from the one that was there before: device, inode, size, and when it was written (ns)."""


def mark_file(path: Path) -> Mark | None:
    """Return the mark of a file; None where there is none. A folder is no file: none can be moved to its place."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if not is_missing(path):
            raise
        return None
    if stat.S_ISDIR(status.st_mode):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def is_plain(path: Path) -> bool:
    """Whether there is a file, and not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


# Folders of heatpipe's own


def check_own(folder: Path, base: Path) -> None:
    """Raise a DatasetError unless a folder and those above it, below `base`, are real folders, or not there."""
    for place in _way(folder, base):
        with file_errors(place):
            try:
                mode = place.lstat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                return
            if stat.S_ISLNK(mode):
                said = "it is not a folder, but a symbolic link, which is not followed here: move it away"
                raise DatasetError(f"cannot write {place}: {said}", str(place))
            if not stat.S_ISDIR(mode):
                raise NotADirectoryError(errno.ENOTDIR, "", str(place))


def is_own(folder: Path, base: Path) -> bool:
    """Whether a folder is there, and no link on the way to it from `base`."""
    with contextlib.suppress(OSError):
        return all(stat.S_ISDIR(place.lstat().st_mode) for place in _way(folder, base))
    return False


def _way(folder: Path, base: Path) -> list[Path]:
    parts = folder.relative_to(base).parts
    return [base.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]


def remove_leftovers(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Remove a folder with all that is in it, file by file, if these are plain files whose names are ours."""
    if holds_only(folder, is_ours):
        with contextlib.suppress(OSError):
            for path in sorted(folder.iterdir()):  # by name: a lock's file is the last
                path.unlink()
            folder.rmdir()


def holds_only(folder: Path, is_ours: Callable[[str], bool]) -> bool:
    """Whether there is a folder, no link to one, in which nothing is but plain files whose names are ours."""
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(folder.lstat().st_mode):
            with os.scandir(folder) as entries:
                return all(entry.is_file(follow_symlinks=False) and is_ours(entry.name) for entry in entries)
    return False


# What can be known before anything is written


def check_free(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Raise a DatasetError if something that is not heatpipe's has a name in a folder that heatpipe uses."""
    with file_errors(folder), contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if is_ours(entry.name) and not entry.is_file(follow_symlinks=False):
                said = "something that is no plain file is in its place: move it away"
                raise DatasetError(f"cannot write {entry.path}: {said}", entry.path)


def check_way(folder: Path) -> None:
    """Raise a DatasetError if a folder cannot be made or written to: better now than when a day is paid for."""
    folder = _nearest(folder)
    with file_errors(folder):
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "", str(folder))
        if not os.access(folder, os.W_OK | os.X_OK):
            read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
            raise OSError(number, os.strerror(number), str(folder))


def check_move(source: Path, target: Path) -> None:
    """Raise a DatasetError if no file can be moved, in one step, from one folder into the other."""
    here, there = _nearest(source), _nearest(target)
    with file_errors(there):
        if here.stat().st_dev == there.stat().st_dev and not _mounted_apart(here, there):
            return
    raise DatasetError(
        f"cannot write {there}: it lies on another file system than {source}, and no file can be moved from one to the "
        "other in one step; keep all of the dataset on one, or let liquidations/ be a link to a folder on the other",
        str(there),
    )


def _nearest(folder: Path) -> Path:
    """Return a folder, or what is there of the way to it."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder


def _mounted_apart(one: Path, other: Path) -> bool:
    """Whether two folders of one file system are mounted apart: Linux says so before it says that none is a name."""
    try:
        os.rename(f"{one}/.", f"{other}/.")  # noqa: PTH104 - Path takes the dots away
    except OSError as exc:
        return exc.errno == errno.EXDEV
    return False


# Names


def other_spelling(name: str, names: Iterable[str]) -> str | None:
    """Return for which of a folder's names a file system that folds them takes a name, unless it is one of them."""
    there = set(names)
    folded = fold_name(name)
    return None if name in there else next((other for other in sorted(there) if fold_name(other) == folded), None)


def fold_name(name: str) -> str:
    """Return what all spellings of a name have in common that differ in case, or in the form of Unicode, alone."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


# What is said


@contextlib.contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn what the system refuses into a DatasetError that names the file."""
    try:
        yield
    except OSError as exc:
        said = "it is not a folder" if isinstance(exc, FileExistsError | NotADirectoryError) else reason(exc)
        raise DatasetError(f"cannot write {exc.filename2 or exc.filename or path}: {said}", str(path)) from exc


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn what keeps a file from being read now, and is not about its bytes, into an UnreadableError that names it."""
    try:
        yield
    except (OSError, MemoryError) as exc:
        said = "it has vanished, or a link leads nowhere" if isinstance(exc, FileNotFoundError) else reason(exc)
        raise UnreadableError(f"{path} cannot be read now: {said}", str(path)) from exc


def is_missing(path: Path) -> bool:
    """Whether nothing is there, and no link on the way is broken, behind which there may be something."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return not any(link.is_symlink() and not link.exists() for link in (path, *path.parents))
    return False


def text_name(path: Path) -> str:
    """Return a path as text for the libraries that take every name for UTF-8, whatever the locale says.

    Raises
    ------
    DatasetError
        It is no UTF-8: they could not open it.
    """
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError as exc:
        raise DatasetError(
            f"{str(path)!a} is no name in UTF-8, as polars and DuckDB want it: rename it", str(path)
        ) from exc


def reason(exc: Exception) -> str:
    """Return the first line of what an error says."""
    if isinstance(exc, MemoryError):
        return "not enough memory"
    text = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
    return text.splitlines()[0]

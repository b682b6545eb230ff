"""What heatpipe asks of a file system: files that are written whole, folders that last. Knows no dataset."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from heatpipe.errors import DatasetError, UnreadableError

PIECE_BYTES: Final = 1 << 20


def write_synced(path: Path, data: bytes | bytearray) -> None:
    """Write a file and see that its bytes last; leave nothing where that fails."""
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)  # on a full disk, half of one day must not take the room of another
        raise


def keep_aside(path: Path, copy: Path, temporary: Path) -> None:
    """Give a file that is about to be replaced a second name: by a link, which takes no room, else by a copy."""
    try:
        os.link(path, copy)
    except FileExistsError:
        raise
    except OSError:  # no links on this file system, or not to a file of another user's
        _copy_synced(path, temporary)
        temporary.replace(copy)
    sync_folder(copy.parent)


def _copy_synced(path: Path, copy: Path) -> None:
    """Copy a file in pieces, and leave holes where it holds zeros."""
    try:
        with path.open("rb") as source, copy.open("wb") as target:
            while piece := source.read(PIECE_BYTES):
                if piece.count(0) == len(piece):
                    target.seek(len(piece), os.SEEK_CUR)
                else:
                    target.write(piece)
            target.truncate()
            target.flush()
            os.fsync(target.fileno())
    except BaseException:
        copy.unlink(missing_ok=True)
        raise


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two regular files are one, or hold the same."""
    if one.is_symlink() or not one.is_file():
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


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, each synced into its parent: a crash must not lose the way to a file."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """See that the names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file, unless somebody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_way(folder: Path, root: Path) -> None:
    """Raise a DatasetError if a folder cannot be made or written to: better now than when a day is paid for."""
    while not folder.exists() and folder != root:
        folder = folder.parent
    with file_errors(folder):
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "", str(folder))
        if not os.access(folder, os.W_OK | os.X_OK):
            read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
            raise OSError(number, os.strerror(number), str(folder))


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
        raise UnreadableError(f"{path} cannot be read now: {reason(exc)}", str(path)) from exc


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

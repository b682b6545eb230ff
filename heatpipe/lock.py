"""A lock by its name: held as long as the file that was locked has that name. Knows no dataset.

A lock's file may be removed, or replaced, while the lock is held: by a cleaner, by a program that syncs folders.
Whoever comes next then locks another file, and there are two owners. So what is locked is compared with what has the
name: after locking, and whenever the holder asks.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat
from pathlib import Path
from typing import Final

from heatpipe.disk import NOT_KNOWN, Disk, check_own, file_errors, read_errors, reason
from heatpipe.errors import DatasetError, UnreadableError

NO_LOCKS: Final = (errno.ENOLCK, *NOT_KNOWN)
SIGNATURE: Final = re.compile(rb"process [0-9]{1,20} on [^\n]{1,255}\n")
"""All that heatpipe ever writes into a lock's file."""
TRIES: Final = 1000
"""How often a file is locked that has lost its name by then."""


class Lock:
    """A lock, which may be taken and freed again and again. It ends with this process, however that ends.

    Parameters
    ----------
    path : Path
        Its file, made when it is not there.
    base : Path
        Below which no folder on the way to it may be a link.
    disk : Disk
        Which makes these folders.
    signed : bool
        Write into the file who holds it.

    Attributes
    ----------
    holder : str
        Who held it when it could not be taken.
    """

    def __init__(self, path: Path, base: Path, disk: Disk, *, signed: bool = True) -> None:
        self.path = path
        self._signed = signed
        self.holder = "another process"
        self._base = base
        self._disk = disk
        self._descriptor: int | None = None

    def renew(self) -> bool:
        """Take it, unless it is held still, or somebody else has it; return whether it is held now.

        Raises
        ------
        DatasetError
            Its file cannot be opened, or something else lies in its place.
        UnreadableError
            There are no locks here, or none that lasts.
        """
        if self.is_held():
            return True
        self.free()
        for _ in range(TRIES):
            descriptor = self._open()
            if descriptor is None:
                continue
            try:
                taken = _try_lock(descriptor, self.path)
                if not _has_name(descriptor, self.path):
                    continue
                if not taken:
                    self.holder = _read_signature(descriptor) or "another process"
                elif self._signed:
                    _sign(descriptor, self.path)
                self._descriptor = descriptor if taken else None
                return taken
            finally:
                if self._descriptor != descriptor:
                    os.close(descriptor)
        said = "whatever is locked there is gone at once: keep other programs from removing it"
        raise UnreadableError(f"{self.path} cannot be locked: {said}", str(self.path))

    def is_held(self) -> bool:
        """Whether it was taken, and its file is the one that has the name."""
        return self._descriptor is not None and _has_name(self._descriptor, self.path)

    def free(self) -> None:
        """Let go of it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def remove(self) -> None:
        """Remove its file, if it is held, and the folder if that is empty then; let go of it."""
        with contextlib.suppress(OSError, DatasetError):
            if self.is_held():
                self.path.unlink()
                self.path.parent.rmdir()
        self.free()

    def _open(self) -> int | None:
        """Open its file, which is made if it is not there; None where its folder is removed at the same moment."""
        check_own(self.path.parent, self._base)
        with file_errors(self.path), contextlib.suppress(FileNotFoundError):
            self._disk.make_folders(self.path.parent)
            return _open_plain(self.path)
        return None


def _open_plain(path: Path) -> int:
    """Open a lock's file, or make it: no link, and nothing else that lies in its place."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.suppress(FileNotFoundError):
        _check_plain(path, path.lstat().st_mode)
    try:
        descriptor = os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError as exc:  # another user's, perhaps: what may be read can be locked
        try:
            descriptor = os.open(path, flags | os.O_RDONLY)
        except FileNotFoundError:
            raise exc from None
    try:
        _check_plain(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_plain(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
        raise DatasetError(f"cannot write {path}: it is {kind}, where a lock's file belongs: move it away", str(path))


def _try_lock(descriptor: int, path: Path) -> bool:
    """Lock an open file, unless somebody has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        hint = "; the dataset must lie where files can be locked" if exc.errno in NO_LOCKS else ""
        raise UnreadableError(f"{path} cannot be locked: {reason(exc)}{hint}", str(path)) from exc
    return True


def _has_name(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that a path leads to."""
    with read_errors(path):
        try:
            return os.path.samestat(os.fstat(descriptor), path.lstat())
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as exc:  # as a share says of a file that another machine has removed
            if exc.errno != errno.ESTALE:
                raise
            return False


def _sign(descriptor: int, path: Path) -> None:
    """Write down who holds a lock, unless its file says so, may only be read, or may be somebody else's."""
    signature = f"process {os.getpid()} on {os.uname().nodename}"
    with file_errors(path):
        may_write = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        status, written = os.fstat(descriptor), _read_signature(descriptor)
        ours = status.st_size == 0 or written is not None
        if may_write and ours and written != signature and status.st_nlink == 1:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{signature}\n".encode(), 0)


def _read_signature(descriptor: int) -> str | None:
    """Return who holds a lock, by its file; None where it does not say."""
    written = os.pread(descriptor, 400, 0)
    return written.decode(errors="replace").strip() if SIGNATURE.fullmatch(written) else None

"""A file system that folds case, as disks of macOS and Windows do: a folder shown through FUSE, spoken by hand.

``python -m tests.folding FOLDER MOUNTPOINT`` mounts it, says ``ready``, and serves it until it is killed. Names are
kept as they were first spelt, and found however their letters are cased, whatever form of Unicode they are in.
"""

import ctypes
import errno
import os
import stat
import struct
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Final

HEADER: Final = struct.Struct("<IIQQIIII")
ATTRIBUTES: Final = struct.Struct("<6Q10I")
KEPT_S: Final = 0
"""How long the kernel may keep what it was told: it asks for every name anew."""
READ_BYTES: Final = (1 << 20) + 4096


def fold(name: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def list_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


class Folding:
    """The file system, by the numbers that the kernel gives to what is asked of one."""

    def __init__(self, folder: Path) -> None:
        self.paths = {1: folder}
        self.numbers = {folder: 1}
        self.calls: dict[int, Callable[[int, bytes], bytes]] = {
            1: self.lookup,
            3: lambda node, _: self.attributes(node),
            4: self.set_attributes,
            5: lambda node, _: os.fsencode(self.paths[node].readlink()),
            6: self.symlink,
            9: self.mkdir,
            10: lambda node, body: self.remove(node, body, os.unlink),
            11: lambda node, body: self.remove(node, body, os.rmdir),
            12: lambda node, body: self.rename(node, body, 8),
            13: self.link,
            14: self.open,
            15: self.read,
            16: self.write,
            17: self.statfs,
            18: self.release,
            20: self.sync,
            26: self.init,
            27: lambda *_: bytes(16),
            28: self.list,
            29: lambda *_: b"",
            30: lambda *_: b"",
            35: self.create,
            45: lambda node, body: self.rename(node, body, 16),
        }

    def serve(self, device: int) -> None:
        while True:
            try:
                message = os.read(device, READ_BYTES)
            except OSError as exc:
                if exc.errno == errno.ENODEV:  # unmounted
                    return
                continue
            _, call, unique, node, *_ = HEADER.unpack_from(message)
            if call in (2, 36, 42):  # what is forgotten, and interrupts: no answer is wanted
                continue
            error, answer = 0, b""
            try:
                answer = self.calls[call](node, message[HEADER.size :])
            except KeyError:
                error = errno.ENOSYS if call not in self.calls else errno.ESTALE
            except OSError as exc:
                error = exc.errno or errno.EIO
            os.write(device, struct.pack("<IiQ", 16 + len(answer), -error, unique) + answer)

    def find(self, node: int, name: bytes) -> Path:
        """Return the path of a name in a folder, spelt as it is there, if it is there."""
        folder, wanted = self.paths[node], os.fsdecode(name)
        found = (other for other in list_names(folder) if fold(other) == fold(wanted))
        return folder / next(found, wanted)

    def number(self, path: Path) -> int:
        number = self.numbers.setdefault(path, max(self.paths) + 1)
        self.paths[number] = path
        return number

    def describe(self, path: Path) -> bytes:
        status = path.lstat()
        nanoseconds = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
        return ATTRIBUTES.pack(
            *(status.st_ino, status.st_size, status.st_blocks),
            *(time // 10**9 for time in nanoseconds),
            *(time % 10**9 for time in nanoseconds),
            *(status.st_mode, status.st_nlink, status.st_uid, status.st_gid, 0, 4096, 0),
        )

    def entry(self, path: Path) -> bytes:
        described = self.describe(path)
        return struct.pack("<4Q2I", self.number(path), 0, KEPT_S, KEPT_S, 0, 0) + described

    def attributes(self, node: int) -> bytes:
        return struct.pack("<Q2I", KEPT_S, 0, 0) + self.describe(self.paths[node])

    def init(self, _: int, body: bytes) -> bytes:
        major, _minor, ahead, _flags = struct.unpack_from("<4I", body)
        return struct.pack("<4I2H2I2H8I", major, 31, ahead, 0, 16, 12, 1 << 17, 1, 32, 0, *[0] * 8)

    def lookup(self, node: int, body: bytes) -> bytes:
        return self.entry(self.find(node, body.rstrip(b"\0")))

    def set_attributes(self, node: int, body: bytes) -> bytes:
        valid, _, _, size, _, _, _, _, _, _, _, mode = struct.unpack_from("<2I6Q4I", body)
        if valid & 1:
            self.paths[node].chmod(stat.S_IMODE(mode))
        if valid & 8:
            os.truncate(self.paths[node], size)
        return self.attributes(node)

    def symlink(self, node: int, body: bytes) -> bytes:
        name, target, _ = body.split(b"\0", 2)
        path = self.find(node, name)
        path.symlink_to(os.fsdecode(target))
        return self.entry(path)

    def mkdir(self, node: int, body: bytes) -> bytes:
        path = self.find(node, body[8:].rstrip(b"\0"))
        path.mkdir()
        return self.entry(path)

    def remove(self, node: int, body: bytes, how: Callable[[Path], None]) -> bytes:
        path = self.find(node, body.rstrip(b"\0"))
        how(path)
        self.numbers.pop(path, None)
        return b""

    def rename(self, node: int, body: bytes, skip: int) -> bytes:
        (target,) = struct.unpack_from("<Q", body)
        name, new, _ = body[skip:].split(b"\0", 2)
        source, path = self.find(node, name), self.find(target, new)
        source.rename(path)
        self.numbers.pop(path, None)
        for old in [old for old in self.numbers if old == source or source in old.parents]:
            number = self.numbers.pop(old)
            self.paths[number] = path / old.relative_to(source)
            self.numbers[self.paths[number]] = number
        return b""

    def link(self, node: int, body: bytes) -> bytes:
        (old,) = struct.unpack_from("<Q", body)
        path = self.find(node, body[8:].rstrip(b"\0"))
        os.link(self.paths[old], path)
        return self.entry(path)

    def open(self, node: int, body: bytes) -> bytes:
        (flags,) = struct.unpack_from("<I", body)
        return struct.pack("<Q2I", os.open(self.paths[node], flags & ~os.O_NOFOLLOW), 0, 0)

    def create(self, node: int, body: bytes) -> bytes:
        flags, mode, mask, _ = struct.unpack_from("<4I", body)
        path = self.find(node, body[16:].rstrip(b"\0"))
        file = os.open(path, flags | os.O_CREAT, mode & ~mask)
        return self.entry(path) + struct.pack("<Q2I", file, 0, 0)

    def read(self, _: int, body: bytes) -> bytes:
        file, offset, size = struct.unpack_from("<2QI", body)
        return os.pread(file, size, offset)

    def write(self, _: int, body: bytes) -> bytes:
        file, offset, size = struct.unpack_from("<2QI", body)
        return struct.pack("<2I", os.pwrite(file, body[40 : 40 + size], offset), 0)

    def release(self, _: int, body: bytes) -> bytes:
        os.close(struct.unpack_from("<Q", body)[0])
        return b""

    def sync(self, _: int, body: bytes) -> bytes:
        os.fsync(struct.unpack_from("<Q", body)[0])
        return b""

    def statfs(self, node: int, _: bytes) -> bytes:
        found = os.statvfs(self.paths[node])
        counts = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        return struct.pack("<5Q4I6I", *counts, found.f_bsize, 255, found.f_frsize, *[0] * 7)

    def list(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<2QI", body)
        answer = b""
        names = sorted(list_names(self.paths[node]))
        for at, name in enumerate(names[offset:], offset + 1):
            encoded = os.fsencode(name)
            one = struct.pack("<2Q2I", 2, at, len(encoded), 0) + encoded
            one += bytes(-len(one) % 8)
            if len(answer) + len(one) > size:
                break
            answer += one
        return answer


def main(folder: str, mountpoint: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    if libc.mount(b"folding", os.fsencode(mountpoint), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), mountpoint)
    print("ready", flush=True)
    Folding(Path(folder)).serve(device)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Memory of large arrays, used again: fresh pages cost as much as the work on them. No I/O, no clock."""

import contextlib
import mmap
from collections import deque
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SMALL: Final = 1 << 15
"""Arrays of fewer numbers are left to the allocator, which is quick with them."""
GRAIN: Final = 1 << 17
"""Numbers of the smallest block; the others are its multiples by powers of two, so that one fits many arrays."""
IDLE: Final = 6
"""Most blocks that wait for the next array."""
IDLE_BYTES: Final = 32 << 20
"""Size of the largest block that waits: a day of usual depth fits it, and what is larger comes seldom."""


class Pool:
    """Lends out memory, and takes it back when the last array that looks at it is gone. Threads may share it.

    Parameters
    ----------
    idle : int
        Most blocks that are kept for later; the one that was returned first goes first.
    """

    def __init__(self, idle: int = IDLE) -> None:
        # Arrays die at any moment, in any thread: what takes their memory back must not wait for a lock.
        self._idle: deque[NDArray[np.float64]] = deque(maxlen=idle)

    def floats(self, size: int) -> NDArray[np.float64]:
        """Return an array of (size,) float64 with anything in it."""
        if size < SMALL:
            return np.empty(size, np.float64)
        return np.asarray(_Loan(self._take(size), self._idle))[:size]

    def integers(self, size: int) -> NDArray[np.int64]:
        """Return an array of (size,) int64 with anything in it."""
        return self.floats(size).view(np.int64)

    def _take(self, size: int) -> NDArray[np.float64]:
        """Return an idle block that is large enough, but not by far too large; else a new one."""
        with contextlib.suppress(IndexError):  # another thread took the last
            for _ in range(len(self._idle)):
                block = self._idle.pop()
                if size <= len(block) <= 2 * size + GRAIN:
                    return block
                self._idle.appendleft(block)
        size_bytes = max(8 * GRAIN, 8 << (size - 1).bit_length())
        # Mapped apart from the heap, which such blocks would tear to pieces; private, or a fork would share them.
        try:
            memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as exc:  # it says ENOMEM, as if it were about a file
            raise MemoryError(f"no memory for {size_bytes:,} bytes") from exc
        return np.frombuffer(memory, np.float64)


class _Loan:
    """What an array holds on to while it looks at a block; it goes with the last of them, and returns the block."""

    def __init__(self, block: NDArray[np.float64], home: deque[NDArray[np.float64]]) -> None:
        self.__array_interface__: dict[str, Any] = block.__array_interface__
        self._block = block
        self._home = home

    def __del__(self) -> None:
        if self._block.nbytes <= IDLE_BYTES:
            self._home.append(self._block)


POOL: Final = Pool()
"""The process's own."""

"""The text of an answer, kept as it travelled and inflated as it is read. No I/O, no clock."""

import zlib
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Final, Self

from isal import isal_zlib

from heatpipe.errors import TooHeavyError, TransientError

PIECE_BYTES: Final = 1 << 19
"""Most that is inflated at a time: small enough for the cache, large enough that threads seldom hand the interpreter
over. So much is the overshoot over a cap."""
MOST_MEMBERS: Final = 1 << 14
"""Streams of gzip, one behind the other, that a text may come in: each takes time of its own."""

Buffer = bytes | bytearray | memoryview


class Text:
    """A text of which only the compressed form is kept: who reads it twice inflates it twice.

    Parameters
    ----------
    chunks : sequence of bytes
        As they came.
    compressed : bool
        Whether with gzip.
    cap : int
        Most bytes that an honest text can have.
    name : str
        What it answers, for errors.
    """

    def __init__(self, chunks: Sequence[Buffer], *, compressed: bool, cap: int, name: str = "the text") -> None:
        self._chunks = chunks
        self._compressed = compressed
        self._cap = cap
        self._name = name

    @classmethod
    def of(cls, body: Buffer) -> Self:
        """Return a text that is in memory as it is."""
        return cls([body], compressed=False, cap=len(body))

    @property
    def expected_size(self) -> int:
        """How many bytes it has, by the word of whoever compressed it, but no more than the cap."""
        if self._compressed:
            return min(self._cap, int.from_bytes(b"".join(self._chunks[-2:])[-4:], "little"))
        return sum(map(len, self._chunks))

    def __iter__(self) -> Iterator[Buffer]:
        """Inflate it piece by piece: a bomb is noticed before it is memory.

        Raises
        ------
        TooHeavyError
            It is longer than the cap, or in too many pieces.
        TransientError
            The compressed form is damaged or cut short.
        """
        size = 0
        for piece in self._pieces():
            size += len(piece)
            if size > self._cap:
                raise TooHeavyError(f"{self._name}: the answer is larger than {self._cap:,} bytes")
            yield piece

    def whole(self) -> bytes:
        """Return all of it; raises as its iteration."""
        return b"".join(self)

    def beginning(self, most: int) -> bytes:
        """Return all of it, or so many bytes of it; raises as its iteration."""
        found = bytearray()
        for piece in self:
            found += piece[: most - len(found)]
            if len(found) == most:
                break
        return bytes(found)

    def _pieces(self) -> Iterator[Buffer]:
        if not self._compressed:
            for chunk in self._chunks:
                view = memoryview(chunk)
                yield from (view[at : at + PIECE_BYTES] for at in range(0, len(view), PIECE_BYTES))
            return
        given = 0
        try:
            for piece in self._inflate(isal_zlib):
                yield piece
                given += len(piece)
        except TransientError:  # isal refuses some headers that are rare but right; zlib has the last word
            for piece in self._inflate(zlib):
                yield piece[given:]
                given = max(0, given - len(piece))

    def _inflate(self, library: ModuleType) -> Iterator[bytes]:
        stream = library.decompressobj(wbits=31)
        members = 1
        try:
            for chunk in self._chunks:
                left = chunk
                while left:
                    if stream.eof:  # zeros may follow, or another member
                        left = bytes(left).lstrip(b"\0")
                        if not left:
                            break
                        members += 1
                        if members > MOST_MEMBERS:
                            raise TooHeavyError(
                                f"{self._name}: the answer is more than {MOST_MEMBERS:,} streams of gzip"
                            )
                        stream = library.decompressobj(wbits=31)
                    yield stream.decompress(left, PIECE_BYTES)
                    left = stream.unconsumed_tail or stream.unused_data
        except library.error as exc:
            raise TransientError(f"{self._name}: the compressed answer is damaged") from exc
        if not stream.eof:
            raise TransientError(f"{self._name}: the compressed answer is cut short")

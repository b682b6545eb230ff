"""What a Parquet file says of its pages' sizes, added up before a library takes memory for them. Pure.

Before each page stands a header in Thrift's compact protocol. A library believes it: a page of a few kilobytes that
says so is inflated to two gigabytes, whatever the file's footer says of its column.

References
----------
.. [1] Apache Parquet, ``parquet.thrift``: PageHeader; Apache Thrift, "Thrift compact protocol encoding".
"""

from collections.abc import Callable
from typing import Final

ReadAt = Callable[[int, int], bytes | memoryview]
"""Takes how many bytes, and from where on: as `os.pread` of a file that is open."""

MOST_HEADER_BYTES: Final = 1024
"""Of a page: with what its statistics say of a column of numbers it takes some sixty."""
MOST_NESTED: Final = 8
TYPE, INFLATED, STORED = 1, 2, 3
"""Fields of a page's header, all of them numbers."""
TRUE, FALSE, BYTE, SHORT, INT, LONG, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
VARYING: Final = (SHORT, INT, LONG)
FIXED: Final = {BYTE: 1, DOUBLE: 8}


class AnnouncedError(ValueError):
    """A file says of itself what cannot be, such as pages that are larger than its rows."""


def measure_pages(read_at: ReadAt, start: int, stop: int, *, most: int, most_inflated: int) -> tuple[int, int]:
    """Return how many pages stand between two offsets, and how many bytes they are inflated to.

    Parameters
    ----------
    read_at : callable
        Reads the file.
    start, stop : int
        Where the pages of a column begin and end.
    most, most_inflated : int
        Most pages, and most bytes of one of them.

    Raises
    ------
    AnnouncedError
        There is more, or what stands there are no pages.
    """
    count = inflated = 0
    at = start
    while at < stop:
        count += 1
        if count > most:
            raise AnnouncedError("a column has more pages than its rows fill")
        size, page, stored = _read_header(read_at(min(MOST_HEADER_BYTES, stop - at), at))
        if page > most_inflated:
            raise AnnouncedError(
                f"a page says that it has {page:,} bytes when inflated, and has {most_inflated:,} at most"
            )
        inflated += page
        at += size + stored
    if at > stop:
        raise AnnouncedError("a page ends behind the end of its column")
    return count, inflated


def _read_header(data: bytes | memoryview) -> tuple[int, int, int]:
    """Return how long a page's header is, and how many bytes the page has when inflated, and as it is stored."""
    try:
        end, numbers = _skip_struct(data, 0, 0)
    except IndexError:
        raise AnnouncedError("a page has no header") from None
    inflated, stored = numbers.get(INFLATED, -1), numbers.get(STORED, -1)
    if inflated < 0 or stored < 0 or end > len(data):
        raise AnnouncedError("a page has a header that says no sizes")
    return end, inflated, stored


def _skip_struct(data: bytes | memoryview, at: int, nested: int) -> tuple[int, dict[int, int]]:
    """Return where a struct ends, and its own whole numbers by their field."""
    if nested > MOST_NESTED:
        raise AnnouncedError("a page has a header too deep to be one")
    field = 0
    numbers: dict[int, int] = {}
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            field += head >> 4
        else:
            field, at = _read_number(data, at)
        if kind in VARYING:
            numbers[field], at = _read_number(data, at)
        elif kind not in (TRUE, FALSE):
            at = _skip_value(data, at, kind, nested)
    return at + 1, numbers


def _skip_value(data: bytes | memoryview, at: int, kind: int, nested: int) -> int:
    if kind in FIXED:
        return at + FIXED[kind]
    if kind == BINARY:
        size, at = _read_varint(data, at)
        return at + size
    if kind == STRUCT:
        return _skip_struct(data, at, nested + 1)[0]
    raise AnnouncedError("a page has a header with fields that none has")


def _read_number(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return a number and where it ends; the sign is its last bit."""
    value, at = _read_varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7

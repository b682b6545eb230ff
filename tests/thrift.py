"""Thrift's compact protocol, as Parquet's footers and page headers are written, for files that no library would write.

A value is a pair of its kind and itself. A struct is a dictionary by field, a list is the kind of its elements and
they; a list may also be `Announced`.
"""

from dataclasses import dataclass
from typing import Any, Final

TRUE, FALSE, BYTE, SHORT, INT, LONG, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
NUMBERS: Final = (BYTE, SHORT, INT, LONG)

Value = tuple[int, Any]
Struct = dict[int, Value]


@dataclass
class Announced:
    """A list that says how many elements it has; what follows is something else."""

    kind: int
    count: int
    bytes: bytes


def write(kind: int, value: Any) -> bytes:
    """Encode a value."""
    if kind in NUMBERS:
        return _varint(value << 1 if value >= 0 else (-value << 1) - 1)
    if kind == BINARY:
        return _varint(len(value)) + bytes(value)
    if kind == LIST:
        if isinstance(value, Announced):
            return bytes([0xF0 | value.kind]) + _varint(value.count) + value.bytes
        of, elements = value
        return write(LIST, Announced(of, len(elements), b"".join(write(of, one) for one in elements)))
    if kind == STRUCT:
        return _write_struct(value)
    raise ValueError(f"kind {kind} is not written here")


def _write_struct(fields: Struct) -> bytes:
    found = bytearray()
    last = 0
    for field, (kind, value) in sorted(fields.items()):
        found += bytes([field - last << 4 | kind]) if field - last < 16 else bytes([kind]) + write(SHORT, field)
        found += b"" if kind in (TRUE, FALSE) else write(kind, value)
        last = field
    return bytes(found) + b"\0"


def read(data: bytes, at: int = 0) -> tuple[Struct, int]:
    """Decode a struct; return it and where it ends."""
    fields: Struct = {}
    field = 0
    while head := data[at]:
        at += 1
        field += head >> 4
        value, at = _read(head & 15, data, at)
        fields[field] = (head & 15, value)
    return fields, at + 1


def _read(kind: int, data: bytes, at: int) -> tuple[Any, int]:
    if kind in (TRUE, FALSE):
        return kind == TRUE, at
    if kind == STRUCT:
        return read(data, at)
    if kind == LIST:
        head, at = data[at], at + 1
        count = head >> 4
        if count == 15:
            count, at = _read_varint(data, at)
        elements = []
        for _ in range(count):
            element, at = _read(head & 15, data, at)
            elements.append(element)
        return (head & 15, elements), at
    number, at = _read_varint(data, at)
    if kind == BINARY:
        return data[at : at + number], at + number
    assert kind in NUMBERS
    return number >> 1 ^ -(number & 1), at


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return number, at

"""The plain reader: what an answer says, by the vendor's page and the rules of the house, and by nothing of heatpipe's.

It is slow, walks every character once, and knows JSON from RFC 8259 alone: no `json`, no numpy. `check_decoder` holds
the decoder against it.
"""

import codecs
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from heatpipe.errors import DecodeError, EnvelopeError, TooHeavyError
from heatpipe.model import Snapshots, Window

DEEPEST = 64
"""Levels of nesting that the plain reader follows; the decoder gives up somewhere beyond."""
LONGEST_MESSAGE = 400
ARRAY_OR_STRING_INSIDE = re.compile(rb'"flat_points"[ \t\r\n]*:[ \t\r\n]*\[[^\]]*["\[]')
"""What stands there is refused for the array or the string. Whether its inside is JSON as well, nobody looks."""

_SPACES = " \t\r\n"
# \udc80 to \udcff stand for bytes that are no UTF-8.
_STRING = re.compile(r'"((?:[^"\\\x00-\x1f\udc80-\udcff]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*)"')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_PLAIN_ARRAY = re.compile(r'"flat_points"[ \t\r\n]*:[ \t\r\n]*\[')


class BrokenError(Exception):
    """A value breaks the contract."""


class BrokenEnvelopeError(BrokenError):
    """The document as a whole breaks it."""


class TooDeepError(Exception):
    """The plain reader has no opinion."""


class DisagreementError(Exception):
    """The decoder is wrong, or the plain reader is."""


class Reading(NamedTuple):
    """What the document says."""

    points: list[tuple[int, bytes, bytes]]
    """stamp in microseconds; prices and volumes as little-endian doubles"""
    plain: bool
    """whether the first ``"flat_points":[`` in the text, if there is one, is the series' own. A decoder that cuts the
    array out by these characters may refuse what is not plain, though it must not misread it."""


class Opaque(NamedTuple):
    """A JSON value that the contract never looks into: a number, true, false, null, an array of anything."""

    text: str


class Stream(NamedTuple):
    """The array of the series' own `flat_points`."""

    text: str
    key_at: int


NULL = Opaque("null")

Value = str | Opaque | Stream | dict[str, "Value"] | list["Value"]


def read_plainly(body: bytes, window: Window) -> Reading:
    """Read a document, or raise a BrokenError.

    Raises
    ------
    BrokenEnvelopeError
        It is not JSON, not of the right form, or answers another question.
    BrokenError
        A count, timestamp, price or volume breaks the contract.
    TooDeepError
        It is nested too deeply to tell.
    """
    text = body.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")  # RFC 8259: a mark may be passed over
    stream = _find_stream(_Document(text).read(), window)
    first = _PLAIN_ARRAY.search(text)
    if stream is None:
        return Reading([], plain=first is None)
    return Reading(
        _read_points(_read_floats(stream.text), window), first is not None and first.start() == stream.key_at
    )


def _find_stream(document: Value, window: Window) -> Stream | None:
    if not isinstance(document, dict) or "series" not in document:
        raise BrokenEnvelopeError("no list 'series'")
    series = document["series"]
    if series == NULL or series == []:
        return None
    if not isinstance(series, list):
        raise BrokenEnvelopeError("no list 'series'")
    if len(series) > 1 or not isinstance(series[0], dict):
        raise BrokenEnvelopeError("not one series")
    identity = series[0].get("id")
    asked = {"type": "HYPERLIQUID_LIQUIDATION_AGG", "interval": window.series.interval, "coin": window.series.coin}
    if not isinstance(identity, dict) or any(identity.get(key) != value for key, value in asked.items()):
        raise BrokenEnvelopeError("another question")
    stream, nested = series[0].get("flat_points", NULL), series[0].get("points", NULL)
    if stream == NULL and nested == NULL:
        return None
    if nested not in (NULL, []):
        raise BrokenEnvelopeError("points that are not flattened")
    if not isinstance(stream, Stream):
        raise BrokenEnvelopeError("no array 'flat_points'")
    return stream


@dataclass
class _Document:
    """RFC 8259 by recursive descent; a key that stands twice is a fault."""

    text: str
    at: int = 0

    def read(self) -> Value:
        value = self._read_value(())
        self._skip_spaces()
        if self.at < len(self.text):
            raise BrokenEnvelopeError(f"something stands behind the document at {self.at}")
        return value

    def _read_value(self, path: tuple[str | int, ...]) -> Value:
        if len(path) > DEEPEST:
            raise TooDeepError
        self._skip_spaces()
        start = self.at
        if self._take("{"):
            return self._read_object(path)
        if self._take("["):
            return self._read_array(path)
        if self.text.startswith('"', start):
            return self._read_string()
        for word in ("true", "false", "null"):
            if self._take(word):
                return Opaque(word)
        return Opaque(self._match(_NUMBER, "value")[0])

    def _read_object(self, path: tuple[str | int, ...]) -> dict[str, Value]:
        found: dict[str, Value] = {}
        while True:
            self._skip_spaces()
            if not found and self._take("}"):
                return found
            key_at = self.at
            key = self._read_string()
            if key in found:
                raise BrokenEnvelopeError(f"{key!r} stands twice")
            self._skip_spaces()
            self._expect(":")
            own = (*path, key) == ("series", 0, "flat_points")
            found[key] = self._read_stream(key_at) if own else self._read_value((*path, key))
            self._skip_spaces()
            if self._take("}"):
                return found
            self._expect(",")

    def _read_array(self, path: tuple[str | int, ...]) -> list[Value]:
        found: list[Value] = []
        while True:
            self._skip_spaces()
            if not found and self._take("]"):
                return found
            found.append(self._read_value((*path, len(found))))
            self._skip_spaces()
            if self._take("]"):
                return found
            self._expect(",")

    def _read_stream(self, key_at: int) -> Value:
        """Take an array of numbers unread, for its numbers may be spelled as JSON forbids; else any value."""
        self._skip_spaces()
        if not self._take("["):
            return self._read_value(("series", 0, "flat_points"))
        end = self.text.find("]", self.at)
        if end < 0:
            raise BrokenEnvelopeError("the document ends within flat_points")
        stream = Stream(self.text[self.at : end], key_at)
        self.at = end + 1
        return stream

    def _read_string(self) -> str:
        text = _ESCAPE.sub(_unescape, self._match(_STRING, "string")[1])
        # Two escapes may be the halves of one character.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")

    def _match(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        if not found:
            raise BrokenEnvelopeError(f"no {what} at {self.at}")
        self.at = found.end()
        return found

    def _expect(self, character: str) -> None:
        if not self._take(character):
            raise BrokenEnvelopeError(f"no {character!r} at {self.at}")

    def _take(self, characters: str) -> bool:
        if not self.text.startswith(characters, self.at):
            return False
        self.at += len(characters)
        return True

    def _skip_spaces(self) -> None:
        while self.text[self.at : self.at + 1] and self.text[self.at] in _SPACES:
            self.at += 1


def _unescape(found: re.Match[str]) -> str:
    if found[1]:
        return chr(int(found[1], 16))
    return _ESCAPED.get(found[2], found[2])


def _read_floats(text: str) -> list[float]:
    """Read numbers as `float` does, which also knows ``01``, ``1.``, ``.5`` and ``+1``, but not its words."""
    if not text.strip(_SPACES):
        return []
    numbers = [number.strip(_SPACES) for number in text.split(",")]
    if any(set(number) - set("0123456789+-.eE") for number in numbers):
        raise BrokenError("not a number")
    try:
        return [float(number) for number in numbers]
    except ValueError as exc:
        raise BrokenError(str(exc)) from exc


def _read_points(floats: list[float], window: Window) -> list[tuple[int, bytes, bytes]]:
    start, end = (second * 1_000_000 for second in window.span)
    points: dict[int, tuple[int, bytes, bytes]] = {}
    left = floats[::-1]
    while left:
        stamp, prices, volumes = _read_point(left, window.series.depth)
        if not start <= stamp <= end:
            raise BrokenError(f"{stamp} is outside of the window")
        point = (stamp, _pack(prices), _pack(volumes))
        if points.setdefault(stamp, point) != point:
            raise BrokenError(f"{stamp} stands twice, and differs")
    return [points[stamp] for stamp in sorted(points) if stamp < end]


def _read_point(left: list[float], depth: int) -> tuple[int, list[float], list[float]]:
    """Take one point off the end of what is left of a reversed stream."""
    if len(left) < 2:
        raise BrokenError("half a header")
    count, stamp = _as_integer(left.pop()), _as_integer(left.pop())
    if not 0 <= count <= min(depth, len(left) // 2):
        raise BrokenError(f"{count} levels")
    prices: list[float] = []
    volumes: list[float] = []
    for _ in range(count):
        price, volume = left.pop(), left.pop()
        floor = prices[-1] if prices else 0.0
        if not floor < price < float("inf") or not 0 <= volume < float("inf"):
            raise BrokenError(f"level {price}, {volume}")
        prices.append(price)
        volumes.append(volume)
    return stamp, prices, volumes


def _as_integer(value: float) -> int:
    if not value.is_integer():  # nor is an infinity
        raise BrokenError(f"{value} is not whole")
    return int(value)


def _pack(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


def check_decoder(body: bytes, window: Window, decode: Callable[[bytes, Window], Snapshots]) -> bool:
    """Hold a decoder against the plain reader, and return whether the document was read.

    Raises
    ------
    DisagreementError
        The decoder returned other rows, returned rows of what breaks the contract, refused what keeps it, took a wrong
        envelope for a wrong value, which is asked for again in halves, refused for its size what has no more numbers
        than were asked for, or refused in more than one short line.
    Exception
        The decoder's own, where it is not a DecodeError.
    """
    found = _ask(body, window, decode)
    if found is None:
        return False
    refusal = found if isinstance(found, DecodeError) else None
    try:
        wanted = read_plainly(body, window)
    except TooDeepError:
        return refusal is None
    except BrokenError as exc:
        if refusal is None:
            raise DisagreementError(f"read, although it breaks the contract: {exc}") from exc
        wrong_class = isinstance(exc, BrokenEnvelopeError) and not isinstance(refusal, EnvelopeError)
        if wrong_class and not ARRAY_OR_STRING_INSIDE.search(body):
            raise DisagreementError(f"refused for a value ({refusal}), but it is the envelope: {exc}") from exc
        return False
    if refusal is not None:
        if wanted.plain:
            raise DisagreementError(f"refused, although it keeps the contract: {refusal}") from refusal
        return False
    assert isinstance(found, Snapshots)
    if _take_apart(found) != wanted.points:
        raise DisagreementError(f"read as {_take_apart(found)}, but it says {wanted.points}")
    return True


def _ask(body: bytes, window: Window, decode: Callable[[bytes, Window], Snapshots]) -> Snapshots | DecodeError | None:
    """Return what a decoder reads, or why it refuses; None where it has reason to refuse so many numbers."""
    try:
        return decode(body, window)
    except DecodeError as exc:
        if not str(exc).isprintable() or len(str(exc)) > LONGEST_MESSAGE:
            raise DisagreementError(f"the refusal is not one short line: {str(exc)!r}") from exc
        return exc
    except TooHeavyError as exc:
        if body.count(b",") // 2 < (window.points + 1) * (window.series.depth + 1):
            raise DisagreementError(f"refused for its size, and it has no more numbers than asked: {exc}") from exc
        return None


def _take_apart(snapshots: Snapshots) -> list[tuple[int, bytes, bytes]]:
    columns = (snapshots.timestamp, snapshots.levels, snapshots.price, snapshots.volume)
    if [column.dtype.str for column in columns] != ["<i8", "<i8", "<f8", "<f8"]:
        raise DisagreementError("a column has another type")
    if not len(snapshots.price) == len(snapshots.volume) == snapshots.levels.sum():
        raise DisagreementError("the columns are not equally long")
    points = []
    row = 0
    for stamp, levels in zip(snapshots.timestamp.tolist(), snapshots.levels.tolist(), strict=True):
        rows = slice(row, row + levels)
        points.append((stamp, snapshots.price[rows].tobytes(), snapshots.volume[rows].tobytes()))
        row += levels
    return points

"""Text of an answer to Snapshots. Pure: numpy, pyarrow's number parser and json; no I/O, no clock.

The text is a small JSON envelope around one long array of numbers. It is read block by block while it is inflated: the
numbers of a block, parsed, are looked at as (M, 2) pairs: a header pair ``(levels, timestamp)`` before each point's
``(price, volume)`` pairs. Headers are found by walking; the payload is copied, as strided views, into a price and a
volume column, so that neither the text nor the numbers ever stand in memory as a whole. The envelope that is left is
read by `json`, which also proves that the cut was clean. Nothing is believed unchecked: where anything is not as
usual, the whole text is read once more, and carefully.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from heatpipe.errors import DecodeError, EnvelopeError
from heatpipe.inflate import PIECE_BYTES, Buffer, Text
from heatpipe.memory import POOL
from heatpipe.model import Snapshots, Span, Window, show_time
from heatpipe.upstream import LIQUIDATIONS

Pairs = NDArray[np.float64]  # (M, 2)

PARSE_BLOCK: Final = PIECE_BYTES - 512
"""Bytes of text that are parsed at a time, so many that a piece makes a block: what a cast writes must stay in the
cache."""
SHORTEST_PAIR: Final = 4
"""Bytes of text that two numbers take at least, with their commas."""
USUAL_WIDTH: Final = 6
"""Bytes of text, the comma too, that a number takes at least, where nothing is unusual."""
USUAL_HEAD: Final = 4096
"""Bytes in which the array begins, at most, where nothing unusual stands before it."""
USUAL_TAIL: Final = 256
"""Bytes from the end of the array to the end of the document, at most, where nothing unusual follows."""

_ARRAY_START: Final = re.compile(rb'"flat_points"\s*:\s*\[')
_SPACE_BYTES: Final = b" \t\r\n"
_SPLIT_NUMBER: Final = re.compile(rb"[^,\s]\s+[^,\s]")
_CLOSING: Final = re.compile(rb"\]")
_NO_SPACE: Final = re.compile(rb"[^ \t\r\n]")
_NO_NUMBERS: Final = re.compile(rb'[\["]')
# Possessive: else a string that never ends is tried from each of its characters.
_BRACKET_OR_STRING: Final = re.compile(rb'[\[\]]|"(?:[^"\\]++|\\.)*+(?:"|\Z)', re.DOTALL)
_CUT: Final = ...  # in the envelope that was read: the numbers stood here. No JSON value is like it
_CUT_TEXT: Final = b"NaN"
_COMMA: Final = ord(",")
_MOST_CELLS: Final = 2 * (PARSE_BLOCK + USUAL_TAIL)  # in a block, if every other character is a comma
_EVERY_SECOND: Final = pa.py_buffer(bytes([0b01010101]) * (_MOST_CELLS // 8 + 1))


def decode_text(text: Text, window: Window) -> Snapshots:
    """Decode one flattened response into columns.

    Parameters
    ----------
    text : Text
        The JSON document as received.
    window : Window
        What was asked. A point stamped exactly at its end is dropped; one further outside is a fault, for else an
        answer for another time would be taken for absence.

    Returns
    -------
    Snapshots
        timestamp (points,) int64 microseconds UTC; levels (points,) int64; price (rows,) float64 USD; volume (rows,)
        float64 in coin or USD as the series says. Sorted by timestamp, then price. Values are bit for bit what
        ``float()`` reads from the same characters.

    Raises
    ------
    EnvelopeError
        The document is not JSON of the right form, or answers another question.
    DecodeError
        A number in it breaks the contract; says which and where.
    TooHeavyError, TransientError
        The text cannot be read; see `Text`.

    References
    ----------
    .. [1] Vendor documentation, "Liquidation Heatmap", section "Flattened response".
    """
    with suppress(DecodeError):
        return _decode_blocks(text, window)
    return _decode_carefully(memoryview(text.whole()), window)  # what the right cut makes of it counts


def decode_body(body: Buffer, window: Window) -> Snapshots:
    """Decode a response that is in memory; as `decode_text`."""
    return decode_text(Text.of(body), window)


def _decode_blocks(text: Text, window: Window) -> Snapshots:
    """Decode a text that is as usual; a DecodeError may mean no more than that it is not."""
    most = min((window.points + 1) * (window.series.depth + 1), text.expected_size // SHORTEST_PAIR + 1)
    rows = _Rows(most)
    blocks = _Blocks(text)
    for characters, commas in blocks:
        try:
            rows.add(_pair_up(_parse_block(characters, commas)))
        except pa.ArrowInvalid as exc:
            raise DecodeError(f"not all are numbers: {exc}") from None
    if not _check_envelope(_read_json(blocks.envelope, is_cut=True), window):
        raise EnvelopeError("flat_points stands outside of the series")
    return rows.as_snapshots(window)


class _Blocks:
    """Cuts the numbers of a text into blocks while the text comes, once; all but the last have an even count of them.

    Attributes
    ----------
    envelope : bytes
        The document without the numbers, once all blocks have come.
    """

    def __init__(self, text: Text) -> None:
        self.envelope = b""
        self._pieces = iter(text)

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Yield characters, with neither a comma before the first number nor one after the last; the commas' places."""
        rest = self._skip_head()
        whole = True
        for piece in chain((b"",), self._pieces):
            rest = memoryview(b"".join((rest, piece)))
            while len(rest) >= PARSE_BLOCK + USUAL_TAIL:
                characters = np.frombuffer(rest[:PARSE_BLOCK], np.uint8)
                commas = np.flatnonzero(characters == _COMMA)
                commas = commas[: len(commas) // 2 * 2]
                if not len(commas):
                    raise DecodeError("two numbers are longer than a block")
                yield characters[: commas[-1]], commas[:-1]
                rest = rest[int(commas[-1]) + 1 :]
                whole = False
        numbers = rest[: self._find_tail(rest)]
        if numbers:
            characters = np.frombuffer(numbers, np.uint8)
            yield characters, np.flatnonzero(characters == _COMMA)
        elif not whole:
            raise DecodeError("nothing follows the last comma")

    def _skip_head(self) -> memoryview:
        """Read as far as the array begins; return what has come of it."""
        head = b""
        for piece in self._pieces:
            head += piece
            found = _ARRAY_START.search(head)
            if found:
                self.envelope = head[: found.end()]
                return memoryview(head)[found.end() :]
            if len(head) > USUAL_HEAD:
                break
        raise EnvelopeError("no array flat_points begins where it usually does")

    def _find_tail(self, rest: memoryview) -> int:
        end = _find_end(rest, max(0, len(rest) - USUAL_TAIL))
        if end < 0:
            raise EnvelopeError("the array does not end where it usually does")
        self.envelope += _CUT_TEXT + rest[end:]
        return end


def _decode_carefully(body: memoryview, window: Window) -> Snapshots:
    """Decode what may be damaged, or written as nobody expects: find the end of the array however long that takes."""
    try:
        return _decode(body, window, _find_end)
    except EnvelopeError:
        text, _ = _cut_out_array(body, _find_end)
        if text is None or not _NO_NUMBERS.search(text):
            raise
        return _decode(body, window, _find_outer_end)


def _decode(body: memoryview, window: Window, find_end: Callable[[memoryview, int], int]) -> Snapshots:
    text, envelope = _cut_out_array(body, find_end)
    document = _read_json(envelope, is_cut=text is not None)
    if not _check_envelope(document, window):
        if text and _NO_SPACE.search(text):
            raise EnvelopeError("flat_points stands outside of the series")
        return Snapshots()
    return decode_stream(parse_numbers(text or b""), window)


def _cut_out_array(body: memoryview, find_end: Callable[[memoryview, int], int]) -> tuple[memoryview | None, bytes]:
    """Return the text between the brackets of flat_points, if they are there, and the document without it."""
    found = _ARRAY_START.search(body)
    if not found:
        return None, bytes(body)
    end = find_end(body, found.end())
    if end < 0:
        raise EnvelopeError("the document ends within flat_points")
    return body[found.end() : end], b"".join((body[: found.end()], _CUT_TEXT, body[end:]))


def _find_end(body: memoryview, start: int) -> int:
    found = _CLOSING.search(body, start)
    return found.start() if found else -1


def _find_outer_end(body: memoryview, start: int) -> int:
    """Return where the array that begins at `start` ends; arrays and strings in it are wrong values, not a cut."""
    depth = 1
    for token in _BRACKET_OR_STRING.finditer(body, start):
        depth += {b"[": 1, b"]": -1}.get(token.group(), 0)
        if not depth:
            return token.start()
    return -1


def _read_json(envelope: bytes, *, is_cut: bool) -> Any:
    """Read JSON, and no more than JSON: `json` alone would take NaN, UTF-16 and halves of characters as well."""
    cuts = [_CUT] if is_cut else []

    def take_constant(name: str) -> Any:
        if not cuts:
            raise ValueError(f"{name} is no JSON")
        return cuts.pop()

    try:
        text = str(envelope, "utf-8-sig")
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=take_constant)
    except (ValueError, RecursionError) as exc:
        raise EnvelopeError(f"the answer is not a JSON document: {exc}") from None


def _check_envelope(document: Any, window: Window) -> bool:
    """Hold the document against the question; return whether it has a series with flat_points.

    The vendor's JSON comes from protobuf, which leaves empty lists out, or writes null for them.
    """
    if not isinstance(document, dict) or not isinstance(document.get("series", ()), list | None):
        raise EnvelopeError(f"the answer has no list 'series', but {_show(document)}")
    series = document["series"]
    if not series:
        return False
    if len(series) > 1:
        raise EnvelopeError(f"one series was asked for, {len(series)} came")
    only = series[0]
    if not isinstance(only, dict):
        raise EnvelopeError(f"the series is not an object, but {_show(only)}")
    _check_id(only.get("id"), window)
    flat, nested = only.get("flat_points"), only.get("points")
    if flat is None and nested is None:
        return False
    if flat != [_CUT] or nested not in (None, []):  # else the cut was made elsewhere, or there was nothing to cut
        raise EnvelopeError(f"the series has no array 'flat_points' of numbers, but {_show(only)}")
    return True


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _check_id(found: Any, window: Window) -> None:
    asked = {"type": LIQUIDATIONS.name, "interval": window.series.interval, "coin": window.series.coin}
    if not isinstance(found, dict):
        raise EnvelopeError(f"the series has no 'id', but {_show(found)}")
    for key, value in asked.items():
        if found.get(key) != value:
            raise EnvelopeError(f"the answer is for {key} {_show(found.get(key))}, asked was {value!r}")


def _show(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def parse_numbers(text: Buffer) -> NDArray[np.float64]:
    """Parse comma-separated JSON numbers into float64, with pyarrow's cast.

    A string array is laid over the text: numbers and commas in turn, the commas null. Its cast to float64 parses
    the numbers in one C++ loop that releases the interpreter lock.

    Parameters
    ----------
    text : bytes-like
        The inside of a JSON array.

    Returns
    -------
    ndarray
        (numbers,) float64, the nearest double of each.

    Raises
    ------
    DecodeError
        Something in it is not a number: null, a string, a nested array.

    Notes
    -----
    Spellings that JSON forbids but that have only one meaning, ``01``, ``1.``, ``.5``, ``+1``, are read as ``float()``
    reads them: to look for them costs a fifth of the parse, and a value that is wrong does not betray itself by them.
    So are ``nan`` and ``inf``, and a number beyond the doubles: no level, count or timestamp can be one of these.
    """
    try:
        return _parse_blocks(text)
    except _NoNumberError:  # white space, perhaps
        unspaced = _without_spaces(bytes(text))
    try:
        return _parse_blocks(unspaced)
    except _NoNumberError as exc:
        raise DecodeError(_name_bad_number(exc.text, exc.first)) from None


class _NoNumberError(Exception):
    """Something in a block of the text is no number; `first` is the position of the block's first one."""

    def __init__(self, text: bytes, first: int) -> None:
        super().__init__(text, first)
        self.text = text
        self.first = first


def _without_spaces(text: bytes) -> bytes:
    split = _SPLIT_NUMBER.search(text)
    if split:
        raise DecodeError(f"two numbers without a comma between them: {_show(split.group())}")
    return text.translate(None, _SPACE_BYTES)


def _parse_blocks(text: Buffer) -> NDArray[np.float64]:
    """Parse block by block: what is written on the way to the numbers stays in the cache."""
    characters = np.frombuffer(text, np.uint8)
    numbers = POOL.floats(len(characters) // USUAL_WIDTH + 1)
    at = filled = 0
    while at < len(characters):
        block, commas = _next_block(characters, at)
        try:
            parsed = _parse_block(block, commas)
        except pa.ArrowInvalid:
            raise _NoNumberError(bytes(block), filled) from None
        if filled + len(parsed) > len(numbers):  # as short as numbers can be
            numbers = np.concatenate((numbers[:filled], POOL.floats(len(characters) // 2 + 1 - filled)))
        numbers[filled : filled + len(parsed)] = parsed
        filled += len(parsed)
        at += len(block) + 1
    if at and at == len(characters):  # a comma was the last of them
        raise _NoNumberError(b"", filled)
    return numbers[:filled]


def _next_block(characters: NDArray[np.uint8], at: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the whole numbers that follow, as many as fit a block, and the places of the commas between them."""
    block = characters[at : at + PARSE_BLOCK]
    commas = np.flatnonzero(block == _COMMA)
    if at + len(block) == len(characters):
        return block, commas
    if len(commas):
        return block[: commas[-1]], commas[:-1]
    rest = characters[at:]  # one number is longer than a block
    commas = np.flatnonzero(rest == _COMMA)
    return rest[: commas[0] if len(commas) else None], commas[:0]


def _parse_block(text: NDArray[np.uint8], commas: NDArray[np.int64]) -> NDArray[np.float64]:
    """Parse the numbers between the commas of one block."""
    cells = 2 * len(commas) + 1
    bounds = np.empty((len(commas) + 1, 2), np.int32)  # of each number
    bounds[:-1, 1] = commas
    bounds[-1, 1] = len(text)
    np.add(bounds[:-1, 1], 1, out=bounds[1:, 0])
    bounds[0, 0] = 0
    offsets = bounds.ravel()
    strings = pa.StringArray.from_buffers(cells, pa.py_buffer(offsets), pa.py_buffer(text), _EVERY_SECOND)
    parsed = pc.cast(strings, pa.float64())
    return np.frombuffer(parsed.buffers()[1], np.float64, cells)[::2]


def _name_bad_number(text: bytes, first: int) -> str:
    for number, bad in enumerate(text.split(b","), first):
        try:
            float(bad)
        except ValueError:
            return f"float {number} of flat_points is no number: {_show(bad)}"
    return f"one of the floats from {first} on, in {_show(text)}, is no number"


def decode_stream(stream: NDArray[np.float64], window: Window) -> Snapshots:
    """Decode the float stream ``[levels, timestamp, price, volume, …, levels, timestamp, …]``.

    Parameters
    ----------
    stream : ndarray
        (floats,) float64.
    window : Window
        What was asked.

    Returns
    -------
    Snapshots
        As `decode_body`.

    Raises
    ------
    DecodeError
        A count, timestamp, price or volume is not what the contract allows; says which and where.
    """
    rows = _Rows(len(stream) // 2)
    rows.add(_pair_up(stream))
    return rows.as_snapshots(window)


def _pair_up(numbers: NDArray[np.float64]) -> Pairs:
    """Look at numbers, side by side or with something between them, as pairs."""
    if len(numbers) % 2:
        raise DecodeError(f"the stream has {len(numbers)} floats: one at the end has no partner")
    (step,) = numbers.strides
    return as_strided(numbers, (len(numbers) // 2, 2), (2 * step, step), writeable=False)


class _Rows:
    """Takes the pairs of a stream apart, as they come: headers aside, payload into a price and a volume column.

    Parameters
    ----------
    most : int
        Pairs that may come.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._price, self._volume = POOL.floats(most), POOL.floats(most)
        self._headers: list[int] = []  # where each stands, in pairs
        self._stamps: list[float] = []
        self._levels: list[int] = []
        self._begun = 0  # the pair that `add` begins with
        self._rows = 0
        self._left = 0  # levels of the last snapshot that are still to come

    def add(self, pairs: Pairs) -> None:
        """Take the next pairs; a snapshot may end in later ones."""
        prices, volumes = pairs[:, 0], pairs[:, 1]
        at = 0
        while at < len(pairs):
            if not self._left:
                self._begin(prices[at], volumes[at], self._begun + at)
                at += 1
            size = min(self._left, len(pairs) - at)
            self._price[self._rows : self._rows + size] = prices[at : at + size]
            self._volume[self._rows : self._rows + size] = volumes[at : at + size]
            self._rows += size
            self._left -= size
            at += size
        self._begun += len(pairs)

    def _begin(self, count: np.float64, stamp: np.float64, header: int) -> None:
        """Begin a snapshot; a header says how many pairs it has, and when it was taken."""
        left = self._most - header - 1
        if not 0 <= count <= left or count % 1:
            raise DecodeError(
                f"snapshot {len(self._headers)} at float {2 * header} announces {count:.17g} levels, "
                f"{left} pairs are left"
            )
        self._headers.append(header)
        self._stamps.append(float(stamp))
        self._left = int(count)
        self._levels.append(self._left)

    def as_snapshots(self, window: Window) -> Snapshots:
        """Check what has come, and return it in order."""
        if self._left:
            raise DecodeError(f"the stream ends {self._left} pairs before its last snapshot does")
        headers = np.array(self._headers, np.int64)
        snapshots = Snapshots(
            _check_timestamps(np.array(self._stamps, np.float64), headers, window),
            np.array(self._levels, np.int64),
            self._price[: self._rows],
            self._volume[: self._rows],
        )
        _check_levels(snapshots, headers, window)
        return _in_order(snapshots, window)


def _check_timestamps(stamps: NDArray[np.float64], headers: NDArray[np.int64], window: Window) -> NDArray[np.int64]:
    start, end = (at * 1e6 for at in window.span)
    bad = ~((stamps >= start) & (stamps <= end) & (np.rint(stamps) == stamps))
    if bad.any():
        at = int(np.argmax(bad))
        raise DecodeError(
            f"snapshot {at} at float {2 * headers[at]} is stamped {stamps[at]:.17g} microseconds"
            f"{_as_time(stamps[at])}, outside of the window {window.span}"
        )
    return stamps.astype(np.int64)


def _as_time(micros: float) -> str:
    return f" ({show_time(micros / 1e6)})" if 0 <= micros < 4e15 else ""


def _check_levels(snapshots: Snapshots, headers: NDArray[np.int64], window: Window) -> None:
    """Every price finite, positive and ascending within its snapshot; every volume finite and not negative."""
    deepest = int(snapshots.levels.max(initial=0))
    if deepest > window.series.depth:
        at = int(np.argmax(snapshots.levels > window.series.depth))
        raise DecodeError(
            f"snapshot {at} at float {2 * headers[at]} has {snapshots.levels[at]} levels, "
            f"at most {window.series.depth} were asked for"
        )
    price, volume = snapshots.price, snapshots.volume
    if len(price):  # the extremes first, since they need no memory; nan is neither above nor below anything
        if not (price.min() > 0 and price.max() < np.inf):
            _refuse(~((price > 0) & (price < np.inf)), "price", price, snapshots)
        if not (volume.min() >= 0 and volume.max() < np.inf):
            _refuse(~((volume >= 0) & (volume < np.inf)), "volume", volume, snapshots)
    falls = np.empty(len(price), np.bool_)
    if len(price):
        np.less_equal(price[1:], price[:-1], out=falls[1:])
        starts = np.cumsum(snapshots.levels) - snapshots.levels
        falls[starts[starts < len(price)]] = False
        falls[0] = False
    _refuse(falls, "price", price, snapshots, "does not ascend")


def _refuse(
    bad: NDArray[np.bool_], what: str, values: NDArray[np.float64], snapshots: Snapshots, why: str = "is not possible"
) -> None:
    if not bad.any():
        return
    row = int(np.argmax(bad))
    ends = np.cumsum(snapshots.levels)
    at = int(np.searchsorted(ends, row, side="right"))
    level = row - int(ends[at] - snapshots.levels[at])
    raise DecodeError(f"{what} {values[row]:.17g} of level {level} in snapshot {at} {why}")


def _in_order(snapshots: Snapshots, window: Window) -> Snapshots:
    """Sort by time, drop identical repeats and what is stamped exactly at the window's end."""
    if not (np.diff(snapshots.timestamp) > 0).all():
        snapshots = _sorted_once(snapshots)
    return snapshots.between(Span(*window.span))


def _sorted_once(snapshots: Snapshots) -> Snapshots:
    starts = np.cumsum(snapshots.levels) - snapshots.levels
    kept: list[Snapshots] = []
    for at in np.argsort(snapshots.timestamp, kind="stable").tolist():
        rows = slice(int(starts[at]), int(starts[at] + snapshots.levels[at]))
        one = Snapshots(
            snapshots.timestamp[at : at + 1],
            snapshots.levels[at : at + 1],
            snapshots.price[rows],
            snapshots.volume[rows],
        )
        if not kept or kept[-1].timestamp[0] != one.timestamp[0]:
            kept.append(one)
        elif not _same_levels(kept[-1], one):
            raise DecodeError(
                f"snapshot {at} is stamped {show_time(int(one.timestamp[0]) / 1e6)} like another, with other levels"
            )
    return Snapshots.concatenate(kept)


def _same_levels(one: Snapshots, other: Snapshots) -> bool:
    # bit for bit: 0.0 and -0.0 are not the same answer
    return one.price.tobytes() == other.price.tobytes() and one.volume.tobytes() == other.volume.tobytes()

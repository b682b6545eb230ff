"""Text of an answer to Snapshots. Pure: numpy, pyarrow's number parser and json; no I/O, no clock.

The text is a small JSON envelope around one long array of numbers. It is read block by block while it is inflated: the
numbers of a block, parsed, are looked at as (M, 2) pairs: a header pair ``(levels, timestamp)`` before each point's
``(price, volume)`` pairs. Headers are found by walking; the payload is copied, as strided views, into a price and a
volume column, so that neither the text nor the numbers ever stand in memory as a whole. The envelope that is left is
read by `json`, which also proves that the cut was clean. Nothing is believed unchecked: where anything is not as
usual, the text is read once more, from its beginning, and carefully. That takes longer, but no more memory: it is cut
into blocks as well, and what is no number is found before Python makes an object of it.
"""

import json
import re
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import chain
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from heatpipe.errors import DecodeError, EnvelopeError, Foreign, TooHeavyError
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
USUAL_HEAD: Final = 4096
"""Bytes in which the array begins, at most, where nothing unusual stands before it."""
USUAL_TAIL: Final = 256
"""Bytes from the end of the array to the end of the document, at most, where nothing unusual follows."""

MOST_ENVELOPE: Final = 1 << 20
"""Bytes that a document may have beside its numbers: the objects that `json` makes of them take up to forty times as
much. Real ones have some 120."""
LONGEST_NUMBER: Final = 1 << 20
"""Bytes that two numbers may take, with what stands between them."""
MOST_PAIRS: Final = 8 << 20
"""Pairs that an answer may have, whatever was asked for; one that has more is to come in halves."""
MOST_REPEATS: Final = 2
"""How often an answer may say everything, at most."""
MOST_AT_A_POINT: Final = 64
"""Snapshots that an answer may have for each interval that was asked for. Real ones have one; a step of Python for each
would take minutes, were there as many as numbers."""

_ARRAY_START: Final = re.compile(rb'"flat_points"\s*:\s*\[')
_SPACES: Final = np.isin(np.arange(256), list(b" \t\r\n"))
_CLOSING: Final = re.compile(rb"\]")
_CUT: Final = ...  # in the envelope that was read: the numbers stood here. No JSON value is like it
_CUT_TEXT: Final = b"NaN"
_COMMA: Final = ord(",")
_MOST_CELLS: Final = 2 * (PARSE_BLOCK + USUAL_TAIL)  # in a block, if every other character is a comma
_EVERY_SECOND: Final = pa.py_buffer(bytes([0b01010101]) * (_MOST_CELLS // 8 + 1))


def decode_text(text: Text, window: Window, alone: AbstractContextManager[object] | None = None) -> Snapshots:
    """Decode one flattened response into columns.

    Parameters
    ----------
    text : Text
        The JSON document as received.
    window : Window
        What was asked. A point stamped exactly at its end is dropped; one further outside is a fault, for else an
        answer for another time would be taken for absence.
    alone : context manager, optional
        Entered while a text is read that is not as usual, and may take several times the memory.

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
    TooHeavyError
        It has more levels than are asked for at a time, or than anyone could have asked for; or see `Text`.
    TransientError
        The text cannot be read; see `Text`.

    References
    ----------
    .. [1] Vendor documentation, "Liquidation Heatmap", section "Flattened response".
    """
    with suppress(DecodeError, TooHeavyError):
        return _decode_blocks(text, window)
    with alone or nullcontext():
        return _decode_carefully(text, window)  # what the right cut makes of it counts


def decode_body(body: Buffer, window: Window) -> Snapshots:
    """Decode a response that is in memory; as `decode_text`."""
    return decode_text(Text.of(body), window)


def _decode_blocks(text: Text, window: Window) -> Snapshots:
    """Decode a text that is as usual; an error may mean no more than that it is not."""
    most = (window.points + 1) * (window.series.depth + 1)
    rows = _Rows(min(most, MOST_PAIRS, text.expected_size // SHORTEST_PAIR + 1), MOST_AT_A_POINT * (window.points + 1))
    blocks = _Blocks(text)
    for characters, commas in blocks:
        try:
            rows.add(_pair_up(_parse_block(characters, commas)))
        except pa.ArrowInvalid as exc:
            raise DecodeError(f"not all are numbers: {exc}") from None
        if rows.is_lost:
            raise DecodeError("a header is none")
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
        found = _CLOSING.search(rest, max(0, len(rest) - USUAL_TAIL))
        if not found:
            raise EnvelopeError("the array does not end where it usually does")
        self.envelope += _CUT_TEXT + rest[found.start() :]
        return found.start()


def _decode_carefully(text: Text, window: Window) -> Snapshots:
    """Decode what may be damaged, or written as nobody expects: read all of it, however long that takes."""
    pieces = iter(text)
    try:
        return _decode_pieces(pieces, window)
    except (DecodeError, TooHeavyError):
        _run_out(pieces)  # what was damaged on its way says so at its end, and is no answer
        raise


def _decode_pieces(pieces: Iterator[Buffer], window: Window) -> Snapshots:
    document = _Document(pieces)
    inside = document.cut_array_out()
    most = MOST_REPEATS * (window.points + 1) * (window.series.depth + 1)
    rows = _Rows(min(most, MOST_PAIRS), MOST_AT_A_POINT * (window.points + 1))
    fault: DecodeError | None = None
    try:
        for characters, commas in _cut_numbers(inside):
            rows.add(_pair_up(_parse_named(characters, commas, 2 * rows.pairs), 2 * rows.pairs))
    except EnvelopeError:
        raise
    except DecodeError as exc:  # unless the document is another one
        fault = exc.with_traceback(None)
        _run_out(inside)
    if not _check_envelope(_read_json(document.envelope, is_cut=document.is_cut), window):
        if fault or rows.pairs:
            raise EnvelopeError("flat_points stands outside of the series")
        return Snapshots()
    if fault:
        raise fault
    return rows.as_snapshots(window)


def _run_out(pieces: Iterator[Buffer]) -> None:
    deque(pieces, maxlen=0)


class _Document:
    """Cuts the array out of a text, while it comes, wherever it begins and ends.

    Attributes
    ----------
    envelope : bytearray
        The document without the array's inside, once all of it has come.
    is_cut : bool
        Whether there is an array.
    """

    def __init__(self, pieces: Iterator[Buffer]) -> None:
        self.envelope = bytearray()
        self.is_cut = False
        self._pieces = pieces
        self._depth = 1
        self._in_string = self._is_escaped = False

    def cut_array_out(self) -> Iterator[Buffer]:
        """Yield what stands between the brackets of flat_points, piece by piece.

        Raises
        ------
        EnvelopeError
            The document ends within it, or has too much beside it to be read as JSON.
        """
        head = self._read_head()
        found = _ARRAY_START.search(head)
        if not found:
            self._keep(head)
            return
        self.is_cut = True
        self._keep(head[: found.end()] + _CUT_TEXT)
        for piece in chain((head[found.end() :],), self._pieces):
            end = self._find_end(piece)
            if end >= 0:
                yield piece[:end]
                self._keep(piece[end:])
                break
            yield piece
        else:
            raise EnvelopeError("the document ends within flat_points")
        for piece in self._pieces:
            self._keep(piece)

    def _read_head(self) -> bytes:
        """Read so much that the array must have begun, or all."""
        head = bytearray()
        for piece in self._pieces:
            head += piece
            if len(head) > MOST_ENVELOPE:
                break
        return bytes(head)

    def _keep(self, text: Buffer) -> None:
        self.envelope += text
        if len(self.envelope) > MOST_ENVELOPE:
            raise EnvelopeError(f"the answer has more than {MOST_ENVELOPE:,} bytes beside the numbers of flat_points")

    def _find_end(self, piece: Buffer) -> int:
        """Return where the array ends, -1 where it goes on; arrays and strings in it are wrong values, not a cut."""
        text = bytes(piece)
        if self._depth == 1 and not self._in_string and b'"' not in text and b"[" not in text:
            return text.find(b"]")
        if self._is_escaped:
            text = b"_" + text[1:]
        text = text.replace(rb"\\", b"__")
        self._is_escaped = text.endswith(b"\\")
        characters = np.frombuffer(text.replace(rb"\"", b"__"), np.uint8)
        if not len(characters):
            return -1
        in_string = np.logical_xor.accumulate(characters == ord('"')) ^ self._in_string
        steps = (characters == ord("[")).astype(np.int8) - (characters == ord("]"))
        steps[in_string] = 0
        depth = np.cumsum(steps, dtype=np.int64) + self._depth
        self._depth, self._in_string = int(depth[-1]), bool(in_string[-1])
        ends = depth == 0
        return int(np.argmax(ends)) if ends.any() else -1


def _cut_numbers(pieces: Iterable[Buffer]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Cut the inside of an array into blocks; all but the last have an even count of numbers.

    Yields
    ------
    tuple of ndarray
        Characters, with neither a comma before the first number nor one after the last; the commas' places.

    Raises
    ------
    DecodeError
        What stands between two commas cannot be one number.
    """
    rest = memoryview(b"")
    whole = True
    for piece in _without_spaces(pieces):
        rest = memoryview(b"".join((rest, piece)))
        while end := _end_of_block(rest):
            characters = np.frombuffer(rest[:end], np.uint8)
            yield characters, np.flatnonzero(characters == _COMMA)
            rest = rest[end + 1 :]
            whole = False
        if len(rest) > LONGEST_NUMBER:
            raise DecodeError(f"two numbers of flat_points take more than {LONGEST_NUMBER:,} bytes")
    if rest or not whole:
        characters = np.frombuffer(rest, np.uint8)
        yield characters, np.flatnonzero(characters == _COMMA)


def _end_of_block(text: memoryview) -> int:
    """Return where as many pairs of numbers end as fit a block, or one that is longer; 0 where more has to come."""
    if len(text) < PARSE_BLOCK:
        return 0
    commas = np.flatnonzero(np.frombuffer(text[:PARSE_BLOCK], np.uint8) == _COMMA)
    if len(commas) > 1:
        return int(commas[len(commas) // 2 * 2 - 1])
    commas = np.flatnonzero(np.frombuffer(text, np.uint8) == _COMMA)
    return int(commas[1]) if len(commas) > 1 else 0


def _without_spaces(pieces: Iterable[Buffer]) -> Iterator[Buffer]:
    """Leave out the white space around numbers; a DecodeError where it is all that stands between two of them."""
    before, apart = _COMMA, False  # the last character, and whether white space has followed it
    for piece in pieces:
        characters = np.frombuffer(piece, np.uint8)
        places = np.flatnonzero(~_SPACES[characters])
        if len(places) == len(characters) and not apart:
            before = characters[-1] if len(characters) else before
            yield piece
            continue
        kept = characters[places]
        if len(kept):
            lefts = np.concatenate(([before], kept[:-1]))
            gaps = np.diff(places, prepend=-1) > 1
            gaps[0] |= apart
            split = gaps & (lefts != _COMMA) & (kept != _COMMA)
            if split.any():
                at = int(np.argmax(split))
                raise DecodeError(
                    "two numbers without a comma between them: ", Foreign(bytes([lefts[at]]) + b" " + bytes([kept[at]]))
                )
            before = kept[-1]
            apart = False
        apart |= not len(places) or int(places[-1]) + 1 < len(characters)
        yield kept.tobytes()


def _read_json(envelope: bytes | bytearray, *, is_cut: bool) -> Any:
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
        raise EnvelopeError("the answer has no list 'series', but ", Foreign(document))
    series = document["series"]
    if not series:
        return False
    if len(series) > 1:
        raise EnvelopeError(f"one series was asked for, {len(series)} came")
    only = series[0]
    if not isinstance(only, dict):
        raise EnvelopeError("the series is not an object, but ", Foreign(only))
    _check_id(only.get("id"), window)
    flat, nested = only.get("flat_points"), only.get("points")
    if flat is None and nested is None:
        return False
    if flat != [_CUT] or nested not in (None, []):  # else the cut was made elsewhere, or there was nothing to cut
        raise EnvelopeError("the series has no array 'flat_points' of numbers, but ", Foreign(only))
    return True


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _check_id(found: Any, window: Window) -> None:
    asked = {"type": LIQUIDATIONS.name, "interval": window.series.interval, "coin": window.series.coin}
    if not isinstance(found, dict):
        raise EnvelopeError("the series has no 'id', but ", Foreign(found))
    for key, value in asked.items():
        if found.get(key) != value:
            raise EnvelopeError(f"the answer is for {key} ", Foreign(found.get(key)), f", asked was {value!r}")


def _parse_named(characters: NDArray[np.uint8], commas: NDArray[np.int64], first: int) -> NDArray[np.float64]:
    """Parse a block; a DecodeError names what is no number by its place, counted on from the first one's."""
    try:
        return _parse_block(characters, commas)
    except pa.ArrowInvalid:
        raise _name_bad_number(characters.tobytes(), first) from None


def _parse_block(text: NDArray[np.uint8], commas: NDArray[np.int64]) -> NDArray[np.float64]:
    """Parse the JSON numbers between the commas of one block into float64, with pyarrow's cast.

    A string array is laid over the text: numbers and commas in turn, the commas null. Its cast to float64 parses
    the numbers in one C++ loop that releases the interpreter lock.

    Returns
    -------
    ndarray
        (commas + 1,) float64, the nearest double of each, in every second place of memory.

    Raises
    ------
    pa.ArrowInvalid
        Something in it is not a number: null, a string, a nested array, white space.

    Notes
    -----
    Spellings that JSON forbids but that have only one meaning, ``01``, ``1.``, ``.5``, ``+1``, are read as ``float()``
    reads them: to look for them costs a fifth of the parse, and a value that is wrong does not betray itself by them.
    So are ``nan`` and ``inf``, and a number beyond the doubles: no level, count or timestamp can be one of these.
    """
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


def _name_bad_number(text: bytes, first: int) -> DecodeError:
    for number, bad in enumerate(text.split(b","), first):
        try:
            float(bad)
        except ValueError:
            return DecodeError(f"float {number} of flat_points is no number: ", Foreign(bad))
    return DecodeError(f"one of the floats from {first} on, in ", Foreign(text), ", is no number")


def _pair_up(numbers: NDArray[np.float64], before: int = 0) -> Pairs:
    """Look at numbers, side by side or with something between them, as pairs; so many others came before them."""
    if len(numbers) % 2:
        raise DecodeError(f"the stream has {before + len(numbers)} floats: one at the end has no partner")
    (step,) = numbers.strides
    return as_strided(numbers, (len(numbers) // 2, 2), (2 * step, step), writeable=False)


class _Rows:
    """Takes the pairs of a stream apart, as they come: headers aside, payload into a price and a volume column.

    Parameters
    ----------
    most : int
        Levels that there is memory for.
    most_snapshots : int
        Snapshots that there is time for.

    Attributes
    ----------
    pairs : int
        How many have come.
    is_lost : bool
        Whether a header is none, so that nobody knows where the next one is.
    """

    def __init__(self, most: int, most_snapshots: int) -> None:
        self.pairs = 0
        self.is_lost = False
        self._most = most
        self._most_snapshots = most_snapshots
        self._price, self._volume = POOL.floats(most), POOL.floats(most)
        # eight bytes each, where there may be as many as levels
        self._headers = array("q")  # where each stands, in pairs
        self._stamps = array("d")
        self._levels = array("q")
        self._count = 0.0  # the last one, as it was announced
        self._rows = 0
        self._left = 0  # levels of the last snapshot that are still to come

    def add(self, pairs: Pairs) -> None:
        """Take the next pairs; a snapshot may end in later ones.

        Raises
        ------
        TooHeavyError
            They are too many.
        """
        prices, volumes = pairs[:, 0], pairs[:, 1]
        at = 0
        while at < len(pairs) and not self.is_lost:
            if not self._left:
                self._begin(float(prices[at]), float(volumes[at]), self.pairs + at)
                at += 1
                if not self._left:
                    continue
            size = min(self._left, len(pairs) - at)
            if self._rows + size > self._most:
                raise TooHeavyError(f"the answer has more than {self._most:,} levels")
            self._price[self._rows : self._rows + size] = prices[at : at + size]
            self._volume[self._rows : self._rows + size] = volumes[at : at + size]
            self._rows += size
            self._left -= size
            at += size
        self.pairs += len(pairs)

    def _begin(self, count: float, stamp: float, header: int) -> None:
        """Begin a snapshot; a header says how many pairs it has, and when it was taken."""
        if len(self._headers) == self._most_snapshots:
            raise TooHeavyError(f"the answer has more than {self._most_snapshots:,} snapshots")
        self.is_lost = not (0 <= count <= self._most and count.is_integer())
        self._count = count
        self._left = 0 if self.is_lost else int(count)
        self._headers.append(header)
        self._stamps.append(stamp)
        self._levels.append(self._left)

    def as_snapshots(self, window: Window) -> Snapshots:
        """Check what has come, and return it in order."""
        if self._left or self.is_lost:
            header = self._headers[-1]
            raise DecodeError(
                f"snapshot {len(self._headers) - 1} at float {2 * header} announces {self._count:.17g} levels, "
                f"{self.pairs - header - 1} pairs are left"
            )
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
    """Sort by time, however many there are, and leave identical repeats out; a DecodeError where one differs."""
    order = np.argsort(snapshots.timestamp, kind="stable")
    stamps, levels = snapshots.timestamp[order], snapshots.levels[order]
    rows = _ranges((np.cumsum(snapshots.levels) - snapshots.levels)[order], levels)
    price, volume = snapshots.price[rows], snapshots.volume[rows]
    is_repeat = np.concatenate((np.zeros(1, np.bool_), stamps[1:] == stamps[:-1]))
    repeats = np.flatnonzero(is_repeat)
    if not len(repeats):
        return Snapshots(stamps, levels, price, volume)
    differs = levels[repeats] != levels[repeats - 1]
    if not differs.any():
        differs = _differ(repeats, levels, price, volume)
    if differs.any():
        at = repeats[np.argmax(differs)]
        raise DecodeError(
            f"snapshot {order[at]} is stamped {show_time(int(stamps[at]) / 1e6)} like another, with other levels"
        )
    kept = np.repeat(~is_repeat, levels)
    return Snapshots(stamps[~is_repeat], levels[~is_repeat], price[kept], volume[kept])


def _differ(
    repeats: NDArray[np.int64], levels: NDArray[np.int64], price: NDArray[np.float64], volume: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Say which snapshots are not, bit for bit, the ones before them, of as many levels: 0.0 and -0.0 are not alike."""
    counts = levels[repeats]
    rows = _ranges((np.cumsum(levels) - levels)[repeats], counts)
    before = rows - np.repeat(counts, counts)
    unlike = np.zeros(len(rows), np.bool_)
    for column in (price.view(np.int64), volume.view(np.int64)):
        unlike |= column[rows] != column[before]
    found = np.zeros(len(repeats), np.bool_)
    found[np.repeat(np.arange(len(repeats)), counts)[unlike]] = True
    return found


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers that each range counts, from its start on, one range after the other."""
    numbers: NDArray[np.int64] = np.repeat(starts - (np.cumsum(counts) - counts), counts)
    numbers += np.arange(len(numbers))
    return numbers

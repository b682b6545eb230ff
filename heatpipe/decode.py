"""Response body to Snapshots. Pure: numpy, pyarrow's number parser and json; no I/O, no clock.

The body is a small JSON envelope around one long array of numbers. The array's text is cut out and parsed straight
into a float64 buffer; the envelope that is left is read by `json`, which also proves that the cut was clean. The
buffer is then looked at as (M, 2) pairs: a header pair ``(levels, timestamp)`` before each point's ``(price, volume)``
pairs. Headers are found by walking; the payload is strided views. Nothing is believed unchecked.
"""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from heatpipe.errors import DecodeError, EnvelopeError
from heatpipe.memory import POOL
from heatpipe.model import Snapshots, Span, Window, show_time
from heatpipe.upstream import LIQUIDATIONS

Buffer = bytes | bytearray | memoryview
Pairs = NDArray[np.float64]  # (M, 2)

PARSE_BLOCK: Final = 1 << 18
"""Bytes of text that are parsed at a time: what a cast writes must stay in the cache."""
USUAL_WIDTH: Final = 6
"""Bytes of text, the comma too, that a number takes at least, where nothing is unusual."""
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
_EVERY_SECOND: Final = pa.py_buffer(
    bytes([0b01010101]) * (PARSE_BLOCK // 4 + 1)
)  # as many cells as could be in a block


def decode_body(body: Buffer, window: Window) -> Snapshots:
    """Decode one flattened response into columns.

    Parameters
    ----------
    body : bytes-like
        The JSON document as received, decompressed.
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

    References
    ----------
    .. [1] Vendor documentation, "Liquidation Heatmap", section "Flattened response".
    """
    view = memoryview(body)
    try:
        return _decode(view, window, _find_last_end)
    except DecodeError:  # what the right cut makes of it counts
        return _decode_carefully(view, window)


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


def _find_last_end(body: memoryview, start: int) -> int:
    """Return where the array ends if little follows it; an earlier end is no number, so that the parse will tell."""
    return _find_end(body, max(start, len(body) - USUAL_TAIL))


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
    """Hold the document against the question; return whether it has a series with flat_points."""
    series = document.get("series") if isinstance(document, dict) else None
    if not isinstance(series, list):
        raise EnvelopeError(f"the answer has no list 'series', but {_show(document)}")
    if not series:
        return False
    if len(series) > 1:
        raise EnvelopeError(f"one series was asked for, {len(series)} came")
    only = series[0]
    if not isinstance(only, dict):
        raise EnvelopeError(f"the series is not an object, but {_show(only)}")
    _check_id(only.get("id"), window)
    if only.get("flat_points") != [_CUT]:  # else the cut was made elsewhere, or there was nothing to cut
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
    if len(stream) % 2:
        raise DecodeError(f"the stream has {len(stream)} floats: one at the end has no partner")
    pairs: Pairs = as_strided(stream, (len(stream) // 2, 2), (2 * stream.itemsize, stream.itemsize), writeable=False)
    headers = _find_headers(pairs)
    snapshots = Snapshots(
        _check_timestamps(pairs[headers, 1], headers, window),
        pairs[headers, 0].astype(np.int64),
        *_gather_rows(pairs, headers),
    )
    _check_levels(snapshots, headers, window)
    return _in_order(snapshots, window)


def _find_headers(pairs: Pairs) -> NDArray[np.int64]:
    """Walk from header to header; return the pair index of each."""
    counts = pairs[:, 0]
    end = len(pairs)
    headers: list[int] = []
    at = 0
    while at < end:
        count = counts[at]
        if not 0 <= count < end - at or count % 1:
            raise DecodeError(
                f"snapshot {len(headers)} at float {2 * at} announces {count:.17g} levels, "
                f"{end - at - 1} pairs are left"
            )
        headers.append(at)
        at += 1 + int(count)
    return np.array(headers, np.int64)


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


def _gather_rows(pairs: Pairs, headers: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Copy the payload of all snapshots, without their headers, into a price and a volume column."""
    rows = len(pairs) - len(headers)
    price, volume = POOL.floats(rows), POOL.floats(rows)
    prices, volumes = pairs[:, 0], pairs[:, 1]
    counts = np.diff(headers, append=len(pairs)) - 1
    # Runs of equal counts (the depth cap makes long ones) are one strided block each.
    firsts = np.flatnonzero(np.diff(counts, prepend=-1))
    at = 0
    for first, after in pairwise([*firsts.tolist(), len(counts)]):
        count, run = int(counts[first]), after - first
        begin, size = int(headers[first]) + 1, count * run
        if run == 1:
            price[at : at + size] = prices[begin : begin + size]
            volume[at : at + size] = volumes[begin : begin + size]
        elif count:
            block = _block(pairs, begin, run, count)
            price[at : at + size].reshape(run, count)[:] = block[:, :, 0]
            volume[at : at + size].reshape(run, count)[:] = block[:, :, 1]
        at += size
    return price, volume


def _block(pairs: Pairs, begin: int, run: int, count: int) -> NDArray[np.float64]:
    """View `run` snapshots of `count` levels, a header between each two, as (run, count, 2)."""
    pair, item = pairs.strides
    return as_strided(pairs[begin:], (run, count, 2), ((count + 1) * pair, pair, item), writeable=False)


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

"""The decoder against the vendor's own document, an encoder written from the documentation, and a plain reader."""

import gzip
import json
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf, nan
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from heatpipe import decode
from heatpipe.decode import decode_body, decode_text
from heatpipe.errors import DecodeError, EnvelopeError
from heatpipe.inflate import Text
from heatpipe.model import Series, Snapshots, Span, Window
from tests.fuzz.cases import ask, damage_case, make_seeds
from tests.fuzz.reader import DisagreementError, check_decoder

GOLDEN = (Path(__file__).parent / "golden" / "flattened.json").read_bytes()
STANDARD = (Path(__file__).parent / "golden" / "standard.json").read_bytes()

START = 1_776_080_040  # of the golden document; its second point is a minute later
BTC = Series("BTC")
WINDOW = Window(BTC, Span(START, START + 120))
US = 1_000_000

Level = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """One snapshot: its stamp in microseconds, and (price, volume) pairs."""

    stamp: float
    levels: tuple[Level, ...] = ()


def show_number(value: float) -> str:
    """Write a float as JSON writers do: whole ones without a fraction, the shortest digits else."""
    return str(int(value)) if value == int(value) and 0 < value < 1e16 else repr(value)


def encode_points(points: Iterable[Point], number: Callable[[float], str] = show_number) -> str:
    """Flatten points as the vendor's page says: [num_levels, timestamp_micros, price1, volume1, …], back to back."""
    floats: list[float] = []
    for point in points:
        floats += [len(point.levels), point.stamp]
        for level in point.levels:
            floats += level
    return ",".join(map(number, floats))


def document(flat_points: str, **of_id: object) -> bytes:
    """Put the text of an array into the vendor's envelope."""
    found = {"type": "HYPERLIQUID_LIQUIDATION_AGG", "interval": "MINUTE", "coin": "BTC"} | of_id
    return f'{{"series":[{{"id":{json.dumps(found)},"flat_points":[{flat_points}]}}]}}'.encode()


def answer(*points: Point) -> bytes:
    return document(encode_points(points))


def bits(values: Iterable[float]) -> list[bytes]:
    return [struct.pack("<d", value) for value in values]


def read(snapshots: Snapshots) -> list[tuple[int, list[bytes], list[bytes]]]:
    """Points as stamp, prices and volumes, these as their bytes."""
    assert snapshots.timestamp.dtype == snapshots.levels.dtype == np.int64
    assert snapshots.price.dtype == snapshots.volume.dtype == np.float64
    assert len(snapshots.price) == len(snapshots.volume) == snapshots.levels.sum()
    ends = np.cumsum(snapshots.levels).tolist()
    return [
        (stamp, bits(snapshots.price[end - count : end]), bits(snapshots.volume[end - count : end]))
        for stamp, count, end in zip(snapshots.timestamp.tolist(), snapshots.levels.tolist(), ends, strict=True)
    ]


def read_points(points: Iterable[Point]) -> list[tuple[int, list[bytes], list[bytes]]]:
    return [
        (int(each.stamp), bits(price for price, _ in each.levels), bits(volume for _, volume in each.levels))
        for each in points
    ]


def parse_numbers(text: bytes) -> np.ndarray:
    """Parse the inside of an array, block by block."""
    found: list[np.ndarray] = []
    for block in decode._cut_numbers([text]):
        found.append(decode._parse_named(*block, sum(map(len, found))))
    return np.concatenate([np.zeros(0), *found])


def decode_stream(stream: np.ndarray, window: Window) -> Snapshots:
    """Decode numbers, which JSON cannot spell all of."""
    rows = decode._Rows(len(stream) // 2, len(stream))
    rows.add(decode._pair_up(stream))
    return rows.as_snapshots(window)


def point(second: float, *levels: Level) -> Point:
    return Point((START + second) * US, levels)


ONE = point(0, (100.0, 1.0), (110.0, 2.0))
TWO = point(60, (90.0, 3.0))


# The vendor's document


def test_the_vendors_document_is_read_bit_for_bit() -> None:
    first = ["70390", "0.53449", "70400", "0.00057", "70410", "8.36632", "70420", "0.04943"]
    second = ["70300", "0.0077", "70310", "0.00027", "70350", "1.50843", "70370", "0.00486"]
    assert read(decode_body(GOLDEN, WINDOW)) == [
        (1_776_080_040_000_000, bits(map(float, first[::2])), bits(map(float, first[1::2]))),
        (1_776_080_100_000_000, bits(map(float, second[::2])), bits(map(float, second[1::2]))),
    ]


def test_the_vendors_numbers_stand_in_the_golden_document_as_they_are_asked_for_here() -> None:
    text = GOLDEN.decode().split('"flat_points"')[1]
    assert " ".join(re.findall(r"[-+.\deE]+", text)) == (
        "4 1.77608004e+15 70390 0.53449 70400 0.00057 70410 8.36632 70420 0.04943 "
        "4 1.7760801e+15 70300 0.0077 70310 0.00027 70350 1.50843 70370 0.00486"
    )


def test_the_standard_form_is_refused_as_another_document() -> None:
    window = Window(Series("BTC", "HOUR"), Span(1_774_800_000, 1_774_803_600))
    with pytest.raises(EnvelopeError, match="no array 'flat_points'"):
        decode_body(STANDARD, window)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_will_do(kind: Callable[[bytes], bytes]) -> None:
    assert read(decode_body(kind(GOLDEN), WINDOW)) == read(decode_body(GOLDEN, WINDOW))


# Round trips

prices = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
volumes = st.floats(min_value=0, allow_infinity=False) | st.just(-0.0)
stamps = st.integers(START * US, (START + 120) * US - 1) | st.sampled_from([START * US, (START + 60) * US])


@st.composite
def snapshot_points(draw: st.DrawFn, most_levels: int = 4) -> list[Point]:
    """Points in order of time, with runs of equal counts, changing counts and zero counts."""
    counts: list[int] = []
    for count, run in draw(st.lists(st.tuples(st.integers(0, most_levels), st.integers(1, 4)), max_size=6)):
        counts += [count] * run
    found = draw(st.lists(stamps, min_size=len(counts), max_size=len(counts), unique=True))
    return [
        Point(
            stamp,
            tuple(
                zip(
                    sorted(draw(st.lists(prices, min_size=count, max_size=count, unique=True))),
                    draw(st.lists(volumes, min_size=count, max_size=count)),
                    strict=True,
                )
            ),
        )
        for stamp, count in zip(sorted(found), counts, strict=True)
    ]


@given(snapshot_points(), st.sampled_from([show_number, repr, "{:.17g}".format, "{:.17E}".format, "{:.25e}".format]))
@settings(deadline=None)
def test_decode_after_encode_is_identity(points: list[Point], number: Callable[[float], str]) -> None:
    assert read(decode_body(document(encode_points(points, lambda x: number(float(x)))), WINDOW)) == read_points(points)


@given(snapshot_points(), st.randoms(use_true_random=False), st.data())
@settings(deadline=None)
def test_order_and_identical_repeats_do_not_matter(points: list[Point], random: Any, data: st.DataObject) -> None:
    repeats = data.draw(st.lists(st.sampled_from(points), max_size=3)) if points else []
    shuffled = points + repeats
    random.shuffle(shuffled)
    assert read(decode_body(answer(*shuffled), WINDOW)) == read_points(points)


@pytest.mark.parametrize(
    "counts",
    [
        [0],
        [3],
        [0, 0, 0],
        [2, 2, 2],
        [1, 2, 3],
        [0, 3],
        [3, 0],
        [0, 2, 2, 0, 0, 1, 1, 1, 0],
        [5, 5, 0, 5, 5, 4, 5, 5],
        [1] * 50 + [0] * 50,
        [1500, 1500, 1499, 1500],
    ],
)
def test_runs_of_equal_counts_changing_counts_and_zero_counts_are_told_apart(counts: list[int]) -> None:
    points = [
        point(at / 10, *((1000.0 + at + level, at + level / 8) for level in range(count)))
        for at, count in enumerate(counts)
    ]
    snapshots = decode_body(answer(*points), WINDOW)
    assert snapshots.levels.tolist() == counts
    assert read(snapshots) == read_points(points)


# Numbers

EXACT = [
    "0.07923",
    "1.6482400000000001",
    "0.1",
    "0.30000000000000004",
    "1e-320",
    "5e-324",
    "2.4703282292062328e-324",  # just above half of the smallest
    "1e-400",  # nothing is left of it
    "2.2250738585072011e-308",
    "2.2250738585072014e-308",
    "1.7976931348623157e308",
    "1.7976931348623157e+308",
    "-0.0",
    "-0",
    "0",
    "0e0",
    "0E+7",
    "1E5",
    "1e05",
    "9007199254740993",
    "123456789012345678901234567890",
    "0.000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000001",
    "1.00000000000000011102230246251565404236316680908203125",  # exactly between two doubles
    "1.00000000000000011102230246251565404236316680908203124",
    "1.00000000000000011102230246251565404236316680908203126",
    "6.0221407600000000000000000000000000000000000000000000e23",
]


@pytest.mark.parametrize("text", EXACT)
def test_a_number_is_what_float_reads_from_the_same_characters(text: str) -> None:
    assert bits(parse_numbers(text.encode())) == bits([float(text)])
    body = document(f"1,{START}000000,5,{text}")
    assert bits(decode_body(body, WINDOW).volume) == bits([float(text)])


@given(st.lists(st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)))
@settings(deadline=None)
def test_any_json_number_is_what_float_reads(numbers: list[str]) -> None:
    assert bits(parse_numbers(",".join(numbers).encode())) == bits(map(float, numbers))


NO_NUMBERS = [
    "null",
    "true",
    '"2"',
    '"',
    "[2]",
    "[",
    "{}",
    "{",
    "NaN",
    "nan",
    "Infinity",
    "-Infinity",
    "inf",
    "0x10",
    "1_000",
    "--1",
    "1-1",
    "1e",
    "1e+",
    "1e1.5",
    "1.2.3",
    "-",
    "e5",
    ".",
    "",
    " ",
    "1 2",
    "1\t2",
    "- 1",
    "1. 5",
    "1 e5",
    "\x00",
    "1\x00",
    "1\x0b",
    "1\xa0",
    "１",  # a digit, but not of JSON's
]
LAX = ["01", "-01", "00", "00.5", "1.", "-1.", "1.e5", ".5", "-.5", "+1", "+0.5"]
TOO_LARGE = ["1e400", "-1e400", "1.7976931348623159e308", "1" * 400]


@pytest.mark.parametrize("text", [*NO_NUMBERS, *TOO_LARGE])
@pytest.mark.parametrize("place", ["count", "timestamp", "price", "volume", "last"])
def test_what_is_no_finite_json_number_never_passes(text: str, place: str) -> None:
    numbers = ["1", f"{START}000000", "5", "7", "1", f"{START + 60}000000", "6", "8"]
    at = {"count": 0, "timestamp": 1, "price": 2, "volume": 3, "last": 7}[place]
    numbers[at] = text
    with pytest.raises(DecodeError):
        decode_body(document(",".join(numbers)), WINDOW)


@pytest.mark.parametrize("text", ["1,,2", ",1", "1,", ",", ",,", "1, ,2", " ,1", "1 ,"])
def test_commas_stand_between_numbers_and_nowhere_else(text: str) -> None:
    with pytest.raises(DecodeError):
        parse_numbers(text.encode())


@pytest.mark.parametrize("text", LAX)
def test_a_spelling_that_json_forbids_but_that_has_one_meaning_is_read_as_float_reads_it(text: str) -> None:
    for numbers in (text, f"1,{text}", f"{text},1", f"1,{text},2", f"1 , {text} , 2"):
        assert parse_numbers(numbers.encode()).tolist() == [float(one) for one in numbers.split(",")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,2,nil", "float 2 of flat_points is no number: b'nil'"),
        ("1,2,--3,4", "float 2 of flat_points is no number: b'--3'"),
        ("1,,3", "float 1 of flat_points is no number: b''"),
        ("1,2,", "float 2 of flat_points is no number: b''"),
        ("1,2 3", "without a comma between them: b'2 3'"),
    ],
)
def test_a_bad_number_is_shown_with_its_place(text: str, says: str) -> None:
    with pytest.raises(DecodeError) as caught:
        parse_numbers(text.encode())
    assert says in str(caught.value)


def test_no_text_holds_no_numbers() -> None:
    for text in (b"", b"  \n\t\r "):
        assert len(parse_numbers(text)) == 0


# Blocks


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 7, 8, 16, 31])
def test_a_block_may_end_at_any_character(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PARSE_BLOCK", block)
    texts = ["1", "-2.5", "1.6482400000000001", "0", "5e-324", "33", "7", "-0.0", "1234567890123456789012345678901234"]
    for first in range(len(texts)):
        numbers = texts[first:] + texts[:first]
        assert bits(parse_numbers(",".join(numbers).encode())) == bits(map(float, numbers))
        assert bits(parse_numbers(" , ".join(numbers).encode())) == bits(map(float, numbers))


@pytest.mark.parametrize("block", [1, 3, 8, 64])
def test_a_bad_number_in_a_later_block_is_shown_with_its_place(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PARSE_BLOCK", block)
    for at in range(40):
        numbers = ["1.5"] * 40
        numbers[at] = "1e+"
        with pytest.raises(DecodeError, match=rf"^float {at} of flat_points is no number: b'1e\+'$"):
            parse_numbers(",".join(numbers).encode())


def test_a_text_of_several_real_blocks_is_parsed_like_a_short_one() -> None:
    rng = np.random.default_rng(7)
    values = np.ldexp(rng.random(120_000), rng.integers(-40, 40, 120_000))
    for pad in range(6):  # moves every border by one character
        numbers = ["1" * (pad + 1), *map(repr, values.tolist())]
        text = ",".join(numbers).encode()
        assert len(text) > 4 * decode.PARSE_BLOCK
        assert parse_numbers(text).tobytes() == np.array([float(numbers[0]), *values]).tobytes()


MANY = [
    point(60 * minute, *((100.5 + level, float(f"{minute}.{level}1e{level % 7 - 3}")) for level in range(minute % 9)))
    for minute in range(120)
]
TWO_HOURS = Window(BTC, Span(START, START + 7200))


def pieces_of(body: bytes, size: int) -> Text:
    return Text([body[at : at + size] for at in range(0, len(body), size)], compressed=False, cap=len(body))


@pytest.fixture
def only_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no text be read as a whole."""

    def refuse(body: memoryview, window: Window) -> Snapshots:
        raise AssertionError("a text as usual was read a second time")

    monkeypatch.setattr(decode, "_decode_carefully", refuse)


@pytest.mark.usefixtures("only_blocks")
@pytest.mark.parametrize("block", [50, 51, 64, 100, 1000, decode.PARSE_BLOCK])
@pytest.mark.parametrize("size", [1, 7, 300, 5000, 1 << 20])
def test_a_text_is_decoded_while_it_comes(block: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PARSE_BLOCK", block)
    body = answer(*MANY)
    assert len(body) > 5000
    for more in (b"", b',"id":' + b" " * 150 + b"0"):  # what follows the array may hold commas
        text = pieces_of(body.replace(b"]}]}", b"]}]" + more.replace(b"id", b"and") + b"}"), size)
        assert read(decode_text(text, TWO_HOURS)) == read_points(MANY)


@pytest.mark.usefixtures("only_blocks")
def test_a_compressed_text_is_decoded_while_it_comes() -> None:
    points = [point(60 * minute, *((1 + level, level / 7) for level in range(1400))) for minute in range(120)]
    body = answer(*points)
    packed = gzip.compress(body)
    assert len(body) > 6 * decode.PARSE_BLOCK
    chunks = [packed[at : at + 65_536] for at in range(0, len(packed), 65_536)]
    text = Text(chunks, compressed=True, cap=len(body))
    assert read(decode_text(text, TWO_HOURS)) == read_points(points)


@pytest.mark.usefixtures("only_blocks")
@pytest.mark.parametrize("of_id", [{}, {"depth": 1500, "more": ["a", "b"]}])
def test_the_vendors_forms_are_usual(of_id: dict[str, object]) -> None:
    decode_body(compact(GOLDEN), WINDOW)
    decode_body(document(encode_points([ONE]), **of_id), WINDOW)
    decode_body(document("", **of_id), WINDOW)


@given(snapshot_points(), st.integers(40, 400), st.integers(1, 400))
@settings(deadline=None)
def test_blocks_and_pieces_of_any_size_are_read_like_the_whole(points: list[Point], block: int, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "PARSE_BLOCK", block)
        assert read(decode_text(pieces_of(answer(*points), size), WINDOW)) == read_points(points)


@pytest.mark.parametrize("block", [1, 8, 50, 64, 100])
@pytest.mark.parametrize("end", ["", "1", "5"], ids=["a comma", "a header without a stamp", "a price without a volume"])
def test_what_breaks_off_behind_a_block_is_refused(block: int, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PARSE_BLOCK", block)
    for count in (1, 2, 3, 5, 8, 13, 30):
        for tail in (0, 200, 253, 254, 255, 256, 300):
            body = document(encode_points(MANY[:count]) + "," + end)
            body = body.replace(b"]}]}", b"]}]" + b" " * tail + b"}")
            with pytest.raises(DecodeError):
                decode_text(pieces_of(body, 97), TWO_HOURS)


def test_a_block_that_ends_where_the_array_breaks_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = encode_points(MANY) + ","
    body = document(numbers).replace(b"]}]}", b"]}]}" + b" " * (decode.USUAL_TAIL - 4))
    monkeypatch.setattr(decode, "PARSE_BLOCK", len(numbers))
    with pytest.raises(DecodeError):
        decode_body(body, TWO_HOURS)


def test_more_numbers_come_than_a_text_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gzip stream of two members tells the size of the last."""
    monkeypatch.setattr(decode, "PARSE_BLOCK", 100)
    body = answer(*MANY)
    text = Text([gzip.compress(body[:-50]) + gzip.compress(body[-50:])], compressed=True, cap=len(body))
    assert text.expected_size == 50
    assert read(decode_text(text, TWO_HOURS)) == read_points(MANY)


@pytest.mark.usefixtures("only_blocks")
def test_the_shortest_numbers_are_usual() -> None:
    points = [point(60 * minute, *((price, minute % 10) for price in range(1, 10))) for minute in range(120)]
    assert read(decode_body(answer(*points), TWO_HOURS)) == read_points(points)


def test_a_comma_behind_a_number_that_is_longer_than_a_block_is_refused() -> None:
    long = "1." + "0" * decode.PARSE_BLOCK
    assert bits(parse_numbers(long.encode())) == bits([1.0])
    with pytest.raises(DecodeError, match=r"^float 1 of flat_points is no number: b''$"):
        parse_numbers(f"{long},".encode())


# Truncation and whitespace


def compact(body: bytes) -> bytes:
    return b"".join(body.split())


@pytest.mark.parametrize("body", [compact(GOLDEN), GOLDEN.strip(), answer(), b'{"series":[]}'])
def test_every_truncation_is_refused(body: bytes) -> None:
    decode_body(body, WINDOW)
    for length in range(len(body)):
        with pytest.raises(DecodeError):
            decode_body(body[:length], WINDOW)


TOKEN = re.compile(r'"[^"]*"|[-+.\deE]+|[][{}:,]')


@given(st.lists(st.text(" \t\r\n", max_size=3), min_size=60, max_size=60))
@settings(deadline=None)
def test_json_whitespace_may_stand_between_any_two_tokens(spaces: list[str]) -> None:
    tokens = TOKEN.findall(GOLDEN.decode())
    assert "".join(tokens).encode() == compact(GOLDEN)
    spaced = "".join(space + token for space, token in zip(spaces * 2, tokens, strict=False)) + spaces[0]
    assert read(decode_body(spaced.encode(), WINDOW)) == read(decode_body(GOLDEN, WINDOW))


@pytest.mark.parametrize("space", ["\x0b", "\x0c", "\x00", "\u00a0", "\u2028", "\ufeff"])
def test_other_whitespace_is_refused_within_the_array(space: str) -> None:
    with pytest.raises(DecodeError):
        decode_body(document(encode_points([ONE, TWO]).replace(",", f",{space}", 3)), WINDOW)


# Counts


@pytest.mark.parametrize(
    ("count", "left"),
    [("3", 2), ("1e3", 2), ("1e300", 2), ("0.5", 2), ("1.5", 2), ("2.0000000000000004", 2), ("-1", 2), ("-2", 2)],
)
def test_a_count_that_cannot_be_is_refused_with_its_place(count: str, left: int) -> None:
    numbers = encode_points([TWO, ONE]).split(",")
    numbers[4] = count
    with pytest.raises(DecodeError) as caught:
        decode_body(document(",".join(numbers)), WINDOW)
    announced = f"{float(count):.17g}"
    assert str(caught.value) == f"snapshot 1 at float 4 announces {announced} levels, {left} pairs are left"


@pytest.mark.parametrize("count", [nan, inf, -inf])
def test_a_count_that_is_no_number_is_refused(count: float) -> None:
    with pytest.raises(DecodeError, match="snapshot 0 at float 0 announces"):
        decode_stream(np.array([count, START * 1e6, 5, 5]), WINDOW)


@pytest.mark.parametrize("count", ["1", "0", "3"])
def test_a_count_that_is_off_by_one_takes_a_level_for_a_header(count: str) -> None:
    numbers = encode_points([ONE, TWO]).split(",")
    numbers[0] = count
    with pytest.raises(DecodeError):
        decode_body(document(",".join(numbers)), WINDOW)


@pytest.mark.parametrize("count", ["2.0", "2e0", "0.2e1", "20e-1"])
def test_a_count_may_be_written_in_any_way(count: str) -> None:
    numbers = encode_points([ONE, TWO]).split(",")
    numbers[0] = count
    assert read(decode_body(document(",".join(numbers)), WINDOW)) == read_points([ONE, TWO])


def test_a_lone_trailing_value_is_refused() -> None:
    with pytest.raises(DecodeError, match="the stream has 7 floats: one at the end has no partner"):
        decode_body(document(encode_points([ONE]) + ",5"), WINDOW)


def test_a_lone_trailing_pair_is_refused() -> None:
    with pytest.raises(DecodeError, match="snapshot 1 at float 6 announces 120 levels, 0 pairs are left"):
        decode_body(document(encode_points([ONE]) + ",120,5"), WINDOW)


def test_more_levels_than_the_depth_are_refused() -> None:
    shallow = Window(Series("BTC", depth=2), WINDOW.span)
    three = point(60, (1.0, 1.0), (2.0, 1.0), (3.0, 1.0))
    assert read(decode_body(answer(ONE), shallow)) == read_points([ONE])
    with pytest.raises(DecodeError, match="snapshot 1 at float 6 has 3 levels, at most 2 were asked for"):
        decode_body(answer(ONE, three), shallow)


# Timestamps


@pytest.mark.parametrize(
    "stamp",
    [
        START,  # seconds
        START * 1000,  # milliseconds
        START * 1_000_000_000,  # nanoseconds
        START * US + 0.5,
        START * US - 1,
        (START - 60) * US,
        (START + 120) * US + 1,
        (START + 180) * US,
        -START * US,
        0,
        1e300,
    ],
)
def test_a_stamp_outside_of_the_window_or_between_microseconds_is_refused_with_its_place(stamp: float) -> None:
    with pytest.raises(DecodeError, match=r"^snapshot 1 at float 6 is stamped "):
        decode_body(answer(ONE, Point(stamp, ((5.0, 5.0),))), WINDOW)


@pytest.mark.parametrize("stamp", [nan, inf, -inf])
def test_a_stamp_that_is_no_number_is_refused(stamp: float) -> None:
    with pytest.raises(DecodeError, match="snapshot 0 at float 0 is stamped"):
        decode_stream(np.array([0, stamp]), WINDOW)


def test_a_stamp_outside_is_shown_as_a_time() -> None:
    with pytest.raises(DecodeError) as caught:
        decode_body(answer(point(3600)), WINDOW)
    assert str(caught.value) == (
        "snapshot 0 at float 0 is stamped 1776083640000000 microseconds (2026-04-13T12:34:00Z), "
        "outside of the window [2026-04-13T11:34:00Z, 2026-04-13T11:36:00Z)"
    )


def test_a_point_at_exactly_the_end_is_dropped_wherever_it_stands() -> None:
    end = point(120, (1.0, 1.0))
    for points in ([ONE, TWO, end], [end, ONE, TWO], [ONE, end, TWO], [end, ONE, end, TWO]):
        assert read(decode_body(answer(*points), WINDOW)) == read_points([ONE, TWO])
    assert decode_body(answer(end), WINDOW).points == 0


def test_a_point_at_exactly_the_start_and_one_just_before_the_end_are_kept() -> None:
    points = [point(0), Point((START + 120) * US - 1, ((5.0, 5.0),))]
    assert read(decode_body(answer(*points), WINDOW)) == read_points(points)


def test_a_stamp_off_the_grid_is_kept_as_sent() -> None:
    points = [Point(START * US + 1, ONE.levels), point(61.25, (90.0, 3.0))]
    assert read(decode_body(answer(*points), WINDOW)) == read_points(points)


def test_a_descending_answer_is_sorted() -> None:
    points = [point(at, (1.0 + at, 2.0 + at)) for at in range(100)]
    assert read(decode_body(answer(*points[::-1]), WINDOW)) == read_points(points)


@pytest.mark.parametrize(
    "other",
    [
        point(0, (100.0, 1.0)),
        point(0),
        point(0, (100.0, 1.0), (110.0, 2.5)),
        point(0, (100.0, 1.0), (111.0, 2.0)),
        point(0, (100.0, 1.0), (110.0, 2.0), (120.0, 0.0)),
    ],
)
def test_repeats_that_differ_are_refused(other: Point) -> None:
    for points in ([ONE, other], [other, ONE], [ONE, TWO, other], [ONE, ONE, other]):
        with pytest.raises(DecodeError, match=r"snapshot \d is stamped 2026-04-13T11:34:00Z like another"):
            decode_body(answer(*points), WINDOW)


# Levels


@pytest.mark.parametrize(
    ("levels", "says"),
    [
        ([(0.0, 1.0)], "price 0 of level 0 in snapshot 2 is not possible"),
        ([(-0.0, 1.0)], "price -0 of level 0 in snapshot 2 is not possible"),
        ([(-5.0, 1.0)], "price -5 of level 0 in snapshot 2 is not possible"),
        ([(1.0, 1.0), (2.0, -0.5)], "volume -0.5 of level 1 in snapshot 2 is not possible"),
        ([(1.0, -5e-324)], "volume -4.9406564584124654e-324 of level 0 in snapshot 2 is not possible"),
        ([(2.0, 1.0), (1.0, 1.0)], "price 1 of level 1 in snapshot 2 does not ascend"),
        ([(1.0, 1.0), (2.0, 1.0), (2.0, 1.0)], "price 2 of level 2 in snapshot 2 does not ascend"),
    ],
)
def test_levels_that_cannot_be_are_refused_with_their_place(levels: list[Level], says: str) -> None:
    for after in ([], [point(90), point(100, (1.0, 1.0))]):
        with pytest.raises(DecodeError) as caught:
            decode_body(answer(ONE, point(30), point(60, *levels), *after), WINDOW)
        assert str(caught.value) == says


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_prices_and_volumes_are_finite(bad: float) -> None:
    with pytest.raises(DecodeError, match=r"price .* of level 0 in snapshot 0"):
        decode_stream(np.array([1, START * 1e6, bad, 1]), WINDOW)
    with pytest.raises(DecodeError, match=r"volume .* of level 0 in snapshot 0"):
        decode_stream(np.array([1, START * 1e6, 1, bad]), WINDOW)


def test_prices_need_not_ascend_from_one_snapshot_to_the_next() -> None:
    points = [ONE, point(30), TWO, point(90, (90.0, 1.0))]
    assert read(decode_body(answer(*points), WINDOW)) == read_points(points)


def test_a_bad_level_in_a_long_answer_is_found_at_any_row() -> None:
    points = [point(at / 10, *((float(1 + level), 1.0) for level in range(at % 4))) for at in range(40)]
    for at, each in enumerate(points):
        for level in range(len(each.levels)):
            levels = list(each.levels)
            levels[level] = (levels[level][0], -1.0)
            broken = [*points[:at], replace(each, levels=tuple(levels)), *points[at + 1 :]]
            with pytest.raises(DecodeError, match=rf"^volume -1 of level {level} in snapshot {at} "):
                decode_body(answer(*broken), WINDOW)


# Envelopes

ID = b'"id":{"type":"HYPERLIQUID_LIQUIDATION_AGG","interval":"MINUTE","coin":"BTC"}'
FLAT = b'"flat_points":[' + encode_points([ONE, TWO]).encode() + b"]"
SERIES = b"{" + ID + b"," + FLAT + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b'{"series":[]}',
        b' { "series" : [ ] } ',
        b'{"series":[],"next":null}',
        document(""),
        document(" \n "),
        b'{"series":[{"flat_points":[],' + ID + b"}]}",
        # the vendor's JSON comes from protobuf, which leaves empty lists out, or writes null
        b'{"series":null}',
        b'{"next":"","series":null}',
        b'{"series":[{' + ID + b"}]}",
        b'{"series":[{' + ID + b',"flat_points":null}]}',
        b'{"series":[{"flat_points" : null ,' + ID + b',"points":null}]}',
        b'{"series":[{' + ID + b',"points":null}]}',
        b'{"series":[{' + ID + b',"flat_points":[],"points":[]}]}',
    ],
)
def test_a_coin_without_data_has_no_points_and_is_no_fault(body: bytes) -> None:
    snapshots = decode_body(body, WINDOW)
    assert (snapshots.points, snapshots.rows) == (0, 0)
    assert read(snapshots) == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"series":[{' + FLAT + b"," + ID + b"}]}",
        b'{"more":{"a":[1,{"b":null}]},"series":[' + SERIES + b"]}",
        b'{"series":[{"unit":"coin",' + ID + b"," + FLAT + b',"note":"]}"}]}',
        b'{"series":[{' + ID.replace(b'"coin"', b'"exchange":"HYPERLIQUID","coin"') + b"," + FLAT + b"}]}",
        b'{"series":[{' + ID.replace(b"BTC", rb"\u0042TC") + b"," + FLAT + b"}]}",
    ],
)
def test_the_order_of_keys_and_keys_unheard_of_do_not_matter(body: bytes) -> None:
    assert read(decode_body(body, WINDOW)) == read_points([ONE, TWO])


@pytest.mark.parametrize(
    ("of_id", "says"),
    [
        ({"coin": "ETH"}, "the answer is for coin 'ETH', asked was 'BTC'"),
        ({"coin": "btc"}, "the answer is for coin 'btc', asked was 'BTC'"),
        ({"coin": None}, "the answer is for coin None"),
        ({"coin": ["BTC"]}, "the answer is for coin"),
        ({"interval": "HOUR"}, "the answer is for interval 'HOUR', asked was 'MINUTE'"),
        ({"type": "BLOCK_BOOK_SNAPSHOT_AGG"}, "the answer is for type 'BLOCK_BOOK_SNAPSHOT_AGG'"),
        ({"coin": "\x1b[31m\n"}, r"the answer is for coin '\x1b[31m\n'"),
    ],
)
def test_an_answer_to_another_question_is_refused(of_id: dict[str, object], says: str) -> None:
    with pytest.raises(EnvelopeError) as caught:
        decode_body(document(encode_points([ONE, TWO]), **of_id), WINDOW)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"5",
        b'"series"',
        b"[]",
        b"{}",
        b"<html>502 Bad Gateway</html>",
        b'{"error":"INTERNAL_ERROR","message":"x"}',
        b'{"series":{}}',
        b'{"series":[null]}',
        b'{"series":[[]]}',
        b'{"series":[{}]}',
        b'{"series":[{' + FLAT + b"}]}",  # without an id
        b'{"series":[{"id":null,' + FLAT + b"}]}",
        b'{"series":[{"id":[],' + FLAT + b"}]}",
        b'{"series":[{"id":{},' + FLAT + b"}]}",
        b'{"series":[{' + ID + b',"flat_points":{}}]}',
        b'{"series":[{' + ID + b',"flat_points":5}]}',
        b'{"series":[{' + ID + b',"flat_points":"[]"}]}',
        b'{"series":[{' + ID + b',"points":[]}]}',
        b'{"series":[{' + ID + b',"points":[{"Point":{}}]}]}',  # what came was not flattened
        b'{"series":[{' + ID + b',"points":[{"Point":{}}],"flat_points":null}]}',
        b'{"series":[{' + ID + b',"points":[{"Point":{}}],"flat_points":[]}]}',
        b'{"series":[{' + ID + b',"flat_points":false}]}',
        b'{"series":false}',
        b'{"Series":null}',
        b'{"series":[{"id":null,"flat_points":null}]}',
        b'{"series":[{' + ID.replace(b"BTC", b"ETH") + b"}]}",
        b'{"series":[{' + ID.replace(b"BTC", b"ETH") + b',"flat_points":null}]}',
        b'{"series":[' + SERIES + b"," + SERIES + b"]}",
        b'{"series":[' + SERIES + b"," + SERIES.replace(FLAT, b'"flat_points":[]') + b"]}",
        b'{"series":[' + SERIES.replace(FLAT, b'"flat_points":[]') + b"," + SERIES + b"]}",
        b'{"series":[' + SERIES + b"]}]",
        b'{"series":[' + SERIES + b"]}{}",
        b'{"series":[' + SERIES + b",]}",
        b'{"series":[' + SERIES + b"]",
        b"\x00",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"series":[' + b"[" * 5000 + b"]" * 5000 + b"]}",
        b'{"series":' + b"9" * 5000 + b"}",
        b'{"series":[' + SERIES.replace(b"BTC", b"\xff\xfe") + b"]}",
        b'{"series":[' + SERIES.replace(b"BTC", rb"\ud800") + b"]}",
    ],
)
def test_another_document_is_refused_as_a_whole(body: bytes) -> None:
    with pytest.raises(EnvelopeError) as caught:
        decode_body(body, WINDOW)
    assert len(str(caught.value)) < 200
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"series":[{' + ID + b"," + FLAT + b"," + FLAT + b"}]}",
        b'{"series":[{' + ID + b"," + FLAT + b',"flat_points":[]}]}',
        b'{"series":[{' + ID + b',"flat_points":[],' + FLAT + b"}]}",
        b'{"series":[{' + ID + b"," + ID + b"," + FLAT + b"}]}",
        b'{"series":[],"series":[' + SERIES + b"]}",
        b'{"series":[{"id":{"coin":"ETH","coin":"BTC","interval":"MINUTE","type":"HYPERLIQUID_LIQUIDATION_AGG"},'
        + FLAT
        + b"}]}",
        b'{"series":[{' + ID + b"," + FLAT + b',"flat\\u005fpoints":[]}]}',
    ],
)
def test_a_key_that_stands_twice_is_refused(body: bytes) -> None:
    with pytest.raises(EnvelopeError):
        decode_body(body, WINDOW)


@pytest.mark.parametrize(
    "body",
    [
        b'{"series":[],' + FLAT + b"}",
        b'{"series":[],"more":{' + FLAT + b"}}",
        b"{" + FLAT + b',"series":[' + SERIES.replace(FLAT, b'"flat_points":[]') + b"]}",
        b'{"series":[{"id":{' + FLAT + b"," + ID[6:] + b',"flat_points":[]}]}',
        b'{"series":[{"more":{' + FLAT + b"}," + ID + b',"flat_points":[]}]}',
        b'{"series":[{"x\\"flat_points":[' + encode_points([ONE]).encode() + b"]," + ID + b',"flat_points":[]}]}',
        b'{"series":[' + SERIES.replace(FLAT, b'"flat_points":[]') + b'],"more":{' + FLAT + b"}}",
    ],
)
def test_points_that_stand_elsewhere_are_never_taken_for_the_series(body: bytes) -> None:
    json.loads(body)
    with suppress(EnvelopeError):
        assert decode_body(body, WINDOW).points == 0


@pytest.mark.parametrize(
    "coin",
    [
        "PURR/USDC",
        "@107",
        "xyz:SILVER",
        'a"b',
        "a\\",
        '\\"',
        "]",
        "[",
        "[]",
        "}]}",
        '"flat_points":[',
        '"flat_points":[1,2]',
        '"flat_points":[],"x":"',
        '","flat_points":[1],"',
        "flat_points",
        "é x",
        "𝔹",
        "1,2,3",
    ],
)
def test_a_coin_may_be_named_like_a_piece_of_json(coin: str) -> None:
    window = Window(Series(coin), WINDOW.span)
    for ascii_only in (True, False):
        name = json.dumps(coin, ensure_ascii=ascii_only)
        for id_first in (True, False):
            parts = [ID.replace(b'"BTC"', name.encode()), FLAT]
            body = b'{"series":[{' + b",".join(parts if id_first else parts[::-1]) + b"}]}"
            assert read(decode_body(body, window)) == read_points([ONE, TWO])
            with pytest.raises(EnvelopeError):
                decode_body(body, WINDOW)


# Whatever may come: the plain reader is slow, and of another build


Edit = tuple[str, int, bytes]
PIECES: Sequence[bytes] = (
    *(bytes([byte]) for byte in b'0123456789+-.eE,[]{}": \t\n\\x\x00\xff'),
    b"null",
    b"NaN",
    b"[]",
    b'"flat_points":[',
    b"1e400",
    b"e15",
)
SEEDS = (compact(GOLDEN), GOLDEN, answer(ONE, ONE, TWO), answer(point(120), point(0)), answer(), b'{"series":[]}')

edits = st.lists(
    st.tuples(
        st.sampled_from(["insert", "replace", "delete", "repeat"]),
        st.integers(0, 2000),
        st.sampled_from(PIECES) | st.binary(min_size=1, max_size=2),
    ),
    max_size=4,
)


def mutate(body: bytes, changes: list[Edit]) -> bytes:
    for what, where, piece in changes:
        at = where % (len(body) + 1)
        if what == "insert":
            body = body[:at] + piece + body[at:]
        elif what == "replace":
            body = body[:at] + piece + body[at + len(piece) :]
        elif what == "delete":
            body = body[:at] + body[at + len(piece) :]
        else:
            body = body[: at + 8] + body[at:]
    return body


def decode_or_refuse(body: bytes) -> Snapshots | None:
    """Decode; whatever it raises but a DecodeError is a fault of ours."""
    try:
        return decode_body(body, WINDOW)
    except DecodeError:
        return None


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
@example(b'{"series":[')
def test_random_bytes_are_decoded_or_refused(body: bytes) -> None:
    decode_or_refuse(body)
    decode_or_refuse(document("").replace(b"[]", b"[" + body.replace(b"]", b"") + b"]"))


@given(st.text("0123456789+-.eE, \n", max_size=40))
@settings(deadline=None, max_examples=300)
def test_random_numbers_are_decoded_or_refused(text: str) -> None:
    decode_or_refuse(document(f"1,{START}000000,5,{text}"))


@given(st.sampled_from(SEEDS), edits)
@settings(deadline=None, max_examples=800)
def test_a_document_that_suffered_is_read_as_the_plain_reader_reads_it_or_refused(
    seed: bytes, changes: list[Edit]
) -> None:
    check_decoder(mutate(seed, changes), WINDOW, decode_body)


@given(st.sampled_from(make_seeds()), st.integers(0, 2**32))
@settings(deadline=None, max_examples=400)
def test_damage_upon_damage_to_answers_to_any_question_is_read_as_the_plain_reader_reads_it_or_refused(
    case: bytes, dice: int
) -> None:
    random = Random(dice)
    for _ in range(8):
        case = damage_case(case, random, lambda text: change_byte(text, random))
        question, body = ask(case)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decode, "PARSE_BLOCK", question.block)
            check_decoder(body, question.window, decode_body)


def change_byte(text: bytes, random: Random) -> bytes:
    at = random.randrange(len(text) + 1)
    return text[:at] + random.randbytes(1) + text[at + 1 :]


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0, 2.0, START * 1e6])))
@settings(deadline=None, max_examples=200)
def test_any_stream_of_floats_is_decoded_or_refused(values: list[float]) -> None:
    with suppress(DecodeError):
        decode_stream(np.array(values, np.float64), WINDOW)


# What the fuzzer, and the thoughts that went into it, found


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"series":[],"took":NaN}', id="NaN is no JSON"),
        pytest.param(b'{"series":[{"took":-Infinity,' + ID + b"," + FLAT + b"}]}", id="nor is -Infinity"),
        pytest.param(b'{"series":[{' + ID + b"," + FLAT + b',"took":NaN}]}', id="NaN behind the points"),
        pytest.param(b'{"series":[{' + ID + b',"flat\\u005fpoints":[NaN]}]}', id="NaN for the points"),
        pytest.param('{"series":[]}'.encode("utf-16"), id="UTF-16"),
        pytest.param('{"series":[]}'.encode("utf-32-le"), id="UTF-32"),
        pytest.param(b'{"series":[],"note":"\xed\xa0\x80"}', id="half a character in UTF-8"),
        pytest.param(b"\xef\xbb\xbf\xef\xbb\xbf" + b'{"series":[]}', id="two byte order marks"),
    ],
)
def test_what_json_alone_would_take_is_no_document(body: bytes) -> None:
    with pytest.raises(EnvelopeError, match="is not a JSON document"):
        decode_body(body, WINDOW)


def test_a_byte_order_mark_before_the_document_is_passed_over() -> None:
    assert read(decode_body(b"\xef\xbb\xbf" + GOLDEN, WINDOW)) == read(decode_body(GOLDEN, WINDOW))


@pytest.mark.parametrize("forged", [b'"heatpipe cut the numbers out here"', b"NaN", b"Infinity", b"null", b"1"])
def test_no_document_can_pass_points_that_stand_elsewhere_for_the_series(forged: bytes) -> None:
    own = ID + b',"flat_points":[' + forged + b"]"
    for more in (
        b'"more":{' + FLAT + b'},"series":[{' + own + b"}]",
        b'"series":[{"more":{' + FLAT + b"}," + own + b"}]",
    ):
        with pytest.raises(EnvelopeError):
            decode_body(b"{" + more + b"}", WINDOW)


# The check itself: a decoder that is wrong does not pass it


def decode_with(**changes: Callable[[Snapshots], Any]) -> Callable[[bytes, Window], Snapshots]:
    def decode_wrongly(body: bytes, window: Window) -> Snapshots:
        found = decode_body(body, window)
        return replace(found, **{name: change(found) for name, change in changes.items()})

    return decode_wrongly


def refuse_with(error: Exception) -> Callable[[bytes, Window], Snapshots]:
    def decode_never(body: bytes, window: Window) -> Snapshots:
        raise error

    return decode_never


@pytest.mark.parametrize(
    ("wrong", "body", "says"),
    [
        pytest.param(decode_with(price=lambda x: np.nextafter(x.price, 0)), GOLDEN, "read as", id="one bit of a price"),
        pytest.param(
            decode_with(volume=lambda x: x.volume * -0.0), document(f"1,{START}000000,1,0"), "read as", id="-0"
        ),
        pytest.param(decode_with(timestamp=lambda x: x.timestamp + 1), GOLDEN, "read as", id="a microsecond"),
        pytest.param(
            decode_with(levels=lambda x: x.levels - np.array([1, -1])), GOLDEN, "read as", id="a level's point"
        ),
        pytest.param(
            decode_with(levels=lambda x: x.levels - 1), GOLDEN, "not equally long", id="fewer levels than rows"
        ),
        pytest.param(decode_with(levels=lambda x: x.levels.astype(np.int32)), GOLDEN, "another type", id="a type"),
        pytest.param(lambda *_: Snapshots(), GOLDEN, "read as", id="no rows"),
        pytest.param(lambda *_: Snapshots(), document("1"), "although it breaks", id="no rows for a wrong stream"),
        pytest.param(lambda *_: Snapshots(), b"{}", "although it breaks", id="no rows for a wrong envelope"),
        pytest.param(refuse_with(DecodeError("no")), GOLDEN, "although it keeps", id="a refusal"),
        pytest.param(refuse_with(DecodeError("no")), b"{}", "it is the envelope", id="a refusal that would be split"),
        pytest.param(refuse_with(DecodeError("\x1b[31m")), b"{}", "one short line", id="a refusal in red"),
        pytest.param(refuse_with(DecodeError("no" * 999)), b"{}", "one short line", id="a long refusal"),
    ],
)
def test_a_decoder_that_is_wrong_is_found_out(
    wrong: Callable[[bytes, Window], Snapshots], body: bytes, says: str
) -> None:
    with pytest.raises(DisagreementError, match=says):
        check_decoder(body, WINDOW, wrong)


def test_another_exception_than_a_decode_error_is_found_out() -> None:
    with pytest.raises(IndexError):
        check_decoder(GOLDEN, WINDOW, refuse_with(IndexError()))


@pytest.mark.parametrize("inside", ["[1,2]", "1,[2,[3]],4", '"a]b",1', '"\\"]",[1]', '"]'])
def test_arrays_and_strings_among_the_numbers_are_wrong_values_of_a_right_document(inside: str) -> None:
    """So that the window is asked for in halves, and the rest of it comes."""
    with pytest.raises(DecodeError) as caught:
        decode_body(document(f"1,{START}e6,{inside}"), WINDOW)
    assert isinstance(caught.value, EnvelopeError) == (inside == '"]')  # which never ends
    with pytest.raises(EnvelopeError):
        decode_body(document(f"1,{START}e6,{inside}", coin="ETH"), WINDOW)


@pytest.mark.parametrize("inside", ['[1],"' + '\\"' * 500_000, '"]' + "a" * 5_000_000 + '"'], ids=["endless", "long"])
def test_a_string_among_the_numbers_takes_no_longer_than_it_is(inside: str) -> None:
    """One that does not end, or a very long one: a pattern that tries again from each character never returns."""
    with pytest.raises(DecodeError):
        decode_body(document(inside), WINDOW)

"""What the decoder is fed: questions, sound answers to begin with, and damage that keeps the envelope often enough.

A case is one digit, which says what was asked, and then the body.
"""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

from heatpipe.decode import PARSE_BLOCK
from heatpipe.model import Series, Span, Window

GOLDEN = (Path(__file__).parents[1] / "golden" / "flattened.json").read_bytes()
START = 1_776_080_040  # of the golden document
US = 1_000_000
LONGEST = 4096

Numbers = list[bytes]


class Question(NamedTuple):
    """What was asked, and how many bytes of numbers are parsed at a time: no answer is as long as two real blocks."""

    window: Window
    block: int


QUESTIONS = (
    Question(Window(Series("BTC"), Span(START, START + 120)), PARSE_BLOCK),
    Question(Window(Series("BTC"), Span(START, START + 120)), 16),
    Question(Window(Series("PURR/USDC", "HOUR", "usd", depth=3), Span(1_774_800_000, 1_774_818_000)), 1),
    Question(Window(Series('é"\\]𝔹[{', "DAY"), Span(0, 259_200)), 64),
    Question(Window(Series('"flat_points":[1,2]', "FOUR_HOURS", depth=1), Span(-28_800, 28_800)), PARSE_BLOCK),
)

PIECES = (
    *(bytes([byte]) for byte in b'0123456789+-.eE,[]{}": \t\n\\x\x00\x0b\xff'),
    b'"flat_points":[',
    b'"flat\\u005fpoints":[',
    b'"series":[',
    b'"id":{',
    b'"coin":"BTC"',
    b"null",
    b"NaN",
    b"-Infinity",
    b"[]",
    b"{}",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\xc2\xa0",
    b"\\ud800",
    b"\\u0000",
    b"heatpipe cut the numbers out here",
)
TOKENS = (
    *b'"series" "id" "coin" "flat_points" "flat\\u005fpoints" "x\\"flat_points" "\\ud800" "a" ""'.split(),
    *b"null true NaN -Infinity 0 -0.5 01 [] {} { } [ ] : ,".split(),
)
MEMBERS = (
    b'"a":NaN,',
    b'"a":{},',
    b'"id":{},',
    b'"series":[],',
    b'"flat_points":[],',
    b'"flat_points":null,',
    b'"points":[],',
    b'"points":[{}],',
    b'"points":null,',
    b'"flat_points":[0,1776080040000000],',
    b'"x\\"flat_points":[0,1776080040000000],',
    b'"more":{"flat_points":[0,1776080040000000]},',
)
NUMBERS = (
    *(
        b"0 -0 0.0 1 2 3 1.0 1e0 0.5 1.5 -1 01 1. .5 +1 00 1e1 10e-1 1e999 -1e999 1e400 1e308 1.7976931348623159e308"
    ).split(),
    *b"5e-324 -5e-324 2.4703282292062327e-324 1e-400 1.6482400000000001 9007199254740993 9223372036854775808".split(),
    *b"nan inf NaN Infinity null true 0x10 1_0 1e 1e+ . - + e 1.2.3 1e5.0 --1 +-1".split(),
    b"",
    b" ",
    b"1 2",
    b'"1"',
    b"[1]",
    b"1" * 400,
    b"0." + b"0" * 400 + b"1",
    b"1.00000000000000011102230246251565404236316680908203125",
)
SPACES = (b" ", b"\n", b"\t", b"\r\n", b"  ", b"\x0b", b"\x0c", b"\x00", b"\xc2\xa0")

_ARRAY = re.compile(rb'("flat_points"\s*:\s*\[)([^\]]*)')
_LETTER = re.compile(rb"[A-Za-z_]")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[-+.0-9A-Za-z]+|[^\s]')


def ask(case: bytes) -> tuple[Question, bytes]:
    """Take a case apart."""
    return QUESTIONS[(case[0] - ord("0")) % len(QUESTIONS) if case else 0], case[1:]


def make_seeds() -> list[bytes]:
    """The vendor's own answer, others to each question, and documents that mutations would not come upon soon."""
    random = Random(1)
    return [
        b"0" + GOLDEN,
        b"1" + b"".join(GOLDEN.split()),
        b'0{"series":[]}',
        b'0{"series":[{},{}],"next":null}',
        b'0{"series":[5]}',
        b'0{"series":null}',
        b'0{"series":[{' + _write_id(random, QUESTIONS[0].window) + b',"flat_points":null,"points":null}]}',
        b'0{"series":[{' + _write_id(random, QUESTIONS[0].window) + b"}]}",
        b'0{"series":[],"more":{"flat_points":[0,1776080040000000]}}',
        *(make_answer(random, which) for which in range(len(QUESTIONS)) for _ in range(6)),
    ]


def make_answer(random: Random, which: int) -> bytes:
    """Make a sound answer: runs of equal counts, changing counts, zero counts, now and then a repeat or no order."""
    window = QUESTIONS[which].window
    counts = [random.randrange(4) for _ in range(random.randrange(5)) for _ in range(random.choice((1, 1, 3)))]
    points = [_make_point(random, window, min(count, window.series.depth)) for count in counts]
    points.sort(key=lambda point: float(point[1]))
    if points and random.random() < 0.3:
        points.append(random.choice(points))
    if random.random() < 0.2:
        points.reverse()
    parts = [
        _write_id(random, window),
        b'"flat_points":[' + b",".join(number for point in points for number in point) + b"]",
    ]
    if random.random() < 0.2:
        parts.append(random.choice((b'"unit":"USD"', b'"a":[1,{"b":null}]', b'"note":"]}"')))
    if random.random() < 0.2:
        random.shuffle(parts)
    return str(which).encode() + b'{"series":[{' + b",".join(parts) + b"}]}"


def _make_point(random: Random, window: Window, count: int) -> Numbers:
    step = window.series.interval_s
    stamp = random.randrange(window.span.start, window.span.end + 1, step) * US
    prices = sorted(random.sample(range(1, 100_000), count))
    point = [str(count).encode(), random.choice((str(stamp), f"{stamp:.8e}", str(stamp + 1))).encode()]
    for price in prices:
        point += [
            str(price * 10).encode(),
            repr(random.choice((random.random(), random.expovariate(0.1), 0.0))).encode(),
        ]
    return point


def _write_id(random: Random, window: Window) -> bytes:
    identity = {
        "type": "HYPERLIQUID_LIQUIDATION_AGG",
        "interval": window.series.interval,
        "coin": window.series.coin,
    }
    return b'"id":' + json.dumps(identity, ensure_ascii=random.random() < 0.5).encode()


def damage_case(case: bytes, random: Random, mutate_bytes: Callable[[bytes], bytes]) -> bytes:
    """Damage a case: mostly single numbers or points of its stream, at times the text around it, or any byte of it."""
    if random.random() < 0.03:
        return make_answer(random, random.randrange(len(QUESTIONS)))
    if random.random() < 0.01:
        return case[:1] + case[1:].decode(errors="ignore").encode(random.choice(("utf-16", "utf-32-le", "utf-8-sig")))
    found = _ARRAY.search(case)
    if not found or random.random() < 0.15:
        return mutate_bytes(case) or b"0"
    before, text, after = case[: found.end(1)], found[2], case[found.end() :]
    if random.random() < 0.2:
        return _damage_envelope(before, random) + text + _damage_envelope(after, random)
    if random.random() < 0.15:
        return before + mutate_bytes(text) + after
    numbers = text.split(b",") if text else []
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        numbers = random.choice(_DAMAGES)(numbers, random)
    return before + b",".join(numbers) + after


def _damage_envelope(text: bytes, random: Random) -> bytes:
    at = random.randrange(len(text) + 1)
    after = random.choice((at, at, min(len(text), at + random.randrange(1, 20))))
    match random.randrange(8):
        case 0:
            return text[:at] + random.choice(PIECES) + text[after:]
        case 1:
            return text[:at] + text[after:]
        case 2:
            return text[:at] + text[max(0, at - 20) : at] + text[at:]
        case 3:
            return _LETTER.sub(lambda one: b"\\u%04x" % one[0][0] if random.random() < 0.1 else one[0], text)
        case 4 | 5:
            return _damage_token(text, random)
        case _:
            return text


def _damage_token(text: bytes, random: Random) -> bytes:
    found = list(_TOKEN.finditer(text))
    if not found:
        return text
    one = random.choice(found)
    start, end = one.span()
    if one[0] == b"{" and random.random() < 0.7:
        return text[:end] + random.choice(MEMBERS) + text[end:]
    if one[0] == b"]" and random.random() < 0.5:
        return text[:start] + b",{}" + text[start:]
    token = random.choice((*TOKENS, random.choice(found)[0]))
    return text[:start] + token + text[random.choice((start, end, end, end)) :]


def _place(numbers: Numbers, random: Random) -> int:
    return random.randrange(len(numbers)) if numbers else 0


def _set_number(numbers: Numbers, random: Random) -> Numbers:
    at = _place(numbers, random)
    return [*numbers[:at], random.choice(NUMBERS), *numbers[at + 1 :]]


def _insert_number(numbers: Numbers, random: Random) -> Numbers:
    at = _place(numbers, random)
    return [*numbers[:at], random.choice((*NUMBERS, *numbers)), *numbers[at:]]


def _drop_numbers(numbers: Numbers, random: Random) -> Numbers:
    at = _place(numbers, random)
    return numbers[:at] + numbers[at + random.choice((1, 2, 3)) :]


def _swap_numbers(numbers: Numbers, random: Random) -> Numbers:
    numbers = list(numbers)
    if numbers:
        one, other = _place(numbers, random), _place(numbers, random)
        numbers[one], numbers[other] = numbers[other], numbers[one]
    return numbers


def _shift_number(numbers: Numbers, random: Random) -> Numbers:
    at = _place(numbers, random)
    try:
        value = float(numbers[at]) + random.choice((1, -1, 60e6, -60e6, 0.5, 3600e6, 86400e6))
    except (ValueError, IndexError):
        return numbers
    return [*numbers[:at], random.choice((repr(value), f"{value:.17e}", f"{value:.0f}")).encode(), *numbers[at + 1 :]]


def _respell_number(numbers: Numbers, random: Random) -> Numbers:
    at = _place(numbers, random)
    if not numbers:
        return numbers
    number = (
        random.choice((b"0%b", b"+%b", b"%b0", b"%be0", b"%b.", b"-%b", b"%bE-0", b"%b000000000000000000001"))
        % numbers[at]
    )
    return [*numbers[:at], number, *numbers[at + 1 :]]


def _negate_number(numbers: Numbers, random: Random) -> Numbers:
    at = _place(numbers, random)
    return [*numbers[:at], *(b"-" + number for number in numbers[at : at + 1]), *numbers[at + 1 :]]


def _space_number(numbers: Numbers, random: Random) -> Numbers:
    at = _place(numbers, random)
    if not numbers:
        return [random.choice(SPACES)]
    cut = random.choice((0, len(numbers[at]), random.randrange(len(numbers[at]) + 1)))
    number = numbers[at][:cut] + random.choice(SPACES) + numbers[at][cut:]
    return [*numbers[:at], number, *numbers[at + 1 :]]


def _split_points(numbers: Numbers) -> list[Numbers]:
    """Walk from header to header as far as that goes; what is left is the last."""
    starts = [0]
    while starts[-1] < len(numbers):
        try:
            count = int(float(numbers[starts[-1]]))
        except (ValueError, OverflowError):
            break
        if count < 0 or starts[-1] + 2 + 2 * count > len(numbers):
            break
        starts.append(starts[-1] + 2 + 2 * count)
    return [numbers[start:end] for start, end in pairwise([*starts, len(numbers)])]


def _damage_points(numbers: Numbers, random: Random) -> Numbers:
    points = _split_points(numbers)
    at, other = random.randrange(len(points)), random.randrange(len(points))
    match random.randrange(9):
        case 0:
            points.insert(other, points[at])
        case 1:
            del points[at]
        case 2:
            points[at], points[other] = points[other], points[at]
        case 3:  # a repeat that may differ
            points.insert(other, random.choice((_set_number, _shift_number, _negate_number))(points[at], random))
        case 4:  # one stamp for two
            points[at] = [*points[at][:1], *points[other][1:2], *points[at][2:]]
        case 5:  # one price for two levels
            points[at] = [*points[at][:4], *points[at][2:3], *points[at][5:]]
        case 6:  # a repeat that differs in the sign of a zero
            points[at : at + 1] = [[*points[at][:3], zero, *points[at][4:]] for zero in (b"0", b"-0.0")]
        case 7:  # the last level first
            points[at] = [*points[at][:2], *points[at][-2:], *points[at][4:]]
        case _:
            points[at] = _add_level(points[at])
    return [number for point in points for number in point]


def _add_level(point: Numbers) -> Numbers:
    """Add a level above the others, and count it."""
    try:
        price = float(point[-2]) + 10 if len(point) > 2 else 10.0
        return [str(int(float(point[0])) + 1).encode(), *point[1:], repr(price).encode(), b"0.25"]
    except (ValueError, OverflowError, IndexError):
        return point


_DAMAGES: tuple[Callable[[Numbers, Random], Numbers], ...] = (
    _set_number,
    _insert_number,
    _drop_numbers,
    _swap_numbers,
    _shift_number,
    _respell_number,
    _negate_number,
    _space_number,
    _damage_points,
    _damage_points,
    _damage_points,
)

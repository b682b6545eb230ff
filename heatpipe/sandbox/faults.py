"""Faults: what the sandbox does wrong on purpose, and to which request. Pure: no I/O, no clock, dice are a hash.

A fault is a `Refusal` (an error in place of the answer), a `Damage` (another document in place of the honest one) or a
`Delivery` (the honest bytes, sent badly). A `Rule` says which request is struck by which; dice strike at random, but
draw from `DICE` alone. Those pass by themselves, are legal, or can be told by a reader who checks what the vendor
documents:

* counts, stamps, prices and volumes are numbers; counts are whole, not negative, and what they announce is there;
* stamps are whole microseconds within the span that was asked for, its end included;
* prices are above 0 and ascend within a snapshot; volumes are not negative; both are finite;
* a stamp that comes twice comes with the same levels;
* the ``id`` is what was asked for, the document is whole, and there is one series at most.

None of the dice leaves an interval out, and none makes up a level that would pass for a real one.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain
from typing import Final, TypeAlias

import orjson

KEY: Final = "{key}"
"""In a refusal's texts: the key that the caller sent."""
DICE_HOLD_S: Final = 1
"""What a 429 by dice asks for."""
DICE_WAIT_S: Final = 5.0
"""How long a hang or a drip by dice lasts."""
NESTED_POINT: Final = '{"Point":{"timestamp":{"s":1774800000},"levels":[66210,0.07923]}}'
"""One of the standard form's."""
NOTHING: Final = b'{"series":[]}'
ROLLS_KEPT: Final = 1 << 15
"""Of so many different requests the dice know how often each was rolled for; which came longest ago is forgotten."""
EARLIEST_US: Final = 10**14
"""Spans before this (March 1973) are not damaged: a volume, or a stamp in seconds, could pass for a time there."""
CONTROL_TEXT: Final = "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J \r\nsecond line \u202eright to left \u2028third"


# --- what can go wrong --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error in place of the answer; whoever is refused pays nothing.

    Attributes
    ----------
    error, message : str
        Of the error body; `KEY` in them becomes the caller's key.
    retry_after_s : int, optional
        Named in the header and in the body.
    as_date : bool
        Named in the header alone, as an HTTP date.
    html : str
        In place of the JSON body.
    """

    name: str
    status: int
    error: str = ""
    message: str = ""
    retry_after_s: int | None = None
    as_date: bool = False
    html: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The honest bytes, sent badly.

    Attributes
    ----------
    for_s : float
        How long a hang or a drip lasts, in seconds.
    pause_s : float
        Between two bits of a drip.
    size_bytes : int
        What a bomb inflates to.
    """

    name: str
    for_s: float = math.inf
    pause_s: float = 0.05
    size_bytes: int = 4 << 30


@dataclass(frozen=True, slots=True)
class Damage:
    """Another document in place of the honest one.

    Attributes
    ----------
    harm : callable
        Returns the damaged text; None where the document has nothing that this damage could be done to.
    """

    name: str
    harm: Callable[[Document, Place], Text | None]


Fault: TypeAlias = Refusal | Delivery | Damage
Text: TypeAlias = Iterable[bytes]
"""A document as it is written down, piece by piece: an answer of 100 MB never stands in memory as a whole."""


@dataclass(frozen=True, slots=True)
class Document:
    """An honest answer, before it is written down.

    Attributes
    ----------
    identity : mapping
        The ``id`` of its series.
    form : str
        ``flat_points`` or ``points``.
    stamps_us, levels : sequence of int
        Of each snapshot, in the order of the answer.
    snapshots : sequence of str
        Each as text; flattened, that is ``levels,stamp,price,volume,price,volume,…``.
    span_us : tuple of int
        What was asked for: start and end, in microseconds.
    key : str
        The caller's.
    """

    identity: Mapping[str, str]
    form: str
    stamps_us: Sequence[int]
    levels: Sequence[int]
    snapshots: Sequence[str]
    span_us: tuple[int, int]
    key: str = ""

    def text(self) -> Text:
        """Write it down; without snapshots, without a series."""
        return self.write(self.snapshots) if self.snapshots else (NOTHING,)

    def write(self, snapshots: Iterable[str], form: str = "", **identity: str) -> Text:
        """Write other snapshots, or another ``id``, into its form or another one."""
        return chain((b'{"series":[',), self.series(snapshots, form, **identity), (b"]}",))

    def series(self, snapshots: Iterable[str], form: str = "", **identity: str) -> Text:
        """Write one series."""
        written = orjson.dumps({**self.identity, **identity}).decode()
        yield f'{{"id":{written},"{form or self.form}":['.encode()
        for number, snapshot in enumerate(snapshots):
            yield (f",{snapshot}" if number else snapshot).encode()
        yield b"]}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where in an answer a fault sits.

    Attributes
    ----------
    at_us : int, optional
        In the snapshot with this stamp, and nowhere else.
    where : float
        Else so far into the answer; from 0, below 1.
    """

    at_us: int | None = None
    where: float = 0.5

    def among(self, things: Sequence[int]) -> int:
        """Choose one of some things."""
        return things[int(self.where * len(things))]

    def cut(self, size_bytes: int) -> int:
        """Cut a text short: return how many bytes are left; something is, and something is missing."""
        return 1 + int(self.where * (size_bytes - 1))

    def snapshot(self, document: Document, levels: int = 0) -> int | None:
        """Choose a snapshot with at least so many levels."""
        fit = [
            number
            for number, (stamp_us, count) in enumerate(zip(document.stamps_us, document.levels, strict=True))
            if count >= levels and self.at_us in (None, stamp_us)
        ]
        return self.among(fit) if fit else None


# --- refusals -----------------------------------------------------------------------------------------------------

RATE_LIMITED = Refusal("429 seconds", 429, "RATE_LIMITED", "Rate limit exceeded", retry_after_s=2)
RATE_LIMITED_UNTIL = replace(RATE_LIMITED, name="429 date", as_date=True)
RATE_LIMITED_BARE = replace(RATE_LIMITED, name="429 bare", retry_after_s=None)
INTERNAL_ERROR = Refusal("500", 500, "INTERNAL_ERROR", "Internal error")
BAD_GATEWAY = Refusal("502 html", 502, html="<html><body><h1>502 Bad Gateway</h1>proxy</body></html>")
UNAVAILABLE = Refusal("503", 503, "UNAVAILABLE", "Service unavailable")
TIMEOUT = Refusal("504", 504, "TIMEOUT", "Query timed out after 30 s")

INVALID_KEY = Refusal("401", 401, "INVALID_API_KEY", "Invalid or missing API key")
WRONG_TIER = Refusal("403 tier", 403, "FORBIDDEN", "Data type is not available on your tier")
BEYOND_HISTORY = Refusal("403 history", 403, "FORBIDDEN", "Time range exceeds history depth of your tier")
TOO_MANY_POINTS = Refusal("403 points", 403, "FORBIDDEN", "Point count exceeded")
INVALID_SYMBOL = Refusal("400 symbol", 400, "INVALID_SYMBOL", "unknown coin")


def echo_key(status: int) -> Refusal:
    """Refuse with a body that repeats the caller's key."""
    return Refusal(f"{status} key", status, f"NOT_FOR_{KEY}", f"no access for '{KEY}'")


def garble(status: int, error: str = "INVALID_PARAMS") -> Refusal:
    """Refuse with a text that would paint on a terminal."""
    return Refusal(f"{status} control", status, error, CONTROL_TEXT)


# --- deliveries ---------------------------------------------------------------------------------------------------

RESET = Delivery("reset")
CUT = Delivery("cut")
HANG = Delivery("hang")
DRIP = Delivery("drip")
GZIP_CUT = Delivery("gzip cut")
BOMB = Delivery("bomb")
LEFT_OVER = Delivery("left over")
"""A second answer, which nobody has asked for, behind the honest one."""
ECHO_KEY_ENCODING = Delivery("key encoding")


# --- damages: the document as a whole -----------------------------------------------------------------------------


def _not_the_asked(document: Document, name: str, *others: str) -> Text | None:
    """Answer for something else, where there is an answer at all."""
    if not document.snapshots:
        return None
    return document.write(document.snapshots, **{name: next(o for o in others if o != document.identity[name])})


def _two_series(document: Document, _: Place) -> Text | None:
    first, second = (document.series(document.snapshots) for _ in range(2))
    return chain((b'{"series":[',), first, (b",",), second, (b"]}",))


def _an_earlier_span(document: Document, _: Place) -> Text | None:
    """Answer for the span before: later would do for a reader who drops what is stamped at the end."""
    start_us, end_us = document.span_us
    if not _can_be_told(document):
        return None
    stamps = [stamp_us - (end_us - start_us) for stamp_us in document.stamps_us]
    return document.write(_stamped(text, stamp) for text, stamp in zip(document.snapshots, stamps, strict=True))


def _stamped(text: str, stamp_us: int) -> str:
    count, _, *pairs = text.split(",")
    return ",".join([count, str(stamp_us), *pairs])


def _can_be_told(document: Document) -> bool:
    return document.form == "flat_points" and bool(document.snapshots) and document.span_us[0] >= EARLIEST_US


def _cut(document: Document, place: Place) -> Text | None:
    left = place.cut(sum(map(len, document.text())))
    return _first(left, document.text())


def _first(size_bytes: int, text: Text) -> Iterator[bytes]:
    """Give a text as far as so many bytes."""
    for piece in text:
        yield piece[:size_bytes]
        size_bytes -= len(piece)
        if size_bytes <= 0:
            return


JSON_CUT = Damage("json cut", _cut)
OTHER_ENVELOPE = Damage("other envelope", lambda *_: (b'{"data":[],"status":"ok"}',))
HTML = Damage("html under 200", lambda *_: (b"<html><body>Down for maintenance</body></html>",))
NOT_FLATTENED = Damage("not flattened", lambda document, _: document.write([NESTED_POINT], form="points"))
TWO_SERIES = Damage("two series", _two_series)
OTHER_COIN = Damage("other coin", lambda document, _: _not_the_asked(document, "coin", "ETH", "BTC"))
OTHER_INTERVAL = Damage("other interval", lambda document, _: _not_the_asked(document, "interval", "HOUR", "MINUTE"))
OTHER_TYPE = Damage("other type", lambda document, _: _not_the_asked(document, "type", "BLOCK_BOOK_SNAPSHOT_AGG"))
OTHER_SPAN = Damage("other span", _an_earlier_span)
ECHO_KEY_ID = Damage("key id", lambda document, _: document.write(document.snapshots, coin=document.key))


# --- damages: one snapshot ----------------------------------------------------------------------------------------

Edit: TypeAlias = Callable[[list[str], Place], None]


def _in_one(name: str, edit: Edit, levels: int = 0) -> Damage:
    """Change the numbers of one snapshot, of those with enough levels."""

    def harm(document: Document, place: Place) -> Text | None:
        chosen = place.snapshot(document, levels)
        if chosen is None or not _can_be_told(document):
            return None
        numbers = document.snapshots[chosen].split(",")
        edit(numbers, place)
        snapshots = list(document.snapshots)
        snapshots[chosen] = ",".join(numbers)
        return document.write(snapshots)

    return Damage(name, harm)


def _put_count(spell: Callable[[int], str]) -> Edit:
    def edit(numbers: list[str], _: Place) -> None:
        numbers[0] = spell(int(numbers[0]))

    return edit


def _put_stamp(spell: Callable[[int], str]) -> Edit:
    def edit(numbers: list[str], _: Place) -> None:
        numbers[1] = spell(int(float(numbers[1])))

    return edit


def _put(spell: Callable[[str], str], first: int) -> Edit:
    def edit(numbers: list[str], place: Place) -> None:
        at = place.among(range(first, len(numbers), 2))
        numbers[at] = spell(numbers[at])

    return edit


def _put_price(spell: Callable[[str], str]) -> Edit:
    return _put(spell, 2)


def _put_volume(spell: Callable[[str], str]) -> Edit:
    return _put(spell, 3)


def _swap_levels(numbers: list[str], place: Place) -> None:
    at = place.among(range(2, len(numbers) - 2, 2))
    numbers[at : at + 4] = numbers[at + 2 : at + 4] + numbers[at : at + 2]


def _repeat_price(numbers: list[str], place: Place) -> None:
    at = place.among(range(2, len(numbers) - 2, 2))
    numbers[at + 2] = numbers[at]


def _nest(numbers: list[str], _: Place) -> None:
    numbers[:] = ["[" + ",".join(numbers) + "]"]


def _lone_value(document: Document, _: Place) -> Text | None:
    return document.write([*document.snapshots, "1"]) if _can_be_told(document) else None


def _other_repeat(document: Document, place: Place) -> Text | None:
    """Give one snapshot twice, one of them with a level that the other has not."""
    chosen = place.snapshot(document, 1)
    if chosen is None or not _can_be_told(document):
        return None
    _, stamp, *pairs = document.snapshots[chosen].split(",")
    fewer = ",".join([str(len(pairs) // 2 - 1), stamp, *pairs[2:]])
    return document.write([*document.snapshots, fewer])


COUNT_TOO_LARGE = _in_one("count too large", _put_count(lambda _: "1000000000"))
# One more takes the next header for a level and a price and a volume for the next header; one less takes the last
# level for a header. Either way a volume stands for a time, which none is as large as, or the stream ends too soon.
COUNT_ONE_MORE = _in_one("count one more", _put_count(lambda count: str(count + 1)))
COUNT_ONE_LESS = _in_one("count one less", _put_count(lambda count: str(count - 1)))
COUNT_FRACTIONAL = _in_one("count fractional", _put_count(lambda count: f"{count}.5"))
COUNT_NEGATIVE = _in_one("count negative", _put_count(lambda count: str(-count - 1)))  # never -0, which is 0
NULL = _in_one("null", _put_volume(lambda _: "null"), levels=1)
STRING = _in_one("string", _put_volume(lambda volume: f'"{volume}"'), levels=1)
NESTED = _in_one("nested", _nest)
PRICE_INFINITE = _in_one("price infinite", _put_price(lambda _: "1e999"), levels=1)
VOLUME_INFINITE = _in_one("volume infinite", _put_volume(lambda _: "1e999"), levels=1)
VOLUME_INFINITY = _in_one("volume Infinity", _put_volume(lambda _: "Infinity"), levels=1)
VOLUME_NAN = _in_one("volume NaN", _put_volume(lambda _: "NaN"), levels=1)
PRICE_NEGATIVE = _in_one("price negative", _put_price(lambda price: f"-{price}"), levels=1)
PRICE_ZERO = _in_one("price zero", _put_price(lambda _: "0"), levels=1)
# "-0" is 0, and 0 is legal
VOLUME_NEGATIVE = _in_one("volume negative", _put_volume(lambda v: f"-{v}" if float(v) else "-1"), levels=1)
PRICES_SWAPPED = _in_one("prices swapped", _swap_levels, levels=2)
PRICE_REPEATED = _in_one("price repeated", _repeat_price, levels=2)
STAMP_IN_SECONDS = _in_one("stamp in seconds", _put_stamp(lambda stamp_us: str(stamp_us // 1_000_000)))
STAMP_WITH_FRACTION = _in_one("stamp with a fraction", _put_stamp(lambda stamp_us: f"{stamp_us}.5"))
LONE_VALUE = Damage("lone value", _lone_value)
OTHER_REPEAT = Damage("other repeat", _other_repeat)


def _key_among_the_numbers(document: Document, _: Place) -> Text | None:
    return document.write([*document.snapshots, orjson.dumps(document.key).decode()])


ECHO_KEY_NUMBERS = Damage("key numbers", _key_among_the_numbers)


# --- what is legal ------------------------------------------------------------------------------------------------


def _repeated(document: Document, place: Place) -> Text | None:
    chosen = place.snapshot(document)
    if chosen is None:
        return None
    return document.write([*document.snapshots, document.snapshots[chosen]])


def _out_of_order(document: Document, place: Place) -> Text | None:
    """Turn the answer, as a belt that was stopped somewhere: no two neighbours tell which came first."""
    if len(document.snapshots) < 2:
        return None
    at = place.among(range(1, len(document.snapshots)))
    return document.write([*document.snapshots[at:], *document.snapshots[:at]])


def _one_at_the_end(document: Document, _: Place) -> Text | None:
    """Add a snapshot stamped exactly at the window's end: not asked for, so its levels are another's."""
    if not document.snapshots or document.form != "flat_points":
        return None
    return document.write([*document.snapshots, _stamped(document.snapshots[0], document.span_us[1])])


def _left_out(document: Document, place: Place) -> Text | None:
    chosen = place.snapshot(document)
    if chosen is None:
        return None
    return document.write([text for number, text in enumerate(document.snapshots) if number != chosen])


def _without_levels(numbers: list[str], _: Place) -> None:
    numbers[:] = ["0", numbers[1]]


REPEATED = Damage("repeated", _repeated)
OUT_OF_ORDER = Damage("out of order", _out_of_order)
ONE_AT_THE_END = Damage("one at the end", _one_at_the_end)

LEFT_OUT = Damage("left out", _left_out)
NO_LEVELS = _in_one("no levels", _without_levels)
EMPTY_SERIES = Damage("empty series", lambda document, _: document.write([]))
NO_SERIES = Damage("no series", lambda *_: (NOTHING,))
NULL_SERIES = Damage("null series", lambda *_: (b'{"series":null}',))
NULL_POINTS = Damage("null points", lambda document, _: (b"".join(document.write([])).replace(b'":[]}]', b'":null}]'),))
NO_POINTS = Damage(
    "no flat_points", lambda document, _: (b'{"series":[{"id":', orjson.dumps(dict(document.identity)), b"}]}")
)


# --- by kind ------------------------------------------------------------------------------------------------------

PASSING: Final[tuple[Fault, ...]] = (
    RATE_LIMITED,
    RATE_LIMITED_UNTIL,
    RATE_LIMITED_BARE,
    INTERNAL_ERROR,
    BAD_GATEWAY,
    UNAVAILABLE,
    TIMEOUT,
    RESET,
    CUT,
    HANG,
    DRIP,
    GZIP_CUT,
    JSON_CUT,
    LEFT_OVER,
)
"""Asked again, the request may be answered."""
LEGAL: Final[tuple[Damage, ...]] = (REPEATED, OUT_OF_ORDER, ONE_AT_THE_END)
"""Other ways to say the same."""
OMISSIONS: Final[tuple[Damage, ...]] = (
    LEFT_OUT,
    NO_LEVELS,
    EMPTY_SERIES,
    NO_SERIES,
    NULL_SERIES,
    NULL_POINTS,
    NO_POINTS,
)
"""Legal ways to say less; never by dice."""
BROKEN_VALUES: Final[tuple[Damage, ...]] = (
    COUNT_TOO_LARGE,
    COUNT_ONE_MORE,
    COUNT_ONE_LESS,
    COUNT_FRACTIONAL,
    COUNT_NEGATIVE,
    NULL,
    STRING,
    NESTED,
    PRICE_INFINITE,
    VOLUME_INFINITE,
    VOLUME_INFINITY,
    VOLUME_NAN,
    PRICE_NEGATIVE,
    PRICE_ZERO,
    VOLUME_NEGATIVE,
    PRICES_SWAPPED,
    PRICE_REPEATED,
    STAMP_IN_SECONDS,
    STAMP_WITH_FRACTION,
    LONE_VALUE,
    OTHER_REPEAT,
    OTHER_SPAN,
)
"""Numbers that the contract forbids."""
BROKEN_DOCUMENTS: Final[tuple[Damage, ...]] = (
    OTHER_ENVELOPE,
    HTML,
    NOT_FLATTENED,
    TWO_SERIES,
    OTHER_COIN,
    OTHER_INTERVAL,
    OTHER_TYPE,
)
"""Documents that are not what was asked for."""
FINAL: Final[tuple[Refusal, ...]] = (INVALID_KEY, WRONG_TIER, BEYOND_HISTORY, TOO_MANY_POINTS, INVALID_SYMBOL)
"""Asked again, the request is refused again; never by dice."""


def _by_dice(fault: Fault) -> Fault:
    """Let a fault end soon by itself."""
    if isinstance(fault, Refusal) and fault.retry_after_s is not None:
        return replace(fault, retry_after_s=DICE_HOLD_S)
    return replace(fault, for_s=DICE_WAIT_S) if isinstance(fault, Delivery) else fault


DICE: Final[tuple[Fault, ...]] = tuple(map(_by_dice, (*PASSING, *LEGAL, *BROKEN_VALUES, *BROKEN_DOCUMENTS)))


# --- who is struck ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """Which requests to ``/v1/points`` are struck by a fault: those of which all that is said here is true.

    A refusal comes before anything else is looked at; the other faults spoil answers of status 200. A damage to what an
    answer has not, such as the price of a snapshot without levels, leaves it as it is.

    Attributes
    ----------
    fault : Fault
        One of this module's, or one made with `Refusal`, `dataclasses.replace`, `echo_key`, `garble`.
    nth : int, optional
        The n-th request to arrive, from 1.
    coin : str, optional
        For this coin.
    covers : int, optional
        Whose span holds this instant, in Unix seconds; a damage then hits the snapshot that is stamped so.
    longer_than_s : int
        Whose period is longer.
    times : int, optional
        Strikes so often, and then no more.
    where : float
        How far into the answer the fault sits, if it has a place and `covers` names none; from 0, below 1.
    """

    fault: Fault
    nth: int | None = None
    coin: str | None = None
    covers: int | None = None
    longer_than_s: int = -1
    times: int | None = None
    where: float = 0.5

    def hits(self, nth: int, params: Mapping[str, str]) -> bool:
        """Whether it is about this request, however often it has struck."""
        start_s, period_s = (_seconds(params.get(name, "")) for name in ("from", "period"))
        return (
            self.nth in (None, nth)
            and self.coin in (None, params.get("coin"))
            and (self.covers is None or start_s <= self.covers < start_s + period_s)
            and period_s > self.longer_than_s
        )


def _seconds(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault on its way to an answer.

    Attributes
    ----------
    always : bool
        Whether another fault comes where this one finds nothing to harm.
    """

    fault: Fault
    place: Place
    always: bool = False

    def harm(self, document: Document) -> tuple[Text, str]:
        """Write the document as it leaves the server.

        Returns
        -------
        iterable of bytes
            The text.
        str
            The name of the fault; empty if there was nothing to harm.
        """
        if not isinstance(self.fault, Damage):
            return document.text(), self.fault.name
        for damage in (self.fault, JSON_CUT) if self.always else (self.fault,):
            text = damage.harm(document, self.place)
            if text is not None:
                return text, damage.name
        return document.text(), ""


class Mischief:
    """Who is struck next: rules in their order, else dice. Remembers how often each has had its turn.

    Parameters
    ----------
    rules : sequence of Rule
        The first that hits, strikes.
    chaos : float
        Probability that an answer is damaged by dice.
    seed : int
        Of the dice. What they show is a function of it, of the request's parameters, and of how often this very
        request was rolled for: neither the order of other requests nor their number changes it, as long as fewer than
        `ROLLS_KEPT` others come between.
    """

    def __init__(self, rules: Sequence[Rule] = (), chaos: float = 0.0, seed: int = 0) -> None:
        self._rules = rules
        self._chaos = chaos
        self._seed = seed
        self._arrived = 0
        self._struck: Counter[int] = Counter()
        self._rolled: OrderedDict[bytes, int] = OrderedDict()

    def by_rule(self, params: Mapping[str, str]) -> Strike | None:
        """Note that a request has arrived; return what the rules have for it."""
        self._arrived += 1
        for number, rule in enumerate(self._rules):
            if rule.hits(self._arrived, params) and (rule.times is None or self._struck[number] < rule.times):
                self._struck[number] += 1
                at_us = None if rule.covers is None else rule.covers * 1_000_000
                return Strike(rule.fault, Place(at_us, rule.where))
        return None

    def by_dice(self, params: Mapping[str, str]) -> Strike | None:
        """Return what the dice have for a request; the same until it is `answered`."""
        request = _name(params)
        rolled = blake2b(b"%d %d " % (self._seed, self._rolled.get(request, 0)) + request, digest_size=24).digest()
        strikes, which, where = (int.from_bytes(rolled[at : at + 8]) / 2**64 for at in (0, 8, 16))
        if strikes >= self._chaos:
            return None
        # 64 bits in a double can round up to 1
        return Strike(DICE[min(int(which * len(DICE)), len(DICE) - 1)], Place(None, min(where, 0.999999)), always=True)

    def answered(self, params: Mapping[str, str]) -> None:
        """Roll anew when this very request comes again."""
        if not self._chaos:
            return
        request = _name(params)
        self._rolled[request] = self._rolled.pop(request, 0) + 1
        if len(self._rolled) > ROLLS_KEPT:
            self._rolled.popitem(last=False)


def _name(params: Mapping[str, str]) -> bytes:
    return blake2b(orjson.dumps(sorted(params.items())), digest_size=16).digest()

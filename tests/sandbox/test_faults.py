"""What the sandbox does wrong on purpose: each damage can be told, dice are a function, and the wire is really torn."""

import gzip
import json
import math
import socket
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatpipe.decode import decode_body
from heatpipe.errors import DecodeError
from heatpipe.model import Series, Span, Window
from heatpipe.sandbox import Answered, Market, Options, Tier, faults, serve
from heatpipe.sandbox.app import DATA_TYPE, INTERVALS_S, _body, _document, _Query
from heatpipe.sandbox.faults import Damage, Document, Mischief, Place, Refusal, Rule, Strike, Text
from heatpipe.sandbox.wire import BLOCK_BYTES, _bomb

START_S = 1_774_800_000
CANARY = "canary-5f0c"
KEYS = {CANARY: Tier("advanced", 10**9, 10**9, history_days=0)}

# --- a careful reader, from the vendor's page alone ---------------------------------------------------------------

Read = dict[int, tuple[float, ...]]


class BrokenError(Exception):
    pass


def check(true: object) -> None:
    if not true:
        raise BrokenError


def no_constant(_: str) -> float:
    raise BrokenError


def read(text: bytes, identity: Mapping[str, str], span_us: tuple[int, int]) -> Read:
    """Read an answer, or raise BrokenError; of a stamp at the span's end nothing is kept."""
    try:
        found = json.loads(text, parse_constant=no_constant)
    except ValueError:
        raise BrokenError from None
    check(isinstance(found, dict) and isinstance(found.get("series"), list) and len(found["series"]) < 2)
    if not found["series"]:
        return {}
    series = found["series"][0]
    check(series.get("id") == identity and isinstance(series.get("flat_points"), list))
    return read_stream(series["flat_points"], span_us)


def read_stream(stream: list[Any], span_us: tuple[int, int]) -> Read:
    kept: Read = {}
    check(all(type(number) in (int, float) for number in stream))
    at = 0
    while at < len(stream):
        check(at + 1 < len(stream))
        count, stamp = stream[at : at + 2]
        check(count >= 0 and count % 1 == 0 and at + 2 + 2 * count <= len(stream))
        check(span_us[0] <= stamp <= span_us[1] and stamp % 1 == 0)
        levels = tuple(map(float, stream[at + 2 : at + 2 + 2 * int(count)]))
        prices, volumes = levels[::2], levels[1::2]
        check(all(0 < price < math.inf for price in prices) and all(0 <= volume < math.inf for volume in volumes))
        check(all(low < high for low, high in pairwise(prices)))
        check(kept.setdefault(int(stamp), levels) == levels)
        at += 2 + 2 * int(count)
    return {stamp: levels for stamp, levels in sorted(kept.items()) if stamp < span_us[1]}


def read_as_heatpipe(text: bytes, document: Document) -> Read:
    series = Series(document.identity["coin"], document.identity["interval"])
    window = Window(series, Span(*(at_us // 1_000_000 for at_us in document.span_us)))
    try:
        found = decode_body(text, window)
    except DecodeError:
        raise BrokenError from None
    rows = iter(zip(found.price.tolist(), found.volume.tolist(), strict=True))
    return {
        stamp: tuple(number for _ in range(count) for number in next(rows))
        for stamp, count in zip(found.timestamp.tolist(), found.levels.tolist(), strict=True)
    }


def both_read(text: bytes, document: Document) -> Read | None:
    """What both readers find; None if both refuse it."""
    by_the_page = by_heatpipe = None
    with suppress(BrokenError):
        by_the_page = read(text, document.identity, document.span_us)
    with suppress(BrokenError):
        by_heatpipe = read_as_heatpipe(text, document)
    assert by_the_page == by_heatpipe
    return by_the_page


def whole(text: Text | None) -> bytes | None:
    """Put a text's pieces together."""
    return None if text is None else b"".join(text)


# --- damages ------------------------------------------------------------------------------------------------------

BROKEN = (*faults.BROKEN_VALUES, *faults.BROKEN_DOCUMENTS, faults.JSON_CUT)


def named(fault: object) -> str:
    assert isinstance(fault, Damage | Refusal | faults.Delivery)
    return fault.name.replace(" ", "-")


def honest_document(
    coin: str, interval: str, points: int, depth: int, *, usd: bool = False, start_s: int = START_S, seed: int = 0
) -> Document:
    step = INTERVALS_S[interval]
    start_s -= start_s % step
    query = _Query(coin, interval, start_s, points * step, depth, flatten=True, usd=usd, descending=False)
    market = Market(seed, gaps=True)
    found = market.snapshots(coin, step, start_s, start_s + points * step, depth=depth, usd=usd)
    return _document(query, [found], CANARY)


MARKETS = [
    honest_document("BTC", "MINUTE", 30, 20),
    honest_document("kPEPE", "MINUTE", 30, 3, usd=True),
    honest_document("kPEPE", "HOUR", 20, 1),
    honest_document("@107", "HOUR", 20, 40),
    honest_document("PURR/USDC", "FIVE_MINUTES", 2, 2),
    honest_document("xyz:SILVER", "DAY", 1, 1, usd=True),
    honest_document("007", "DAY", 40, 5),
    honest_document("DOGE", "MINUTE", 1, 1500, start_s=START_S + 60),
]


def level_numbers(most: float) -> st.SearchStrategy[float]:
    """Numbers that look like counts above all."""
    return st.one_of(st.integers(1, 9).map(float), st.floats(1e-9, most, allow_nan=False))


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """Draw answers that no market of ours gives: prices and volumes that could be counts, snapshots without levels."""
    points = draw(st.integers(1, 6))
    stamps = draw(st.lists(st.integers(0, points - 1), unique=True, max_size=points).map(sorted))
    texts, levels = [], []
    for at in stamps:
        prices = sorted(draw(st.sets(level_numbers(1e6), max_size=4)))
        volumes = [draw(st.one_of(st.just(0.0), level_numbers(1e13))) for _ in prices]
        pairs = [f"{price!r},{volume!r}" for price, volume in zip(prices, volumes, strict=True)]
        texts.append(",".join([str(len(pairs)), f"{(START_S + 60 * at) * 10**6}", *pairs]))
        levels.append(len(pairs))
    span_us = (START_S * 10**6, (START_S + 60 * points) * 10**6)
    identity = {"type": DATA_TYPE, "interval": "MINUTE", "coin": "BTC"}
    stamps_us = [(START_S + 60 * at) * 10**6 for at in stamps]
    return Document(identity, "flat_points", stamps_us, levels, texts, span_us, CANARY)


WHERE = st.floats(0, 1, exclude_max=True)


def check_damages(document: Document, where: float) -> None:
    """Hold every fault against two readers who know nothing of each other."""
    place, undamaged = Place(None, where), b"".join(document.text())
    honest = both_read(undamaged, document)
    assert honest is not None
    for fault in BROKEN:
        text = whole(fault.harm(document, place))
        assert text is None or both_read(text, document) is None, fault.name
    for fault in faults.LEGAL:
        text = whole(fault.harm(document, place))
        assert text is None or (text != undamaged and both_read(text, document) == honest), fault.name


@settings(max_examples=80, deadline=None)
@given(document=documents(), where=WHERE)
def test_every_damage_is_told_and_what_is_legal_says_the_same(document: Document, where: float) -> None:
    check_damages(document, where)


@pytest.mark.parametrize("document", MARKETS, ids=lambda document: "-".join(document.identity.values()))
@pytest.mark.parametrize("where", [0.0, 0.35, 0.8, 0.999999])
def test_so_it_is_in_a_market_of_ours(document: Document, where: float) -> None:
    check_damages(document, where)


@settings(max_examples=50, deadline=None)
@given(document=documents(), where=WHERE)
def test_dice_always_find_something_to_harm(document: Document, where: float) -> None:
    for fault in faults.DICE:
        text, name = Strike(fault, Place(None, where), always=True).harm(document)
        assert name in (fault.name, "json cut")
        assert (whole(text) == whole(document.text())) == (not isinstance(fault, Damage)), fault.name


@pytest.mark.parametrize("fault", [fault for fault in BROKEN if fault in faults.BROKEN_VALUES], ids=named)
def test_every_damage_of_values_is_done_to_a_market_of_ours(fault: Damage) -> None:
    assert fault.harm(MARKETS[0], Place()) is not None


@pytest.mark.parametrize("fault", faults.BROKEN_VALUES, ids=named)
def test_where_a_time_could_be_taken_for_a_volume_nothing_is_damaged(fault: Damage) -> None:
    assert fault.harm(honest_document("BTC", "MINUTE", 30, 20, start_s=0), Place()) is None


@pytest.mark.parametrize("fault", [*BROKEN, *faults.LEGAL], ids=named)
def test_the_standard_form_is_told_or_left_alone(fault: Damage) -> None:
    nested = replace(MARKETS[0], form="points", snapshots=['{"Point":{}}'] * len(MARKETS[0].snapshots))
    text = fault.harm(nested, Place())
    assert text is None or fault not in faults.BROKEN_VALUES


def test_an_omission_says_less_and_nothing_else() -> None:
    document = MARKETS[0]
    honest = both_read(b"".join(document.text()), document) or {}
    at = document.stamps_us[3]
    without = {stamp: levels for stamp, levels in honest.items() if stamp != at}

    def after(fault: Damage) -> Read | None:
        text = whole(fault.harm(document, Place(at)))
        assert text is not None
        return both_read(text, document)

    assert after(faults.LEFT_OUT) == without
    assert after(faults.NO_LEVELS) == honest | {at: ()}
    assert after(faults.EMPTY_SERIES) == after(faults.NO_SERIES) == {}


def test_a_place_is_the_snapshot_that_is_named_or_none() -> None:
    document = MARKETS[0]
    assert Place(document.stamps_us[7]).snapshot(document) == 7
    assert Place(document.stamps_us[7] + 1).snapshot(document) is None
    assert [Place(None, where).snapshot(document) for where in (0, 0.999999)] == [0, len(document.stamps_us) - 1]


@given(size_bytes=st.integers(2, 10**9), where=WHERE)
def test_a_cut_leaves_something_and_takes_something(size_bytes: int, where: float) -> None:
    assert 0 < Place(None, where).cut(size_bytes) < size_bytes


@given(document=documents(), where=WHERE)
def test_a_text_is_cut_where_its_place_is(document: Document, where: float) -> None:
    text, place = b"".join(document.text()), Place(None, where)
    assert whole(faults.JSON_CUT.harm(document, place)) == text[: place.cut(len(text))]


# --- rules and dice -----------------------------------------------------------------------------------------------


def params(start_s: int = START_S, period_s: int = 600, coin: str = "BTC") -> dict[str, str]:
    return {"coin": coin, "from": str(start_s), "period": str(period_s)}


@pytest.mark.parametrize(
    ("rule", "asked", "struck"),
    [
        pytest.param({}, [params()] * 3, "xxx", id="always"),
        pytest.param({"nth": 2}, [params()] * 3, ".x.", id="the second"),
        pytest.param({"times": 2}, [params()] * 3, "xx.", id="twice"),
        pytest.param({"coin": "ETH"}, [params(), params(coin="ETH"), params()], ".x.", id="a coin"),
        pytest.param({"coin": "ETH", "times": 1}, [params(), params(coin="ETH"), params(coin="ETH")], ".x.", id="both"),
        pytest.param(
            {"covers": START_S + 600},
            [params(), params(START_S + 1), params(START_S + 600), params(START_S + 601)],
            ".xx.",
            id="an instant",
        ),
        pytest.param({"longer_than_s": 300}, [params(), params(period_s=300), params(period_s=301)], "x.x", id="long"),
        pytest.param({"covers": START_S}, [{}, {"from": "x"}, {"from": "-1", "period": "٣"}], "...", id="no numbers"),
    ],
)
def test_a_rule_strikes_what_it_says(rule: dict[str, Any], asked: list[dict[str, str]], struck: str) -> None:
    mischief = Mischief([Rule(faults.RESET, **rule)])
    assert "".join(".x"[mischief.by_rule(one) is not None] for one in asked) == struck


def test_the_first_rule_that_hits_strikes() -> None:
    mischief = Mischief([Rule(faults.RESET, times=1), Rule(faults.CUT)])
    strikes = [mischief.by_rule(params()) for _ in range(3)]
    assert [strike and strike.fault for strike in strikes] == [faults.RESET, faults.CUT, faults.CUT]


def roll(mischief: Mischief, asked: dict[str, str]) -> Strike | None:
    strike = mischief.by_dice(asked)
    assert mischief.by_dice(asked) == strike, "looking changes nothing"
    mischief.answered(asked)
    return strike


@given(order=st.permutations([0, 1, 2, 3] * 3), seed=st.integers(0, 9))
def test_dice_do_not_care_who_else_asks(order: list[int], seed: int) -> None:
    def rolled(numbers: list[int]) -> dict[int, list[Strike | None]]:
        mischief = Mischief(chaos=0.5, seed=seed)
        rolls: dict[int, list[Strike | None]] = {number: [] for number in range(4)}
        for number in numbers:
            rolls[number].append(roll(mischief, params(START_S + number)))
        return rolls

    assert rolled(order) == rolled(sorted(order))


def test_dice_strike_as_often_as_they_should_and_with_everything() -> None:
    mischief = Mischief(chaos=0.2, seed=7)
    strikes = [roll(mischief, params(START_S + number)) for number in range(20_000)]
    struck = Counter(strike.fault.name for strike in strikes if strike)
    assert 3_800 < struck.total() < 4_200
    assert set(struck) == {fault.name for fault in faults.DICE}
    assert 0.4 < sum(strike.place.where for strike in strikes if strike) / struck.total() < 0.6


def test_the_same_request_is_rolled_anew_and_another_seed_rolls_otherwise() -> None:
    again = Mischief(chaos=0.5)
    assert len({roll(again, params()) is None for _ in range(20)}) == 2
    others = [Mischief(chaos=0.5, seed=seed).by_dice(params()) for seed in range(20)]
    assert len({other is None for other in others}) == 2


def test_dice_remember_so_many_requests_and_no_more() -> None:
    mischief, never = Mischief(chaos=0.5), Mischief()
    first = [roll(mischief, params()) for _ in range(3)]
    for number in range(faults.ROLLS_KEPT):
        mischief.answered(params(START_S + 1 + number))
        never.answered(params(START_S + number))
    assert (len(mischief._rolled), len(never._rolled)) == (faults.ROLLS_KEPT, 0)
    assert [roll(mischief, params()) for _ in range(3)] == first, "forgotten, and so rolled from the start"


@pytest.mark.parametrize(("chaos", "struck"), [(0.0, 0), (1.0, 500)])
def test_chaos_from_never_to_always(chaos: float, struck: int) -> None:
    mischief = Mischief(chaos=chaos)
    assert sum(roll(mischief, params(number)) is not None for number in range(500)) == struck


@pytest.mark.parametrize("chaos", [-0.1, 1.1, math.nan])
def test_chaos_is_a_probability(chaos: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        Options(chaos=chaos)


def test_dice_hold_nobody_long_and_end_nothing() -> None:
    assert not set(faults.DICE) & {*faults.FINAL, *faults.OMISSIONS, faults.BOMB}
    for fault in faults.DICE:
        if isinstance(fault, faults.Delivery):
            assert fault.for_s <= 5
        if isinstance(fault, Refusal):
            assert (fault.retry_after_s or 0) <= 1
            assert fault.status in (429, 500, 502, 503, 504)


def test_no_two_faults_share_a_name() -> None:
    every = [fault for fault in vars(faults).values() if isinstance(fault, Refusal | faults.Delivery | Damage)]
    assert not [name for name, count in Counter(fault.name for fault in every).items() if count > 1]


# --- over the wire ------------------------------------------------------------------------------------------------

FORM = {"type": DATA_TYPE, "coin": "BTC", "interval": "MINUTE", "flatten": "true", "maxDepth": "5"}
ASKED = FORM | {"from": str(START_S), "period": "600"}
MARKET = Market()


def honest_text(asked: Mapping[str, str] = ASKED) -> bytes:
    start_s, period_s = int(asked["from"]), int(asked["period"])
    query = _Query("BTC", "MINUTE", start_s, period_s, 5, flatten=True, usd=False, descending=False)
    return _body(MARKET, query, start_s + period_s, False, CANARY, None)[0].read()


@contextmanager
def sandbox(*rules: Rule, **options: Any) -> Iterator[tuple[httpx.Client, list[Answered]]]:
    chosen = Options(market=MARKET, keys=KEYS, faults=rules, clock=lambda: START_S + 86_400.0, **options)
    with serve(chosen) as url, httpx.Client(base_url=url, headers={"X-Kiyotaka-Key": CANARY}, timeout=5) as http:
        yield http, chosen.ledger


def ask(http: httpx.Client, **changes: str) -> httpx.Response:
    return http.get("/v1/points", params=ASKED | changes)


def raw(http: httpx.Client) -> socket.socket:
    """Ask on a socket of our own."""
    address = urlsplit(str(http.base_url))
    assert address.hostname
    assert address.port
    connection = socket.create_connection((address.hostname, address.port), timeout=10)
    head = f"GET /v1/points?{urlencode(ASKED)} HTTP/1.1\r\nHost: x\r\nX-Kiyotaka-Key: {CANARY}\r\n"
    connection.sendall(f"{head}Accept-Encoding: gzip\r\n\r\n".encode())
    return connection


def read_all(connection: socket.socket) -> bytes:
    pieces = []
    with suppress(TimeoutError):
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


def test_what_is_left_over_comes_behind_the_whole_answer() -> None:
    with sandbox(Rule(faults.LEFT_OVER)) as (http, ledger), raw(http) as connection:
        said = read_all(connection)
    assert said.count(b"HTTP/1.1 200 OK") == 2
    assert said.endswith(b'\r\n\r\n{"series":[]}')
    assert [entry.fault for entry in ledger] == ["left over"]


def test_without_faults_the_ledger_names_none() -> None:
    with sandbox() as (http, ledger):
        assert ask(http).content == honest_text()
    assert [entry.fault for entry in ledger] == [""]


REFUSED = {
    faults.RATE_LIMITED: (429, {"error": "RATE_LIMITED", "message": "Rate limit exceeded", "retry_after": 2}),
    faults.RATE_LIMITED_UNTIL: (429, {"error": "RATE_LIMITED", "message": "Rate limit exceeded"}),
    faults.RATE_LIMITED_BARE: (429, {"error": "RATE_LIMITED", "message": "Rate limit exceeded"}),
    faults.TIMEOUT: (504, {"error": "TIMEOUT", "message": "Query timed out after 30 s"}),
    faults.INVALID_KEY: (401, {"error": "INVALID_API_KEY", "message": "Invalid or missing API key"}),
    faults.echo_key(403): (403, {"error": f"NOT_FOR_{CANARY}", "message": f"no access for '{CANARY}'"}),
    faults.garble(400): (400, {"error": "INVALID_PARAMS", "message": faults.CONTROL_TEXT}),
}


@pytest.mark.parametrize(("fault", "status", "body"), [(f, *said) for f, said in REFUSED.items()])
def test_a_refusal_says_what_the_vendor_would_and_costs_nothing(
    fault: Refusal, status: int, body: dict[str, object]
) -> None:
    with sandbox(Rule(fault)) as (http, ledger):
        answer = ask(http)
        assert (answer.status_code, answer.json()) == (status, body)
        assert ask(http, coin="").status_code == status, "before anything else is looked at"
    assert [(entry.status, entry.weight, entry.fault) for entry in ledger] == [(status, 0, fault.name)] * 2


@pytest.mark.parametrize(
    ("fault", "header"),
    [
        (faults.RATE_LIMITED, "2"),
        (faults.RATE_LIMITED_UNTIL, "Mon, 30 Mar 2026 16:00:02 GMT"),
        (faults.RATE_LIMITED_BARE, None),
    ],
    ids=["seconds", "date", "bare"],
)
def test_a_429_names_its_time_in_three_ways(fault: Refusal, header: str | None) -> None:
    with sandbox(Rule(fault)) as (http, _):
        assert ask(http).headers.get("Retry-After") == header


def test_a_proxy_s_page_is_html() -> None:
    with sandbox(Rule(faults.BAD_GATEWAY)) as (http, _):
        answer = ask(http)
    assert (answer.status_code, answer.headers["Content-Type"]) == (502, "text/html")
    assert "<html>" in answer.text


def test_a_damage_is_paid_for_and_named() -> None:
    with sandbox(Rule(faults.VOLUME_NEGATIVE, covers=START_S + 120, times=1)) as (http, ledger):
        assert ask(http).content != honest_text()
        assert ask(http).content == honest_text()
    assert [(entry.status, entry.weight, entry.fault) for entry in ledger] == [
        (200, 5, "volume negative"),
        (200, 5, ""),
    ]


def test_a_damage_that_finds_nothing_to_harm_is_not_named() -> None:
    with sandbox(Rule(faults.VOLUME_NEGATIVE, covers=START_S + 61)) as (http, ledger):
        assert ask(http).content == honest_text()
    assert ledger[0].fault == ""


def test_a_reset_is_a_reset() -> None:
    with sandbox(Rule(faults.RESET, times=1)) as (http, ledger):
        with raw(http) as connection, pytest.raises(ConnectionResetError):
            connection.recv(1)
        assert ask(http).content == honest_text()
    assert [(entry.status, entry.fault) for entry in ledger] == [(0, "reset"), (200, "")]


def test_a_reset_of_a_connection_that_is_gone_is_no_fault_of_the_sandboxs(caplog: pytest.LogCaptureFixture) -> None:
    """As a client is that was killed while it waited."""
    with sandbox(Rule(faults.RESET, times=5), latency_s=0.3) as (http, ledger):
        for _ in range(5):
            raw(http).close()
        while len(ledger) < 5:
            time.sleep(0.05)
        time.sleep(0.2)
    assert "the sandbox failed" not in caplog.text


def test_a_cut_ends_before_its_length() -> None:
    with sandbox(Rule(faults.CUT, times=1)) as (http, ledger):
        with raw(http) as connection:
            head, _, body = read_all(connection).partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        assert 0 < len(body) < length
        assert ask(http).content == honest_text()
    assert [(entry.status, entry.fault) for entry in ledger] == [(200, "cut"), (200, "")]


def test_a_hang_says_nothing_until_it_ends() -> None:
    with sandbox(Rule(replace(faults.HANG, for_s=0.3))) as (http, ledger):
        asked = time.monotonic()
        with raw(http) as connection:
            assert read_all(connection) == b""
        assert 0.25 < time.monotonic() - asked < 5
    assert [(entry.status, entry.fault) for entry in ledger] == [(0, "hang")]


def test_a_hang_without_end_ends_when_the_client_does() -> None:
    asked = time.monotonic()
    with sandbox(Rule(faults.HANG)) as (http, _), pytest.raises(httpx.ReadTimeout):
        http.get("/v1/points", params=ASKED, timeout=0.1)
    assert time.monotonic() - asked < 5


def test_a_drip_is_the_whole_answer_in_the_end() -> None:
    slow = replace(faults.DRIP, for_s=0.2, pause_s=0.02)
    with sandbox(Rule(slow)) as (http, ledger), http.stream("GET", "/v1/points", params=ASKED) as answer:
        pieces = list(answer.iter_raw())
    assert zlib.decompress(b"".join(pieces), wbits=31) == honest_text()
    assert len(pieces) > 5
    assert max(map(len, pieces[:5])) < 10
    assert ledger[0].fault == "drip"


def test_a_gzip_that_is_cut_short_arrives_as_if_it_were_whole() -> None:
    with sandbox(Rule(faults.GZIP_CUT)) as (http, ledger), http.stream("GET", "/v1/points", params=ASKED) as answer:
        got = b"".join(answer.iter_raw())
    stream = zlib.decompressobj(wbits=31)
    assert honest_text().startswith(stream.decompress(got))
    assert not stream.eof
    assert ledger[0].fault == "gzip cut"


def test_a_bomb_is_the_honest_answer_under_white_space() -> None:
    bomb = Rule(replace(faults.BOMB, size_bytes=3 * BLOCK_BYTES))
    with sandbox(bomb) as (http, _):
        packed = ask(http)
        plain = http.get("/v1/points", params=ASKED, headers={"Accept-Encoding": "identity"})
    for answer in (packed, plain):
        assert len(answer.content) == len(honest_text()) + 3 * BLOCK_BYTES
        assert orjson.loads(answer.content) == orjson.loads(honest_text())


def test_a_bomb_of_a_gigabyte_is_made_in_small_pieces() -> None:
    pieces = list(map(len, _bomb(honest_text(), 1 << 30)))
    assert max(pieces) < 1 << 20
    assert sum(pieces) < 4 << 20
    assert gzip.decompress(b"".join(_bomb(b"{}", 2 * BLOCK_BYTES))).split() == [b"{", b"}"]


def test_a_client_that_is_gone_ends_the_bomb() -> None:
    """An answer still under way would hold the server for the second that it gives to answers under way."""
    with sandbox(Rule(replace(faults.BOMB, size_bytes=1 << 50))) as (http, _):
        with http.stream("GET", "/v1/points", params=ASKED) as answer:
            next(answer.iter_raw())
        gone = time.monotonic()
    assert time.monotonic() - gone < 1


def test_a_key_is_echoed_where_errors_quote_it() -> None:
    echoes: list[faults.Fault] = [faults.ECHO_KEY_ID, faults.ECHO_KEY_NUMBERS, faults.ECHO_KEY_ENCODING]
    rules = [Rule(fault, nth=nth) for nth, fault in enumerate(echoes, 1)]
    with sandbox(*rules) as (http, _):
        assert ask(http).json()["series"][0]["id"]["coin"] == CANARY
        assert ask(http).json()["series"][0]["flat_points"][-1] == CANARY
        assert ask(http).headers["Content-Encoding"] == CANARY


def test_chaos_over_the_wire_is_what_the_dice_say_whoever_asks_first() -> None:
    """A 429 of the bucket's own is no roll: how full it is depends on time."""

    def faults_of(order: list[int]) -> dict[str, list[str]]:
        with sandbox(chaos=0.6, seed=3) as (http, ledger):
            for number in order:
                with suppress(httpx.HTTPError):
                    ask(http, **{"from": str(START_S + 600 * number)})
        return {
            start: [e.fault for e in ledger if e.params["from"] == start]
            for start in {e.params["from"] for e in ledger}
        }

    told = faults_of([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5])
    assert told == faults_of([5, 4, 3, 3, 2, 1, 0, 0, 1, 2, 4, 5])
    assert len(set(chain(*told.values()))) > 3


def test_a_refusal_for_want_of_budget_is_no_roll() -> None:
    poor = {CANARY: Tier("advanced", 1, 15)}  # three answers
    now_s = [START_S + 86_400.0]
    chosen = Options(market=MARKET, keys=poor, chaos=0.5, seed=1, clock=lambda: now_s[0])
    with serve(chosen) as url, httpx.Client(base_url=url, headers={"X-Kiyotaka-Key": CANARY}, timeout=0.2) as http:
        for number in range(20):
            now_s[0] += 3600 * (number == 12)
            with suppress(httpx.HTTPError):
                ask(http)
    unpaid = [entry for entry in chosen.ledger if entry.status == 429 and not entry.fault]
    rolled = [entry.fault for entry in chosen.ledger if entry not in unpaid]
    assert len(unpaid) > 1
    expected = Mischief(chaos=0.5, seed=1)
    strikes = [roll(expected, ASKED) for _ in rolled]
    assert rolled == [strike.fault.name if strike else "" for strike in strikes]

"""What every answer of an upstream becomes, over real sockets; waiting is done in fake time."""

import contextlib
import gzip
import json
import logging
import socket
import ssl
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from heatpipe import __version__
from heatpipe.budget import Budget
from heatpipe.client import FOREIGN_LOGGERS, Body, Client, Spent, body_cap
from heatpipe.config import Settings
from heatpipe.errors import (
    ConfigError,
    DecodeError,
    EnvelopeError,
    HeatpipeError,
    HistoryError,
    KeyRefusedError,
    RateLimitedError,
    RequestError,
    Stopped,
    SymbolError,
    TierError,
    TooHeavyError,
    TransientError,
    UnreachableError,
)
from heatpipe.model import Series, Span, Window
from heatpipe.redaction import Secret
from tests.conftest import MINUTE, NOW_S, RESET, TODAY, Answer, Asked, Clock, MakeSettings, MakeUpstream, http

KEY = "k3y-that-nobody-may-see"
WINDOW = Window(Series("BTC", depth=2), Span(TODAY, TODAY + 10 * MINUTE))
DOCUMENT = b'{"series":[]}'
Script = Callable[[Asked], Answer]


@dataclass
class Whole:
    """An answer, with its text read."""

    data: bytes
    wire_bytes: int
    asked_at: float


def read_whole(body: Body) -> Whole:
    return Whole(body.text.whole(), body.wire_bytes, body.asked_at)


@dataclass
class Caller:
    """A client with its time, its budget and its bill."""

    settings: Settings
    clock: Clock
    spent: Spent
    budget: Budget
    client: Client

    def fetch(self, window: Window = WINDOW) -> Whole:
        return self.client.fetch(window, self.spent, read_whole)

    @property
    def waited_s(self) -> float:
        return self.clock.now_s - NOW_S


@pytest.fixture
def call(settings: MakeSettings) -> Iterator[Callable[..., Caller]]:
    """Make a client for a URL; with a patience of 0 every request is the last."""
    clients: list[Client] = []

    def make(url: str, **changes: Any) -> Caller:
        chosen = settings(url, **{"api_key": Secret(KEY), "patience_s": 0.0} | changes)
        clock = Clock()
        budget = Budget(chosen.weight_per_minute, chosen.burst, clock=clock, sleep=clock.sleep)
        client = Client(chosen, budget, sleep=clock.sleep, clock=clock, monotonic=clock)
        clients.append(client)
        return Caller(chosen, clock, Spent(), budget, client)

    yield make
    for client in clients:
        client.close()


def refusal(
    status: int, error: str = "", message: str = "", headers: dict[str, str] | None = None, **more: Any
) -> bytes:
    body = json.dumps({"error": error, "message": message, **more}).encode()
    return http(status, body, {"Content-Type": "application/json"} | (headers or {}))


def always(answer: Answer) -> Script:
    return lambda _: answer


def in_turn(*answers: Answer) -> Script:
    """Give one answer after the other, the last for ever."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


# --- the request --------------------------------------------------------------------------------------------------


def test_the_request_is_the_documented_one(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    server = upstream(always(http(body=DOCUMENT)))
    series = Series("PURR/USDC", "FIVE_MINUTES", "usd", 3000)
    call(server.url).fetch(Window(series, Span(TODAY, TODAY + 3000)))
    (asked,) = server.asked
    assert asked.path == "/v1/points"
    assert asked.params == {
        "type": "HYPERLIQUID_LIQUIDATION_AGG",
        "coin": "PURR/USDC",
        "interval": "FIVE_MINUTES",
        "from": str(TODAY),
        "period": "3000",
        "maxDepth": "3000",
        "flatten": "true",
        "transform.normalize.quote": "USD",
    }
    assert asked.headers["x-kiyotaka-key"] == KEY
    assert asked.headers["user-agent"] == f"heatpipe/{__version__}"
    assert asked.headers["accept-encoding"] == "gzip"


def test_volumes_in_coin_are_the_ones_without_a_quote(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    server = upstream(always(http(body=DOCUMENT)))
    call(server.url).fetch()
    assert set(server.asked[0].params) == {"type", "coin", "interval", "from", "period", "maxDepth", "flatten"}


@pytest.mark.parametrize("coin", ["@107", "xyz:SILVER", "../x", "a=b&c", "100%", "ü ü", "#", "a+b"])
def test_every_coin_arrives_as_it_is_spelt(call: Callable[..., Caller], upstream: MakeUpstream, coin: str) -> None:
    server = upstream(always(http(body=DOCUMENT)))
    call(server.url).fetch(Window(Series(coin), WINDOW.span))
    assert server.asked[0].params["coin"] == coin
    assert server.asked[0].path == "/v1/points"


def test_the_key_travels_in_the_header_that_was_named(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    server = upstream(always(http(body=DOCUMENT)))
    call(server.url, key_header="X-OpenMarket-Key").fetch()
    assert [name for name, value in server.asked[0].headers.items() if KEY in value] == ["x-openmarket-key"]


def test_a_url_with_a_path_is_the_root_of_the_api(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    server = upstream(always(http(body=DOCUMENT)))
    call(server.url + "/mirror/").fetch()
    assert server.asked[0].path == "/mirror/v1/points"


def test_a_proxy_in_the_environment_never_sees_a_key_in_clear(
    call: Callable[..., Caller], upstream: MakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain http is allowed to loopback, so that the key stays on the machine; a proxy is not loopback."""
    proxy = upstream(always(http(502)))
    server = upstream(always(http(body=DOCUMENT)))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert call(server.url).fetch().data == DOCUMENT
    assert proxy.asked == []


# --- the answer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (DOCUMENT, {}),
        (DOCUMENT, {"Content-Encoding": "identity"}),
        (gzip.compress(DOCUMENT), {"Content-Encoding": "gzip"}),
        (gzip.compress(DOCUMENT), {"Content-Encoding": "GZip"}),
        (gzip.compress(DOCUMENT), {"Content-Encoding": "x-gzip"}),
        (gzip.compress(DOCUMENT), {"Content-Encoding": "identity, gzip"}),
        (gzip.compress(DOCUMENT[:5]) + gzip.compress(DOCUMENT[5:]), {"Content-Encoding": "gzip"}),
    ],
    ids=["plain", "identity", "gzip", "in capitals", "x-gzip", "identity and gzip", "two gzip members"],
)
def test_a_body_is_what_was_sent(
    call: Callable[..., Caller], upstream: MakeUpstream, body: bytes, headers: dict[str, str]
) -> None:
    answer = call(upstream(always(http(body=body, headers=headers))).url).fetch()
    assert answer.data == DOCUMENT
    assert answer.wire_bytes == len(body)


def test_a_body_in_pieces_is_put_together(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    text = b"[" + b"1," * 5000 + b"1]"
    packed = gzip.compress(text)
    head = http(body=b"", headers={"Content-Length": str(len(packed)), "Content-Encoding": "gzip"})
    pieces = [head, *(packed[at : at + 1] for at in range(len(packed)))]
    assert call(upstream(always(pieces)).url).fetch().data == text


def test_a_gzip_header_with_a_checksum_may_come_in_pieces(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    """isal refuses it."""
    plain = gzip.compress(DOCUMENT)
    head = plain[:3] + b"\x02" + plain[4:10]
    packed = head + (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little") + plain[10:]
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (packed[:4], packed[4:], b""))
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n" + body
    assert call(upstream(always(answer)).url).fetch().data == DOCUMENT


@pytest.mark.parametrize(
    ("date_s", "asked_at"), [(NOW_S - 90, NOW_S - 90), (NOW_S, NOW_S), (NOW_S + 90, NOW_S), (None, NOW_S)]
)
def test_an_answer_is_as_old_as_the_earlier_clock_says(
    call: Callable[..., Caller], upstream: MakeUpstream, date_s: int | None, asked_at: int
) -> None:
    headers = {} if date_s is None else {"Date": formatdate(date_s, usegmt=True)}
    assert call(upstream(always(http(body=DOCUMENT, headers=headers))).url).fetch().asked_at == asked_at


def test_a_date_that_is_none_is_passed_over(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    server = upstream(always(http(body=DOCUMENT, headers={"Date": "yesterday"})))
    assert call(server.url).fetch().asked_at == NOW_S


def test_time_that_passes_while_an_answer_is_made_does_not_count(
    call: Callable[..., Caller], upstream: MakeUpstream
) -> None:
    callers: list[Caller] = []

    def slow(_: Asked) -> bytes:
        callers[0].clock.now_s += 500
        return http(body=DOCUMENT)

    callers.append(call(upstream(slow).url))
    assert callers[0].fetch().asked_at == NOW_S


# --- every fault, and what it becomes -----------------------------------------------------------------------------

CAP = body_cap(WINDOW)
BOMB = gzip.compress(bytes(200 << 20), 9)
HTML = b"<html><h1>Bad Gateway</h1></html>"
FAULTS: list[tuple[str, Answer, type[HeatpipeError], list[str]]] = [
    (
        "an unknown coin",
        refusal(400, "INVALID_SYMBOL", "unknown coin 'BTC'"),
        SymbolError,
        ["BTC MINUTE [2026-03-31T00:00:00Z", "400 INVALID_SYMBOL", "unknown coin 'BTC'"],
    ),
    (
        "a reason whose gzip is cut short",
        http(400, gzip.compress(b'{"error":"INVALID_SYMBOL"}')[:-8], {"Content-Encoding": "gzip"}),
        SymbolError,
        ["400 INVALID_SYMBOL"],
    ),
    (
        "a wrong parameter",
        refusal(400, "INVALID_PARAMS", "maxDepth is too large"),
        RequestError,
        ["400 INVALID_PARAMS", "maxDepth is too large"],
    ),
    ("a wrong interval", refusal(400, "INVALID_TIMEFRAME"), RequestError, ["400 INVALID_TIMEFRAME"]),
    ("a 400 without a reason", http(400, HTML), RequestError, ["BTC", "400"]),
    ("a 400 in a list", http(400, b'["error"]'), RequestError, ["BTC", "400"]),
    ("a 400 too deep for a parser", http(400, b"[" * 60_000), RequestError, ["400"]),
    ("a wrong key", refusal(401, "INVALID_API_KEY"), KeyRefusedError, ["401", "KIYOTAKA_API_KEY"]),
    (
        "a tier without the type",
        refusal(403, "FORBIDDEN", "Data type is not available on your tier"),
        TierError,
        ["403 FORBIDDEN", "not available on your tier", "Advanced or Enterprise"],
    ),
    (
        "a tier without the points",
        refusal(403, "FORBIDDEN", "Point count exceeded: at most 500 points per request"),
        TierError,
        ["403", "at most 500 points", "fewer points a request than 1000"],
    ),
    (
        "a tier without the history",
        refusal(403, "FORBIDDEN", "Time range exceeds history depth of your tier"),
        HistoryError,
        ["403", "exceeds history depth", "history_days"],
    ),
    (
        "a tier without historical data",
        refusal(403, "FORBIDDEN", "Historical liquidation data is not available on your tier"),
        TierError,
        ["403", "Historical", "Advanced or Enterprise"],
    ),
    (
        "a tier without this endpoint",
        refusal(403, "FORBIDDEN", "Access to endpoint /v1/points needs the Advanced tier"),
        TierError,
        ["403", "endpoint", "need the Advanced or Enterprise"],
    ),
    ("no such page", http(404, HTML), ConfigError, ["404", "http://127.0.0.1", "the API's URL?"]),
    (
        "a page that has moved",
        http(301, b"", {"Location": "https://elsewhere.example/v1/points"}),
        ConfigError,
        ["301", "the API's URL?"],
    ),
    (
        "too many requests",
        refusal(429, "RATE_LIMITED", "Rate limit exceeded", retry_after=12),
        RateLimitedError,
        ["429 RATE_LIMITED", "Rate limit exceeded"],
    ),
    ("a bill to pay", refusal(402, "PAYMENT_REQUIRED", "pay up"), ConfigError, ["402", "pay up", "payment"]),
    ("a wrong method", http(405, HTML), ConfigError, ["405", "the API's URL?"]),
    ("a proxy's password", http(407, HTML), ConfigError, ["407", "HTTPS_PROXY"]),
    ("gone", http(410), ConfigError, ["410", "the API's URL?"]),
    ("too large", http(413, HTML), ConfigError, ["413", "size"]),
    ("no sense", refusal(422, "UNPROCESSABLE", "period"), ConfigError, ["422 UNPROCESSABLE", "period"]),
    ("headers too large", http(431), ConfigError, ["431", "headers"]),
    ("a court", refusal(451, "", "a court has"), ConfigError, ["451", "a court has", "legal"]),
    ("a firewall's 403", http(403, HTML), ConfigError, ["403", "in between"]),
    ("an empty 403", http(403), ConfigError, ["403", "in between"]),
    ("a 403 that is JSON of another's", http(403, b'{"detail":"no"}'), ConfigError, ["403", "in between"]),
    ("a 403 that is a list", http(403, b'["error"]'), ConfigError, ["403", "in between"]),
    ("too early", http(425), TransientError, ["answered 425"]),
    ("a request that took too long", http(408), TransientError, ["answered 408"]),
    ("an internal error", refusal(500, "INTERNAL_ERROR", "oops"), TransientError, ["500 INTERNAL_ERROR", "oops"]),
    ("a proxy's page", http(502, HTML, {"Content-Type": "text/html"}), TransientError, ["answered 502"]),
    ("an empty 503", http(503), TransientError, ["answered 503"]),
    ("a status of the future", http(299, DOCUMENT), TransientError, ["answered 299"]),
    ("too heavy", refusal(504, "TIMEOUT", "Query ran too long"), TooHeavyError, ["504 TIMEOUT", "Query ran too long"]),
    ("a connection reset", [RESET], TransientError, ["BTC MINUTE"]),
    (
        "a connection reset in the body",
        [http(headers={"Content-Length": "99"}), b"{", RESET],
        TransientError,
        ["BTC MINUTE"],
    ),
    ("a connection closed", [], TransientError, ["BTC MINUTE"]),
    ("a body cut short", http(body=DOCUMENT, headers={"Content-Length": "99"}), TransientError, ["BTC MINUTE"]),
    ("no HTTP at all", b"SSH-2.0-OpenSSH_9.6\r\n", TransientError, ["BTC MINUTE"]),
    (
        "gzip cut short",
        http(body=gzip.compress(DOCUMENT)[:-9], headers={"Content-Encoding": "gzip"}),
        TransientError,
        ["cut short"],
    ),
    ("gzip of nothing", http(body=b"", headers={"Content-Encoding": "gzip"}), TransientError, ["cut short"]),
    ("gzip that is none", http(body=DOCUMENT, headers={"Content-Encoding": "gzip"}), TransientError, ["damaged"]),
    (
        "gzip with something behind it",
        http(body=gzip.compress(DOCUMENT) + bytes(20) + b"more", headers={"Content-Encoding": "gzip"}),
        TransientError,
        ["damaged"],
    ),
    (
        "an encoding that was not asked for",
        http(body=DOCUMENT, headers={"Content-Encoding": "br"}),
        EnvelopeError,
        ["BTC MINUTE", "'br'", "gzip"],
    ),
    ("a body over its cap", http(body=b" " * (CAP + 1)), TooHeavyError, ["BTC MINUTE", f"{CAP:,} bytes"]),
    (
        "a gzip bomb",
        http(body=BOMB, headers={"Content-Encoding": "gzip"}),
        TooHeavyError,
        [f"larger than {CAP:,} bytes"],
    ),
    # A page in front of the API may be in an encoding that nobody asked for: its status still says what it says.
    (
        "an encoding upon the one that was asked for",
        http(body=gzip.compress(gzip.compress(DOCUMENT)), headers={"Content-Encoding": "gzip, gzip"}),
        EnvelopeError,
        ["'gzip, gzip'"],
    ),
    ("zstd", http(body=b"\x28\xb5\x2f\xfd", headers={"Content-Encoding": "zstd"}), EnvelopeError, ["'zstd'"]),
    ("deflate", http(body=b"\x78\x9c", headers={"Content-Encoding": "deflate"}), EnvelopeError, ["'deflate'"]),
    ("a wrong key, in br", http(401, b"\x8b", {"Content-Encoding": "br"}), KeyRefusedError, ["401"]),
    ("a wrong request, in br", http(400, b"\x8b", {"Content-Encoding": "br"}), RequestError, ["BTC", "400"]),
    ("too heavy, in br", http(504, b"\x8b", {"Content-Encoding": "br"}), TooHeavyError, ["BTC", "504"]),
    ("too many requests, damaged", http(429, b"?", {"Content-Encoding": "gzip"}), RateLimitedError, ["BTC", "429"]),
]


@pytest.mark.parametrize(("answer", "error", "words"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_a_fault_is_told_by_its_kind_and_its_text(
    call: Callable[..., Caller],
    upstream: MakeUpstream,
    answer: Answer,
    error: type[HeatpipeError],
    words: list[str],
) -> None:
    server = upstream(always(answer))
    with pytest.raises(HeatpipeError) as caught:
        call(server.url).fetch()
    assert type(caught.value) is error
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert len(server.asked) == 1


def test_nobody_there_is_a_passing_fault(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    with pytest.raises(TransientError, match=r"BTC MINUTE .*refused"):
        call("http://127.0.0.1:9").fetch()


def test_silence_is_a_passing_fault_after_the_timeout(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    def hang(_: Asked) -> Iterator[bytes]:
        server.gone.wait()
        yield b""

    server = upstream(hang)
    with pytest.raises(TransientError, match=r"no answer from .* within 0\.1 s"):
        call(server.url, timeout_s=0.1).fetch()


def test_silence_in_the_middle_of_a_body_is_a_passing_fault(
    call: Callable[..., Caller], upstream: MakeUpstream
) -> None:
    def hang(_: Asked) -> Iterator[bytes]:
        yield http(body=DOCUMENT)[:-3]
        server.gone.wait()

    server = upstream(hang)
    with pytest.raises(TransientError, match=r"no answer from .* within 0\.1 s"):
        call(server.url, timeout_s=0.1).fetch()


def drip(answer: bytes, whole: int = 0) -> Script:
    """Send `whole` bytes at once, then one every few milliseconds, always within the time-out."""

    def script(_: Asked) -> Iterator[bytes]:
        yield answer[:whole]
        for at in range(whole, len(answer)):
            yield answer[at : at + 1]
            time.sleep(0.01)

    return script


def continue_for_ever(_: Asked) -> Iterator[bytes]:
    while True:
        yield b"HTTP/1.1 102 Processing\r\n\r\n"
        time.sleep(0.01)


DRIPS: list[tuple[str, Script]] = [
    ("a body", drip(http(200, b" " * 2000), whole=100)),
    ("the body of a refusal", drip(http(500, b" " * 2000), whole=100)),
    ("headers", drip(http(200, headers={"X-Long": "x" * 2000}))),
    ("informational answers", continue_for_ever),
]


@pytest.mark.parametrize("script", [row[1] for row in DRIPS], ids=[row[0] for row in DRIPS])
def test_an_answer_that_drips_in_is_given_up_when_patience_ends(
    call: Callable[..., Caller], upstream: MakeUpstream, script: Script
) -> None:
    """Each byte comes within the time-out, so only patience can end it."""
    server = upstream(script)
    began = time.monotonic()
    with pytest.raises(TransientError):
        call(server.url, timeout_s=0.3).fetch()
    assert time.monotonic() - began < 5
    assert len(server.asked) == 1


def test_a_thread_that_was_cut_off_can_ask_again(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    answers = iter([DRIPS[0][1], always(http(body=DOCUMENT))])
    caller = call(upstream(lambda asked: next(answers)(asked)).url, timeout_s=0.3)
    with pytest.raises(TransientError, match=r"has not come within 0\.6 s"):
        caller.fetch()
    assert caller.fetch().data == DOCUMENT


# --- trying again -------------------------------------------------------------------------------------------------


def test_a_passing_fault_passes(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    server = upstream(in_turn(http(502, HTML), [RESET], refusal(500), http(body=DOCUMENT)))
    caller = call(server.url, patience_s=600.0)
    assert caller.fetch().data == DOCUMENT
    assert len(server.asked) == 4
    assert len({json.dumps(dict(asked.params)) for asked in server.asked}) == 1


def test_every_attempt_spends_its_weight(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    window = Window(Series("BTC", depth=3000), Span(TODAY - 1000 * MINUTE, TODAY))
    caller = call(upstream(in_turn(http(502), http(502), http(body=DOCUMENT))).url, patience_s=600.0, burst=18)
    caller.fetch(window)
    assert (caller.spent.requests, caller.spent.weight) == (3, 18)
    before = caller.clock.now_s
    caller.budget.spend(6)
    assert caller.clock.now_s > before or caller.settings.weight_per_minute > 10**6


def test_attempts_wait_for_the_budget(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    caller = call(
        upstream(in_turn(http(502), http(502), http(body=DOCUMENT))).url,
        patience_s=600.0,
        burst=5,
        weight_per_minute=5,
    )
    caller.fetch()
    # The bucket holds one request and fills in a minute: the second and the third wait for it.
    assert 120 <= caller.waited_s < 121


def test_pauses_grow_and_differ(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    caller = call(upstream(in_turn(*[http(502)] * 12, http(body=DOCUMENT))).url, patience_s=10_000.0)
    caller.fetch()
    pauses = [pause for pause in caller.clock.slept if pause]
    assert len(pauses) == 12
    for number, pause in enumerate(pauses):
        most = min(30.0, 0.5 * 2**number)
        assert most / 4 <= pause <= most
    assert len(set(pauses)) == 12


def test_a_fault_that_does_not_pass_is_raised_when_patience_ends(
    call: Callable[..., Caller], upstream: MakeUpstream
) -> None:
    callers: list[Caller] = []

    def fail_slowly(_: Asked) -> bytes:
        callers[0].clock.now_s += 25
        return http(503)

    server = upstream(fail_slowly)
    callers.append(call(server.url, patience_s=100.0))
    with pytest.raises(UnreachableError, match=r"no good answer for 100 s .*503"):
        callers[0].fetch()
    assert 100 <= callers[0].waited_s <= 160
    assert 3 <= len(server.asked) <= 4


def test_a_final_fault_is_not_tried_again(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    finals = (refusal(status) for status in (400, 401, 402, 403, 405, 407, 410, 413, 422, 431, 451))
    for answer in (*finals, http(403), http(404), http(504)):
        server = upstream(always(answer))
        with pytest.raises(HeatpipeError):
            call(server.url, patience_s=600.0).fetch()
        assert len(server.asked) == 1


def test_a_page_that_is_gone_for_a_moment_is_a_passing_fault_once_the_api_has_answered(
    call: Callable[..., Caller], upstream: MakeUpstream
) -> None:
    """A deployment, a proxy: the URL was right before."""
    server = upstream(
        in_turn(
            http(body=DOCUMENT),
            http(404, HTML),
            http(302, b"", {"Location": "/"}),
            http(403, HTML),
            http(403),
            http(body=DOCUMENT),
        )
    )
    caller = call(server.url, patience_s=600.0)
    caller.fetch()
    assert caller.fetch().data == DOCUMENT
    assert len(server.asked) == 6


def test_an_answer_that_breaks_the_contract_is_an_answer_all_the_same(
    call: Callable[..., Caller], upstream: MakeUpstream
) -> None:
    def refuse(_: Body) -> None:
        raise DecodeError("a number is none")

    caller = call(upstream(in_turn(http(body=DOCUMENT), http(404, HTML), http(body=DOCUMENT))).url, patience_s=600.0)
    with pytest.raises(DecodeError, match="a number is none"):
        caller.client.fetch(WINDOW, caller.spent, refuse)
    assert caller.spent.requests == 1
    assert caller.fetch().data == DOCUMENT


def test_what_a_reader_waits_for_is_not_charged_to_the_upstream(
    call: Callable[..., Caller], upstream: MakeUpstream
) -> None:
    server = upstream(always(http(body=DOCUMENT)))
    caller = call(server.url, patience_s=60.0)

    def read_slowly(body: Body) -> Whole:
        caller.clock.now_s += 100
        if caller.spent.requests < 3:
            raise TransientError("damaged")
        return read_whole(body)

    assert caller.client.fetch(WINDOW, caller.spent, read_slowly).data == DOCUMENT
    assert caller.spent.requests == 3


def test_answers_that_are_always_damaged_end_the_patience(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    """The waits between the attempts count."""
    caller = call(upstream(always(http(body=DOCUMENT, headers={"Content-Encoding": "gzip"}))).url, patience_s=60.0)
    with pytest.raises(UnreachableError, match="damaged"):
        caller.fetch()
    assert 60 <= caller.waited_s < 61
    assert caller.spent.requests < 30


def test_a_wait_may_be_ended(call: Callable[..., Caller], upstream: MakeUpstream, settings: MakeSettings) -> None:
    def stop(_: float) -> None:
        raise Stopped("stopped")

    server = upstream(always(http(503)))
    budget = Budget(10**9, 10**9)
    client = Client(settings(server.url), budget, sleep=stop)
    with pytest.raises(Stopped):
        client.fetch(WINDOW, Spent(), read_whole)
    client.close()


# --- being told to wait -------------------------------------------------------------------------------------------

HOLDS: list[tuple[str, dict[str, str], dict[str, Any], float]] = [
    ("seconds in the header", {"Retry-After": "7"}, {}, 7),
    ("seconds in the body", {}, {"retry_after": 12}, 12),
    ("half a second in the body", {}, {"retry_after": 0.5}, 0.5),
    ("the header before the body", {"Retry-After": "7"}, {"retry_after": 90}, 7),
    ("a date in the header", {"Retry-After": formatdate(NOW_S + 33, usegmt=True)}, {}, 33),
    ("a date that has passed", {"Retry-After": formatdate(NOW_S - 33, usegmt=True)}, {}, 0),
    ("none at all", {}, {}, 5),
    ("a word in the header", {"Retry-After": "soon"}, {}, 5),
    ("a word in the header, seconds in the body", {"Retry-After": "soon"}, {"retry_after": 12}, 12),
    ("less than nothing", {"Retry-After": "-3"}, {"retry_after": -3}, 5),
    ("null", {}, {"retry_after": None}, 5),
    ("a truth", {}, {"retry_after": True}, 5),
    ("text", {}, {"retry_after": "12"}, 5),
    ("not a number", {}, {"retry_after": float("nan")}, 5),
]


@pytest.mark.parametrize(("headers", "body", "hold_s"), [row[1:] for row in HOLDS], ids=[row[0] for row in HOLDS])
def test_a_429_holds_for_the_time_it_names(
    call: Callable[..., Caller],
    upstream: MakeUpstream,
    headers: dict[str, str],
    body: dict[str, Any],
    hold_s: float,
) -> None:
    server = upstream(in_turn(refusal(429, "RATE_LIMITED", headers=headers, **body), http(body=DOCUMENT)))
    caller = call(server.url, patience_s=600.0)
    assert caller.fetch().data == DOCUMENT
    assert caller.waited_s == pytest.approx(hold_s, abs=1e-3)


def test_a_429_holds_everyone_and_empties_the_bucket(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    server = upstream(always(refusal(429, headers={"Retry-After": "20"})))
    caller = call(server.url, weight_per_minute=60, burst=100)
    with pytest.raises(RateLimitedError):
        caller.fetch()
    caller.budget.spend(30)
    # Twenty seconds of hold bring 20; the ten that lack take ten more.
    assert caller.waited_s == pytest.approx(30, abs=1e-3)


def test_holds_without_a_time_double_until_an_answer_comes(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    told = refusal(429, "RATE_LIMITED")
    server = upstream(in_turn(told, told, told, http(body=DOCUMENT), told, http(body=DOCUMENT)))
    caller = call(server.url, patience_s=600.0)
    caller.fetch()
    assert caller.waited_s == pytest.approx(5 + 10 + 20, abs=1e-3)
    caller.fetch()
    assert caller.waited_s == pytest.approx(35 + 5, abs=1e-3)


def test_holds_count_towards_patience(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    server = upstream(always(refusal(429, headers={"Retry-After": "40"})))
    caller = call(server.url, patience_s=100.0)
    with pytest.raises(UnreachableError, match="asks everyone to wait"):
        caller.fetch()
    assert caller.waited_s == pytest.approx(80, abs=1)
    assert len(server.asked) == 3


@pytest.mark.parametrize("named", ["0", formatdate(NOW_S - 3600, usegmt=True)], ids=["no time", "a time gone by"])
def test_a_429_that_names_no_wait_ends_with_patience_too(
    call: Callable[..., Caller], upstream: MakeUpstream, named: str
) -> None:
    """What it empties the budget for has to come in again, and that wait counts."""
    server = upstream(always(http(429, headers={"Retry-After": named})))
    caller = call(server.url, patience_s=10.0, weight_per_minute=300, burst=100)
    with pytest.raises(UnreachableError):
        caller.fetch()
    assert 10 <= caller.clock.now_s - NOW_S < 20
    assert len(server.asked) < 20


def test_a_429_s_date_is_read_by_the_clock_of_who_wrote_it(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    """Ours is a quarter of an hour slow; that is no reason to wait for so long, nor to give up."""
    theirs = NOW_S + 900
    headers = {"Retry-After": formatdate(theirs + 3, usegmt=True), "Date": formatdate(theirs, usegmt=True)}
    caller = call(upstream(in_turn(http(429, headers=headers), http(body=DOCUMENT))).url, patience_s=10.0)
    caller.fetch()
    assert 3 <= caller.clock.now_s - NOW_S < 10


def test_a_neighbour_s_hold_beyond_patience_is_not_waited_for(
    call: Callable[..., Caller], upstream: MakeUpstream
) -> None:
    server = upstream(always(http(body=DOCUMENT)))
    caller = call(server.url, patience_s=600.0)
    caller.budget.hold(601)
    with pytest.raises(RateLimitedError, match="601 s"):
        caller.fetch()
    assert (caller.waited_s, server.asked) == (0, [])
    caller.clock.now_s += 2
    assert caller.fetch().data == DOCUMENT
    assert caller.waited_s == pytest.approx(601, abs=1e-3)


@pytest.mark.parametrize(
    ("headers", "more"),
    [
        ({"Retry-After": "86400"}, b""),
        ({"Retry-After": formatdate(NOW_S + 10**9, usegmt=True)}, b""),
        ({"Retry-After": "9" * 400}, b""),
        ({}, b"1e300"),
        ({}, b"9" * 400),
    ],
    ids=["a day", "a date in thirty years", "400 digits in the header", "1e300", "400 digits in the body"],
)
def test_a_hold_beyond_patience_ends_it(
    call: Callable[..., Caller], upstream: MakeUpstream, headers: dict[str, str], more: bytes
) -> None:
    body = b'{"error": "RATE_LIMITED", "retry_after": ' + (more or b"null") + b"}"
    caller = call(upstream(always(http(429, body, headers))).url, patience_s=600.0)
    with pytest.raises(UnreachableError, match="asks everyone to wait"):
        caller.fetch()
    assert caller.waited_s == 0


# --- what nobody may see ------------------------------------------------------------------------------------------

ECHOES: list[tuple[str, Answer]] = [
    (f"{status}", refusal(status, f"E_{KEY}", f"the key {KEY} and once more {KEY}")) for status in (400, 403, 429, 500)
] + [
    ("401", refusal(401, "INVALID_API_KEY", f"{KEY} is not known")),
    ("404", http(404, KEY.encode())),
    ("301", http(301, b"", {"Location": f"/?key={KEY}"})),
    ("504", refusal(504, KEY, KEY)),
    ("an encoding", http(body=b"", headers={"Content-Encoding": KEY})),
    ("a header", http(500, headers={"X-You-Sent": KEY})),
    ("a reason", f"HTTP/1.1 500 {KEY}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()),
    ("a status line", f"HTTP/1.1 {KEY}\r\n\r\n".encode()),
    ("a header that is none", f"HTTP/1.1 500 No\r\n{KEY}\r\n\r\n".encode()),
    ("reset", [RESET]),
]


@pytest.mark.parametrize("answer", [row[1] for row in ECHOES], ids=[row[0] for row in ECHOES])
def test_the_key_stands_in_no_text_and_no_log(
    call: Callable[..., Caller], upstream: MakeUpstream, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    caller = call(upstream(in_turn(answer, http(body=DOCUMENT))).url)
    with caplog.at_level(logging.DEBUG), pytest.raises(HeatpipeError) as caught:
        caller.fetch()
    caller.clock.now_s += 60  # the hold of a 429
    with caplog.at_level(logging.DEBUG):
        caller.fetch()
    said = [str(caught.value), repr(caught.value), *traceback.format_exception(caught.value)]
    said += [repr(caller.settings), repr(caller.client), repr(vars(caller.client)), str(caller.settings.api_key)]
    said += [f"{record.getMessage()} {record.args!r} {record.exc_text}" for record in caplog.records]
    assert {record.name.partition(".")[0] for record in caplog.records} >= {"httpx", "httpcore"}
    assert [text for text in said if KEY in text] == []


@pytest.mark.parametrize("key", [None, Secret(KEY)])
def test_what_others_log_is_left_alone_before_and_after(settings: MakeSettings, key: Secret | None) -> None:
    loggers = [logging.getLogger(name) for name in FOREIGN_LOGGERS]
    before = [list(logger.filters) for logger in loggers]
    with contextlib.suppress(KeyRefusedError):
        Client(settings("http://127.0.0.1:1", api_key=key), Budget(1, 1)).close()
    assert [logger.filters for logger in loggers] == before


def test_control_characters_of_an_answer_reach_no_terminal(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    message = "red \x1b[31m and\r\nforged line\x00\x07\u202e\u2028" + "x" * 5000
    with pytest.raises(RequestError) as caught:
        call(upstream(always(refusal(400, "INVALID_\x1b]0;PARAMS", message))).url).fetch()
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 600
    assert "forged line" in text


def test_many_failures_of_one_window_are_told_without_asking(
    call: Callable[..., Caller], upstream: MakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "heatpipe"):
        call(upstream(in_turn(*[http(503)] * 5, http(body=DOCUMENT))).url, patience_s=600.0).fetch()
    levels = [record.levelno for record in caplog.records if record.name == "heatpipe"]
    assert levels == [logging.INFO] * 3 + [logging.WARNING] * 2


# --- what nobody asked for ----------------------------------------------------------------------------------------


OTHER = b'{"series":[],"of":"another"}'


@dataclass
class Connections:
    """An upstream that leaves every connection open, whatever it is asked, and says more than it is asked for."""

    url: str
    requests: list[int]
    """how many came on each connection"""


@contextlib.contextmanager
def serve_connections(
    answers: list[bytes], *, first: bytes = b"", behind: bytes = b"", behind_s: float = 0.0
) -> Iterator[Connections]:
    """Answer in turn; send `first` before the request of the first connection, `behind` after the first answer."""
    left = list(answers)
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server = Connections(f"http://127.0.0.1:{listener.getsockname()[1]}", [])

        def serve(connection: socket.socket, number: int) -> None:
            with contextlib.suppress(OSError):
                if not number:
                    connection.sendall(first)
                text = b""
                while not over.is_set():
                    while b"\r\n\r\n" not in text:
                        more = connection.recv(65536)
                        if not more:
                            return
                        text += more
                    text = text.partition(b"\r\n\r\n")[2]
                    server.requests[number] += 1
                    answer = left.pop(0) if len(left) > 1 else left[0]
                    if number or server.requests[number] > 1:
                        connection.sendall(answer)
                    elif behind_s:
                        connection.sendall(answer)
                        time.sleep(behind_s)
                        connection.sendall(behind)
                    else:
                        connection.sendall(answer + behind)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = stack.enter_context(listener.accept()[0])
                    server.requests.append(0)
                    thread = threading.Thread(target=serve, args=(connection, len(server.requests) - 1), daemon=True)
                    thread.start()

        threading.Thread(target=accept, daemon=True).start()
        stack.callback(listener.shutdown, socket.SHUT_RDWR)
        stack.callback(over.set)
        yield server


def alive(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> bytes:
    """Write an answer that leaves the connection open."""
    return http(status, body, {"Connection": "keep-alive"} | (headers or {}))


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(OTHER), OTHER)


@pytest.mark.parametrize("behind_s", [0.0, 0.02], ids=["at once", "a moment later"])
@pytest.mark.parametrize(
    "behind",
    [
        alive(OTHER),
        CHUNKED,
        alive(OTHER) * 3,
        b"HTTP/1.1 100 Continue\r\n\r\n" + alive(OTHER),
        alive(gzip.compress(OTHER), headers={"Content-Encoding": "gzip"}),
        alive(b"", 401),
        OTHER,
    ],
    ids=["another answer", "in chunks", "several", "with a 100", "gzip", "a refusal", "more of the body"],
)
def test_what_comes_behind_an_answer_is_never_the_next_one(
    call: Callable[..., Caller], behind: bytes, behind_s: float
) -> None:
    with serve_connections([alive(DOCUMENT)], behind=behind, behind_s=behind_s) as server:
        caller = call(server.url, patience_s=600.0)
        for _ in range(3):
            assert caller.fetch().data == DOCUMENT
    assert set(server.requests) == {1}, "no connection is used twice"


def test_what_is_seen_behind_an_answer_spoils_it(call: Callable[..., Caller]) -> None:
    with (
        serve_connections([alive(OTHER), alive(DOCUMENT)], behind=alive(DOCUMENT), behind_s=0.02) as server,
        pytest.raises(TransientError, match="sent more than the answer"),
    ):
        call(server.url).fetch()


@pytest.mark.parametrize("first", [alive(OTHER), CHUNKED, alive(b"", 404)], ids=["an answer", "in chunks", "a 404"])
def test_an_answer_before_it_was_asked_for_is_none(call: Callable[..., Caller], first: bytes) -> None:
    """It is taken for none even where it comes too late to be seen before the request: the true one follows."""
    with serve_connections([alive(DOCUMENT)], first=first) as server:
        caller = call(server.url, patience_s=600.0)
        for _ in range(2):
            assert caller.fetch().data == DOCUMENT


def test_informational_answers_and_blank_lines_spoil_nothing(call: Callable[..., Caller]) -> None:
    noisy = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + alive(DOCUMENT)
    with serve_connections([noisy], behind=b"\r\n\r\n", behind_s=0.02) as server:
        assert call(server.url).fetch().data == DOCUMENT


def test_the_rest_of_a_refusal_is_not_the_next_answer(call: Callable[..., Caller]) -> None:
    long = alive(b"x" * 100_000 + alive(OTHER), 500)
    with serve_connections([long, long, alive(DOCUMENT)]) as server:
        assert call(server.url, patience_s=600.0).fetch().data == DOCUMENT


def test_a_body_longer_than_it_says_is_damaged(call: Callable[..., Caller]) -> None:
    short = alive(DOCUMENT, headers={"Content-Length": "5"})
    with serve_connections([short]) as server:
        assert call(server.url).fetch().data == DOCUMENT[:5], "no JSON, which the decoder refuses"


# --- who stands in between ----------------------------------------------------------------------------------------


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a proxy carry what does not go to this machine."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    return lambda url: monkeypatch.setenv("HTTPS_PROXY", url)


@contextlib.contextmanager
def serve_proxy(status: int) -> Iterator[Connections]:
    with serve_connections([http(status, HTML)]) as server:
        yield server


@pytest.mark.parametrize("status", [400, 403, 404, 405, 407, 451])
def test_a_proxy_s_refusal_is_final(call: Callable[..., Caller], through: Callable[[str], None], status: int) -> None:
    with serve_proxy(status) as server:
        through(server.url)
        caller = call("https://api.invalid", patience_s=600.0)
        with pytest.raises(
            ConfigError, match=rf"the proxy refuses the way to https://api.invalid \({status} .*HTTPS_PROXY"
        ):
            caller.fetch()
    assert server.requests == [1]
    assert caller.spent.requests == 0


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_proxy_in_trouble_passes(call: Callable[..., Caller], through: Callable[[str], None], status: int) -> None:
    with serve_proxy(status) as server:
        through(server.url)
        with pytest.raises(TransientError, match=f"the proxy has no connection to https://api.invalid .{status} "):
            call("https://api.invalid").fetch()


def test_a_certificate_that_nobody_trusts_is_final(call: Callable[..., Caller]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).parent / "self-signed.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), connection:
                    context.wrap_socket(connection, server_side=True)

        threading.Thread(target=serve, daemon=True).start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        caller = call(url, patience_s=600.0)
        with pytest.raises(ConfigError, match=f"the certificate of {url} is not trusted .*SSL_CERT_FILE"):
            caller.fetch()
        listener.shutdown(socket.SHUT_RDWR)
    assert caller.waited_s == 0


# --- nobody at home -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patience_s", [600.0, 3.0])
def test_where_nobody_listens_on_this_machine_five_seconds_are_enough(
    call: Callable[..., Caller], patience_s: float
) -> None:
    caller = call("http://127.0.0.1:9", patience_s=patience_s)
    with pytest.raises(UnreachableError, match=f"for {min(5, patience_s):g} s .*refused.*`heatpipe sandbox`"):
        caller.fetch()
    assert caller.waited_s == pytest.approx(min(5, patience_s), abs=0.5)


def test_a_sandbox_that_starts_anew_in_mid_run_has_the_whole_patience(
    call: Callable[..., Caller], upstream: MakeUpstream
) -> None:
    caller = call(upstream(always(http(body=DOCUMENT))).url, patience_s=60.0)
    caller.fetch()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    away = replace(caller.settings, url=f"http://127.0.0.1:{port}")
    client = Client(away, caller.budget, sleep=caller.clock.sleep, clock=caller.clock, monotonic=caller.clock)
    client._heard = True
    with pytest.raises(UnreachableError, match="no good answer for 60 s"):
        client.fetch(WINDOW, caller.spent, read_whole)
    client.close()


# --- an outage ----------------------------------------------------------------------------------------------------


def test_waiting_for_our_own_budget_is_no_silence(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    """A minute goes by for each attempt, and none of it counts."""
    caller = call(
        upstream(in_turn(*[http(503)] * 4, http(body=DOCUMENT))).url, patience_s=30.0, burst=5, weight_per_minute=5
    )
    assert caller.fetch().data == DOCUMENT
    assert caller.waited_s > 200


def test_windows_that_follow_each_other_share_one_patience(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    caller = call(upstream(always(http(503))).url, patience_s=60.0)
    for _ in range(6):
        with pytest.raises(UnreachableError):
            caller.fetch(Window(Series("BTC", depth=2), Span(TODAY, TODAY + 10 * MINUTE)))
    assert caller.waited_s == pytest.approx(60, abs=1)


def test_an_answer_begins_the_patience_anew(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    server = upstream(in_turn(*([http(503)] * 5 + [http(body=DOCUMENT)]) * 10, http(503)))
    caller = call(server.url, patience_s=60.0)
    for _ in range(10):
        assert caller.fetch().data == DOCUMENT
    before = caller.waited_s
    with pytest.raises(UnreachableError):
        caller.fetch()
    assert caller.waited_s - before == pytest.approx(60, abs=1)


@pytest.mark.parametrize(
    "answer", [refusal(400, "INVALID_SYMBOL"), http(body=b"<html>")], ids=["a refusal", "a wrong answer"]
)
def test_what_is_final_for_one_window_ends_a_silence_too(
    call: Callable[..., Caller], upstream: MakeUpstream, answer: Answer
) -> None:
    def refuse(body: Body) -> Whole:
        if body.text.whole() != DOCUMENT:
            raise DecodeError("no JSON")
        return read_whole(body)

    server = upstream(in_turn(*[http(503)] * 6, answer, *[http(503)] * 6, http(body=DOCUMENT)))
    caller = call(server.url, patience_s=40.0)
    with pytest.raises((SymbolError, DecodeError)):
        caller.client.fetch(WINDOW, caller.spent, refuse)
    assert caller.client.fetch(WINDOW, caller.spent, refuse).data == DOCUMENT


def test_a_proxy_s_504_for_a_whole_patience_is_an_outage(call: Callable[..., Caller], upstream: MakeUpstream) -> None:
    callers: list[Caller] = []

    def fail_slowly(_: Asked) -> bytes:
        callers[0].clock.now_s += 40
        return http(504, HTML)

    callers.append(call(upstream(fail_slowly).url, patience_s=100.0))
    for _ in range(2):
        with pytest.raises(TooHeavyError):
            callers[0].fetch()
    with pytest.raises(UnreachableError, match=r"no good answer for 100 s .*504"):
        callers[0].fetch()

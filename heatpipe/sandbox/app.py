"""The emulated API over HTTP: keys, tiers, weights, errors and bodies, as the vendor documents them. Loopback only.

Written from the vendor's documentation alone and importing nothing of heatpipe outside this package, so that one
misreading cannot pass on both sides. Where the documentation is silent, the sandbox assumes, and says so here:

* A request is looked at in this order: key (401), parameters (400), what the tier sells (403), budget (429). Whoever
  is refused pays nothing.
* ``[from, from + period)`` is half-open, a point's timestamp is its interval's start, and an interval that has not
  ended by the sandbox's clock is left out. A span that begins before the tier's history is refused whole.
* ``from`` without a period, or with period 0, gets an empty answer; so does a coin without points: ``"series": []``.
* Parameters that the documentation does not know are INVALID_PARAMS: a misspelt one should not pass in silence.
* Of more levels than ``maxDepth``, those nearest the price are kept.

It misbehaves on purpose as `faults` has it. Rules that refuse come before all of the above; what else they spoil, and
what the dice strike, are answers that would have had status 200.
"""

from __future__ import annotations

import asyncio
import ctypes
import gzip
import io
import logging
import math
import re
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from fractions import Fraction
from itertools import chain
from sys import intern
from typing import BinaryIO, cast

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from heatpipe.sandbox.faults import (
    ECHO_KEY_ENCODING,
    HANG,
    KEY,
    RESET,
    Damage,
    Delivery,
    Document,
    Mischief,
    Refusal,
    Rule,
    Strike,
    Text,
)
from heatpipe.sandbox.market import CHUNK_POINTS, INCLUDED_DEPTH, Market, Points
from heatpipe.sandbox.wire import BadlySent, Protocol, Written

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
KEY_HEADER = "X-Kiyotaka-Key"

DATA_TYPE = "HYPERLIQUID_LIQUIDATION_AGG"
WEIGHT_MULTIPLIER = 5
MAX_POINTS = 5000
POINTS_PER_WEIGHT_STEP = 1000
INTERVALS_S = {
    "MINUTE": 60,
    "FIVE_MINUTES": 300,
    "FIFTEEN_MINUTES": 900,
    "HOUR": 3600,
    "FOUR_HOURS": 14_400,
    "DAY": 86_400,
    "WEEK": 604_800,
}
EXCHANGES = ("HYPERLIQUID",)
PARAMETERS = frozenset(
    (
        "type",
        "exchange",
        "coin",
        "interval",
        "from",
        "period",
        "maxDepth",
        "flatten",
        "transform.normalize.quote",
        "sortDirection",
    )
)
# Names that no coin has, for whoever wants to see INVALID_SYMBOL from a market that knows every other name.
UNKNOWN_COIN = re.compile(r"(UNKNOWN|NOPE).*|.*[\x00-\x1f\x7f].*|", re.DOTALL)

GZIP_LEVEL = 1

# What keeps the memory bounded however long the sandbox serves, and whoever reads slowly.
LEDGER_BYTES = 32 << 20
"""Some 20,000 requests."""
ENTRY_BYTES = 700
PARAMETER_BYTES = 100
BODY_BYTES = 1 << 20
"""A body that is larger waits for its reader in a temporary file."""
CUT_POINTS = 1000
"""For an answer of so many points the market is asked once; for a longer one, chunk by chunk."""
TEXT_POINTS = 64
"""So many snapshots are written down at a time: their numbers take much room on the way to text."""
MAKERS = 8
"""So many bodies are made at a time."""
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
"""As in glibc's malloc.h."""


@dataclass(frozen=True, slots=True)
class Tier:
    """What a key has been sold.

    Attributes
    ----------
    weight_per_minute, burst : int
        The bucket's inflow and its size.
    history_days : int
        How far back a request may reach; 0 is without limit.
    liquidations : bool
        Whether the data type of this sandbox is on the tier.
    """

    name: str
    weight_per_minute: int = 750
    burst: int = 1500
    history_days: int = 365
    liquidations: bool = True


ADVANCED = Tier("advanced")
ENTERPRISE = Tier("enterprise", history_days=0)
BASIC = Tier("basic", liquidations=False)


@dataclass(frozen=True, slots=True)
class Answered:
    """One request that the sandbox answered, as its ledger keeps it. Keys are not written down.

    Attributes
    ----------
    status : int
        0 where none was sent.
    weight : int
        What was paid.
    fault : str
        The name of what struck, by rule or dice; empty for an honest answer.
    """

    status: int
    weight: int
    path: str
    params: Mapping[str, str]
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """What a sandbox serves, to whom, and by which clock.

    Attributes
    ----------
    market : Market
        Where the levels come from.
    keys : mapping of str to Tier
        Whoever sends another key gets 401.
    latency_s : float
        How long every answer of ``/v1/points`` is held back.
    settle_s : float
        How long after its interval's end a point is published.
    clock : callable
        Unix seconds. Bucket, history, still-forming interval and the Date header all go by it.
    coins : tuple of str, optional
        The coins there are. Without it, every name but an empty one, one with control characters, or one that starts
        with UNKNOWN or NOPE.
    faults : tuple of Rule
        Which requests go wrong on purpose, and how; the first that hits, strikes.
    chaos : float
        Probability that an answer is damaged by dice, from 0 to 1.
    seed : int
        Of the dice; the market has its own.
    ledger : list of Answered
        Every request answered, in order; also at ``app.state.ledger``. Where it is full, the older half goes.
    ledger_bytes : int
        About what the ledger takes at most.
    """

    market: Market = field(default_factory=Market)
    keys: Mapping[str, Tier] = field(
        default_factory=lambda: {"sandbox-key": ADVANCED, "enterprise-key": ENTERPRISE, "basic-key": BASIC}
    )
    latency_s: float = 0.0
    settle_s: float = 0.0
    clock: Callable[[], float] = time.time
    coins: tuple[str, ...] | None = None
    faults: tuple[Rule, ...] = ()
    chaos: float = 0.0
    seed: int = 0
    ledger: list[Answered] = field(default_factory=list, compare=False)
    ledger_bytes: int = LEDGER_BYTES

    def __post_init__(self) -> None:
        if not 0 <= self.chaos <= 1:
            raise ValueError(f"chaos is a probability, from 0 to 1, not {self.chaos}")


def create_app(options: Options, *, on_start: Callable[[], None] = lambda: None) -> Starlette:
    """Make the application; every one has buckets of its own, full.

    Parameters
    ----------
    on_start : callable
        Called when the server is about to serve, its signal handlers in place.
    """
    service = _Service(options)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        on_start()
        yield

    app = Starlette(
        routes=[Route("/v1/points", service.points), Route("/v1/usage", service.usage)],
        exception_handlers={HTTPException: service.no_such_route, Exception: service.internal_error},
        lifespan=lifespan,
    )
    app.state.ledger = options.ledger
    return app


@contextmanager
def serve(options: Options, port: int = 0) -> Iterator[str]:
    """Serve from a thread of its own while the block lasts.

    Parameters
    ----------
    port : int
        On 127.0.0.1; 0 takes a free one.

    Yields
    ------
    str
        The base URL, such as ``http://127.0.0.1:43211``. Connections are accepted from here on.

    Raises
    ------
    OSError
        The port is taken.
    """
    with _listen(port) as listener:
        server = _server(options)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="sandbox", daemon=True)
        url = _url(listener)
        thread.start()
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join()


def run(options: Options, port: int, *, on_start: Callable[[str], None] = lambda _: None) -> None:
    """Serve until interrupted; Ctrl-C ends it quietly.

    Parameters
    ----------
    on_start : callable
        Called with the base URL once connections are accepted.

    Raises
    ------
    OSError
        The port is taken.
    """
    _keep_memory_small()
    # Stopped by a signal, uvicorn shuts down in order and then raises that signal again.
    with _listen(port) as listener, suppress(KeyboardInterrupt):
        _server(options, lambda: on_start(_url(listener))).run(sockets=[listener])


def _keep_memory_small() -> None:
    """Let all threads of this process share one heap, and give large arrays back: else each thread keeps its own."""
    pa.set_memory_pool(pa.system_memory_pool())
    with suppress(AttributeError, OSError):  # another C library than glibc
        tune = ctypes.CDLL(None).mallopt
        tune(M_ARENA_MAX, 1)
        tune(M_MMAP_THRESHOLD, BODY_BYTES)


def _listen(port: int) -> socket.socket:
    """Listen: connections queue from now on, whenever the server gets to them."""
    return socket.create_server((LOOPBACK, port))


def _url(listener: socket.socket) -> str:
    return f"http://{LOOPBACK}:{listener.getsockname()[1]}"


def _server(options: Options, on_start: Callable[[], None] = lambda: None) -> uvicorn.Server:
    config = uvicorn.Config(
        create_app(options, on_start=on_start),
        # The same on every machine, whatever faster parsers and loops happen to be installed.
        http=Protocol,
        loop="asyncio",
        ws="none",
        lifespan="on",
        # A client that hangs up, or a request cut off at the end, is no news; our own faults we log ourselves.
        log_config=None,
        log_level=logging.CRITICAL,
        access_log=False,
        date_header=False,  # ours goes by options.clock
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    config.load()  # here, so that what is wrong with it is raised in the caller's thread
    return uvicorn.Server(config)


# --- from a request to an answer ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: BinaryIO
    headers: Mapping[str, str] = field(default_factory=dict)
    weight: int = 0
    fault: str = ""
    strike: Strike | None = None


class _RefusedError(Exception):
    """A request that gets an error body; raised by whoever notices, answered in one place."""

    def __init__(self, status: int, error: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message
        self.retry_after_s = retry_after_s


class _Service:
    """The endpoints, and what lives between requests: a bucket for each key, and whose turn mischief has come to."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._mischief = Mischief(options.faults, options.chaos, options.seed)
        self._buckets = {key: _Bucket(tier, options.clock) for key, tier in options.keys.items()}
        self._makers = asyncio.Semaphore(MAKERS)
        self._damaged = asyncio.Semaphore(1)
        self._noted_bytes = 0

    async def points(self, request: Request) -> Response:
        strike = self._mischief.by_rule(request.query_params)
        try:
            answer = await self._points(request, strike)
        except _RefusedError as refused:
            answer = _refusal(refused)
            await asyncio.sleep(self._options.latency_s)
        return self._send(request, answer)

    async def usage(self, request: Request) -> Response:
        try:
            key = self._key(request)
        except _RefusedError as refused:
            return self._send(request, _refusal(refused))
        tier = self._options.keys[key]
        quota = {"tier": tier.name, "weight_per_minute": tier.weight_per_minute, "burst": tier.burst}
        available = math.floor(self._buckets[key].level())
        return self._send(request, _Answer(200, _json({**quota, "available": available})))

    async def no_such_route(self, request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        error = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(exc.status_code, "HTTP_ERROR")
        answer = _refusal(_RefusedError(exc.status_code, error, exc.detail))
        return self._send(request, _Answer(answer.status, answer.body, dict(exc.headers or {})))

    async def internal_error(self, request: Request, exc: Exception) -> Response:
        logger.error("the sandbox failed at %s", request.url, exc_info=exc)
        return self._send(request, _refusal(_RefusedError(500, "INTERNAL_ERROR", "Internal error")))

    async def _points(self, request: Request, strike: Strike | None) -> _Answer:
        if strike is not None and isinstance(strike.fault, Refusal):
            return self._refusal_on_purpose(strike.fault, request)
        key = self._key(request)
        tier = self._options.keys[key]
        now = self._options.clock()
        query = _parse(request.query_params, now, self._options.coins)
        _check_tier(query, tier, now)
        # Nothing is awaited between look and spend, and one thread runs the loop: two requests cannot spend the same.
        strike = strike or self._mischief.by_dice(request.query_params)
        if strike is not None and isinstance(strike.fault, Refusal):
            self._mischief.answered(request.query_params)
            return self._refusal_on_purpose(strike.fault, request)
        self._buckets[key].spend(query.weight)
        self._mischief.answered(request.query_params)
        published_s = math.floor((now - self._options.settle_s) / query.interval_s) * query.interval_s
        compress = _accepts_gzip(request.headers.get("Accept-Encoding", ""))
        await asyncio.sleep(self._options.latency_s)  # before the body is there: nobody waits with one in hand
        async with self._damaged if strike and isinstance(strike.fault, Damage) else nullcontext(), self._makers:
            body, fault = await run_in_threadpool(
                _body, self._options.market, query, published_s, compress, key, strike
            )
        headers = {"Vary": "Accept-Encoding"} | ({"Content-Encoding": "gzip"} if compress else {})
        if strike is not None and strike.fault == ECHO_KEY_ENCODING:
            headers["Content-Encoding"] = key
        return _Answer(200, body, headers, query.weight, fault, strike)

    def _refusal_on_purpose(self, fault: Refusal, request: Request) -> _Answer:
        key = request.headers.get(KEY_HEADER, "")
        if fault.html:
            return _Answer(
                fault.status, io.BytesIO(fault.html.encode()), {"Content-Type": "text/html"}, fault=fault.name
            )
        error, message = (text.replace(KEY, key) for text in (fault.error, fault.message))
        named_s = None if fault.as_date else fault.retry_after_s
        answer = _refusal(_RefusedError(fault.status, error, message, named_s))
        headers = dict(answer.headers)
        if fault.as_date and fault.retry_after_s is not None:
            headers["Retry-After"] = formatdate(math.ceil(self._options.clock() + fault.retry_after_s), usegmt=True)
        return _Answer(answer.status, answer.body, headers, fault=fault.name)

    def _key(self, request: Request) -> str:
        key = request.headers.get(KEY_HEADER, "")
        if key not in self._options.keys:
            raise _RefusedError(401, "INVALID_API_KEY", "Invalid or missing API key")
        return key

    def _send(self, request: Request, answer: _Answer) -> Response:
        """Every answer leaves through here."""
        delivery = answer.strike.fault if answer.strike and isinstance(answer.strike.fault, Delivery) else None
        status = 0 if delivery and delivery.name in (RESET.name, HANG.name) else answer.status
        self._note(status, answer, request)
        date = formatdate(self._options.clock(), usegmt=True)
        headers = {"Date": date, "Content-Type": "application/json", **answer.headers}
        if delivery and answer.strike:
            return BadlySent(answer.body, answer.status, headers, delivery, answer.strike.place)
        return Written(answer.body, answer.status, headers)

    def _note(self, status: int, answer: _Answer, request: Request) -> None:
        """Write a request into the ledger; forget the older half of one that has grown too large."""
        params = {intern(name): value for name, value in request.query_params.items()}
        ledger = self._options.ledger
        ledger.append(Answered(status, answer.weight, intern(request.url.path), params, answer.fault))
        self._noted_bytes += _size(ledger[-1])
        while self._noted_bytes > self._options.ledger_bytes and len(ledger) > 1:
            del ledger[: len(ledger) // 2]
            self._noted_bytes = sum(map(_size, ledger))


def _size(entry: Answered) -> int:
    """About how many bytes of memory an entry of the ledger takes."""
    return ENTRY_BYTES + sum(PARAMETER_BYTES + len(name) + len(value) for name, value in entry.params.items())


def _json(document: Mapping[str, object]) -> BinaryIO:
    return io.BytesIO(orjson.dumps(document))


def _refusal(refused: _RefusedError) -> _Answer:
    body: dict[str, object] = {"error": refused.error, "message": refused.message}
    if refused.retry_after_s is None:
        return _Answer(refused.status, _json(body))
    body["retry_after"] = refused.retry_after_s
    return _Answer(refused.status, _json(body), {"Retry-After": str(refused.retry_after_s)})


def _accepts_gzip(accepted: str) -> bool:
    """Whether gzip stands in Accept-Encoding, and not as refused (q=0)."""
    for offer in accepted.split(","):
        coding, _, quality = offer.replace(" ", "").partition(";")
        if coding.lower() in ("gzip", "*"):
            return re.fullmatch(r"q=0(\.0*)?", quality) is None
    return False


# --- parameters ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Query:
    coin: str
    interval: str
    start_s: int
    period_s: int
    depth: int
    flatten: bool
    usd: bool
    descending: bool

    @property
    def interval_s(self) -> int:
        return INTERVALS_S[self.interval]

    @property
    def weight(self) -> int:
        """What the request costs.

        ceil(ceil(points / 1000) * 5 * (1 + 0.2 * steps)), at least 1: with the multiplier 5 the fifths come out even,
        so whole numbers give it exactly.
        """
        thousands = -(-self.period_s // (self.interval_s * POINTS_PER_WEIGHT_STEP))
        depth_steps = (self.depth - 1) // INCLUDED_DEPTH
        return max(1, -(-thousands * WEIGHT_MULTIPLIER * (5 + depth_steps) // 5))


def _parse(params: Mapping[str, str], now_s: float, coins: tuple[str, ...] | None) -> _Query:
    unknown = sorted(set(params) - PARAMETERS)
    if unknown:
        raise _invalid(f"unknown parameter {unknown[0]!r}")
    if params.get("type") != DATA_TYPE:
        raise _invalid(f"type must be {DATA_TYPE}")
    if params.get("exchange", EXCHANGES[0]) not in EXCHANGES:
        raise _RefusedError(400, "INVALID_EXCHANGE", "unknown exchange")
    coin = params.get("coin", "")
    if (coin not in coins) if coins is not None else UNKNOWN_COIN.fullmatch(coin):
        raise _RefusedError(400, "INVALID_SYMBOL", f"unknown coin {coin!r}")
    interval = params.get("interval", "")
    if interval not in INTERVALS_S:
        raise _RefusedError(400, "INVALID_TIMEFRAME", f"unknown interval {interval!r}")
    period_s = _whole(params, "period", default=0)
    depth = _whole(params, "maxDepth", default=INCLUDED_DEPTH)
    if depth == 0:
        raise _invalid("maxDepth must be positive")
    return _Query(
        coin=coin,
        interval=interval,
        # A period alone asks for the last so many seconds.
        start_s=_whole(params, "from", default=max(0, math.floor(now_s) - period_s)),
        period_s=period_s,
        depth=depth,
        flatten=_choice(params, "flatten", {"": False, "false": False, "true": True}),
        usd=_choice(params, "transform.normalize.quote", {"": False, "USD": True}),
        descending=_choice(
            params,
            "sortDirection",
            {"": False, "SORT_DIRECTION_ASC": False, "SORT_DIRECTION_DESC": True},
        ),
    )


def _whole(params: Mapping[str, str], name: str, *, default: int) -> int:
    text = params.get(name)
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,12}", text):
        raise _invalid(f"{name} must be a whole number, not negative")
    return int(text)


def _choice(params: Mapping[str, str], name: str, choices: Mapping[str, bool]) -> bool:
    text = params.get(name, "")
    if text not in choices:
        raise _invalid(f"{name} must be one of {', '.join(filter(None, choices))}")
    return choices[text]


def _invalid(message: str) -> _RefusedError:
    return _RefusedError(400, "INVALID_PARAMS", message)


def _check_tier(query: _Query, tier: Tier, now_s: float) -> None:
    if not tier.liquidations:
        raise _RefusedError(403, "FORBIDDEN", f"Data type {DATA_TYPE} is not available on your tier")
    if query.period_s > MAX_POINTS * query.interval_s:
        raise _RefusedError(403, "FORBIDDEN", f"Point count exceeded: at most {MAX_POINTS} points per request")
    if tier.history_days and query.start_s < now_s - tier.history_days * 86_400:
        raise _RefusedError(
            403, "FORBIDDEN", f"Time range exceeds history depth of your tier ({tier.history_days} days)"
        )


# --- budget -------------------------------------------------------------------------------------------------------


class _Bucket:
    """A key's token bucket. Fractions: after waiting as long as it was told, a client finds exactly what it needs."""

    def __init__(self, tier: Tier, clock: Callable[[], float]) -> None:
        self._per_s = Fraction(tier.weight_per_minute, 60)
        self._burst = tier.burst
        self._clock = clock
        self._level = Fraction(tier.burst)
        self._seen_s = Fraction(clock())

    def level(self) -> Fraction:
        now_s = Fraction(self._clock())
        # A clock that was set back refills nothing until it is past where it was.
        if now_s > self._seen_s:
            self._level = min(Fraction(self._burst), self._level + (now_s - self._seen_s) * self._per_s)
            self._seen_s = now_s
        return self._level

    def spend(self, weight: int) -> None:
        missing = weight - self.level()
        if missing > 0:
            wait_s = math.ceil(missing / self._per_s)
            raise _RefusedError(429, "RATE_LIMITED", "Rate limit exceeded", retry_after_s=wait_s)
        self._level -= weight


# --- bodies -------------------------------------------------------------------------------------------------------


def _body(
    market: Market, query: _Query, published_s: int, compress: bool, key: str, strike: Strike | None
) -> tuple[BinaryIO, str]:
    """Return the body, and the name of the fault that is in it or in how it will be sent.

    A damage alone looks at all snapshots; else no more than a cut of them is in memory.
    """
    end_s = min(query.start_s + query.period_s, published_s)
    cut_s = (CUT_POINTS if query.period_s <= CUT_POINTS * query.interval_s else CHUNK_POINTS) * query.interval_s
    starts = range(query.start_s, end_s, cut_s)
    cuts = (
        market.snapshots(
            *(query.coin, query.interval_s, start_s, min(start_s + cut_s, end_s)), depth=query.depth, usd=query.usd
        )
        for start_s in (reversed(starts) if query.descending else starts)
    )
    if strike and isinstance(strike.fault, Damage):
        text, fault = strike.harm(_document(query, cuts, key))
    else:
        text, fault = _honest(query, cuts), strike.fault.name if strike else ""
    return _written(text, compress), fault


class _File(tempfile.SpooledTemporaryFile[bytes]):
    """A file that goes with its last user: a request may be cancelled before anybody has the answer in hand."""

    def __del__(self) -> None:
        self.close()


def _written(text: Text, compress: bool) -> BinaryIO:
    """Write a text down where it takes no memory; read it from its start."""
    body = cast("BinaryIO", _File(BODY_BYTES))
    packer = gzip.GzipFile("", "wb", GZIP_LEVEL, body, mtime=0) if compress else nullcontext(body)
    with packer as file:
        for piece in text:
            file.write(piece)
    body.seek(0)
    return body


def _honest(query: _Query, cuts: Iterator[Points]) -> Text:
    """Write down cut by cut what `_document` would write."""
    frame = _document(query, [])
    texts = chain.from_iterable(_snapshots(query, points) for points in cuts)
    first = next(texts, None)
    return frame.text() if first is None else frame.write(chain((first,), texts))


def _document(query: _Query, cuts: Iterable[Points], key: str = "") -> Document:
    """Write the snapshots as the vendor does; numbers in their shortest form."""
    order = slice(None, None, -1 if query.descending else 1)
    stamps_us: list[int] = []
    levels: list[int] = []
    snapshots: list[str] = []
    for points in cuts:
        stamps_us += points.timestamp_us.tolist()[order]
        levels += points.levels.tolist()[order]
        snapshots += _snapshots(query, points)
    return Document(
        identity={"type": DATA_TYPE, "interval": query.interval, "coin": query.coin},
        form="flat_points" if query.flatten else "points",
        stamps_us=stamps_us,
        levels=levels,
        snapshots=snapshots,
        span_us=(query.start_s * 1_000_000, (query.start_s + query.period_s) * 1_000_000),
        key=key,
    )


def _snapshots(query: _Query, points: Points) -> Iterator[str]:
    """Each snapshot as text, in the order of the answer."""
    starts = np.concatenate(([0], np.cumsum(points.levels)))
    order = -1 if query.descending else 1
    for first in range(0, len(points.levels), TEXT_POINTS)[::order]:
        some = slice(first, first + TEXT_POINTS)
        rows = slice(starts[some][0], starts[1:][some][-1])
        few = Points(points.timestamp_us[some], points.levels[some], points.price[rows], points.volume[rows])
        yield from (_flat(few) if query.flatten else _nested(few))[::order]


def _flat(points: Points) -> list[str]:
    stamps = pa.array(points.timestamp_us.astype(np.float64)).cast(pa.string()).to_pylist()
    return [
        f"{count},{stamp},{pairs}" if count else f"0,{stamp}"
        for count, stamp, pairs in zip(points.levels.tolist(), stamps, _pairs(points), strict=True)
    ]


def _nested(points: Points) -> list[str]:
    return [
        f'{{"Point":{{"timestamp":{{"s":{stamp_us // 1_000_000}}},"levels":[{pairs}]}}}}'
        for stamp_us, pairs in zip(points.timestamp_us.tolist(), _pairs(points), strict=True)
    ]


def _pairs(points: Points) -> list[str]:
    """For each snapshot, ``price,volume,price,volume`` as text.

    Nine levels in ten are what they were a minute ago, so every different number is written once and then picked.
    """
    numbers = pa.array(np.column_stack((points.price, points.volume)).ravel()).dictionary_encode()
    texts = numbers.dictionary.cast(pa.string()).take(numbers.indices)
    offsets = np.concatenate(([0], 2 * np.cumsum(points.levels))).astype(np.int32)
    snapshots: list[str] = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), texts), ",").to_pylist()
    return snapshots

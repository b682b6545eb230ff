"""Request to response body. The only file that knows httpx, retries and status codes."""

import contextlib
import email.utils
import json
import logging
import random
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from math import inf
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx

from heatpipe import __version__
from heatpipe.budget import LONGEST_HOLD_S, Lease
from heatpipe.config import LOOPBACK, Secret, Settings
from heatpipe.errors import (
    ClockError,
    ConfigError,
    HeatpipeError,
    HistoryError,
    KeyRefusedError,
    RateLimitedError,
    RequestError,
    SymbolError,
    TierError,
    TooHeavyError,
    TransientError,
    UnreachableError,
)
from heatpipe.inflate import Text
from heatpipe.model import Window, show_time
from heatpipe.upstream import LIQUIDATIONS, POINTS_PATH

MAX_REQUESTS: Final = 40
"""Requests that one window and its halves may cost, before no part of it is asked for once more or in halves."""
LOG: Final = logging.getLogger("heatpipe")
LOUD_FROM: Final = 4
"""From so many failures of one window on, whoever runs this is told without asking."""
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MOST_S: Final = 30.0
BYTES_PER_LEVEL: Final = 64
"""Cap on an answer: bytes per level that could be in it, headers counted as one. Real ones take about 16."""
ENVELOPE_BYTES: Final = 1 << 16
CLOCKS_AGREE_S: Final = 300.0
"""Apart by more, the upstream's clock and ours are warned about, and no absence is believed by its age."""
CLOCKS_APART_S: Final = 3600.0
"""Apart by more, one of them is wrong, and nothing can be asked for by it."""
FOREIGN_LOGGERS: Final = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy")

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Body:
    """An answer of status 200.

    Parameters
    ----------
    text : Text
        The document.
    wire_bytes : int
        Its size as it travelled.
    asked_at : float
        Unix seconds at which the request was sent: the earlier of our clock and the answer's ``Date``.
    dated : bool
        Whether the answer had a ``Date``, and our clock agrees with it.
    """

    text: Text
    wire_bytes: int
    asked_at: float
    dated: bool


class Client:
    """Speaks to the upstream: one pool of connections, one budget. Threads may share it.

    Parameters
    ----------
    settings : Settings
        Where, with which key, how long to wait.
    budget : Lease
        Every attempt spends its weight there first.
    sleep : callable
        Sleeps for so many seconds between attempts; may raise to end the wait.
    clock : callable
        Unix seconds.
    monotonic : callable
        Seconds for measuring patience.
    """

    def __init__(
        self,
        settings: Settings,
        budget: Lease,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._budget = budget
        self._sleep = sleep
        self._clock = clock
        self._monotonic = monotonic
        self._answered = False
        self._clocks_agreed = self._clocks_told = False
        self._heard_at = -inf
        self._spellings = _spell_key(settings.key().reveal())
        # Plain HTTP, on loopback, needs no certificates to be loaded.
        self._tls = httpx.create_ssl_context() if settings.url.startswith("https:") else False
        self._own = threading.local()
        self._lines: list[_Line] = []
        self._mask = _Mask(self.clean)
        for name in FOREIGN_LOGGERS:
            logging.getLogger(name).addFilter(self._mask)

    def close(self) -> None:
        """Close the connections, those of requests in flight as well."""
        for line in self._lines:
            line.close()
        for name in FOREIGN_LOGGERS:
            logging.getLogger(name).removeFilter(self._mask)

    def _line(self) -> "_Line":
        """Return the calling thread's connection."""
        if not hasattr(self._own, "line"):
            self._own.line = _Line(self._open())
            self._lines.append(self._own.line)
        line: _Line = self._own.line
        return line

    def _open(self) -> httpx.Client:
        return httpx.Client(
            base_url=self._settings.url,
            headers={
                self._settings.key_header: self._settings.key().reveal(),
                "User-Agent": f"heatpipe/{__version__}",
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
            },
            timeout=self._settings.timeout_s,
            limits=httpx.Limits(max_connections=1),
            follow_redirects=False,
            verify=self._tls,
            # A proxy from the environment would carry a loopback request, with its key in clear, off this machine.
            trust_env=urlsplit(self._settings.url).hostname not in LOOPBACK,
        )

    def fetch(self, window: Window, spent: "Spent", read: Callable[[Body], _Read]) -> _Read:
        """Ask for one window, trying again while the fault is a passing one; return what was read in the answer.

        Spends the window's weight with every attempt.

        Parameters
        ----------
        window : Window
            What to ask for.
        spent : Spent
            Counts the requests and their weight.
        read : callable
            Makes something of the body. A text that is damaged on its way is noticed only by who reads it.

        Raises
        ------
        TransientError
            The fault did not pass within the patience.
        TooHeavyError, RequestError, ConfigError
            As the upstream said; see `heatpipe.errors`.
        DecodeError
            As `read` raises it.
        """
        patience = _Patience(self._settings.patience_s)
        backoffs = _backoffs()
        began = self._monotonic()
        while True:
            self._wait_for_budget(window, patience)
            started = self._monotonic()
            reading_s = 0.0  # what `read` waits for is no failing of the upstream's
            try:
                body = self._ask(window, spent)
                self._answered = True
                self._budget.answered()
                received = self._monotonic()
                try:
                    return read(body)
                finally:
                    reading_s = self._monotonic() - received
            except RateLimitedError as exc:
                self._budget.hold(exc.retry_after_s)
                fault: TransientError = exc
                if (exc.retry_after_s or 0.0) > patience.left_s:
                    raise
            except TransientError as exc:
                fault = exc
                if patience.left_s > 0:
                    self._sleep(next(backoffs))
            patience.lose(fault, self._monotonic() - started - reading_s)
            if patience.left_s <= 0:
                raise self._last_word(fault, began)
            if not isinstance(fault, RateLimitedError):  # to be told to wait is no attempt
                spent.commit()
            level = logging.INFO if patience.failures < LOUD_FROM else logging.WARNING
            LOG.log(level, "trying again: %s", fault)

    def _last_word(self, fault: TransientError, began: float) -> HeatpipeError:
        """Tell a window that will not come from an upstream that answers nothing to anyone."""
        if self._settings.patience_s and self._heard_at < began:
            url, patience_s = self._settings.url, self._settings.patience_s
            return UnreachableError(
                f"no answer of any kind for {patience_s:g} s ({fault}); is {url} the API's URL, and the network up? "
                "What had come is on disk, the same command fetches the rest"
            )
        return fault

    def _wait_for_budget(self, window: Window, patience: "_Patience") -> None:
        started = self._monotonic()
        try:
            held_s = self._budget.spend(window.weight, patience_s=patience.left_s, sleep=self._sleep)
        except RateLimitedError as exc:
            raise RateLimitedError(f"{window}: {exc}, and patience_s allows no more", exc.retry_after_s) from exc
        if isinstance(patience.fault, RateLimitedError):
            patience.left_s -= self._monotonic() - started  # the budget that it emptied has to fill first
        elif patience.fault is not None:
            patience.left_s -= held_s  # but a hold that a neighbour caused is no failing of a new window

    def _ask(self, window: Window, spent: "Spent") -> Body:
        """Send one request; return its body or raise what its answer means."""
        asked_at = self._clock()
        spent.add(window.weight)
        line = self._line()
        request = line.http.build_request(
            "GET", POINTS_PATH, params=_parameters(window), extensions={"trace": line.trace}
        )
        try:
            with line.within(self._longest_s), contextlib.closing(line.http.send(request, stream=True)) as response:
                self._heard_at = self._monotonic()
                date = _date_of(response)
                dated = self._compare_clocks(date, asked_at)
                if response.status_code != httpx.codes.OK:
                    raise self._refusal(response, window)
                text, wire_bytes = self._receive(response, window)
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            spent.take_back(window.weight)  # nothing was sent
            raise TransientError(f"{window}: no connection to {self._settings.url} ({self._clean(str(exc))})") from exc
        except httpx.TimeoutException as exc:
            raise TransientError(
                f"{window}: no answer from {self._settings.url} within {self._settings.timeout_s:g} s"
            ) from exc
        except httpx.HTTPError as exc:
            said = self._clean(str(exc)) or type(exc).__name__
            if line.was_cut:
                said = f"the answer has not come within {self._longest_s:g} s"
            # Not "from exc": a traceback would print what an answer that is no HTTP says, which may echo the key.
            raise TransientError(f"{window}: {self._settings.url}: {said}") from None
        return Body(text, wire_bytes, asked_at if date is None else min(asked_at, date), dated)

    def _compare_clocks(self, date: float | None, asked_at: float) -> bool:
        """Return whether an answer's Date lies between the request and now, within a few minutes.

        Raises
        ------
        ClockError
            They are more than an hour apart.
        TransientError
            They are, but agreed before in this run: this one answer is odd.
        """
        if date is None:
            return False
        now = self._clock()
        apart_s = max(asked_at - date, date - now)
        if apart_s <= CLOCKS_AGREE_S:
            self._clocks_agreed = True
            return True
        clocks = f"the clock here says {show_time(now)}, {self._settings.url} says {show_time(date)}"
        if apart_s > CLOCKS_APART_S:
            if self._clocks_agreed:
                raise TransientError(f"{clocks}; they agreed before")
            raise ClockError(f"{clocks}: set this machine's clock right, then run the same command again")
        if not self._clocks_told:
            self._clocks_told = True
            LOG.warning("%s; intervals count as closed by the earlier one: set this machine's clock right", clocks)
        return False

    @property
    def _longest_s(self) -> float:
        """Seconds that one answer may take; while bytes drip in, no time-out ends it."""
        return self._settings.patience_s + 2 * self._settings.timeout_s  # silence ends by its own name, before this

    def _receive(self, response: httpx.Response, window: Window) -> tuple[Text, int]:
        """Read a body, no further than its cap; return it and its size on the wire."""
        cap = body_cap(window)
        compressed = self._is_compressed(response, window)
        chunks: list[bytes] = []
        wire_bytes = 0
        for chunk in response.iter_raw():
            chunks.append(chunk)
            wire_bytes += len(chunk)
            if wire_bytes > cap:
                raise TooHeavyError(f"{window}: the answer is larger than {cap:,} bytes")
        return Text(chunks, compressed=compressed, cap=cap, name=str(window)), wire_bytes

    def _is_compressed(self, response: httpx.Response, window: Window) -> bool:
        named = response.headers.get("Content-Encoding", "")
        encoding = named.strip().lower()
        if encoding not in ("", "identity", "gzip"):
            raise TransientError(f"{window}: the answer is encoded as {self._clean(named)!a}, asked was gzip")
        return bool(encoding == "gzip")

    def _refusal(self, response: httpx.Response, window: Window) -> HeatpipeError:
        """Return the error that an answer other than 200 means."""
        code, message, retry_after_s = self._read_refusal(response, window)
        status = response.status_code
        said = f"{window}: the upstream answered {status}" + (f" {code}" if code else "")
        said += f" ({message})" if message else ""
        if status == httpx.codes.TOO_MANY_REQUESTS:
            named = _retry_after(response.headers, _date_of(response) or self._clock())
            return RateLimitedError(said, retry_after_s if named is None else named)
        if status == httpx.codes.GATEWAY_TIMEOUT:
            return TooHeavyError(said)
        if status == httpx.codes.UNAUTHORIZED:
            return KeyRefusedError("the upstream refuses the API key (401); check KIYOTAKA_API_KEY and the API's URL")
        if status == httpx.codes.FORBIDDEN:
            return _forbidden(said, f"{code} {message}".lower())
        if status == httpx.codes.BAD_REQUEST:
            return SymbolError(said) if code == "INVALID_SYMBOL" else RequestError(said)
        elsewhere = status == httpx.codes.NOT_FOUND or response.is_redirect
        if elsewhere and not self._answered:  # later on it is as passing as any other
            return ConfigError(f"{said}; is {self._settings.url} the API's URL?")
        return TransientError(said)

    def _read_refusal(self, response: httpx.Response, window: Window) -> tuple[str, str, float | None]:
        """Return `error`, `message` and `retry_after` of an error body, as far as it has them."""
        chunks: list[bytes] = []
        size = 0
        body = bytearray()
        try:
            compressed = self._is_compressed(response, window)
            for chunk in response.iter_raw():
                chunks.append(chunk)
                size += len(chunk)
                if size > ENVELOPE_BYTES:
                    return "", "", None
            with contextlib.suppress(TransientError):  # cut short, it may say enough
                for piece in Text(chunks, compressed=compressed, cap=ENVELOPE_BYTES):
                    body += piece
            found = json.loads(body)
        except (httpx.HTTPError, TransientError, TooHeavyError, ValueError, RecursionError):
            return "", "", None
        if not isinstance(found, dict):
            return "", "", None
        return (
            self._clean(str(found.get("error", ""))),
            self._clean(str(found.get("message", ""))),
            _seconds(found.get("retry_after")),
        )

    def _clean(self, text: str) -> str:
        return self.clean(text)[:200].strip()

    def clean(self, text: str) -> str:
        """Make a text with foreign parts fit for a terminal: one line, no control characters, no key."""
        for spelling in self._spellings:
            text = text.replace(spelling.reveal(), "(key)")
        return "".join(c if c.isprintable() else " " for c in text)

    def redact(self, body: bytes) -> bytes:
        """Return an answer without the key, should the upstream have echoed it."""
        for spelling in self._spellings:
            body = body.replace(spelling.reveal().encode(), b"(key)")
        return body


class _Patience:
    """How long one window may go on failing, and of what it failed last."""

    def __init__(self, seconds: float) -> None:
        self.left_s = seconds
        self.failures = 0
        self.fault: TransientError | None = None

    def lose(self, fault: TransientError, seconds: float) -> None:
        """Count a failed attempt."""
        self.left_s -= seconds
        self.failures += 1
        self.fault = fault


class _Line:
    """One thread's connection, and a clock that cuts it where an answer takes too long.

    A time-out of httpx's begins anew with every byte: an answer that drips in, headers too, would never end.
    """

    def __init__(self, http: httpx.Client) -> None:
        self.http = http
        self.was_cut = False
        self._socket: socket.socket | None = None

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Cut the connection unless the block ends in time."""
        self.was_cut = False
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Take note of the socket when httpcore says that it has connected."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")

    def close(self) -> None:
        """End the connection; a thread that waits for an answer there is told at once."""
        self._shut()
        self.http.close()

    def _cut(self) -> None:
        self.was_cut = True
        self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class _Mask(logging.Filter):
    """Makes what other libraries log fit to be read: at DEBUG they log an answer's headers, which may echo the key."""

    def __init__(self, clean: Callable[[str], str]) -> None:
        super().__init__()
        self._clean = clean

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._clean(record.getMessage()), None
        return True


class Spent:
    """What one window, with all that it was split into, has cost so far.

    Attributes
    ----------
    requests, weight : int
        What was sent, and its weight.
    committed : int
        Requests that were sent or stand in line; one that was told to wait, by a 429, counts once.
    fruitful : bool
        Whether any part of it has come.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.weight = 0
        self.committed = 0
        self.fruitful = False
        self._lock = threading.Lock()

    def add(self, weight: int) -> None:
        """Count one request that is sent."""
        with self._lock:
            self.requests += 1
            self.weight += weight

    def take_back(self, weight: int) -> None:
        """Count one less: it could not be sent."""
        with self._lock:
            self.requests -= 1
            self.weight -= weight

    def commit(self) -> None:
        """Count one request that will be sent."""
        with self._lock:
            self.committed += 1

    def allows(self, more: int) -> bool:
        """Whether so many more requests are within what one window may cost."""
        return self.committed + more <= MAX_REQUESTS


def _spell_key(key: str) -> list[Secret]:
    """Return the ways in which an answer may repeat the key: as it stands, in JSON, in a URL."""
    quoted = json.dumps(key)[1:-1]
    spellings = (key, quoted, quoted.replace("/", "\\/"), urllib.parse.quote(key, safe=""))
    return [Secret(spelling) for spelling in dict.fromkeys(spellings)]


def body_cap(window: Window) -> int:
    """Most bytes that an honest answer for a window can have."""
    return ENVELOPE_BYTES + BYTES_PER_LEVEL * window.points * (window.series.depth + 1)


def show_request(window: Window) -> str:
    """Return the request for a window as a person would repeat it, without the key."""
    return f"GET {POINTS_PATH}?{httpx.QueryParams(_parameters(window))}"


def _parameters(window: Window) -> dict[str, str]:
    series = window.series
    parameters = {
        "type": LIQUIDATIONS.name,
        "coin": series.coin,
        "interval": series.interval,
        "from": str(window.span.start),
        "period": str(window.span.seconds),
        "maxDepth": str(series.depth),
        "flatten": "true",
    }
    if series.unit == "usd":
        parameters["transform.normalize.quote"] = "USD"
    return parameters


def _backoffs() -> Iterator[float]:
    """Seconds between attempts: doubling to a cap, each with full jitter, so that a crowd spreads."""
    most = BACKOFF_FIRST_S
    while True:
        yield random.uniform(most / 4, most)  # noqa: S311 - nothing here is a secret
        most = min(BACKOFF_MOST_S, 2 * most)


def _forbidden(said: str, text: str) -> HeatpipeError:
    """Tell the three reasons of a 403 apart; the vendor documents no codes for them, so by their words."""
    if re.search(r"history depth|time range|beyond .*history|history .*exceed", text):
        return HistoryError(f"{said}; set history_days to what your tier sells")
    if re.search(r"point count|points? (limit|per request|exceed)|(many|number of) points", text):
        return TierError(f"{said}; your tier allows fewer points a request than {LIQUIDATIONS.points_per_weight}")
    return TierError(f"{said}; liquidation heatmaps need the Advanced or Enterprise tier")


def _seconds(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        return None
    return float(min(value, LONGEST_HOLD_S))


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a Retry-After header names, as a number or as an HTTP date."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    at = _http_date(text)
    return None if at is None else max(0.0, at - now)


def _date_of(response: httpx.Response) -> float | None:
    return _http_date(response.headers.get("Date", ""))


def _http_date(text: str) -> float | None:
    try:
        at = email.utils.parsedate_to_datetime(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None

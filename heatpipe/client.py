"""Request to response body. The only file that knows httpx, retries and status codes."""

import contextlib
import email.utils
import importlib.util
import json
import logging
import os
import random
import re
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from math import inf
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx

from heatpipe import __version__
from heatpipe.budget import LONGEST_HOLD_S, Lease
from heatpipe.config import LOOPBACK, Settings
from heatpipe.errors import (
    ClockError,
    ConfigError,
    EnvelopeError,
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
from heatpipe.redaction import Redactor, Secret
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
MOST_BODY_BYTES: Final = 400 << 20
"""Cap on any answer, however deep its snapshots."""
MOST_WIRE_BYTES: Final = 96 << 20
"""Cap on any answer as it travels, compressed or not: so it is kept until it was read."""
ARRIVALS_BYTES: Final = 48 << 20
"""What all answers may take, as they travelled, that are on their way or wait to be read; the first may take more."""
HEAD_BYTES: Final = 1 << 18
"""What may come before the body of an answer: its headers, and answers of 1xx before it."""
FRAME_BYTES: Final = 8 << 20
"""What may come around the chunks of a body."""
ENVELOPE_BYTES: Final = 1 << 16
CLOCKS_AGREE_S: Final = 300.0
"""Apart by more, the upstream's clock and ours are warned about, and no absence is believed by its age."""
CLOCKS_APART_S: Final = 3600.0
"""Apart by more, one of them is wrong, and nothing can be asked for by it."""
CHUNK_BYTES: Final = 1 << 16
"""What comes in smaller pieces is put together to so much: a piece takes memory of its own."""
MOST_PIECES: Final = 1 << 17
"""Pieces that an answer may come in: each takes time of its own."""
UNHEARD_S: Final = 5.0
"""How long a connection that is refused on this machine is tried for, where nothing was ever heard."""
LINGER_S: Final = 0.5
"""How long to wait, behind an answer, for the end of its connection, which was asked for: what comes instead was not,
and then what was read may not be the answer either."""
LINGER_LESS_S: Final = 0.05
"""The same, at an upstream that leaves its connections open nevertheless."""
ANSWER_BEGINS: Final = b"HTTP/1."
LATER_STATUSES: Final = (408, 425, 429)
"""Those from 400 to 499 that pass."""
FINAL_STATUSES: Final = {
    402: "the upstream asks for a payment",
    405: "is {url} the API's URL?",
    407: "a proxy asks for a user and a password; they belong into HTTPS_PROXY",
    410: "is {url} the API's URL?",
    413: "the upstream, or a proxy on the way, takes no request of this size",
    422: "the upstream can make nothing of the request; is {url} the API's URL?",
    431: "the upstream, or a proxy on the way, takes no headers of this size; is the API key right?",
    451: "the upstream may not answer, for legal reasons",
}
"""Refusals that stay, whatever is asked for: what to think of each."""
PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy")
NO_PROXY_URL: Final = (
    "it is not the URL of a proxy, such as http://proxy.example.org:3128 (its value is not shown here)"
)
FOREIGN_LOGGERS: Final = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy", "httpcore.socks")

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
        self._heard = False
        self._silence = _Silence(monotonic)
        self._arrivals = _Arrivals(ARRIVALS_BYTES)
        self._redactor = Redactor(settings.key())
        # Plain HTTP, on loopback, needs no certificates to be loaded.
        self._tls = load_certificates() if settings.url.startswith("https:") else False
        if urlsplit(settings.url).hostname not in LOOPBACK:
            check_proxies()
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
            auth=_KeyAuth(self._settings.key_header, self._settings.key()),
            headers={
                "User-Agent": f"heatpipe/{__version__}",
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
                "Connection": "close",
            },
            timeout=self._settings.timeout_s,
            # No connection is used twice: what came there unasked would be taken for the next answer.
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=0),
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
        while True:
            self._wait_for_budget(window, patience)
            began_s = self._silence.now_s()
            try:
                return self._try(window, spent, read, patience)
            except TooHeavyError as exc:
                if self._quiet_left_s(exc) <= 0:
                    raise self._unreachable(exc) from exc
                raise
            except TransientError as exc:
                fault = exc.with_traceback(None)  # its frames hold what came
            self._silence.goes_on(began_s)
            named_s = 0.0  # what comes before that is in vain
            if isinstance(fault, RateLimitedError):
                self._budget.hold(fault.retry_after_s)
                named_s = fault.retry_after_s or 0.0
            elif patience.left_s > 0:
                with self._charged(patience):
                    self._sleep(max(0.0, min(next(backoffs), self._quiet_left_s(fault))))
            patience.note(fault)
            if self._quiet_left_s(fault) <= named_s:
                raise self._unreachable(fault) from fault
            if patience.left_s <= named_s:
                raise fault
            if not isinstance(fault, RateLimitedError):  # to be told to wait is no attempt
                spent.commit()
            level = logging.INFO if patience.failures < LOUD_FROM else logging.WARNING
            LOG.log(level, "trying again: %s", fault)

    def _try(self, window: Window, spent: "Spent", read: Callable[[Body], _Read], patience: "_Patience") -> _Read:
        """Send one request, and let its answer be read."""
        with self._arrivals.counted() as arrival:
            with self._charged(patience):
                body = self._ask(window, spent, arrival)
            return self._read(body, read)

    def _read(self, body: Body, read: Callable[[Body], _Read]) -> _Read:
        """Let a body be read; what the reader waits for is no failing of the upstream's."""
        self._answered = True
        self._budget.answered()
        try:
            found = read(body)
        except TransientError:
            raise
        except HeatpipeError:
            self._silence.ends()
            raise
        self._silence.ends()
        return found

    @contextlib.contextmanager
    def _charged(self, patience: "_Patience") -> Iterator[None]:
        """Take the time that the block lasts from a window's patience, and from the run's."""
        started = self._monotonic()
        with self._silence.counted():
            try:
                yield
            finally:
                patience.left_s -= self._monotonic() - started

    def _quiet_left_s(self, fault: HeatpipeError) -> float:
        """For how much longer nothing may come before the run ends."""
        return self._longest_quiet_s(fault) - self._silence.lasted_s()

    def _longest_quiet_s(self, fault: HeatpipeError) -> float:
        longest_s = self._settings.patience_s or inf  # without patience each window is asked for once
        if isinstance(fault, _NobodyListensError) and not self._heard:
            longest_s = min(longest_s, UNHEARD_S)
        return longest_s

    def _unreachable(self, fault: HeatpipeError) -> UnreachableError:
        """Say that nothing comes, for anyone."""
        url, longest_s = self._settings.url, self._longest_quiet_s(fault)
        if isinstance(fault, RateLimitedError):
            said = f"the upstream asks everyone to wait, for longer than patience_s allows ({fault})."
        elif self._heard:
            said = f"no good answer for {longest_s:g} s ({fault})."
        elif isinstance(fault, _NobodyListensError):
            said = f"no answer of any kind for {longest_s:g} s ({fault}); is {url} the API's URL?"
            said += " `heatpipe sandbox` serves one on this machine."
        else:
            said = f"no answer of any kind for {longest_s:g} s ({fault}); is {url} the API's URL, and the network up?"
        return UnreachableError(
            f"{said} What had come is on disk, the same command fetches the rest",
            is_there=self._silence.is_spoken and not isinstance(fault, RateLimitedError),
        )

    def _wait_for_budget(self, window: Window, patience: "_Patience") -> None:
        told_to_wait = isinstance(patience.fault, RateLimitedError)
        # the budget that it emptied has to fill first
        with self._charged(patience) if told_to_wait else contextlib.nullcontext():
            try:
                held_s = self._budget.spend(window.weight, patience_s=patience.left_s, sleep=self._sleep)
            except RateLimitedError as exc:
                if told_to_wait and self._quiet_left_s(exc) <= (exc.retry_after_s or 0.0):
                    raise self._unreachable(exc) from exc
                raise RateLimitedError(f"{window}: {exc}, and patience_s allows no more", exc.retry_after_s) from exc
        if patience.fault is not None and not told_to_wait:
            patience.left_s -= held_s  # but a hold that a neighbour caused is no failing of a new window

    def _ask(self, window: Window, spent: "Spent", arrival: "_Arrival") -> Body:
        """Send one request; return its body or raise what its answer means."""
        began_s = self._silence.now_s()
        answer = self._exchange(window, spent, arrival)
        if isinstance(answer, Body):
            return answer
        if answer.status < httpx.codes.INTERNAL_SERVER_ERROR and not isinstance(answer.meaning, TransientError):
            self._silence.ends()
        else:
            self._silence.goes_on(began_s, is_spoken=True)
        raise answer.meaning

    def _exchange(self, window: Window, spent: "Spent", arrival: "_Arrival") -> "Body | _Refusal":
        """Send one request; return what was answered."""
        asked_at = self._clock()
        spent.add(window.weight)
        line = self._line()
        request = line.http.build_request(
            "GET", POINTS_PATH, params=_parameters(window), extensions={"trace": line.trace}
        )
        fault: HeatpipeError
        try:
            with (
                line.within(self._longest_s, wire_cap(window)),
                contextlib.closing(line.http.send(request, stream=True)) as response,
            ):
                return self._hear_out(line, response, window, asked_at, arrival)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as exc:
            spent.take_back(window.weight)  # nothing was sent
            fault = self._no_connection(exc, window)
        except httpx.TimeoutException:
            fault = TransientError(
                f"{window}: no answer from {self._settings.url} within {self._settings.timeout_s:g} s"
            )
        except httpx.HTTPError as exc:
            said = self._clean(str(exc)) or type(exc).__name__
            if line.was_cut:
                said = f"the answer has not come within {self._longest_s:g} s"
            fault = TransientError(f"{window}: {self._settings.url}: {said}")
        except HeatpipeError:
            raise
        except BaseException as exc:
            self._forget_frames(exc)
            raise
        # Out here it has no context: a traceback would print what an answer that is no HTTP says, and what was sent.
        raise fault

    def _hear_out(
        self, line: "_Line", response: httpx.Response, window: Window, asked_at: float, arrival: "_Arrival"
    ) -> "Body | _Refusal":
        """Read an answer, and see that it is the only one."""
        self._heard = True
        if line.spoke_first:
            raise TransientError(f"{window}: {self._settings.url} answered before it was asked")
        date = _date_of(response)
        dated = self._compare_clocks(date, asked_at)
        answered_at = asked_at if date is None else min(asked_at, date)
        answer = self._receive(response, window, answered_at, dated, arrival)
        if line.said_more:
            raise TransientError(f"{window}: {self._settings.url} sent more than the answer")
        return answer

    def _forget_frames(self, exc: BaseException) -> None:
        """Take the frames of the libraries, where the key stands, from an exception; their lines become a note."""
        exc.add_note(self._redactor.clean("".join(traceback.format_tb(exc.__traceback__))))
        exc.__cause__ = exc.__context__ = exc.__traceback__ = None

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

    def _no_connection(self, exc: httpx.HTTPError, window: Window) -> HeatpipeError:
        """Return the error that a connection that did not come to be means."""
        url, said = self._settings.url, self._clean(str(exc))
        for cause in _causes(exc):
            if isinstance(cause, ssl.SSLCertVerificationError):
                return ConfigError(
                    f"the certificate of {url} is not trusted ({self._clean(cause.verify_message)}): is this clock "
                    "right? An authority of one's own is named with SSL_CERT_FILE"
                )
            if isinstance(cause, ConnectionRefusedError) and urlsplit(url).hostname in LOOPBACK:
                return _NobodyListensError(f"{window}: no connection to {url} ({said})")
        if isinstance(exc, httpx.ProxyError) and _is_final_at_proxy(said):
            return ConfigError(
                f"the proxy refuses the way to {url} ({said}); see the variables HTTPS_PROXY, ALL_PROXY and NO_PROXY"
            )
        through = "the proxy has " if isinstance(exc, httpx.ProxyError) else ""
        return TransientError(f"{window}: {through}no connection to {url} ({said})")

    @property
    def _longest_s(self) -> float:
        """Seconds that one answer may take; while bytes drip in, no time-out ends it."""
        return self._settings.patience_s + 2 * self._settings.timeout_s  # silence ends by its own name, before this

    def _receive(
        self, response: httpx.Response, window: Window, asked_at: float, dated: bool, arrival: "_Arrival"
    ) -> "Body | _Refusal":
        """Read an answer, no further than its cap."""
        if response.status_code != httpx.codes.OK:
            return _Refusal(response.status_code, self._refusal(response, window))
        compressed = _is_compressed(response)
        if compressed is None:
            named = self._clean(response.headers["Content-Encoding"])
            raise EnvelopeError(f"{window}: the answer is encoded as {named!a}, asked was gzip")
        pieces = _Pieces(wire_cap(window))
        for piece in response.iter_raw():
            if not pieces.take(piece):
                raise TooHeavyError(f"{window}: the answer {pieces.too_much}")
            arrival.grow(len(piece))
        text = Text(pieces.chunks(), compressed=compressed, cap=body_cap(window), name=str(window))
        return Body(text, pieces.size_bytes, asked_at, dated)

    def _refusal(self, response: httpx.Response, window: Window) -> HeatpipeError:
        """Return the error that an answer other than 200 means."""
        found = self._read_refusal(response)
        code, message = (self._clean(str(found.get(name) or "")) for name in ("error", "message"))
        status, url = response.status_code, self._settings.url
        said = f"{window}: the upstream answered {status}" + (f" {code}" if code else "")
        said += f" ({message})" if message else ""
        elsewhere = f"{said}; is {url} the API's URL?"
        match status:
            case httpx.codes.TOO_MANY_REQUESTS:
                named_s = _retry_after(response.headers, _date_of(response) or self._clock())
                return RateLimitedError(said, _seconds(found.get("retry_after")) if named_s is None else named_s)
            case httpx.codes.GATEWAY_TIMEOUT:
                return TooHeavyError(said)
            case httpx.codes.UNAUTHORIZED:
                return KeyRefusedError(
                    "the upstream refuses the API key (401); check KIYOTAKA_API_KEY and the API's URL"
                )
            case httpx.codes.FORBIDDEN if code:
                return _forbidden(said, f"{code} {message}".lower())
            case httpx.codes.FORBIDDEN if not self._answered:
                return ConfigError(f"{said}, and not as the API does: somebody in between refuses, or {url} is another")
            case httpx.codes.BAD_REQUEST:
                return SymbolError(said) if code == "INVALID_SYMBOL" else RequestError(said)
            case _ if status in FINAL_STATUSES:
                return ConfigError(f"{said}; {FINAL_STATUSES[status].format(url=url)}")
            case httpx.codes.NOT_FOUND if not self._answered:  # later on it is as passing as any other
                return ConfigError(elsewhere)
            case _ if response.is_redirect and not self._answered:
                return ConfigError(elsewhere)
        return TransientError(said)

    def _read_refusal(self, response: httpx.Response) -> dict[str, Any]:
        """Return an error body, if it is an object; nothing else."""
        compressed = _is_compressed(response)
        pieces = _Pieces(ENVELOPE_BYTES)
        body = bytearray()
        try:
            for piece in response.iter_raw():
                if not pieces.take(piece):
                    return {}
            if compressed is None:
                return {}
            with contextlib.suppress(TransientError):  # cut short, it may say enough
                for part in Text(pieces.chunks(), compressed=compressed, cap=ENVELOPE_BYTES):
                    body += part
            found = json.loads(body)
        except (httpx.HTTPError, TooHeavyError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _clean(self, text: str) -> str:
        return self.clean(text)[:200].strip()

    def clean(self, text: str) -> str:
        """Make a text with foreign parts fit for a terminal: one line, no control characters, no key."""
        return "".join(c if c.isprintable() else " " for c in self._redactor.clean(text))

    def redact(self, body: bytes) -> bytes:
        """Return an answer without the key, should the upstream have echoed it."""
        return self._redactor.clean_data(body)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An answer of another status than 200, and the error that it means."""

    status: int
    meaning: HeatpipeError


class _NobodyListensError(TransientError):
    """No connection: nobody listens at a port of this machine."""


class _Patience:
    """How long one window may go on failing, and of what it failed last."""

    def __init__(self, seconds: float) -> None:
        self.left_s = seconds
        self.failures = 0
        self.fault: TransientError | None = None

    def note(self, fault: TransientError) -> None:
        """Count a failed attempt."""
        self.failures += 1
        self.fault = fault


class _Silence:
    """How long nothing good has come, to anyone, although somebody asked for it. Threads share it.

    Its time passes only while somebody asks, or waits because of a fault: waits for our own budget are no failing.

    Parameters
    ----------
    monotonic : callable
        Seconds.

    Attributes
    ----------
    is_spoken : bool
        Whether there were answers nevertheless, such as that the upstream is in trouble.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._asking = 0
        self._counted_s = 0.0
        self._counted_at = monotonic()
        self._since_s: float | None = None
        self._ended_s = 0.0
        self.is_spoken = False

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Let its time pass while the block lasts; once, however many threads are in such a block."""
        with self._lock:
            self._pass()
            self._asking += 1
        try:
            yield
        finally:
            with self._lock:
                self._pass()
                self._asking -= 1

    def now_s(self) -> float:
        """Return its own time."""
        with self._lock:
            return self._pass()

    def goes_on(self, since_s: float, *, is_spoken: bool = False) -> None:
        """Note that an attempt has failed that began then."""
        with self._lock:
            self.is_spoken |= is_spoken
            if self._since_s is None:
                self._since_s = max(since_s, self._ended_s)

    def ends(self) -> None:
        """Note that something good has come."""
        with self._lock:
            self._since_s = None
            self._ended_s = self._pass()
            self.is_spoken = False

    def lasted_s(self) -> float:
        """Return for how long it has lasted."""
        with self._lock:
            return 0.0 if self._since_s is None else self._pass() - self._since_s

    def _pass(self) -> float:
        now = self._monotonic()
        if self._asking:
            self._counted_s += now - self._counted_at
        self._counted_at = now
        return self._counted_s


class _Pieces:
    """Puts the pieces of an answer together to chunks that are worth their memory.

    Attributes
    ----------
    size_bytes : int
        What has come.
    too_much : str
        Why it takes no more.
    """

    def __init__(self, cap: int) -> None:
        self.size_bytes = 0
        self.too_much = ""
        self._cap = cap
        self._count = 0
        self._chunks: list[bytes] = []
        self._last = bytearray()

    def take(self, piece: bytes) -> bool:
        """Take the next piece, unless it is too much."""
        self._count += 1
        self.size_bytes += len(piece)
        if self.size_bytes > self._cap:
            self.too_much = f"is larger than {self._cap:,} bytes"
        elif self._count > MOST_PIECES:
            self.too_much = f"comes in more than {MOST_PIECES:,} pieces"
        else:
            self._last += piece
            if len(self._last) >= CHUNK_BYTES:
                self._chunks.append(bytes(self._last))
                self._last.clear()
        return not self.too_much

    def chunks(self) -> list[bytes]:
        """Return all of it."""
        return [*self._chunks, bytes(self._last)]


class _Arrivals:
    """A bound on what answers take that are on their way, or wait to be read. Threads share it.

    Who finds it full reads no further until somebody is done; the first one reads on, or nobody would be.

    Parameters
    ----------
    most : int
        Bytes, as they travelled.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._line: list[_Arrival] = []
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def counted(self) -> Iterator["_Arrival"]:
        """Count one answer, which grows, until the block ends."""
        arrival = _Arrival(self._grow)
        try:
            yield arrival
        finally:
            with self._changed:
                self._size -= arrival.size_bytes
                if arrival.size_bytes:
                    self._line.remove(arrival)
                self._changed.notify_all()

    def _grow(self, arrival: "_Arrival", more: int) -> None:
        with self._changed:
            if not arrival.size_bytes:
                self._line.append(arrival)
            arrival.size_bytes += more
            self._size += more
            while self._size > self._most and self._line[0] is not arrival:
                self._changed.wait()


@dataclass(slots=True, eq=False)
class _Arrival:
    """One answer that is counted."""

    _grow: Callable[["_Arrival", int], None]
    size_bytes: int = 0

    def grow(self, more: int) -> None:
        """Count what has come, and wait until there is room for it."""
        if more:
            self._grow(self, more)


class _Line:
    """One thread's way to the upstream, a connection for each request, and a clock that cuts it where an answer takes
    too long: a time-out of httpx's begins anew with every byte, and an answer that drips in would never end.

    Attributes
    ----------
    was_cut : bool
        Whether the clock has ended the last request.
    spoke_first : bool
        Whether something came before the request was sent.
    said_more : bool
        Whether something came behind the answer.
    """

    def __init__(self, http: httpx.Client) -> None:
        self.http = http
        self.was_cut = self.spoke_first = self.said_more = False
        self._socket: socket.socket | None = None
        self._is_readable = False
        self._held = b""
        self._linger_s = LINGER_S
        self._size = self._most = self._cap = 0

    @contextlib.contextmanager
    def within(self, seconds: float, cap: int) -> Iterator[None]:
        """Cut the connection unless the block ends in time; read no more than a body of so many bytes can need."""
        self.was_cut = self.spoke_first = self.said_more = False
        self._cap = cap
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Follow what httpcore does: which connection it has made, when it sends, when it has read an answer."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._take(info["return_value"])
        elif event == "http11.send_request_headers.started":
            self.spoke_first |= self._hear(0.0)
        elif event == "http11.receive_response_headers.complete":
            self._most += FRAME_BYTES + self._cap
        elif event == "http11.receive_response_body.complete":
            self.said_more = self._hear(self._linger_s)

    def _take(self, stream: Any) -> None:
        """Note a connection's socket, and let httpcore read it in such parts that none goes on into another answer."""
        self._socket = stream.get_extra_info("socket")
        # Not with TLS within TLS, to a proxy: what is read past the inner one is lost to it.
        self._is_readable = stream.get_extra_info("ssl_object") in (None, self._socket)
        self._held = b""
        self._size, self._most = 0, HEAD_BYTES
        read_on = stream.read

        def read(max_bytes: int, timeout: float | None = None) -> bytes:
            data: bytes = self._held or read_on(max_bytes, timeout)
            self._size += 0 if self._held else len(data)
            if self._size > self._most:
                raise httpx.RemoteProtocolError("it sends far more than an answer's body")
            begins = data.find(ANSWER_BEGINS, 1)
            self._held = data[begins:] if begins > 0 else b""
            return data[:begins] if begins > 0 else data

        stream.read = read

    def _hear(self, seconds: float) -> bool:
        """Whether anything comes that is no part of an answer. It is lost, and the connection no good any more."""
        if self._held:
            return True
        if self._socket is None or not self._is_readable:
            return False
        try:
            self._socket.settimeout(seconds)
            return bool(self._socket.recv(CHUNK_BYTES).strip(b"\r\n"))
        except TimeoutError:
            self._linger_s = LINGER_LESS_S
        except OSError:  # nothing is there yet, or the connection is gone
            pass
        return False

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


class _KeyAuth(httpx.Auth):
    """Puts the key into a request as it leaves: until then it stands in nothing that a traceback would show."""

    def __init__(self, header: str, key: Secret) -> None:
        self._header = header
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request once."""
        request.headers[self._header] = self._key.reveal()
        yield request


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


def body_cap(window: Window) -> int:
    """Most bytes that an answer for a window is read for; an honest one that is larger has to come in halves."""
    return min(MOST_BODY_BYTES, ENVELOPE_BYTES + BYTES_PER_LEVEL * window.points * (window.series.depth + 1))


def wire_cap(window: Window) -> int:
    """Most bytes that an answer for a window may take as it travels."""
    return min(MOST_WIRE_BYTES, body_cap(window))


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


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """Yield an exception, and what caused it."""
    cause: BaseException | None = exc
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_final_at_proxy(said: str) -> bool:
    """Whether a proxy will say the same again: what it answers begins with a status, unless it speaks SOCKS."""
    status = re.match(r"([1-5]\d\d)\b", said)
    if status:
        return 400 <= int(status[1]) < 500 and int(status[1]) not in LATER_STATUSES
    return "could not connect" not in said or "not allowed" in said


def _is_compressed(response: httpx.Response) -> bool | None:
    """Whether a body is gzip; None where it is in an encoding that nobody here can read."""
    named = [name.strip().lower() for name in response.headers.get("Content-Encoding", "").split(",")]
    match [name for name in named if name not in ("", "identity")]:
        case []:
            return False
        case ["gzip" | "x-gzip"]:
            return True
    return None


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


# What the environment says of the way there


def load_certificates() -> ssl.SSLContext:
    """Return whom to trust: those of SSL_CERT_FILE or SSL_CERT_DIR, else those that certifi brings.

    Raises
    ------
    ConfigError
        There is no certificate; names the variable.
    """
    try:
        context = httpx.create_ssl_context()
    except OSError as exc:  # of which ssl.SSLError is one
        variables = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
        variable = next((name for name in variables if os.environ.get(name)), "the certificates")
        if (
            os.environ.get("SSLKEYLOGFILE")
            and not isinstance(exc, ssl.SSLError)
            and Path(os.environ[variable]).is_file()
        ):
            variable = "SSLKEYLOGFILE"  # written, not read
        reason = "it holds no certificate" if isinstance(exc, ssl.SSLError) else exc.strerror
        raise ConfigError(f"{variable}: cannot use {os.environ.get(variable, 'them')}: {reason}") from exc
    folders = os.environ.get("SSL_CERT_DIR", "")
    if folders and not os.environ.get("SSL_CERT_FILE") and not any(map(_holds_certificates, folders.split(os.pathsep))):
        raise ConfigError(f"SSL_CERT_DIR: there is no certificate in {folders} under a name such as 1a2b3c4d.0")
    return context


def _holds_certificates(folder: str) -> bool:
    try:
        return any(re.fullmatch(r"[0-9a-f]{8}\.[0-9]+", path.name) for path in Path(folder).iterdir())
    except OSError:
        return False


def check_proxies() -> None:
    """Raise a ConfigError that names the variable with which no connection could be made; its value may be a secret."""
    given = {name: text for name, text in os.environ.items() if name.lower() in PROXIES and text.strip()}
    for name, text in sorted(given.items()):
        if problem := _proxy_problem(text.strip()):
            raise ConfigError(f"{name}: {problem}")
    try:
        httpx.Client(verify=False).close()  # noqa: S501 - it asks nobody
    except (httpx.InvalidURL, ValueError) as exc:
        name = next((name for name in os.environ if name.lower() == "no_proxy"), "NO_PROXY")
        raise ConfigError(
            f"{name}: not a list of hosts such as localhost,10.0.0.1,::1,.example.org ({' '.join(str(exc).split())})"
        ) from exc


def _proxy_problem(text: str) -> str | None:
    try:
        url = httpx.Proxy(text if "://" in text else f"http://{text}").url
    except (httpx.InvalidURL, ValueError):
        return NO_PROXY_URL
    if not re.fullmatch(r"[^\s%/]+", url.host) or not (url.port is None or 0 < url.port < 65536):
        return NO_PROXY_URL
    if url.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        return "a SOCKS proxy needs an extra: pip install 'heatpipe[socks]'"
    return None

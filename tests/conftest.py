"""One real sandbox for all tests, in frozen time; and a small real server for what no sandbox would answer."""

import json
import os
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from types import FrameType
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pyarrow as pa
import pytest

import heatpipe
from heatpipe.config import Settings
from heatpipe.model import Series, Span
from heatpipe.redaction import Secret
from heatpipe.sandbox import Market, Options, Tier, serve
from heatpipe.sandbox.app import Answered

NOW_S: Final = 1_774_958_430
"""2026-03-31T12:00:30Z: half a minute into a minute, half a day into a day."""
TODAY: Final = 1_774_915_200
DATED: Final = {"Date": formatdate(NOW_S, usegmt=True)}
"""The header of an upstream whose clock agrees with a `Clock` that has not moved."""
MINUTE: Final = 60
HOUR: Final = 3600
DAY: Final = 86400

MARKET: Final = Market(gaps=True)
PLENTY: Final = {
    "sandbox-key": Tier("advanced", 10**9, 10**9),
    "basic-key": Tier("basic", 10**9, 10**9, liquidations=False),
}


@dataclass
class Clock:
    """Time that passes when somebody sleeps, and no sooner."""

    now_s: float = NOW_S
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        if not seconds < 1e9:
            raise OverflowError("timestamp too large to convert to C PyTime_t")  # as time.sleep does
        self.slept.append(seconds)
        self.now_s += seconds


# --- work, counted ------------------------------------------------------------------------------------------------


HEATPIPE: Final = str(Path(heatpipe.__file__).parent)


def count_lines(call: Callable[[], object]) -> int:
    """Count the lines of heatpipe that a call executes in this thread: work that does not depend on the machine."""
    lines = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace if frame.f_code.co_filename.startswith(HEATPIPE) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


# --- the sandbox --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sandbox:
    url: str
    options: Options
    clock: Clock

    @contextmanager
    def listening(self) -> Iterator[list[Answered]]:
        """What is answered while the block lasts, in the list once it is over."""
        heard: list[Answered] = []
        first = len(self.options.ledger)
        yield heard
        heard += self.options.ledger[first:]


@contextmanager
def run_sandbox(**options: Any) -> Iterator[Sandbox]:
    clock = Clock()
    defaults: dict[str, Any] = {"market": MARKET, "keys": PLENTY, "clock": clock}
    chosen = Options(**defaults | options)
    with serve(chosen) as url:
        yield Sandbox(url, chosen, clock)


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """The sandbox that all share: its clock stands, its market has gaps, its budget is never spent."""
    with run_sandbox() as running:
        yield running


@pytest.fixture(scope="session")
def today_s_sandbox() -> Iterator[Sandbox]:
    """The same by the clock on the wall: for processes of their own, which go by no other."""
    with run_sandbox(
        clock=time.time, keys={"sandbox-key": Tier("enterprise", 10**9, 10**9, history_days=0)}
    ) as running:
        yield running


@pytest.fixture
def make_sandbox() -> Iterator[Callable[..., Sandbox]]:
    """Start another one, with options of its own and a clock that may be set."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(run_sandbox(**options))


MakeSettings = Callable[..., Settings]


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> MakeSettings:
    """Make settings for a URL, the shared sandbox's by default, and a root below tmp_path."""

    def make(url: str | None = None, **changes: Any) -> Settings:
        defaults: dict[str, Any] = {
            "api_key": Secret("sandbox-key"),
            "url": url or request.getfixturevalue("sandbox").url,
            "weight_per_minute": 10**9,
            "burst": 10**9,
            "timeout_s": 10.0,
            "root": str(tmp_path / "data"),
        }
        return Settings(**defaults | changes)

    return make


# --- an upstream that says what it is told to ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, as it came over the wire; header names in lower case."""

    path: str
    params: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def span(self) -> Span:
        start = int(self.params["from"])
        return Span(start, start + int(self.params["period"]))

    @property
    def starts(self) -> range:
        """The start of each interval that is asked for."""
        return range(*self.span, Series("x", self.params["interval"]).interval_s)


Answer = bytes | Iterable[bytes]
RESET: Final = b"reset"
"""In place of an answer: the connection ends with a reset."""


def http(status: int = 200, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """Write a whole answer down."""
    given = {"Content-Length": str(len(body)), "Connection": "close"} | dict(headers or {})
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


Level = tuple[float, float]


def document(asked: Asked, points: Mapping[int, Iterable[Level]], **identity: str) -> bytes:
    """Write the flattened document for some points, by their second; `identity` lies about what was asked."""
    flat: list[float] = []
    for start, levels in points.items():
        pairs = [number for level in levels for number in level]
        flat += [len(pairs) // 2, start * 1e6, *pairs]
    params = asked.params
    identified = {"type": params["type"], "interval": params["interval"], "coin": params["coin"]} | identity
    return json.dumps({"series": [{"id": identified, "flat_points": flat}]}).encode()


def plain_levels(start: int) -> list[Level]:
    """Two levels that tell every minute from every other."""
    return [(100.5, start % 9973 / 7), (200.25, start % 101 + 0.1)]


def honest(asked: Asked) -> bytes:
    """Answer a request as an upstream in perfect order would."""
    return http(body=document(asked, {start: plain_levels(start) for start in asked.starts}))


@dataclass
class Upstream:
    url: str
    asked: list[Asked] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    """set when the test is over: who hangs, hangs on this"""

    @property
    def spans(self) -> list[Span]:
        return [asked.span for asked in self.asked]


class _Server(socketserver.ThreadingTCPServer):
    upstream: Upstream
    script: Callable[[Asked], Answer]

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no news."""


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        target = self.rfile.readline().decode("latin-1").split(" ")[1:2]
        if not target:
            return
        headers = {}
        while line := self.rfile.readline().decode("latin-1").strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        query = parse_qs(urlsplit(target[0]).query, keep_blank_values=True, strict_parsing=True)
        asked = Asked(urlsplit(target[0]).path, {name: values[-1] for name, values in query.items()}, headers)
        self.server.upstream.asked.append(asked)
        answer = self.server.script(asked)
        for piece in [answer] if isinstance(answer, bytes) else answer:
            if piece is RESET:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.rfile.close()
                self.connection.close()
                return
            self.wfile.write(piece)


MakeUpstream = Callable[[Callable[[Asked], Answer]], Upstream]


@pytest.fixture
def upstream() -> Iterator[MakeUpstream]:
    """Start a server on loopback that answers each request with what the script returns: bytes, piece by piece."""
    with ExitStack() as stack:

        def start(script: Callable[[Asked], Answer]) -> Upstream:
            server = stack.enter_context(_Server(("127.0.0.1", 0), _Handler))
            server.script = script
            server.upstream = Upstream(f"http://127.0.0.1:{server.server_address[1]}")
            thread = threading.Thread(target=server.serve_forever, args=(0.005,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            stack.callback(server.upstream.gone.set)
            return server.upstream

        yield start


# --- permissions --------------------------------------------------------------------------------------------------

Mortal = Callable[[str | Path], AbstractContextManager[None]]


@pytest.fixture
def mortal(tmp_path: Path) -> Mortal:
    """Make a folder below tmp_path belong to a user whom permissions bind, and be that user, even where root tests."""

    @contextmanager
    def be(folder: str | Path) -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        for path in (Path(folder), *Path(folder).rglob("*")):
            os.chown(path, 65534, 65534, follow_symlinks=False)
        for path in (tmp_path, *tmp_path.parents):
            if not path.stat().st_mode & 0o001:  # pytest's own; it stays so, for other tests at this moment
                path.chmod(0o711)
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return be


# --- what is true, and what is on disk ----------------------------------------------------------------------------


def expect_rows(series: Series, *spans: tuple[int, int], market: Market = MARKET) -> pa.Table:
    """Ask the market itself, past the server, the client and the decoder."""
    parts = [
        market.snapshots(series.coin, series.interval_s, *span, depth=series.depth, usd=series.unit == "usd")
        for span in spans
    ]
    return pa.table(
        {
            "timestamp": pa.array(
                np.concatenate([np.repeat(part.timestamp_us, part.levels) for part in parts]), pa.int64()
            ).cast(pa.timestamp("us", tz="UTC")),
            "price": np.concatenate([part.price for part in parts]),
            "volume": np.concatenate([part.volume for part in parts]),
        }
    )


def read_tree(root: str | Path) -> dict[str, bytes]:
    """Every file below a folder, by its path from there."""
    folder = Path(root)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

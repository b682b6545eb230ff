"""The upstream of the benchmarks: answers that were made before, from a process of its own, next to no work for each.

``python -m tests.benchmarks.upstream LOT … [--per-minute W --burst W] [--latency S]`` says its URL and serves until its
stdin ends. ``/count`` tells what it has answered, ``/times`` when.
"""

import argparse
import json
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from math import ceil
from typing import Any
from urllib.parse import parse_qs, urlsplit
from urllib.request import ProxyHandler, build_opener

from heatpipe.model import Span
from heatpipe.sandbox.app import DATA_TYPE, KEY_HEADER
from heatpipe.upstream import LIQUIDATIONS
from tests.benchmarks.bodies import LOTS, MINUTE_S, PLAIN, PLAIN_DEPTH, Body, make_plain, read_lot

KEY = "bench-key"
PLENTY = 10**9


@dataclass(frozen=True, slots=True)
class Running:
    """An upstream that serves."""

    url: str

    def count(self) -> dict[str, int]:
        """Return how many requests it has answered, and how many refused, by status."""
        found: dict[str, int] = self._ask("count")
        return found

    def times(self) -> list[float]:
        """Return when it has answered each request, in seconds of its own monotonic clock."""
        found: list[float] = self._ask("times")
        return found

    def _ask(self, what: str) -> Any:
        with build_opener(ProxyHandler({})).open(f"{self.url}/{what}", timeout=10) as answer:
            return json.load(answer)


@contextmanager
def run_upstream(
    *lots: str, per_minute: float = PLENTY, burst: float = PLENTY, latency_s: float = 0.0
) -> Iterator[Running]:
    """Serve some lots from another process while the block lasts."""
    command = [sys.executable, "-m", "tests.benchmarks.upstream", *lots, "--per-minute", str(per_minute)]
    command += ["--burst", str(burst), "--latency", str(latency_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            said = ""
            for said in process.stdout:
                if said.startswith("http://"):
                    break
                print(said, end="", flush=True)
            yield Running(said.strip())
        finally:
            process.stdin.close()


class _Bucket:
    """A key's weight; full at the start."""

    def __init__(self, per_minute: float, burst: float) -> None:
        self._per_s = per_minute / 60
        self._burst = self._level = burst
        self._seen = time.monotonic()
        self._lock = threading.Lock()

    def spend(self, weight: int) -> float:
        """Take the weight and return 0, or return the seconds until it will be there."""
        with self._lock:
            now = time.monotonic()
            self._level = min(self._burst, self._level + (now - self._seen) * self._per_s)
            self._seen = now
            if self._level < weight:
                return (weight - self._level) / self._per_s
            self._level -= weight
            return 0.0


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, lots: Sequence[str], bucket: _Bucket, latency_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies = {(coin, span): body for lot in lots if lot in LOTS for coin, span, body in read_lot(LOTS[lot])}
        self.bucket = bucket
        self.latency_s = latency_s
        self.counts: dict[str, int] = {}
        self.times: list[float] = []
        self.guard = threading.Lock()

    def count(self, status: HTTPStatus) -> None:
        with self.guard:
            self.counts[str(status.value)] = self.counts.get(str(status.value), 0) + 1
            if status == HTTPStatus.OK:
                self.times.append(time.monotonic())

    def handle_error(self, *_: object) -> None:
        """Say nothing: a client that hangs up is no news."""


class _Handler(socketserver.StreamRequestHandler):
    server: _Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        while target := self.rfile.readline().decode("latin-1").split(" ")[1:2]:
            headers = {}
            while line := self.rfile.readline().decode("latin-1").strip():
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            self._answer(target[0], headers)
            if headers.get("connection", "").lower() == "close":
                return

    def _answer(self, target: str, headers: dict[str, str]) -> None:
        path, query = urlsplit(target).path, dict(parse_qs(urlsplit(target).query))
        if path in ("/count", "/times"):
            told = self.server.counts if path == "/count" else self.server.times
            self._send(HTTPStatus.OK, json.dumps(told).encode())
            return
        status, body, more = self._find({name: values[0] for name, values in query.items()}, headers)
        self.server.count(status)
        time.sleep(self.server.latency_s)
        if isinstance(body, Body):
            self._send(status, body.head, body.numbers, body.trailer, more="Content-Encoding: gzip\r\n")
        else:
            self._send(status, json.dumps(body).encode(), more=more)

    def _find(self, asked: dict[str, str], headers: dict[str, str]) -> tuple[HTTPStatus, Body | dict[str, Any], str]:
        """Return the answer to what was asked, as the vendor would."""
        if headers.get(KEY_HEADER.lower()) != KEY:
            return HTTPStatus.UNAUTHORIZED, {"error": "INVALID_API_KEY", "message": "Invalid API key"}, ""
        start, seconds = int(asked["from"]), int(asked["period"])
        span, depth = Span(start, start + seconds), 1500
        body = self.server.bodies.get((asked["coin"], span))
        if asked["coin"].startswith(PLAIN):
            body, depth = make_plain(asked["coin"], span), PLAIN_DEPTH
        fitting = asked["type"] == DATA_TYPE and asked["interval"] == "MINUTE" and asked["flatten"] == "true"
        if body is None or not fitting or asked["maxDepth"] != str(depth) or "gzip" not in headers["accept-encoding"]:
            return HTTPStatus.BAD_REQUEST, {"error": "INVALID_PARAMS", "message": f"nothing was made for {asked}"}, ""
        wait_s = ceil(self.server.bucket.spend(LIQUIDATIONS.weigh(seconds // MINUTE_S, 1500)))
        if wait_s:
            refusal = {"error": "RATE_LIMITED", "message": "Rate limit exceeded", "retry_after": wait_s}
            return HTTPStatus.TOO_MANY_REQUESTS, refusal, f"Retry-After: {wait_s}\r\n"
        return HTTPStatus.OK, body, ""

    def _send(self, status: HTTPStatus, *parts: bytes, more: str = "") -> None:
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nDate: {formatdate(usegmt=True)}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {sum(map(len, parts))}\r\n{more}\r\n"
        )
        self.wfile.write(head.encode() + parts[0])
        for part in parts[1:]:
            self.wfile.write(part)


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.upstream", description=__doc__)
    parser.add_argument("lots", nargs="+", choices=(*LOTS, PLAIN))
    parser.add_argument("--per-minute", type=float, default=PLENTY)
    parser.add_argument("--burst", type=float, default=PLENTY)
    parser.add_argument("--latency", type=float, default=0.0)
    options = parser.parse_args()
    with _Server(options.lots, _Bucket(options.per_minute, options.burst), options.latency) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    main()

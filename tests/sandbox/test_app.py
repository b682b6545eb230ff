"""The HTTP face, over real sockets on loopback, in frozen time."""

import json
import logging
import math
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatpipe.sandbox import Market, Options, Points, Tier, serve
from heatpipe.sandbox.app import ENTERPRISE, _accepts_gzip, _Bucket, _document, _Query, _RefusedError
from heatpipe.sandbox.market import COINS

NOW_S = 1_774_803_630.0  # 30 s into a minute
MINUTE_S = int(NOW_S) - 30
FORM = {"type": "HYPERLIQUID_LIQUIDATION_AGG", "coin": "BTC", "interval": "MINUTE", "flatten": "true"}
SPAN = {"from": str(MINUTE_S - 600), "period": "300"}
LONG_S = 1_200 * 60


@dataclass
class Clock:
    now_s: float = NOW_S

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Sandbox:
    http: httpx.Client
    options: Options
    clock: Clock

    def get(self, key: str | None = "sandbox-key", **params: str) -> httpx.Response:
        headers = {} if key is None else {"X-Kiyotaka-Key": key}
        return self.http.get("/v1/points", params=params, headers=headers)


@contextmanager
def sandbox_with(**options: object) -> Iterator[Sandbox]:
    clock = Clock()
    chosen = Options(clock=clock, **options)  # type: ignore[arg-type]
    with serve(chosen) as url, httpx.Client(base_url=url, timeout=30) as http:
        yield Sandbox(http, chosen, clock)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    plenty = {
        "sandbox-key": Tier("advanced", 10**6, 10**6),
        "enterprise-key": Tier("enterprise", 10**6, 10**6, history_days=0),
        "basic-key": Tier("basic", 10**6, 10**6, liquidations=False),
    }
    with sandbox_with(keys=plenty) as running:
        yield running


@dataclass
class Read:
    """A body as a client would see it, its numbers as written."""

    timestamps: list[float] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    price: list[float] = field(default_factory=list)
    volume: list[float] = field(default_factory=list)


def read_flat(numbers: list[str]) -> Read:
    read, at = Read(), 0
    while at < len(numbers):
        count = int(numbers[at])
        read.levels.append(count)
        read.timestamps.append(float(numbers[at + 1]))
        at += 2
        read.price += [float(text) for text in numbers[at : at + 2 * count : 2]]
        read.volume += [float(text) for text in numbers[at + 1 : at + 2 * count : 2]]
        at += 2 * count
    return read


def numbers_of(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    document = json.loads(response.content, parse_int=str, parse_float=str)
    numbers: list[str] = document["series"][0]["flat_points"]
    return numbers


@pytest.mark.parametrize(
    ("coin", "usd"), [("BTC", False), ("BTC", True), ("PURR/USDC", False), ("@107", True), ("xyz:SILVER", False)]
)
def test_the_text_is_the_market_s_very_doubles(sandbox: Sandbox, coin: str, usd: bool) -> None:
    quote = {"transform.normalize.quote": "USD"} if usd else {}
    read = read_flat(numbers_of(sandbox.get(**FORM | SPAN | quote | {"coin": coin})))
    expected = Market().snapshots(coin, 60, MINUTE_S - 600, MINUTE_S - 300, usd=usd)
    assert read.timestamps == expected.timestamp_us.tolist()
    assert read.levels == expected.levels.tolist()
    assert read.price == expected.price.tolist()
    assert read.volume == expected.volume.tolist()


def test_numbers_are_written_as_in_the_vendor_s_examples(sandbox: Sandbox) -> None:
    numbers = numbers_of(sandbox.get(**FORM | SPAN))
    count = int(numbers[0])
    assert numbers[1] == "1.774803e+15"
    assert all(price.isdigit() for price in numbers[2 : 2 + 2 * count : 2])
    assert all(volume == "0" or not volume.endswith(".0") for volume in numbers[3 : 2 + 2 * count : 2])
    assert any(len(volume) > 15 for volume in numbers[3 : 2 + 2 * count : 2])


def test_the_id_names_what_was_asked(sandbox: Sandbox) -> None:
    document = sandbox.get(**FORM | SPAN | {"coin": "PURR/USDC"}).json()
    assert [series["id"] for series in document["series"]] == [
        {"type": "HYPERLIQUID_LIQUIDATION_AGG", "interval": "MINUTE", "coin": "PURR/USDC"}
    ]


@pytest.mark.parametrize("flatten", [{"flatten": "false"}, {}])
def test_the_standard_form_says_the_same(sandbox: Sandbox, flatten: dict[str, str]) -> None:
    form = {name: value for name, value in FORM.items() if name != "flatten"}
    series = sandbox.get(**form | SPAN | flatten).json()["series"][0]
    flat = read_flat(numbers_of(sandbox.get(**FORM | SPAN)))
    points = [point["Point"] for point in series["points"]]
    assert [point["timestamp"]["s"] * 1e6 for point in points] == flat.timestamps
    assert [price for point in points for price in point["levels"][::2]] == flat.price
    assert [volume for point in points for volume in point["levels"][1::2]] == flat.volume


def test_a_snapshot_without_levels_is_a_bare_header(sandbox: Sandbox) -> None:
    points = Market().snapshots("007", 60, MINUTE_S - 4 * 86_400, MINUTE_S, depth=1)
    empty_s = int(points.timestamp_us[points.levels == 0][0]) // 1_000_000
    span = {"coin": "007", "from": str(empty_s), "period": "60"}
    assert read_flat(numbers_of(sandbox.get(**FORM | span))) == Read([empty_s * 1e6], [0], [], [])
    point = sandbox.get(**FORM | span | {"flatten": "false"}).json()["series"][0]["points"]
    assert point == [{"Point": {"timestamp": {"s": empty_s}, "levels": []}}]


def test_descending_reverses_snapshots_and_keeps_prices_ascending(sandbox: Sandbox) -> None:
    up = read_flat(numbers_of(sandbox.get(**FORM | SPAN | {"sortDirection": "SORT_DIRECTION_ASC"})))
    down = read_flat(numbers_of(sandbox.get(**FORM | SPAN | {"sortDirection": "SORT_DIRECTION_DESC"})))
    assert down.timestamps == up.timestamps[::-1]
    assert down.levels == up.levels[::-1]
    assert down.price[: down.levels[0]] == up.price[-up.levels[-1] :]


def test_max_depth_cuts(sandbox: Sandbox) -> None:
    assert set(read_flat(numbers_of(sandbox.get(**FORM | SPAN | {"maxDepth": "7"}))).levels) <= {7, 0}


def test_the_still_forming_interval_is_left_out_until_it_ends() -> None:
    with sandbox_with() as sandbox:
        span = {"from": str(MINUTE_S - 60), "period": "600"}
        assert read_flat(numbers_of(sandbox.get(**FORM | span))).timestamps == [(MINUTE_S - 60) * 1e6]
        sandbox.clock.now_s = MINUTE_S + 59.999
        assert len(read_flat(numbers_of(sandbox.get(**FORM | span))).timestamps) == 1
        sandbox.clock.now_s = MINUTE_S + 60
        assert len(read_flat(numbers_of(sandbox.get(**FORM | span))).timestamps) == 2


def test_a_point_is_published_when_it_has_settled() -> None:
    with sandbox_with(settle_s=45) as sandbox:
        span = {"from": str(MINUTE_S - 120), "period": "120"}
        assert len(read_flat(numbers_of(sandbox.get(**FORM | span))).timestamps) == 1
        sandbox.clock.now_s = MINUTE_S + 45
        assert len(read_flat(numbers_of(sandbox.get(**FORM | span))).timestamps) == 2


def test_a_period_alone_is_the_last_so_many_seconds(sandbox: Sandbox) -> None:
    read = read_flat(numbers_of(sandbox.get(**FORM | {"period": "180"})))
    assert read.timestamps == [(MINUTE_S - 120) * 1e6, (MINUTE_S - 60) * 1e6]


@pytest.mark.parametrize(
    "span",
    [
        {"from": str(MINUTE_S - 600)},
        {"from": str(MINUTE_S - 600), "period": "0"},
        {},
        {"from": str(MINUTE_S + 600), "period": "600"},
        {"from": str(MINUTE_S - 599), "period": "1"},
    ],
    ids=["no period", "period 0", "neither", "the future", "between two points"],
)
def test_a_span_without_points_gets_no_series(sandbox: Sandbox, span: dict[str, str]) -> None:
    assert sandbox.get(**FORM | span).json() == {"series": []}


TIER_HISTORY = {"from": str(int(NOW_S) - 365 * 86_400 - 1), "period": "60"}
FAULTS = [
    ("no key", None, {}, 401, "INVALID_API_KEY", "key"),
    ("another key", "stolen", {}, 401, "INVALID_API_KEY", "key"),
    ("no type", "sandbox-key", {"type": None}, 400, "INVALID_PARAMS", "type"),
    ("another type", "sandbox-key", {"type": "TRADE"}, 400, "INVALID_PARAMS", "type"),
    ("a misspelt parameter", "sandbox-key", {"maxdepth": "7"}, 400, "INVALID_PARAMS", "maxdepth"),
    ("no interval", "sandbox-key", {"interval": None}, 400, "INVALID_TIMEFRAME", "interval"),
    ("a wrong interval", "sandbox-key", {"interval": "MINUT"}, 400, "INVALID_TIMEFRAME", "MINUT"),
    ("another exchange", "sandbox-key", {"exchange": "BINANCE"}, 400, "INVALID_EXCHANGE", "exchange"),
    ("no coin", "sandbox-key", {"coin": None}, 400, "INVALID_SYMBOL", "coin"),
    ("an empty coin", "sandbox-key", {"coin": ""}, 400, "INVALID_SYMBOL", "coin"),
    ("a control character", "sandbox-key", {"coin": "BT\nC"}, 400, "INVALID_SYMBOL", "coin"),
    ("an unknown coin", "sandbox-key", {"coin": "UNKNOWN1"}, 400, "INVALID_SYMBOL", "UNKNOWN1"),
    ("no such coin", "sandbox-key", {"coin": "NOPE"}, 400, "INVALID_SYMBOL", "NOPE"),
    ("from negative", "sandbox-key", {"from": "-1"}, 400, "INVALID_PARAMS", "from"),
    ("from a word", "sandbox-key", {"from": "today"}, 400, "INVALID_PARAMS", "from"),
    ("from empty", "sandbox-key", {"from": ""}, 400, "INVALID_PARAMS", "from"),
    ("from a fraction", "sandbox-key", {"from": "1.5"}, 400, "INVALID_PARAMS", "from"),
    ("period negative", "sandbox-key", {"period": "-60"}, 400, "INVALID_PARAMS", "period"),
    ("period in other digits", "sandbox-key", {"period": "६०"}, 400, "INVALID_PARAMS", "period"),
    ("no depth", "sandbox-key", {"maxDepth": "0"}, 400, "INVALID_PARAMS", "maxDepth"),
    ("flatten a number", "sandbox-key", {"flatten": "1"}, 400, "INVALID_PARAMS", "flatten"),
    ("a wrong quote", "sandbox-key", {"transform.normalize.quote": "EUR"}, 400, "INVALID_PARAMS", "quote"),
    ("a wrong order", "sandbox-key", {"sortDirection": "DOWN"}, 400, "INVALID_PARAMS", "sortDirection"),
    ("not on the tier", "basic-key", {}, 403, "FORBIDDEN", "not available on your tier"),
    ("beyond the history", "sandbox-key", TIER_HISTORY, 403, "FORBIDDEN", "exceeds history depth"),
    ("too many points", "sandbox-key", {"period": "300001"}, 403, "FORBIDDEN", "Point count exceeded"),
]


@pytest.mark.parametrize(
    ("key", "change", "status", "error", "message"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS]
)
def test_a_wrong_request_is_told_what_is_wrong(
    sandbox: Sandbox, key: str | None, change: dict[str, str | None], status: int, error: str, message: str
) -> None:
    params = {name: value for name, value in (FORM | SPAN | change).items() if value is not None}
    response = sandbox.get(key, **params)
    assert response.status_code == status
    assert response.json()["error"] == error
    assert message in response.json()["message"]
    assert response.json().keys() == {"error", "message"}
    assert sandbox.options.ledger[-1].weight == 0


def test_the_edges_of_what_a_tier_sells_are_served(sandbox: Sandbox) -> None:
    edge = {"from": str(int(NOW_S) - 365 * 86_400 + 60), "period": "60"}
    assert sandbox.get(**FORM | edge).status_code == 200
    assert sandbox.get(**FORM | {"coin": "007", "period": "300000", "maxDepth": "1"}).status_code == 200
    assert sandbox.get("enterprise-key", **FORM | TIER_HISTORY).status_code == 200
    assert sandbox.get("enterprise-key", **FORM | {"from": "0", "period": "60"}).status_code == 200


def test_named_coins_are_all_there_are() -> None:
    with sandbox_with(coins=("BTC", "NOPE")) as sandbox:
        assert sandbox.get(**FORM | SPAN | {"coin": "NOPE"}).status_code == 200
        assert sandbox.get(**FORM | SPAN | {"coin": "ETH"}).json()["error"] == "INVALID_SYMBOL"


def test_other_paths_and_methods_are_refused_in_json(sandbox: Sandbox) -> None:
    assert [sandbox.http.get("/v2/points").status_code, sandbox.http.get("/v2/points").json()["error"]] == [
        404,
        "NOT_FOUND",
    ]
    response = sandbox.http.post("/v1/points")
    assert [response.status_code, response.json()["error"]] == [405, "METHOD_NOT_ALLOWED"]
    assert "GET" in response.headers["Allow"]


def test_usage_tells_the_quota_for_nothing() -> None:
    with sandbox_with() as sandbox:
        assert sandbox.http.get("/v1/usage").status_code == 401
        sandbox.get(**FORM | SPAN)
        for _ in range(2):
            usage = sandbox.http.get("/v1/usage", headers={"X-Kiyotaka-Key": "sandbox-key"}).json()
            assert usage == {"tier": "advanced", "weight_per_minute": 750, "burst": 1500, "available": 1495}


def test_every_answer_carries_the_sandbox_s_own_date(sandbox: Sandbox) -> None:
    answers = [
        sandbox.get(**FORM | SPAN),
        sandbox.get(None),
        sandbox.http.get("/nowhere"),
        sandbox.http.post("/v1/points"),
    ]
    for answer in answers:
        assert answer.headers.get_list("date") == ["Sun, 29 Mar 2026 17:00:30 GMT"]
        assert answer.headers["content-type"] == "application/json"


def test_gzip_is_for_those_who_take_it(sandbox: Sandbox) -> None:
    bodies = []
    for accepted in ("gzip", "identity"):
        response = sandbox.http.get(
            "/v1/points",
            params=FORM | SPAN,
            headers={"X-Kiyotaka-Key": "sandbox-key", "Accept-Encoding": accepted},
        )
        assert response.headers.get("content-encoding") == {"gzip": "gzip"}.get(accepted)
        assert response.headers["vary"] == "Accept-Encoding"
        bodies.append(response.content)
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize(
    ("accepted", "gzip"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("*", True),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
    ],
)
def test_accept_encoding_is_read_as_it_is_meant(accepted: str, gzip: bool) -> None:
    assert _accepts_gzip(accepted) is gzip


@pytest.mark.parametrize(
    ("points", "depth", "weight"),
    [
        (0, 1500, 1),
        (1, 1500, 5),
        (1000, 1500, 5),
        (1001, 1500, 10),
        (1440, 1500, 10),
        (5000, 1500, 25),
        (1000, 1501, 6),
        (1000, 3000, 6),
        (1000, 3001, 7),
        (5000, 10_501, 60),
    ],
)
def test_a_request_weighs_what_the_formula_says(points: int, depth: int, weight: int) -> None:
    query = _Query("BTC", "HOUR", 0, points * 3600, depth, flatten=True, usd=False, descending=False)
    assert query.weight == weight


def test_a_part_of_an_interval_counts_as_a_part_of_a_point() -> None:
    query = _Query("BTC", "MINUTE", 0, 60_001, 1500, flatten=True, usd=False, descending=False)
    assert query.weight == 10


def test_a_key_over_its_budget_is_told_how_long_to_wait_and_charged_nothing() -> None:
    with sandbox_with(keys={"sandbox-key": Tier("small", 30, 12)}) as sandbox:
        request = FORM | SPAN
        assert [sandbox.get(**request).status_code for _ in range(2)] == [200, 200]
        for _ in range(3):
            refused = sandbox.get(**request)
            assert refused.status_code == 429
            # 2 of 5 are left; 3 more come in 6 s at 30 a minute.
            assert refused.headers["Retry-After"] == "6"
            assert refused.json() == {"error": "RATE_LIMITED", "message": "Rate limit exceeded", "retry_after": 6}
        sandbox.clock.now_s += 5.999
        assert sandbox.get(**request).headers["Retry-After"] == "1"
        sandbox.clock.now_s = NOW_S + 6
        assert sandbox.get(**request).status_code == 200
        assert sandbox.get(**request).headers["Retry-After"] == "10"


def test_each_key_has_its_own_bucket() -> None:
    small = Tier("small", 30, 5)
    with sandbox_with(keys={"a": small, "b": small}) as sandbox:
        assert [sandbox.get(key, **FORM | SPAN).status_code for key in "aabb"] == [200, 429, 200, 429]


def test_concurrent_requests_cannot_spend_the_same_weight() -> None:
    with sandbox_with(keys={"sandbox-key": Tier("small", 1, 20)}) as sandbox, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: sandbox.get(**FORM | SPAN).status_code, range(16)))
        assert sorted(answers) == [200] * 4 + [429] * 12
        assert sum(answered.weight for answered in sandbox.options.ledger) == 20


@given(
    rate=st.integers(1, 10_000),
    burst=st.integers(1, 5000),
    start_s=st.floats(0, 2e9),
    steps=st.lists(st.tuples(st.floats(-5, 120), st.integers(1, 300)), max_size=40),
)
@settings(deadline=None)
def test_the_bucket_is_never_over_budget_and_waiting_as_told_is_enough(
    rate: int, burst: int, start_s: float, steps: list[tuple[float, int]]
) -> None:
    clock = Clock(start_s)
    bucket = _Bucket(Tier("any", rate, burst), clock)
    spent, latest = 0, Fraction(start_s)
    for pause_s, weight in steps:
        clock.now_s += pause_s
        latest = max(latest, Fraction(clock.now_s))
        try:
            bucket.spend(weight)
            spent += weight
        except _RefusedError as refused:
            wait_s = refused.retry_after_s or 0  # 0 would make the second try fail
            if weight <= burst and Fraction(clock.now_s) == latest:
                clock.now_s = float(math.ceil(clock.now_s) + wait_s)
                latest = Fraction(clock.now_s)
                bucket.spend(weight)
                spent += weight
        assert spent <= burst + (latest - Fraction(start_s)) * Fraction(rate, 60)


def test_the_ledger_has_every_request_answered() -> None:
    with sandbox_with() as sandbox:
        sandbox.get(**FORM | SPAN)
        sandbox.get(None, **FORM)
        sandbox.http.get("/nowhere")
        ledger = sandbox.options.ledger
        assert [(line.status, line.weight, line.path) for line in ledger] == [
            (200, 5, "/v1/points"),
            (401, 0, "/v1/points"),
            (404, 0, "/nowhere"),
        ]
        assert ledger[0].params == FORM | SPAN


def test_the_ledger_forgets_its_older_half_when_it_is_full() -> None:
    with sandbox_with(ledger_bytes=20_000, keys={"sandbox-key": Tier("advanced", 10**6, 10**6)}) as sandbox:
        ledger = sandbox.options.ledger
        for number in range(60):
            sandbox.get(**FORM | SPAN | {"coin": f"C{number}", "period": "60"})
            assert ledger[-1].params["coin"] == f"C{number}"
        assert 6 < len(ledger) < 20
        assert [line.params["coin"] for line in ledger] == [f"C{number}" for number in range(60)][-len(ledger) :]
        sandbox.get(**FORM | {f"x{number}": "y" * 50 for number in range(400)})
        assert len(ledger) == 1, "one that is larger than all"


@pytest.mark.parametrize("more", [{}, {"sortDirection": "SORT_DIRECTION_DESC"}, {"flatten": "false"}])
@pytest.mark.parametrize("coding", ["gzip", "identity"])
def test_an_answer_that_waits_in_a_file_is_the_same_document(
    sandbox: Sandbox, coding: str, more: dict[str, str]
) -> None:
    """Of two cuts, and above the size from which on it is not kept in memory."""
    asked = FORM | {"from": str(MINUTE_S - LONG_S), "period": str(LONG_S)} | more
    answer = sandbox.http.get(
        "/v1/points", params=asked, headers={"X-Kiyotaka-Key": "sandbox-key", "Accept-Encoding": coding}
    )
    flatten, descending = "flatten" not in more, "sortDirection" in more
    query = _Query("BTC", "MINUTE", MINUTE_S - LONG_S, LONG_S, 1500, flatten, usd=False, descending=descending)
    points = Market().snapshots("BTC", 60, MINUTE_S - LONG_S, MINUTE_S)
    assert answer.content == b"".join(_document(query, [points]).text())
    assert answer.headers.get("Content-Encoding", "identity") == coding
    assert "Transfer-Encoding" not in answer.headers


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_is_bounded_whatever_is_asked_and_whoever_does_not_read() -> None:
    """Twelve large windows, four at a time, took 490 MiB; eight readers who do not read wait for as many."""
    command = [sys.executable, "-m", "heatpipe", "sandbox", "--port", "0", "--burst", "1000000"]
    asked = FORM | {"period": "60000", "from": str(int(time.time()) - 7 * 86_400)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, ExitStack() as stack:
        stack.callback(process.terminate)
        assert process.stdout
        url = httpx.URL("".join(re.findall(r"http://[0-9.:]+", process.stdout.readline())))
        for number in range(8):
            idle = stack.enter_context(socket.create_connection((url.host, url.port)))
            query = urlencode(asked | {"coin": f"IDLE{number}"})
            idle.sendall(f"GET /v1/points?{query} HTTP/1.1\r\nHost: x\r\nX-Kiyotaka-Key: sandbox-key\r\n\r\n".encode())
        http = stack.enter_context(httpx.Client(base_url=url, headers={"X-Kiyotaka-Key": "sandbox-key"}, timeout=60))
        coins = [*COINS, *(f"C{number}" for number in range(5))]
        with ThreadPoolExecutor(4) as threads:
            sizes = list(
                threads.map(lambda coin: len(http.get("/v1/points", params=asked | {"coin": coin}).content), coins)
            )
        assert min(sizes) > 1_000_000
        [peak_kib] = re.findall(r"VmHWM:\s+([0-9]+) kB", Path(f"/proc/{process.pid}/status").read_text())
        assert int(peak_kib) < 300 * 1024


def test_answers_are_written_side_by_side() -> None:
    with sandbox_with(latency_s=0.2) as sandbox, ThreadPoolExecutor(10) as threads:
        elapsed = list(threads.map(lambda _: sandbox.get(**FORM | SPAN).elapsed.total_seconds(), range(10)))
    assert min(elapsed) >= 0.2
    assert max(elapsed) < 2  # ten in a row


def test_a_taken_port_is_an_error_of_the_system() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"), serve(Options(), port):
            pass


def test_the_port_is_free_again_and_no_thread_is_left() -> None:
    before = set(threading.enumerate())  # of which some, left by other tests, may end at any moment
    with serve(Options(keys={"sandbox-key": ENTERPRISE})) as url:
        port = int(url.rpartition(":")[2])
        assert url == f"http://127.0.0.1:{port}"
    assert set(threading.enumerate()) <= before
    with serve(Options(), port) as again:
        assert again == url


def test_a_client_that_is_gone_does_not_hold_the_server() -> None:
    with sandbox_with(latency_s=60) as sandbox, pytest.raises(httpx.ReadTimeout):
        sandbox.http.get("/v1/points", params=FORM | SPAN, headers={"X-Kiyotaka-Key": "sandbox-key"}, timeout=0.2)


def test_a_fault_of_our_own_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Market):
        def snapshots(self, *_: object, **__: object) -> Points:
            raise ZeroDivisionError

    with sandbox_with(market=Broken()) as sandbox, caplog.at_level(logging.ERROR):
        answer = sandbox.get(**FORM | SPAN)
    assert [answer.status_code, answer.json()["error"]] == [500, "INTERNAL_ERROR"]
    assert "ZeroDivisionError" in caplog.text
    assert [(line.status, line.weight) for line in sandbox.options.ledger] == [(500, 0)]


def test_the_command_ends_quietly_when_interrupted() -> None:
    program = (
        "import os, signal, threading, urllib.request, urllib.error\n"
        "from heatpipe.sandbox import Options, run\n"
        "def ask(url):\n"
        "    try: urllib.request.urlopen(url + '/v1/points')\n"
        "    except urllib.error.HTTPError as exc: print(exc.code, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "run(Options(), 0, on_start=lambda url: threading.Thread(target=ask, args=(url,)).start())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "401\n", "")


def test_the_sandbox_imports_nothing_else_of_heatpipe() -> None:
    program = (
        "import sys, heatpipe; before = set(sys.modules); import heatpipe.sandbox;"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('heatpipe')))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == str(
        [f"heatpipe.sandbox{module}" for module in ("", ".app", ".faults", ".market", ".wire")]
    )

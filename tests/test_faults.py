"""The fault table: what the upstream does, and what must come out. The engine against a sandbox that misbehaves.

Time is the clock's own: whoever waits, waits in it, and a row takes as long as its requests do.
"""

import json
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from heatpipe.budget import Budget
from heatpipe.cli import app, run
from heatpipe.config import Settings
from heatpipe.errors import UnreachableError
from heatpipe.fetch import Stop
from heatpipe.ingest import backfill
from heatpipe.model import Series, Span, Spans, show_time
from heatpipe.redaction import Secret
from heatpipe.report import Report
from heatpipe.sandbox import Answered, Market, Options, Points, Tier, faults, serve
from heatpipe.sandbox.faults import Damage, Fault, Refusal, Rule
from heatpipe.store import Store
from tests.conftest import (
    DAY,
    HOUR,
    MARKET,
    NOW_S,
    TODAY,
    Clock,
    MakeSettings,
    Sandbox,
    expect_rows,
    read_tree,
    run_sandbox,
)

BTC = Series("BTC", "HOUR", depth=8)
SPAN = (TODAY - 6 * HOUR, TODAY + 6 * HOUR)
"""Twelve points of two days: one window."""
BAD = TODAY - 3 * HOUR
"""The start of the point that a rule picks; it has levels."""
BAD_SPAN = Span(BAD, BAD + HOUR)
REST = Spans.of([SPAN]) - Spans.of([BAD_SPAN])

MakeSandbox = Callable[..., Sandbox]


@pytest.fixture(scope="module")
def doorkeeper() -> Iterator[Callable[[ExitStack], None]]:
    """Close sandboxes while the next row runs: each takes a fifth of a second to end, and there are many."""
    with ThreadPoolExecutor(4) as pool:
        closing: list[Future[None]] = []
        yield lambda stack: closing.append(pool.submit(stack.close))
        for each in closing:
            each.result()


@pytest.fixture
def make_sandbox(doorkeeper: Callable[[ExitStack], None]) -> Iterator[MakeSandbox]:
    stack = ExitStack()
    yield lambda **options: stack.enter_context(run_sandbox(**options))
    doorkeeper(stack)


def named(fault: object) -> str:
    assert isinstance(fault, Damage | Refusal | faults.Delivery)
    return fault.name.replace(" ", "-")


class Hurry(Stop):
    """Lets time pass where a run would wait for it. Belongs to one run."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def child(self) -> Self:
        return self

    def sleep(self, seconds: float) -> None:
        self.check()
        self._clock.sleep(seconds)


def fill(settings: Settings, clock: Clock, series: Series | list[Series] = BTC, *span: int, **more: Any) -> Report:
    budget = Budget(10**9, 10**9, clock=clock)
    return backfill(series, *(span or SPAN), settings=settings, clock=clock, budget=budget, stop=Hurry(clock), **more)


def dataset(settings: Settings) -> dict[str, bytes]:
    return read_tree(Path(settings.root) / "liquidations")


def beside(settings: Settings) -> set[str]:
    """What lies below the root beside the dataset, locks aside."""
    tree = read_tree(settings.root)
    return {path for path in tree if not path.startswith(("liquidations/", "_locks/"))}


def rows(settings: Settings, series: Series = BTC) -> pa.Table:
    store = Store(settings.root)
    paths = [str(store._path(series, day)) for day in sorted(store.days(series))]
    plain = expect_rows(series, (0, 0))
    return ds.dataset(paths, format="parquet").to_table().cast(plain.schema) if paths else plain


def known(settings: Settings, part: str = "covered", series: Series = BTC) -> Spans:
    store = Store(settings.root)
    return Spans.of(span for day in store.days(series) for span in getattr(store.coverage(series, day), part))


@pytest.fixture(scope="module")
def clean(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tree of a run in which nothing went wrong."""
    root = tmp_path_factory.mktemp("clean")
    chosen = Settings(api_key=Secret("sandbox-key"), url=sandbox.url, root=str(root))
    assert fill(chosen, Clock()).failures == ()
    return dataset(chosen)


def test_the_market_has_every_point_and_levels_enough_for_every_damage() -> None:
    assert len(MARKET.snapshots(BTC.coin, HOUR, *SPAN, depth=8).levels) == 12
    assert len(expect_rows(BTC, BAD_SPAN)) >= 2


# --- 1: what passes -----------------------------------------------------------------------------------------------

TWICE = [Rule(fault, times=2) for fault in faults.PASSING if fault not in (faults.HANG, faults.DRIP, faults.JSON_CUT)]
PASSES = [
    *(pytest.param(rule, id=f"{named(rule.fault)}-twice") for rule in TWICE),
    *(pytest.param(Rule(faults.CUT, times=1, where=where), id=f"cut-at-{where}") for where in (0.0, 0.99)),
    *(pytest.param(Rule(faults.GZIP_CUT, times=1, where=where), id=f"gzip-cut-at-{where}") for where in (0.0, 0.99999)),
    *(
        pytest.param(Rule(faults.JSON_CUT, times=1, where=where), id=f"json-cut-at-{where}")
        for where in (0, 0.5, 0.9999)
    ),
    pytest.param(Rule(faults.HANG, times=1), id="hang"),
    pytest.param(Rule(replace(faults.HANG, for_s=0.05), times=2), id="hang-that-ends"),
    pytest.param(Rule(replace(faults.DRIP, for_s=0.6, pause_s=0.05)), id="drip"),
    *(pytest.param(Rule(fault), id=f"{named(fault)}-always") for fault in faults.LEGAL),
    *(pytest.param(Rule(fault, times=1), id=f"{named(fault)}-once") for fault in faults.BROKEN_VALUES),
    *(pytest.param(Rule(fault, times=1), id=f"{named(fault)}-once") for fault in faults.BROKEN_DOCUMENTS),
    pytest.param(Rule(faults.BOMB, times=1), id="bomb-once"),
    pytest.param(Rule(faults.ECHO_KEY_ENCODING, times=1), id="unknown-encoding-once"),
]


@pytest.mark.parametrize("rule", PASSES)
def test_what_passes_leaves_no_trace(
    make_sandbox: MakeSandbox, settings: MakeSettings, clean: dict[str, bytes], rule: Rule
) -> None:
    sandbox = make_sandbox(faults=(rule,))
    chosen = settings(sandbox.url, timeout_s=0.3)
    report = fill(chosen, sandbox.clock)
    assert report.failures == ()
    assert dataset(chosen) == clean
    assert beside(chosen) == set()
    struck = [entry.fault for entry in sandbox.options.ledger if entry.fault]
    assert struck == [rule.fault.name] * (rule.times or 1)
    assert report.requests == len(sandbox.options.ledger)


@pytest.mark.parametrize("fault", [f for f in faults.PASSING if isinstance(f, Refusal) and f.status == 429], ids=named)
def test_a_429_is_waited_for(make_sandbox: MakeSandbox, settings: MakeSettings, fault: Refusal) -> None:
    wait_s = 5.0 if fault.retry_after_s is None else 200
    sandbox = make_sandbox(faults=(Rule(replace(fault, retry_after_s=fault.retry_after_s and 200), times=1),))
    assert fill(settings(sandbox.url), sandbox.clock).failures == ()
    assert wait_s <= sandbox.clock.now_s - NOW_S < wait_s + 2
    assert len(sandbox.options.ledger) == 2


def test_connection_refused_passes_when_the_server_comes_up(settings: MakeSettings, clean: dict[str, bytes]) -> None:
    """Nobody listens at first; the first wait lasts until somebody does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    clock, ledger = Clock(), list[Answered]()
    with ExitStack() as stack:

        class ComesUp(Hurry):
            def sleep(self, seconds: float) -> None:
                if seconds and not ledger_open:
                    ledger_open.append(True)
                    options = Options(market=Market(gaps=True), clock=clock, ledger=ledger)
                    stack.enter_context(serve(options, port))
                super().sleep(seconds)

        ledger_open: list[bool] = []
        chosen = settings(f"http://127.0.0.1:{port}")
        report = backfill(BTC, *SPAN, settings=chosen, clock=clock, stop=ComesUp(clock))
    assert report.failures == ()
    assert (report.requests, len(ledger)) == (1, 1), "what could not be sent costs nothing"
    assert dataset(chosen) == clean


# --- 1: what does not pass ----------------------------------------------------------------------------------------

STAYS = [
    pytest.param(Rule(faults.UNAVAILABLE), {"patience_s": 0.2}, "no good answer for 0.2 s .*503", id="503-for-ever"),
    pytest.param(Rule(faults.BAD_GATEWAY), {"patience_s": 0.2}, "no good answer for 0.2 s .*502", id="502-for-ever"),
    pytest.param(Rule(faults.DRIP), {"patience_s": 0.2, "timeout_s": 0.2}, "within 0.6 s", id="drip-for-ever"),
    pytest.param(Rule(replace(faults.RATE_LIMITED, retry_after_s=601)), {}, "to wait.*429", id="429-beyond-patience"),
    pytest.param(Rule(faults.RATE_LIMITED_BARE), {"patience_s": 60}, "to wait", id="429-for-ever"),
]
COINS = ("BTC", "ETH", "SOL", "PURR/USDC", "@107", "kPEPE")


@pytest.mark.parametrize(("rule", "changes", "said"), STAYS)
def test_an_outage_ends_the_run_after_one_patience_whatever_the_number_of_coins(
    sandbox: Sandbox,
    make_sandbox: MakeSandbox,
    settings: MakeSettings,
    clean: dict[str, bytes],
    rule: Rule,
    changes: dict[str, float],
    said: str,
) -> None:
    """Nothing is wrong with any of the windows: none leaves a record, and the next run finds the work undone."""
    wrong = make_sandbox(faults=(rule,))
    chosen = settings(wrong.url, **changes)
    coins = [replace(BTC, coin=coin) for coin in COINS]
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=said):
        fill(chosen, wrong.clock, coins)
    assert time.monotonic() - began < 10
    assert dataset(chosen) == {}
    assert not Store(chosen.root).quarantined(BTC)
    finish(sandbox, chosen, clean, asks_for=Spans.of([SPAN]))


def test_an_outage_in_mid_run_ends_it_after_one_patience_with_what_had_come(
    make_sandbox: MakeSandbox, settings: MakeSettings
) -> None:
    good = [Rule(faults.REPEATED, nth=nth) for nth in range(1, 10)]
    wrong = make_sandbox(faults=(*good, Rule(faults.UNAVAILABLE)))
    chosen = settings(wrong.url, patience_s=1.0, concurrency=4)
    coins = [Series(coin, "MINUTE", depth=2) for coin in COINS]
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="no good answer for 1 s"):
        backfill(coins, SPAN[1] - 2 * DAY, SPAN[1], settings=chosen, clock=Clock())
    assert time.monotonic() - began < 15
    store = Store(chosen.root)
    assert sum(store.covered(series, store.days(series)).seconds for series in coins) >= 9 * 880 * 60


def test_the_5xx_of_one_coin_cost_one_patience_and_the_others_come(
    make_sandbox: MakeSandbox, settings: MakeSettings
) -> None:
    """While anything comes there is no outage: the window is given up for itself."""
    wrong = make_sandbox(faults=(Rule(faults.UNAVAILABLE, coin="ETH"),))
    chosen = settings(wrong.url, patience_s=0.5, concurrency=2)
    btc, eth = (Series(coin, "MINUTE", depth=2) for coin in ("BTC", "ETH"))
    report = backfill([eth, btc], SPAN[1] - 9 * DAY, SPAN[1], settings=chosen, clock=Clock())
    assert {failure.series for failure in report.failures} == {eth}
    assert known(chosen, series=btc) == Spans.of([(SPAN[1] - 9 * DAY, SPAN[1])])


@pytest.mark.parametrize("fault", [faults.HANG, faults.RESET, None], ids=["hang", "reset", "nobody-listens"])
def test_an_upstream_that_answers_nothing_ends_the_run_after_one_patience(
    sandbox: Sandbox,
    make_sandbox: MakeSandbox,
    settings: MakeSettings,
    clean: dict[str, bytes],
    fault: faults.Fault | None,
) -> None:
    """Not one patience for each window, nor a record for each: nothing is wrong with any of them."""
    url = make_sandbox(faults=(Rule(fault),)).url if fault else "http://127.0.0.1:1"
    chosen = settings(url, patience_s=0.5, timeout_s=0.2)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=rf"no answer of any kind for 0\.5 s .* is {url} the API's URL"):
        backfill([BTC, replace(BTC, coin="ETH")], SPAN[0] - 9 * DAY, SPAN[1], settings=chosen, clock=Clock())
    assert time.monotonic() - began < 10
    assert not Store(chosen.root).quarantined(BTC)
    finish(sandbox, chosen, clean, asks_for=Spans.of([SPAN]))


def test_an_upstream_that_falls_silent_in_mid_run_ends_it_with_what_had_come(
    make_sandbox: MakeSandbox, settings: MakeSettings
) -> None:
    wrong = make_sandbox(faults=(*(Rule(faults.REPEATED, nth=nth) for nth in (1, 2)), Rule(faults.RESET)))
    chosen = settings(wrong.url, patience_s=0.5, timeout_s=5.0, concurrency=1)
    series = Series("BTC", "MINUTE", depth=2)
    with pytest.raises(UnreachableError):
        backfill(series, SPAN[1] - 5 * DAY, SPAN[1], settings=chosen, clock=Clock())
    store = Store(chosen.root)
    assert store.covered(series, store.days(series)).seconds == 2 * 1000 * 60
    assert not store.quarantined(series)


def finish(honest: Sandbox, left: Settings, clean: dict[str, bytes], asks_for: Spans) -> None:
    """Run again where nothing goes wrong: what was missing is asked for, and no record stays."""
    with honest.listening() as heard:
        report = fill(replace(left, url=honest.url), Clock())
    assert report.failures == ()
    assert Spans.of(map(span_of, heard)) == asks_for
    assert dataset(left) == clean
    assert beside(left) == set()


def span_of(entry: Answered) -> Span:
    start = int(entry.params["from"])
    return Span(start, start + int(entry.params["period"]))


# --- 2: what is left out ------------------------------------------------------------------------------------------

NOTHING = Spans()
BAD_SPANS, ALL = Spans.of([BAD_SPAN]), Spans.of([SPAN])
OMITTED = [
    pytest.param(Rule(faults.LEFT_OUT, covers=BAD), BAD_SPANS, NOTHING, id="an-interval-left-out"),
    pytest.param(Rule(faults.NO_LEVELS, covers=BAD), NOTHING, BAD_SPANS, id="an-interval-without-levels"),
    pytest.param(Rule(faults.EMPTY_SERIES), ALL, NOTHING, id="a-series-without-points"),
    pytest.param(Rule(faults.NO_SERIES), ALL, NOTHING, id="no-series"),
    pytest.param(Rule(faults.NULL_SERIES), ALL, NOTHING, id="null-in-place-of-series"),
    pytest.param(Rule(faults.NULL_POINTS), ALL, NOTHING, id="null-in-place-of-points"),
    pytest.param(Rule(faults.NO_POINTS), ALL, NOTHING, id="points-left-out"),
]


@pytest.mark.parametrize(("rule", "absent", "empty"), OMITTED)
def test_what_is_left_out_is_recorded_on_the_first_answer(
    make_sandbox: MakeSandbox, settings: MakeSettings, rule: Rule, absent: Spans, empty: Spans
) -> None:
    sandbox = make_sandbox(faults=(rule,))
    chosen = settings(sandbox.url)
    report = fill(chosen, sandbox.clock)
    assert report.failures == ()
    assert [entry.fault for entry in sandbox.options.ledger] == [rule.fault.name]
    assert (known(chosen), known(chosen, "absent"), known(chosen, "empty")) == (ALL, absent, empty)
    present = ALL - absent - empty
    assert rows(chosen).equals(expect_rows(BTC, *(present or [(0, 0)])))
    assert fill(chosen, sandbox.clock).requests == 0, "an answer is an answer"


# --- 3: what will not come ----------------------------------------------------------------------------------------

SPLIT: list[Fault] = [faults.TIMEOUT, replace(faults.BOMB, size_bytes=64 << 20), *faults.BROKEN_VALUES]


@pytest.mark.parametrize("fault", SPLIT, ids=named)
def test_only_the_point_that_will_not_come_is_given_up(
    sandbox: Sandbox, make_sandbox: MakeSandbox, settings: MakeSettings, clean: dict[str, bytes], fault: Fault
) -> None:
    wrong = make_sandbox(faults=(Rule(fault, covers=BAD),))
    chosen = settings(wrong.url)
    report = fill(chosen, wrong.clock)
    assert [(failure.series, failure.span, failure.counts) for failure in report.failures] == [(BTC, BAD_SPAN, True)]
    assert show_time(BAD) in report.failures[0].reason
    assert rows(chosen).equals(expect_rows(BTC, *REST))
    assert known(chosen) == REST
    assert report.requests == len(wrong.options.ledger) <= 40
    asked = Counter(span_of(entry) for entry in wrong.options.ledger)
    assert max(asked.values()) == asked[BAD_SPAN] == (2 if isinstance(fault, Damage) else 3)
    check_record(chosen, BAD_SPAN, with_body=isinstance(fault, Damage))
    finish(sandbox, chosen, clean, asks_for=BAD_SPANS)


def check_record(chosen: Settings, span: tuple[int, int], *, with_body: bool) -> None:
    """Hold the quarantine against what must be in it: the reason, the request, the answer if there was one."""
    records = {Path(path).name: Path(chosen.root) / path for path in beside(chosen)}
    name = f"{span[0]}-{span[1]}"
    assert set(records) == ({f"{name}.json", f"{name}.body"} if with_body else {f"{name}.json"})
    assert all(path.is_relative_to(Path(chosen.root) / "_quarantine") for path in records.values())
    record = json.loads(records[f"{name}.json"].read_bytes())
    assert (record["from"], record["to"]) == span
    assert record["reason"]
    assert f"from={span[0]}" in record["request"]
    assert all(b"sandbox-key" not in path.read_bytes() for path in records.values())
    if with_body:
        assert len(records[f"{name}.body"].read_bytes()) > 20


@pytest.mark.parametrize(
    "fault", [*SPLIT[:2], faults.COUNT_ONE_MORE, faults.PRICES_SWAPPED, faults.OTHER_SPAN], ids=named
)
def test_an_upstream_that_is_always_wrong_costs_forty_requests_and_puts_no_row_on_disk(
    make_sandbox: MakeSandbox, settings: MakeSettings, fault: Fault
) -> None:
    sandbox = make_sandbox(faults=(Rule(fault),))
    chosen = settings(sandbox.url)
    report = fill(chosen, sandbox.clock)
    struck = [entry for entry in sandbox.options.ledger if entry.fault]
    # A damage that needs two levels finds none in some single points; those are right, and come.
    honest = Spans.of(span_of(entry) for entry in sandbox.options.ledger if not entry.fault)
    assert len(struck) > 30
    assert len(sandbox.options.ledger) <= 40
    assert known(chosen) == honest
    assert rows(chosen).equals(expect_rows(BTC, *(honest or [(0, 0)])))
    assert Spans.of(failure.span for failure in report.failures if failure.span) == ALL - honest


@pytest.mark.parametrize("fault", [*faults.BROKEN_DOCUMENTS, faults.JSON_CUT], ids=named)
def test_an_answer_to_another_question_is_asked_for_once_more_and_kept_whole(
    sandbox: Sandbox, make_sandbox: MakeSandbox, settings: MakeSettings, clean: dict[str, bytes], fault: Damage
) -> None:
    wrong = make_sandbox(faults=(Rule(fault),))
    chosen = settings(wrong.url)
    report = fill(chosen, wrong.clock)
    assert [span_of(entry) for entry in wrong.options.ledger] == [Span(*SPAN)] * 2
    assert [failure.span for failure in report.failures] == [Span(*SPAN)]
    assert dataset(chosen) == {}
    check_record(chosen, SPAN, with_body=True)
    finish(sandbox, chosen, clean, asks_for=ALL)


class Quiet(Market):
    """A market in which nothing ever stands, and which is quick to ask."""

    def snapshots(self, *_: object, **__: object) -> Points:
        return Points(*(np.zeros(0, np.int64),) * 2, *(np.zeros(0),) * 2)


def test_three_windows_that_fail_alike_end_their_series_and_no_other(
    make_sandbox: MakeSandbox, settings: MakeSettings
) -> None:
    sandbox = make_sandbox(market=Quiet(), faults=(Rule(faults.HTML, coin="BTC"),))
    chosen = settings(sandbox.url, concurrency=1)
    minutes = [Series(coin, "MINUTE", depth=2) for coin in ("BTC", "ETH")]
    report = fill(chosen, sandbox.clock, minutes, TODAY - 4 * DAY, TODAY)
    asked = Counter(entry.params["coin"] for entry in sandbox.options.ledger)
    assert asked["ETH"] == 6
    assert 6 <= asked["BTC"] < 10, "three windows twice, and what was on its way"
    assert {failure.series.coin for failure in report.failures} == {"BTC"}
    assert known(chosen, series=minutes[1]) == Spans.of([(TODAY - 4 * DAY, TODAY)])
    assert not known(chosen, series=minutes[0])


# --- 3: a bomb, and memory ----------------------------------------------------------------------------------------

PEAK = """
import resource, subprocess, sys
command = [sys.executable, "-m", "heatpipe", *sys.argv[1:]]
code = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
unit = 1 if sys.platform == "darwin" else 1024
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit)
"""


def test_a_bomb_of_four_gibibytes_does_not_raise_memory(user: dict[str, str], day: list[str], tmp_path: Path) -> None:
    """Measured by a small process that starts the command: a child's peak begins at its parent's."""
    peaks = {}
    for name, rules in {"clean": (), "bomb": (Rule(replace(faults.BOMB, size_bytes=4 << 30), nth=1),)}.items():
        options = Options(keys=KEYS, faults=rules)
        with serve(options) as url:
            command = [sys.executable, "-c", PEAK, "backfill", "--coin", "BTC", *day, "--depth", "8"]
            env = user | {"HEATPIPE_API_URL": url, "HEATPIPE_DATA": str(tmp_path / name)}
            ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
        code, peak = map(int, ended.stdout.split())
        assert code == 0
        peaks[name] = peak
        assert [entry.fault for entry in options.ledger] == (["bomb", "", ""] if rules else [""])
    cap = (1 << 16) + 64 * 24 * 9
    assert peaks["bomb"] < peaks["clean"] + 2 * cap + (8 << 20)


# --- 4: what is final, from the command line ----------------------------------------------------------------------

KEYS = {"sandbox-key": Tier("advanced", 10**6, 10**6)}


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of somebody with a key, a folder, and nothing else of heatpipe's."""
    import os

    for name in [name for name in os.environ if name.startswith(("HEATPIPE_", "KIYOTAKA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KIYOTAKA_API_KEY", "sandbox-key")
    monkeypatch.setenv("HEATPIPE_DATA", str(tmp_path / "data"))
    return dict(os.environ)


@pytest.fixture
def day() -> list[str]:
    """A whole day, three days ago by the machine's clock."""
    start = int(time.time()) // DAY * DAY - 3 * DAY
    return ["--interval", "HOUR", "--start", show_time(start)[:10], "--end", show_time(start + DAY)[:10]]


FINAL = [
    pytest.param(Rule(faults.INVALID_KEY), 2, 1, "KIYOTAKA_API_KEY", id="401"),
    pytest.param(Rule(faults.WRONG_TIER), 2, 1, "Advanced or Enterprise", id="403-tier"),
    pytest.param(Rule(faults.TOO_MANY_POINTS), 2, 1, "fewer points a request", id="403-points"),
    pytest.param(Rule(faults.BEYOND_HISTORY, coin="ETH"), 0, 3, "history_days", id="403-history-one-coin"),
    pytest.param(Rule(faults.INVALID_SYMBOL, coin="ETH"), 1, 3, "INVALID_SYMBOL", id="400-symbol-one-coin"),
    pytest.param(Rule(faults.INVALID_SYMBOL, coin="BTC"), 1, 3, "INVALID_SYMBOL", id="400-symbol-the-first"),
    pytest.param(Rule(faults.garble(400), coin="ETH"), 1, 3, "[31mred", id="400-control-characters"),
    pytest.param(Rule(faults.garble(403, "FORBIDDEN")), 2, 1, "[31mred", id="403-control-characters"),
    pytest.param(Rule(faults.echo_key(400), coin="ETH"), 1, 3, "no access", id="400-echoes-the-key"),
    pytest.param(Rule(faults.echo_key(403)), 2, 1, "no access", id="403-echoes-the-key"),
    pytest.param(Rule(faults.INVALID_KEY, nth=2), 2, 2, "401", id="401-in-the-middle"),
]


@pytest.mark.parametrize(("rule", "code", "requests", "said"), FINAL)
def test_a_final_answer_costs_one_request_and_says_one_line(
    user: dict[str, str],
    day: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rule: Rule,
    code: int,
    requests: int,
    said: str,
) -> None:
    options = Options(keys=KEYS, faults=(rule,))
    coins = ["--coin", "BTC", "--coin", "ETH", "--coin", "SOL"]
    with serve(options) as url:
        monkeypatch.setenv("HEATPIPE_API_URL", url)
        monkeypatch.setenv("HEATPIPE_CONCURRENCY", "1")
        ended = run(app, ["backfill", *coins, *day, "--depth", "8"])
    printed = capsys.readouterr()
    lines = printed.err.split("\n")
    assert (ended, len(options.ledger), len(lines)) == (code, requests, 2), printed.err
    assert said in lines[0]
    assert lines[0].isprintable()
    assert "sandbox-key" not in printed.err + printed.out
    assert sum(bool(entry.fault) for entry in options.ledger) == 1
    paid = {entry.params["coin"] for entry in options.ledger if not entry.fault}
    assert {series.coin for series in Store(user["HEATPIPE_DATA"]).all_series()} == paid, "what came is kept"


def test_what_was_quarantined_is_said_in_one_line_with_1(
    user: dict[str, str], day: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(Options(keys=KEYS, faults=(Rule(faults.OTHER_COIN),))) as url:
        monkeypatch.setenv("HEATPIPE_API_URL", url)
        assert run(app, ["backfill", "--coin", "BTC", *day]) == 1
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) == 2
    assert "the answer is for coin 'ETH'" in lines[0]


@pytest.mark.parametrize("chaos", ["-0.1", "1.1", "nan", "much"])
def test_chaos_on_the_command_line_is_a_share(capsys: pytest.CaptureFixture[str], chaos: str) -> None:
    assert run(app, ["sandbox", "--port", "0", "--chaos", chaos]) == 2
    assert "chaos" in capsys.readouterr().err


def test_the_sandbox_s_command_takes_chaos_and_its_seed(
    user: dict[str, str], day: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of six coins one at least is struck by what is no legal variety, whatever day it is."""
    command = [sys.executable, "-m", "heatpipe", "sandbox", "--port", "0", "--chaos", "1", "--seed", "7"]
    coins = [word for coin in COINS for word in ("--coin", coin)]
    with subprocess.Popen(command, env=user, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split(";")[0].split()[-1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HEATPIPE_TIMEOUT_S", "0.5")
            patch.setenv("HEATPIPE_PATIENCE_S", "0.5")
            ended = run(app, ["backfill", *coins, *day, "--depth", "5", "--api-url", url])
        process.terminate()
        process.communicate(timeout=10)
    assert ended == 1
    said = capsys.readouterr().err
    assert re.search("failed: |no answer|no good answer|asks everyone to wait", said)


# --- all of it at once --------------------------------------------------------------------------------------------


MANY = [Series(coin, "HOUR", depth=8) for coin in COINS]


@pytest.mark.parametrize("seed", [0, 11])
def test_through_chaos_the_tree_is_the_clean_run_s(
    make_sandbox: MakeSandbox, settings: MakeSettings, tmp_path: Path, seed: int
) -> None:
    expected = settings(root=str(tmp_path / "expected"))
    assert fill(expected, Clock(), MANY).failures == ()
    sandbox = make_sandbox(chaos=0.7, seed=seed)
    chosen = settings(sandbox.url, timeout_s=0.2)
    for _ in range(10):
        if not fill(chosen, sandbox.clock, MANY).failures:
            break
    assert dataset(chosen) == dataset(expected)
    assert beside(chosen) == set()
    assert sum(bool(entry.fault) for entry in sandbox.options.ledger) > 20

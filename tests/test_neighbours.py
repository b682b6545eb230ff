"""Neighbours: processes that share a root, and a stranger who shares the key. The command line in real processes.

Nothing waits for time to pass: an answer is held back until the test lets it go, and what a process says on stderr is
waited for.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from heatpipe.ingest import backfill
from heatpipe.layout import day_path, slab_name
from heatpipe.model import Series, Span, Spans, days_of, show_time
from heatpipe.plan import plan_slabs
from heatpipe.sandbox import Market, Tier
from heatpipe.sandbox.app import Answered
from heatpipe.sandbox.market import Points
from heatpipe.store import Store
from tests.conftest import (
    DAY,
    HOUR,
    MINUTE,
    TODAY,
    Asked,
    Clock,
    MakeSettings,
    MakeUpstream,
    Sandbox,
    honest,
    http,
    read_tree,
)
from tests.test_lock import Take, remove_file, remove_folder, replace_file

PATIENCE_S: Final = 30.0
"""What never comes is not waited for longer."""
BTC: Final = Series("BTC", depth=2)
SLAB: Final = plan_slabs(BTC, Span(TODAY - 20 * DAY, TODAY))[0]
START: Final = SLAB.span.start
END: Final = START + 2 * DAY
WINDOWS: Final = 3
"""that it takes to fetch two days"""


@dataclass(frozen=True)
class HeldMarket(Market):
    """A market that tells nothing about what is held until it is let go.

    Parameters
    ----------
    holds : callable
        Whether a coin's points from a second on are held.
    """

    holds: Callable[[str, int], bool] = lambda *_: True
    come: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go: threading.Event = field(default_factory=threading.Event)

    def snapshots(self, coin: str, interval_s: int, start_s: int, *more: int, **options: Any) -> Points:
        if self.holds(coin, start_s) and not self.go.is_set():
            self.come.release()
            assert self.go.wait(PATIENCE_S)
        return super().snapshots(coin, interval_s, start_s, *more, **options)

    def wait_until_asked(self) -> None:
        assert self.come.acquire(timeout=PATIENCE_S), "nobody asks for what is held"


@dataclass
class Running:
    """A command line at work; what it says on stderr is listened to."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)
    silent: bool = False
    """whether it will say no more"""
    heard: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self._ear = threading.Thread(target=self._listen)
        self._ear.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self.heard:
                self.said.append(line.rstrip())
                self.heard.notify_all()
        with self.heard:
            self.silent = True
            self.heard.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_until_said(self, words: str) -> str:
        """Return the line with these words once it is said."""
        with self.heard:
            self.heard.wait_for(lambda: self.silent or any(words in line for line in self.said), PATIENCE_S)
            found = [line for line in self.said if words in line]
            assert found, self.said
            return found[0]

    def end(self) -> tuple[int, dict[str, Any]]:
        """Wait for the end; return the exit code and the document on stdout, if there is one."""
        code = self.process.wait(PATIENCE_S)
        self._ear.join()
        assert self.process.stdout is not None
        said = self.process.stdout.read()
        return code, json.loads(said) if said else {}

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._ear.join()


Begin = Callable[..., Running]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def begin(root: Path) -> Iterator[Begin]:
    """Start `heatpipe backfill` on the root that all share; whoever still runs when the test ends is killed."""
    running: list[Running] = []

    def start(
        url: str, coins: Series | list[Series], span: tuple[int, int], *flags: str, **settings: object
    ) -> Running:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEATPIPE_", "KIYOTAKA_"))}
        defaults = {"weight_per_minute": 10**9, "burst": 10**9, "history_days": 0, "data": root, "api_url": url}
        chosen = {f"HEATPIPE_{name.upper()}": str(value) for name, value in (defaults | settings).items()}
        series = [coins] if isinstance(coins, Series) else coins
        named = [part for one in series for part in ("--coin", one.coin)]
        named += ["--interval", series[0].interval, "--unit", series[0].unit, "--depth", str(series[0].depth)]
        named += ["--start", show_time(span[0]), "--end", show_time(span[1])]
        process = subprocess.Popen(
            [sys.executable, "-m", "heatpipe", "backfill", *named, "--json", *flags],
            env=kept | chosen | {"KIYOTAKA_API_KEY": "sandbox-key"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(Running(process))
        return running[-1]

    yield start
    for each in running:
        each.kill()
        with contextlib.ExitStack() as stack:
            for stream in (each.process.stdout, each.process.stderr):
                assert stream is not None
                stack.callback(stream.close)


Clean = Callable[..., dict[str, bytes]]


@pytest.fixture
def clean(sandbox: Sandbox, settings: MakeSettings, tmp_path: Path) -> Clean:
    """Say what is on disk after one process alone, with nobody else about."""

    def fetch(series: Series | list[Series], span: tuple[int, int]) -> dict[str, bytes]:
        chosen = settings(root=str(tmp_path / "clean"))
        backfill(series, *span, settings=chosen, clock=Clock())
        return read_tree(tmp_path / "clean" / "liquidations")

    return fetch


@pytest.fixture
def held(make_sandbox: Callable[..., Sandbox]) -> Iterator[Callable[..., tuple[HeldMarket, Sandbox]]]:
    """Start a sandbox that holds its answers back, all of them or those that are chosen."""
    markets: list[HeldMarket] = []

    def make(holds: Callable[[str, int], bool] = lambda *_: True) -> tuple[HeldMarket, Sandbox]:
        markets.append(HeldMarket(gaps=True, holds=holds))
        return markets[-1], make_sandbox(
            market=markets[-1], clock=time.time, keys={"sandbox-key": Tier("enterprise", 10**9, 10**9, history_days=0)}
        )

    yield make
    for market in markets:
        market.go.set()


def wait_for(path: Path) -> None:
    """Wait until another process has made a file."""
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"nobody makes {path}"
        time.sleep(0.01)


def asked(sandbox: Sandbox, coin: str = "BTC") -> list[Span]:
    """What was asked for and answered, sorted."""
    params = [answered.params for answered in sandbox.options.ledger if answered.params["coin"] == coin]
    return sorted(Span(int(p["from"]), int(p["from"]) + int(p["period"])) for p in params)


def check_once(spans: list[Span], *whole: tuple[int, int]) -> None:
    """All of it was asked for, and nothing twice."""
    assert all(one.end <= other.start for one, other in itertools.pairwise(spans)), spans
    assert Spans.of(spans) == Spans.of(whole)


# --- the same series ----------------------------------------------------------------------------------------------


def test_who_comes_second_waits_says_for_whom_and_finds_the_work_done(
    held: Callable[..., tuple[HeldMarket, Sandbox]], begin: Begin, clean: Clean, root: Path
) -> None:
    market, sandbox = held()
    first = begin(sandbox.url, BTC, (START, END))
    market.wait_until_asked()
    others = [begin(sandbox.url, BTC, (START, END)) for _ in range(2)]
    for other in others:
        line = other.wait_until_said("waiting: BTC MINUTE")
        assert f"is being worked on by process {first.pid} on {os.uname().nodename}" in line
    market.go.set()
    code, report = first.end()
    assert (code, report["requests"], first.said) == (0, WINDOWS, [])
    for other in others:
        code, report = other.end()
        assert (code, report["requests"], report["days"], len(other.said)) == (0, 0, 0, 1)
    check_once(asked(sandbox), (START, END))
    assert read_tree(root / "liquidations") == clean(BTC, (START, END))


def test_who_may_not_wait_names_the_holder_fetches_the_rest_and_ends_at_once(
    held: Callable[..., tuple[HeldMarket, Sandbox]], begin: Begin, clean: Clean, root: Path
) -> None:
    market, sandbox = held(lambda coin, _: coin == "BTC")
    coins = [BTC, Series("ETH", depth=2)]
    first = begin(sandbox.url, BTC, (START, END))
    market.wait_until_asked()
    second = begin(sandbox.url, coins, (START, END), "--no-wait")
    code, report = second.end()
    assert (code, report["requests"], report["days"]) == (1, WINDOWS, 2)
    assert first.process.poll() is None
    [line] = second.said
    assert line.startswith("failed: BTC MINUTE")
    assert f"is being worked on by process {first.pid} on {os.uname().nodename}" in line
    market.go.set()
    assert first.end()[0] == 0
    check_once(asked(sandbox), (START, END))
    assert read_tree(root / "liquidations") == clean(coins, (START, END))


def test_a_lock_dies_with_its_holder_and_who_waits_goes_on(
    held: Callable[..., tuple[HeldMarket, Sandbox]], begin: Begin, clean: Clean, root: Path
) -> None:
    """The first is killed with one day on disk, another in memory."""
    market, sandbox = held(lambda _, start: start > START + DAY)
    first = begin(sandbox.url, BTC, (START, END), concurrency=1)
    market.wait_until_asked()
    wait_for(root / day_path(BTC, START // DAY))
    second = begin(sandbox.url, BTC, (START, END))
    second.wait_until_said(f"process {first.pid} on")
    first.kill()
    market.go.set()
    code, report = second.end()
    assert code == 0
    assert 0 < report["points"] <= DAY // MINUTE, "the day that was on disk was fetched again"
    assert read_tree(root / "liquidations") == clean(BTC, (START, END))
    assert read_tree(root / "_tmp") == {}


def test_spans_that_overlap_are_fetched_once(
    held: Callable[..., tuple[HeldMarket, Sandbox]], begin: Begin, clean: Clean, root: Path
) -> None:
    market, sandbox = held()
    first = begin(sandbox.url, BTC, (START, START + 30 * HOUR))
    market.wait_until_asked()
    second = begin(sandbox.url, BTC, (START + 20 * HOUR, END + 2 * HOUR))
    second.wait_until_said("waiting: ")
    market.go.set()
    assert first.end()[0] == second.end()[0] == 0
    check_once(asked(sandbox), (START, END + 2 * HOUR))
    assert read_tree(root / "liquidations") == clean(BTC, (START, END + 2 * HOUR))


def test_who_waits_for_one_slab_fetches_the_others_meanwhile(
    held: Callable[..., tuple[HeldMarket, Sandbox]], begin: Begin
) -> None:
    """The second process wants the last day of the slab before, too, which nobody holds."""
    market, sandbox = held(lambda _, start: start >= START)
    first = begin(sandbox.url, BTC, (START, END))
    market.wait_until_asked()
    second = begin(sandbox.url, BTC, (START - DAY, END))
    second.wait_until_said("waiting: ")
    assert asked(sandbox) == [Span(START - DAY, START - DAY + 1000 * MINUTE), Span(START - DAY + 1000 * MINUTE, START)]
    market.go.set()
    assert first.end()[0] == second.end()[0] == 0
    check_once(asked(sandbox), (START - DAY, END))


def test_two_that_want_the_same_coins_in_opposite_order_both_end(
    held: Callable[..., tuple[HeldMarket, Sandbox]], begin: Begin, clean: Clean, root: Path
) -> None:
    """With one request at a time each holds one coin while it wants the other."""
    market, sandbox = held()
    coins = [BTC, Series("ETH", depth=2)]
    both = [begin(sandbox.url, order, (START, END), concurrency=1) for order in (coins, coins[::-1])]
    market.wait_until_asked()
    market.wait_until_asked()
    market.go.set()
    assert [each.end()[0] for each in both] == [0, 0]
    check_once(asked(sandbox, "BTC"), (START, END))
    check_once(asked(sandbox, "ETH"), (START, END))
    assert read_tree(root / "liquidations") == clean(coins, (START, END))


# --- a lock that is gone --------------------------------------------------------------------------------------------

LOCK: Final = f"_locks/{slab_name(SLAB)}.lock"
LATER: Final = START + 4 * DAY
SIX: Final = 6
"""windows that it takes to fetch four days"""


class Theft:
    """An upstream, and what happens there: while the first run waits for one answer its lock goes, a second one begins.

    Each window is asked for by the first run first. `second` is held at its first answer until it is let go.
    """

    def __init__(self, upstream: MakeUpstream, root: Path, window: int, bad: int | None = None) -> None:
        self.url = upstream(self._answer).url
        self._root = root
        self._window = START + window * 1000 * MINUTE
        self._bad = None if bad is None else START + bad * 1000 * MINUTE
        self._counts: Counter[int] = Counter()
        self._come, self.first, self.second = (threading.Event() for _ in range(3))
        self._second_come = threading.Event()

    def _answer(self, asked: Asked) -> Iterator[bytes]:
        start = asked.span.start
        self._counts[start] += 1
        if self._counts[start] > 1:
            self._second_come.set()
            assert self.second.wait(PATIENCE_S)
        elif start >= self._window:
            self._come.set()
            assert self.first.wait(PATIENCE_S)
            if start == self._bad:
                wait_for(self._root / day_path(BTC, START // DAY))  # by then the first run knows that its lock is lost
                yield http(body=b"{}")
                return
        yield honest(asked)

    def happens(self, root: Path, take: Take, begin_second: Callable[[], Running]) -> Running:
        assert self._come.wait(PATIENCE_S)
        take(root)
        second = begin_second()
        assert self._second_come.wait(PATIENCE_S)
        return second


Steal = Callable[..., tuple[Theft, Running, Running]]


@pytest.fixture
def steal(upstream: MakeUpstream, begin: Begin, root: Path) -> Iterator[Steal]:
    thefts: list[Theft] = []

    def make(*flags: str, take: Take, window: int, end: int = LATER, **more: int) -> tuple[Theft, Running, Running]:
        theft = Theft(upstream, root, window, more.pop("bad", None))
        thefts.append(theft)
        settings = {"concurrency": 1} | more
        first = begin(theft.url, BTC, (START, end), *flags, **settings)
        second = theft.happens(root, take, lambda: begin(theft.url, BTC, (START, end), concurrency=1))
        return theft, first, second

    yield make
    for theft in thefts:
        theft.first.set()
        theft.second.set()


@pytest.fixture
def honestly(upstream: MakeUpstream, settings: MakeSettings, tmp_path: Path) -> Callable[[int], dict[str, bytes]]:
    """Say what is on disk after one process alone."""

    def fetch(end: int) -> dict[str, bytes]:
        chosen = settings(upstream(honest).url, root=str(tmp_path / "alone"))
        backfill(BTC, START, end, settings=chosen, clock=Clock())
        return read_tree(tmp_path / "alone" / "liquidations")

    return fetch


def covered(root: Path) -> Spans:
    return Store(str(root)).covered(BTC, days_of(Span(START, LATER)))


@pytest.mark.parametrize("take", [replace_file, remove_folder])
def test_who_loses_its_lock_stores_what_came_and_waits_for_the_other(
    steal: Steal, root: Path, honestly: Callable[[int], dict[str, bytes]], take: Take
) -> None:
    theft, first, second = steal(take=take, window=1)
    theft.first.set()
    first.wait_until_said("waiting: BTC MINUTE")
    lost, _ = first.said
    assert f" {root / LOCK} was removed or replaced while BTC MINUTE" in lost
    assert f"process {second.pid} on {os.uname().nodename} works on it by now; what came is stored" in lost
    assert covered(root) == Spans.of([(START, START + 3000 * MINUTE)])
    theft.second.set()
    code, report = first.end()
    assert (code, report["requests"], report["failures"], len(first.said)) == (0, 3, [], 2)
    code, report = second.end()
    assert (code, report["requests"], report["failures"], second.said) == (0, SIX, [], [])
    assert (report["points"], report["unchanged"]) == (2760, 3000)
    assert read_tree(root / "liquidations") == honestly(LATER)
    assert read_tree(root / "_tmp") == {}


def test_who_may_not_wait_stores_what_came_and_ends_with_a_line(
    steal: Steal, root: Path, honestly: Callable[[int], dict[str, bytes]]
) -> None:
    theft, first, second = steal("--no-wait", take=remove_folder, window=1)
    theft.first.set()
    code, report = first.end()
    assert (code, report["points"]) == (1, 3000)
    (line,) = first.said
    assert line.startswith(f"failed: {root / LOCK} was removed or replaced while BTC MINUTE")
    assert line.endswith("works on it by now; what came is stored, and nothing more was asked for")
    assert covered(root) == Spans.of([(START, START + 3000 * MINUTE)])
    theft.second.set()
    assert second.end()[0] == 0
    assert read_tree(root / "liquidations") == honestly(LATER)


@pytest.mark.parametrize("flags", [(), ("--no-wait",)])
def test_who_has_all_that_it_wants_loses_nothing_with_its_lock(
    steal: Steal, root: Path, honestly: Callable[[int], dict[str, bytes]], flags: tuple[str, ...]
) -> None:
    end = START + 500 * MINUTE
    theft, first, second = steal(*flags, take=remove_file, window=0, end=end)
    theft.first.set()
    code, report = first.end()
    assert (code, report["points"], report["failures"], len(first.said)) == (0, 500, [], 1)
    theft.second.set()
    code, report = second.end()
    assert (code, report["points"], report["unchanged"]) == (0, 0, 500)
    assert read_tree(root / "liquidations") == honestly(end)


def test_an_interrupt_stores_what_came_though_another_run_has_the_lock(
    steal: Steal, root: Path, honestly: Callable[[int], dict[str, bytes]]
) -> None:
    theft, first, second = steal(take=replace_file, window=1)
    first.process.send_signal(signal.SIGTERM)
    assert first.end()[0] == 130
    assert covered(root) == Spans.of([(START, START + 1000 * MINUTE)])
    theft.first.set()
    theft.second.set()
    assert second.end()[0] == 0
    assert read_tree(root / "liquidations") == honestly(LATER)


def test_a_bad_answer_to_who_has_lost_its_lock_is_left_to_the_other(
    steal: Steal, root: Path, honestly: Callable[[int], dict[str, bytes]]
) -> None:
    """All windows are on their way when the lock goes; the last one comes as another document than was asked for."""
    theft, first, second = steal(take=remove_folder, window=1, bad=2, concurrency=2)
    theft.first.set()
    first.wait_until_said("works on it by now")
    theft.second.set()
    assert [run.end()[0] for run in (first, second)] == [0, 0]
    assert read_tree(root / "_quarantine") == {}
    assert read_tree(root / "liquidations") == honestly(LATER)


def test_runs_in_opposite_order_whose_locks_go_do_not_wait_for_each_other_for_ever(
    held: Callable[..., tuple[HeldMarket, Sandbox]], begin: Begin, clean: Clean, root: Path
) -> None:
    """Each has one coin in hand when the locks go, and a third one takes both."""
    market, sandbox = held()
    coins = [BTC, Series("ETH", depth=2)]
    runs = [begin(sandbox.url, order, (START, END), concurrency=1) for order in (coins, coins[::-1])]
    for _ in runs:
        market.wait_until_asked()
    remove_folder(root)
    runs.append(begin(sandbox.url, coins, (START, END), concurrency=3))
    market.wait_until_asked()
    market.go.set()
    assert [run.end()[0] for run in runs] == [0, 0, 0]
    assert read_tree(root / "liquidations") == clean(coins, (START, END))
    assert read_tree(root / "_tmp") == {}


# --- different series ---------------------------------------------------------------------------------------------

OTHERS: Final = (
    (Series("ETH", depth=2), (START, START + HOUR)),
    (Series("BTC", "FIVE_MINUTES", depth=2), (START, START + HOUR)),
    (Series("BTC", "MINUTE", "usd", 2), (START, START + HOUR)),
    (Series("BTC", depth=3), (START, START + HOUR)),
    (BTC, (START - HOUR, START)),
)
"""What differs from the two days of BTC in its coin, interval, unit, depth, or slab."""


def test_who_works_on_something_else_does_not_wait(
    held: Callable[..., tuple[HeldMarket, Sandbox]], begin: Begin, clean: Clean, root: Path
) -> None:
    """All of them begin after the first has, and end while it is still held at its first answer."""
    calls = itertools.count()
    market, sandbox = held(lambda *_: next(calls) == 0)
    first = begin(sandbox.url, BTC, (START, END))
    market.wait_until_asked()
    others = [begin(sandbox.url, *other) for other in OTHERS]
    for running in others:
        code, report = running.end()
        assert (code, report["requests"], report["days"], running.said) == (0, 1, 1, [])
    assert first.process.poll() is None
    market.go.set()
    assert first.end()[0] == 0
    for other in OTHERS:
        clean(*other)
    assert read_tree(root / "liquidations") == clean(BTC, (START, END))


# --- a stranger on the same key -----------------------------------------------------------------------------------

PER_MINUTE: Final = 3000
BURST: Final = 60
COINS: Final = [Series(f"COIN{number}", depth=20) for number in range(40)]
"""One request of weight 5 each: twelve can leave at once, then ten in a second"""
CONCURRENCY: Final = 3
ROBBERIES: Final = 3
BETWEEN: Final = 11
"""answers that the run gets between two robberies"""
PAUSE_S: Final = 1.0
"""what the sandbox names: it counts whole seconds, and a few tenths would do"""


class TimedLedger(list[Answered]):
    """A ledger that knows when what was answered, and tells who listens."""

    def __init__(self) -> None:
        super().__init__()
        self.at_s: list[float] = []
        self.changed = threading.Condition()

    def append(self, answered: Answered) -> None:
        with self.changed:
            self.at_s.append(time.monotonic())
            super().append(answered)
            self.changed.notify_all()

    def times(self, status: int) -> list[float]:
        """When the run, not the stranger, was answered so."""
        with self.changed:
            both = list(zip(self, self.at_s, strict=True))
        return [at for answered, at in both if answered.status == status and answered.params["coin"] != "STRANGER"]


def rob(url: str, ledger: TimedLedger, run: Running) -> None:
    """Take all that is in the bucket, and what comes in, until the run has been refused; do so some times, apart."""
    fixed = {"type": "HYPERLIQUID_LIQUIDATION_AGG", "coin": "STRANGER", "interval": "MINUTE", "from": str(START)}
    with httpx.Client(base_url=url, headers={"X-Kiyotaka-Key": "sandbox-key"}, trust_env=False) as client:
        for robbery in range(1, ROBBERIES + 1):
            refused = len(ledger.times(429))
            while len(ledger.times(200)) < BETWEEN * robbery and run.process.poll() is None:
                with ledger.changed:
                    ledger.changed.wait(0.1)
            while len(ledger.times(429)) == refused and run.process.poll() is None:
                for depth in (82_500, 25_000, 1500):  # of weights 60, 21 and 5: it takes few requests to take all
                    client.get("/v1/points", params=fixed | {"period": "60", "maxDepth": str(depth)})


def test_a_stranger_on_the_same_key_costs_a_pause_each_time_he_takes_all_and_no_more(
    make_sandbox: Callable[..., Sandbox], begin: Begin, clean: Clean, root: Path
) -> None:
    """429s are few: of those requests alone that were on their way when the first was refused. On a machine at rest
    that is one for each robbery, on a busy one the last may come too late to strike; nobody asks while the pause lasts
    that the upstream has named."""
    ledger = TimedLedger()
    tier = Tier("advanced", PER_MINUTE, BURST, history_days=0)
    sandbox = make_sandbox(keys={"sandbox-key": tier}, clock=time.time, ledger=ledger)
    span = (START, START + 10 * MINUTE)
    run = begin(sandbox.url, COINS, span, weight_per_minute=PER_MINUTE, burst=BURST, concurrency=CONCURRENCY)
    stranger = threading.Thread(target=rob, args=(sandbox.url, ledger, run))
    stranger.start()
    code, report = run.end()
    stranger.join()
    refused, answered = ledger.times(429), ledger.times(200)
    assert (code, report["failures"]) == (0, [])
    assert len(answered) == len(COINS), "what was answered was asked for again"
    assert report["requests"] == len(answered) + len(refused)
    assert refused, "the stranger did not take enough to prove anything"
    pauses = [refused[0], *(at for before, at in itertools.pairwise(refused) if at - before > 0.9 * PAUSE_S)]
    for at in pauses:
        # First the refusal has to reach the run, which a busy machine may take its time for.
        late = [other for other in answered + refused if at + 0.3 * PAUSE_S < other < at + 0.9 * PAUSE_S]
        assert len(late) < CONCURRENCY, "somebody asked while the pause lasted"
    assert len(refused) <= 2 * CONCURRENCY * ROBBERIES
    assert len(pauses) <= 2 * ROBBERIES
    floor_s = (report["weight"] - BURST) * 60 / PER_MINUTE
    assert report["seconds"] < len(pauses) * PAUSE_S + floor_s + 5.0
    assert read_tree(root / "liquidations") == clean(COINS, span)

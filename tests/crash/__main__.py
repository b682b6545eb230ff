"""``make soak``: two hundred kill points, then a week of three coins from a bad upstream with a kill -9 now and then.

Prints what it does; ends with 0 when every promise held, else with 1 and the one that did not.
``ARGS="--points 500 --seed 8"`` for more kill points and other faults.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from heatpipe import layout
from heatpipe.model import show_time
from heatpipe.sandbox import Options, serve
from tests.conftest import read_tree
from tests.crash.launcher import PROJECT
from tests.crash.rig import (
    DAY,
    KEYS,
    Reader,
    SwiftMarket,
    check_sound,
    die_and_go_on,
    files_below,
    kill_points,
    make_rig,
)

COINS: Final = ("BTC", "ETH", "PURR/USDC")
DEPTH: Final = 50
CHAOS: Final = 0.2
LATENCY_S: Final = 0.4
LIFE_S: Final = (1.5, 5.0)
"""How long a run of the week may live, from its start."""
LIMIT_S: Final = 900
"""How long the week may take."""
PROCESSES: Final = 2
DONE: Final = 0
FAILED: Final = 1


@dataclass(slots=True)
class Count:
    """What the soak has been through."""

    points: int = 0
    kills: int = 0
    runs: int = 0
    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)


def say(line: str) -> None:
    print(line, flush=True)


def soak_points(number: int, folder: Path, count: Count) -> None:
    """Die at each of many points of a run and go on."""
    say(f"{number} kill points, two by two:")
    with ThreadPoolExecutor(PROCESSES) as pool:
        shares = [pool.submit(_soak_share, number, share, folder / f"rig-{share}") for share in range(PROCESSES)]
        for done in shares:
            points, requests = done.result()
            count.points += points
            count.requests += requests
            count.runs += 2 * points


def _soak_share(number: int, share: int, folder: Path) -> tuple[int, int]:
    folder.mkdir()
    with make_rig(folder) as (rig, undisturbed):
        orders = kill_points(rig, undisturbed, number)[share::PROCESSES]
        for done, order in enumerate(orders, 1):
            die_and_go_on(rig, undisturbed, folder / str(done), order)
            if done % 10 == 0:
                say(f"  {done} of {len(orders)} in process {share + 1}, the last one: {order}")
        return len(orders), len(rig.ledger)


@dataclass(frozen=True)
class Week:
    """The command that runs until it is done, and where."""

    start_s: int
    end_s: int
    root: Path
    url: str

    @property
    def command(self) -> list[str]:
        coins = [word for coin in COINS for word in ("--coin", coin)]
        span = ["--start", show_time(self.start_s), "--end", show_time(self.end_s)]
        return [*coins, *span, "--interval", "MINUTE", "--depth", str(DEPTH)]

    def begin(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start the real command line."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEATPIPE_", "KIYOTAKA_"))}
        variables = {
            "KIYOTAKA_API_KEY": "sandbox-key",
            "HEATPIPE_API_URL": self.url,
            "HEATPIPE_DATA": str(self.root),
            "HEATPIPE_WEIGHT_PER_MINUTE": "1000000000",
            "HEATPIPE_BURST": "1000000000",
            "HEATPIPE_TIMEOUT_S": "2",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "heatpipe", *arguments],
            cwd=PROJECT,
            env=kept | variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> None:
        """Run a command that must end well."""
        with self.begin(*arguments) as process:
            _, said = process.communicate(timeout=LIMIT_S)
        assert process.returncode == DONE, f"{arguments[0]}: {process.returncode}, {said}"


def soak_week(folder: Path, seed: int, count: Count) -> None:
    """Backfill a week through chaos and kills until it is done, then hold it against a clean one."""
    end_s = int(time.time()) // DAY * DAY - DAY
    start_s = end_s - 7 * DAY
    say(f"{show_time(start_s)[:10]} to {show_time(end_s)[:10]} of {', '.join(COINS)}, chaos {CHAOS}, seed {seed}:")
    market = SwiftMarket(seed, gaps=True)
    options = Options(market=market, keys=KEYS, latency_s=LATENCY_S, chaos=CHAOS, seed=seed)
    reader = Reader(folder / "chaos")
    with serve(options) as url, reader.reading():
        week = Week(start_s, end_s, folder / "chaos", url)
        try:
            _until_done(week, random.Random(seed), count)
        finally:
            count.requests += len(options.ledger)
            count.faults.update(answered.fault for answered in options.ledger if answered.fault)
    check_sound(week.root)
    week.run("verify")
    assert files_below(week.root / "_tmp") == []
    assert files_below(week.root / "_quarantine") == [], "all is covered, yet the quarantine holds records"
    say(f"  done, and a reader found {reader.versions:,} versions of days sound; now the clean run")
    with serve(Options(market=market, keys=KEYS)) as url:
        clean = Week(start_s, end_s, folder / "clean", url)
        clean.run("backfill", *clean.command)
    found, expected = (read_tree(one.root / layout.TABLE) for one in (week, clean))
    assert found == expected, [path for path in found | expected if found.get(path) != expected.get(path)]
    say(f"  {len(found)} day files, byte for byte those of the clean run")


def _until_done(week: Week, dice: random.Random, count: Count) -> None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        count.runs += 1
        with week.begin("backfill", *week.command) as process:
            try:
                _, said = process.communicate(timeout=dice.uniform(*LIFE_S))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                count.kills += 1
                say(f"  killed; {len(files_below(week.root / layout.TABLE))} day files so far")
                continue
        assert process.returncode in (DONE, FAILED), f"{process.returncode}: {said}"
        if process.returncode == DONE:
            return
        say(f"  ended with 1: {said.splitlines()[-1]}")
    raise AssertionError(f"the week was not done after {LIMIT_S} s")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make soak", description="Death at any moment, at length.")
    parser.add_argument("--points", type=int, default=200, help="how many kill points")
    parser.add_argument("--seed", type=int, default=7, help="of the market, the faults and the kills")
    options = parser.parse_args(arguments)
    count, started = Count(), time.monotonic()
    fault = ""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        try:
            soak_points(options.points, Path(name), count)
            soak_week(Path(name), options.seed, count)
        except AssertionError as exc:
            fault = str(exc) or "a promise was broken"
    kinds = ", ".join(f"{kind} {times}" for kind, times in count.faults.most_common())
    say(
        f"{count.points} kill points, {count.kills} kills, {sum(count.faults.values())} faults ({kinds}), "
        f"{count.requests:,} requests in {count.runs:,} runs, {time.monotonic() - started:.0f} s"
    )
    say(f"FAILED: {fault}" if fault else "Every promise held.")
    return FAILED if fault else DONE


if __name__ == "__main__":
    sys.exit(main())

"""Large: years of scattered absences, thousands of coins, a hundred thousand records, a sandbox that serves on.

Rows 12 to 16. ``python -m tests.benchmarks.growth REQUESTS`` asks the sandbox as often as that, and says what it took.
"""

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import numpy as np

from heatpipe.layout import Day, day_path
from heatpipe.model import Coverage, Series, Snapshots, Span, Spans, day_span
from heatpipe.sandbox import market
from heatpipe.sandbox.app import DATA_TYPE, KEY_HEADER
from heatpipe.store import Store
from heatpipe.upstream import POINTS_PATH
from tests.benchmarks.bodies import DAY_S, MINUTE_S, PLAIN, PLAIN_DEPTH, START
from tests.benchmarks.commands import (
    HEATPIPE,
    days_in,
    empty_root,
    environment,
    make_once,
    name_series,
    show_instant,
    time_rows,
)
from tests.benchmarks.measure import Usage, measure_command, peak_of, take_turns
from tests.benchmarks.table import Row, lay_out, pair
from tests.benchmarks.upstream import PLENTY, run_upstream

YEARS_NAME = "years"
COINS_NAME = "coins"
RECORDS_NAME = "records"
FILE_NAME = "file"
SANDBOX_NAME = "sandbox"
YEAR_DAYS = 365
YEARS = Series("YEARS")
NOBODY = "http://127.0.0.1:9"

ABSENT_A_DAY = 100
ABSENT_EVERY = 13
"""One in so many minutes is absent, until there are enough of them."""
YEARS_BAR_S = 10.0

COINS = 1_000
ANSWERS = 500
SETTLED = 20
"""So many of the answers are not counted: the first requests of a run go alone."""
PACE_BAR = 0.8

RECORDS = 100_000
RECORDS_BAR_S = 5.0
MOST_RUNS = 3
"""A hundred thousand records take longer to write than to drop."""

FILE_COINS = 5_000
FILE_BAR_S = 10.0
FILE_BAR_MIB = 300

ASKED = 200
AT_ONCE = 4
WINDOWS = ((1_000, "gzip"), (1_000, "gzip"), (1_000, "gzip"), (5_000, "identity"))
"""Points, and how they travel: three as heatpipe asks, then the largest there is."""
SANDBOX_BAR_MIB = 300


def measure_years(runs: int, days: int = 10 * YEAR_DAYS) -> Iterator[Row]:
    """Time the commands that add coverage up, over ten coin-years: of one coin, for a picture shows one."""
    root = make_years(days)
    work = f"{days:,} days, {ABSENT_A_DAY} absences each"
    with tempfile.TemporaryDirectory() as folder:
        for command in ("status", "plan --update", "heatmap"):
            words = [*command.split(), *(["-o", f"{folder}/x.png"] if command == "heatmap" else [])]
            call = partial(measure_command, [*HEATPIPE, *words, "--data", str(root)], environment(NOBODY))
            usages = [call() for _ in range(runs)]
            yield from time_rows(12, YEARS_NAME, f"{command}: {work}", YEARS_BAR_S, usages)


def make_years(days: int) -> Path:
    """Return a root with the days before `START`, of which some minutes are absent and the others hold one level."""
    return make_once(f"years-{days}", partial(_write_years, days))


def _write_years(days: int, root: Path) -> None:
    store, every = Store(str(root)), ABSENT_EVERY * MINUTE_S
    for slab, number in days_in(YEARS, Span(START - days * DAY_S, START)):
        day = day_span(number)
        absent = Spans.of((at, at + MINUTE_S) for at in range(day.start, day.start + ABSENT_A_DAY * every, every))
        covered = Spans((day,))
        stamps = np.array([at for part in covered - absent for at in range(*part, MINUTE_S)], np.int64)
        price, ones = 100 + (stamps // MINUTE_S % 50).astype(np.float64), np.ones(len(stamps))
        snapshots = Snapshots(stamps * 1_000_000, ones.astype(np.int64), price, ones)
        store.write_day(Day(YEARS, number, snapshots, Coverage(covered, absent)), slab)


def measure_coins(runs: int, coins: int = COINS, answers: int = ANSWERS) -> Iterator[Row]:
    """Compare the requests a second at the begin of a backfill of many coins, a year each, with those of one coin."""
    many, one = take_turns(runs, lambda: _pace(coins, answers), lambda: _pace(1, answers))
    work = f"the first {answers} answers of {coins:,} coins × 1 year"
    yield Row(
        13, COINS_NAME, work, unit="requests / s", against="1 coin", bar=PACE_BAR, at_least=True, **pair(many, one)
    )


def _pace(coins: int, answers: int) -> float:
    """Return the requests a second of a backfill, which is interrupted when it has so many answers."""
    with run_upstream(PLAIN) as upstream, empty_root() as root, _name_coins(coins, YEAR_DAYS) as file:
        command = [*HEATPIPE, "backfill", "--config", file, "--data", root, "--quiet"]
        with subprocess.Popen(command, env=environment(upstream.url), stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and upstream.count().get("200", 0) < answers:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            said = process.communicate()[1]
        times = upstream.times()[SETTLED:answers]
        if len(times) < answers - SETTLED:
            raise RuntimeError(f"{' '.join(command)} ended too soon:\n{said}")
        return (len(times) - 1) / (times[-1] - times[0])


@contextmanager
def _name_coins(coins: int, days: int) -> Iterator[str]:
    """Write a file that names so many coins' series, of so many days."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        names = ", ".join(f'"{PLAIN}{number:04}"' for number in range(coins))
        bounds = f'start = "{show_instant(START - days * DAY_S)}"\nend = "{show_instant(START)}"'
        file.write(f"[[series]]\ncoins = [{names}]\ndepth = {PLAIN_DEPTH}\n{bounds}\n")
        file.flush()
        yield file.name


def measure_records(runs: int, records: int = RECORDS, days: int = YEAR_DAYS) -> Iterator[Row]:
    """Time what looks at a large quarantine: a status, and a backfill that finds all of it on disk by now."""
    root = make_years(days)
    flags = [*name_series([YEARS.coin], START - days * DAY_S, START), "--data", str(root)]
    usages: dict[str, list[Usage]] = {"status": [], "backfill": []}
    for _ in range(min(runs, MOST_RUNS)):
        folder = _write_records(root, records, days)
        for command, found in usages.items():
            found.append(measure_command([*HEATPIPE, command, *flags], environment(NOBODY)))
        if any(folder.iterdir()):
            raise RuntimeError(f"the backfill has left records in {folder}")
    for command, found in usages.items():
        yield from time_rows(14, RECORDS_NAME, f"{command}: {records:,} records", RECORDS_BAR_S, found)


def _write_records(root: Path, records: int, days: int) -> Path:
    """Write as many records of minutes that are covered; return their folder."""
    folder = root / "_quarantine" / day_path(YEARS, 0).parent.parent.relative_to("liquidations")
    folder.mkdir(parents=True, exist_ok=True)
    every = days * DAY_S // MINUTE_S // records * MINUTE_S
    for start in range(START - days * DAY_S, START - days * DAY_S + records * every, every):
        (folder / f"{start}-{start + MINUTE_S}.json").write_text("{}")
    os.sync()  # what the disk still has to do for these is no part of what is measured
    return folder


def measure_file(runs: int, coins: int = FILE_COINS) -> Iterator[Row]:
    """Take time, memory and warnings of a plan for a file of many coins, half of whose span is beyond the history."""
    with _name_coins(coins, 2 * YEAR_DAYS) as file, empty_root() as root:
        command = [*HEATPIPE, "plan", "--config", file, "--data", root]
        days = (time.time() - START) / DAY_S + YEAR_DAYS
        history = {"HEATPIPE_HISTORY_DAYS": f"{days:.0f}"}
        usages = [measure_command(command, environment(NOBODY) | history) for _ in range(runs)]
    work = f"plan: {coins:,} coins in a file"
    yield from time_rows(15, FILE_NAME, work, FILE_BAR_S, usages)
    peak = statistics.median(usage.peak_bytes for usage in usages) / 2**20
    yield Row(15, FILE_NAME, f"{work}, peak", peak, "MiB", "limit", FILE_BAR_MIB, 1.0)
    warnings = usages[0].stderr.count("\n")
    yield Row(15, FILE_NAME, f"{work}, warnings", warnings, "lines", "limit", 1, 1.0)


def measure_sandbox(_runs: int, asked: int = ASKED) -> Iterator[Row]:
    """Take the peak of a sandbox that is asked for many windows of many coins, some of them damaged; once."""
    command = [*HEATPIPE, "sandbox", "--port", "0", "--chaos", "0.05"]
    command += ["--weight-per-minute", str(PLENTY), "--burst", str(PLENTY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            [url] = re.findall(r"http://[0-9.:]+", process.stdout.readline())
            with ThreadPoolExecutor(AT_ONCE) as threads:
                received = sum(threads.map(partial(_ask, url, int(time.time())), range(asked)))
            peak = peak_of(process.pid) / 2**20
        finally:
            process.terminate()
    work = f"{asked:,} windows, {AT_ONCE} at a time, {received / 2**20:,.0f} MiB"
    yield Row(16, SANDBOX_NAME, f"{work}, peak", peak, "MiB", "limit", SANDBOX_BAR_MIB, 1.0)


def _ask(url: str, now: int, number: int) -> int:
    """Ask for a window of its own; return how many bytes came of it."""
    points, coding = WINDOWS[number % len(WINDOWS)]
    coin = [*market.COINS, *(f"C{n}" for n in range(100))][number % (len(market.COINS) + 100)]
    params: dict[str, str | int] = {
        "type": DATA_TYPE,
        "coin": coin,
        "interval": "MINUTE",
        "flatten": "true",
        "from": now - (1 + number * 37 % 360) * DAY_S,
        "period": points * MINUTE_S,
    }
    headers = {KEY_HEADER: "sandbox-key", "Accept-Encoding": coding}
    received = 0
    try:
        with httpx.stream(
            "GET", f"{url}{POINTS_PATH}", params=params, headers=headers, timeout=60, trust_env=False
        ) as answer:
            for piece in answer.iter_raw():
                received += len(piece)
    except httpx.HTTPError:  # that was the chaos
        pass
    return received


if __name__ == "__main__":
    print(lay_out(measure_sandbox(1, int(sys.argv[1]))))

"""The programs that are measured: heatpipe's command line and the peers', each a process of its own."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from heatpipe.model import Series, Span
from heatpipe.plan import Slab, plan_slabs
from tests.benchmarks.bodies import DAY_S, START, folder_of_all
from tests.benchmarks.measure import Usage, measure_command
from tests.benchmarks.table import Row, pair
from tests.benchmarks.upstream import KEY, PLENTY

HEATPIPE = (sys.executable, "-m", "heatpipe")
ALL_HISTORY_DAYS = 7300


@dataclass(frozen=True, slots=True)
class Run:
    """What a backfill took, and how many rows it wrote.

    Attributes
    ----------
    usage : Usage
        Of the whole process, from its start to its end.
    rows : int
        Written.
    report : dict
        What heatpipe said of it with ``--json``; empty for a peer.
    """

    usage: Usage
    rows: int
    report: dict[str, Any]

    @property
    def rate(self) -> float:
        """Million rows per CPU second."""
        return self.rows / self.usage.cpu_s / 1e6


def environment(url: str, per_minute: float = PLENTY, burst: float = PLENTY) -> dict[str, str]:
    """Return the environment in which heatpipe meets an upstream with this budget, and nothing of the user's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEATPIPE_", "PREFECT_"))}
    return kept | {
        "KIYOTAKA_API_KEY": KEY,
        "HEATPIPE_API_URL": url,
        "HEATPIPE_WEIGHT_PER_MINUTE": f"{per_minute:.0f}",
        "HEATPIPE_BURST": f"{burst:.0f}",
        "HEATPIPE_HISTORY_DAYS": str(ALL_HISTORY_DAYS),
    }


def name_series(coins: Sequence[str], start: int, end: int) -> list[str]:
    """Return the flags that name some coins' series of minutes, from `start` to `end` in Unix seconds."""
    flags = [part for coin in coins for part in ("--coin", coin)]
    return [*flags, "--start", show_instant(start), "--end", show_instant(end)]


def show_instant(at: int) -> str:
    """Write Unix seconds as ISO 8601."""
    return datetime.fromtimestamp(at, UTC).isoformat()


def run_backfill(
    url: str, coins: Sequence[str], seconds: int, *, per_minute: float = PLENTY, burst: float = PLENTY
) -> Run:
    """Let heatpipe fetch so many seconds from `START` into an empty folder."""
    with empty_root() as root:
        flags = ["--data", root, "--json", "--quiet"]
        command = [*HEATPIPE, "backfill", *name_series(coins, START, START + seconds), *flags]
        usage = measure_command(command, environment(url, per_minute, burst))
    report = json.loads(usage.stdout)
    return Run(usage, report["rows"], report)


def run_peer(peer: str, url: str, coin: str, seconds: int) -> Run:
    """Let a peer do the same."""
    with empty_root() as root:
        command = [sys.executable, "-m", f"tests.benchmarks.peers.{peer}", url, root, coin, str(seconds)]
        usage = measure_command(command, environment(url))
    return Run(usage, int(usage.stdout.split()[-1]), {})


def time_rows(number: int, name: str, work: str, bar_s: float, usages: Sequence[Usage]) -> Iterator[Row]:
    """Give the median wall time with its bar, and the CPU time without one: other programs share the clock."""
    wall, cpu = ([getattr(usage, what) for usage in usages] for what in ("wall_s", "cpu_s"))
    limits = [bar_s] * len(usages)
    yield Row(number, name, work, unit="s", against="limit", bar=1.0, **pair(wall, limits))
    yield Row(None, name, f"{work}, CPU", unit="CPU s", against="limit", **pair(cpu, limits))


def make_once(name: str, write: Callable[[Path], None]) -> Path:
    """Return a root of this name in the folder of all; write it first where that was not done before."""
    root = folder_of_all() / name
    if not root.exists():
        print(f"writing day files, once: {root}", flush=True)
        scratch = root.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        write(scratch)
        scratch.rename(root)
    return root


def days_in(series: Series, span: Span) -> Iterator[tuple[Slab, int]]:
    """Give the days of a span, counted from the epoch, each with its slab."""
    for slab in plan_slabs(series, span):
        part = slab.span.clip(span)
        for number in range(part.start // DAY_S, part.end // DAY_S):
            yield slab, number


@contextmanager
def empty_root() -> Iterator[str]:
    """Give a folder that goes with the block."""
    with tempfile.TemporaryDirectory(prefix="heatpipe-bench-") as folder:
        yield str(Path(folder) / "data")

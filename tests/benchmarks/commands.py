"""The programs that are measured: heatpipe's command line and the peers', each a process of its own."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.bodies import START
from tests.benchmarks.measure import Usage, measure_command
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


@contextmanager
def empty_root() -> Iterator[str]:
    """Give a folder that goes with the block."""
    with tempfile.TemporaryDirectory(prefix="heatpipe-bench-") as folder:
        yield str(Path(folder) / "data")

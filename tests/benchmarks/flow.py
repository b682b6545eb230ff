"""The same backfill through Prefect, on a server that runs, and by the engine alone; row 11."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from tests.benchmarks.bodies import BTC, DAY_S, START
from tests.benchmarks.commands import empty_root, environment, run_backfill, show_instant
from tests.benchmarks.measure import measure_command, take_turns
from tests.benchmarks.table import Row, pair
from tests.benchmarks.upstream import run_upstream

NAME = "flow"
COINS = BTC.coins
WORKS = (
    # coins, days, bar
    (COINS[:1], 3, None),
    (COINS[:1], 30, None),
    (COINS, 30, 1.10),
)
SERVER_START_S = 120.0
EMPTY_FLOW = "from prefect import flow; flow(lambda: None, name='empty')()"
MOST_RUNS = 3
"""A coin-year takes minutes of CPU; what the flow costs is large beside the noise of one round."""


def measure_flow(runs: int) -> Iterator[Row]:
    """Compare the CPU seconds of the process that runs the flow with those of the command line; not the server's.

    A run of the flow costs something once, whatever it fetches: the bar is held where a backfill is what heatpipe is
    for, at about a coin-year.
    """
    with run_upstream(BTC.coins[0]) as upstream, run_server() as server:

        def through_prefect(coins: Sequence[str], days: int) -> float:
            with empty_root() as root:
                command = [sys.executable, "-m", "tests.benchmarks.flow_run", root]
                command += [show_instant(START), show_instant(START + days * DAY_S), *coins]
                usage = measure_command(command, environment(upstream.url) | server)
                files = list(Path(root).rglob("*.parquet"))
                assert len(files) == len(coins) * days, f"the flow has written {len(files)} days"
            return usage.cpu_s

        def alone(coins: Sequence[str], days: int) -> float:
            return run_backfill(upstream.url, coins, days * DAY_S).usage.cpu_s

        empty = partial(measure_command, [sys.executable, "-c", EMPTY_FLOW], environment(upstream.url) | server)
        calls = [partial(call, *work[:2]) for work in WORKS for call in (through_prefect, alone)]
        *figures, empties = take_turns(min(runs, MOST_RUNS), *calls, lambda: empty().cpu_s)
    for (coins, days, bar), flow, engine in zip(WORKS, figures[::2], figures[1::2], strict=True):
        work = f"{days} days of {'BTC' if len(coins) == 1 else f'{len(coins)} coins'}"
        number = None if bar is None else 11
        yield Row(number, NAME, work, unit="CPU s", against="the engine alone", bar=bar, **pair(flow, engine))
    yield Row(
        None, NAME, "a flow that does nothing", unit="CPU s", against="the engine, 3 days", **pair(empties, figures[1])
    )


@contextmanager
def run_server() -> Iterator[dict[str, str]]:
    """Run a Prefect server on SQLite while the block lasts; give the environment in which it is used."""
    with tempfile.TemporaryDirectory(prefix="heatpipe-bench-prefect-") as home, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        own = {"PREFECT_HOME": home, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
        command = [str(Path(sys.executable).with_name("prefect")), "server", "start", "--host", "127.0.0.1"]
        with (Path(home) / "server.log").open("w") as log:
            server = subprocess.Popen(
                [*command, "--port", str(port)], env=os.environ | own, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            _wait_for(f"http://127.0.0.1:{port}/api/health", server)
            yield own | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
        finally:
            server.terminate()
            server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SERVER_START_S
    while True:
        try:
            build_opener(ProxyHandler({})).open(url, timeout=5).close()
        except (URLError, OSError):
            assert server.poll() is None, "the Prefect server has ended"
            assert time.monotonic() < deadline, f"no Prefect server answers at {url}"
            time.sleep(0.2)
        else:
            return

"""A Prefect server, and a PostgreSQL below it, as processes of their own in a folder of their own. Loopback only."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import chown, rmtree
from typing import IO, Any, Final
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import numpy as np

from heatpipe.sandbox import Market, Points

PROJECT: Final = Path(__file__).parents[2]
POSTGRES_USER: Final = "postgres"
START_S: Final = 120
"""How long a server may take to start; four tests at once on a small machine are slow."""


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs, of the newest version there is."""
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = max(found, key=lambda path: float(path.parent.parent.name), default=None)
    return newest and newest.parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def run_postgres() -> Iterator[str]:
    """Serve an empty database through a socket; yield the URL that Prefect takes."""
    programs = find_postgres()
    assert programs is not None
    # Neither pytest's folders nor root's are open to the user that PostgreSQL insists on.
    folder = Path(tempfile.mkdtemp(prefix="heatpipe-postgres-"))
    user: dict[str, Any] = {}
    if os.getuid() == 0:
        chown(folder, POSTGRES_USER, POSTGRES_USER)
        user = {"user": POSTGRES_USER, "group": POSTGRES_USER, "extra_groups": []}
    data, log = folder / "data", folder / "log"
    with ExitStack() as stack:
        stack.callback(rmtree, folder)
        subprocess.run(
            [programs / "initdb", "--pgdata", data, "--username", "prefect", "--auth", "trust", "--encoding", "UTF8"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            **user,
        )
        command = [f"{programs}/postgres", "-D", f"{data}", "-k", f"{folder}"]
        with log.open("wb") as said:
            process: subprocess.Popen[bytes] = subprocess.Popen(
                [*command, "-c", "listen_addresses="], stdout=said, stderr=said, cwd=folder, **user
            )
        stack.callback(process.wait)
        stack.callback(process.send_signal, signal.SIGINT)  # PostgreSQL's "fast" end: it waits for nobody
        _wait_for(lambda: _listens(folder / ".s.PGSQL.5432"), process, log)
        yield f"postgresql+asyncpg://prefect@/postgres?host={folder}"  # as docs/server.md has it


@dataclass
class PrefectServer:
    """A Prefect server that can be killed and started again.

    Parameters
    ----------
    home : Path
        Its PREFECT_HOME, also of those who talk to it.
    database : str
        URL of the database; empty for SQLite in `home`.
    """

    home: Path
    database: str = ""
    port: int = field(default_factory=free_port)
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that works with this server: nothing of ours leaks into it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "HEATPIPE_"))}
        kept.pop("KIYOTAKA_API_KEY", None)
        return kept | {
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "PYTHONPATH": str(PROJECT),
        }

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.home.mkdir(parents=True, exist_ok=True)
        environment = self.environment | self.settings
        if self.database:
            environment["PREFECT_API_DATABASE_CONNECTION_URL"] = self.database
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with self.log.open("ab") as said:
            self.process = start_group(command, environment, said)
        _wait_for(self.answers, self.process, self.log)

    def answers(self) -> bool:
        try:
            with build_opener(ProxyHandler({})).open(f"{self.url}/health", timeout=2):
                return True
        except (URLError, OSError):
            return False

    def kill(self) -> None:
        """End it and all that it started, in the middle of whatever it does."""
        if self.process is not None:
            kill_group(self.process)
            self.process = None


@contextmanager
def run_prefect(home: Path, database: str = "", **settings: str) -> Iterator[PrefectServer]:
    """Serve while the block lasts."""
    server = PrefectServer(home, database, settings=settings)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def start_group(
    command: Sequence[str], environment: dict[str, str], output: IO[Any] | int, *, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a process that can be ended with all that it starts."""
    return subprocess.Popen(
        command,
        env=environment,
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=PROJECT,
        start_new_session=True,
    )


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill -9 a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _wait_for(ready: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"it did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.05)


class PlainMarket(Market):
    """Two levels a snapshot, made at no cost: here the budget is what is measured."""

    def snapshots(  # every coin is alike
        self,
        coin: str,  # noqa: ARG002
        interval_s: int,
        start_s: int,
        end_s: int,
        **_: object,
    ) -> Points:
        timestamp_us = np.arange(start_s, end_s, interval_s, dtype=np.int64) * 1_000_000
        price = np.tile([100.0, 200.0], timestamp_us.size)
        return Points(timestamp_us, np.full(timestamp_us.size, 2), price, np.repeat(timestamp_us % 997 / 7, 2))

"""One Prefect server on SQLite, one sandbox and one worker for all tests of the flows."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import Artifact, FlowRun, TaskRun
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_DATABASE_CONNECTION_URL
from prefect.testing.utilities import prefect_test_harness

from heatpipe.sandbox import Market, Options, Tier, serve

REPOSITORY: Final = Path(__file__).parent.parent.parent
CANARY: Final = "canary-5f0e77"
PLENTY: Final = 10**6
PATIENCE_S: Final = 60.0
TASK_RUNS_COME_S: Final = 10.0
"""Task runs reach the server's database as events, a moment later."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep them all in one process where several run the tests: they share the server."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.xdist_group("flows"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment(**more: str) -> dict[str, str]:
    ours = ("HEATPIPE_", "KIYOTAKA_", "PREFECT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    loopback = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    return kept | loopback | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"} | more


def until(true: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {timeout_s:g} s")


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def program(
    log: Path, *command: str, environment: Mapping[str, str], cwd: Path = REPOSITORY
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a module of Python in a session of its own, its words in a file; end it, and all of its, with the block."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=cwd,
            env=clean_environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)


@dataclass(frozen=True)
class Server:
    """A Prefect server, and where its database is."""

    url: str
    database: Path


@pytest.fixture(scope="session")
def connected() -> Iterator[Server]:
    """A server that this process talks to, and others may."""
    with prefect_test_harness(server_startup_timeout=120):
        database = PREFECT_SERVER_DATABASE_CONNECTION_URL.value() or ""
        yield Server(PREFECT_API_URL.value() or "", Path(database.removeprefix("sqlite+aiosqlite:///")))


@dataclass(frozen=True)
class Upstream:
    """A sandbox that knows the canary, and sells it more than any test needs."""

    url: str
    options: Options

    @property
    def environment(self) -> dict[str, str]:
        return {
            "KIYOTAKA_API_KEY": CANARY,
            "HEATPIPE_API_URL": self.url,
            "HEATPIPE_HISTORY_DAYS": "7300",
            "HEATPIPE_WEIGHT_PER_MINUTE": str(PLENTY),
            "HEATPIPE_BURST": str(PLENTY),
        }

    @contextmanager
    def listening(self) -> Iterator[list[dict[str, str]]]:
        """What is asked while the block lasts, in the list once it is over."""
        heard: list[dict[str, str]] = []
        first = len(self.options.ledger)
        yield heard
        heard += [dict(entry.params) for entry in self.options.ledger[first:]]


def tier() -> Tier:
    return Tier("enterprise", PLENTY, PLENTY, history_days=0)


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    options = Options(market=Market(3), keys={CANARY: tier()})
    with serve(options) as url:
        yield Upstream(url, options)


@pytest.fixture
def in_process(connected: Server, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Upstream:
    """Flows run in this process, against the sandbox."""
    for name, value in upstream.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HEATPIPE_DATA", raising=False)
    return upstream


# What the server knows


@pytest.fixture
def client(connected: Server) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        yield found


def newest_run(client: SyncPrefectClient) -> FlowRun:
    from prefect.client.schemas.sorting import FlowRunSort

    return client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]


def artifacts_of(client: SyncPrefectClient, run: FlowRun) -> dict[str, Artifact]:
    mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    return {artifact.key or "": artifact for artifact in client.read_artifacts(artifact_filter=mine)}


def tasks_of(client: SyncPrefectClient, run: FlowRun) -> list[TaskRun]:
    return client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))


def logs_of(client: SyncPrefectClient, run: FlowRun) -> list[str]:
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    return [
        log.message for log in client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])), limit=200)
    ]


def tree(root: Path) -> dict[str, bytes]:
    table = root / "liquidations"
    return {str(path.relative_to(table)): path.read_bytes() for path in sorted(table.rglob("*")) if path.is_file()}

"""What ``prefect.yaml`` deploys, on a real server: that it is there, and runs through a worker, come what may."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]
from prefect.blocks.system import Secret as SecretBlock
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.states import AwaitingRetry, Cancelling
from pydantic import SecretStr

import heatpipe
from heatpipe.redaction import Secret
from heatpipe.sandbox import Market, Options, serve
from tests.flows.conftest import (
    CANARY,
    REPOSITORY,
    Server,
    Upstream,
    alive,
    artifacts_of,
    clean_environment,
    program,
    tasks_of,
    tier,
    tree,
    until,
)
from tests.flows.test_command import check_left

LOUD: Final = {
    "PREFECT_LOGGING_LEVEL": "DEBUG",
    "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "heatpipe,httpx,httpcore",
}
SECOND_CANARY: Final = "canary-c0ffee"
"""In the Secret block; the worker has the other one."""


def prefect(server: Server, *arguments: str) -> str:
    """Run a command of Prefect's as the README says it, in the checkout."""
    result = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        cwd=REPOSITORY,
        env=clean_environment(PREFECT_API_URL=server.url, COLUMNS="200"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def deployed(connected: Server) -> Server:
    prefect(connected, "work-pool", "create", "heatpipe", "--type", "process")
    prefect(connected, "--no-prompt", "deploy", "--all")
    return connected


def deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    return client.read_deployment_by_name(f"{name}/{name}")


DOCUMENT: Final[dict[str, Any]] = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())


def test_the_file_deploys_every_flow_with_all_of_its_schedules(deployed: Server, client: SyncPrefectClient) -> None:
    assert [entry["name"] for entry in DOCUMENT["deployments"]] == ["backfill", "update", "verify"]
    for entry in DOCUMENT["deployments"]:
        found = deployment(client, entry["name"])
        assert found.work_pool_name == "heatpipe"
        assert found.description == entry["description"]
        assert sorted(shown(schedule) for schedule in found.schedules) == sorted(
            (one["slug"], one["cron"], "UTC", one["active"], one.get("parameters", {}))
            for one in entry.get("schedules", [])
        )
    updates = {schedule.slug: schedule for schedule in deployment(client, "update").schedules}
    assert len(updates) >= 4
    assert not any(schedule.active for schedule in updates.values())
    assert len({str(schedule.parameters) for schedule in updates.values()}) == len(updates)
    (daily,) = deployment(client, "verify").schedules
    assert daily.active
    assert deployment(client, "backfill").schedules == []


def test_what_a_work_pool_runs_is_not_served_as_well(deployed: Server, client: SyncPrefectClient) -> None:
    served = subprocess.run(
        [sys.executable, "-m", "flows.serve"],
        cwd=REPOSITORY,
        env=clean_environment(PREFECT_API_URL=deployed.url),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert served.returncode == 2
    (line,) = served.stderr.splitlines()
    assert line.startswith("heatpipe: the server has backfill/backfill for the work pool 'heatpipe': start ")
    assert deployment(client, "backfill").work_pool_name == "heatpipe"


def shown(schedule: Any) -> tuple[Any, ...]:
    return schedule.slug, schedule.schedule.cron, schedule.schedule.timezone, schedule.active, schedule.parameters


def test_every_field_of_the_forms_has_a_description_and_a_default(deployed: Server, client: SyncPrefectClient) -> None:
    forms = {name: deployment(client, name).parameter_openapi_schema or {} for name in ("backfill", "update", "verify")}
    for name, form in forms.items():
        assert not form.get("required"), name
        for field, described in form["properties"].items():
            assert described["title"] == field
            assert len(described["description"]) > 20, (name, field)
            assert "default" in described, (name, field)
            assert "anyOf" not in described, (name, field)  # the form would ask for the type first
    fields = forms["backfill"]["properties"]
    assert list(fields) == [
        *("coins", "interval", "unit", "depth", "start", "end", "last", "dry_run", "max_weight"),
        *("refetch", "refetch_absent", "data"),
    ]
    assert (fields["coins"]["type"], fields["coins"]["items"]["type"]) == ("array", "string")
    assert fields["coins"]["default"] == ["BTC"]
    assert fields["interval"]["enum"] == ["MINUTE", "FIVE_MINUTES", "FIFTEEN_MINUTES", "HOUR", "FOUR_HOURS", "DAY"]
    assert fields["unit"]["enum"] == ["coin", "usd"]
    assert fields["dry_run"]["type"] == "boolean"
    for name in ("start", "end"):  # texts: no browser can shift them to its own zone
        assert (fields[name]["type"], "format" in fields[name]) == ("string", False)
        assert "UTC" in fields[name]["description"]
    assert "counted when the run starts" in fields["last"]["description"].replace("\n", " ")


def test_the_form_refuses_a_choice_that_is_none(deployed: Server, client: SyncPrefectClient) -> None:
    with pytest.raises(Exception, match="'MINUT' is not one of"):
        client.create_flow_run_from_deployment(deployment(client, "backfill").id, parameters={"interval": "MINUT"})


# Through a worker


@dataclass(frozen=True)
class Fleet:
    """A worker of the pool, in a folder that is not the checkout, and its sandbox, which takes its time."""

    upstream: Upstream
    worker: "subprocess.Popen[bytes]"
    log: Path


@pytest.fixture(scope="module")
def fleet(deployed: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("worker")
    keys = {CANARY: tier(), SECOND_CANARY: tier()}
    options = Options(market=Market(3), keys=keys, latency_s=0.3)
    with serve(options) as url:
        upstream = Upstream(url, options)
        environment = upstream.environment | {
            "PREFECT_API_URL": deployed.url,
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "HEATPIPE_DATA": str(folder / "data"),
        }
        command = ("prefect", "worker", "start", "--pool", "heatpipe", "--name", "tested")
        with program(folder / "log", *command, environment=environment, cwd=folder) as worker:
            yield Fleet(upstream, worker, folder / "log")


def start(client: SyncPrefectClient, name: str, **parameters: Any) -> FlowRun:
    return client.create_flow_run_from_deployment(deployment(client, name).id, parameters=parameters)


def ends(client: SyncPrefectClient, run: FlowRun, timeout_s: float = 60) -> FlowRun:
    def state() -> FlowRun | None:
        found = client.read_flow_run(run.id)
        return found if found.state and found.state.is_final() else None

    return until(state, f"{run.name} ends", timeout_s)  # type: ignore[no-any-return]


LONG: Final = {"start": "2026-01-01", "end": "2026-09-01", "depth": 5}
"""350 requests, of which the sandbox answers a dozen a second."""
SHORT: Final = {"start": "2026-06-01", "end": "2026-06-06", "depth": 5}


def test_two_runs_at_once_need_only_the_form_and_fetch_nothing_twice(fleet: Fleet, client: SyncPrefectClient) -> None:
    """The key and the folder are the worker's."""
    with fleet.upstream.listening() as heard:
        runs = [start(client, "backfill", coins=["ETH", "SOL"], **SHORT) for _ in range(2)]
        states = [ends(client, run).state for run in runs]
    assert [state and state.type.value for state in states] == ["COMPLETED"] * 2, fleet.log.read_text()[-3000:]
    asked = sorted((entry["coin"], entry["from"]) for entry in heard)
    assert len(asked) == 2 * 8
    assert len(set(asked)) == len(asked)
    frame = heatpipe.scan(str(fleet.log.parent / "data"), coin="SOL").collect()
    assert frame["timestamp"].n_unique() > 0.99 * 5 * 1440  # now and then a snapshot has no levels
    for run in runs:
        assert "backfill-plan" in artifacts_of(client, run)


def test_a_cancelled_run_ends_within_seconds_in_order(fleet: Fleet, client: SyncPrefectClient, tmp_path: Path) -> None:
    """Every answer that was paid for is on disk, no lock is held, nothing temporary stays; a few tasks were known.

    From the last request on, for it may be a minute before Prefect has told the run: on SQLite its server stalls now
    and then.
    """
    ledger = fleet.upstream.options.ledger
    first, said = len(ledger), fleet.log.stat().st_size
    run = start(client, "backfill", coins=["BTC"], data=str(tmp_path), **LONG)
    until(lambda: len(ledger) > first + 8, "some have been answered")
    answered = ledger[first:]
    until(lambda: len(ledger) > first + 16, "more have been answered, and those before have arrived")
    process = find_process(fleet.worker.pid)
    client.set_flow_run_state(run.id, Cancelling())
    heard, heard_at = len(ledger), time.monotonic()
    while alive(process):
        if len(ledger) != heard:
            heard, heard_at = len(ledger), time.monotonic()
        assert time.monotonic() - heard_at < 20  # 2 where nothing else runs
        time.sleep(0.05)
    check_left(tmp_path, answered)
    assert "stopped, what had arrived is on disk" in fleet.log.read_bytes()[said:].decode()
    done = ends(client, run, 120)
    assert done.state is not None
    assert done.state.is_cancelled()
    assert len(tasks_of(client, run)) <= 4
    assert len(ledger) == heard


def test_a_killed_run_is_known_to_have_crashed_and_resumes_from_the_disk(
    fleet: Fleet, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """Retried as the UI does it: the same run is scheduled again."""
    span = ("2026-05-20", "2026-06-09")  # 29 windows in two slabs
    first = len(fleet.upstream.options.ledger)
    run = start(client, "backfill", coins=["BTC"], depth=5, start=span[0], end=span[1], data=str(tmp_path / "flow"))
    until(lambda: len(tree(tmp_path / "flow")) > 3, "some days are on disk")
    os.kill(find_process(fleet.worker.pid), signal.SIGKILL)
    assert until(lambda: (state := client.read_flow_run(run.id).state) and state.is_crashed(), "it is known", 20)
    before = len(fleet.upstream.options.ledger)
    client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
    done = until(
        lambda: (found := client.read_flow_run(run.id)).state and found.state.is_completed() and found, "it completes"
    )
    assert done.run_count == 2
    again = len(fleet.upstream.options.ledger) - before
    assert 0 < again < 29
    assert before - first + again <= 29 + 12  # what was on its way or in memory when it was killed is paid for twice
    settings = heatpipe.Settings(
        api_key=Secret(CANARY), url=fleet.upstream.url, root=str(tmp_path / "engine"), concurrency=16, burst=10**6
    )
    heatpipe.backfill(heatpipe.Series("BTC", depth=5), *span, settings=settings)
    assert tree(tmp_path / "flow") == tree(tmp_path / "engine")


def find_process(worker: int) -> int:
    """Return the process of the one flow run that a worker has under way."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    found = [line.split(None, 2) for line in listed.splitlines()]
    (flow,) = [int(pid) for pid, parent, words in found if int(parent) == worker and "prefect" in words]
    return flow


def test_neither_database_nor_logs_nor_artifacts_hold_the_key(
    fleet: Fleet, client: SyncPrefectClient, connected: Server
) -> None:
    """After all of the above, and a run with every logger at DEBUG, whose key comes from the Secret block."""
    SecretBlock(value=SecretStr(SECOND_CANARY)).save("kiyotaka-api-key", overwrite=True)
    folder = fleet.log.parent
    code = "import runpy; runpy.run_module('flows.backfill', run_name='__main__')"
    environment = {name: text for name, text in fleet.upstream.environment.items() if name != "KIYOTAKA_API_KEY"}
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "--coin",
            "BTC",
            "--coin",
            "NOPE",
            "--last",
            "2h",
            "--data",
            str(folder / "block"),
        ],
        cwd=REPOSITORY,
        env=clean_environment(**environment, **LOUD, PREFECT_API_URL=connected.url, PREFECT_HOME=str(folder / "home")),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode == 1, said.stdout + said.stderr
    assert fleet.upstream.options.ledger[-1].status in (200, 400)
    SecretBlock.delete("kiyotaka-api-key")
    with sqlite3.connect(connected.database) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    files = [*connected.database.parent.iterdir(), *(path for path in folder.rglob("*") if path.is_file())]
    texts = {str(path): path.read_bytes() for path in files} | {"stderr": (said.stdout + said.stderr).encode()}
    assert any(b"httpcore" in text for name, text in texts.items() if name.endswith(".db")), "the log is not loud"
    for canary in (CANARY, SECOND_CANARY):
        assert [name for name, text in texts.items() if canary.encode() in text] == []

"""The flows' world as it should be run: a Prefect server on PostgreSQL, and processes that come and go."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import IO, Any, Final

import httpx
import pytest

from heatpipe.config import Settings
from heatpipe.sandbox import Options, Tier, serve
from heatpipe.store import Store
from heatpipe.verify import verify_files
from tests.services.rig import PROJECT, PlainMarket, PrefectServer, kill_group, start_group

COINS: Final = ("BTC", "ETH", "SOL", "DOGE")
END: Final = date(2026, 6, 1)

PER_MINUTE: Final = 3000
BURST: Final = 600
"""An advanced key's time sped up four times, and a burst that is gone soon: then four processes want what one may."""
DAYS: Final = int(os.environ.get("HEATPIPE_TEST_DAYS", "85"))
"""What each of the four fetches: at 85 days 123 requests of weight 5, so that together they take 37 s."""
LATENCY_S: Final = 0.1
WEIGHT: Final = 5
"""Of a request of the command below."""


@dataclass
class Ledger:
    """What an upstream has answered, and when."""

    options: Options
    moments: list[tuple[float, str, int, int]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        while not self.over.wait(0.01):
            now = time.monotonic()
            for entry in self.options.ledger[len(self.moments) :]:
                self.moments.append((now, entry.params.get("coin", ""), entry.weight, entry.status))

    def weights(self, until: float = float("inf")) -> Counter[str]:
        weights: Counter[str] = Counter()
        for moment, coin, weight, _ in self.moments:
            weights[coin] += weight if moment <= until else 0
        return weights


@contextmanager
def run_upstream(key: str, per_minute: int, burst: int) -> Iterator[tuple[str, Ledger]]:
    tier = Tier("enterprise", per_minute, burst, history_days=0)
    options = Options(market=PlainMarket(), keys={key: tier}, latency_s=LATENCY_S)
    ledger = Ledger(options)
    thread = threading.Thread(target=ledger.watch)
    with serve(options) as url:
        thread.start()
        try:
            yield url, ledger
        finally:
            ledger.over.set()
            thread.join()


def environment(server: PrefectServer, url: str, key: str, per_minute: int, burst: int) -> dict[str, str]:
    return server.environment | {
        "KIYOTAKA_API_KEY": key,
        "HEATPIPE_API_URL": url,
        "HEATPIPE_WEIGHT_PER_MINUTE": str(per_minute),
        "HEATPIPE_BURST": str(burst),
        "HEATPIPE_HISTORY_DAYS": "0",
    }


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a module of Python whose words are read here."""
    with ExitStack() as stack:

        def run(variables: Mapping[str, str], *command: str) -> "subprocess.Popen[str]":
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", *command],
                    env=dict(variables),
                    cwd=PROJECT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return process

        yield run


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_four_processes_share_one_budget(server: PrefectServer, start: Start, tmp_path: Path) -> None:
    begin = END - timedelta(days=DAYS)
    budget = ("four", PER_MINUTE, BURST)
    with run_upstream(*budget) as (url, ledger):
        variables = environment(server, url, *budget)
        span = ("3", begin.isoformat(), END.isoformat())
        workers = [start(variables, "tests.services.worker", str(tmp_path), coin, *span) for coin in COINS]
        assert [read_line(worker) for worker in workers] == ["ready\n"] * 4
        started = time.monotonic()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        reports = [json.loads(read_line(worker)) for worker in workers]
    assert not any(report["failures"] for report in reports)
    assert {status for _, _, _, status in ledger.moments} == {200}  # no 429
    # Until the first is done all four want more than there is.
    first_s = min(max(at for at, coin, _, _ in ledger.moments if coin == mine) for mine in COINS) - started
    weights = ledger.weights(started + first_s)
    used = weights.total() / (BURST + PER_MINUTE / 60 * first_s)
    print(f"\nin {first_s:.1f} s {used:.1%} of the budget; of it, each: {dict(weights)}")
    assert used >= 0.95
    assert min(weights.values()) >= weights.total() / 8  # half of a fair share


def test_a_thousand_task_runs_do_not_stall(server: PrefectServer, start: Start) -> None:
    worker = start(server.environment | {"PREFECT_LOGGING_LEVEL": "WARNING"}, "tests.services.tasks", "1000")
    said = json.loads(read_line(worker))
    print(f"\n{said}")
    assert said["ended"] == 1001
    assert said["longest_s"] < 10  # on SQLite the next flow run may hang for 15 to 75 s
    assert said["next_s"] < 10


def backfill_command(root: Path, days: int) -> list[str]:
    begin = END - timedelta(days=days)
    span = ["--start", begin.isoformat(), "--end", END.isoformat()]
    return [sys.executable, "-m", "flows.backfill", "--coin", "BTC", "--depth", "3", *span, "--data", str(root)]


def states_of(server: PrefectServer) -> list[str]:
    answer = httpx.post(
        f"{server.url}/flow_runs/filter",
        json={"flows": {"name": {"any_": ["backfill"]}}, "sort": "START_TIME_DESC"},
        trust_env=False,
    )
    return [run["state"]["name"] for run in answer.json()]


def wait_until(true: Callable[[], Any], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_server_that_restarts_under_a_run_does_not_end_it(server: PrefectServer, tmp_path: Path) -> None:
    log = tmp_path / "log"
    root = tmp_path / "data"
    budget = ("restart", 1200, 60)
    # A server that starts is busy: requests that are paid for reach a bucket that is full meanwhile, and overflows.
    late = Settings().concurrency * WEIGHT
    with run_upstream("restart", 1200, 60 + late) as (url, ledger), log.open("wb") as said:
        variables = environment(server, url, *budget)
        process = start_group(backfill_command(root, 50), variables, said)
        try:
            wait_until(lambda: len(ledger.moments) > 25, f"the run begins\n{log.read_text()}")
            server.kill()
            time.sleep(2)
            server.start()
            wait_until(lambda: process.poll() is not None, "the run ends", 90)
        finally:
            kill_group(process)
    assert process.returncode == 0, log.read_text()[-3000:]
    assert states_of(server)[0] == "Completed"
    assert {(weight, status) for _, _, weight, status in ledger.moments} == {(WEIGHT, 200)}
    assert len({entry.params["from"] for entry in ledger.options.ledger}) == len(ledger.options.ledger)  # none twice
    report = verify_files(Store(str(root)))
    assert (report.files, report.problems) == (50, ())


def deploy(variables: dict[str, str], said: IO[bytes], *more: str) -> None:
    """As docs/server.md says."""
    for command in (
        ["work-pool", "create", "heatpipe", "--type", "process", "--overwrite"],
        ["--no-prompt", "deploy", "--all", *more],
    ):
        prefect = [sys.executable, "-m", "prefect", *command]
        subprocess.run(prefect, env=variables, cwd=PROJECT, check=True, stdout=said, stderr=said)


def test_a_schedule_switched_on_in_a_copy_of_the_file_runs(server: PrefectServer, tmp_path: Path) -> None:
    shipped = (PROJECT / "prefect.yaml").read_text()
    copy, log = tmp_path / "prefect.yaml", tmp_path / "log"
    hourly = 'cron: "5 * * * *"\n        timezone: UTC\n        active: false'
    assert shipped.count(hourly) == 1  # ETH's
    copy.write_text(shipped.replace(hourly, "interval: 15\n        active: true"))
    budget = ("schedule", 1200, 60)
    with run_upstream(*budget) as (url, ledger), log.open("wb") as said:
        variables = environment(server, url, *budget) | {"HEATPIPE_DATA": str(tmp_path / "data")}
        first = [sys.executable, "-m", "heatpipe", "backfill", "--coin", "ETH", "--coin", "BTC", "--last", "2h"]
        subprocess.run(first, env=variables, check=True, stdout=said, stderr=said)
        deploy(variables, said, "--prefect-file", str(copy))
        asked_before = len(ledger.options.ledger)
        worker = start_group([sys.executable, "-m", "flows.worker"], variables, said)
        try:
            with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as api:
                wanted = {
                    "deployments": {"name": {"any_": ["update"]}},
                    "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}},
                }
                wait_until(lambda: bool(api.post("/flow_runs/filter", json=wanted).json()), "a run has ended", 150)
                [run, *_] = api.post("/flow_runs/filter", json=wanted).json()
        finally:
            worker.send_signal(signal.SIGTERM)  # it ends Prefect's own, which a kill would leave
            try:
                wait_until(lambda: worker.poll() is not None, "the worker ends", 45)
            finally:
                kill_group(worker)
            deploy(variables, said)  # with the schedule off again
    assert run["state"]["type"] == "COMPLETED", log.read_text()[-3000:]
    assert (run["parameters"], run["created_by"]["display_value"]) == ({"coins": ["ETH"]}, "eth")
    assert {entry.params["coin"] for entry in ledger.options.ledger[asked_before:]} <= {"ETH"}


def test_a_worker_that_is_stopped_lets_its_runs_write_what_they_have(server: PrefectServer, tmp_path: Path) -> None:
    root, log = tmp_path / "data", tmp_path / "log"
    budget = ("worker", 1200, 60)
    with run_upstream(*budget) as (url, ledger), log.open("wb") as said:
        variables = environment(server, url, *budget)
        variables["HEATPIPE_DATA"] = str(root)
        deploy(variables, said)
        worker = start_group([sys.executable, "-m", "flows.worker"], variables, said)
        try:
            with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as api:
                deployment = api.get("/deployments/name/backfill/backfill").json()["id"]
                wanted = {"coins": ["BTC"], "depth": 3, "start": "2026-01-01", "end": "2026-06-01"}
                run = api.post(f"/deployments/{deployment}/create_flow_run", json={"parameters": wanted}).json()["id"]
                wait_until(lambda: len(ledger.moments) > 20, "the run begins", 120)
                worker.send_signal(signal.SIGTERM)  # to it alone, as systemd does
                wait_until(lambda: worker.poll() is not None, "the worker ends", 45)
                state = api.get(f"/flow_runs/{run}").json()["state"]
        finally:
            kill_group(worker)
    assert worker.returncode == 130, log.read_text()[-3000:]
    assert (state["name"], state["message"]) == ("Crashed", "Execution was aborted by a termination signal.")
    assert not list((root / "_tmp").rglob("*"))
    report = verify_files(Store(str(root)))
    assert report.files
    assert not report.problems
    # Two rows a point; what was answered and not stored is what came more than a second after the end was asked for.
    answered = sum(int(entry.params["period"]) // 60 for entry in ledger.options.ledger)
    assert report.rows >= 0.8 * 2 * answered


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    units = sorted((PROJECT / "configs" / "systemd").glob("*.service"))
    assert len(units) == 2
    for unit in units:  # as installed, but for the checkout's place
        text = unit.read_text().replace("/opt/heatpipe/.venv/bin", str(Path(sys.executable).parent))
        (tmp_path / unit.name).write_text(text.replace("/opt/heatpipe", str(PROJECT)))
    command = ["systemd-analyze", "verify", *(str(tmp_path / unit.name) for unit in units)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_automation_on_crashed_runs_is_one_that_the_server_takes(server: PrefectServer) -> None:
    command = [sys.executable, "-m", "prefect", "automation", "create", "--from-file", "configs/crashed.yaml"]
    done = subprocess.run(command, env=server.environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert re.search(r"Created automation 'heatpipe-crashed'", done.stdout), done.stdout + done.stderr
    answer = httpx.post(f"{server.url}/automations/filter", json={}, trust_env=False)
    [automation] = [one for one in answer.json() if one["name"] == "heatpipe-crashed"]
    assert automation["enabled"]

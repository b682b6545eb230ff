"""``make ui``: one command up, Ctrl-C down, and nothing left of it."""

import re
import signal
import socket
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.serve import read_deployments
from heatpipe.cli import INTERRUPTED
from tests.flows.conftest import REPOSITORY, Server, alive, program, until


def children(process: int) -> set[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return {int(pid) for pid, parent in (line.split() for line in listed.splitlines()) if int(parent) == process}


def copy_database(connected: Server, home: Path) -> None:
    """Spare the new server the making of its tables, which takes longest; what other tests left in them goes."""
    home.mkdir()
    with closing(sqlite3.connect(connected.database)) as source, closing(sqlite3.connect(home / "prefect.db")) as copy:
        source.backup(copy)
        for table in ("concurrency_limit_v2", "deployment", "deployment_schedule", "flow_run", "work_pool"):
            copy.execute(f"DELETE FROM {table}")
        copy.commit()


def test_one_command_brings_everything_up_and_ctrl_c_takes_it_down(connected: Server, tmp_path: Path) -> None:
    """Prefect's own port is taken; a run is under way when it ends."""
    log = tmp_path / "log"
    copy_database(connected, tmp_path / "home")
    (tmp_path / "checkout").mkdir()
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 4200))
        except OSError:
            pass  # by somebody else, which is as good
        else:
            taken.listen()
        paths = {"PYTHONPATH": str(REPOSITORY), "PREFECT_HOME": str(tmp_path / "home")}
        with program(log, "flows.ui", environment=paths, cwd=tmp_path / "checkout") as process:
            until(lambda: "Ctrl-C ends" in log.read_text(), "it is up", 120)
            address = re.search(r"http://127\.0\.0\.1:([0-9]+)", log.read_text())
            assert address is not None
            assert address[1] != "4200"
            with httpx.Client(base_url=address[0], trust_env=False) as browser:
                look(browser)
                until(lambda: scheduled(browser, "verify"), "the daily verify is scheduled")
                run = submit(browser, coins=["BTC", "ETH"], last="60d")
                started = until(
                    lambda: children(process.pid) if state_of(browser, run) == "RUNNING" else set(), "it runs"
                )
                until(lambda: list((tmp_path / "checkout" / "data" / "ui").rglob("part-0.parquet")), "rows arrive")
                ended_at = time.monotonic()
                process.send_signal(signal.SIGINT)
                assert process.wait(30) == INTERRUPTED, log.read_text()[-2000:]
                assert time.monotonic() - ended_at < 25  # 7 where nothing else runs
    assert len(started) == 3
    assert not {pid for pid in started if alive(pid)}
    assert list((tmp_path / "checkout" / "data" / "ui" / "_tmp").iterdir()) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address[0]}/api/health", trust_env=False)


def look(browser: httpx.Client) -> None:
    """The page is there and asks the right server; every deployment is there with its schedules."""
    assert "<!DOCTYPE html>" in browser.get("/deployments", headers={"Accept": "text/html"}).text
    settings = answer(browser.get("/ui-settings"))
    assert settings["api_url"] == f"{str(browser.base_url).rstrip('/')}/api"
    assert settings["default_ui"] == "v1"
    for entry in read_deployments():
        found = answer(browser.get(f"/api/deployments/name/{entry['name']}/{entry['name']}"))
        there = sorted((one["slug"], one["schedule"]["cron"], one["active"]) for one in found["schedules"])
        assert there == sorted((one["slug"], one["cron"], one["active"]) for one in entry.get("schedules", []))
        assert found["description"] == entry["description"]


def scheduled(browser: httpx.Client, name: str) -> list[Any]:
    """The runs to come of a deployment, which the server makes up from its schedules."""
    runs = {"deployments": {"name": {"any_": [name]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    return list(answer(browser.post("/api/flow_runs/filter", json=runs)))


def submit(browser: httpx.Client, **parameters: Any) -> str:
    """As the form does."""
    deployment = answer(browser.get("/api/deployments/name/backfill/backfill"))["id"]
    form = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    address = f"/api/deployments/{deployment}/create_flow_run"
    # Prefect's clients try again, too, where SQLite has no room for two writers at once.
    created = until(
        lambda: None if (one := browser.post(address, json=form)).status_code == 503 else one, "it is taken"
    )
    return str(answer(created)["id"])


def answer(response: httpx.Response) -> Any:
    assert response.is_success, response.text
    return response.json()


def state_of(browser: httpx.Client, run: str) -> str:
    state = answer(browser.get(f"/api/flow_runs/{run}"))["state"]
    assert state["type"] not in ("FAILED", "CRASHED"), state["message"]
    return str(state["type"])

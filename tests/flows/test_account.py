"""What a run shows is not what it does: whatever cannot be made or sent costs one line."""

import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.account import Gauge, show_findings, show_plan, show_report
from heatpipe import cli
from heatpipe.config import Settings
from heatpipe.model import Series
from heatpipe.plan import Plan
from heatpipe.report import Report
from heatpipe.verify import Findings
from tests.flows.conftest import REPOSITORY, Server, Upstream, artifacts_of, free_port, logs_of, newest_run, until
from tests.flows.test_ground import SPAN, call
from tests.flows.test_lease import pretender


def show_all(flow: str, root: str) -> None:
    settings = Settings(root=root)
    show_plan(flow, Plan(()), settings, 10**9)
    gauge = Gauge(f"{flow}-progress")
    gauge.show(0.5, "half")
    show_findings(Findings(1, 1, 1, ()), root)
    # Nothing was planned for this one: the account itself cannot be given.
    show_report(flow, Plan(()), {Series("BTC"): Report()}, (), settings, 1.0)


@flow
def show_what_is_refused(root: str) -> None:
    show_all("NO KEY!", root)


@pytest.mark.usefixtures("connected")
def test_artifacts_that_are_refused_cost_a_line_each_and_no_run(client: SyncPrefectClient, tmp_path: Path) -> None:
    show_what_is_refused(str(tmp_path))
    run = newest_run(client)
    until(lambda: any("Finished in state Completed" in line for line in logs_of(client, run)), "the log is whole")
    said = [line.partition(" cannot be shown: ") for line in logs_of(client, run) if "cannot be shown" in line]
    assert [what for what, _, _ in said] == ["the plan", "the progress", "the report"]
    assert not [why for _, _, why in said if "\n" in why or not why]
    assert list(artifacts_of(client, run)) == ["verify-report"]


@pytest.mark.filterwarnings("ignore:Artifact creation outside of a flow or task run")
@pytest.mark.parametrize("answer", [(200, b"<html>"), (422, b"{}"), (507, b"no space left"), None])
def test_a_server_that_takes_no_artifact_raises_nothing(tmp_path: Path, answer: tuple[int, bytes] | None) -> None:
    with ExitStack() as stack:
        url, asked = stack.enter_context(pretender(*answer)) if answer else (f"http://127.0.0.1:{free_port()}/api", [])
        stack.enter_context(temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}))
        show_all("backfill", str(tmp_path))
    assert bool(asked) == bool(answer)


def test_a_picture_that_cannot_be_drawn_costs_a_line_and_no_run(
    connected: Server, client: SyncPrefectClient, upstream: Upstream, tmp_path: Path
) -> None:
    broken = tmp_path / "broken" / "matplotlib"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ValueError('the <b>backend</b> is | broken')\n")
    environment = upstream.environment | {
        "PREFECT_API_URL": connected.url,
        "PREFECT_HOME": str(tmp_path / "home"),
        "PYTHONPATH": f"{broken.parent}:{REPOSITORY}",
    }
    end = call("backfill", *SPAN, "--data", str(tmp_path / "data"), environment=environment)
    assert end.returncode == cli.DONE, end.stderr
    lines = [line for line in end.stderr.splitlines() if "INFO" not in line]
    assert len(lines) == 1
    assert re.search("no picture in the report: .*the <b>backend</b> is [|] broken", lines[0])
    report = str(artifacts_of(client, newest_run(client))["backfill-report"].data)
    assert r"the \<b\>backend\</b\> is \| broken" in report
    assert "## The query to try" in report


@pytest.mark.usefixtures("in_process")
def test_a_coin_is_no_formula(client: SyncPrefectClient, tmp_path: Path) -> None:
    from flows.backfill import backfill

    state = backfill(coins=["$$"], start="2026-06-01", end="2026-06-01T02:00", data=str(tmp_path), return_state=True)
    assert not state.is_crashed()
    report = str(artifacts_of(client, newest_run(client))["backfill-report"].data)
    assert r"| \$\$ |" in report

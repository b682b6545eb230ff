"""The flow `update` in this process, on a real Prefect server, against the sandbox."""

import re
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State

import heatpipe
from flows.backfill import backfill
from flows.update import update
from heatpipe import cli
from heatpipe.model import Series, Span
from heatpipe.plan import plan_slabs
from heatpipe.store import Store
from tests.flows.conftest import Server, Upstream, artifacts_of, newest_run, program, until
from tests.flows.test_ground import call

HOURS: dict[str, Any] = {"interval": "HOUR", "depth": 5}

pytestmark = pytest.mark.usefixtures("in_process")


def run(**parameters: Any) -> State[Any]:
    state: State[Any] = update(**parameters, return_state=True)
    return state


def test_it_goes_on_from_what_is_on_disk_for_all_series_there(
    client: SyncPrefectClient, upstream: Upstream, tmp_path: Path
) -> None:
    root = str(tmp_path)
    assert backfill(
        coins=["BTC", "ETH"], last="30h", end="2026-11-01", data=root, **HOURS, return_state=True
    ).is_completed()
    with upstream.listening() as heard:
        state = run(data=root, **HOURS)
    assert state.is_completed(), state.message
    assert sorted(entry["coin"] for entry in heard) == ["BTC", "ETH"]
    frame = heatpipe.scan(root, coin="ETH").collect()
    assert str(frame["timestamp"].min())[:13] == "2026-10-30 18"
    assert str(frame["timestamp"].max())[:10] > "2026-11-01"
    report = str(artifacts_of(client, newest_run(client))["update-report"].data)
    assert "| unchanged | changed | appeared | vanished | gaps |" in report
    line = re.search(
        r"^\| ETH \| [0-9,]+ \| [0-9,]+ \| .* \| 5 \| (\d+) \| 0 \| 0 \| 0 \| 0 \| 0 \|$", report, re.MULTILINE
    )
    assert line is not None, report[:800]
    assert int(line[1]) > 0
    with upstream.listening() as heard:
        again = run(data=root, coins=["BTC"], **HOURS)
    assert (again.is_completed(), heard) == (True, [])


def test_a_coin_with_nothing_on_disk_needs_a_start(upstream: Upstream, tmp_path: Path) -> None:
    with upstream.listening() as heard:
        for parameters in ({"coins": ["SOL"]}, {}, {"coins": ["SOL"], "lookback": -1, "start": "2026-11-20"}):
            state = run(data=str(tmp_path), **HOURS, **parameters)
            assert state.is_failed()
            assert "\n" not in (state.message or "")
    assert heard == []
    assert run(coins=["SOL"], start="2026-11-20", data=str(tmp_path), **HOURS).is_completed()


def test_what_another_run_holds_is_left_to_it_and_fills_no_place(
    client: SyncPrefectClient, upstream: Upstream, connected: Server, tmp_path: Path
) -> None:
    root, store = str(tmp_path / "data"), Store(str(tmp_path / "data"))
    start = datetime.now(UTC).date() - timedelta(days=1)
    begun = int(datetime.combine(start, datetime.min.time(), UTC).timestamp())
    (slab,) = plan_slabs(Series("BTC", "HOUR", depth=5), Span(begun, begun + 3600))
    held = "BTC HOUR .* is being worked on by process \\d+ on "
    with ExitStack() as lock:
        lock.enter_context(store.lock(slab))
        with upstream.listening() as heard:
            state = run(coins=["BTC", "ETH"], start=start.isoformat(), data=root, **HOURS)
        assert state.is_completed(), state.message
        assert [entry["coin"] for entry in heard] == ["ETH"]
        assert re.search(f"; left to another run: {held}", state.message or ""), state.message
        report = str(artifacts_of(client, newest_run(client))["update-report"].data)
        assert re.search(f"## What was left to another run\n\n\\* {held}", report), report
        assert "What did not come" not in report
        assert re.search(r"^\| BTC \| 0 \|.*\| 0 \|$", report, re.MULTILINE), report
        with upstream.listening() as heard:
            state = run(coins=["BTC"], start=start.isoformat(), data=root, **HOURS)
        assert (state.is_completed(), heard) == (True, [])
        assert re.match(f"left to another run: {held}", state.message or ""), state.message
        environment = upstream.environment | {"PREFECT_API_URL": connected.url, "PREFECT_HOME": str(tmp_path / "home")}
        by_hand = ("--coin", "BTC", "--interval", "HOUR", "--depth", "5", "--start", start.isoformat(), "--data", root)
        assert call("update", *by_hand, "--no-wait", environment=environment).returncode == cli.DONE
        log = tmp_path / "log"
        with program(log, "flows.update", *by_hand, environment=environment) as waiting:
            until(lambda: "waiting: BTC HOUR" in log.read_text(), "it waits, as heatpipe update does")
            lock.close()
            assert waiting.wait(60) == cli.DONE, log.read_text()
    assert heatpipe.scan(root, coin="BTC").collect().height > 0

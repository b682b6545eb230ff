"""The flow `update` in this process, on a real Prefect server, against the sandbox."""

import re
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State

import heatpipe
from flows.backfill import backfill
from flows.update import update
from tests.flows.conftest import Upstream, artifacts_of, newest_run

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

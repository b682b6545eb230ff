"""The flow on a real Prefect server (ephemeral, one for all of these tests), against the sandbox."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.testing.utilities import prefect_test_harness
from prefect.utilities.callables import parameter_schema

import heatpipe
from flows.backfill import backfill
from heatpipe.config import Secret
from heatpipe.sandbox import Market, Options, Tier, serve

CANARY = "canary-5f0e"
SPAN: dict[str, Any] = {"start": "2026-06-01", "end": "2026-06-01T02:00"}


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def upstream() -> Iterator[tuple[str, Options]]:
    options = Options(market=Market(3), keys={CANARY: Tier("enterprise", 10**6, 10**6, history_days=0)})
    with serve(options) as url:
        yield url, options


@pytest.fixture(autouse=True)
def environment(upstream: tuple[str, Options], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIYOTAKA_API_KEY", CANARY)
    monkeypatch.setenv("HEATPIPE_API_URL", upstream[0])
    monkeypatch.setenv("HEATPIPE_HISTORY_DAYS", "7300")


def run(**parameters: Any) -> State[Any]:
    state: State[Any] = backfill(**parameters, return_state=True)
    return state


def tree(root: Path) -> dict[str, bytes]:
    table = root / "liquidations"
    return {str(path.relative_to(table)): path.read_bytes() for path in sorted(table.rglob("*")) if path.is_file()}


def test_it_fetches_every_coin_as_the_engine_does(upstream: tuple[str, Options], tmp_path: Path) -> None:
    coins = ["BTC", "PURR/USDC"]
    state = run(coins=coins, data=str(tmp_path / "flow"), **SPAN)
    assert state.is_completed()
    assert (state.result()["points"], state.result()["requests"]) == (240, 2)
    settings = heatpipe.Settings(api_key=Secret(CANARY), url=upstream[0], root=str(tmp_path / "engine"))
    heatpipe.backfill([heatpipe.Series(coin) for coin in coins], **SPAN, settings=settings)
    assert tree(tmp_path / "flow") == tree(tmp_path / "engine")


def test_a_second_run_asks_for_nothing(upstream: tuple[str, Options], tmp_path: Path) -> None:
    run(coins=["BTC"], data=str(tmp_path), **SPAN)
    before, files = len(upstream[1].ledger), tree(tmp_path)
    state = run(coins=["BTC"], data=str(tmp_path), **SPAN)
    assert state.is_completed()
    assert state.result()["requests"] == 0
    assert (len(upstream[1].ledger), tree(tmp_path)) == (before, files)


def test_an_unknown_coin_fails_the_run_after_the_others_are_done(tmp_path: Path) -> None:
    state = run(coins=["NOPE", "BTC"], data=str(tmp_path), **SPAN)
    assert state.is_failed()
    assert "INVALID_SYMBOL" in (state.message or "")
    assert heatpipe.scan(str(tmp_path), coin="BTC").collect().height > 0


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"coins": []}, "coins is empty"),
        ({"coins": ["BTC"], "start": "yesterday"}, "start: 'yesterday'"),
        ({"coins": ["BTC"], "last": "7x"}, "'7x'"),
        ({"coins": ["BTC"], "depth": 0}, "depth 0"),
        ({"coins": ["BTC"], "start": "2006-01-01", "end": "2006-01-02"}, "beyond"),
    ],
)
def test_wrong_values_fail_the_run_with_one_sentence(
    upstream: tuple[str, Options], tmp_path: Path, parameters: dict[str, Any], said: str
) -> None:
    before = len(upstream[1].ledger)
    state = run(data=str(tmp_path), **parameters)
    assert state.is_failed()
    assert said in (state.message or "")
    assert "\n" not in (state.message or "")
    assert len(upstream[1].ledger) == before


def test_a_missing_key_fails_the_run_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KIYOTAKA_API_KEY")
    state = run(coins=["BTC"], data=str(tmp_path), **SPAN)
    assert state.is_failed()
    assert "KIYOTAKA_API_KEY" in (state.message or "")


def test_a_deployed_flow_refuses_a_relative_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "some-deployment")
    state = run(coins=["BTC"], data="data", **SPAN)
    assert state.is_failed()
    assert "absolute path" in (state.message or "")


def test_the_form_describes_every_parameter_and_offers_choices() -> None:
    properties = parameter_schema(backfill).model_dump()["properties"]
    assert list(properties) == ["coins", "interval", "unit", "depth", "start", "end", "last", "data"]
    assert all(one["description"] for one in properties.values())
    assert properties["interval"]["enum"][0] == "MINUTE"
    assert properties["unit"]["enum"] == ["coin", "usd"]
    assert properties["coins"]["type"] == "array"


def test_runs_and_tasks_are_named_by_coin_and_span_and_hold_no_key(tmp_path: Path) -> None:
    run(coins=["BTC"], data=str(tmp_path), **SPAN)
    with get_client(sync_client=True) as client:
        flow_runs, task_runs = client.read_flow_runs(), client.read_task_runs()
    assert "BTC MINUTE 2026-06-01 to 2026-06-01T02:00" in [one.name for one in flow_runs]
    assert "BTC MINUTE 2026-06-01/2026-06-01" in [one.name for one in task_runs]
    assert CANARY not in "".join(one.model_dump_json() for one in [*flow_runs, *task_runs])


def test_the_module_explains_how_to_start_it() -> None:
    command = [sys.executable, "-m", "flows.backfill", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "python -m flows.backfill --coin BTC" in result.stdout

"""The flow `verify` in this process, on a real Prefect server."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State

import heatpipe
from flows.verify import UnsoundError, verify
from heatpipe.redaction import Secret
from tests.flows.conftest import CANARY, Upstream, artifacts_of, logs_of, newest_run, until

pytestmark = pytest.mark.usefixtures("in_process")


def run(**parameters: Any) -> State[Any]:
    state: State[Any] = verify(**parameters, return_state=True)
    return state


@pytest.fixture
def root(upstream: Upstream, tmp_path: Path) -> Path:
    settings = heatpipe.Settings(api_key=Secret(CANARY), url=upstream.url, root=str(tmp_path))
    series = [heatpipe.Series(coin, "HOUR", depth=5) for coin in ("BTC", "ETH")]
    heatpipe.backfill(series, "2026-06-01", "2026-06-04", settings=settings)
    return tmp_path


def test_a_sound_dataset_completes_with_its_numbers(client: SyncPrefectClient, root: Path) -> None:
    state = run(data=str(root))
    assert state.is_completed()
    assert "6 files, 720 rows" in (state.message or "")
    done = newest_run(client)
    assert done.name == "all series all days"
    artifacts = artifacts_of(client, done)
    assert set(artifacts) == {"verify-progress", "verify-report"}
    assert artifacts["verify-progress"].data == 100


def test_problems_fail_the_run_and_are_named(client: SyncPrefectClient, root: Path) -> None:
    damaged, other = sorted(root.rglob("coin=BTC/*/part-0.parquet"))[:2]
    damaged.write_bytes(b"x")
    (other.parent / "notes|.txt").touch()
    state = run(data=str(root))
    assert state.is_failed()
    path = damaged.relative_to(root)
    assert (state.message or "").startswith(f"2 problems in 6 files; the first: {path}: ")
    with pytest.raises(UnsoundError):
        state.result()
    done = newest_run(client)
    report = str(artifacts_of(client, done)["verify-report"].data)
    assert f"| `{path}` | " in report
    assert "notes\\|.txt" in report
    until(lambda: [line for line in logs_of(client, done) if line.startswith(f"{path}: ")], "the log names the path")
    only = run(data=str(root), coins=["ETH"])
    assert only.is_completed()
    assert "3 files" in (only.message or "")


def test_there_must_be_something_to_verify(tmp_path: Path, root: Path) -> None:
    assert "nothing to verify" in (run(data=str(tmp_path / "mistyped")).message or "")
    assert "no coin 'BTCC' in the dataset; there is BTC" in (run(data=str(root), coins=["BTCC"]).message or "")
    assert "last '7x' is not a length" in (run(data=str(root), last="7x").message or "")
    assert run(data=str(root), last="1d").is_failed()

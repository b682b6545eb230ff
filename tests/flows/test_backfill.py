"""The flow `backfill` in this process, on a real Prefect server, against the sandbox."""

import base64
import io
import re
import subprocess
import sys
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from prefect.blocks.system import Secret as SecretBlock
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from pydantic import SecretStr

import heatpipe
from flows.backfill import backfill
from flows.slabs import MOST_REASONS, SUBMITTED_AT_ONCE
from heatpipe.errors import IncompleteError
from heatpipe.redaction import Secret
from heatpipe.sandbox import Market, Options, Rule, faults, serve
from tests.flows.conftest import (
    CANARY,
    TASK_RUNS_COME_S,
    Upstream,
    artifacts_of,
    logs_of,
    newest_run,
    tasks_of,
    tier,
    tree,
    until,
)
from tests.test_store import of_a_later_version

SPAN: dict[str, Any] = {"start": "2026-06-01", "end": "2026-06-01T02:00"}

pytestmark = pytest.mark.usefixtures("in_process")


def run(**parameters: Any) -> State[Any]:
    state: State[Any] = backfill(**parameters, return_state=True)
    return state


def test_it_fetches_every_coin_as_the_engine_does(upstream: Upstream, tmp_path: Path) -> None:
    coins = ["BTC", "PURR/USDC"]
    state = run(coins=coins, data=str(tmp_path / "flow"), **SPAN)
    assert state.is_completed()
    assert (state.result()["points"], state.result()["requests"]) == (240, 2)
    settings = heatpipe.Settings(api_key=Secret(CANARY), url=upstream.url, root=str(tmp_path / "engine"))
    heatpipe.backfill([heatpipe.Series(coin) for coin in coins], **SPAN, settings=settings)
    assert tree(tmp_path / "flow") == tree(tmp_path / "engine")


def test_a_second_run_asks_for_nothing_unless_it_is_a_refetch(upstream: Upstream, tmp_path: Path) -> None:
    run(coins=["BTC"], data=str(tmp_path), **SPAN)
    files = tree(tmp_path)
    with upstream.listening() as heard:
        state = run(coins=["BTC"], data=str(tmp_path), **SPAN)
    assert state.is_completed()
    assert "nothing to fetch" in (state.message or "")
    assert (state.result()["requests"], heard, tree(tmp_path)) == (0, [], files)
    with upstream.listening() as heard:
        assert run(coins=["BTC"], data=str(tmp_path), refetch=True, **SPAN).is_completed()
    assert len(heard) == 1


def test_a_day_that_cannot_be_read_now_is_left_alone_and_the_rest_is_done(upstream: Upstream, tmp_path: Path) -> None:
    run(coins=["BTC"], data=str(tmp_path), **SPAN)
    (path,) = tmp_path.rglob("part-0.parquet")
    of_a_later_version(path)
    later = path.read_bytes()
    with upstream.listening() as heard:
        state = run(coins=["BTC", "ETH"], data=str(tmp_path), refetch=True, **SPAN)
        again = run(coins=["BTC"], data=str(tmp_path), **SPAN)
    assert len(heard) == 1
    assert path.read_bytes() == later
    assert heatpipe.scan(str(tmp_path), coin="ETH").collect().height > 0
    for one in (state, again):
        assert one.is_failed()
        assert f"{path} has a footer of version 2" in (one.message or "")
        assert "nothing of BTC MINUTE 2026-06-01/2026-06-01 was asked for" in (one.message or "")


def test_what_fails_fails_the_run_after_the_rest_is_done(client: SyncPrefectClient, tmp_path: Path) -> None:
    state = run(coins=["NOPE", "BTC"], data=str(tmp_path), **SPAN)
    assert state.is_failed()
    assert "INVALID_SYMBOL" in (state.message or "")
    assert "a new run fetches the rest" in (state.message or "")
    with pytest.raises(IncompleteError):
        state.result()
    assert heatpipe.scan(str(tmp_path), coin="BTC").collect().height > 0
    failed = newest_run(client)
    until(lambda: len(tasks_of(client, failed)) == 2, "both tasks are known")

    def ends() -> dict[str, str]:
        tasks = tasks_of(client, failed)
        return {task.name.split()[0]: task.state.type.value for task in tasks if task.state and task.state.is_final()}

    assert until(lambda: ends() if len(ends()) == 2 else None, "both have ended", TASK_RUNS_COME_S) == {
        "NOPE": "FAILED",
        "BTC": "COMPLETED",
    }
    until(lambda: any("Finished in state Failed" in line for line in logs_of(client, failed)), "the log is whole")
    said = "\n".join(logs_of(client, failed))
    assert "NoneType" not in said
    assert "Traceback" not in said
    report = str(artifacts_of(client, failed)["backfill-report"].data)
    assert "What did not come" in report
    assert re.search(r"^\| NOPE \| 0 \|", report, re.MULTILINE)


def test_a_failed_window_fails_its_slab_and_no_other(client: SyncPrefectClient, tmp_path: Path) -> None:
    """A span of two slabs; one window of the first breaks the contract for good."""
    rule = Rule(faults.BROKEN_DOCUMENTS[0], covers=int(datetime(2026, 5, 26, 23, tzinfo=UTC).timestamp()))
    options = Options(market=Market(3), keys={CANARY: tier()}, faults=(rule,))
    with serve(options) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEATPIPE_API_URL", url)
        span = {"start": "2026-05-26T22:00", "end": "2026-05-27T02:00"}  # a slab ends with the 26th
        state = run(coins=["BTC"], depth=5, data=str(tmp_path), **span)
    assert state.is_failed()
    done = newest_run(client)
    report = str(artifacts_of(client, done)["backfill-report"].data)
    assert re.search(r"^\| BTC \| .* \| 120 \| 1 \|$", report, re.MULTILINE), report[:600]
    ends = until(
        lambda: (
            (found := sorted(str(task.state_name) for task in tasks_of(client, done))) == ["Completed", "Failed"]
            and found
        ),
        "one slab completed, one failed",
    )
    assert ends


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"coins": []}, "coins is empty"),
        ({"coins": [" BTC"]}, "coin ' BTC' is empty or has spaces around it"),
        ({"interval": "MINUT"}, "unknown interval 'MINUT'; did you mean 'MINUTE'?"),
        ({"unit": "usdt"}, "unknown unit 'usdt'; did you mean 'usd'?"),
        ({"depth": 0}, "depth 0"),
        ({"start": "yesterday"}, "start: 'yesterday'"),
        ({"start": "2026-06-02", "end": "2026-06-01"}, "before it starts"),
        ({"last": "7x"}, "last '7x'"),
        ({"start": "2006-01-01", "end": "2006-01-02"}, "beyond"),
        ({"max_weight": 4, **SPAN}, "a weight of 5, allowed are 4"),
        ({"data": "s3://bucket/x", **SPAN}, "only local folders"),
    ],
)
def test_wrong_values_fail_the_run_with_one_sentence(
    upstream: Upstream, tmp_path: Path, parameters: dict[str, Any], said: str
) -> None:
    with upstream.listening() as heard:
        state = run(**{"data": str(tmp_path), **parameters})
    assert state.is_failed()
    assert said in (state.message or "")
    assert "\n" not in (state.message or "")
    assert heard == []


def test_without_a_key_a_run_ends_before_anything_is_asked(
    upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KIYOTAKA_API_KEY")
    with upstream.listening() as heard:
        state = run(data=str(tmp_path), **SPAN)
    assert state.is_failed()
    assert "KIYOTAKA_API_KEY" in (state.message or "")
    assert "kiyotaka-api-key" in (state.message or "")
    assert heard == []


def test_what_is_refused_costs_one_request_and_few_tasks(
    client: SyncPrefectClient, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a span of twelve slabs."""
    with upstream.listening() as heard:
        unknown = run(coins=["NOPE"], start="2025-11-01", end="2026-08-20", depth=5, data=str(tmp_path))
    assert (unknown.is_failed(), len(heard)) == (True, 1)
    assert len(tasks_of(client, newest_run(client))) <= SUBMITTED_AT_ONCE
    monkeypatch.setenv("KIYOTAKA_API_KEY", "another")
    with upstream.listening() as heard:
        refused = run(coins=["BTC"], start="2025-11-01", end="2026-08-20", depth=5, data=str(tmp_path))
    assert (refused.is_failed(), len(heard)) == (True, 1)
    assert "refuses the API key" in (refused.message or "")
    until(lambda: tasks_of(client, newest_run(client)), "some tasks are known")
    assert len(tasks_of(client, newest_run(client))) <= SUBMITTED_AT_ONCE


def test_the_key_may_come_from_a_secret_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KIYOTAKA_API_KEY")
    SecretBlock(value=SecretStr(CANARY)).save("kiyotaka-api-key", overwrite=True)
    try:
        assert run(data=str(tmp_path), **SPAN).is_completed()
        SecretBlock(value=SecretStr("two\nlines")).save("kiyotaka-api-key", overwrite=True)
        state = run(data=str(tmp_path), refetch=True, **SPAN)
        assert state.is_failed()
        assert "Secret block 'kiyotaka-api-key' holds nothing that could be" in (state.message or "")
    finally:
        SecretBlock.delete("kiyotaka-api-key")


def test_a_dry_run_shows_the_plan_and_spends_nothing(
    client: SyncPrefectClient, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KIYOTAKA_API_KEY")
    with upstream.listening() as heard:
        state = run(coins=["BTC", "ETH"], dry_run=True, data=str(tmp_path / "new"), **SPAN)
    assert state.is_completed()
    assert "240 of 240 intervals with 2 requests of weight 10" in (state.message or "")
    assert heard == []
    assert not (tmp_path / "new").exists()
    done = newest_run(client)
    artifacts = artifacts_of(client, done)
    assert list(artifacts) == ["backfill-plan"]
    assert "| ETH | 2026-06-01 00:00 | 2026-06-01 02:00 | 120 | 120 | 1 | 1 | 5 |" in str(
        artifacts["backfill-plan"].data
    )


def test_a_span_is_counted_from_the_start_of_the_run(tmp_path: Path) -> None:
    state = run(last="2h", interval="FIFTEEN_MINUTES", depth=5, data=str(tmp_path))
    assert state.is_completed()
    newest = cast("datetime", heatpipe.scan(str(tmp_path)).collect()["timestamp"].max())
    assert 0 < (datetime.now(UTC) - newest).total_seconds() < 45 * 60


def test_a_run_shows_its_plan_its_progress_and_its_report(client: SyncPrefectClient, tmp_path: Path) -> None:
    assert run(coins=["BTC", "PURR/USDC"], data=str(tmp_path), **SPAN).is_completed()
    done = newest_run(client)
    assert done.name == "BTC PURR/USDC MINUTE 2026-06-01 to 2026-06-01T02:00"
    artifacts = artifacts_of(client, done)
    assert set(artifacts) == {"backfill-plan", "backfill-progress", "backfill-report"}
    assert artifacts["backfill-progress"].data == 100
    assert re.fullmatch(r"2 of 2 slabs, [0-9,]+ rows, weight 10 of 10", str(artifacts["backfill-progress"].description))
    report = str(artifacts["backfill-report"].data)
    assert re.search(r"^\| BTC \| [0-9,]+ \| 1 \| [0-9.]+\xa0[kM]B \| 5 \| 0 \| 0 \|$", report, re.MULTILINE)
    assert re.search(r"^\| PURR/USDC \| [0-9,]+ \| 1 \| ", report, re.MULTILINE)
    picture = re.search(r"!\[liquidation heatmap of BTC\]\(data:image/webp;base64,([A-Za-z0-9+/=]+)\)", report)
    assert picture is not None
    assert read_size(base64.b64decode(picture[1])) == (1120, 600)
    assert len(report) < 300_000
    until(lambda: any("Finished in state Completed" in line for line in logs_of(client, done)), "the log is whole")
    said = logs_of(client, done)
    assert sum("Finished in state Completed('" in line and "rows of 120 snapshots" in line for line in said) == 2
    assert [line for line in said if "requests of weight 10" in line]


def read_size(picture: bytes) -> tuple[int, int]:
    from PIL import Image

    return Image.open(io.BytesIO(picture)).size


def test_the_queries_of_the_report_run(client: SyncPrefectClient, tmp_path: Path) -> None:
    run(coins=["PURR/USDC"], data=str(tmp_path / "it's"), **SPAN)
    report = str(artifacts_of(client, newest_run(client))["backfill-report"].data)
    queries = re.findall(r"```python\n(.*?)```", report, re.DOTALL)
    assert len(queries) == 2
    said = io.StringIO()
    for query in queries:
        with redirect_stdout(said):
            exec(query, {})
    assert "shape: (10, 3)" in said.getvalue()
    assert "2026-06-01" in said.getvalue()


def test_tasks_are_named_by_coin_and_days(client: SyncPrefectClient, tmp_path: Path) -> None:
    run(coins=["BTC"], interval="DAY", depth=5, start="2026-06-01", end="2026-06-04", data=str(tmp_path))
    done = newest_run(client)
    (task,) = until(lambda: tasks_of(client, done), "the task is known")
    assert task.name == "BTC DAY 2026-06-01/2026-06-03"


def test_many_failures_are_counted_not_listed(tmp_path: Path) -> None:
    state = run(coins=[f"NOPE{number}" for number in range(MOST_REASONS + 3)], data=str(tmp_path), **SPAN)
    assert state.is_failed()
    assert (state.message or "").endswith("; and 3 more")


def test_without_matplotlib_the_report_says_so(tmp_path: Path, upstream: Upstream) -> None:
    """In a Python of its own, for which matplotlib is not there."""
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from flows.account import _picture\n"
        "from heatpipe.model import Series, Span\n"
        f"print(*_picture(Series('BTC'), Span(1780272000, 1780279200), {str(tmp_path)!r}), sep='\\n')"
    )
    settings = heatpipe.Settings(api_key=Secret(CANARY), url=upstream.url, root=str(tmp_path))
    heatpipe.backfill(heatpipe.Series("BTC"), **SPAN, settings=settings)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "No picture: matplotlib is not installed: pip install 'heatpipe[plot]'" in result.stdout, result.stderr


def test_a_deployed_flow_refuses_a_relative_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "some-deployment")
    state = run(data="data", **SPAN)
    assert state.is_failed()
    assert "absolute path" in (state.message or "")

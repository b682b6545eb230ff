"""The benchmarks run, on next to no data: what nobody starts between two releases would rot."""

import json
from pathlib import Path

import httpx
import polars as pl
import pytest

import heatpipe
from heatpipe.model import Span
from heatpipe.sandbox.app import KEY_HEADER
from heatpipe.upstream import LIQUIDATIONS, POINTS_PATH
from tests.benchmarks import __main__ as bench
from tests.benchmarks.bodies import MINUTE_S, START, TINY, WINDOW_S, read_lot
from tests.benchmarks.commands import HEATPIPE, environment, name_series, run_backfill, run_peer
from tests.benchmarks.measure import measure_command, take_turns
from tests.benchmarks.parts import time_parts
from tests.benchmarks.table import Row, lay_out, pair
from tests.benchmarks.upstream import KEY, run_upstream

COIN = TINY.coins[0]
SECONDS = TINY.ends[-1]


@pytest.mark.parametrize(
    ("row", "holds"),
    [
        (Row(1, "x", "", 3.0, "", "", 1.0, 2.5, at_least=True), True),
        (Row(1, "x", "", 2.0, "", "", 1.0, 2.5, at_least=True), False),
        (Row(1, "x", "", 2.0, "", "", 2.0, 1.0), True),
        (Row(1, "x", "", 2.1, "", "", 2.0, 1.0), False),
        (Row(1, "x", "", 1.0, "", "", 1.0, 1.0, paired=1.1), False),
        (Row(1, "x", "", 0, "429", "", 0, 0), True),
        (Row(1, "x", "", 1, "429", "", 0, 0), False),
        (Row(None, "x", "", 1.0, "", "", 1.0), None),
    ],
)
def test_a_row_says_whether_its_bar_holds(row: Row, holds: bool | None) -> None:
    assert row.holds is holds
    assert lay_out([row]).splitlines()[-1].split("|")[-2].strip() == {True: "yes", False: "NO", None: ""}[holds]


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    ours, theirs = take_turns(3, iter([1.0, 9.0, 2.0]).__next__, iter([2.0, 9.0, 8.0]).__next__)
    assert pair(ours, theirs) == {"measured": 2.0, "reference": 8.0, "paired": 0.5}


def test_the_peer_and_heatpipe_write_the_rows_of_the_answers(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with run_upstream(COIN) as upstream:
        flags = ["--data", str(ours), "--quiet"]
        span = name_series([COIN], START, START + SECONDS)
        measure_command([*HEATPIPE, "backfill", *span, *flags], environment(upstream.url))
        command = [HEATPIPE[0], "-m", "tests.benchmarks.peers.numpy_polars", upstream.url, str(theirs), COIN]
        said = measure_command([*command, str(SECONDS)], environment(upstream.url)).stdout
        assert upstream.count() == {"200": 2 * SECONDS // WINDOW_S}
    columns = ["timestamp", "price", "volume"]
    rows = heatpipe.scan(str(ours), coin=COIN).select(columns).collect()
    assert rows.height == int(said) > 0
    assert rows.equals(pl.read_parquet(theirs / "**/*.parquet").sort("timestamp", "price").select(columns))


@pytest.mark.parametrize(("peer", "needs"), [("arrow_dlt", "dlt"), ("loop_pandas", "pandas")])
def test_the_other_peers_write_as_many_rows(peer: str, needs: str) -> None:
    pytest.importorskip(needs)
    with run_upstream(COIN) as upstream:
        run = run_peer(peer, upstream.url, COIN, SECONDS)
        assert run.rows == run_backfill(upstream.url, [COIN], SECONDS).rows
    assert run.rate > 0


def test_the_upstream_charges_weight_and_refuses_what_it_has_not_got() -> None:
    asked: dict[str, str | int] = {
        "type": LIQUIDATIONS.name,
        "coin": COIN,
        "interval": "MINUTE",
        "flatten": "true",
        "maxDepth": 1500,
        "from": START,
    }
    with (
        run_upstream(COIN, per_minute=1, burst=5) as upstream,
        httpx.Client(base_url=upstream.url, headers={KEY_HEADER: KEY}, trust_env=False) as client,
    ):
        answers = [client.get(POINTS_PATH, params=asked | {"period": seconds}) for seconds in (WINDOW_S, WINDOW_S, 60)]
        assert [answer.status_code for answer in answers] == [200, 429, 400]
        assert 200 < int(answers[1].headers["Retry-After"]) <= 300
        assert client.get(POINTS_PATH, headers={KEY_HEADER: "other"}).status_code == 401
        assert upstream.count() == {"200": 1, "429": 1, "400": 1, "401": 1}


def test_answers_name_their_coin_and_decompress() -> None:
    found = {span: body.text() for _, span, body in read_lot(TINY)}
    assert min(found) == Span(START, START + 1_000 * MINUTE_S)
    assert all(json.loads(text)["series"][0]["id"]["coin"] == COIN for text in found.values())


def test_the_parts_of_the_pipe_are_timed() -> None:
    figures = time_parts(1, TINY)
    assert list(figures)[-1] == "encode volume"
    assert all(figure >= 0 for figure in figures.values())


def test_the_table_is_printed_and_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    bench.main(["start", "--runs", "1", "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert [row["number"] for row in rows] == [10, None, 10, None]
    assert "heatpipe --help" in capsys.readouterr().out


def test_an_unknown_row_is_refused_with_the_names_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["wholly"])
    assert "whole, size, queries" in capsys.readouterr().err

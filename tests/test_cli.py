"""The command line as its user types it: a process of its own, the sandbox on loopback, today's clock."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from heatpipe.layout import CAPPED_KEY, day_path, seal
from heatpipe.model import Series
from heatpipe.sandbox import Market, Options, Tier, serve
from tests.conftest import DAY, TODAY
from tests.test_heatmap import as_before, put_points

# Without an end of the history, so that the dates below may grow old.
KEYS = {"sandbox-key": Tier("enterprise", 10**6, 10**6, history_days=0), "basic-key": Tier("basic", liquidations=False)}
ANSI = re.compile(r"\x1b\[[0-9;]*m")

Heatpipe = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def upstream() -> Iterator[tuple[str, Options]]:
    options = Options(market=Market(7), keys=KEYS)
    with serve(options) as url:
        yield url, options


@pytest.fixture
def environment(upstream: tuple[str, Options], tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEATPIPE_", "KIYOTAKA_"))}
    return kept | {
        "KIYOTAKA_API_KEY": "sandbox-key",
        "HEATPIPE_API_URL": upstream[0],
        "HEATPIPE_DATA": str(tmp_path / "data"),
        "HEATPIPE_HISTORY_DAYS": "0",
        "COLUMNS": "120",
    }


@pytest.fixture
def heatpipe(environment: dict[str, str], tmp_path: Path) -> Heatpipe:
    def call(*arguments: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in (environment | variables).items() if value is not None}
        command = [sys.executable, "-m", "heatpipe", *arguments]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    return call


def one_line(result: subprocess.CompletedProcess[str], code: int) -> str:
    assert result.returncode == code, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "sandbox-key" not in result.stdout
    return lines[0]


COMMANDS = ("plan", "backfill", "update", "status", "verify", "heatmap", "sandbox")


def test_help_lists_the_commands_and_an_example(heatpipe: Heatpipe) -> None:
    result = heatpipe("--help")
    assert result.returncode == 0
    assert all(command in result.stdout for command in COMMANDS)
    assert "sandbox-key" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(heatpipe: Heatpipe, command: str) -> None:
    result = heatpipe(command, "--help")
    assert result.returncode == 0
    assert f"heatpipe {command}" in ANSI.sub("", result.stdout).split("Example:")[1]


def test_version_is_the_package_s(heatpipe: Heatpipe) -> None:
    from heatpipe import __version__

    assert heatpipe("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["backfil"], "Did you mean"),
        (["plan", "--coins", "BTC"], "--coin"),
        (["plan"], "no coin"),
        (["plan", "--coin", "BTC"], "no span"),
        (["plan", "--coin", "BTC", "--last", "7x"], "--last '7x'"),
        (["plan", "--coin", "BTC", "--last", "7d", "--interval", "MINUT"], "did you mean 'MINUTE'?"),
        (["plan", "--coin", "BTC", "--last", "7d", "--interval", "WEEK"], "not documented"),
        (["plan", "--coin", "BTC", "--last", "7d", "--unit", "eur"], "unit 'eur'"),
        (["plan", "--coin", "BTC", "--last", "7d", "--depth", "0"], "depth 0"),
        (["plan", "--coin", "BTC", "--last", "7d", "--depth", "x"], "--depth"),
        (["plan", "--coin", "BTC", "--last", "7d", "--depth", "1500.5"], "--depth: '1500.5' is no whole number"),
        (["plan", "--coin", "BTC", "--last", "7d", "--max-weight", "9.9"], "--max-weight: '9.9' is no whole number"),
        (["update", "--coin", "BTC", "--last", "1d", "--lookback", "1.5"], "--lookback: '1.5' is no whole number"),
        (["sandbox", "--seed", "0.5"], "--seed: '0.5' is no whole number"),
        (["plan", "--coin", "", "--last", "7d"], "coin ''"),
        (["plan", "--coin", "BTC", "--start", "yesterday"], "--start: 'yesterday'"),
        (["plan", "--coin", "BTC", "--start", "2026-03-02", "--end", "2026-03-01"], "before it starts"),
        (["plan", "--coin", "BTC", "--start", "2999-01-01"], "there is nothing to ask for yet"),
        (["plan", "--coin", "BTC", "--last", "7d", "--max-weight", "1"], "--max-weight"),
        (["plan", "--coin", "BTC", "--update"], "nothing of BTC MINUTE in coin at depth 1500 is on disk"),
        (["plan", "--coin", "BTC", "--last", "1d", "--update", "--refetch"], "exclude each other"),
        (["plan", "--update", "--interval", "MINUT"], "did you mean 'MINUTE'?"),
        (["update"], "nothing to update in"),
        (["update", "--coin", "BTC"], "say with --start from when on it is wanted"),
        (["update", "--coin", "BTC", "--last", "1d", "--lookback", "-1"], "it cannot be negative"),
        (["update", "--coin", "BTC", "--last", "7d", "--max-weight", "1"], "--max-weight"),
        (["plan", "--config", "nowhere.toml"], "nowhere.toml"),
        (["plan", "--coin", "BTC", "--last", "7d", "--api-url", "http://example.com"], "use https"),
        (["plan", "--coin", "BTC", "--last", "7d", "--data", "s3://bucket"], "local folders"),
        (["plan", "extra"], "extra"),
        (["heatmap", "--coin", "BTC", "-o", "x.png"], "no coin 'BTC'"),
        (["heatmap", "--coin", "BTC", "--last", "1d", "-o", "x.png"], "no rows"),
        (["sandbox", "--port", "70000"], "port"),
        (["sandbox", "--burst", "0"], "budget"),
        (["sandbox", "--latency", "nan"], "--latency is a number of seconds"),
        (["sandbox", "--chaos", "nan"], "--chaos is a share"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_word_gets_one_line_and_2(heatpipe: Heatpipe, arguments: list[str], said: str) -> None:
    assert said in one_line(heatpipe(*arguments), 2)


def test_what_lies_beyond_the_history_is_refused(heatpipe: Heatpipe) -> None:
    span = ("--coin", "BTC", "--start", "2001-03-01", "--end", "2001-03-02")
    assert "beyond the 365 days" in one_line(heatpipe("plan", *span, HEATPIPE_HISTORY_DAYS=None), 2)


def test_without_a_key_nothing_is_asked(heatpipe: Heatpipe) -> None:
    result = heatpipe("backfill", "--coin", "BTC", "--last", "1h", KIYOTAKA_API_KEY=None)
    assert "KIYOTAKA_API_KEY" in one_line(result, 2)


@pytest.mark.parametrize(("key", "said"), [("wrong-canary", "401"), ("basic-key", "403")])
def test_a_refused_key_costs_one_request(
    heatpipe: Heatpipe, upstream: tuple[str, Options], key: str, said: str
) -> None:
    before = len(upstream[1].ledger)
    result = heatpipe("backfill", "--coin", "BTC", "--last", "10d", "--verbose", KIYOTAKA_API_KEY=key)
    assert said in one_line(result, 2)
    assert key not in result.stderr
    assert len(upstream[1].ledger) == before + 1


def test_plan_spends_nothing_and_says_the_cost_as_json(heatpipe: Heatpipe, upstream: tuple[str, Options]) -> None:
    before = len(upstream[1].ledger)
    result = heatpipe("plan", "--coin", "BTC", "--coin", "ETH", "--last", "3d", "--json", KIYOTAKA_API_KEY=None)
    document = json.loads(result.stdout)
    assert (result.returncode, result.stderr) == (0, "")
    assert document["requests"] == len(document["windows"]) == document["weight"] / 5
    assert document["seconds"] == 0
    assert {window["coin"] for window in document["windows"]} == {"BTC", "ETH"}
    assert sum(window["period"] for window in document["windows"]) == 2 * 3 * 86400
    assert len(upstream[1].ledger) == before


def test_backfill_then_backfill_again_then_status_and_picture(
    heatpipe: Heatpipe, upstream: tuple[str, Options], tmp_path: Path
) -> None:
    span = ("--coin", "BTC", "--coin", "PURR/USDC", "--start", "2026-06-01", "--end", "2026-06-01T03:00")
    first = heatpipe("backfill", *span, "--json")
    report = json.loads(first.stdout)
    assert first.returncode == 0
    assert (report["requests"], report["weight"], report["points"], report["days"]) == (2, 10, 360, 2)
    assert report["failures"] == []
    files = sorted((tmp_path / "data" / "liquidations").rglob("*.parquet"))
    assert sum(pq.read_metadata(path).num_rows for path in files) == report["rows"]

    before, bytes_before = len(upstream[1].ledger), [path.read_bytes() for path in files]
    again = heatpipe("backfill", *span)
    assert again.stdout == "Nothing to fetch: 360 intervals are on disk already.\n"
    assert len(upstream[1].ledger) == before
    assert [path.read_bytes() for path in files] == bytes_before

    status = json.loads(heatpipe("status", "--json", *span).stdout)["series"]
    assert [one["coin"] for one in status] == ["BTC", "PURR/USDC"]
    assert all(one["present"] + one["empty"] == 180 for one in status)
    assert "PURR/USDC" in heatpipe("status").stdout

    picture = heatpipe("heatmap", "--coin", "BTC", "-o", "btc.png")
    assert picture.returncode == 0, picture.stderr
    assert (tmp_path / "btc.png").read_bytes().startswith(b"\x89PNG")


def test_a_refetch_asks_for_what_is_on_disk_and_says_beforehand_what_it_costs(
    heatpipe: Heatpipe, tmp_path: Path
) -> None:
    span = ("--coin", "BTC", "--start", "2026-06-01", "--end", "2026-06-01T03:00", "--json")
    assert heatpipe("backfill", *span).returncode == 0
    (path,) = (tmp_path / "data" / "liquidations").rglob("*.parquet")
    before, written = path.read_bytes(), path.stat().st_ino
    assert json.loads(heatpipe("plan", *span).stdout)["weight"] == 0
    assert json.loads(heatpipe("plan", *span, "--refetch").stdout)["weight"] == 5
    report = json.loads(heatpipe("backfill", *span, "--refetch").stdout)
    assert (report["requests"], report["points"], report["days"]) == (1, 180, 1)
    assert (path.read_bytes(), path.stat().st_ino != written) == (before, True)


def test_an_update_goes_on_where_the_disk_ends(
    heatpipe: Heatpipe, upstream: tuple[str, Options], tmp_path: Path
) -> None:
    names = ("--coin", "BTC", "--coin", "ETH", "--interval", "HOUR")
    assert heatpipe("backfill", *names, "--start", "2026-06-01", "--end", "2026-06-02").returncode == 0
    assert heatpipe("backfill", *names, "--start", "2026-06-02T03:00", "--end", "2026-06-03").returncode == 0

    end = ("--end", "2026-06-04")  # so that the numbers do not depend on the day on which this is run
    planned = json.loads(heatpipe("plan", "--update", *end, "--json", KIYOTAKA_API_KEY=None).stdout)
    assert (planned["requests"], planned["weight"], planned["missing"]) == (2, 10, 2 * 27)
    first = heatpipe("update", *end, "--json")
    report = json.loads(first.stdout)
    assert (first.returncode, first.stderr) == (0, "")
    assert (report["requests"], report["weight"], report["points"], report["days"]) == (2, 10, 2 * 27, 4)
    # All 48 hours up to the newest on disk are among the sixty; three of them are the hole.
    assert [report[name] for name in ("unchanged", "changed", "appeared", "vanished")] == [2 * 45, 0, 0, 0]
    assert (report["intervals"], report["open"], report["failures"]) == (2 * 72, 0, [])

    before = len(upstream[1].ledger)
    assert heatpipe("update", *end).stdout == "Nothing to fetch: 144 intervals are on disk already.\n"
    one = ("--coin", "BTC", "--interval", "HOUR")
    assert heatpipe("update", *one, "--end", "2026-05-01").stdout == "Nothing to fetch.\n"
    assert len(upstream[1].ledger) == before
    said = heatpipe("update", *one, "--end", "2026-06-05", "--lookback", "5").stdout
    assert "1 request" in said
    assert "5 intervals were on disk already and asked for again: all unchanged" in said
    assert heatpipe("update", *one, "--quiet").stdout == ""
    status = json.loads(heatpipe("status", *one, "--json").stdout)["series"]
    assert [(tally["missing"], tally["absent"]) for tally in status] == [(0, 0)]


def test_an_update_starts_the_file_s_series_where_the_file_says(heatpipe: Heatpipe, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('[[series]]\ncoins = ["SOL"]\ninterval = "DAY"\nstart = 2026-06-01\n')
    command = ("update", "--config", "one.toml", "--end", "2026-06-05", "--json")
    report = json.loads(heatpipe(*command).stdout)
    assert (report["points"], report["requests"], report["unchanged"]) == (4, 1, 0)
    assert json.loads(heatpipe(*command).stdout)["requests"] == 0


def test_the_file_s_series_run_where_no_coin_is_named(heatpipe: Heatpipe, tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(
        '[[series]]\ncoins = ["BTC"]\ninterval = "HOUR"\nstart = 2026-06-01\nend = 2026-06-02\n'
        '[[series]]\ncoins = ["ETH"]\ninterval = "DAY"\nunit = "usd"\nstart = 2026-06-01\nend = 2026-06-03\n'
    )
    report = json.loads(heatpipe("backfill", "--config", "two.toml", "--json").stdout)
    assert (report["points"], report["requests"]) == (26, 2)
    named = json.loads(heatpipe("plan", "--config", "two.toml", "--coin", "SOL", "--last", "1d", "--json").stdout)
    assert {window["coin"] for window in named["windows"]} == {"SOL"}


def test_an_unknown_coin_fails_alone(heatpipe: Heatpipe) -> None:
    span = ("--start", "2026-06-01", "--end", "2026-06-01T01:00")
    result = heatpipe("backfill", "--coin", "NOPE", "--coin", "BTC", *span)
    assert "INVALID_SYMBOL" in one_line(result, 1)
    assert "60 snapshots" in result.stdout


def test_quiet_says_nothing(heatpipe: Heatpipe) -> None:
    result = heatpipe("backfill", "--quiet", "--coin", "BTC", "--start", "2026-06-01", "--end", "2026-06-01T01:00")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_root_that_is_a_file_is_a_failure_in_one_line(heatpipe: Heatpipe, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    result = heatpipe("backfill", "--coin", "BTC", "--start", "2026-06-01", "--end", "2026-06-01T01:00")
    assert "cannot write" in one_line(result, 1)
    assert (tmp_path / "data").read_text() == "mine"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_130_within_two_seconds_and_nothing_is_lost(
    environment: dict[str, str], heatpipe: Heatpipe, tmp_path: Path, number: signal.Signals
) -> None:
    slow = Options(market=Market(7), keys=KEYS, latency_s=0.5)
    span = ("--coin", "BTC", "--start", "2026-06-01", "--end", "2026-06-15", "--interval", "MINUTE", "--depth", "20")
    with serve(slow) as url:
        command = [sys.executable, "-m", "heatpipe", "backfill", *span]
        env = environment | {"HEATPIPE_API_URL": url, "HEATPIPE_CONCURRENCY": "1"}
        with subprocess.Popen(command, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 30
            while len(slow.ledger) < 3 and time.monotonic() < deadline:
                time.sleep(0.05)
            asked = time.monotonic()
            process.send_signal(number)
            _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - asked < 2
    assert said.splitlines()[-1].startswith("heatpipe: interrupted; what had arrived is on disk")
    paid = sum(answered.status == 200 for answered in slow.ledger)
    status = json.loads(heatpipe("status", "--json", *span).stdout)["series"][0]
    assert status["present"] + status["empty"] >= 1000 * (paid - 1)
    assert heatpipe("backfill", *span).returncode == 0


def test_sandbox_says_how_to_use_it_and_ends_quietly(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "heatpipe", "sandbox", "--port", "0"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(4)]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert "http://127.0.0.1:" in said[0]
    assert "KIYOTAKA_API_KEY=sandbox-key" in said[2]
    assert errors == ""


def test_a_closed_stdout_is_no_traceback(environment: dict[str, str]) -> None:
    command = f"{sys.executable} -m heatpipe plan --coin BTC --last 1h >&-"
    result = subprocess.run(command, shell=True, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_picture_of_an_old_series_shows_what_is_on_disk_and_not_the_time_since(heatpipe: Heatpipe) -> None:
    heatpipe("backfill", "--coin", "BTC", "--start", "2026-06-01", "--end", "2026-06-01T03:00")
    result = json.loads(heatpipe("heatmap", "--coin", "BTC", "-o", "btc.png", "--json").stdout)
    assert result["present"] + result["empty"] == 180
    assert result["missing"] == 0


def test_snapshots_at_the_depth_cap_have_a_column_where_there_are_some(heatpipe: Heatpipe, tmp_path: Path) -> None:
    def status() -> list[str]:
        return heatpipe("status", "--data", ".").stdout.splitlines()

    def counted() -> list[int]:
        document = json.loads(heatpipe("status", "--data", ".", "--json").stdout)
        return [one["capped"] for one in document["series"]]

    levels = [(10.0, 1.0), (20.0, 2.0)]
    put_points(tmp_path, {0: levels, 1: levels, 2: levels[:1]}, covered=60, series=Series("BTC", depth=3))
    assert "capped" not in status()[0]
    assert counted() == [0]
    put_points(tmp_path, {0: levels, 1: levels, 2: levels[:1]}, covered=60, series=Series("BTC", depth=2))
    header, *lines = status()
    assert header.split()[-1] == "capped"
    assert [line.split()[-1] for line in lines] == ["2", "0"]
    assert counted() == [2, 0]


def test_a_wrong_count_of_snapshots_at_the_depth_cap_is_told_with_what_to_do(
    heatpipe: Heatpipe, tmp_path: Path
) -> None:
    series = Series("BTC", depth=2)
    put_points(
        tmp_path / "data", {minute: [(10.0, 1.0), (20.0, 2.0)] for minute in range(3)}, covered=60, series=series
    )
    path = tmp_path / "data" / day_path(series, TODAY // DAY)
    sound = path.read_bytes()
    as_before(path)
    assert heatpipe("verify").stdout.splitlines()[-1].endswith("; all sound")
    data = bytearray(sound.replace(CAPPED_KEY + b"\x18\x013", CAPPED_KEY + b"\x18\x012"))
    seal(data)
    path.write_bytes(data)
    result = heatpipe("verify")
    assert (result.returncode, result.stderr) == (3, "")
    said, _, advice = result.stdout.splitlines()
    assert said.endswith("part-0.parquet: has 3 snapshots of 2 levels, its key heatpipe.capped says 2")
    assert "heatpipe backfill --refetch" in advice

"""``python -m flows.…``: the same flags and exit codes as the command ``heatpipe``."""

import os
import signal
import time
from pathlib import Path

import pytest
from cyclopts import App

from flows import backfill, update, verify
from heatpipe import cli
from heatpipe.sandbox import Answered, Market, Options, serve
from tests.flows.conftest import CANARY, Server, Upstream, program, tier, until
from tests.flows.test_lease import gate_to

SPAN = ("--start", "2026-06-01", "--end", "2026-06-01T02:00")


def call(app: App, *arguments: str) -> int:
    return cli.run(app, list(arguments))


@pytest.mark.usefixtures("in_process")
def test_exit_codes_are_those_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ("--data", str(tmp_path / "data"))
    hours = ("--interval", "HOUR", "--depth", "5")
    assert call(backfill.app, "--coin", "BTC", *hours, *SPAN, *data) == cli.DONE
    assert call(update.app, "--coin", "BTC", *hours, *data, "--dry-run") == cli.DONE
    assert call(verify.app, *data) == cli.DONE
    assert call(backfill.app, "--coin", "NOPE", *hours, *SPAN, *data) == cli.FAILED
    for wrong, said in (
        (("--interval", "MINUT"), "did you mean 'MINUTE'?"),
        (("--max-weight", "4"), "a weight of 5, allowed are 4"),
        (("--max-weight", "0"), "--dry-run only plans"),
        (("--nonsense",), "--nonsense"),
        (("--last", "7d"), "exclude each other"),
        (("--config", "absent.toml"), "cannot read the configuration file absent.toml"),
    ):
        assert call(backfill.app, "--coin", "ETH", *SPAN, *data, *wrong) == cli.USAGE
        assert said in capsys.readouterr().err
    assert call(backfill.app, "--coin", "BTC", *data) == cli.USAGE
    assert call(backfill.app, *data) == cli.USAGE
    next((tmp_path / "data").rglob("part-0.parquet")).write_bytes(b"x")
    assert call(verify.app, *data) == cli.UNSOUND
    monkeypatch.setenv("KIYOTAKA_API_KEY", "wrong")
    assert call(backfill.app, "--coin", "BTC", *SPAN, *data) == cli.USAGE
    monkeypatch.delenv("KIYOTAKA_API_KEY")
    assert call(backfill.app, "--coin", "ETH", *SPAN, *data) == cli.USAGE


@pytest.mark.usefixtures("in_process")
def test_a_file_names_series_and_settings(
    tmp_path: Path, upstream: Upstream, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEATPIPE_API_URL")
    file = tmp_path / "some.toml"
    head = f'[api]\nurl = "{upstream.url}"\n[dataset]\nroot = "{tmp_path / "data"}"\n'
    series = '[[series]]\ncoins = ["BTC", "ETH"]\ninterval = "HOUR"\ndepth = 5\nstart = 2026-06-01\nend = 2026-06-02\n'
    file.write_text(head + series)
    with upstream.listening() as heard:
        assert call(backfill.app, "--config", str(file)) == cli.DONE
    assert sorted((entry["coin"], entry["period"]) for entry in heard) == [("BTC", "86400"), ("ETH", "86400")]
    file.write_text(head + series + series.replace("BTC", "SOL").replace("ETH", "HYPE").replace("HOUR", "DAY"))
    assert call(backfill.app, "--config", str(file)) == cli.USAGE
    assert "differ in interval" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_run_in_order(connected: Server, tmp_path: Path, number: signal.Signals) -> None:
    """Forty in 200 ms: what is paid for is on disk; no lock is held, nothing temporary stays."""
    options = Options(market=Market(3), keys={CANARY: tier()}, latency_s=0.4)
    with serve(options) as url:
        environment = Upstream(url, options).environment | {"PREFECT_API_URL": connected.url}
        command = ("flows.backfill", "--coin", "BTC", "--depth", "5", "--start", "2026-01-01", "--end", "2026-09-01")
        log = tmp_path / "log"
        with program(log, *command, "--data", str(tmp_path / "data"), environment=environment) as process:
            until(lambda: len(options.ledger) > 8, "some have been answered")
            answered = list(options.ledger)
            until(lambda: len(options.ledger) > 16, "more have been answered, and those before have arrived")
            ended_at = time.monotonic()
            for _ in range(40):
                process.send_signal(number)
                time.sleep(0.005)
            assert process.wait(20) == cli.INTERRUPTED, log.read_text()[-2000:]
            assert time.monotonic() - ended_at < 15  # 2 where nothing else runs
        assert "what had arrived is on disk, the same command" in log.read_text()
        assert "Traceback" not in log.read_text()
        check_left(tmp_path / "data", answered)


def test_sigterm_ends_a_run_whose_prefect_server_stalls(connected: Server, tmp_path: Path) -> None:
    """As one on SQLite does for a minute now and then: Prefect alone would wait for it as long, and try again."""
    options = Options(market=Market(3), keys={CANARY: tier()}, latency_s=0.4)
    with serve(options) as url, gate_to(connected.url) as gate:
        address = {"PREFECT_API_URL": f"http://127.0.0.1:{gate.port}/api", "PREFECT_HOME": str(tmp_path / "home")}
        command = ("flows.backfill", "--coin", "BTC", "--depth", "5", "--start", "2026-01-01", "--end", "2026-09-01")
        log = tmp_path / "log"
        environment = Upstream(url, options).environment | address
        with program(log, *command, "--data", str(tmp_path / "data"), environment=environment) as process:
            until(lambda: len(options.ledger) > 8, "some have been answered")
            answered = list(options.ledger)
            until(lambda: len(options.ledger) > 12, "more have been answered, and those before have arrived")
            gate.stall()
            ended_at = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == cli.INTERRUPTED, log.read_text()[-2000:]
            assert time.monotonic() - ended_at < 20  # 12 where nothing else runs
        assert "what had arrived is on disk; the Prefect server was not told" in log.read_text()
        check_left(tmp_path / "data", answered)


def check_left(root: Path, answered: list[Answered]) -> None:
    """Hold the disk against what was answered before the end: all of it is stored, and nothing else is left."""
    import fcntl

    from heatpipe.model import DAY_S, Series, Spans
    from heatpipe.store import Store

    store, series = Store(str(root)), Series("BTC", depth=5)
    covered = store.covered(series, store.days(series))
    paid = Spans.of(
        (int(entry.params["from"]), int(entry.params["from"]) + int(entry.params["period"]))
        for entry in answered
        if entry.status == 200
    )
    assert paid
    assert not paid - covered
    assert any(span.end % DAY_S for span in covered), "the days under way were not written"
    assert list((root / "_tmp").iterdir()) == []
    for lock in (root / "_locks").iterdir():
        descriptor = os.open(lock, os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)


@pytest.mark.parametrize("name", ["backfill", "update", "verify"])
def test_each_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = {"backfill": backfill, "update": update, "verify": verify}[name]
    call(module.app, "--help")
    said = capsys.readouterr().out
    assert f"python -m flows.{name}" in said
    assert "--data" in said
    assert "--config" in said

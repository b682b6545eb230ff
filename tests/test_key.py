"""A canary for a key: whatever goes wrong, it sings in no output, log, file, exception or process title."""

import json
import logging
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest

from heatpipe.config import Secret
from heatpipe.errors import HeatpipeError
from heatpipe.ingest import backfill
from heatpipe.model import Series
from heatpipe.sandbox import Market, Options, Rule, Tier, faults, serve
from tests.conftest import DAY, TODAY, Clock, MakeSettings, MakeUpstream, http, read_tree, run_sandbox

CANARY = "c4n4ry/5f0e+9d="
"""With what JSON and URLs may spell otherwise."""
SPELLINGS = (CANARY, CANARY.replace("/", "\\/"), quote(CANARY, safe=""))
KEYS = {CANARY: Tier("enterprise", 10**9, 10**9, history_days=0)}
SPAN = (TODAY - DAY, TODAY)

EVERY: tuple[faults.Fault, ...] = (
    *faults.PASSING,
    *faults.LEGAL,
    *faults.OMISSIONS,
    *faults.BROKEN_VALUES,
    *faults.BROKEN_DOCUMENTS,
    *faults.FINAL,
    faults.BOMB,
    *(faults.garble(status) for status in (400, 403, 429, 500)),
)
ECHOES: tuple[faults.Fault, ...] = (
    *(faults.echo_key(status) for status in (400, 401, 403, 429, 500, 504)),
    faults.ECHO_KEY_ENCODING,
    faults.ECHO_KEY_ID,
    faults.ECHO_KEY_NUMBERS,
)


def sings(text: str) -> bool:
    """Whether the key stands there, or a part of it that is too long for chance."""
    return any(spelling[:8] in text for spelling in SPELLINGS)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("key", ["type", "coin"])
def test_no_spelling_of_the_key_gets_past_who_looks_for_it(
    upstream: MakeUpstream, settings: MakeSettings, spelling: str, key: str
) -> None:
    """Cut off in the middle, even: a message shows no more than so many characters of a wrong value."""
    text = "x" * 70 + spelling + "y"
    body = b'{"series":[{"id":{"%s":"%s"},"flat_points":[]}]}' % (key.encode(), text.encode())
    chosen = settings(upstream(lambda _: http(body=body)).url, api_key=Secret(CANARY))
    report = backfill([Series("BTC", "HOUR", depth=5)], *SPAN, settings=chosen, clock=Clock())
    assert len(report.failures) == 1
    assert not sings(json.dumps(report.as_document()))
    assert not sings("".join(data.decode("latin-1") for data in read_tree(chosen.root).values()))


@pytest.mark.parametrize("fault", [*EVERY, *ECHOES], ids=lambda fault: str(fault.name))
def test_no_fault_makes_the_key_known(
    settings: MakeSettings, caplog: pytest.LogCaptureFixture, fault: faults.Fault
) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    with run_sandbox(keys=KEYS, faults=(Rule(fault, coin="BTC"),)) as sandbox:
        chosen = settings(sandbox.url, api_key=Secret(CANARY), patience_s=0.0, timeout_s=0.2)
        try:
            report = backfill([Series("BTC", "HOUR", depth=5)], *SPAN, settings=chosen, clock=Clock())
            said += [repr(report), json.dumps(report.as_document())]
        except HeatpipeError as exc:
            said += [str(exc), repr(exc), *traceback.format_exception(exc)]
    said += [f"{record.getMessage()} {record.args!r} {record.exc_text}" for record in caplog.records]
    written = [path.encode() + data for path, data in read_tree(chosen.root).items()]
    assert {record.name.partition(".")[0] for record in caplog.records} >= {"httpcore"}
    assert any(entry.fault for entry in sandbox.options.ledger), "the fault did not strike"
    assert [text for text in said if sings(text)] == []
    assert [data for data in written if sings(data.decode("latin-1"))] == []


# Each strikes once, and the next request meets the next; then all is well but for one coin.
PASSING_ECHOES = tuple(fault for fault in ECHOES if fault.name.startswith(("5", "key")))
IN_TURN = (
    *(Rule(fault, nth=number) for number, fault in enumerate(PASSING_ECHOES, 2)),
    Rule(faults.ECHO_KEY_NUMBERS, coin="ETH"),
)
ALL_LOGGING = """
import logging, sys
logging.basicConfig(stream=sys.stderr)
for name in ("heatpipe", "httpx", "httpcore"):
    logging.getLogger(name).setLevel(logging.DEBUG)
"""


def environment(url: str, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEATPIPE_", "KIYOTAKA_"))}
    given = {
        "KIYOTAKA_API_KEY": CANARY,
        "HEATPIPE_API_URL": url,
        "HEATPIPE_TIMEOUT_S": "5",
        "HEATPIPE_PATIENCE_S": "30",
    }
    return kept | given | more


def titles(process: "subprocess.Popen[str]") -> str:
    """What any user of the machine may see of a process and its threads."""
    found = [Path(f"/proc/{process.pid}/cmdline"), *Path(f"/proc/{process.pid}/task").glob("*/comm")]
    return "".join(path.read_text() for path in found if path.exists())


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="there is no /proc to look at")
def test_a_loud_process_does_not_make_the_key_known(tmp_path: Path) -> None:
    options = Options(market=Market(7), keys=KEYS, faults=IN_TURN, latency_s=0.1)
    program = f"{ALL_LOGGING}\nfrom heatpipe.cli import main\nmain()"
    coins = ("--coin", "BTC", "--coin", "ETH", "--depth", "5", "--start", "2026-06-01", "--end", "2026-06-01T02:00")
    with serve(options) as url:
        command = [sys.executable, "-c", program, "backfill", *coins, "--verbose", "--data", str(tmp_path / "data")]
        with subprocess.Popen(
            command, env=environment(url), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            while not options.ledger and process.poll() is None:
                time.sleep(0.01)
            seen = titles(process)
            said, _ = process.communicate(timeout=60)
    assert "backfill" in seen
    assert process.returncode == 1
    assert "httpcore" in said
    assert {entry.fault for entry in options.ledger} >= {fault.name for fault in PASSING_ECHOES}
    assert not sings(said + seen)
    tree = read_tree(tmp_path)
    assert [path for path in tree if path.endswith(".body")]
    assert [path for path, data in tree.items() if sings(data.decode("latin-1"))] == []


def test_a_loud_flow_does_not_make_the_key_known(tmp_path: Path) -> None:
    """Neither in what it prints nor in the database of its server, where Prefect keeps the log."""
    options = Options(market=Market(7), keys=KEYS, faults=IN_TURN)
    program = f"{ALL_LOGGING}\nimport runpy\nrunpy.run_module('flows.backfill', run_name='__main__')"
    coins = ("--coin", "BTC", "--coin", "ETH", "--depth", "5", "--start", "2026-06-01", "--end", "2026-06-01T02:00")
    with serve(options) as url:
        loud = environment(
            url,
            PREFECT_HOME=str(tmp_path / "prefect"),
            PREFECT_LOGGING_LEVEL="DEBUG",
            PREFECT_LOGGING_EXTRA_LOGGERS="heatpipe,httpx,httpcore",
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",
        )
        result = subprocess.run(
            [sys.executable, "-c", program, *coins, "--data", str(tmp_path / "data")],
            env=loud,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            check=False,
        )
    assert result.returncode == 1, result.stdout[-2000:]
    assert {entry.fault for entry in options.ledger} >= {fault.name for fault in PASSING_ECHOES}
    tree = read_tree(tmp_path)
    assert any(b"fill-slab" in data for path, data in tree.items() if path.startswith("prefect")), "there is no log"
    assert not sings(result.stdout)
    assert [path for path, data in tree.items() if sings(data.decode("latin-1"))] == []

"""A canary for a key: whatever goes wrong, it sings in no output, log, file, exception or process title."""

import gzip
import html
import io
import json
import logging
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import httpcore
import httpx
import pytest
from httpcore._backends.sync import SyncStream
from rich.console import Console
from rich.traceback import Traceback

from heatpipe.errors import HeatpipeError
from heatpipe.ingest import backfill
from heatpipe.model import Series
from heatpipe.redaction import Secret
from heatpipe.sandbox import Market, Options, Rule, Tier, faults, serve
from tests.conftest import DAY, TODAY, Clock, MakeSettings, MakeUpstream, http, read_tree, run_sandbox
from tests.test_redaction import SPELLINGS

CANARY = "c4n4ry/5f0e+9d="
"""With what JSON and URLs may spell otherwise."""
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
    """Whether the key can be read there, or a part of it that is too long for chance."""
    read = text
    for _ in range(4):  # as deep as anybody would go
        if CANARY[:8] in read:
            return True
        read = re.sub(r"\\+[uUx]\{?0*([0-9a-fA-F]{2})\}?", lambda found: chr(int(found[1], 16)), read)
        read = re.sub(r"\\+([01][0-7]{2})", lambda found: chr(int(found[1], 8)), read)
        read = html.unescape(unquote(re.sub("%u00", "%", read))).replace("\\", "").replace("\0", "")
    return False


@pytest.mark.parametrize("name", SPELLINGS)
def test_what_looks_for_a_key_reads_its_spellings(name: str) -> None:
    assert sings("".join(map(SPELLINGS[name], CANARY))) or name == "upper case"


def series_with(text: str) -> bytes:
    return f'{{"series":[{text}]}}'.encode()


def refusal_with(status: int, message: str) -> bytes:
    return http(status, f'{{"error":"NO","message":"{message}"}}'.encode())


PLACES: dict[str, Callable[[str], bytes]] = {
    "the type of the answer": lambda key: http(body=series_with(f'{{"id":{{"type":"{key}"}}}}')),
    "a value that is cut": lambda key: http(body=series_with(f'{{"id":{{"type":"{"x" * 70}{key}y"}}}}')),
    "a member": lambda key: http(body=series_with(f'{{"id":{{"{key}":5}}}}')),
    "a number": lambda key: http(body=answer_with(f'5,"{key}"')),
    "numbers": lambda key: http(body=answer_with(f"1,{key},2")),
    "no JSON": lambda key: http(body=f"<p>{key}".encode()),
    "no JSON, cut": lambda key: http(body=f'{{"series":[],"asked with":"{key[: len(key) * 9 // 10]}'.encode()),
    "the end of a long answer": lambda key: http(body=b'{"a":"' + b"y" * (1 << 21) + f"{key}".encode()),
    "gzip": lambda key: http(body=gzip.compress(f"{key}!".encode()), headers={"Content-Encoding": "gzip"}),
    "a bad request": lambda key: refusal_with(400, f"no access with {key}"),
    "a refusal": lambda key: refusal_with(403, f"no access with {key}"),
    "a refusal that is cut": lambda key: refusal_with(403, "x" * 180 + key),
    "a fault": lambda key: refusal_with(500, f"no access with {key}"),
    "the reason": lambda key: f"HTTP/1.1 200 {key}\r\nContent-Length: 0\r\n\r\n".encode(),
    "the encoding": lambda key: http(body=b"{}", headers={"Content-Encoding": key}),
    "a wrong header": lambda key: f"HTTP/1.1 200 OK\r\n{key}\r\n\r\n".encode(),
    "a wrong status": lambda key: f"HTTP/1.1 {key}\r\n\r\n".encode(),
    "no HTTP": lambda key: f"{key}\r\n\r\n".encode(),
    "a wrong length": lambda key: f"HTTP/1.1 200 OK\r\nContent-Length: {key}\r\n\r\n".encode(),
    "where to go": lambda key: http(302, headers={"Location": f"/?key={key}"}),
}


def answer_with(numbers: str) -> bytes:
    identity = '{"type":"HYPERLIQUID_LIQUIDATION_AGG","interval":"HOUR","coin":"BTC"}'
    return series_with(f'{{"id":{identity},"flat_points":[{numbers}]}}')


@pytest.mark.parametrize("place", PLACES)
def test_no_spelling_of_the_key_gets_past_what_looks_for_it(
    place: str, upstream: MakeUpstream, settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    spelt = {name: "".join(map(spell, CANARY)) for name, spell in SPELLINGS.items()}
    spelt["a mixture"] = "c\\u0034n%34&#114;y\\/%35f\\u0030e&plus;9\\x64%253D"
    for name, key in spelt.items():
        answer = PLACES[place](key)
        chosen = settings(upstream(lambda _, answer=answer: answer).url, api_key=Secret(CANARY), patience_s=0.0)  # type: ignore[misc]
        said: list[str] = []
        try:
            report = backfill([Series("BTC", "HOUR", depth=5)], *SPAN, settings=chosen, clock=Clock())
            said += [str(report.failures), json.dumps(report.as_document())]
            assert report.failures, name
        except HeatpipeError as exc:
            said += [str(exc), *traceback.format_exception(exc)]
        said += [f"{record.getMessage()} {record.exc_text}" for record in caplog.records]
        written = [data.decode("latin-1") for data in read_tree(chosen.root).values()]
        assert [text for text in (*said, *written) if sings(text)] == [], name
        caplog.clear()


@pytest.mark.parametrize("place", ["connect_tcp", "read", "write"])
def test_a_traceback_with_locals_does_not_show_the_key(
    place: str, upstream: MakeUpstream, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As rich, pytest and Jupyter can show them: whatever ends a request in the middle of a library."""

    def fail(*_: object, **__: object) -> object:
        raise RuntimeError(f"out of nothing, with {CANARY}")

    owner = httpcore.SyncBackend if place == "connect_tcp" else SyncStream
    monkeypatch.setattr(owner, place, fail)
    chosen = settings(upstream(lambda _: http()).url, api_key=Secret(CANARY))
    with pytest.raises(RuntimeError, match="out of nothing") as caught:
        backfill([Series("BTC", "HOUR", depth=5)], *SPAN, settings=chosen, clock=Clock())
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    console = Console(file=io.StringIO(), width=200)
    console.print(Traceback.from_exception(type(caught.value), caught.value, caught.tb, show_locals=True))
    shown += console.file.getvalue()  # type: ignore[attr-defined]
    assert "_exchange" in shown
    assert not sings(shown.replace(f"with {CANARY}", ""))


def test_a_client_that_cannot_be_made_does_not_show_the_key(
    upstream: MakeUpstream, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> object:
        raise RuntimeError("out of nothing")

    monkeypatch.setattr(httpx.HTTPTransport, "__init__", fail)
    chosen = settings(upstream(lambda _: http()).url, api_key=Secret(CANARY))
    with pytest.raises(RuntimeError, match="out of nothing") as caught:
        backfill([Series("BTC", "HOUR", depth=5)], *SPAN, settings=chosen, clock=Clock())
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "key_header" in shown
    assert not sings(shown)


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


@pytest.mark.parametrize(
    "arguments",
    [
        ["backfill", CANARY],
        [CANARY],
        ["backfill", f"--{CANARY}"],
        ["backfill", "--coin", "BTC", "--last", CANARY],
        ["backfill", "--coin", "BTC", "--start", CANARY],
        ["backfill", "--coin", "BTC", "--last", "1d", "--unit", CANARY],
        ["backfill", "--coin", "BTC", "--last", "1d", "--depth", CANARY],
        ["backfill", "--coin", "BTC", "--last", "1d", "--max-weight", CANARY],
        ["backfill", "--coin", "BTC", "--last", "1d", "--api-url", f"https://u:{CANARY}@h"],
        ["backfill", "--coin", "BTC", "--last", "1d", "--data", f"s3://u:{CANARY}@h"],
        ["backfill", "--coin", "BTC", "--last", "1d", "--config", f"/there/{CANARY}"],
        ["backfill", "--coin", "x" * 70 + CANARY, "--last", "1d"],
        ["sandbox", "--port", CANARY],
    ],
    ids=" ".join,
)
def test_a_key_that_was_given_in_a_wrong_place_is_not_printed(arguments: list[str], tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "heatpipe", *arguments, *(["--verbose"] if arguments[0] == "backfill" else [])],
        env=environment("http://127.0.0.1:9"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not sings(result.stdout + result.stderr)

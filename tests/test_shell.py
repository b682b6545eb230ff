"""What surrounds the command line: streams, signals, limits, variables, folders. One line each, never a traceback."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import certifi
import pytest

from heatpipe.client import check_proxies, load_certificates
from heatpipe.errors import ConfigError
from heatpipe.model import Series
from heatpipe.sandbox import Market, Options, Tier, serve
from tests.conftest import read_tree
from tests.test_heatmap import put_points

KEYS = {"sandbox-key": Tier("enterprise", 10**6, 10**6, history_days=0)}
HOUR = ("--coin", "BTC", "--depth", "20", "--start", "2026-06-01", "--end", "2026-06-01T01:00")
FORTNIGHT = ("--coin", "BTC", "--depth", "20", "--start", "2026-06-01", "--end", "2026-06-15")
OPTIONS = Options(market=Market(7), keys=KEYS)

Done = subprocess.CompletedProcess[str]
Shell = Callable[..., Done]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve(OPTIONS) as found:
        yield found


@pytest.fixture
def environment(url: str, tmp_path: Path) -> dict[str, str]:
    foreign = ("HEATPIPE_", "KIYOTAKA_", "MPL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
    return kept | {
        "KIYOTAKA_API_KEY": "sandbox-key",
        "HEATPIPE_API_URL": url,
        "HEATPIPE_DATA": str(tmp_path / "data"),
        "HEATPIPE_HISTORY_DAYS": "0",
        "PYTHON": sys.executable,
        "COLUMNS": "100",
    }


@pytest.fixture
def shell(environment: dict[str, str], tmp_path: Path) -> Shell:
    """Run a line of shell, in which $PYTHON is this one and `heatpipe` the command."""

    def call(line: str, **variables: str | None) -> Done:
        env = {name: value for name, value in (environment | variables).items() if value is not None}
        script = 'heatpipe() { "$PYTHON" -m heatpipe "$@"; }; ' + line
        return subprocess.run(
            ["bash", "-c", script],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            timeout=120,
            check=False,
            text=True,
            errors="replace",
        )

    return call


@pytest.fixture
def python(environment: dict[str, str], tmp_path: Path) -> Shell:
    """Run a program that ends its process as heatpipe does."""

    def call(command: str, *arguments: str, **variables: str) -> Done:
        program = f"from heatpipe.process import *\n{command}"
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=environment | variables,
            cwd=tmp_path,
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
            errors="replace",
        )

    return call


def one_line(done: Done, code: int) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stdout
    return lines[0]


# Streams

FULL = "heatpipe: stdout cannot be written: No space left on device"
SPAN = " ".join(HOUR)


@pytest.mark.parametrize(
    "command", ["--help", "--version", "heatmap --help", f"plan {SPAN}", "status --json", f"status {SPAN}"]
)
def test_words_that_a_full_disk_does_not_take_are_missed_in_one_line(shell: Shell, command: str) -> None:
    assert one_line(shell(f"heatpipe {command} >/dev/full"), 1) == FULL


@pytest.mark.parametrize(
    ("line", "code"), [("status --nonsense", 2), ("status", 1), ("verify", 1), (f"plan {SPAN}", 1)]
)
def test_with_nowhere_to_say_anything_the_exit_code_stays(shell: Shell, line: str, code: int) -> None:
    done = shell(f"heatpipe {line} >/dev/full 2>/dev/full")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_what_is_brought_home_does_not_hang_on_what_is_said(shell: Shell, tmp_path: Path) -> None:
    """With closed descriptors the next files that are opened get their numbers, and what is printed to them."""
    assert shell(f"heatpipe backfill {SPAN} --verbose <&- >&- 2>&-").returncode == 0
    sound = read_tree(tmp_path / "data" / "liquidations")
    assert shell("heatpipe verify --json").returncode == 0
    for ends in ("2>/dev/full", ">/dev/null 2>&-", ">&-"):
        (folder := tmp_path / "data").rename(tmp_path / f"data{len(ends)}{hash(ends)}")
        assert shell(f"heatpipe backfill {SPAN} --verbose {ends}").returncode == 0
        assert read_tree(folder / "liquidations") == sound
    next((tmp_path / "data").rglob("*.parquet")).write_bytes(b"PAR1")
    assert shell("heatpipe verify >/dev/full 2>&1").returncode == 3


def test_a_reader_that_has_had_enough_is_no_news(shell: Shell) -> None:
    done = shell("heatpipe --help | head -n 1; echo ${PIPESTATUS[0]}")
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "1")  # whether the pipe held all of it


def test_a_character_that_cannot_be_printed_is_escaped(shell: Shell, python: Shell, tmp_path: Path) -> None:
    everything = """
from heatpipe import cli
guard_process()
for name in ("plan", "backfill", "update", "status", "verify", "heatmap", "sandbox"):
    assert cli.run(cli.app, [name, "--help"]) == 0
"""
    for variables in ({"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1:strict", "LC_ALL": "C"}):
        done = python(everything, **variables)
        assert (done.returncode, done.stderr) == (0, "")
    said = shell("heatpipe heatmap --coin BTC --last 1d -o x.币", PYTHONIOENCODING="ascii")
    assert "Traceback" not in said.stderr
    done = shell("heatpipe status --data börse; heatpipe status --json", PYTHONIOENCODING="ascii")
    assert done.stdout.startswith("no series in b\\xf6rse")
    c_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell("heatpipe status --data $'b\\xf6rse'; heatpipe status --data börse", **c_locale)
    assert (done.stderr, done.stdout.count("no series in b")) == ("", 2)


# Faults of our own


def test_an_unexpected_fault_is_one_line_and_with_verbose_a_traceback(python: Shell) -> None:
    for fault, said in (
        ("1 / 0", "unexpected ZeroDivisionError: division by zero; --verbose shows the traceback"),
        ("(f := lambda: f())()", "unexpected RecursionError: maximum recursion depth exceeded"),
        ("bytearray(1 << 60)", "there is not enough memory"),
        ("open('/nowhere/x')", "/nowhere/x: No such file or directory"),
        ("__import__('nothing_of_that_name')", "a library cannot be loaded: No module named 'nothing_of_that_name'"),
        ('(_ for _ in ()).throw(RuntimeError("can\'t start new thread"))', "no thread can be started"),
        ("(_ for _ in ()).throw(ValueError('two\\nlines\\x1b[2J'))", "unexpected ValueError: two lines"),
    ):
        assert said in one_line(python(f"run_process(lambda: {fault})"), 1)
        assert "\x1b" not in python(f"run_process(lambda: {fault})").stderr if "x1b" in fault else True
    said = python("run_process(lambda: 1 / 0)", "--verbose").stderr
    assert "Traceback" in said
    assert "unexpected ZeroDivisionError" in said.splitlines()[-1]


def test_what_nothing_catches_is_one_line_too(python: Shell) -> None:
    assert "division by zero" in one_line(python("guard_process()\n1 / 0"), 1)
    assert one_line(python("guard_process()\nraise KeyboardInterrupt"), 130) == "heatpipe: interrupted"
    lost = "import threading\nguard_process()\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()"
    assert "in the background: unexpected ZeroDivisionError" in one_line(python(lost), 0)


# Signals


def shower(process: "subprocess.Popen[str]", numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM)) -> str:
    """Send forty signals in 200 ms; return what the process says."""
    for count in range(40):
        process.send_signal(numbers[count % len(numbers)])
        time.sleep(0.005)
    return process.communicate(timeout=30)[1]


def start(environment: dict[str, str], *command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_forty_signals_while_libraries_are_imported(environment: dict[str, str]) -> None:
    slow = """
import heatpipe.__main__ as m, signal, sys
for number in (signal.SIGINT, signal.SIGTERM):  # until heatpipe has its own
    signal.signal(number, lambda *_: None)
print(flush=True)
sys.argv[1:] = ["status"]
m.main()
"""
    for wait_s in (0.0, 0.02, 0.05):
        with start(environment, "-c", slow) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(wait_s)
            assert (shower(process), process.returncode) in (("heatpipe: interrupted\n", 130), ("", 0))


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGTERM), (signal.SIGHUP,)])
@pytest.mark.parametrize("answers", [0, 1, 3, 6])
def test_forty_signals_at_any_moment_leave_what_came_on_disk(
    environment: dict[str, str], tmp_path: Path, answers: int, numbers: Sequence[int]
) -> None:
    options = Options(market=Market(7), keys=KEYS, latency_s=0.2)
    with serve(options) as slow:
        variables = environment | {"HEATPIPE_API_URL": slow, "HEATPIPE_CONCURRENCY": "2"}
        with start(variables, "-m", "heatpipe", "backfill", *FORTNIGHT) as process:
            deadline = time.monotonic() + 30
            while len(options.ledger) < answers + 1 and time.monotonic() < deadline:
                time.sleep(0.01)
            said = shower(process, numbers)
    assert said == "heatpipe: interrupted; what had arrived is on disk, the same command fetches the rest\n"
    assert process.returncode == 130
    assert not list((tmp_path / "data" / "_tmp").rglob("*"))
    status = subprocess.run(
        [sys.executable, "-m", "heatpipe", "status", "--json", *FORTNIGHT],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    (tally,) = json.loads(status.stdout)["series"]
    paid = sum(1000 for answer in options.ledger if answer.status == 200)
    assert tally["present"] + tally["empty"] >= min(paid, 14 * 1440)


def test_a_signal_later_on_ends_what_hangs(environment: dict[str, str]) -> None:
    hangs = """
import time
from heatpipe.process import on_interrupt, run_process
def hang():
    with on_interrupt(lambda: print("told", flush=True)):
        print("hangs", flush=True)
        while True:
            time.sleep(60)
run_process(hang, leave_s=0.5)
"""
    with start(environment, "-c", hangs) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "told\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.6)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (130, "heatpipe: interrupted once more, and ended at once\n")


def test_an_interrupt_in_a_destructor_is_not_lost(python: Shell) -> None:
    program = """
import signal, time
class Dies:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
def work():
    Dies()
    time.sleep(30)
    return 0
run_process(work)
"""
    started = time.monotonic()
    assert one_line(python(program), 130) == "heatpipe: interrupted"
    assert time.monotonic() - started < 20


def test_what_was_ignored_stays_ignored(environment: dict[str, str], python: Shell) -> None:
    program = "import signal\nrun_process(lambda: signal.raise_signal(signal.SIGHUP) or 0)"
    assert one_line(python(program), 130) == "heatpipe: interrupted"
    ignoring = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{program}"
    assert python(ignoring).returncode == 0


# Folders

COMMANDS = (
    "status",
    "verify",
    "plan --coin BTC --last 1h",
    "backfill --coin BTC --last 1h",
    "update",
    "heatmap --coin BTC -o x.png",
    "--help",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_working_folder_that_is_gone_is_named_where_it_is_needed(shell: Shell, command: str) -> None:
    gone = f"mkdir gone; cd gone; rmdir ../gone; heatpipe {command}"
    if command == "--help":
        assert shell(gone, HEATPIPE_DATA=None).returncode == 0
    else:
        assert "data is a path from the working folder, and that is gone" in one_line(
            shell(gone, HEATPIPE_DATA=None), 2
        )
    done = shell(gone)  # with an absolute path
    assert done.returncode == {"verify": 1, "update": 2}.get(command, 2 if "heatmap" in command else 0), done.stderr
    assert len(done.stderr.splitlines()) <= 1


# Pictures


@pytest.fixture
def dollars(tmp_path: Path) -> str:
    """Write an hour of a coin called $$, of odd volumes; return the flag that names it."""
    series = Series("$$")
    put_points(tmp_path / "data", {minute: [(10.0, 1e308), (20.0, 5e-324)] for minute in range(60)}, 60, series)
    return "--coin '$$'"


def test_a_picture_needs_no_window_no_cache_no_tex_and_no_shell_s_goodwill(
    shell: Shell, dollars: str, tmp_path: Path
) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: nothing of that name\n")
    for variables in (
        {"MPLBACKEND": "nonsense", "MPLCONFIGDIR": "/proc/nowhere"},
        {"MPLBACKEND": "qtagg", "MATPLOTLIBRC": str(tmp_path)},
    ):
        done = shell(f"heatpipe heatmap {dollars} -o x.png", PYTHONWARNINGS="error", **variables)
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "x.png").unlink()


def test_a_picture_that_cannot_be_written_is_told_and_leaves_nothing(
    shell: Shell, dollars: str, tmp_path: Path
) -> None:
    full = shell(f"ulimit -f 4; heatpipe heatmap {dollars} -o x.png", MPLCONFIGDIR="/proc/nowhere")
    assert one_line(full, 1) == "heatpipe: cannot write x.png: File too large"
    for name, code, says in (
        ("nowhere/x.png", 1, "cannot write nowhere/x.png: No such file or directory"),
        ("x.jpg", 2, "'x.jpg' is none of the pictures that can be drawn: .png, .svg, .pdf"),
        ("/dev/full", 2, "'/dev/full' is none of the pictures that can be drawn: .png, .svg, .pdf"),
    ):
        assert one_line(shell(f"heatpipe heatmap {dollars} -o {name}"), code) == f"heatpipe: {says}"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_damaged_day_beside_the_picture_s_is_told_once(shell: Shell, tmp_path: Path) -> None:
    put_points(tmp_path / "data", {0: [(10.0, 1.0)]}, 1)
    day = next((tmp_path / "data").rglob("date=*"))
    (day.parent / "date=2026-04-01").mkdir()
    (day.parent / "date=2026-04-01" / "part-0.parquet").write_text("no Parquet")
    (day.parent / "heatmap").write_text("a stray file")
    said = one_line(shell("heatpipe heatmap --coin BTC -o x.png"), 0)
    assert "date=2026-04-01" in said
    assert "counts as not covered" in said


# Proxies and certificates

ROUTES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")


@pytest.fixture
def without_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ROUTES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("without_routes")
@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY", "All_Proxy"])
@pytest.mark.parametrize(
    "value",
    [":::", "foo://x", "http://", "http://:80", "proxy:99999", "socks4://h", "http://[::1", "http://u:secret@h:x",
     "http://a b", "proxy:0", "//", "http://\x01", "\udcff"],
)  # fmt: skip
def test_a_malformed_proxy_is_named_and_not_shown(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{name}: it is not the URL of a proxy") as caught:
        check_proxies()
    assert "secret" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.usefixtures("without_routes")
@pytest.mark.parametrize("value", ["[::1", "a,[::1]", "x:y", "é", "\x01", "::1/128"])
def test_an_odd_list_of_hosts_without_a_proxy_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=f"^{name}: not a list of hosts"):
            check_proxies()
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("without_routes")
@pytest.mark.parametrize(
    ("name", "value"),
    [("HTTPS_PROXY", "http://user:password@proxy:3128"), ("https_proxy", "proxy"), ("ALL_PROXY", "http://[::1]:80/"),
     ("HTTP_PROXY", " "), ("FTP_PROXY", ":::"), ("NO_PROXY", "*"), ("no_proxy", " , localhost ,.a.b,10.0.0.0/8,::1,")],
)  # fmt: skip
def test_what_can_be_used_is_left_alone(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    check_proxies()


@pytest.mark.usefixtures("without_routes")
def test_socks_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in ("socks5", "socks5h"):
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://127.0.0.1:1080")
        if importlib.util.find_spec("socksio"):
            check_proxies()
        monkeypatch.setitem(sys.modules, "socksio", None)
        with pytest.raises(ConfigError, match=r"^ALL_PROXY: a SOCKS proxy .*'heatpipe\[socks\]'"):
            check_proxies()
        monkeypatch.undo()


@pytest.mark.usefixtures("without_routes")
def test_certificates_that_are_none_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no.pem").write_text("nothing of the kind")
    (tmp_path / "empty").mkdir()
    for name, value, says in (
        ("SSL_CERT_FILE", tmp_path / "absent.pem", "No such file"),
        ("SSL_CERT_FILE", tmp_path / "no.pem", "it holds no certificate"),
        ("SSL_CERT_FILE", tmp_path / "empty", "Is a directory"),
        ("SSL_CERT_DIR", tmp_path / "absent", "there is no certificate in"),
        ("SSL_CERT_DIR", f"{tmp_path}/absent:{tmp_path}/empty", "there is no certificate in"),
        ("SSLKEYLOGFILE", tmp_path / "absent" / "log", "No such file"),
    ):
        monkeypatch.setenv(name, str(value))
        with pytest.raises(ConfigError, match=f"^{name}: .*{says}"):
            load_certificates()
        monkeypatch.delenv(name)
    (tmp_path / "empty" / "0123abcd.0").touch()
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path}/absent:{tmp_path}/empty")
    load_certificates()
    monkeypatch.setenv("SSL_CERT_DIR", "/nowhere")
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())  # goes first
    load_certificates()


def test_the_way_to_the_real_upstream_is_looked_at_before_the_first_request(shell: Shell) -> None:
    def fetch(**variables: str) -> Done:
        return shell(f"heatpipe backfill {SPAN}", HEATPIPE_API_URL="https://heatpipe.invalid", **variables)

    assert "NO_PROXY: " in one_line(fetch(NO_PROXY="[::1"), 2)
    assert "https_proxy: " in one_line(fetch(https_proxy="foo://x"), 2)
    assert "SSL_CERT_FILE: " in one_line(fetch(SSL_CERT_FILE="/nowhere"), 2)


def test_the_sandbox_on_loopback_is_reached_past_any_proxy(shell: Shell) -> None:
    variables = {"HTTP_PROXY": ":::", "ALL_PROXY": "socks5h://x", "NO_PROXY": "[::1", "SSL_CERT_FILE": "/nowhere"}
    done = shell(f"heatpipe backfill {SPAN}", **variables)
    assert (done.returncode, done.stderr) == (0, "")

"""What flows stand on: Prefect's folder, profile, database and server, proxies. What is wrong there is one line."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib import request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.ground import LOOPBACK, _spare_loopback, show_url
from heatpipe import cli
from tests.flows.conftest import REPOSITORY, Server, Upstream, clean_environment, free_port
from tests.flows.test_lease import pretender

SPAN = ("--coin", "BTC", "--interval", "HOUR", "--depth", "5", "--start", "2026-06-01", "--end", "2026-06-02")
ENTRIES = {"backfill": SPAN, "update": ("--coin", "BTC"), "verify": (), "serve": (), "worker": (), "demo": ()}


def call(
    module: str,
    *arguments: str,
    environment: Mapping[str, str],
    cwd: Path = REPOSITORY,
    leave: tuple[str, ...] = (),
) -> "subprocess.CompletedProcess[str]":
    """Run a module of flows as a user does."""
    variables = {name: text for name, text in clean_environment(**environment).items() if name not in leave}
    return subprocess.run(
        [sys.executable, "-m", f"flows.{module}", *arguments],
        cwd=cwd,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def call_each(environment: Mapping[str, str], *more: str) -> dict[str, "subprocess.CompletedProcess[str]"]:
    with ThreadPoolExecutor(2) as pool:
        ends = pool.map(lambda entry: call(entry[0], *entry[1], *more, environment=environment), ENTRIES.items())
        return dict(zip(ENTRIES, ends, strict=True))


def one_line(end: "subprocess.CompletedProcess[str]", code: int = cli.USAGE) -> str:
    assert end.returncode == code, end.stderr[-3000:]
    assert end.stdout == ""
    (line,) = end.stderr.splitlines()
    assert line.startswith("heatpipe: ")
    return line


def test_a_server_that_is_not_there_is_one_line_at_every_entry_before_anything_is_asked(
    upstream: Upstream, tmp_path: Path
) -> None:
    shown = f"http://127.0.0.1:{free_port()}/api"
    named = shown.replace("://", "://me:pass-0f3a@") + "?key=pass-0f3a"
    environment = upstream.environment | {"PREFECT_API_URL": named, "PREFECT_HOME": str(tmp_path / "home")}
    with upstream.listening() as heard:
        ends = call_each(environment)
        traced = call_each(environment, "--verbose")
    for name, end in ends.items():
        said = one_line(end)
        assert f"PREFECT_API_URL is {shown}, where no server answers" in said, name
        assert "`prefect server start`, or unset PREFECT_API_URL" in said
        assert "pass-0f3a" not in traced[name].stderr
        assert "Traceback" in traced[name].stderr, name
        assert traced[name].stderr.splitlines()[-1] == said, name
    assert heard == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://nowhere.invalid/api", "where no server answers"),
        ("nonsense", "which is no URL such as http://127.0.0.1:4200/api"),
        ("http://[::1/api", "which is no URL such as http://127.0.0.1:4200/api"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(tmp_path: Path, url: str, said: str) -> None:
    end = call(
        "verify", "--data", str(tmp_path), environment={"PREFECT_API_URL": url, "PREFECT_HOME": str(tmp_path / "home")}
    )
    assert f"PREFECT_API_URL is {url}, {said}" in one_line(end)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>", "something answers that is no Prefect server"),
        (200, b"null", "something answers that is no Prefect server"),
        (200, b'{"series": []}', "something answers that is no Prefect server"),
        (401, b"{}", "says 401; PREFECT_API_KEY or PREFECT_API_AUTH_STRING opens it"),
        (404, b"{}", "says 404"),
    ],
)
def test_what_is_no_prefect_server_is_one_line(tmp_path: Path, status: int, body: bytes, said: str) -> None:
    with pretender(status, body) as (url, _):
        end = call(
            "verify",
            "--data",
            str(tmp_path),
            environment={"PREFECT_API_URL": url, "PREFECT_HOME": str(tmp_path / "home")},
        )
    assert said in one_line(end)


def test_a_server_that_is_there_takes_the_run_whatever_the_home_is(connected: Server, tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.touch()
    end = call(
        "verify", "--data", str(tmp_path), environment={"PREFECT_API_URL": connected.url, "PREFECT_HOME": str(home)}
    )
    assert end.returncode == cli.FAILED
    assert "nothing to verify" in end.stderr
    assert str(home) not in end.stderr


def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/proc/nowhere")
    for name, said in (("file", "it is a file"), ("file/home", "Not a directory"), ("link", "")):
        line = one_line(call("verify", "--data", str(tmp_path), environment={"PREFECT_HOME": str(tmp_path / name)}))
        assert f"PREFECT_HOME: Prefect cannot keep its files in {tmp_path / name}: {said}" in line
        assert "name a folder that may be written in PREFECT_HOME" in line


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"nonsense [", "Prefect's profiles are no TOML"),
        (b"\xff\xfe", "Prefect's profiles are no TOML"),
        (b"profiles = 1", "Prefect's profiles are no tables"),
        (
            b'active = "gone"\n[profiles.mine]\n',
            "Prefect has no profile 'gone'; there is cloud, ephemeral, local, mine",
        ),
    ],
)
def test_profiles_that_cannot_be_used_are_one_line(tmp_path: Path, written: bytes, said: str) -> None:
    profiles = tmp_path / "profiles.toml"
    profiles.write_bytes(written)
    line = one_line(call("verify", "--data", str(tmp_path), environment={"PREFECT_HOME": str(tmp_path)}))
    assert line.startswith(f"heatpipe: {profiles}: {said}")


def test_settings_of_prefect_that_are_wrong_are_one_line_with_the_variable(tmp_path: Path) -> None:
    home = {"PREFECT_HOME": str(tmp_path / "home")}
    line = one_line(call("verify", environment={"PREFECT_LOGGING_LEVEL": "pass-0f3a"} | home))
    assert "PREFECT_LOGGING_LEVEL: Input should be" in line
    assert "pass-0f3a" not in line.lower()
    line = one_line(call("verify", environment={"PREFECT_PROFILE": "gone"} | home))
    assert line.startswith("heatpipe: PREFECT_PROFILE: Prefect has no profile 'gone'; there is ")
    assert "SSL_CERT_FILE: cannot use /nowhere" in one_line(
        call("verify", environment={"SSL_CERT_FILE": "/nowhere"} | home)
    )
    assert "HTTP_PROXY: it is not the URL of a proxy" in one_line(
        call("verify", environment={"HTTP_PROXY": "nonsense://"} | home)
    )
    line = one_line(call("verify", environment={"PREFECT_SERVER_EPHEMERAL_ENABLED": "false"} | home))
    assert "PREFECT_API_URL is not set" in line


def test_a_database_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("folder", "garbage", "locked")]
    for home in homes:
        home.mkdir()
    (homes[0] / "prefect.db").mkdir()
    (homes[1] / "prefect.db").write_bytes(b"no database at all, but long enough for one to be seen " * 20)
    with closing(sqlite3.connect(homes[2] / "prefect.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        lines = [
            one_line(call("verify", "--data", str(tmp_path), environment={"PREFECT_HOME": str(home)})) for home in homes
        ]
    ways = (
        "unable to open database file; move it away",
        "file is not a database; move it away",
        "locked; end the process",
    )
    for home, line, way in zip(homes, lines, ways, strict=True):
        assert line.startswith(f"heatpipe: PREFECT_HOME: Prefect's database {home / 'prefect.db'} cannot be used: ")
        assert way in line


def test_a_run_in_a_new_home_behind_a_proxy_asks_loopback_directly_and_says_only_what_it_does(
    upstream: Upstream, tmp_path: Path
) -> None:
    """Of the proxy it would be refused. Two at once make the tables of one database at the same time."""
    dead = f"http://127.0.0.1:{free_port()}"
    proxies = {"HTTP_PROXY": dead, "http_proxy": dead, "NO_PROXY": "example.org"}
    environment = upstream.environment | proxies | {"PREFECT_HOME": str(tmp_path / "new")}

    def run(coin: str) -> "subprocess.CompletedProcess[str]":
        data = ("--data", str(tmp_path / "data"))
        return call("backfill", "--coin", coin, *SPAN[2:], *data, leave=("no_proxy",), environment=environment)

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(run, ("BTC", "ETH")))
    for end in ends:
        assert end.returncode == cli.DONE, end.stderr[-3000:]
        assert "locked" not in end.stderr
        for line in end.stderr.splitlines():
            assert " | INFO    | " in line or line.startswith("See https://docs.prefect.io/"), line


@pytest.mark.parametrize("name", ["serve", "worker", "ui", "demo"])
def test_what_serves_explains_itself_and_starts_nothing(name: str, tmp_path: Path) -> None:
    home = {"PREFECT_HOME": str(tmp_path / "home")}
    end = call(name, "--help", cwd=tmp_path, environment={"PYTHONPATH": str(REPOSITORY)} | home)
    assert (end.returncode, end.stderr) == (cli.DONE, "")
    assert f"python -m flows.{name}" in end.stdout
    assert not (tmp_path / "home" / "prefect.db").exists()
    assert not (tmp_path / "data").exists()
    assert "--nonsense" in one_line(call(name, "--nonsense", environment=home))


def test_what_the_makefile_sets_is_set_without_it_unless_the_user_has(tmp_path: Path) -> None:
    code = "import os, flows; print(os.environ['DO_NOT_TRACK'], os.environ['PREFECT_SERVER_ANALYTICS_ENABLED'])"

    def said(**variables: str) -> str:
        kept = {name: text for name, text in os.environ.items() if name not in ("DO_NOT_TRACK", *variables)}
        kept.pop("PREFECT_SERVER_ANALYTICS_ENABLED", None)
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, cwd=REPOSITORY, env=kept | variables, capture_output=True, text=True, check=True
        ).stdout

    assert said() == "1 false\n"
    assert said(DO_NOT_TRACK="0", PREFECT_SERVER_ANALYTICS_ENABLED="true") == "0 true\n"


@given(st.lists(st.sampled_from(["example.org", ".example.org", "10.0.0.1", "localhost", "::1", " ", "*"]), max_size=4))
def test_no_proxy_keeps_what_the_user_set_and_spares_loopback(hosts: list[str]) -> None:
    spared = _spare_loopback(",".join(hosts))
    bypass: Any = request.proxy_bypass_environment  # type: ignore[attr-defined]  # of which typeshed does not know
    for host in (*LOOPBACK, *(host.strip(". ") for host in hosts if host.strip(" *"))):
        assert bypass(host, {"no": spared}), (host, spared)
    if [host for host in hosts if host.strip()] != ["*"]:
        assert not bypass("example.com", {"no": spared})
    assert _spare_loopback(spared) == spared


SECRET = st.text(st.characters(codec="ascii", exclude_characters="/"), min_size=1).map(lambda text: f"s3cr3t{text}")


@given(st.sampled_from(["http", "https"]), SECRET, SECRET.filter(lambda text: "@" not in text))
def test_an_address_is_shown_without_what_may_be_secret(scheme: str, password: str, query: str) -> None:
    shown = show_url(f"{scheme}://me:{password}@host:4200/api?key={query}")
    assert shown == f"{scheme}://host:4200/api"

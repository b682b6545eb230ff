"""Prefect's UI with everything behind it, on loopback: ``make ui`` runs ``python -m flows.ui``.

A Prefect server and the sandbox run as processes of their own; this one serves the deployments, and ends the others.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

import httpx

from flows import ground
from heatpipe import cli
from heatpipe.errors import DatasetError, UnreachableError

LOOPBACK: Final = "127.0.0.1"
PORT: Final = 4200
"""Prefect's own; where it is taken, one of those after it."""
PORTS_TRIED: Final = 20
ROOT: Final = Path("data/ui")
KEY: Final = "sandbox-key"
START_S: Final = 120.0
"""The server's first start makes its database, which takes a slow machine half a minute."""
LEAVE_S: Final = 8.0


def find_port() -> int:
    """Return the first free port from Prefect's own on."""
    for port in range(PORT, PORT + PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one in TIME_WAIT is free
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise UnreachableError(f"the ports {PORT} to {PORT + PORTS_TRIED - 1} are all taken: end something that uses one")


@contextmanager
def background(command: list[str], log: IO[bytes], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process of our own Python, away from the terminal's Ctrl-C, and end it with the block."""
    with subprocess.Popen(  # noqa: S603 - our own programs
        [sys.executable, "-m", *command],
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=os.environ | environment,
        start_new_session=True,  # it is ended after what depends on it, not together with it
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    """Wait until a server answers; any answer will do.

    Raises
    ------
    UnreachableError
        It has ended, or takes too long.
    """
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            httpx.get(url, timeout=5.0, trust_env=False)
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise UnreachableError(f"nothing answers on {url}; {log.name} says why")


def show_up(address: str, logs: Path) -> None:
    """Say where to look."""
    print(
        f"""
Prefect's UI is at {address}/deployments

  Choose "backfill", then Run, Custom run, fill in the form and submit; the run's page shows its tasks, its log, and
  under Artifacts its plan, its progress and its report with the picture. The sandbox serves a made-up market.

  rows    {ROOT.absolute()}
  logs    {logs}

Ctrl-C ends all of it; the rows and the runs are kept.
""",
        flush=True,
    )


app = ground.make_app(
    "ui",
    """Serve Prefect's UI with the flows and the emulated API behind it, on loopback, until Ctrl-C. Needs no key.

Example: `python -m flows.ui`""",
)


@app.default
def main(*, verbose: ground.Verbose = False) -> int:  # noqa: ARG001 - see flows.ground
    """Serve until interrupted."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    home = ground.check_home()
    ground.check_database(home / "prefect.db")
    try:
        ROOT.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise DatasetError(f"cannot write {exc.filename}: {exc.strerror}") from exc
    port, sandbox_port = find_port(), _any_port()
    address, sandbox = f"http://{LOOPBACK}:{port}", f"http://{LOOPBACK}:{sandbox_port}"
    print("Starting Prefect's server, the sandbox and the deployments; this takes a few seconds.", flush=True)
    with ExitStack() as stack:
        server_log = stack.enter_context((home / "ui-server.log").open("wb"))
        sandbox_log = stack.enter_context((home / "ui-sandbox.log").open("wb"))
        # The page asks the API that PREFECT_API_URL names, not the one it came from.
        os.environ["PREFECT_API_URL"] = f"{address}/api"
        # The second edition of Prefect's page forgets a schedule's parameters when it switches it on.
        os.environ["PREFECT_SERVER_UI_V2_ENABLED"] = "false"
        command = ["prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)]
        server = stack.enter_context(background(command, server_log))
        command = ["heatpipe", "sandbox", "--port", str(sandbox_port)]
        process = stack.enter_context(background(command, sandbox_log))
        wait_for(process, f"{sandbox}/v1/usage", sandbox_log)
        wait_for(server, f"{address}/api/health", server_log)
        os.environ |= {
            "KIYOTAKA_API_KEY": KEY,
            "HEATPIPE_API_URL": sandbox,
            "HEATPIPE_DATA": str(ROOT.absolute()),
            "PREFECT_RUNNER_POLL_FREQUENCY": "2",  # whoever has clicked is waiting
        }
        from prefect.logging.handlers import APILogHandler  # reads the environment, as the next one does

        from flows.serve import serve

        try:
            serve(lambda: show_up(address, home))
        finally:
            APILogHandler().flush()  # before there is no server to take it
    return cli.DONE


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    ground.prepare(load=False)  # Prefect reads the address of the server that is started here
    ground.run_app(app)

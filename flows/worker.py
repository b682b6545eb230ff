"""Prefect's worker for the pool of ``prefect.yaml``, ended in order: ``python -m flows.worker``.

Told to end, Prefect's own worker kills the processes of its flow runs on the spot: what they have paid for and not
written yet is lost, and their runs stay Running. Here they are told first, and given the time to write it.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from flows import ground
from heatpipe import cli

FLOWS_AT_ONCE: Final = 5
"""As many as `flows.serve` runs. After a day without a worker all that was scheduled meanwhile would start at once."""
COMMAND: Final = (
    *("prefect", "worker", "start", "--pool", "heatpipe", "--type", "process"),
    *("--limit", str(FLOWS_AT_ONCE)),
)
FLOWS_LEAVE_S: Final = 20.0
"""A run writes what has arrived within a second or two; a slow disk may take longer."""
WORKER_LEAVES_S: Final = 10.0
POLL_S: Final = 0.1


def find_flows(worker: "subprocess.Popen[bytes]") -> list[int]:
    """Return the processes of the flow runs under way: the worker's children. Of Linux; elsewhere none is found."""
    found = ""
    for path in Path(f"/proc/{worker.pid}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended meanwhile
            found += path.read_text()
    return [int(pid) for pid in found.split()]


def end_flows(worker: "subprocess.Popen[bytes]") -> None:
    """Tell the flow runs under way to end, and wait until they have."""
    told: set[int] = set()
    deadline = time.monotonic() + FLOWS_LEAVE_S
    while (found := set(find_flows(worker))) and time.monotonic() < deadline:
        for pid in found - told:  # the worker may start one more meanwhile
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        told |= found
        time.sleep(POLL_S)


app = ground.make_app(
    "worker",
    """Start Prefect's worker for the pool heatpipe, on the server of PREFECT_API_URL, until Ctrl-C.

Example: `KIYOTAKA_API_KEY=… HEATPIPE_DATA=/srv/heatpipe python -m flows.worker`""",
)


@app.default
def main(*, verbose: ground.Verbose = False) -> int:  # noqa: ARG001 - see flows.ground
    """Run the worker until it ends, or until this process is told to."""
    ground.check_server(start=False)  # the worker starts its own
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    # Away from the terminal's Ctrl-C: it is ended here, after its flow runs.
    with subprocess.Popen([sys.executable, "-m", *COMMAND], start_new_session=True) as worker:  # noqa: S603 - our own
        try:
            return worker.wait()
        except KeyboardInterrupt:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
        end_flows(worker)
        worker.terminate()
        try:
            worker.wait(WORKER_LEAVES_S)
        except subprocess.TimeoutExpired:
            worker.kill()
    return cli.INTERRUPTED


if __name__ == "__main__":
    ground.prepare()
    ground.run_app(app)

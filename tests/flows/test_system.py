"""What the system refuses a task is one line in its log, and no traceback."""

from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient

from heatpipe import cli
from tests.flows.conftest import REPOSITORY, Server, Upstream, logs_of, newest_run, until
from tests.flows.test_ground import SPAN, call

REFUSE = """
import errno, fcntl, os

def refuse(descriptor, how, known=fcntl.flock):
    if "_locks" in os.readlink(f"/proc/self/fd/{descriptor}"):
        raise FAULT
    return known(descriptor, how)

fcntl.flock = refuse
"""


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))", "No locks available; the dataset must lie where files"),
        ("OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))", "Operation not supported; the dataset must lie where"),
        ("OSError(errno.EACCES, os.strerror(errno.EACCES))", "Permission denied"),
        ("MemoryError()", "there is not enough memory: free some, or raise the limit"),
    ],
)
def test_a_lock_that_is_refused_is_one_line(
    connected: Server, client: SyncPrefectClient, upstream: Upstream, tmp_path: Path, fault: str, said: str
) -> None:
    """No file system at hand refuses locks: Python itself does, in a process of its own."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(REFUSE.replace("FAULT", fault))
    environment = upstream.environment | {
        "PREFECT_API_URL": connected.url,
        "PREFECT_HOME": str(tmp_path / "home"),
        "PYTHONPATH": f"{tmp_path / 'site'}:{REPOSITORY}",
    }
    with upstream.listening() as heard:
        end = call("backfill", *SPAN, "--data", str(tmp_path / "data"), environment=environment)
    assert end.returncode == cli.FAILED
    assert heard == []
    assert "Traceback" not in end.stderr
    assert len(end.stderr.splitlines()) <= 8, end.stderr
    assert said in end.stderr.splitlines()[-1]
    if "OSError" in fault:
        assert str(tmp_path / "data" / "_locks") in end.stderr.splitlines()[-1]
    run = newest_run(client)
    until(lambda: any("Finished in state Failed" in line for line in logs_of(client, run)), "the log is whole")
    assert not [line for line in logs_of(client, run) if "\n" in line]


def test_a_place_that_cannot_be_written_is_one_line(connected: Server, upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "_locks").touch()
    environment = upstream.environment | {"PREFECT_API_URL": connected.url, "PREFECT_HOME": str(tmp_path / "home")}
    end = call("backfill", *SPAN, "--data", str(tmp_path / "data"), environment=environment)
    assert end.returncode == cli.FAILED
    assert "Traceback" not in end.stderr
    assert str(tmp_path / "data" / "_locks") in end.stderr.splitlines()[-1]

"""What a command or a call takes: CPU and wall seconds, peak memory. Knows nothing of heatpipe."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = str(Path(__file__).with_name("launch.py"))
LONGEST_S = 600


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and the children it waited for took, and what it said."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    stdout: str
    stderr: str = ""


def measure_command(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end; one that fails ends the benchmark, with what it said."""
    with tempfile.TemporaryDirectory() as folder:
        usage = Path(folder) / "usage.json"
        done = subprocess.run(
            [sys.executable, "-I", "-S", LAUNCHER, str(usage), *command],
            env=dict(os.environ if environment is None else environment),
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return Usage(**json.loads(usage.read_text()), stdout=done.stdout, stderr=done.stderr)


def peak_of(process: int) -> int:
    """Return the peak of a running process's memory in bytes; Linux tells."""
    [peak_kib] = re.findall(r"VmHWM:\s+([0-9]+) kB", Path(f"/proc/{process}/status").read_text())
    return int(peak_kib) * 1024


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds that a call takes in this process, all threads."""
    started = time.process_time()
    call()
    return time.process_time() - started


def take_turns(runs: int, *calls: Callable[[], float]) -> list[list[float]]:
    """Return what each call found in each round, the calls taking turns."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(runs):
        for call, figures in zip(calls, found, strict=True):
            figures.append(call())
    return found

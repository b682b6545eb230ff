"""A worker of its own: backfills one coin through the shared budget. Says that it is ready, and waits for a line.

``python -m tests.services.worker ROOT COIN DEPTH START END``; settings from the environment.
"""

import json
import sys
import time

import heatpipe
from flows.lease import open_lease
from heatpipe.config import Settings
from heatpipe.model import Series


def main(root: str, coin: str, depth: str, start: str, end: str) -> None:
    """Backfill, and print what it took as JSON."""
    settings = Settings.load({"root": root})
    lease = open_lease(settings)
    assert lease is not None
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.monotonic()
    with lease:
        report = heatpipe.backfill(Series(coin, depth=int(depth)), start, end, settings=settings, budget=lease)
    done = {"seconds": time.monotonic() - started, **report.as_document()}
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

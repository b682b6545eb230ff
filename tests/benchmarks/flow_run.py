"""Run the flow on the server of PREFECT_API_URL: ``python -m tests.benchmarks.flow_run FOLDER START END COIN …``."""

import sys

from flows.backfill import backfill


def main(data: str, start: str, end: str, *coins: str) -> None:
    """Fetch some coins; fail unless all of it came."""
    state = backfill(coins=list(coins), start=start, end=end, data=data, return_state=True)
    assert state.is_completed(), state.message


if __name__ == "__main__":
    main(*sys.argv[1:])

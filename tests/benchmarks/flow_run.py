"""Run the flow on the server of PREFECT_API_URL: ``python -m tests.benchmarks.flow_run FOLDER START END``."""

import sys

from flows.backfill import backfill


def main(data: str, start: str, end: str) -> None:
    """Fetch BTC; fail unless all of it came."""
    state = backfill(coins=["BTC"], start=start, end=end, data=data, return_state=True)
    assert state.is_completed(), state.message


if __name__ == "__main__":
    main(*sys.argv[1:])

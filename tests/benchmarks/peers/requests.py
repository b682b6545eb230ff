"""What the peers share: ask for window after window, as the vendor's page says."""

import os
import sys
from collections.abc import Callable, Iterator

import httpx

START = 820 * 25 * 86_400  # that of the answers; a peer imports nothing of the benchmark
MINUTE_S = 60
WINDOW_S = 1_000 * MINUTE_S


def fetch_answers(url: str, coin: str, seconds: int) -> Iterator[bytes]:
    """Give the text of each answer from `START` on, in order."""
    end = START + seconds
    headers = {"X-Kiyotaka-Key": os.environ["KIYOTAKA_API_KEY"]}
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False, verify=False) as client:
        for start in range(START, end, WINDOW_S):
            asked: dict[str, str | int] = {
                "type": "HYPERLIQUID_LIQUIDATION_AGG",
                "coin": coin,
                "interval": "MINUTE",
                "from": start,
                "period": min(WINDOW_S, end - start),
                "maxDepth": 1500,
                "flatten": "true",
            }
            yield client.get("/v1/points", params=asked).raise_for_status().content


def run(backfill: Callable[[str, str, str, int], int]) -> None:
    """Call a peer with the command line's arguments; print how many rows it has written."""
    url, folder, coin, seconds = sys.argv[1:]
    print(backfill(url, folder, coin, int(seconds)))

"""httpx, json, a loop and pandas: what most people write first."""

import json
from pathlib import Path

import pandas as pd

from tests.benchmarks.peers.requests import fetch_answers, run


def backfill(url: str, folder: str, coin: str, seconds: int) -> int:
    """Write a file a day as its last answer arrives; return the number of rows."""
    rows = 0
    rest = pd.DataFrame()
    for text in fetch_answers(url, coin, seconds):
        rest = pd.concat([rest, decode(text)]) if len(rest) else decode(text)
        *whole, (_, rest) = rest.groupby(rest["timestamp"].dt.floor("D"))
        rows += sum(write(day, folder, coin) for _, day in whole)
    return rows + write(rest, folder, coin)


def decode(text: bytes) -> pd.DataFrame:
    """Walk through the stream level by level."""
    numbers = json.loads(text)["series"][0]["flat_points"]
    stamps, prices, volumes = [], [], []
    at = 0
    while at < len(numbers):
        levels, stamp = numbers[at], numbers[at + 1]
        at += 2
        for _ in range(int(levels)):
            stamps.append(stamp)
            prices.append(numbers[at])
            volumes.append(numbers[at + 1])
            at += 2
    frame = pd.DataFrame({"timestamp": stamps, "price": prices, "volume": volumes}, dtype="float64")
    frame["timestamp"] = pd.to_datetime(frame["timestamp"].astype("int64"), unit="us", utc=True)
    return frame


def write(day: pd.DataFrame, folder: str, coin: str) -> int:
    """Write one day's file; return the number of rows."""
    path = Path(folder) / f"coin={coin}" / f"date={day['timestamp'].iloc[0].date()}" / "part-0.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    day.to_parquet(path, index=False)
    return len(day)


if __name__ == "__main__":
    run(backfill)

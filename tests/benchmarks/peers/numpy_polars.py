"""httpx, orjson, numpy and polars: what somebody writes who knows them."""

from pathlib import Path

import numpy as np
import orjson
import polars as pl

from tests.benchmarks.peers.requests import fetch_answers, run


def backfill(url: str, folder: str, coin: str, seconds: int) -> int:
    """Write a file a day as its last answer arrives; return the number of rows."""
    rows = 0
    rest = pl.DataFrame()
    for text in fetch_answers(url, coin, seconds):
        rest = pl.concat([rest, decode(text)]) if len(rest) else decode(text)
        *whole, rest = rest.partition_by("date", maintain_order=True)
        rows += sum(write(day, folder, coin) for day in whole)
    return rows + write(rest, folder, coin)


def decode(text: bytes) -> pl.DataFrame:
    """Cut the headers out of the stream, and repeat their timestamps."""
    pairs = np.array(orjson.loads(text)["series"][0]["flat_points"], np.float64).reshape(-1, 2)
    headers = []
    at = 0
    while at < len(pairs):
        headers.append(at)
        at += 1 + int(pairs[at, 0])
    is_level = np.ones(len(pairs), np.bool_)
    is_level[headers] = False
    stamps = np.repeat(pairs[headers, 1].astype(np.int64), pairs[headers, 0].astype(np.int64))
    levels = pairs[is_level]
    frame = pl.DataFrame({"timestamp": stamps, "price": levels[:, 0], "volume": levels[:, 1]})
    frame = frame.with_columns(pl.col("timestamp").cast(pl.Datetime("us", "UTC")))
    return frame.with_columns(date=pl.col("timestamp").dt.date())


def write(day: pl.DataFrame, folder: str, coin: str) -> int:
    """Write one day's file; return the number of rows."""
    path = Path(folder) / f"coin={coin}" / f"date={day['date'][0]}" / "part-0.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    day.drop("date").write_parquet(path)
    return len(day)


if __name__ == "__main__":
    run(backfill)

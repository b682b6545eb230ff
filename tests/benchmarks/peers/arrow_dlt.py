"""dlt, with Arrow tables to its filesystem destination."""

import os
import tempfile
from collections.abc import Iterator

import numpy as np
import orjson
import pyarrow as pa

from tests.benchmarks.peers.requests import fetch_answers, run

os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"

import dlt
from dlt.destinations import filesystem


def backfill(url: str, folder: str, coin: str, seconds: int) -> int:
    """Hand dlt one Arrow table an answer; return the number of rows."""
    rows = 0

    def read_tables() -> Iterator[pa.Table]:
        nonlocal rows
        for text in fetch_answers(url, coin, seconds):
            table = decode(text)
            rows += table.num_rows
            yield table

    with tempfile.TemporaryDirectory() as scratch:
        pipeline = dlt.pipeline(
            "peer", pipelines_dir=scratch, destination=filesystem(folder), dataset_name=coin.lower()
        )
        tables = dlt.resource(read_tables, name="liquidations", file_format="parquet", write_disposition="append")
        pipeline.run(tables).raise_on_failed_jobs()
    return rows


def decode(text: bytes) -> pa.Table:
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
    timestamp = pa.array(stamps, pa.timestamp("us", "UTC"))
    return pa.table({"timestamp": timestamp, "price": levels[:, 0], "volume": levels[:, 1]})


if __name__ == "__main__":
    run(backfill)

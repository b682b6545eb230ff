"""``make bench``: each stage, and the whole, beside a peer that does the same work in the same run.

Runs of the two alternate and the table gives medians of process CPU time, because machines are noisy: trust the ratio.
The bodies are the sandbox's. ``ARGS="--runs 9"`` for more runs.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

import heatpipe
from heatpipe.config import Secret
from heatpipe.decode import decode_body
from heatpipe.layout import Day, encode_day
from heatpipe.model import Coverage, Snapshots, Span, Spans, Window
from heatpipe.plan import plan_slabs
from heatpipe.sandbox import Market, Options, Tier, serve
from heatpipe.store import Store, encode_file
from heatpipe.verify import THREADS, verify_files

START = 1_774_915_200  # 2026-03-31
BTC = heatpipe.Series("BTC")
WINDOW = Window(BTC, Span(START, START + 60_000))
NOW = START + 30 * 86_400


def alternate(runs: int, *calls: Callable[[], object]) -> list[float]:
    """Median CPU seconds of each call, the calls taking turns."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(runs + 1):  # the first turn warms up
        for call, taken in zip(calls, seconds, strict=True):
            started = time.process_time()
            call()
            taken.append(time.process_time() - started)
    return [statistics.median(taken[1:]) for taken in seconds]


def make_body(snapshots: Snapshots) -> bytes:
    """Write snapshots as the upstream does."""
    stream: list[float] = []
    row = 0
    for stamp, levels in zip(snapshots.timestamp.tolist(), snapshots.levels.tolist(), strict=True):
        stream += [levels, stamp]
        rows = slice(row, row + levels)
        stream += np.stack([snapshots.price[rows], snapshots.volume[rows]], axis=1).ravel().tolist()
        row += levels
    identity = {"type": "HYPERLIQUID_LIQUIDATION_AGG", "interval": "MINUTE", "coin": "BTC"}
    numbers = [int(value) if value == int(value) else value for value in stream]
    return json.dumps({"series": [{"id": identity, "flat_points": numbers}]}, separators=(",", ":")).encode()


def bench_decode(runs: int, body: bytes, rows: int) -> None:
    """Body to columns, all checks included, against orjson's bare parse of the same body."""
    ours, peer = alternate(runs, lambda: decode_body(body, WINDOW), lambda: orjson.loads(body))
    show("decode a body", rows, ours, "orjson.loads alone", peer)


def bench_write(runs: int, snapshots: Snapshots) -> None:
    """Columns to the bytes of a day's file, digest included, against pyarrow's default writer."""
    day = Day(BTC, START // 86_400, snapshots, Coverage(Spans((WINDOW.span,))))
    table = encode_day(day)

    def default() -> int:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        size: int = sink.getvalue().size
        return size

    ours, peer = alternate(runs, lambda: encode_file(day), default)
    show("encode a day", snapshots.rows, ours, "pyarrow's defaults", peer)
    size, default_size = len(encode_file(day)), default()
    print(f"{'bytes a row':<22}{size / snapshots.rows:>12.2f}  pyarrow's defaults: {default_size / snapshots.rows:.2f}")


def bench_verify(runs: int, snapshots: Snapshots) -> None:
    """Prove a few files sound, against a plain read of all their columns with as many threads."""
    with tempfile.TemporaryDirectory() as root:
        store = Store(root)
        for coin in ("BTC", "ETH", "SOL", "HYPE"):
            day = Day(heatpipe.Series(coin), START // 86_400, snapshots, Coverage(Spans((WINDOW.span,))))
            store.write_day(day, plan_slabs(day.series, WINDOW.span)[0])
        files = list(Path(root).rglob("*.parquet"))

        def plain() -> None:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(lambda path: pq.ParquetFile(path).read(use_threads=False), files))

        ours, peer = alternate(runs, lambda: verify_files(store), plain)
        assert not verify_files(store).problems
    show("verify", 4 * snapshots.rows, ours, "a plain full read", peer)


def bench_market(runs: int, rows: int) -> None:
    """How fast the sandbox makes its market up."""
    (ours,) = alternate(runs, lambda: Market(1).snapshots("BTC", 60, *WINDOW.span))
    print(f"{'the sandbox market':<22}{rows / ours / 1e6:>12.1f}  M rows per CPU second")


def bench_whole() -> None:
    """Three days of three coins over loopback; the sandbox shares the machine and this process."""
    keys = {"key": Tier("enterprise", 10**9, 10**9)}
    options = Options(market=Market(), keys=keys, clock=lambda: float(NOW))
    with serve(options) as url, tempfile.TemporaryDirectory() as root:
        settings = heatpipe.Settings(api_key=Secret("key"), url=url, root=root)
        coins = [heatpipe.Series(coin) for coin in ("BTC", "ETH", "SOL")]
        started = time.monotonic()
        report = heatpipe.backfill(coins, START, START + 3 * 86_400, settings=settings, clock=lambda: float(NOW))
        seconds = time.monotonic() - started
        size = sum(path.stat().st_size for path in Path(root).rglob("*.parquet"))
    print(
        f"{'backfill, sandbox too':<22}{report.rows / seconds / 1e6:>12.1f}  M rows per second of wall time; "
        f"{report.rows:,} rows, {size / report.rows:.2f} bytes a row"
    )


def show(what: str, rows: int, ours: float, peer_name: str, peer: float) -> None:
    """Print one row of the table."""
    print(f"{what:<22}{rows / ours / 1e6:>12.1f}  M rows per CPU second; {ours / peer:.2f} × the time of {peer_name}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each (default 5)")
    runs = parser.parse_args().runs
    points = Market().snapshots("BTC", 60, *WINDOW.span)
    snapshots = Snapshots(points.timestamp_us, points.levels, points.price, points.volume)
    bench_decode(runs, make_body(snapshots), snapshots.rows)
    bench_write(runs, snapshots)
    bench_verify(runs, snapshots)
    bench_market(runs, snapshots.rows)
    bench_whole()


if __name__ == "__main__":
    main()

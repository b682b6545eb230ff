"""The main job, end to end, with nothing but this checkout: ``make demo`` runs ``python -m flows.demo``.

The sandbox serves a made-up market, the flow `backfill` brings three coins home, DuckDB and polars look at the rows,
and matplotlib draws them.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import polars as pl

import heatpipe
from flows import ground
from heatpipe import cli
from heatpipe.config import Target
from heatpipe.errors import IncompleteError
from heatpipe.heatmap import build_heatmap, draw_heatmap
from heatpipe.model import Series
from heatpipe.progress import show_bytes
from heatpipe.status import take_stock
from heatpipe.store import Store

COINS: Final = ["BTC", "ETH", "SOL"]
ROOT: Final = "data/demo"
PICTURE: Final = "data/demo.png"
KEY: Final = "sandbox-key"

DUCKDB_QUERY: Final = """
SELECT coin, date, count(*) AS rows, count(DISTINCT timestamp) AS snapshots, round(max(volume), 2) AS largest
FROM liquidations GROUP BY ALL ORDER BY ALL"""

NEXT: Final = f"""
What to do next:

  .venv/bin/heatpipe status --data {ROOT}
      what is on disk, interval by interval; make demo once more fetches only what has come since

  .venv/bin/heatpipe plan --coin BTC --last 7d
      what a week of the real thing would cost; spends nothing. With your key in KIYOTAKA_API_KEY, backfill in
      place of plan fetches it

  .venv/bin/python -m flows.backfill --help
      the same as a Prefect flow

  make ui
      Prefect's own pages with all of this behind them: fill in a form, watch the run, see its report"""


@contextmanager
def sandbox() -> Iterator[str]:
    """Serve the sandbox from a process of its own, on a free port; yield its URL."""
    command = [sys.executable, "-m", "heatpipe", "sandbox", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own program
        try:
            first_line = process.stdout.readline() if process.stdout else ""
            yield next(word.rstrip(";") for word in first_line.split() if word.startswith("http://"))
        finally:
            process.terminate()


def run_flow(url: str) -> tuple[dict[str, Any], float]:
    """Run the flow on an ephemeral Prefect server; return its report and its seconds."""
    os.environ |= {"KIYOTAKA_API_KEY": KEY, "HEATPIPE_API_URL": url}
    from flows.backfill import backfill

    start = datetime.now(UTC).date() - timedelta(days=2)
    started = time.monotonic()
    state = backfill(COINS, start=start.isoformat(), data=ROOT, return_state=True)
    if not state.is_completed():
        raise IncompleteError(state.message or "the flow run did not complete")
    return cast("dict[str, Any]", state.result()), time.monotonic() - started


def ten_largest() -> pl.DataFrame:
    """Return where most BTC would be liquidated by the newest snapshot."""
    return (
        heatpipe.scan(ROOT, coin="BTC")
        .filter(pl.col("timestamp") == pl.col("timestamp").max())
        .select("timestamp", "price", "volume")
        .top_k(10, by="volume")
        .sort("price", descending=True)
        .collect()
    )


def draw() -> None:
    """Draw all of BTC that is on disk."""
    settings = heatpipe.Settings(root=ROOT)
    tally = take_stock(Store(ROOT), [Target(Series("BTC"))], settings, time.time())[0]
    draw_heatmap(build_heatmap(ROOT, tally.series, tally.span), PICTURE)


app = ground.make_app(
    "demo",
    """Backfill three coins from the emulated API through Prefect, look at the rows, draw the picture. Needs no key.

Example: `python -m flows.demo`""",
)


@app.default
def main(*, verbose: ground.Verbose = False) -> int:  # noqa: ARG001 - see flows.ground
    """Run the demo."""
    ground.check_server()
    print(f"The sandbox serves a made-up market; the flow brings {', '.join(COINS)} home to {ROOT}.\n", flush=True)
    with sandbox() as url:
        report, seconds = run_flow(url)
    size = sum(Store(ROOT).size_bytes(series) for series in Store(ROOT).all_series())
    rows = heatpipe.scan(ROOT).select(pl.len()).collect().item()
    print(f"\n{rows:,} rows on disk, {show_bytes(size)} of Parquet ({size / rows:.2f} bytes a row).")
    print(
        f"This run: {report['rows']:,} rows, {report['requests']:,} requests of weight {report['weight']:,}, "
        f"{show_bytes(report['wire_bytes'])} received, {seconds:.1f} s with Prefect's start."
    )
    print(f"\nDuckDB, heatpipe.connect({ROOT!r}).sql(…):{DUCKDB_QUERY}")
    print(heatpipe.connect(ROOT).sql(DUCKDB_QUERY))
    print(f"polars, heatpipe.scan({ROOT!r}, coin='BTC'), the ten largest levels of the newest snapshot:")
    with pl.Config(tbl_rows=10, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
        print(ten_largest())
    draw()
    print(f"\nThe picture: {PICTURE}")
    print(NEXT)
    return cli.DONE


if __name__ == "__main__":
    ground.prepare()
    ground.run_app(app)

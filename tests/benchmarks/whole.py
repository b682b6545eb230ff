"""End to end: a backfill of BTC beside the peers', and beside the bare parse of its answers; rows 1 to 3."""

from collections.abc import Iterator
from functools import partial

import orjson

from tests.benchmarks.bodies import BTC, DAY_S, START, Body, read_lot, windows_of
from tests.benchmarks.commands import Run, run_backfill, run_peer
from tests.benchmarks.measure import cpu_seconds
from tests.benchmarks.table import Row, pair
from tests.benchmarks.upstream import run_upstream

NAME = "whole"
DAYS = 30
SLOW_DAYS = 10
PEERS = (
    # number, module, what it is, days, bar
    (1, "numpy_polars", "httpx, orjson, numpy, polars", DAYS, 2.5),
    (2, "arrow_dlt", "dlt, Arrow tables", DAYS, 5.0),
    (2, "loop_pandas", "httpx, json, a loop, pandas", SLOW_DAYS, 9.0),
)
PARSE_BAR = 0.8


def measure_whole(runs: int) -> Iterator[Row]:
    """Compare the rows per CPU second of whole processes, their start included, and the CPU seconds per row."""
    ours: list[Run] = []
    theirs: dict[str, list[Run]] = {module: [] for _, module, *_ in PEERS}
    parses: list[float] = []
    with run_upstream("BTC") as upstream:
        for _ in range(runs):
            ours.append(run_backfill(upstream.url, ["BTC"], DAYS * DAY_S))
            for _, module, _, days, _ in PEERS:
                theirs[module].append(run_peer(module, upstream.url, "BTC", days * DAY_S))
            parses.append(parse_alone("BTC", DAYS) / ours[-1].rows * 1e6)
    rates = [run.rate for run in ours]
    for number, module, what, days, bar in PEERS:
        assert days != DAYS or theirs[module][0].rows == ours[0].rows, f"{module} has written other rows"
        figures = pair(rates, [run.rate for run in theirs[module]])
        yield Row(number, NAME, "end to end", unit="M rows / CPU s", against=what, bar=bar, at_least=True, **figures)
    costs = pair([1 / rate for rate in rates], parses)
    yield Row(3, NAME, "end to end", unit="CPU s / M rows", against="orjson.loads alone", bar=PARSE_BAR, **costs)


def parse_alone(coin: str, days: int) -> float:
    """CPU seconds of a bare parse of the same answers, one after the other."""
    asked = {window.span for window in windows_of(coin, days * DAY_S)}
    assert min(asked).start == START
    return sum(_parse(body) for name, span, body in read_lot(BTC) if name == coin and span in asked)


def _parse(body: Body) -> float:
    return cpu_seconds(partial(orjson.loads, body.text()))

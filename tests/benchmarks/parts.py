"""The stages taken to pieces: CPU nanoseconds a row of each inner loop, one thread, the best of some rounds.

What `docs/performance.md` says of the limit comes from here::

    python -m tests.benchmarks.parts
"""

import argparse
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from heatpipe import decode
from heatpipe.client import body_cap
from heatpipe.inflate import Text
from heatpipe.layout import encode_day
from heatpipe.store import PARQUET, ROWS_PER_GROUP
from tests.benchmarks.bodies import BTC, Lot
from tests.benchmarks.measure import cpu_seconds
from tests.benchmarks.queries import FIRST_DAY, make_day
from tests.benchmarks.stages import first_answer


def time_parts(runs: int, lot: Lot = BTC) -> dict[str, float]:
    """Return CPU nanoseconds a row, by part, in the order of work."""
    chunks, window = first_answer(lot)
    packed = Text(chunks, compressed=True, cap=body_cap(window))
    text = Text.of(zlib.decompress(b"".join(chunks), wbits=31))
    rows = decode.decode_text(text, window).rows
    blocks = list(decode._Blocks(text))
    pairs = [decode._pair_up(decode._parse_block(*block)) for block in blocks]

    def take_apart() -> decode._Rows:
        taken = decode._Rows((window.points + 1) * (window.series.depth + 1), window.points + 1)
        deque(map(taken.add, pairs), maxlen=0)
        return taken

    taken = take_apart()
    day = make_day(FIRST_DAY)
    table = encode_day(day)
    of_an_answer: dict[str, Callable[[], object]] = {
        "inflate": partial(deque, packed, maxlen=0),
        "join pieces, find the commas": lambda: deque(decode._Blocks(text), maxlen=0),
        "text to doubles": lambda: [decode._parse_block(*block) for block in blocks],
        "take apart": take_apart,
        "check": partial(taken.as_snapshots, window),
    }
    of_a_day: dict[str, Callable[[], object]] = {"timestamps, digests": partial(encode_day, day)}
    for name in table.column_names:
        of_a_day[f"encode {name}"] = partial(_write, table.select([name]))
    figures = {name: _best(call, runs) / rows for name, call in of_an_answer.items()}
    return figures | {name: _best(call, runs) / table.num_rows for name, call in of_a_day.items()}


def _best(call: Callable[[], object], runs: int) -> float:
    return min(cpu_seconds(call) for _ in range(runs)) * 1e9


def _write(table: pa.Table) -> None:
    """Write one column as heatpipe does."""
    (name,) = table.column_names
    options = PARQUET | {
        "compression_level": {name: PARQUET["compression_level"][name]},
        "use_dictionary": [name] if name in PARQUET["use_dictionary"] else False,
        "column_encoding": {name: "PLAIN"} if name in PARQUET["column_encoding"] else None,
        "sorting_columns": None,
    }
    with pq.ParquetWriter(pa.BufferOutputStream(), table.schema, **options) as writer:
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each part, and their sum."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.parts", description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="rounds, of which the best counts (default 7)")
    figures = time_parts(parser.parse_args(arguments).runs)
    for name, figure in (figures | {"sum": sum(figures.values())}).items():
        print(f"{name:30}{figure:6.1f} CPU ns / row")


if __name__ == "__main__":
    main()

"""Stage by stage, one thread, beside what each replaces; and bytes a row, which is row 4."""

import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from heatpipe.client import body_cap
from heatpipe.decode import decode_body, decode_text
from heatpipe.inflate import Text
from heatpipe.layout import Day, encode_day
from heatpipe.model import DAY_S, Coverage, Series, Span, Spans, Window, day_span
from heatpipe.plan import plan_slabs
from heatpipe.store import Store, encode_file
from heatpipe.verify import THREADS, verify_files
from tests.benchmarks.bodies import BTC, START, WINDOW_S, Lot, read_lot
from tests.benchmarks.commands import empty_root
from tests.benchmarks.measure import cpu_seconds, take_turns
from tests.benchmarks.queries import FIRST_DAY, make_day
from tests.benchmarks.table import Row, pair

NAME = "stages"
SIZE_NAME = "size"
SIZE_BARS = {"pyarrow's defaults": 0.35, "polars' defaults": 1.0}
SIZE_DAYS = 4
UNIT = "CPU ns / row"
CHUNK_BYTES = 1 << 16
"""As httpx hands them out."""

Call = Callable[[], object]


def measure_stages(runs: int) -> Iterator[Row]:
    """Compare what each stage takes for a row; these have no bar."""
    chunks, window = first_answer()
    wire = b"".join(chunks)
    text = zlib.decompress(wire, wbits=31)
    rows = decode_body(text, window).rows

    def compare(work: str, against: str, ours: Call, theirs: Call, rows: int = rows) -> Row:
        each = [lambda call=call: cpu_seconds(call) / rows * 1e9 for call in (ours, theirs)]
        take_turns(1, *each)
        return Row(None, NAME, work, unit=UNIT, against=against, **pair(*take_turns(runs, *each)))

    inflate: Call = partial(deque, Text(chunks, compressed=True, cap=body_cap(window)), maxlen=0)
    decode = partial(decode_body, text, window)
    yield compare("inflate an answer, isal", "zlib", inflate, partial(zlib.decompress, wire, wbits=31))
    yield compare("parse, check and decode it", "orjson.loads, np.array", decode, partial(_read_plainly, text))
    day = make_day(FIRST_DAY)
    table = encode_day(day)
    encode = partial(encode_file, day)
    yield compare("encode a day, digests too", "pyarrow's defaults", encode, partial(_write, table), table.num_rows)
    pipe = partial(_pipe, chunks, window)
    yield compare("the three, an answer to a file", "orjson.loads alone", pipe, partial(orjson.loads, text))
    with empty_root() as root:
        files = _write_coins(root, day)
        verify = partial(verify_files, Store(root))
        read = partial(_read_all, files)
        yield compare("verify files", "a full read of them", verify, read, len(files) * table.num_rows)


def first_answer(lot: Lot = BTC) -> tuple[list[bytes], Window]:
    """Return an answer of a thousand snapshots, in the chunks in which it comes, and what was asked."""
    coin, span, body = next(one for one in read_lot(lot) if one[:2] == (lot.coins[0], Span(START, START + WINDOW_S)))
    wire = body.wire
    return [wire[at : at + CHUNK_BYTES] for at in range(0, len(wire), CHUNK_BYTES)], Window(Series(coin), span)


def _pipe(chunks: list[bytes], window: Window) -> object:
    """Do what heatpipe cannot do less than: no start, no socket, no disk, no thread."""
    snapshots = decode_text(Text(chunks, compressed=True, cap=body_cap(window)), window)
    coverage = Coverage.of_answer(Spans((window.span,)), snapshots, window.series.interval_s)
    return encode_file(Day(window.series, window.span.start // DAY_S, snapshots, coverage))


def _read_plainly(text: bytes) -> object:
    return np.array(orjson.loads(text)["series"][0]["flat_points"])


def _write(table: pa.Table) -> object:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue()


def _write_coins(root: str, day: Day) -> list[Path]:
    """Write a day of some coins, all with the same rows."""
    store = Store(root)
    for coin in ("BTC", "ETH", "SOL", "HYPE"):
        one = Day(Series(coin), day.number, day.snapshots, day.coverage)
        store.write_day(one, plan_slabs(one.series, day_span(day.number))[0])
    return list(Path(root).rglob("*.parquet"))


def _read_all(files: list[Path]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(lambda path: pq.ParquetFile(path).read(use_threads=False), files):
            pass


def measure_size(_runs: int) -> Iterator[Row]:
    """Compare the bytes a row of whole files."""
    ours = default = of_polars = rows = 0
    for number in range(FIRST_DAY, FIRST_DAY + SIZE_DAYS):
        day = make_day(number)
        table = encode_day(day)
        rows += table.num_rows
        ours += len(encode_file(day))
        default += len(_write(table.replace_schema_metadata()))  # type: ignore[arg-type]
        sink = BytesIO()
        pl.DataFrame(pl.from_arrow(table)).write_parquet(sink)
        of_polars += len(sink.getvalue())
    for (against, bar), size in zip(SIZE_BARS.items(), (default, of_polars), strict=True):
        yield Row(4, SIZE_NAME, f"{SIZE_DAYS} days of BTC", ours / rows, "bytes / row", against, size / rows, bar)

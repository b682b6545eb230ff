"""What a day's file may take, whatever it is: 600 MiB of memory, Python and its libraries included, and 10 s of CPU.

And that a backfill puts another in its place, and loses nothing else.
"""

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from heatpipe import layout
from heatpipe.errors import UnreadableError
from heatpipe.ingest import backfill
from heatpipe.layout import Day, Footer
from heatpipe.model import Coverage, Series, Snapshots, Spans, day_span
from heatpipe.plan import plan_slabs
from heatpipe.sandbox import Market, Options, Tier, serve
from heatpipe.store import PARQUET, Store
from heatpipe.verify import verify_files
from tests import thrift
from tests.conftest import (
    DAY,
    TODAY,
    Asked,
    Clock,
    MakeSettings,
    MakeUpstream,
    document,
    http,
    plain_levels,
    read_tree,
)
from tests.thrift import INT, LONG, STRUCT

MOST_MIB: Final = 600
MOST_CPU_S: Final = 10
HUGE: Final = 3 << 30
SERIES: Final = Series("BTC", "HOUR", depth=5)
NUMBER: Final = TODAY // DAY - 2
ROWS: Final = 60_000_000
"""So many rows of one value take half a megabyte on disk, and 1.4 GB in memory."""


def sparse(path: Path) -> None:
    os.truncate(path, HUGE)


def sparse_with_a_sound_end(path: Path) -> None:
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(HUGE)
        file.write(data)


def long_metadata(path: Path) -> None:
    """The length of the metadata says that it is nearly all of the file."""
    with path.open("r+b") as file:
        file.truncate(HUGE)
        file.seek(HUGE - 8)
        file.write(struct.pack("<I", HUGE - 12) + b"PAR1")


def footer() -> bytes:
    span = day_span(NUMBER)
    coverage = Coverage(Spans.of([span]), Spans(), Spans())
    return layout.encode_footer(Footer(SERIES, coverage, 24, 120, "0" * 32))


def write(path: Path, table: pa.Table, **options: object) -> None:
    """Write what Parquet takes, under a footer and a seal as heatpipe's."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **(PARQUET | options)) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({layout.FOOTER_KEY: footer(), layout.SEAL_KEY: layout.blank_seal()})
    data = bytearray(sink.getvalue())
    layout.seal(data)
    path.write_bytes(data)


def many_rows(path: Path) -> None:
    """Small on disk: one value, again and again."""
    sink = pa.BufferOutputStream()
    part = 10_000_000
    columns = [pa.array(np.full(part, 1), pa.int64()).cast(layout.SCHEMA[0].type), *[pa.array(np.ones(part))] * 2]
    table = pa.Table.from_arrays(columns, schema=layout.SCHEMA)
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_index=True) as writer:
        for _ in range(ROWS // part):
            writer.write_table(table)
        writer.add_key_value_metadata({layout.FOOTER_KEY: footer(), layout.SEAL_KEY: layout.blank_seal()})
    data = bytearray(sink.getvalue())
    layout.seal(data)
    path.write_bytes(data)


def many_columns(path: Path) -> None:
    write(path, pa.table({f"c{number}": [1.0] for number in range(20_000)}), compression_level=1, column_encoding=None)
    path.write_bytes(path.read_bytes().replace(layout.SEAL_KEY, b"heatpipe.sale"))  # sealed, it would be no damage


def long_words(path: Path) -> None:
    table = pa.table({"timestamp": [1]}, schema=pa.schema([("timestamp", pa.int64())], {b"x": b"y" * (64 << 20)}))
    write(path, table, compression_level=1, column_encoding=None, use_dictionary=False, sorting_columns=None)


def one_large_value(path: Path) -> None:
    """700 MiB of zeros, which zstd makes nothing of."""
    size = 700 << 20
    buffers = [None, pa.py_buffer(struct.pack("<ii", 0, size)), pa.py_buffer(bytes(size))]
    table = pa.table({"timestamp": pa.Array.from_buffers(pa.binary(), 1, buffers)})
    write(path, table, compression_level=1, column_encoding=None, use_dictionary=False, sorting_columns=None)


FILES: Final[dict[str, Callable[[Path], None]]] = {
    "sparse": sparse,
    "sparse, with a sound end": sparse_with_a_sound_end,
    "sparse, all of it metadata": long_metadata,
    "many rows": many_rows,
    "many columns": many_columns,
    "long words in the metadata": long_words,
    "one large value": one_large_value,
}
COMMANDS: Final[dict[str, tuple[list[str], int]]] = {
    "verify": (["verify"], 3),
    "status": (["status"], 0),
    "plan": (["plan"], 0),
    "heatmap": (["heatmap", "--output", "picture.png"], 0),
    "backfill": (["backfill"], 0),
}
READERS: Final = {
    "scan": "import heatpipe; heatpipe.scan('data', 'BTC').collect()",
    "connect": "import heatpipe; heatpipe.connect('data').sql('FROM liquidations').fetchall()",
}


WATCHED: Final = """
import atexit, re, runpy, sys
from pathlib import Path

@atexit.register
def note() -> None:
    Path("peak").write_text(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])

kind, what, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(what, run_name="__main__", alter_sys=True) if kind == "-m" else exec(what)
"""
"""Says at its end what it took at most: the kernel's own figure for a child begins with what its parent took."""


def run(folder: Path, environment: dict[str, str], *command: str) -> tuple[int, str, float, float]:
    """Run a program; return its exit code, what it said, its peak in MiB and its CPU seconds."""
    said = folder / "said"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", WATCHED, *command],
            env=environment,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    peak = int((folder / "peak").read_text()) / 1024
    return process.returncode, said.read_text(), peak, usage.ru_utime + usage.ru_stime


def span_of(name: str) -> list[str]:
    start, end = (f"{layout.day_date(number)}" for number in (NUMBER - 1, NUMBER + 2))
    series = ["--coin", "BTC", "--interval", "HOUR", "--depth", "5"]
    if name in ("verify", "status"):
        return []
    return [*series, "--start", start, "--end", end]


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    options = Options(market=Market(7), keys={"a-key-for-tests": Tier("enterprise", 10**9, 10**9, history_days=0)})
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEATPIPE_", "KIYOTAKA_"))}
    given = {"KIYOTAKA_API_KEY": "a-key-for-tests", "HEATPIPE_HISTORY_DAYS": "0", "HEATPIPE_DATA": "data"}
    with serve(options) as url:
        yield kept | given | {"HEATPIPE_API_URL": url}


@pytest.mark.parametrize("reader", READERS)
def test_readers_are_not_given_a_file_that_is_larger_than_any_day(
    reader: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """They would take its word for what it holds: polars read all of it for metadata."""
    run(tmp_path, environment, "-m", "heatpipe", "backfill", *span_of("backfill"))
    long_metadata(tmp_path / "data" / layout.day_path(SERIES, NUMBER))
    code, said, peak, cpu = run(tmp_path, environment, "-c", READERS[reader])
    assert code == 1
    assert "DamagedError" in said
    assert "date=2026-03-29/part-0.parquet has 3,221,225,472 bytes, a day of BTC HOUR" in said
    assert 0 < peak < MOST_MIB
    assert cpu < MOST_CPU_S


@pytest.mark.parametrize("name", FILES)
def test_no_file_takes_more_memory_or_time_than_a_day_may(
    name: str, environment: dict[str, str], tmp_path: Path
) -> None:
    backfill = ["-m", "heatpipe", "backfill", *span_of("backfill")]
    assert run(tmp_path, environment, *backfill)[0] == 0
    root = tmp_path / "data"
    sound = read_tree(root / layout.TABLE)
    path = root / layout.day_path(SERIES, NUMBER)
    harm = get_context("spawn").Process(target=FILES[name], args=(path,))  # whose memory goes with it
    harm.start()
    harm.join()
    harmed = path.stat().st_size
    for command, (arguments, expected) in COMMANDS.items():
        code, said, peak, cpu = run(tmp_path, environment, "-m", "heatpipe", *arguments, *span_of(command))
        assert (code, "Traceback" in said) == (expected, False), said
        assert 0 < peak < MOST_MIB, command
        assert cpu < MOST_CPU_S, command
        assert str(layout.day_date(NUMBER)) in said or command == "backfill", said
    assert read_tree(root / layout.TABLE) == sound
    (aside,) = (root / "_quarantine").rglob(f"*{layout.ASIDE}")
    assert aside.stat().st_size == harmed
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.rglob("*") if file.is_file()) < 200 << 20


# --- pages that are larger than their footer says ------------------------------------------------------------------


def page(size: int, *, dictionary: bool = False) -> bytes:
    """A page of a few kilobytes that is inflated to so many zeros."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packer:
        for _ in range(size >> 20):
            packer.write(bytes(1 << 20))
    body = bytes(sink.getvalue())
    kind, place, counts = (2, 7, {2: (INT, 0)}) if dictionary else (0, 5, {2: (INT, 0), 3: (INT, 3), 4: (INT, 3)})
    values = {1: (INT, size // 8 if dictionary else 120)}
    header = {1: (INT, kind), 2: (INT, size), 3: (INT, len(body)), place: (STRUCT, values | counts)}
    return thrift.write(STRUCT, header) + body


NO_PAGE: Final = thrift.write(STRUCT, {1: (INT, 0), 2: (INT, 0), 3: (INT, 0), 5: (STRUCT, {1: (INT, 0)})})


def put_pages(path: Path, pages: bytes, *, dictionary: bool = False) -> None:
    """Put other pages behind a day's, and let its footer name them: the volumes, or the dictionary of the prices."""
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little") + 8
    old, footer = data[:-size], thrift.read(data[-size:])[0]
    (group,) = footer[4][1][1]
    _, columns = group[1][1]
    column = columns[1 if dictionary else 2][3][1]
    column[7], column[9] = (LONG, len(pages)), (LONG, len(old))
    if dictionary:
        start = column[11][1]
        values = old[data_page_of(path) : start + column_size(path)]
        column[7], column[9], column[11] = (LONG, len(pages + values)), (LONG, len(old + pages)), (LONG, len(old))
        pages += values
    end = thrift.write(STRUCT, footer)
    path.write_bytes(old + pages + end + struct.pack("<I", len(end)) + b"PAR1")


def data_page_of(path: Path) -> int:
    return int(pq.read_metadata(path).row_group(0).column(1).data_page_offset)


def column_size(path: Path) -> int:
    return int(pq.read_metadata(path).row_group(0).column(1).total_compressed_size)


PAGES: Final[dict[str, tuple[Callable[[Path], None], str]]] = {
    "a page of 1 GB": (lambda path: put_pages(path, page(1 << 30)), "a page says that it has 1,073,741,824 bytes"),
    "a dictionary of 1 GB": (
        lambda path: put_pages(path, page(1 << 30, dictionary=True), dictionary=True),
        "a page says that it has 1,073,741,824 bytes",
    ),
    "pages of 4 GB": (lambda path: put_pages(path, page(16 << 20) * 256), "when inflated, which are too many"),
    "many pages": (lambda path: put_pages(path, NO_PAGE * 100_000), "a column has more pages than its rows fill"),
}


@pytest.mark.parametrize("sealed", [False, True], ids=["unsealed", "sealed"])
@pytest.mark.parametrize("name", PAGES)
def test_no_page_is_inflated_that_is_larger_than_its_rows(
    name: str, sealed: bool, environment: dict[str, str], tmp_path: Path
) -> None:
    """A footer may be right, and a page's own header be wrong; a seal vouches for no page."""
    harm, cause = PAGES[name]
    run(tmp_path, environment, "-m", "heatpipe", "backfill", *span_of("backfill"))
    sound = read_tree(tmp_path / "data" / layout.TABLE)
    path = tmp_path / "data" / layout.day_path(SERIES, NUMBER)
    harm(path)
    if sealed:
        data = bytearray(path.read_bytes())
        layout.seal(data)
        path.write_bytes(data)
    for command, arguments, expected in (
        ("verify", ["verify"], 3),
        ("heatmap", ["heatmap", "--output", "picture.png"], 1),
        ("backfill", ["backfill", "--refetch"], 1 if sealed else 0),
    ):
        code, said, peak, cpu = run(tmp_path, environment, "-m", "heatpipe", *arguments, *span_of(command))
        assert (code, "Traceback" in said) == (expected, False), said
        assert cause in said or (command != "heatmap" and not sealed), said
        assert 0 < peak < MOST_MIB, command
        assert cpu < MOST_CPU_S, command
    assert (read_tree(tmp_path / "data" / layout.TABLE) == sound) is not sealed


# --- what may be written ------------------------------------------------------------------------------------------


def twice(asked: Asked) -> bytes:
    """Two snapshots of full depth in every minute: the contract allows it, though none has been seen."""
    starts = (start + second for start in asked.starts for second in (0, 30))
    return http(body=document(asked, {start: plain_levels(start) for start in starts}))


def test_a_day_of_more_snapshots_than_intervals_is_paid_for_once(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    chosen, series = settings(upstream(twice).url), Series("BTC", depth=2)
    reports = [backfill(series, TODAY - DAY, TODAY, settings=chosen, clock=Clock()) for _ in range(2)]
    assert [(report.requests, report.failures) for report in reports] == [(2, ()), (0, ())]
    findings = verify_files(Store(chosen.root))
    assert (findings.rows, findings.problems) == (5760, ())


def test_no_day_is_written_that_would_be_taken_for_damaged(tmp_path: Path) -> None:
    rows = layout.most_rows(SERIES) + 1
    span = day_span(NUMBER)
    stamp, levels = np.array([span.start * 1_000_000]), np.array([rows])
    day = Day(
        SERIES, NUMBER, Snapshots(stamp, levels, np.arange(1.0, rows + 1), np.zeros(rows)), Coverage(Spans.of([span]))
    )
    (slab,) = plan_slabs(SERIES, span)
    with pytest.raises(UnreadableError, match=r"part-0.parquet cannot be written: it would have 524,409 rows"):
        Store(str(tmp_path)).write_day(day, slab)
    assert not list(tmp_path.rglob("*.parquet"))

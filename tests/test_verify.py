"""Damage of every kind, done to real files on a real disk: each is told with its path and its cause, and no other."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatpipe import backfill, cli, layout, verify
from heatpipe.config import Settings, Target
from heatpipe.errors import ConfigError, DatasetError
from heatpipe.layout import Day
from heatpipe.model import Coverage, Series, Snapshots, Span, Spans
from heatpipe.plan import plan_slabs
from heatpipe.progress import PLAIN_EVERY_S, plain_files
from heatpipe.store import PARQUET, ROWS_PER_GROUP, Store, encode_file
from heatpipe.verify import Choice, Problem, choose_days, prove_file, verify_files
from tests.conftest import DAY, MINUTE, NOW_S, TODAY, Clock, MakeSettings
from tests.test_frame import STRANGERS, put_foreign

BTC: Final = Series("BTC", depth=3)
ETH: Final = Series("ETH", depth=3)
HOURS: Final = Series("PURR/USDC", "HOUR", "usd", 2)
NUMBER: Final = TODAY // DAY
PLACE: Final = str(layout.day_path(BTC, NUMBER))
FOLDER: Final = PLACE.removesuffix("/part-0.parquet")
TOMORROW: Final = str(layout.day_path(BTC, NUMBER + 1))
OTHER: Final = str(layout.day_path(ETH, NUMBER))


def make_day(series: Series = BTC, number: int = NUMBER, *, intervals: int = 40, levels: int = 3, at: int = 0) -> Day:
    """A day partly covered: of each ten intervals the eighth is absent, the ninth has no level."""
    step, start = series.interval_s, number * DAY + at * series.interval_s
    starts = start + step * np.arange(intervals)
    kinds = np.arange(intervals) % 10
    stamps = starts[kinds < 8] * 1_000_000 + np.arange((kinds < 8).sum()) % 7  # a timestamp may lie off the grid
    rows = len(stamps) * levels
    snapshots = Snapshots(
        stamps,
        np.full(len(stamps), levels),
        np.tile(np.arange(1.0, levels + 1) * 10.1, len(stamps)),
        np.arange(rows) % 11 / 7,
    )
    covered, absent, empty = (
        Spans.of((int(a), int(a) + step) for a in starts[chosen]) for chosen in (kinds >= 0, kinds == 8, kinds == 9)
    )
    return Day(series, number, snapshots, Coverage(covered, absent, empty))


def empty_day(series: Series, number: int) -> Day:
    covered = Spans.of([(number * DAY, (number + 1) * DAY)])
    return Day(series, number, Snapshots(), Coverage(covered, absent=covered))


def put(store: Store, *days: Day) -> None:
    for day in days:
        slab = plan_slabs(day.series, Span(day.number * DAY, (day.number + 1) * DAY))[0]
        store.write_day(day, slab)


SOUND: Final = (
    make_day(),
    make_day(number=NUMBER + 1, intervals=1440),
    empty_day(BTC, NUMBER + 2),
    make_day(ETH),
    make_day(HOURS, intervals=3, levels=1, at=21),
)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound dataset of three series; nobody touches it."""
    root = tmp_path_factory.mktemp("intact")
    put(Store(str(root)), *SOUND)
    return root


@pytest.fixture
def store(intact: Path, tmp_path: Path) -> Store:
    """A copy of it."""
    return Store(str(shutil.copytree(intact, tmp_path / "a root")))


def found_in(store: Store) -> list[Problem]:
    return list(verify_files(store).problems)


# --- what is sound ------------------------------------------------------------------------------------------------


def test_a_sound_dataset_has_no_problem(store: Store) -> None:
    findings = verify_files(store)
    assert findings.problems == ()
    assert findings.files == len(SOUND)
    assert findings.rows == sum(day.snapshots.rows for day in SOUND)
    assert findings.size_bytes == sum(path.stat().st_size for path in store.root.rglob("*.parquet"))


def test_a_day_of_several_row_groups_is_sound(tmp_path: Path) -> None:
    day = make_day(Series("BTC", depth=1000), intervals=1440, levels=1000)
    assert day.snapshots.rows > ROWS_PER_GROUP
    store = Store(str(tmp_path))
    put(store, day)
    assert verify_files(store).rows == day.snapshots.rows
    assert not found_in(store)


def test_what_a_backfill_wrote_is_sound(settings: MakeSettings) -> None:
    chosen = settings()
    minutes = Series("BTC", depth=20)
    backfill([minutes, Series("kPEPE", "HOUR", "usd", 5)], TODAY - DAY, settings=chosen, clock=Clock())
    findings = verify_files(Store(chosen.root))
    assert (findings.files, findings.problems) == (4, ())


@pytest.mark.parametrize("capped", [None, b"32"], ids=["from-before", "counted"])
def test_a_file_need_not_count_its_capped_snapshots(store: Store, capped: bytes | None) -> None:
    counted(capped)(store)
    assert not found_in(store)


def test_what_lies_beside_the_table_is_not_looked_at(store: Store) -> None:
    for name in ("_tmp", "_locks", "_quarantine", "notes"):
        (store.root / name).mkdir(exist_ok=True)
        (store.root / name / "anything.parquet").write_bytes(b"?")
    assert not found_in(store)


@pytest.mark.parametrize("name", STRANGERS)
def test_whatever_readers_pass_over_is_named(tmp_path: Path, name: str) -> None:
    store = Store(str(tmp_path))
    put(store, make_day(Series("BTC")))
    put_foreign(tmp_path, name, copy=True)
    (problem,) = found_in(store)
    assert f"{name}/".startswith(f"{problem.path}/")
    assert problem.path not in PLACE


@pytest.mark.parametrize("name", [b"b\xf6rse.txt", b"new\nline", b"\x1b[2J", b"tab\t", "börse".encode()])
@pytest.mark.parametrize("below", ["liquidations", FOLDER, FOLDER.rpartition("/")[0]])
def test_names_in_odd_bytes_are_named_in_characters_that_can_be_printed(store: Store, name: bytes, below: str) -> None:
    (store.root / below / os.fsdecode(name)).write_bytes(b"")
    (problem,) = found_in(store)
    assert problem.path.startswith(f"{below}/")
    assert (problem.path + problem.cause).isprintable()
    assert problem.path.encode()


@pytest.mark.parametrize("folder", [FOLDER[:-2] + "15", "liquidations/unit=usd/depth=7/interval=DAY/coin=X", "nothing"])
def test_a_folder_that_a_crash_left_empty_is_no_problem(store: Store, folder: str) -> None:
    (store.root / folder).mkdir(parents=True)
    assert not found_in(store)


@pytest.mark.parametrize("root", ["nowhere", "bare", "bare/liquidations"])
def test_where_nothing_is_nothing_is_wrong(tmp_path: Path, root: str) -> None:
    (tmp_path / "bare" / "liquidations").mkdir(parents=True)
    findings = verify_files(Store(str(tmp_path / root)))
    assert (findings.files, findings.problems) == (0, ())


def test_a_dataset_being_rewritten_has_no_problem(settings: MakeSettings) -> None:
    """A backfill asks again for what is there, over and over, while all of it is verified, over and over."""
    chosen = settings()
    series = [Series("BTC", "HOUR", depth=5), Series("ETH", "HOUR", depth=5)]
    start = TODAY - 3 * DAY
    backfill(series, start, TODAY, settings=chosen, clock=Clock())
    stop = threading.Event()
    turns: list[int] = []

    def rewrite() -> None:
        while not stop.is_set():
            report = backfill(series, start, TODAY, settings=chosen, clock=Clock(), refetch=True)
            turns.append(report.days)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        verified = [verify_files(Store(chosen.root)) for _ in range(15)]
        while len(turns) < 2:
            verified.append(verify_files(Store(chosen.root)))
    finally:
        stop.set()
        writer.join()
    assert set(turns) == {6}
    assert {(findings.files, findings.problems) for findings in verified} == {(6, ())}


# --- damages ------------------------------------------------------------------------------------------------------
#
# Damage to a file is done by rewriting it as heatpipe would, seal and all: so only the check that is meant can tell.


def columns_of(day: Day) -> dict[str, Any]:
    points = day.snapshots
    return {"timestamp": points.row_timestamps(), "price": points.price.copy(), "volume": points.volume.copy()}


def table_of(columns: dict[str, Any]) -> pa.Table:
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in layout.SCHEMA]
    return pa.Table.from_arrays(arrays, schema=layout.SCHEMA)


def footer_of(day: Day) -> dict[str, Any]:
    footer: dict[str, Any] = json.loads(layout.encode_day(day).schema.metadata[layout.FOOTER_KEY])
    return footer


def sealed(table: pa.Table, footer: dict[str, Any] | None, *, capped: bytes | None = None, **options: Any) -> bytes:
    metadata = None if footer is None else {layout.FOOTER_KEY: json.dumps(footer, separators=(",", ":")).encode()}
    table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **PARQUET | options) as writer:
        writer.write_table(table)
        count = {} if capped is None else {layout.CAPPED_KEY: capped}
        writer.add_key_value_metadata(count | {layout.SEAL_KEY: layout.blank_seal()})
    data = bytearray(sink.getvalue())
    layout.seal(data)
    return bytes(data)


def flip_and_seal(data: bytes) -> bytes:
    flipped = bytearray(data)
    flipped[40] ^= 1
    layout.seal(flipped)
    return bytes(flipped)


Damage = Callable[[Store], None]


def in_place(change: Callable[[bytes], bytes], place: str = PLACE) -> Damage:
    def damage(store: Store) -> None:
        path = store.root / place
        path.write_bytes(change(path.read_bytes()))

    return damage


def rewritten(change: Callable[[dict[str, Any]], object], *, footer: bool = False) -> Damage:
    """Other rows; under the old footer, or under one whose counts and digest are theirs."""

    def damage(store: Store) -> None:
        columns, document = columns_of(SOUND[0]), footer_of(SOUND[0])
        change(columns)
        if footer:
            stamps = columns["timestamp"]
            document["rows"] = len(stamps)
            document["snapshots"] = int(np.count_nonzero(np.diff(stamps, prepend=-1)))
            document["digest"] = layout.digest_rows(stamps, columns["price"], columns["volume"])
        (store.root / PLACE).write_bytes(sealed(table_of(columns), document))

    return damage


def counted(capped: bytes | None) -> Damage:
    """The same rows and footer, with a count of capped snapshots."""
    return added(PLACE, sealed(table_of(columns_of(SOUND[0])), footer_of(SOUND[0]), capped=capped))


def doctored(**changes: Any) -> Damage:
    """Another footer over the same rows; an ellipsis takes a key away."""

    def damage(store: Store) -> None:
        document = footer_of(SOUND[0]) | changes
        document = {key: value for key, value in document.items() if value is not ...}
        (store.root / PLACE).write_bytes(sealed(table_of(columns_of(SOUND[0])), document))

    return damage


def foreign(change: Callable[[pa.Table], pa.Table], **options: Any) -> Damage:
    def damage(store: Store) -> None:
        table = change(table_of(columns_of(SOUND[0])))
        (store.root / PLACE).write_bytes(sealed(table, footer_of(SOUND[0]), **options))

    return damage


def cast(name: str, kind: pa.DataType, *, nullable: bool = False) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(name)
        field = pa.field(name, kind, nullable=nullable)
        return table.set_column(at, field, table.column(name).cast(kind, safe=False))

    return change


def kept(rows: slice | Any) -> Callable[[dict[str, Any]], None]:
    def change(columns: dict[str, Any]) -> None:
        for name in columns:
            columns[name] = columns[name][rows]

    return change


def put_value(name: str, row: int, value: float) -> Callable[[dict[str, Any]], None]:
    def change(columns: dict[str, Any]) -> None:
        columns[name][row] = value

    return change


def moved(columns: dict[str, Any], micros: int, rows: slice = slice(None)) -> None:
    columns["timestamp"][rows] += micros


def repeated(columns: dict[str, Any]) -> None:
    kept(np.sort(np.r_[0 : len(columns["price"]), 7]))(columns)


def added(place: str, data: bytes = b"?") -> Damage:
    def damage(store: Store) -> None:
        path = store.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return damage


def copied(source: str, target: str) -> Damage:
    def damage(store: Store) -> None:
        shutil.copytree(store.root / source, store.root / target)

    return damage


def folder_instead(store: Store) -> None:
    (store.root / PLACE).unlink()
    (store.root / PLACE / "inner").mkdir(parents=True)


def link_instead(store: Store) -> None:
    (store.root / PLACE).rename(store.root / "moved.parquet")
    (store.root / PLACE).symlink_to(store.root / "moved.parquet")


def pipe_instead(store: Store) -> None:
    (store.root / PLACE).unlink()
    os.mkfifo(store.root / PLACE)


def dangling_link(store: Store) -> None:
    (store.root / FOLDER).parent.joinpath("date=2026-01-01").symlink_to("nowhere")


def file_instead_of_the_table(store: Store) -> None:
    shutil.rmtree(store.root / "liquidations")
    (store.root / "liquidations").write_text("mine")


START: Final = NUMBER * DAY
COVERED: Final = [[START, START + 40 * MINUTE]]
LATER: Final = [START + 40 * MINUTE, START + 41 * MINUTE]
UNREADABLE: Final = "cannot be read"
SEAL: Final = "has no seal|byte for byte"

FILES = [
    # cut, and flipped
    pytest.param(in_place(lambda _: b""), "is empty", id="empty-file"),
    pytest.param(in_place(lambda data: data[:1]), UNREADABLE, id="cut-to-one-byte"),
    pytest.param(in_place(lambda data: data[:4]), UNREADABLE, id="cut-to-the-magic"),
    pytest.param(in_place(lambda data: data[:300]), UNREADABLE, id="cut-in-the-pages"),
    pytest.param(in_place(lambda data: data[: len(data) // 2]), UNREADABLE, id="cut-in-half"),
    pytest.param(in_place(lambda data: data[:-20]), UNREADABLE, id="cut-in-the-footer"),
    pytest.param(in_place(lambda data: data[:-1]), UNREADABLE, id="cut-by-one-byte"),
    pytest.param(in_place(lambda data: data[1:]), SEAL, id="beheaded"),
    pytest.param(in_place(lambda data: data + b"\0"), UNREADABLE, id="one-byte-too-many"),
    pytest.param(in_place(lambda data: data[:-8] + data[-8:] * 2), f"{UNREADABLE}|{SEAL}", id="end-doubled"),
    pytest.param(in_place(lambda data: b"\0" * len(data)), UNREADABLE, id="zeros"),
    pytest.param(in_place(lambda _: b"not a table at all"), UNREADABLE, id="text"),
    pytest.param(in_place(lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:]), SEAL, id="flip-in-a-dictionary"),
    pytest.param(in_place(flip_and_seal), "CRC", id="flip-in-a-dictionary-under-a-seal"),
    pytest.param(in_place(lambda data: data[:512] + bytes(512) + data[1024:]), UNREADABLE, id="a-block-of-zeros"),
    # other rows under the same footer
    pytest.param(rewritten(kept(slice(0, -1))), "has 95 rows, its footer says 96", id="last-row-deleted"),
    pytest.param(rewritten(kept(np.r_[0:30, 33:96])), "has 93 rows, its footer says 96", id="snapshot-deleted"),
    pytest.param(rewritten(kept(slice(0, 0))), "has 0 rows, its footer says 96", id="all-rows-deleted"),
    pytest.param(
        rewritten(put_value("volume", 5, 0.123)), "other rows than its footer vouches for", id="volume-changed"
    ),
    pytest.param(rewritten(put_value("price", 5, 30.4)), "other rows than its footer vouches for", id="price-changed"),
    pytest.param(rewritten(lambda c: moved(c, 1)), "other rows than its footer vouches for", id="timestamps-moved"),
    pytest.param(
        rewritten(put_value("volume", 0, -0.0)), "other rows than its footer vouches for", id="sign-of-a-zero"
    ),
    # other rows under a footer of their own
    pytest.param(rewritten(kept(np.r_[0:30, 33:96]), footer=True), "has no rows where", id="interval-deleted"),
    pytest.param(
        rewritten(lambda c: moved(c, 60_000_000, slice(93, None)), footer=True), "has rows where", id="interval-moved"
    ),
    pytest.param(rewritten(kept(slice(None, None, -1)), footer=True), "out of order: row 3 is earlier", id="backwards"),
    pytest.param(
        rewritten(kept(np.r_[1, 0, 2:96]), footer=True), "out of order: the price of row 1", id="prices-descend"
    ),
    pytest.param(rewritten(repeated, footer=True), "price of row 8 twice", id="row-twice"),
    pytest.param(
        rewritten(kept(np.r_[0:96, 0:96]), footer=True), "out of order: row 96 is earlier", id="all-rows-twice"
    ),
    pytest.param(rewritten(put_value("price", 7, np.nan), footer=True), "the price nan in row 7", id="price-nan"),
    pytest.param(rewritten(put_value("price", 7, 0.0), footer=True), "the price 0.0 in row 7", id="price-zero"),
    pytest.param(rewritten(put_value("price", 6, -1.0), footer=True), "the price -1.0 in row 6", id="price-negative"),
    pytest.param(rewritten(put_value("price", 8, np.inf), footer=True), "the price inf in row 8", id="price-inf"),
    pytest.param(rewritten(put_value("volume", 7, np.nan), footer=True), "the volume nan in row 7", id="volume-nan"),
    pytest.param(
        rewritten(put_value("volume", 7, -1e-300), footer=True), "the volume -1e-300 in", id="volume-negative"
    ),
    pytest.param(rewritten(put_value("volume", 7, np.inf), footer=True), "the volume inf in row 7", id="volume-inf"),
    pytest.param(
        rewritten(lambda c: moved(c, DAY * 1_000_000), footer=True), "32 snapshots of other days", id="next-day"
    ),
    pytest.param(rewritten(lambda c: moved(c, -1), footer=True), "snapshots of other days", id="a-microsecond-early"),
    pytest.param(rewritten(lambda c: moved(c, 2**62), footer=True), "32 snapshots of other days", id="far-future"),
    pytest.param(
        rewritten(lambda c: moved(c, -c["timestamp"][0] - 1), footer=True),
        "snapshots of other days",
        id="before-the-epoch",
    ),
    pytest.param(
        rewritten(
            lambda c: c.update(timestamp=np.repeat(c["timestamp"][::6], 6), price=np.arange(1.0, 97)), footer=True
        ),
        "6 levels, its depth is 3",
        id="too-deep",
    ),
    # another footer
    pytest.param(doctored(covered=[[START, START + 41 * MINUTE]]), "has no rows where", id="coverage-grown"),
    pytest.param(
        doctored(covered=[[START, START + 20 * MINUTE]], absent=[], empty=[]), "has rows where", id="coverage-shrunk"
    ),
    pytest.param(doctored(covered=[], absent=[], empty=[]), "covers nothing", id="coverage-gone"),
    pytest.param(doctored(absent=[]), "has no rows where", id="absent-turned-present"),
    pytest.param(doctored(empty=[]), "has no rows where", id="empty-turned-present"),
    pytest.param(doctored(absent=[[START, START + 600]]), "not disjoint|has rows where", id="present-turned-absent"),
    pytest.param(doctored(absent=COVERED, empty=COVERED), "not disjoint", id="absent-and-empty"),
    pytest.param(doctored(absent=[LATER]), "not disjoint parts", id="absent-outside-of-covered"),
    pytest.param(doctored(covered=[*COVERED, LATER]), "not sorted and merged", id="ranges-not-merged"),
    pytest.param(doctored(covered=[LATER, [START, START + 60]]), "not sorted and merged", id="ranges-not-sorted"),
    pytest.param(doctored(covered=[[START, START + 90]]), "off the grid", id="ranges-off-the-grid"),
    pytest.param(
        doctored(covered=[[START, START + DAY + 60]]), "its folder says 2026-03-31", id="ranges-beyond-the-day"
    ),
    pytest.param(doctored(covered=[[START, 60 * 10**15]]), "its folder says 2026-03-31", id="ranges-beyond-all-years"),
    pytest.param(doctored(covered="all"), UNREADABLE, id="ranges-of-another-type"),
    pytest.param(doctored(rows=95), "has 96 rows, its footer says 95", id="rows-wrong"),
    pytest.param(doctored(snapshots=33), "has 32 snapshots, its footer says 33", id="snapshots-wrong"),
    pytest.param(counted(b"31"), "has 32 snapshots of 3 levels, its key heatpipe.capped says 31", id="capped-wrong"),
    pytest.param(counted(b"0"), "has 32 snapshots of 3 levels", id="capped-zero"),
    pytest.param(counted(b"032"), UNREADABLE, id="capped-no-count"),
    pytest.param(doctored(digest="0" * 32), "other rows than its footer vouches for", id="digest-wrong"),
    pytest.param(doctored(digest=...), UNREADABLE, id="digest-missing"),
    pytest.param(doctored(version=2), "version 2, this heatpipe reads 1", id="version-later"),
    pytest.param(doctored(version=...), UNREADABLE, id="version-missing"),
    pytest.param(
        doctored(series={"coin": "BTC", "interval": "MINUTE", "unit": "usd", "depth": 3}),
        "its folder says",
        id="another-unit",
    ),
    pytest.param(
        doctored(series={"coin": "BTC", "interval": "DAY", "unit": "coin", "depth": 3}),
        "off the grid",
        id="another-interval",
    ),
    pytest.param(doctored(series={"coin": ""}), UNREADABLE, id="no-coin"),
    pytest.param(
        added(PLACE, sealed(table_of(columns_of(SOUND[0])), None)), "no footer of heatpipe's", id="footer-missing"
    ),
    # the place of another
    pytest.param(added(PLACE, bytes(encode_file(SOUND[1]))), "its folder says 2026-03-31", id="file-of-another-day"),
    pytest.param(
        added(PLACE, bytes(encode_file(SOUND[3]))), "holds ETH .*, its folder says BTC", id="file-of-another-coin"
    ),
    # another schema
    pytest.param(
        foreign(lambda t: t.append_column("note", pa.array([1] * 96))), "columns .*note int64", id="extra-column"
    ),
    pytest.param(foreign(lambda t: t.drop_columns("volume"), column_encoding=None), "columns", id="column-missing"),
    pytest.param(
        foreign(lambda t: t.select(["price", "timestamp", "volume"])), "columns price", id="columns-reordered"
    ),
    pytest.param(foreign(cast("price", pa.float64(), nullable=True)), r"price double\?", id="nullable"),
    pytest.param(foreign(cast("volume", pa.float32())), "volume float,? not", id="float32"),
    pytest.param(
        foreign(cast("timestamp", pa.timestamp("ms", tz="UTC"))), r"timestamp\[ms, tz=UTC\]", id="milliseconds"
    ),
    pytest.param(foreign(cast("timestamp", pa.timestamp("us"))), r"timestamp\[us\]", id="no-time-zone"),
    pytest.param(
        foreign(cast("timestamp", pa.timestamp("us", tz="Asia/Tokyo"))), "tz=Asia/Tokyo", id="other-time-zone"
    ),
    # written by another, content the same
    pytest.param(
        lambda store: pq.write_table(pq.ParquetFile(store.root / PLACE).read(), store.root / PLACE),
        SEAL,
        id="written-by-another",
    ),
    # what is no file
    pytest.param(folder_instead, "is a folder, where the day's file belongs", id="folder-instead"),
    pytest.param(link_instead, "is a symbolic link, where", id="link-instead"),
    pytest.param(pipe_instead, "is a special file, where", id="pipe-instead"),
]


@pytest.mark.parametrize(("damage", "cause"), FILES)
def test_a_damaged_file_is_told_with_path_and_cause(store: Store, damage: Damage, cause: str) -> None:
    damage(store)
    (problem,) = found_in(store)
    assert problem.path == PLACE
    assert re.search(cause, problem.cause), problem.cause
    assert problem.cause.isprintable()
    assert str(store.root) not in problem.cause


@pytest.mark.parametrize("other", [TOMORROW, OTHER], ids=["two-days", "two-coins"])
def test_swapped_files_are_told_both(store: Store, other: str) -> None:
    first, second = store.root / PLACE, store.root / other
    aside = store.root / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    problems = found_in(store)
    assert [problem.path for problem in problems] == sorted([PLACE, other])
    assert all("its folder says" in problem.cause for problem in problems)


def test_every_flipped_byte_is_told() -> None:
    """In pages, their headers, dictionaries, page index, statistics, footer, magic numbers: one after the other."""
    day = make_day(intervals=10)
    intact = bytes(encode_file(day))
    assert prove_file(intact, "x", BTC, NUMBER) == day.snapshots.rows
    data = bytearray(intact)
    for at in range(len(data)):
        data[at] ^= 1 << at % 8
        with pytest.raises(DatasetError, match=r"^x "):
            prove_file(bytes(data), "x", BTC, NUMBER)
        data[at] = intact[at]


def test_a_column_whose_name_is_no_text_is_told_by_all_who_look(store: Store) -> None:
    in_place(lambda data: data.replace(b"volume", b"\xffolume"))(store)
    assert [problem.path for problem in found_in(store)] == [PLACE]
    assert store.coverage(BTC, NUMBER) == Coverage()


INTACT: Final = bytes(encode_file(SOUND[1]))


@given(at=st.integers(0, len(INTACT) - 1), flips=st.integers(1, 255))
def test_any_flip_anywhere_is_told(at: int, flips: int) -> None:
    data = bytearray(INTACT)
    data[at] ^= flips
    with pytest.raises(DatasetError, match=r"^x "):
        prove_file(bytes(data), "x", BTC, NUMBER + 1)


@given(end=st.integers(0, len(INTACT) - 1))
def test_any_truncation_is_told(end: int) -> None:
    with pytest.raises(DatasetError, match=r"^x "):
        prove_file(INTACT[:end], "x", BTC, NUMBER + 1)


# --- strays -------------------------------------------------------------------------------------------------------

UNIT: Final = "liquidations/unit=coin"
COIN: Final = f"{UNIT}/depth=3/interval=MINUTE/coin=BTC"
BESIDE: Final = "does not belong here"
FOREIGN: Final = "is no folder that heatpipe makes"

STRAYS = [
    pytest.param(added("liquidations/x.txt"), "liquidations/x.txt", "is a file, where only folders unit=", id="table"),
    pytest.param(added(f"{UNIT}/x.parquet"), f"{UNIT}/x.parquet", "only folders depth=", id="unit"),
    pytest.param(added(f"{UNIT}/depth=3/.x"), f"{UNIT}/depth=3/.x", "only folders interval=", id="depth"),
    pytest.param(
        added(f"{UNIT}/depth=3/interval=MINUTE/x"), f"{UNIT}/depth=3/interval=MINUTE/x", "folders coin=", id="interval"
    ),
    pytest.param(added(f"{COIN}/part-0.parquet"), f"{COIN}/part-0.parquet", "only folders date=", id="coin"),
    pytest.param(added(f"{FOLDER}/part-1.parquet"), f"{FOLDER}/part-1.parquet", BESIDE, id="second-file"),
    pytest.param(added(f"{FOLDER}/part-0.parquet.tmp"), f"{FOLDER}/part-0.parquet.tmp", BESIDE, id="temporary"),
    pytest.param(added(f"{FOLDER}/inner/part-0.parquet"), f"{FOLDER}/inner", BESIDE, id="folder-in-a-day"),
    pytest.param(copied(FOLDER, f"{COIN}/date=2026-3-31"), f"{COIN}/date=2026-3-31", FOREIGN, id="date-spelled"),
    pytest.param(copied(FOLDER, f"{COIN}/date=20260331"), f"{COIN}/date=20260331", FOREIGN, id="date-compact"),
    pytest.param(copied(FOLDER, f"{COIN}/date=2026-02-30"), f"{COIN}/date=2026-02-30", FOREIGN, id="date-impossible"),
    pytest.param(copied(FOLDER, f"{COIN}/2026-03-31"), f"{COIN}/2026-03-31", FOREIGN, id="date-without-key"),
    pytest.param(copied(COIN, f"{COIN[:-3]}B%54C"), f"{COIN[:-3]}B%54C", FOREIGN, id="coin-encoded-in-vain"),
    pytest.param(copied(COIN, f"{COIN[:-3]}a%2fb"), f"{COIN[:-3]}a%2fb", FOREIGN, id="coin-encoded-in-lower-case"),
    pytest.param(copied(COIN, f"{COIN[:-3]}a:b"), f"{COIN[:-3]}a:b", FOREIGN, id="coin-not-encoded"),
    pytest.param(copied(COIN, f"{COIN[:-3]}%FF"), f"{COIN[:-3]}%FF", FOREIGN, id="coin-in-no-encoding"),
    pytest.param(copied(COIN, f"{COIN[:-3]}"), f"{COIN[:-3]}", "coin '' is empty", id="coin-empty"),
    pytest.param(copied(f"{UNIT}/depth=3", f"{UNIT}/depth=03"), f"{UNIT}/depth=03", FOREIGN, id="depth-spelled"),
    pytest.param(copied(f"{UNIT}/depth=3", f"{UNIT}/depth=0"), f"{UNIT}/depth=0", "depth 0 is not", id="depth-zero"),
    pytest.param(
        copied(f"{UNIT}/depth=3", f"{UNIT}/depth=x"),
        f"{UNIT}/depth=x",
        f"{FOREIGN}: 'depth=x' is not a folder",
        id="depth-no-number",
    ),
    pytest.param(
        copied(f"{UNIT}/depth=3/interval=MINUTE", f"{UNIT}/depth=3/interval=WEEK"),
        f"{UNIT}/depth=3/interval=WEEK",
        "interval WEEK is refused",
        id="interval-refused",
    ),
    pytest.param(copied(UNIT, "liquidations/unit=COIN"), "liquidations/unit=COIN", "unknown unit", id="unit-spelled"),
    pytest.param(copied(UNIT, "liquidations/year=2026"), "liquidations/year=2026", FOREIGN, id="foreign-partition"),
    pytest.param(dangling_link, f"{COIN}/date=2026-01-01", "is a symbolic link", id="link"),
    pytest.param(file_instead_of_the_table, "liquidations", "Not a directory", id="table-is-a-file"),
    pytest.param(added("liquidations/a\x1b[2Jb\n"), "liquidations/a\\x1b[2Jb\\n", "is a file", id="terminal-controls"),
]


@pytest.mark.parametrize(("damage", "path", "cause"), STRAYS)
def test_a_stray_is_told_once(store: Store, damage: Damage, path: str, cause: str) -> None:
    damage(store)
    (problem,) = found_in(store)
    assert problem.path == path
    assert re.search(cause, problem.cause), problem.cause


def test_a_name_that_is_no_text_can_be_told(store: Store) -> None:
    (store.root / "liquidations" / os.fsdecode(b"\xff")).write_text("?")
    (problem,) = found_in(store)
    assert problem.path == "liquidations/\\udcff"
    assert problem.path.encode()


def test_all_problems_are_told_in_the_order_of_their_paths(store: Store) -> None:
    for place in (TOMORROW, OTHER, PLACE):
        in_place(lambda data: data[:-1], place)(store)
    added("liquidations/stray")(store)
    findings = verify_files(store)
    assert [problem.path for problem in findings.problems] == sorted([PLACE, OTHER, TOMORROW, "liquidations/stray"])
    assert findings.files == len(SOUND)


# --- what cannot be read ------------------------------------------------------------------------------------------


@pytest.fixture
def mortal() -> Iterator[Store]:
    """A sound dataset that belongs to a user whom permissions bind, even where the tests run as root."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/root")
        put(store, *SOUND)
        assert not found_in(store)  # what is imported late is imported by now
        if os.geteuid() != 0:
            yield store
            return
        for path in (Path(folder), *Path(folder).rglob("*")):
            os.chown(path, 65534, 65534)
        os.seteuid(65534)
        try:
            yield store
        finally:
            os.seteuid(0)


@pytest.mark.parametrize(
    "place", [PLACE, FOLDER, COIN, "liquidations"], ids=["file", "folder-of-the-day", "folder-of-the-coin", "table"]
)
def test_what_may_not_be_read_is_told(mortal: Store, place: str) -> None:
    (mortal.root / place).chmod(0)
    try:
        (problem,) = found_in(mortal)
    finally:
        (mortal.root / place).chmod(0o755)
    assert problem == Problem(place, "cannot be read now: Permission denied", unreadable=True)


def test_a_folder_that_may_be_listed_but_not_entered_is_told(mortal: Store) -> None:
    (mortal.root / FOLDER).chmod(0o444)
    try:
        (problem,) = found_in(mortal)
    finally:
        (mortal.root / FOLDER).chmod(0o755)
    assert problem == Problem(PLACE, "cannot be read now: Permission denied", unreadable=True)


def test_a_file_that_vanishes_is_told(store: Store) -> None:
    """Between the walk and the reading of it; one that was replaced meanwhile is there."""
    files = [one for one in verify._walk(store, None) if isinstance(one, verify._DayFile)]
    (store.root / PLACE).unlink()
    problems = [problem for file in files for problem in verify._verify_file(store, file).problems]
    assert problems == [Problem(PLACE, "was there, and has vanished", unreadable=True)]


# --- a choice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "files"),
    [
        (Choice(BTC), 3),
        (Choice(BTC, range(NUMBER, NUMBER + 1)), 1),
        (Choice(BTC, range(NUMBER + 1, NUMBER + 9)), 2),
        (Choice(HOURS), 1),
        (Choice(Series("SOL")), 0),
    ],
)
def test_only_what_is_chosen_is_read(store: Store, choice: Choice, files: int) -> None:
    findings = verify_files(store, [choice])
    assert (findings.files, findings.problems) == (files, ())


def test_what_is_chosen_twice_is_read_once(store: Store) -> None:
    in_place(lambda data: data[:-1])(store)
    findings = verify_files(store, [Choice(BTC), Choice(BTC, range(NUMBER, NUMBER + 2))])
    assert (findings.files, len(findings.problems)) == (3, 1)


def test_damage_outside_of_the_choice_is_not_told(store: Store) -> None:
    in_place(lambda data: data[:-1])(store)
    added("liquidations/stray")(store)
    assert not verify_files(store, [Choice(ETH), Choice(BTC, range(NUMBER + 1, NUMBER + 3))]).problems
    assert [problem.path for problem in verify_files(store, [Choice(BTC)]).problems] == [PLACE]


@pytest.mark.parametrize(
    ("target", "last_s", "days"),
    [
        (Target(BTC), None, range(-(10**9), 10**9)),
        (Target(BTC, TODAY, TODAY + DAY), None, range(NUMBER, NUMBER + 1)),
        (Target(BTC, TODAY + DAY - 1, TODAY + DAY + 1), None, range(NUMBER, NUMBER + 2)),
        (Target(BTC, TODAY), None, range(NUMBER, 10**9)),
        (Target(BTC, None, TODAY), None, range(-(10**9), NUMBER)),
        (Target(BTC), DAY, range(NUMBER - 1, NUMBER + 1)),
        (Target(BTC, None, TODAY), DAY, range(NUMBER - 1, NUMBER)),
    ],
)
def test_a_span_chooses_the_days_that_it_touches(target: Target, last_s: int | None, days: range) -> None:
    (choice,) = choose_days([target], Settings(), NOW_S, last_s=last_s)
    assert choice == Choice(BTC, days)


@pytest.mark.parametrize("target", [Target(BTC, TODAY, TODAY), Target(BTC, TODAY, TODAY - DAY)])
def test_an_empty_span_is_refused(target: Target) -> None:
    with pytest.raises(ConfigError, match="is empty"):
        choose_days([target], Settings(), NOW_S)


# --- progress -----------------------------------------------------------------------------------------------------


def test_every_file_is_counted(store: Store) -> None:
    counted: list[tuple[int, int]] = []
    verify_files(store, on_file=lambda done, files: counted.append((done, files)))
    assert counted == [(done, len(SOUND)) for done in range(1, len(SOUND) + 1)]


def test_a_plain_line_comes_now_and_then() -> None:
    clock, said = Clock(), list[str]()
    show = plain_files(said.append, clock=clock)
    for done in range(0, 2500, 10):
        show(done, 2500)
        clock.now_s += 0.125
    assert said == [f"{int(turn * PLAIN_EVERY_S / 0.125) * 10:,} of 2,500 files" for turn in (1, 2, 3)]


def test_an_interrupt_ends_it_at_once(store: Store) -> None:
    def interrupt(_done: int, _files: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_files(store, on_file=interrupt)


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def command(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    for name in [name for name in os.environ if name.startswith("HEATPIPE_")]:
        monkeypatch.delenv(name)

    def call(*arguments: str, root: Path = store.root) -> tuple[int, str, str]:
        code = cli.run(cli.app, ["verify", "--data", str(root), *arguments])
        return code, *capsys.readouterr()

    return call


def test_soundness_is_exit_code_0_and_one_line(command: Callable[..., Any]) -> None:
    code, out, err = command()
    assert (code, err) == (0, "")
    assert re.fullmatch(r"5 files, [0-9,]+ sound rows, [0-9.]+ kB; all sound\n", out)


def test_a_problem_is_exit_code_3_and_a_line(store: Store, command: Callable[..., Any]) -> None:
    in_place(lambda _: b"")(store)
    code, out, err = command()
    assert (code, err) == (3, "")
    assert out.splitlines()[0] == f"{PLACE}: is empty"
    assert out.splitlines()[1].endswith("; problems: 1")
    assert "backfill --refetch" in out.splitlines()[2]


def test_json_is_one_document(store: Store, command: Callable[..., Any]) -> None:
    in_place(lambda _: b"")(store)
    code, out, err = command("--json")
    document = json.loads(out)
    assert (code, err) == (3, "")
    assert document["files"] == len(SOUND)
    assert document["problems"] == [{"path": PLACE, "cause": "is empty"}]
    assert set(document) == {"files", "rows", "bytes", "problems"}


def test_quiet_says_problems_only(store: Store, command: Callable[..., Any]) -> None:
    assert command("--quiet") == (0, "", "")
    in_place(lambda _: b"")(store)
    assert command("--quiet") == (3, f"{PLACE}: is empty\n", "")


def test_flags_choose_series_and_span(store: Store, command: Callable[..., Any]) -> None:
    in_place(lambda _: b"")(store)
    assert command("--coin", "BTC", "--json")[0] == 3
    assert command("--coin", "BTC", "--start", "2026-03-31", "--end", "2026-04-01")[0] == 3
    assert command("--coin", "BTC", "--start", "2026-04-01")[0] == 0
    assert command("--coin", "ETH")[:2][1].startswith("1 files")
    assert command("--interval", "HOUR")[0] == 0


def test_an_unknown_coin_is_a_matter_of_usage(command: Callable[..., Any]) -> None:
    code, out, err = command("--coin", "BTX")
    assert (code, out) == (2, "")
    assert "there is BTC" in err


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_where_nothing_is_the_user_hears_it(
    store: Store, command: Callable[..., Any], arguments: tuple[str, ...]
) -> None:
    """Whoever relies on a proof must not take a wrong folder for a sound one."""
    code, out, err = command(*arguments, root=store.root / "nowhere")
    assert code == 1
    assert "nowhere" in err
    assert json.loads(out)["files"] == 0 if arguments else out == ""


def test_a_terminal_sees_a_bar(store: Store) -> None:
    in_place(lambda data: data[:-1])(store)
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "heatpipe", "verify", "--data", str(store.root)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, timeout=60, check=False)
    os.close(follower)
    seen = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert ended.returncode == 3
    assert "5/5" in seen
    assert "files" in seen
    assert ended.stdout.decode().startswith(PLACE)

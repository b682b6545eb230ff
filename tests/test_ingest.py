"""The whole pipe over loopback: what was asked for, what came, what is on disk, and what was paid."""

import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from heatpipe.config import Settings, Target
from heatpipe.errors import ConfigError, DatasetError, HeatpipeError, KeyRefusedError, Stopped, TierError
from heatpipe.fetch import Stop
from heatpipe.ingest import backfill, update
from heatpipe.model import Series, Span, Spans, days_of
from heatpipe.plan import plan_slab, plan_slabs
from heatpipe.redaction import Secret
from heatpipe.report import Progress, Report
from heatpipe.sandbox import Market
from heatpipe.store import Store
from heatpipe.survey import check_plan, make_plan
from tests.conftest import (
    DATED,
    DAY,
    HOUR,
    MARKET,
    MINUTE,
    NOW_S,
    TODAY,
    Answer,
    Asked,
    Clock,
    Level,
    MakeSettings,
    MakeUpstream,
    Sandbox,
    document,
    expect_rows,
    honest,
    http,
    plain_levels,
    read_tree,
)

YESTERDAY = TODAY - DAY
BTC = Series("BTC", depth=2)
OTHER = Series("ETH", depth=2)
ODD_COINS = ("PURR/USDC", "@107", "xyz:SILVER", "../x", "a=b", "007", "NULL", "100%", "null", "ü b")


def fill(
    settings: Settings, series: Series | list[Series], *span: int, clock: Clock | None = None, **more: Any
) -> Report:
    return backfill(series, *span, settings=settings, clock=clock or Clock(), **more)


def dataset(settings: Settings) -> dict[str, bytes]:
    return read_tree(Path(settings.root) / "liquidations")


def footers(settings: Settings, series: Series) -> list[dict[str, Any]]:
    store = Store(settings.root)
    return [json.loads(pq.read_metadata(store._path(series, day)).metadata[b"heatpipe"]) for day in store.days(series)]


def known(settings: Settings, series: Series, part: str = "covered") -> Spans:
    store = Store(settings.root)
    return Spans.of(span for day in store.days(series) for span in getattr(store.coverage(series, day), part))


def bits(table: pa.Table) -> tuple[bytes, ...]:
    stamps = table["timestamp"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    columns = (column.to_numpy() for column in (stamps, table["price"], table["volume"]))
    return tuple(np.ascontiguousarray(column).tobytes() for column in columns)


# --- three readers, none of them ours -----------------------------------------------------------------------------

HIVE = pa.schema(
    [("unit", "string"), ("depth", "int64"), ("interval", "string"), ("coin", "string"), ("date", "date32")]
)


def by_pyarrow(root: str, series: Series) -> pa.Table:
    partitioning = ds.partitioning(HIVE, flavor="hive")
    table = ds.dataset(f"{root}/liquidations", format="parquet", partitioning=partitioning).to_table(
        filter=(pc.field("coin") == series.coin)
        & (pc.field("unit") == series.unit)
        & (pc.field("interval") == series.interval)
    )
    return table.sort_by([("timestamp", "ascending"), ("price", "ascending")])


def by_polars(root: str, series: Series) -> pa.Table:
    schema = {"unit": pl.String, "depth": pl.Int64, "interval": pl.String, "coin": pl.String, "date": pl.Date}
    frame = pl.scan_parquet(f"{root}/liquidations/**/*.parquet", hive_partitioning=True, hive_schema=schema)
    chosen = frame.filter(coin=series.coin, unit=series.unit, interval=series.interval)
    return chosen.sort("timestamp", "price").collect().to_arrow()


def by_duckdb(root: str, series: Series) -> pa.Table:
    query = (
        f"SELECT * FROM read_parquet('{root}/liquidations/*/*/*/*/*/part-0.parquet', hive_partitioning = true, "
        "hive_types = {coin: VARCHAR, date: DATE}) WHERE coin = $1 AND unit = $2 AND interval = $3 "
        "ORDER BY timestamp, price"
    )
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.sql(query, params=[series.coin, series.unit, series.interval]).to_arrow_table()


READERS = {"pyarrow": by_pyarrow, "polars": by_polars, "duckdb": by_duckdb}

MIDDLE = (YESTERDAY + 5 * HOUR + 7 * MINUTE, TODAY + 3 * HOUR + 20 * MINUTE)
SPANS = [
    (Series("kPEPE", "MINUTE", "coin", 100), MIDDLE),
    (Series("XRP", "MINUTE", "usd", 1500), (YESTERDAY + 22 * HOUR, TODAY + 2 * HOUR + 60)),
    (Series("007", "FIVE_MINUTES", "usd", 40), (YESTERDAY - DAY + 12 * HOUR, YESTERDAY + 17 * HOUR)),
    (Series("BTC", "FIVE_MINUTES", "coin", 1500), (TODAY - HOUR, TODAY + HOUR)),
    (Series("kPEPE", "HOUR", "coin", 1500), (TODAY - 3 * DAY + HOUR, TODAY + 11 * HOUR)),
    (Series("ETH", "HOUR", "usd", 100), (TODAY - 3 * DAY, TODAY)),
    (Series("ETH", "DAY", "coin", 100), (TODAY - 40 * DAY, TODAY)),
    (Series("BTC", "DAY", "usd", 1500), (TODAY - 9 * DAY, TODAY)),
]


@pytest.mark.parametrize(("series", "span"), SPANS, ids=[f"{row[0]}".replace(" ", "-") for row in SPANS])
def test_what_every_reader_finds_is_what_the_market_says(
    sandbox: Sandbox, settings: MakeSettings, series: Series, span: tuple[int, int]
) -> None:
    chosen = settings()
    report = fill(chosen, series, *span)
    expected = expect_rows(series, span)
    assert expected.num_rows > 0
    for name, read in READERS.items():
        assert bits(read(chosen.root, series)) == bits(expected), name
    assert report.failures == ()
    assert report.rows == expected.num_rows
    assert known(chosen, series) == Spans.of([span])


def test_absent_and_empty_intervals_are_told_apart_in_the_footers(sandbox: Sandbox, settings: MakeSettings) -> None:
    series, chosen = SPANS[0][0], settings()
    span = (TODAY - 3 * DAY, TODAY)
    fill(chosen, series, *span)
    points = MARKET.snapshots(series.coin, 60, *span, depth=series.depth)
    starts = points.timestamp_us // 1_000_000
    pointed = Spans.of((start, start + 60) for start in starts.tolist())
    empty = Spans.of((start, start + 60) for start in starts[points.levels == 0].tolist())
    assert empty, "a market without empty snapshots proves nothing"
    assert Spans.of([span]) - pointed, "a market without gaps proves nothing"
    assert known(chosen, series, "empty") == empty
    assert known(chosen, series, "absent") == Spans.of([span]) - pointed
    assert sum(footer["snapshots"] for footer in footers(chosen, series)) == np.count_nonzero(points.levels)


# --- once is enough -----------------------------------------------------------------------------------------------


def test_the_same_backfill_again_asks_for_nothing_and_changes_nothing(sandbox: Sandbox, settings: MakeSettings) -> None:
    series, span = SPANS[0]
    chosen = settings()
    fill(chosen, series, *span)
    before = {path: path.stat() for path in Path(chosen.root).rglob("*")}
    with sandbox.listening() as heard:
        assert fill(chosen, series, *span) == Report()
        assert fill(chosen, series, span[0] + HOUR, span[1] - HOUR) == Report()
    assert heard == []
    after = {path: path.stat() for path in Path(chosen.root).rglob("*")}
    assert {path: (stat.st_mtime_ns, stat.st_ino) for path, stat in after.items()} == {
        path: (stat.st_mtime_ns, stat.st_ino) for path, stat in before.items()
    }


def test_how_a_span_was_filled_leaves_no_trace(sandbox: Sandbox, settings: MakeSettings, tmp_path: Path) -> None:
    series = [Series("kPEPE", depth=60), Series("BTC", "HOUR", "usd")]
    start, end = TODAY - 2 * DAY + 7 * HOUR, TODAY + 2 * HOUR
    whole = settings(concurrency=1)
    fill(whole, series, start, end)
    pieces = settings(root=str(tmp_path / "in pieces"), concurrency=7)
    for first, last in ((40, 42), (0, 3), (17, 18), (18, 30), (5, 6), (0, 43)):
        for one in reversed(series):
            fill(pieces, one, start + first * HOUR, start + last * HOUR)
    assert dataset(pieces) == dataset(whole)
    assert bits(by_duckdb(pieces.root, series[0])) == bits(expect_rows(series[0], (start, end)))


def test_holes_are_filled_at_the_least_weight(sandbox: Sandbox, settings: MakeSettings) -> None:
    series, chosen = Series("ETH", depth=10), settings()
    pieces = [(TODAY - 2 * DAY + hour * HOUR, TODAY - 2 * DAY + (hour + 1) * HOUR) for hour in (1, 4, 20, 30, 47)]
    for piece in pieces:
        fill(chosen, series, *piece)
    assert bits(by_polars(chosen.root, series)) == bits(expect_rows(series, *pieces))
    with sandbox.listening() as heard:
        report = fill(chosen, series, TODAY - 2 * DAY, TODAY)
    # 2,880 points with 300 of them there already: bridging them, three windows reach.
    assert [answered.weight for answered in heard] == [5, 5, 5]
    assert (report.requests, report.weight, report.points) == (3, 15, 2880 - 300 - absent_in(series))
    assert bits(by_polars(chosen.root, series)) == bits(expect_rows(series, (TODAY - 2 * DAY, TODAY)))


def absent_in(series: Series) -> int:
    """Intervals that the market leaves out in what the test above fetches last."""
    whole = MARKET.snapshots(series.coin, 60, TODAY - 2 * DAY, TODAY)
    pieces = [
        MARKET.snapshots(series.coin, 60, TODAY - 2 * DAY + hour * HOUR, TODAY - 2 * DAY + (hour + 1) * HOUR)
        for hour in (1, 4, 20, 30, 47)
    ]
    return 2880 - len(whole.timestamp_us) - (300 - sum(len(piece.timestamp_us) for piece in pieces))


def test_a_refetch_replaces_what_the_upstream_has_revised(upstream: MakeUpstream, settings: MakeSettings) -> None:
    revised: list[bool] = []

    def answer(asked: Asked) -> bytes:
        points = {start: plain_levels(start) for start in asked.starts}
        if revised:
            points[YESTERDAY + HOUR] = [(7.0, 7.0)]
            points[YESTERDAY + 2 * HOUR] = []
            del points[YESTERDAY + 3 * HOUR]
        return http(body=document(asked, points))

    chosen = settings(upstream(answer).url)
    fill(chosen, BTC, YESTERDAY, YESTERDAY + 8 * HOUR)
    revised.append(True)
    assert fill(chosen, BTC, YESTERDAY, YESTERDAY + 4 * HOUR).requests == 0
    assert fill(chosen, BTC, YESTERDAY, YESTERDAY + 4 * HOUR, refetch=True).requests == 1
    rows = by_pyarrow(chosen.root, BTC)
    seconds = rows["timestamp"].cast(pa.int64()).to_numpy() // 1_000_000
    assert rows.num_rows == 2 * 480 - 1 - 2 - 2
    assert rows["price"].to_numpy()[seconds == YESTERDAY + HOUR].tolist() == [7.0]
    assert known(chosen, BTC) == Spans.of([(YESTERDAY, YESTERDAY + 8 * HOUR)])
    assert known(chosen, BTC, "empty") == Spans.of([(YESTERDAY + 2 * HOUR, YESTERDAY + 2 * HOUR + 60)])
    assert known(chosen, BTC, "absent") == Spans.of([(YESTERDAY + 3 * HOUR, YESTERDAY + 3 * HOUR + 60)])


@pytest.mark.parametrize("wanted", ["BTC", ["BTC", "BTC"], ("BTC",), [Series("BTC"), "BTC"]])
def test_a_coins_name_means_its_series_by_default(sandbox: Sandbox, settings: MakeSettings, wanted: Any) -> None:
    start, end = np.datetime64(TODAY, "s"), np.int64(TODAY + HOUR)
    chosen = settings()
    report = backfill(wanted, start, end, settings=chosen, clock=Clock())
    assert (report.requests, report.failures) == (1, ())
    assert Store(chosen.root).all_series() == [Series("BTC")]
    assert update("BTC", settings=chosen, clock=Clock()).requests == 1


@pytest.mark.parametrize("wanted", [None, 7, b"BTC", {"BTC": 1}.items(), [["BTC"]], [Series("BTC"), None], Series])
def test_what_is_no_series_is_told_what_is_wanted(settings: MakeSettings, wanted: Any) -> None:
    for run in (backfill, update):
        with pytest.raises(ConfigError, match=r"is no series: give a coin's name, such as \"BTC\", a heatpipe\.Series"):
            run(wanted, TODAY, settings=settings("http://127.0.0.1:9"))


@pytest.mark.parametrize("start", [TODAY * 1000, float("nan"), True, np.datetime64("NaT"), TODAY + 0.5])
def test_a_start_that_is_no_whole_second_is_refused(settings: MakeSettings, start: Any) -> None:
    for run in (backfill, update):
        with pytest.raises(ConfigError, match=r"^start: "):
            run("BTC", start, settings=settings("http://127.0.0.1:9"))


def test_a_coin_named_twice_is_fetched_once(sandbox: Sandbox, settings: MakeSettings) -> None:
    chosen = settings()
    with sandbox.listening() as heard:
        report = fill(chosen, [BTC, BTC], YESTERDAY, YESTERDAY + HOUR)
    assert (len(heard), report.requests, report.failures) == (1, 1, ())


# --- the contract of the dataset ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A dataset of coins whose names are no folders' names, and of one day that has no rows."""
    parent = tmp_path_factory.mktemp("outside")
    chosen = Settings(
        Secret("sandbox-key"), sandbox.url, weight_per_minute=10**9, burst=10**9, root=str(parent / "inside" / "root")
    )
    names = [Series(coin, depth=5) for coin in ODD_COINS]
    fill(chosen, names, TODAY - 20 * MINUTE, TODAY + 20 * MINUTE)
    return chosen


def test_the_paths_are_the_documented_ones(odd: Settings) -> None:
    encoded = {
        "PURR/USDC": "PURR%2FUSDC",
        "@107": "@107",
        "xyz:SILVER": "xyz%3ASILVER",
        "../x": "..%2Fx",
        "a=b": "a%3Db",
        "007": "007",
        "NULL": "%4EULL",
        "100%": "100%25",
        "null": "%6Eull",
        "ü b": "%C3%BC%20b",
    }
    assert set(dataset(odd)) == {
        f"unit=coin/depth=5/interval=MINUTE/coin={encoded[coin]}/date={day}/part-0.parquet"
        for coin in ODD_COINS
        for day in ("2026-03-30", "2026-03-31")
    }


def test_nothing_is_written_outside_of_the_root(odd: Settings) -> None:
    root = Path(odd.root)
    assert [path.name for path in root.parent.parent.iterdir()] == ["inside"]
    assert [path.name for path in root.parent.iterdir()] == ["root"]
    assert {path.name for path in root.iterdir()} == {"liquidations", "_locks", "_tmp"}
    assert list((root / "_tmp").iterdir()) == []


@pytest.mark.parametrize("coin", ODD_COINS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_finds_every_coin_by_its_name(odd: Settings, reader: str, coin: str) -> None:
    series = Series(coin, depth=5)
    table = READERS[reader](odd.root, series)
    assert bits(table) == bits(expect_rows(series, (TODAY - 20 * MINUTE, TODAY + 20 * MINUTE)))
    assert set(table["coin"].to_pylist()) == {coin}
    assert set(table["date"].to_pylist()) == {date(2026, 3, 30), date(2026, 3, 31)}
    assert set(table["depth"].to_pylist()) == {5}


def test_a_file_is_what_the_contract_says(sandbox: Sandbox, settings: MakeSettings) -> None:
    series, chosen = Series("kPEPE", depth=9), settings()
    span = (YESTERDAY + HOUR, YESTERDAY + 20 * HOUR + 51 * MINUTE + 60)
    fill(chosen, series, *span)
    ((name, _),) = dataset(chosen).items()
    assert name == "unit=coin/depth=9/interval=MINUTE/coin=kPEPE/date=2026-03-30/part-0.parquet"
    path = Path(chosen.root) / "liquidations" / name
    table = pq.ParquetFile(path).read()
    assert table.schema.remove_metadata() == pa.schema(
        [
            pa.field("timestamp", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("price", pa.float64(), nullable=False),
            pa.field("volume", pa.float64(), nullable=False),
        ]
    )
    order = list(zip(table["timestamp"].to_pylist(), table["price"].to_pylist(), strict=True))
    assert order == sorted(set(order))
    footer = json.loads(table.schema.metadata[b"heatpipe"])
    points = MARKET.snapshots("kPEPE", 60, *span, depth=9)
    assert list(footer) == ["version", "series", "covered", "absent", "empty", "snapshots", "rows", "digest"]
    assert footer["version"] == 1
    assert footer["series"] == {"coin": "kPEPE", "interval": "MINUTE", "unit": "coin", "depth": 9}
    assert footer["covered"] == [list(span)]
    assert footer["empty"][0] == [YESTERDAY + 9 * HOUR + 17 * MINUTE, YESTERDAY + 9 * HOUR + 18 * MINUTE]
    assert all(start < end for part in ("absent", "empty") for start, end in footer[part])
    assert footer["snapshots"] == np.count_nonzero(points.levels)
    assert footer["rows"] == table.num_rows == len(points.price)
    assert re.fullmatch("[0-9a-f]{32}", footer["digest"])


def test_a_covered_day_without_rows_is_a_file_without_rows(upstream: MakeUpstream, settings: MakeSettings) -> None:
    def answer(asked: Asked) -> bytes:
        if asked.params["coin"] == "NONE":
            return http(body=b'{"series":[]}', headers=DATED)
        points = dict.fromkeys(asked.starts, ()) if asked.params["coin"] == "BARE" else {}
        return http(body=document(asked, points), headers=DATED)

    chosen = settings(upstream(answer).url)
    names = [Series(coin) for coin in ("NONE", "VOID", "BARE")]
    report = fill(chosen, names, YESTERDAY - DAY, TODAY)
    assert report.failures == ()
    days = [[[YESTERDAY - DAY, YESTERDAY]], [[YESTERDAY, TODAY]]]
    for series in names:
        found = footers(chosen, series)
        assert [footer["covered"] for footer in found] == days
        assert [footer["absent"] for footer in found] == ([[], []] if series.coin == "BARE" else days)
        assert [footer["empty"] for footer in found] == (days if series.coin == "BARE" else [[], []])
        assert [(footer["rows"], footer["snapshots"]) for footer in found] == [(0, 0), (0, 0)]
        for read in READERS.values():
            assert read(chosen.root, series).num_rows == 0
    assert fill(chosen, names, YESTERDAY - DAY, TODAY).requests == 0


# --- what is not over yet -----------------------------------------------------------------------------------------


def test_today_grows_by_what_is_new(make_sandbox: Callable[..., Sandbox], settings: MakeSettings) -> None:
    sandbox = make_sandbox()
    chosen, series = settings(sandbox.url), Series("ETH", depth=8)
    clock = sandbox.clock
    fill(chosen, series, TODAY + 10 * HOUR, clock=clock)
    # 12:00:30 less two minutes to settle: the interval that ended at 11:58 is the last.
    assert known(chosen, series) == Spans.of([(TODAY + 10 * HOUR, TODAY + 11 * HOUR + 58 * MINUTE)])
    clock.now_s += 45 * MINUTE
    with sandbox.listening() as heard:
        report = fill(chosen, series, TODAY + 10 * HOUR, TODAY + DAY, clock=clock)
    assert [(entry.params["from"], entry.params["period"]) for entry in heard] == [
        (str(TODAY + 11 * HOUR + 58 * MINUTE), str(45 * MINUTE))
    ]
    assert (report.points, report.days) == (45, 1)
    end = TODAY + 12 * HOUR + 43 * MINUTE
    assert known(chosen, series) == Spans.of([(TODAY + 10 * HOUR, end)])
    assert bits(by_pyarrow(chosen.root, series)) == bits(expect_rows(series, (TODAY + 10 * HOUR, end)))


def test_an_interval_that_is_not_closed_is_never_stored(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """This upstream sends every point that it is asked for, the forming one and those to come as well."""
    server = upstream(honest)
    chosen = settings(server.url, settle_s=600)
    fill(chosen, BTC, TODAY + 11 * HOUR, TODAY + DAY)
    closed_end = TODAY + 11 * HOUR + 50 * MINUTE
    assert known(chosen, BTC) == Spans.of([(TODAY + 11 * HOUR, closed_end)])
    assert server.spans == [Span(TODAY + 11 * HOUR, closed_end)]


def test_the_upstream_s_clock_closes_intervals_too(
    make_sandbox: Callable[..., Sandbox], settings: MakeSettings
) -> None:
    """Ours is an hour ahead: by the Date of its answers, the upstream has not got there yet."""
    sandbox = make_sandbox()
    sandbox.clock.now_s = NOW_S - HOUR
    chosen, series = settings(sandbox.url), Series("ETH", depth=8)
    report = fill(chosen, series, TODAY + 10 * HOUR)
    assert known(chosen, series) == Spans.of([(TODAY + 10 * HOUR, TODAY + 10 * HOUR + 58 * MINUTE)])
    assert report.open == 60
    assert report.failures == ()
    sandbox.clock.now_s = NOW_S
    fill(chosen, series, TODAY + 10 * HOUR)
    assert known(chosen, series) == Spans.of([(TODAY + 10 * HOUR, TODAY + 11 * HOUR + 58 * MINUTE)])


def test_a_young_absence_is_asked_for_again_and_an_old_one_is_not(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    late = {TODAY + 11 * HOUR + 30 * MINUTE, TODAY + 11 * HOUR + 50 * MINUTE, TODAY + 11 * HOUR + 52 * MINUTE}
    missing = set(late)

    def answer(asked: Asked) -> bytes:
        return http(body=document(asked, {s: plain_levels(s) for s in asked.starts if s not in missing}))

    server, clock = upstream(answer), Clock()
    chosen = settings(server.url)
    report = fill(chosen, BTC, TODAY + 11 * HOUR, TODAY + 11 * HOUR + 55 * MINUTE, clock=clock)
    assert (report.young, report.failures) == (2, ())
    half_past = Spans.of([(TODAY + 11 * HOUR + 30 * MINUTE, TODAY + 11 * HOUR + 31 * MINUTE)])
    ten_to = Spans.of([(TODAY + 11 * HOUR + 50 * MINUTE, TODAY + 11 * HOUR + 51 * MINUTE)])
    eight_to = Spans.of([(TODAY + 11 * HOUR + 52 * MINUTE, TODAY + 11 * HOUR + 53 * MINUTE)])
    span = Spans.of([(TODAY + 11 * HOUR, TODAY + 11 * HOUR + 55 * MINUTE)])
    assert known(chosen, BTC) == span - ten_to - eight_to
    assert known(chosen, BTC, "absent") == half_past
    # One of them is published in the end; of the other a quarter of an hour goes by.
    missing.discard(TODAY + 11 * HOUR + 50 * MINUTE)
    clock.now_s += 10 * MINUTE
    report = fill(chosen, BTC, TODAY + 11 * HOUR, TODAY + 11 * HOUR + 55 * MINUTE, clock=clock)
    assert server.spans[1:] == [Span(TODAY + 11 * HOUR + 50 * MINUTE, TODAY + 11 * HOUR + 53 * MINUTE)]
    assert (report.young, report.points) == (0, 1)
    assert known(chosen, BTC) == span
    assert known(chosen, BTC, "absent") == half_past | eight_to
    fill(chosen, BTC, TODAY + 11 * HOUR, TODAY + 11 * HOUR + 55 * MINUTE, clock=clock)
    assert len(server.asked) == 2


# --- who reads meanwhile, who writes meanwhile --------------------------------------------------------------------


def test_a_reader_sees_a_day_as_it_was_or_as_it_is(upstream: MakeUpstream, settings: MakeSettings) -> None:
    chosen = settings(upstream(honest).url)
    steps = [YESTERDAY + hour * HOUR for hour in range(1, 25)]
    fill(chosen, BTC, YESTERDAY, steps[0])
    path = Path(chosen.root) / "liquidations/unit=coin/depth=2/interval=MINUTE/coin=BTC/date=2026-03-30/part-0.parquet"
    seen: list[int] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            # Opened once: who opens a path twice, for the footer and for the rows, may open two days.
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read()
            stamps = table["timestamp"].cast(pa.int64()).to_numpy() // 1_000_000
            footer = json.loads(table.schema.metadata[b"heatpipe"])
            assert stamps.tolist() == np.repeat(np.arange(YESTERDAY, footer["covered"][0][1], 60), 2).tolist()
            seen.append(table.num_rows)

    failed: list[BaseException] = []

    def watch() -> None:
        try:
            read()
        except BaseException as exc:  # noqa: BLE001 - the main thread is to fail with it
            failed.append(exc)

    reader = threading.Thread(target=watch)
    reader.start()
    for step in steps[1:]:
        fill(chosen, BTC, YESTERDAY, step)
    over.set()
    reader.join()
    assert failed == []
    assert seen == sorted(seen)
    assert set(seen) <= {2 * (step - YESTERDAY) // 60 for step in steps}
    assert len(set(seen)) > 3, "the reader saw too little to prove anything"


def test_a_slab_that_another_holds_is_refused_or_waited_for(upstream: MakeUpstream, settings: MakeSettings) -> None:
    server = upstream(honest)
    chosen = settings(server.url)
    store = Store(chosen.root)
    (slab,) = plan_slabs(BTC, Span(YESTERDAY, TODAY))
    with store.lock(slab):
        report = fill(chosen, [BTC, OTHER], YESTERDAY, TODAY, wait_for_locks=False)
        assert [(failure.series, failure.span) for failure in report.failures] == [(BTC, Span(YESTERDAY, TODAY))]
        assert re.search(r"BTC MINUTE .* is being worked on by process \d+ on .", report.failures[0].reason)
        assert {asked.params["coin"] for asked in server.asked} == {OTHER.coin}, "what is free is worked on"
        server.asked.clear()
        waiting = threading.Thread(target=fill, args=(chosen, BTC, YESTERDAY, TODAY))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        assert server.asked == []
    waiting.join(10)
    assert known(chosen, BTC) == Spans.of([(YESTERDAY, TODAY)])


def test_two_at_the_same_work_share_it(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """Whoever comes second plans under the lock, and finds what the first has brought."""
    server = upstream(honest)
    chosen = settings(server.url)
    names = [Series(coin, depth=2) for coin in ("A", "B", "C")]
    reports: list[Report] = []
    threads = [
        threading.Thread(target=lambda order: reports.append(fill(chosen, order, YESTERDAY, TODAY)), args=(order,))
        for order in (names, names[::-1])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [report.failures for report in reports] == [(), ()]
    assert sum(report.requests for report in reports) == len(server.asked) == 6
    assert Counter(server.spans) == Counter(dict.fromkeys(set(server.spans), 3))
    for series in names:
        assert known(chosen, series) == Spans.of([(YESTERDAY, TODAY)])


# --- what is refused before it costs ------------------------------------------------------------------------------


def refusals() -> Iterator[tuple[str, dict[str, Any], Series, tuple[int, ...], dict[str, Any], str]]:
    year = TODAY - 364 * DAY
    yield (
        "over the weight that was allowed",
        {},
        BTC,
        (YESTERDAY, TODAY),
        {"max_weight": 9},
        "weight of 10.*allowed are 9",
    )
    yield "heavier than the burst", {"burst": 5}, Series("BTC", depth=3000), (YESTERDAY, TODAY), {}, "weighs 6.*only 5"
    yield "no key", {"api_key": None}, BTC, (YESTERDAY, TODAY), {}, "KIYOTAKA_API_KEY"
    yield "the end before the start", {}, BTC, (TODAY, YESTERDAY), {}, "before it starts"
    yield "less than an interval", {}, Series("BTC", "HOUR"), (TODAY + 60, TODAY + HOUR), {}, "no whole interval"
    yield "beyond the history", {"history_days": 1}, BTC, (year, year + DAY), {}, "beyond the 1 days of history"
    yield "no start", {}, BTC, (), {}, "no span"


@pytest.mark.parametrize(
    ("changes", "series", "span", "more", "words"),
    [row[1:] for row in refusals()],
    ids=[row[0] for row in refusals()],
)
def test_what_cannot_be_done_is_refused_before_anything_is_asked(
    sandbox: Sandbox,
    settings: MakeSettings,
    changes: dict[str, Any],
    series: Series,
    span: tuple[int, ...],
    more: dict[str, Any],
    words: str,
) -> None:
    chosen = settings(**changes)
    with sandbox.listening() as heard, pytest.raises(ConfigError, match=words):
        fill(chosen, series, *span, **more)
    assert heard == []
    assert not Path(chosen.root).exists()


def test_what_is_allowed_exactly_is_done(upstream: MakeUpstream, settings: MakeSettings) -> None:
    chosen = settings(upstream(honest).url, burst=5)
    assert fill(chosen, BTC, YESTERDAY, TODAY, max_weight=10).weight == 10


def test_a_plan_that_will_not_fit_the_disk_is_refused(settings: MakeSettings, sandbox: Sandbox) -> None:
    chosen = settings(history_days=0)
    store = Store(chosen.root)
    minute = make_plan([Target(Series(f"C{number}"), YESTERDAY, TODAY) for number in range(2)], store, chosen, NOW_S)
    check_plan(minute, store, chosen)
    thousand_years = replace(minute, slabs=tuple(replace(slab, missing_s=10**15) for slab in minute.slabs))
    with pytest.raises(ConfigError, match="GB are free"):
        check_plan(thousand_years, store, chosen)


def test_a_span_partly_beyond_the_history_is_clipped(upstream: MakeUpstream, settings: MakeSettings) -> None:
    server = upstream(honest)
    chosen = settings(server.url, history_days=1)
    plan = make_plan([Target(BTC, YESTERDAY - DAY, TODAY)], Store(chosen.root), chosen, NOW_S)
    assert [warning[:5] for warning in plan.warnings] == ["BTC: "]
    fill(chosen, BTC, YESTERDAY - DAY, TODAY)
    assert known(chosen, BTC) == Spans.of([(NOW_S - DAY + 30, TODAY)])


def test_instants_off_the_grid_round_inward(upstream: MakeUpstream, settings: MakeSettings) -> None:
    server = upstream(honest)
    fill(settings(server.url), Series("BTC", "HOUR"), YESTERDAY + 1, YESTERDAY + 5 * HOUR - 1)
    assert server.spans == [Span(YESTERDAY + HOUR, YESTERDAY + 4 * HOUR)]


def test_dates_and_instants_may_be_written_as_text(upstream: MakeUpstream, settings: MakeSettings) -> None:
    server = upstream(honest)
    chosen = settings(server.url)
    backfill(BTC, "2026-03-30T23:00", "2026-03-31", settings=chosen, clock=Clock())
    backfill(BTC, date(2026, 3, 31), datetime(2026, 3, 31, 1, tzinfo=UTC), settings=chosen, clock=Clock())
    assert server.spans == [Span(TODAY - HOUR, TODAY), Span(TODAY, TODAY + HOUR)]


# --- a wrong key, a wrong tier, a wrong coin ----------------------------------------------------------------------


@pytest.mark.parametrize(("key", "error"), [("wrong-key", KeyRefusedError), ("basic-key", TierError)])
def test_a_wrong_key_or_tier_costs_one_request(
    sandbox: Sandbox, settings: MakeSettings, key: str, error: type[HeatpipeError]
) -> None:
    chosen = settings(api_key=Secret(key), concurrency=8)
    with sandbox.listening() as heard, pytest.raises(error):
        fill(chosen, [Series(coin) for coin in ("BTC", "ETH", "SOL")], TODAY - 9 * DAY, TODAY)
    assert len(heard) == 1


def test_the_first_request_of_a_run_goes_alone(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """While the first answer is on its way, nobody else asks."""
    alone: list[int] = []

    def answer(asked: Asked) -> bytes:
        if not alone:
            server.gone.wait(0.2)
            alone.append(len(server.asked))
        return honest(asked)

    server = upstream(answer)
    fill(settings(server.url, concurrency=8), BTC, TODAY - 4 * DAY, TODAY)
    assert alone[0] == 1
    assert len(server.asked) == 6


def test_an_unknown_coin_ends_itself_and_no_other(sandbox: Sandbox, settings: MakeSettings) -> None:
    chosen = settings()
    names = [Series(coin, depth=5) for coin in ("UNKNOWN1", "ETH", "NOPE", "BTC")]
    with sandbox.listening() as heard:
        report = fill(chosen, names, TODAY - 3 * DAY, TODAY)
    assert {failure.series.coin: failure.span for failure in report.failures} == {"UNKNOWN1": None, "NOPE": None}
    assert all("INVALID_SYMBOL" in failure.reason and failure.counts for failure in report.failures)
    asked = Counter(entry.params["coin"] for entry in heard)
    assert (asked["ETH"], asked["BTC"]) == (5, 5)
    assert (asked["UNKNOWN1"], asked["NOPE"]) == (1, 1)
    for series in (names[1], names[3]):
        assert bits(by_pyarrow(chosen.root, series)) == bits(expect_rows(series, (TODAY - 3 * DAY, TODAY)))
    assert not (Path(chosen.root) / "_quarantine").exists()


def test_the_report_tells_all_that_was_paid(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """Also of a slab that was abandoned because its series ended elsewhere."""
    slab_end = plan_slabs(BTC, Span(TODAY - DAY, TODAY))[0].span.start

    def answer(asked: Asked) -> Answer:
        if asked.span.end <= slab_end:
            return http(504) if asked.span.seconds > 500 * MINUTE else http(400, b'{"error": "INVALID_PARAMS"}')
        return honest(asked)

    server = upstream(answer)
    chosen = settings(server.url, concurrency=1)
    report = fill(chosen, [Series("A", depth=2), BTC], slab_end - 1000 * MINUTE, slab_end + 3000 * MINUTE)
    assert report.requests == len(server.asked)
    assert report.rows == 2 * sum(
        span.seconds // 60 for coin in ("A", "BTC") for span in known(chosen, Series(coin, depth=2))
    )


# --- windows that will not come -----------------------------------------------------------------------------------


def test_a_window_too_heavy_for_the_upstream_is_halved_until_it_comes(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    server = upstream(lambda asked: http(504) if len(asked.starts) > 125 else honest(asked))
    chosen = settings(server.url)
    report = fill(chosen, BTC, YESTERDAY, YESTERDAY + 1000 * MINUTE)
    assert report.failures == ()
    assert known(chosen, BTC) == Spans.of([(YESTERDAY, YESTERDAY + 1000 * MINUTE)])
    assert Counter(len(asked.starts) for asked in server.asked) == {1000: 1, 500: 2, 250: 4, 125: 8}
    assert (report.requests, report.weight) == (15, 75)


def test_a_point_too_heavy_for_the_upstream_is_given_up_after_three_attempts(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    bad = YESTERDAY + 5 * MINUTE
    server = upstream(lambda asked: http(504) if bad in asked.starts else honest(asked))
    chosen = settings(server.url)
    report = fill(chosen, BTC, YESTERDAY, YESTERDAY + 8 * MINUTE)
    assert [(failure.span, failure.counts) for failure in report.failures] == [(Span(bad, bad + 60), True)]
    assert "504" in report.failures[0].reason
    assert Counter(server.spans)[Span(bad, bad + 60)] == 3
    assert known(chosen, BTC) == Spans.of([(YESTERDAY, YESTERDAY + 8 * MINUTE)]) - Spans.of([(bad, bad + 60)])
    assert Store(chosen.root).quarantined(BTC) == Spans.of([(bad, bad + 60)])


def test_an_answer_over_its_cap_is_asked_for_in_halves(upstream: MakeUpstream, settings: MakeSettings) -> None:
    server = upstream(lambda asked: http(body=b" " * (1 << 20)) if len(asked.starts) > 500 else honest(asked))
    chosen = settings(server.url)
    assert fill(chosen, BTC, YESTERDAY, YESTERDAY + 1000 * MINUTE).failures == ()
    assert [len(asked.starts) for asked in server.asked] == [1000, 500, 500]


def test_a_window_costs_no_more_than_forty_requests(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """Only a point or two come at a time: nothing is halved whose halves could not be asked for any more."""
    server = upstream(lambda asked: http(504) if len(asked.starts) > 2 else honest(asked))
    chosen = settings(server.url, concurrency=1)
    report = fill(chosen, BTC, YESTERDAY, YESTERDAY + 1000 * MINUTE)
    assert 38 < len(server.asked) <= 40
    assert report.requests == len(server.asked)
    assert known(chosen, BTC), "what came is kept"
    assert (
        sum(len(asked.starts) for asked in server.asked if len(asked.starts) <= 2) * MINUTE
        == known(chosen, BTC).seconds
    )
    lost = Spans.of(failure.span for failure in report.failures if failure.span)
    assert lost | known(chosen, BTC) == Spans.of([(YESTERDAY, YESTERDAY + 1000 * MINUTE)])


def test_to_be_told_to_wait_does_not_count_towards_the_forty(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """Fifty refusals, and still the one bad point is found among a thousand."""
    bad = YESTERDAY + 777 * MINUTE
    refused: Counter[Span] = Counter()

    def answer(asked: Asked) -> bytes:
        refused[asked.span] += 1
        if refused[asked.span] % 3:
            return http(429, headers={"Retry-After": "0"})
        return http(504) if bad in asked.starts else honest(asked)

    server = upstream(answer)
    report = fill(settings(server.url), BTC, YESTERDAY, YESTERDAY + 1000 * MINUTE)
    assert [failure.span for failure in report.failures] == [Span(bad, bad + 60)]
    assert report.requests == len(server.asked) > 60


BAD_VALUES: list[tuple[str, list[Level], str]] = [
    ("a volume below nothing", [(100.0, -1.0)], "volume -1"),
    ("a volume that is no number", [(100.0, float("nan"))], "volume nan"),
    ("a volume without end", [(100.0, float("inf"))], "volume inf"),
    ("a price of nothing", [(0.0, 1.0)], "price 0"),
    ("prices that fall", [(2.0, 1.0), (1.0, 1.0)], "does not ascend"),
    ("more levels than were asked for", [(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)], "3 levels"),
]


@pytest.mark.parametrize(("levels", "words"), [row[1:] for row in BAD_VALUES], ids=[row[0] for row in BAD_VALUES])
def test_only_the_point_that_breaks_the_contract_is_quarantined(
    upstream: MakeUpstream, settings: MakeSettings, levels: list[Level], words: str
) -> None:
    bad = YESTERDAY + 777 * MINUTE
    healed: list[bool] = []

    def answer(asked: Asked) -> bytes:
        points = {start: levels if start == bad and not healed else plain_levels(start) for start in asked.starts}
        return http(body=document(asked, points))

    server = upstream(answer)
    chosen = settings(server.url, api_key=Secret("k3y-that-nobody-may-see"))
    report = fill(chosen, BTC, YESTERDAY, TODAY)
    point, whole = Spans.of([(bad, bad + 60)]), Spans.of([(YESTERDAY, TODAY)])
    assert [failure.span for failure in report.failures] == list(point)
    assert words in report.failures[0].reason
    # The window of a thousand and nine bad halves are asked for twice, each with a good half beside it but the first.
    assert report.requests == len(server.asked) <= 40
    assert max(Counter(server.spans).values()) == 2
    assert known(chosen, BTC) == whole - point
    assert by_pyarrow(chosen.root, BTC).num_rows == 2 * 1439
    kept = read_tree(Path(chosen.root) / "_quarantine")
    place = f"unit=coin/depth=2/interval=MINUTE/coin=BTC/{bad}-{bad + 60}"
    assert set(kept) == {f"{place}.json", f"{place}.body"}
    query = f"type=HYPERLIQUID_LIQUIDATION_AGG&coin=BTC&interval=MINUTE&from={bad}&period=60&maxDepth=2&flatten=true"
    assert json.loads(kept[f"{place}.json"]) == {
        "from": bad,
        "to": bad + 60,
        "request": f"GET /v1/points?{query}",
        "reason": report.failures[0].reason,
        "given_up_at": "2026-03-31T12:00:30Z",
    }
    assert b'"flat_points"' in kept[f"{place}.body"]
    assert not any(b"k3y-that" in data for data in read_tree(chosen.root).values())
    # The next run asks for the point again, and when it comes the record goes.
    asked = len(server.asked)
    assert [failure.span for failure in fill(chosen, BTC, YESTERDAY, TODAY).failures] == list(point)
    assert server.spans[asked:] == list(point) * 2
    healed.append(True)
    assert fill(chosen, BTC, YESTERDAY, TODAY).failures == ()
    assert known(chosen, BTC) == whole
    assert read_tree(Path(chosen.root) / "_quarantine") == {}


def test_an_answer_that_is_right_the_second_time_is_no_failure(upstream: MakeUpstream, settings: MakeSettings) -> None:
    server = upstream(lambda asked: honest(asked) if len(server.asked) > 1 else http(body=document(asked, {0: []})))
    chosen = settings(server.url)
    report = fill(chosen, BTC, YESTERDAY, YESTERDAY + HOUR)
    assert (report.failures, report.requests) == ((), 2)
    assert not (Path(chosen.root) / "_quarantine").exists()


WRONG = [
    ("another coin", lambda asked: document(asked, {}, coin="ETH"), "coin 'ETH'"),
    ("another interval", lambda asked: document(asked, {}, interval="HOUR"), "interval 'HOUR'"),
    ("another type", lambda asked: document(asked, {}, type="TRADES"), "type 'TRADES'"),
    ("no JSON", lambda _: b"<html>maintenance</html>", "not a JSON document"),
    ("a document cut short", lambda asked: document(asked, {asked.span.start: [(1.0, 1.0)]})[:-9], "ends within"),
    ("an error in disguise", lambda _: b'{"error": "oops"}', "no list 'series'"),
]


@pytest.mark.parametrize(("body", "words"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_an_answer_to_another_question_is_quarantined_whole(
    upstream: MakeUpstream, settings: MakeSettings, body: Callable[[Asked], bytes], words: str
) -> None:
    wrong = Span(YESTERDAY, YESTERDAY + 1000 * MINUTE)
    server = upstream(lambda asked: http(body=body(asked)) if asked.span == wrong else honest(asked))
    chosen = settings(server.url)
    report = fill(chosen, BTC, YESTERDAY, TODAY)
    assert [failure.span for failure in report.failures] == [wrong]
    assert words in report.failures[0].reason
    assert sorted(server.spans) == [wrong, wrong, Span(wrong.end, TODAY)]
    assert known(chosen, BTC) == Spans.of([(wrong.end, TODAY)])
    assert Store(chosen.root).quarantined(BTC) == Spans.of([wrong])


def test_an_answer_that_repeats_the_key_is_not_repeated(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """A gateway that says what it was sent, with status 200: nothing of it may reach a report."""
    key = "k3y-that-nobody-may-see"
    server = upstream(lambda asked: http(body=json.dumps({"headers": dict(asked.headers)}).encode()))
    chosen = settings(server.url, api_key=Secret(key))
    report = fill(chosen, BTC, YESTERDAY, YESTERDAY + HOUR)
    assert len(report.failures) == 1
    assert key not in json.dumps(report.as_document())
    kept = read_tree(Path(chosen.root) / "_quarantine")
    assert any(b"x-kiyotaka-key" in data for data in kept.values())
    assert not any(key.encode() in data for data in kept.values())


def test_a_record_goes_when_its_span_was_covered_by_and_by(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """A whole window was quarantined, over midnight; each of its days comes in a run of its own."""
    wrong = Span(TODAY - 500 * MINUTE, TODAY + 500 * MINUTE)
    server = upstream(lambda asked: http(body=b"oops") if asked.span == wrong else honest(asked))
    chosen = settings(server.url)
    fill(chosen, BTC, *wrong)
    assert Store(chosen.root).quarantined(BTC) == Spans.of([wrong])
    fill(chosen, BTC, wrong.start, TODAY)
    assert Store(chosen.root).quarantined(BTC) == Spans.of([wrong])
    fill(chosen, BTC, TODAY, wrong.end)
    assert known(chosen, BTC) == Spans.of([wrong])
    assert read_tree(Path(chosen.root) / "_quarantine") == {}


def test_a_record_that_a_killed_run_left_goes_when_nothing_is_left_to_fetch(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    """It died between the last day and its record."""
    chosen = settings(upstream(honest).url)
    fill(chosen, BTC, YESTERDAY, TODAY)
    store = Store(chosen.root)
    (slab,) = plan_slabs(BTC, Span(YESTERDAY, TODAY))
    gone, stays = Span(YESTERDAY, YESTERDAY + 600), Span(YESTERDAY - 600, YESTERDAY)
    for span in (gone, stays):
        store.quarantine(slab, span, {"reason": "too heavy"})
    fill(chosen, BTC, YESTERDAY, TODAY)
    assert store.quarantined(BTC) == Spans.of([stays])


def test_three_windows_that_fail_alike_end_their_series(upstream: MakeUpstream, settings: MakeSettings) -> None:
    server = upstream(lambda asked: http(503) if asked.params["coin"] == "SICK" else honest(asked))
    chosen = settings(server.url, patience_s=0.0, concurrency=1)
    sick, well = Series("SICK", depth=2), Series("WELL", depth=2)
    report = fill(chosen, [sick, well], TODAY - 9 * DAY, TODAY)
    asked = Counter(asked.params["coin"] for asked in server.asked)
    assert asked["WELL"] == 13
    assert 3 <= asked["SICK"] <= 3 + chosen.concurrency
    assert [failure.span is None for failure in report.failures].count(True) == 1
    assert {failure.series for failure in report.failures} == {sick}
    assert known(chosen, well) == Spans.of([(TODAY - 9 * DAY, TODAY)])


def test_points_that_stay_bad_do_not_keep_the_rest_away_for_ever(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    """The next runs come to the same bad points first: they must get past them."""
    bad = {YESTERDAY - 3 * DAY + hour * HOUR for hour in (2, 20, 40, 60)}

    def answer(asked: Asked) -> bytes:
        points = {start: [(1.0, -1.0)] if start in bad else plain_levels(start) for start in asked.starts}
        return http(body=document(asked, points))

    chosen = settings(upstream(answer).url)
    for _ in range(2):
        fill(chosen, BTC, YESTERDAY - 3 * DAY, TODAY)
    everything = Spans.of([(YESTERDAY - 3 * DAY, TODAY)])
    assert known(chosen, BTC) == everything - Spans.of((at, at + 60) for at in bad)


def test_a_bad_point_in_every_window_keeps_nothing_else_away(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """What came in part is no sign of an upstream that is broken."""
    bad = {YESTERDAY - 9 * DAY + number * 1000 * MINUTE for number in range(14)}

    def answer(asked: Asked) -> bytes:
        points = {start: [(1.0, -1.0)] if start in bad else plain_levels(start) for start in asked.starts}
        return http(body=document(asked, points))

    chosen = settings(upstream(answer).url)
    report = fill(chosen, BTC, YESTERDAY - 9 * DAY, TODAY)
    everything = Spans.of([(YESTERDAY - 9 * DAY, TODAY)])
    assert known(chosen, BTC) == everything - Spans.of((at, at + 60) for at in bad)
    assert {failure.span for failure in report.failures} == {Span(at, at + 60) for at in bad}


def test_a_window_that_reaches_beyond_the_history_is_named_and_kept_nowhere(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    """The tier sells less than history_days says."""
    sold = YESTERDAY + 1000 * MINUTE
    refusal = http(403, b'{"error": "FORBIDDEN", "message": "Time range exceeds history depth"}')
    server = upstream(lambda asked: refusal if asked.span.start < sold else honest(asked))
    chosen = settings(server.url)
    report = fill(chosen, BTC, YESTERDAY - 4 * DAY, TODAY)
    assert len(report.failures) >= 5
    assert not any(failure.counts for failure in report.failures)
    assert all("history_days" in failure.reason for failure in report.failures)
    assert known(chosen, BTC).hull.end == TODAY
    assert not (Path(chosen.root) / "_quarantine").exists()


def test_a_record_keeps_no_answer_of_an_earlier_fault(upstream: MakeUpstream, settings: MakeSettings) -> None:
    answers = [lambda _: http(body=b"oops")] * 2 + [lambda _: http(503)]
    server = upstream(lambda asked: answers[min(len(server.asked), 3) - 1](asked))
    chosen = settings(server.url, patience_s=0.0)
    fill(chosen, BTC, YESTERDAY, YESTERDAY + HOUR)
    assert len(read_tree(Path(chosen.root) / "_quarantine")) == 2
    fill(chosen, BTC, YESTERDAY, YESTERDAY + HOUR)
    ((path, record),) = read_tree(Path(chosen.root) / "_quarantine").items()
    assert path.endswith(".json")
    assert b"503" in record


# --- damage on disk -----------------------------------------------------------------------------------------------


def footer_gone(data: bytes) -> bytes:
    return data[:-100]


def page_damaged(data: bytes) -> bytes:
    return data[:60] + bytes(20) + data[80:]


@pytest.mark.parametrize("damage", [footer_gone, page_damaged])
def test_a_damaged_day_is_set_aside_and_told_before_it_is_replaced(
    upstream: MakeUpstream,
    settings: MakeSettings,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = upstream(honest)
    chosen = settings(server.url)
    fill(chosen, BTC, YESTERDAY, TODAY - HOUR)
    path = Path(chosen.root) / "liquidations/unit=coin/depth=2/interval=MINUTE/coin=BTC/date=2026-03-30/part-0.parquet"
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with caplog.at_level("WARNING", "heatpipe"):
        report = fill(chosen, BTC, TODAY - 2 * HOUR, TODAY)
    kept = read_tree(Path(chosen.root) / "_quarantine")
    assert list(kept.values()) == [damaged]
    told = [failure.reason for failure in report.failures] + [record.getMessage() for record in caplog.records]
    assert [text for text in told if str(path) in text]
    # The same command again brings the rest.
    fill(chosen, BTC, YESTERDAY, TODAY)
    assert known(chosen, BTC) == Spans.of([(YESTERDAY, TODAY)])
    assert by_pyarrow(chosen.root, BTC).num_rows == 2 * 1440


def test_a_refetch_of_a_whole_damaged_day_is_all_that_it_needs(upstream: MakeUpstream, settings: MakeSettings) -> None:
    chosen = settings(upstream(honest).url)
    fill(chosen, BTC, YESTERDAY, TODAY)
    (path,) = (Path(chosen.root) / "liquidations").rglob("*.parquet")
    sound = path.read_bytes()
    path.write_bytes(page_damaged(sound))
    assert fill(chosen, BTC, YESTERDAY, TODAY, refetch=True).failures == ()
    assert path.read_bytes() == sound


@pytest.mark.parametrize("gone", [[], [(0, [])]], ids=["absent", "empty"])
def test_rows_that_a_refetch_does_not_find_again_are_kept_aside(
    upstream: MakeUpstream,
    settings: MakeSettings,
    caplog: pytest.LogCaptureFixture,
    gone: list[tuple[int, list[Level]]],
) -> None:
    """The upstream may have lost them; nobody else has them."""
    lost: list[bool] = []

    def answer(asked: Asked) -> bytes:
        points = {start: plain_levels(start) for start in asked.starts}
        if lost:
            points = {start: [] for start in asked.starts if gone}
        return http(body=document(asked, points))

    chosen = settings(upstream(answer).url)
    fill(chosen, BTC, YESTERDAY, YESTERDAY + HOUR)
    (path,) = (Path(chosen.root) / "liquidations").rglob("*.parquet")
    before = path.read_bytes()
    fill(chosen, BTC, YESTERDAY, YESTERDAY + HOUR, refetch=True)
    assert read_tree(Path(chosen.root) / "_quarantine") == {}
    lost.append(True)
    fill(chosen, BTC, YESTERDAY, YESTERDAY + HOUR, refetch=True)
    assert list(read_tree(Path(chosen.root) / "_quarantine").values()) == [before]
    assert "60 intervals had rows, and the upstream has none now" in caplog.text


def test_a_file_of_a_later_heatpipe_is_not_replaced_in_silence(upstream: MakeUpstream, settings: MakeSettings) -> None:
    chosen = settings(upstream(honest).url)
    fill(chosen, BTC, YESTERDAY, TODAY)
    path = Path(chosen.root) / "liquidations/unit=coin/depth=2/interval=MINUTE/coin=BTC/date=2026-03-30/part-0.parquet"
    table = pq.ParquetFile(path).read()
    footer = json.loads(table.schema.metadata[b"heatpipe"]) | {"version": 2}
    pq.write_table(table.replace_schema_metadata({b"heatpipe": json.dumps(footer).encode()}), path)
    later = path.read_bytes()
    (failure,) = fill(chosen, BTC, YESTERDAY, YESTERDAY + HOUR).failures
    assert "has a footer of version 2, this heatpipe reads 1" in failure.reason
    assert path.read_bytes() == later


def test_one_day_that_cannot_be_written_does_not_take_the_others_with_it(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    """The second window makes the first day whole and begins the second: it is paid for, and can be written."""

    def answer(asked: Asked) -> Iterator[bytes]:
        folder.mkdir(parents=True, exist_ok=True)  # somebody does so in mid-run
        if asked.span.start == YESTERDAY - DAY + 2000 * MINUTE:
            server.gone.wait()
        yield honest(asked)

    server = upstream(answer)
    chosen = settings(server.url)
    folder = (
        Path(chosen.root) / "liquidations/unit=coin/depth=2/interval=MINUTE/coin=BTC/date=2026-03-29/part-0.parquet"
    )
    with pytest.raises(DatasetError, match="cannot write"):
        fill(chosen, BTC, YESTERDAY - DAY, TODAY)
    folder.rmdir()
    assert known(chosen, BTC) == Spans.of([(YESTERDAY, YESTERDAY - DAY + 2000 * MINUTE)])


def test_leftovers_of_a_killed_run_are_gone_after_the_next(upstream: MakeUpstream, settings: MakeSettings) -> None:
    chosen = settings(upstream(honest).url)
    (slab,) = plan_slabs(BTC, Span(YESTERDAY, TODAY))
    leftover = Path(chosen.root) / "_tmp" / f"coin-2-MINUTE-BTC-{slab.number}" / "date=2026-03-30-part-0.parquet"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    (Path(chosen.root) / "liquidations/unit=coin/depth=2/interval=MINUTE/coin=BTC/date=2026-03-30").mkdir(parents=True)
    fill(chosen, BTC, YESTERDAY, TODAY)
    assert read_tree(Path(chosen.root) / "_tmp") == {}
    assert known(chosen, BTC) == Spans.of([(YESTERDAY, TODAY)])


# --- ending early -------------------------------------------------------------------------------------------------

EARLY_SERIES = [Series("A", depth=2), Series("B", depth=2)]
EARLY_SPAN = (TODAY - 3 * DAY + 5 * HOUR, TODAY + 2 * HOUR)


def interrupt_after(answers: int) -> Callable[[Progress], None]:
    calls = itertools.count(1)

    def interrupt(_: Progress) -> None:
        if next(calls) == answers:
            raise KeyboardInterrupt

    return interrupt


@pytest.mark.parametrize(("answers", "concurrency"), [(1, 1), (2, 4), (4, 1), (7, 4), (9, 1)])
def test_an_interrupted_run_keeps_what_came_and_can_be_finished(
    upstream: MakeUpstream, settings: MakeSettings, tmp_path: Path, answers: int, concurrency: int
) -> None:
    server = upstream(honest)
    chosen = settings(server.url, concurrency=concurrency)
    with pytest.raises(KeyboardInterrupt):
        fill(chosen, EARLY_SERIES, *EARLY_SPAN, on_progress=interrupt_after(answers))
    store = Store(chosen.root)
    came = sum(known(chosen, series).seconds // MINUTE for series in EARLY_SERIES)
    # Progress is told when a slab is opened, too; of what is told of at least all answers but one have come.
    assert came > 0 or answers == 1
    for series in EARLY_SERIES:
        for day in store.days(series):
            assert store.read_day(series, day) is not None
        for slab in plan_slabs(series, Span(*EARLY_SPAN)):
            with store.lock(slab):
                assert read_tree(Path(chosen.root) / "_tmp") == {}
    paid = len(server.asked)
    report = fill(chosen, EARLY_SERIES, *EARLY_SPAN)
    assert report.failures == ()
    assert len(server.asked) - paid == report.requests
    assert paid == 0 or report.requests < 2 * 5 + 1
    undisturbed = settings(server.url, root=str(tmp_path / "undisturbed"))
    fill(undisturbed, EARLY_SERIES, *EARLY_SPAN)
    assert dataset(chosen) == dataset(undisturbed)


def test_what_is_on_its_way_when_a_run_is_interrupted_is_taken_in(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    """It is paid for: the second answer comes only after the interrupt."""
    second, interrupted = threading.Event(), threading.Event()

    def answer(asked: Asked) -> Iterator[bytes]:
        if len(server.asked) == 2:
            second.set()
            interrupted.wait(10)
        yield honest(asked)

    def interrupt(progress: Progress) -> None:
        if progress.windows_done == 1:
            assert second.wait(10)
            interrupted.set()
            raise KeyboardInterrupt

    server = upstream(answer)
    chosen = settings(server.url, concurrency=1)
    with pytest.raises(KeyboardInterrupt):
        fill(chosen, BTC, TODAY - 3 * DAY, TODAY, on_progress=interrupt)
    assert known(chosen, BTC) == Spans.of([(TODAY - 3 * DAY, TODAY - 3 * DAY + 2000 * MINUTE)])
    assert len(server.asked) == 2


def test_a_run_that_is_stopped_writes_what_had_arrived(upstream: MakeUpstream, settings: MakeSettings) -> None:
    """The third request never ends; the first two have come, and the end is asked for by another thread."""
    stop = Stop()
    third = threading.Event()

    def answer(asked: Asked) -> Iterable[bytes]:
        if len(server.asked) < 3:
            yield honest(asked)
        else:
            third.set()
            server.gone.wait()

    server = upstream(answer)
    chosen = settings(server.url, concurrency=1)
    seen: list[int] = []

    def end() -> None:
        third.wait(10)
        while not seen or seen[-1] < 2:
            time.sleep(0.001)
        stop.set()

    threading.Thread(target=end).start()
    with pytest.raises(Stopped):
        fill(
            chosen,
            BTC,
            TODAY - 3 * DAY,
            TODAY,
            stop=stop,
            on_progress=lambda progress: seen.append(progress.windows_done),
        )
    assert known(chosen, BTC) == Spans.of([(TODAY - 3 * DAY, TODAY - 3 * DAY + 2000 * MINUTE)])
    for slab in plan_slabs(BTC, Span(TODAY - 3 * DAY, TODAY)):
        with Store(chosen.root).lock(slab):
            """It is free."""


def test_a_stop_ends_a_wait_for_the_budget(upstream: MakeUpstream, settings: MakeSettings) -> None:
    stop = Stop()
    server = upstream(honest)
    chosen = settings(server.url, burst=5, weight_per_minute=1)
    began = time.monotonic()

    def stop_at_the_first(progress: Progress) -> None:
        if progress.windows_done:
            stop.set()

    with pytest.raises(Stopped):
        fill(chosen, BTC, TODAY - 3 * DAY, TODAY, stop=stop, on_progress=stop_at_the_first)
    assert time.monotonic() - began < 5
    assert known(chosen, BTC) == Spans.of([(TODAY - 3 * DAY, TODAY - 3 * DAY + 1000 * MINUTE)])


def test_a_stop_ends_a_wait_for_a_lock(upstream: MakeUpstream, settings: MakeSettings) -> None:
    chosen, stop = settings(upstream(honest).url), Stop()
    (slab,) = plan_slabs(BTC, Span(YESTERDAY, TODAY))
    with Store(chosen.root).lock(slab):
        threading.Timer(0.1, stop.set).start()
        with pytest.raises(Stopped):
            fill(chosen, BTC, YESTERDAY, TODAY, stop=stop)


def test_an_error_of_the_caller_s_own_keeps_what_came(upstream: MakeUpstream, settings: MakeSettings) -> None:
    def fail(progress: Progress) -> None:
        if progress.windows_done == 2:
            raise ZeroDivisionError

    chosen = settings(upstream(honest).url, concurrency=1)
    with pytest.raises(ZeroDivisionError):
        fill(chosen, BTC, TODAY - 3 * DAY, TODAY, on_progress=fail)
    assert known(chosen, BTC).seconds >= 2000 * MINUTE


@pytest.mark.parametrize("how", ["finished", "refused", "interrupted"])
def test_no_thread_outlives_its_run(upstream: MakeUpstream, settings: MakeSettings, how: str) -> None:
    before = set(threading.enumerate())
    server = upstream(lambda asked: http(401) if how == "refused" else honest(asked))
    chosen = settings(server.url, concurrency=8)
    try:
        # At this depth four answers fill the memory that is allowed: the others wait for room.
        on_progress = interrupt_after(5) if how == "interrupted" else None
        fill(chosen, Series("BTC", depth=1500), TODAY - 9 * DAY, TODAY, on_progress=on_progress)
    except (KeyRefusedError, KeyboardInterrupt):
        assert how != "finished"
    left = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("heatpipe-fetch")]
    for thread in left:
        thread.join(3)
    assert [thread.name for thread in left if thread.is_alive()] == []


# --- what is told meanwhile ---------------------------------------------------------------------------------------


def test_progress_adds_up_to_the_report(upstream: MakeUpstream, settings: MakeSettings) -> None:
    told: list[Progress] = []
    server = upstream(lambda asked: http(504) if len(asked.starts) == 1000 else honest(asked))
    report = fill(settings(server.url), EARLY_SERIES, *EARLY_SPAN, on_progress=told.append)
    assert (told[-1].windows_done, told[-1].weight_left) == (told[-1].windows, 0)
    assert told[-1].done == report
    done = [progress.windows_done for progress in told]
    assert done == sorted(done)


def test_what_a_coin_that_is_refused_would_have_cost_is_no_longer_ahead(
    upstream: MakeUpstream, settings: MakeSettings
) -> None:
    server = upstream(lambda asked: http(400) if asked.params["coin"] == "GONE" else honest(asked))
    span = Span(TODAY - 300 * DAY, TODAY)
    gone, other = (Series(coin, "HOUR", depth=2) for coin in ("GONE", "BTC"))
    requests = sum(plan_slab(slab, span, Spans()).requests for slab in plan_slabs(other, span))
    told: list[Progress] = []
    fill(settings(server.url, concurrency=1), [gone, other], *span, on_progress=told.append)
    assert told[0].windows == 2 * requests
    refused = next(progress for progress in told if progress.windows_done)
    assert refused.windows <= requests + 2  # what was refused, and what was on its way then
    assert all(progress.weight_left == 5 * (progress.windows - progress.windows_done) >= 0 for progress in told)
    assert (told[-1].windows_done, told[-1].weight_left) == (told[-1].windows, 0)


def test_days_are_written_once_each(upstream: MakeUpstream, settings: MakeSettings) -> None:
    report = fill(settings(upstream(honest).url), BTC, TODAY - 4 * DAY, TODAY)
    assert report.days == len(days_of(Span(TODAY - 4 * DAY, TODAY)))
    assert report.points == 4 * 1440


def test_a_market_of_another_seed_is_another_dataset(
    make_sandbox: Callable[..., Sandbox], settings: MakeSettings
) -> None:
    """The comparison with the market can fail."""
    market = Market(7)
    chosen = settings(make_sandbox(market=market).url)
    span = (YESTERDAY, YESTERDAY + HOUR)
    fill(chosen, BTC, *span)
    assert bits(by_pyarrow(chosen.root, BTC)) == bits(expect_rows(BTC, span, market=market))
    assert bits(by_pyarrow(chosen.root, BTC)) != bits(expect_rows(BTC, span))

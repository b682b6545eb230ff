"""The LazyFrame over a dataset on disk: the right series, the right types, no file too many."""

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import heatpipe
from heatpipe.errors import ConfigError, HeatpipeError
from heatpipe.frame import SCHEMA, scan
from heatpipe.layout import Day
from heatpipe.model import Coverage, Series, Snapshots, Span, Spans
from heatpipe.plan import plan_slabs
from heatpipe.store import Store
from tests.conftest import DAY, HOUR, TODAY
from tests.test_store import make_day

NUMBER = TODAY // DAY
BTC = Series("BTC")
ODD_ROOTS = [
    "with a space",
    "env=prod",
    "coin=DOGE",
    "date=2020-01-01",
    "brackets [a-z]",
    "stars * and ?",
    "{a,b}",
    'it\'s "quoted"',
    "per%20cent",
    "ünï",
    "back\\slash",
    "#hash",
    "a:b",
]


def put(root: str | Path, *days: Day) -> None:
    for day in days:
        span = Span(day.number * DAY, (day.number + 1) * DAY)
        Store(str(root)).write_day(day, plan_slabs(day.series, span)[0])


def day_of(series: Series, number: int = NUMBER, minutes: int = 60) -> Day:
    return make_day(minutes, series=series, number=number, levels=2)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def make_tree(root: str | Path, names: list[str]) -> None:
    """Make a folder with files, and with folders where a name ends with a slash."""
    for name in ["./", *names]:
        path = Path(root) / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(b"PAR1 not at all PAR1")


NO_DATASET = {
    "nowhere": ("No such file", None),
    "a file": ("Not a directory", []),
    "somebody else's": ("no folder liquidations/", ["notes.txt", "_tmp/"]),
    "the table itself": ("no folder liquidations/", ["unit=coin/depth=1500/"]),
    "a file for the table": ("liquidations is no folder", ["liquidations"]),
}
NOT_LOCAL = [
    "s3://bucket/data",
    "gs://bucket",
    "az://bucket/x",
    "file:///data",
    "https://example.com/data",
    "s3:/bucket",
]


def make_no_dataset(root: Path, kind: str) -> None:
    names = NO_DATASET[kind][1]
    if kind == "a file":
        root.write_text("mine")
    elif names is not None:
        make_tree(root, names)


@pytest.mark.parametrize("kind", NO_DATASET)
def test_what_is_no_dataset_is_told_with_its_path(tmp_path: Path, kind: str) -> None:
    make_no_dataset(tmp_path / "mine", kind)
    with pytest.raises(HeatpipeError, match=f"{tmp_path}/mine.*{NO_DATASET[kind][0]}") as raised:
        scan(str(tmp_path / "mine"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("root", [*NOT_LOCAL, Path("s3://bucket/data"), "", b"data", 7])
def test_what_is_no_local_folder_is_refused(root: Any) -> None:
    with pytest.raises(HeatpipeError, match=r"^root: .*(only local folders are supported|is not a path)$"):
        scan(root)


def test_the_columns_are_the_documented_ones(root: str) -> None:
    put(root, day_of(BTC))
    frame = scan(root)
    assert frame.collect_schema() == SCHEMA
    assert [(name, str(kind)) for name, kind in SCHEMA.items()] == [
        ("timestamp", "Datetime(time_unit='us', time_zone='UTC')"),
        ("price", "Float64"),
        ("volume", "Float64"),
        ("unit", "String"),
        ("depth", "Int64"),
        ("interval", "String"),
        ("coin", "String"),
        ("date", "Date"),
    ]
    collected = frame.collect()
    assert collected.schema == SCHEMA
    assert collected.row(0)[3:] == ("coin", 1500, "MINUTE", "BTC", date(2026, 3, 31))


def test_the_rows_are_those_on_disk_in_order(root: str) -> None:
    days = [day_of(BTC, NUMBER + shift) for shift in (-1, 0)]
    put(root, *days)
    whole = Snapshots.concatenate([day.snapshots for day in days])
    frame = scan(root).collect()
    assert frame["timestamp"].to_physical().to_list() == whole.row_timestamps().tolist()
    assert frame["price"].to_numpy().tobytes() == whole.price.tobytes()
    assert frame["volume"].to_numpy().tobytes() == whole.volume.tobytes()


@pytest.mark.parametrize("there", [[], ["_tmp/", "_locks/BTC.lock"], [".DS_Store"], ["liquidations/"]])
def test_an_empty_dataset_is_an_empty_frame(root: str, there: list[str]) -> None:
    make_tree(root, there)
    frame = scan(root, coin="BTC", start="2026-03-01")
    assert frame.collect_schema() == SCHEMA
    assert frame.collect().height == 0


def test_days_without_rows_are_an_empty_frame(root: str) -> None:
    put(root, Day(BTC, NUMBER, Snapshots(), Coverage(Spans.of([(TODAY, TODAY + HOUR)]))))
    assert scan(root).collect().schema == SCHEMA
    assert scan(root).collect().height == 0


def test_a_folder_that_never_got_its_file_is_passed_over(root: str) -> None:
    """What a process leaves that is killed between making the folder and moving the file there."""
    folder = Path(root) / "liquidations/unit=coin/depth=1500/interval=MINUTE/coin=BTC/date=2026-03-30"
    folder.mkdir(parents=True)
    assert scan(root).collect().height == 0
    put(root, day_of(BTC))
    assert scan(root).collect().height == 120


@pytest.mark.parametrize(
    ("start", "end", "rows"),
    [
        (None, None, 3 * 120),
        ("2026-03-31", None, 120),
        (None, "2026-03-31", 240),
        ("2026-03-30", "2026-03-31", 120),
        (date(2026, 3, 30), date(2026, 3, 31), 120),
        ("2026-03-31T00:10:00Z", "2026-03-31T00:20:00Z", 20),
        ("2026-03-31T00:10:00", "2026-03-31T00:20:00", 20),
        ("2026-03-31T02:10:00+02:00", "2026-03-31T02:20:00+02:00", 20),
        (datetime(2026, 3, 31, 0, 10, tzinfo=UTC), datetime(2026, 3, 31, 0, 10, 1, tzinfo=UTC), 2),
        (TODAY + 600, TODAY + 601, 2),
        (TODAY + 601, TODAY + 660, 0),
        (np.int64(TODAY + 600), np.datetime64(TODAY + 601, "s"), 2),
        (TODAY + 600.000001, TODAY + 660.5, 2),
        (np.datetime64(f"{date(2026, 3, 31)}T00:10:00.000000001", "ns"), f"{date(2026, 3, 31)}T00:11:00.000001", 2),
        ("2026-03-29T23:00", "2026-03-30T00:00:30", 2),
        ("2026-03-31", "2026-03-31", 0),
        ("2027-01-01", None, 0),
    ],
)
def test_a_span_is_half_open_and_in_utc(root: str, start: Any, end: Any, rows: int) -> None:
    put(root, *(day_of(BTC, NUMBER + shift) for shift in (-2, -1, 0)))
    assert scan(root, start=start, end=end).collect().height == rows


def test_a_bound_that_is_no_instant_is_named(root: str) -> None:
    put(root, day_of(BTC))
    with pytest.raises(ConfigError, match="start: 'yesterday'"):
        scan(root, start="yesterday")
    with pytest.raises(ConfigError, match="end: 'now'"):
        scan(root, end="now")
    with pytest.raises(ConfigError, match="start: a number as a time is Unix seconds, not milliseconds"):
        scan(root, start=TODAY * 1000)


# --- which series -------------------------------------------------------------------------------------------------


def test_coins_are_chosen_by_name(root: str) -> None:
    put(root, *(day_of(Series(coin)) for coin in ("BTC", "ETH", "SOL")))
    assert scan(root).collect()["coin"].unique().sort().to_list() == ["BTC", "ETH", "SOL"]
    assert scan(root, "ETH").collect()["coin"].unique().to_list() == ["ETH"]
    assert scan(root, ["SOL", "BTC"]).collect()["coin"].unique().sort().to_list() == ["BTC", "SOL"]


@pytest.mark.parametrize(
    ("other", "choices"),
    [
        (Series("BTC", unit="usd"), "unit='coin', unit='usd'"),
        (Series("ETH", interval="HOUR"), "interval='HOUR', interval='MINUTE'"),
        (Series("BTC", depth=3000), "depth=1500, depth=3000"),
    ],
)
def test_what_is_ambiguous_must_be_chosen(root: str, other: Series, choices: str) -> None:
    put(root, day_of(BTC), day_of(other))
    with pytest.raises(ConfigError, match=choices):
        scan(root)
    rows = scan(root, other.coin, interval=other.interval, unit=other.unit, depth=other.depth).collect()
    assert rows.height == 120
    assert rows.select("unit", "depth", "interval", "coin").unique().rows() == [
        (other.unit, other.depth, other.interval, other.coin)
    ]


def test_what_is_chosen_by_the_coin_is_not_ambiguous(root: str) -> None:
    put(root, day_of(BTC), day_of(Series("ETH", "HOUR"), minutes=120))
    assert scan(root, "BTC").collect()["interval"].unique().to_list() == ["MINUTE"]


def test_a_coin_that_was_asked_for_is_never_left_out_in_silence(root: str) -> None:
    """ETH is there by the hour only: who asks for both by the minute must not take the one for the two."""
    put(root, day_of(BTC), day_of(Series("ETH", "HOUR")))
    with pytest.raises(ConfigError, match="ETH"):
        scan(root, ["BTC", "ETH"], interval="MINUTE")


@pytest.mark.parametrize(
    ("choice", "nearest"),
    [
        ({"coin": "BTCC"}, "no coin 'BTCC' in the dataset; there is BTC"),
        ({"coin": "btc"}, "there is BTC"),
        ({"coin": "PEPE"}, "there is kPEPE"),
        ({"coin": "ZZZ"}, "there is BTC, SOL, kPEPE"),
        ({"coin": ["BTC", "SOLX"]}, "no coin 'SOLX' in the dataset; there is SOL"),
        ({"coin": []}, "empty"),
        ({"interval": "HOUR"}, "no interval 'HOUR' in the dataset; there is MINUTE"),
        ({"unit": "usd"}, "no unit 'usd' in the dataset; there is coin"),
        ({"depth": 20}, "no depth 20 in the dataset; there is 1500"),
        ({"depth": "1500"}, "no depth '1500' in the dataset; there is 1500"),
    ],
)
def test_what_is_not_there_is_answered_with_the_nearest_that_is(
    root: str, choice: dict[str, Any], nearest: str
) -> None:
    put(root, *(day_of(Series(coin)) for coin in ("BTC", "kPEPE", "SOL")))
    with pytest.raises(ConfigError, match=nearest):
        scan(root, **choice)


@pytest.mark.parametrize("coin", ["PURR/USDC", "@107", "xyz:SILVER", "../x", "a=b", "007", "NULL", "1e5", "true"])
def test_a_coin_is_text_whatever_it_looks_like(root: str, coin: str) -> None:
    put(root, day_of(Series(coin)), day_of(BTC))
    frame = scan(root, coin).collect()
    assert frame["coin"].to_list() == [coin] * 120
    assert scan(root).filter(pl.col("coin") == coin).collect().height == 120


@pytest.mark.parametrize("name", ODD_ROOTS)
def test_a_root_may_be_called_anything(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, day_of(BTC))
    put(tmp_path / "brackets a", day_of(Series("WRONG")))
    frame = scan(str(tmp_path / name)).collect()
    assert frame.schema == SCHEMA
    assert set(frame["coin"]) == {"BTC"}
    assert set(frame["date"]) == {date(2026, 3, 31)}


def test_a_root_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "data", day_of(BTC))
    monkeypatch.chdir(tmp_path)
    assert heatpipe.scan().collect().height == 120
    assert heatpipe.scan("./data/").collect().height == 120


# --- which files --------------------------------------------------------------------------------------------------


def damage(root: str, series: Series, number: int) -> None:
    Store(root)._path(series, number).write_bytes(b"PAR1 not at all PAR1")


ASKED = {
    "a day": lambda root: scan(root, "BTC", "2026-03-30", "2026-03-30T12:00", unit="coin"),
    "a day by its date": lambda root: scan(root, "BTC", unit="coin").filter(pl.col("date") == date(2026, 3, 30)),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize(
    ("series", "shift"),
    [(BTC, 0), (BTC, -2), (Series("ETH"), -1), (Series("AAA"), -1), (Series("BTC", unit="usd"), -1)],
    ids=["the day after", "the day before", "a coin behind", "a coin before", "the other unit"],
)
def test_only_the_files_that_are_asked_for_are_opened(
    root: str, ask: Callable[[str], pl.LazyFrame], series: Series, shift: int
) -> None:
    """The others are not even Parquet."""
    for each in (BTC, Series("ETH"), Series("AAA"), Series("BTC", unit="usd")):
        put(root, *(day_of(each, NUMBER + number) for number in (-2, -1, 0)))
    damage(root, series, NUMBER + shift)
    assert ask(root).collect().height == 120


@pytest.mark.parametrize("name", ["data", "env=prod"])
@pytest.mark.parametrize(("minutes", "more"), [(60, 90), (90, 60), (60, 1400)], ids=["grown", "shrunk", "many more"])
def test_a_frame_from_before_an_update_reads_its_days_as_they_are_now(
    tmp_path: Path, name: str, minutes: int, more: int
) -> None:
    """A notebook keeps its frame while the next day comes in, and the last one changes."""
    root = str(tmp_path / name)
    put(root, day_of(BTC, NUMBER - 1), day_of(BTC, minutes=minutes))
    frame = scan(root)
    assert frame.collect().height == 120 + 2 * minutes
    put(root, day_of(BTC, minutes=more), day_of(BTC, NUMBER + 1))
    assert frame.collect().equals(scan(root, end="2026-04-01").collect())
    assert frame.filter(pl.col("price") < 15).collect().height == 60 + more
    assert scan(root).collect().height == 240 + 2 * more


COIN = "liquidations/unit=coin/depth=1500/interval=MINUTE/coin=BTC"
STRANGERS = [
    *(f"{COIN}/date=2026-03-31/{name}" for name in (
        "part-0.sync-conflict-20260928-101112-ABCDEFG.parquet",
        "part-0 (1).parquet",
        "part-0 (conflicted copy 2026-09-28).parquet",
        "part-1.parquet",
        "part-0.parquet.tmp",
        "._part-0.parquet",
        ".part-0.parquet.Xy12",
        ".~tmp~/part-0.parquet",
        ".nfs000000000012345600000001",
        ".DS_Store",
        "hour=1/part-0.parquet",
    )),
    *(f"{COIN}/{name}/part-0.parquet" for name in (
        "date=2026-3-31",
        "date=20260331",
        "date=2026-03-31 (1)",
        "date=2026-03-31.sync-conflict-20260928",
        "date=2026-13-45",
        "date=2026-02-30",
        "date=0000-01-01",
        "date=2026-W14-2",
        "date=2026%2D03%2D31",
        "date=",
        "date=__HIVE_DEFAULT_PARTITION__",
        "day=2026-03-31",
        ".date=2026-03-31",
        ".stversions",
    )),
    f"{COIN}/.DS_Store",
    f"{COIN}/notes.txt",
    f"{COIN}/part-0.parquet",
    *(f"{COIN.replace(old, new)}/date=2026-03-31/part-0.parquet" for old, new in (
        ("coin=BTC", "coin=BTC (1)"),
        ("coin=BTC", "coin=%42TC"),
        ("coin=BTC", "coin=PURR%2fUSDC"),
        ("coin=BTC", "coin="),
        ("coin=BTC", "BTC"),
        ("depth=1500", "depth=01500"),
        ("depth=1500", "depth=0"),
        ("depth=1500", "depth=1500.0"),
        ("interval=MINUTE", "interval=minute"),
        ("interval=MINUTE", "interval=WEEK"),
        ("unit=coin", "unit=coin (1)"),
        ("unit=coin", "unit=COIN"),
    )),
    "liquidations/.DS_Store",
    "liquidations/_SUCCESS",
    "liquidations/part-0.parquet",
]  # fmt: skip


def put_foreign(root: str | Path, name: str, *, copy: bool) -> None:
    """Put a sound copy of the day, or what is no Parquet file at all, where nothing of that name belongs."""
    make_tree(root, [name])
    if copy:
        (Path(root) / name).write_bytes((Path(root) / COIN / "date=2026-03-31/part-0.parquet").read_bytes())


@pytest.mark.parametrize("copy", [True, False], ids=["copy", "garbage"])
@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("folder", ["data", "env=prod"])
def test_what_is_not_the_datasets_own_is_not_read(tmp_path: Path, folder: str, name: str, copy: bool) -> None:
    root = str(tmp_path / folder)
    put(root, day_of(BTC), day_of(BTC, NUMBER - 1), day_of(Series("PURR/USDC")))
    before = scan(root).collect()
    put_foreign(root, name, copy=copy)
    assert scan(root).collect().equals(before)
    assert scan(root, "BTC", "2026-03-31").collect().height == 120
    assert scan(root).filter(pl.col("date") == date(2026, 3, 31), pl.col("coin") == "BTC").collect().height == 120


def test_only_regular_files_are_read(root: str) -> None:
    put(root, day_of(BTC))
    make_tree(root, [f"{COIN}/date=2026-03-29/part-0.parquet/part-0.parquet", f"{COIN}/date=2026-03-28/"])
    os.mkfifo(f"{root}/{COIN}/date=2026-03-28/part-0.parquet")
    assert scan(root).collect().height == 120


def test_the_table_may_be_a_link_to_another_disk(root: str, tmp_path: Path) -> None:
    put(tmp_path / "other", day_of(BTC))
    make_tree(root, [])
    (Path(root) / "liquidations").symlink_to(tmp_path / "other" / "liquidations")
    assert scan(root).collect().height == 120


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_name_means_its_bytes_whatever_the_locale(tmp_path: Path, encoding: str) -> None:
    """One is UTF-8, the other is none: polars cannot open it, and that is told in one line."""
    root = os.fsencode(tmp_path / "data-") + "börse".encode(encoding)
    put(os.fsdecode(root), day_of(BTC))
    program = "import os, sys, heatpipe; print(heatpipe.scan(sys.argv[1]).collect().height)"
    for locale in ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONUTF8": "1"}):
        ended = subprocess.run(
            [sys.executable, "-c", program, root], env=os.environ | locale, capture_output=True, check=False, timeout=60
        )
        if encoding == "utf-8":
            assert (ended.stdout, ended.stderr) == (b"120\n", b"")
        else:
            assert b"heatpipe.errors.DatasetError: " in ended.stderr
            assert b"is no name in UTF-8" in ended.stderr.splitlines()[-1]

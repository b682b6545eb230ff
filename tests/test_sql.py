"""The DuckDB view over a dataset on disk."""

import os
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import pytest

from heatpipe.errors import ConfigError, HeatpipeError
from heatpipe.layout import Day
from heatpipe.model import Coverage, Series, Snapshots, Spans
from heatpipe.sql import COLUMNS, connect
from heatpipe.store import Store
from tests.conftest import HOUR, TODAY
from tests.test_frame import (
    BTC,
    COIN,
    NO_DATASET,
    NOT_LOCAL,
    NUMBER,
    ODD_ROOTS,
    STRANGERS,
    damage,
    day_of,
    make_no_dataset,
    make_tree,
    put,
    put_foreign,
)

DESCRIBED = [
    ("timestamp", "TIMESTAMP WITH TIME ZONE"),
    ("price", "DOUBLE"),
    ("volume", "DOUBLE"),
    ("unit", "VARCHAR"),
    ("depth", "BIGINT"),
    ("interval", "VARCHAR"),
    ("coin", "VARCHAR"),
    ("date", "DATE"),
]


def ask(root: str | Path, query: str) -> list[tuple[object, ...]]:
    with connect(str(root)) as connection:
        return connection.execute(query).fetchall()


def describe(root: str | Path) -> list[tuple[object, ...]]:
    return [row[:2] for row in ask(root, "DESCRIBE liquidations")]


def test_the_columns_are_the_documented_ones(tmp_path: Path) -> None:
    put(tmp_path, day_of(BTC))
    assert describe(tmp_path) == DESCRIBED
    assert [name for name, _ in DESCRIBED] == list(COLUMNS)


@pytest.mark.parametrize("kind", ["bare", "a folder that never got its file", "foreign"])
def test_an_empty_dataset_is_an_empty_view_with_the_same_columns(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    if kind == "a folder that never got its file":
        (root / "liquidations/unit=coin/depth=1500/interval=MINUTE/coin=BTC/date=2026-03-30").mkdir(parents=True)
    if kind == "foreign":
        (root / "liquidations/notes").mkdir(parents=True)
    assert describe(root) == DESCRIBED
    assert ask(root, "SELECT count(*) FROM liquidations") == [(0,)]


@pytest.mark.parametrize("kind", NO_DATASET)
def test_what_is_no_dataset_is_told_with_its_path(tmp_path: Path, kind: str) -> None:
    make_no_dataset(tmp_path / "mine", kind)
    with pytest.raises(HeatpipeError, match=f"{tmp_path}/mine.*{NO_DATASET[kind][0]}"):
        connect(str(tmp_path / "mine"))


@pytest.mark.parametrize("root", NOT_LOCAL)
def test_what_is_no_local_folder_is_refused(root: str) -> None:
    with pytest.raises(HeatpipeError, match=r"^root: .*only local folders are supported$"):
        connect(root)


def test_a_view_over_days_without_rows_is_empty(tmp_path: Path) -> None:
    put(tmp_path, Day(BTC, NUMBER, Snapshots(), Coverage(Spans.of([(TODAY, TODAY + HOUR)]))))
    assert describe(tmp_path) == DESCRIBED
    assert ask(tmp_path, "SELECT count(*) FROM liquidations") == [(0,)]


def test_every_series_is_in_the_view(tmp_path: Path) -> None:
    put(tmp_path, day_of(BTC), day_of(Series("BTC", unit="usd")), day_of(Series("ETH", "HOUR", depth=20)))
    assert ask(tmp_path, "SELECT DISTINCT unit, depth, interval, coin, date FROM liquidations ORDER BY unit, coin") == [
        ("coin", 1500, "MINUTE", "BTC", date(2026, 3, 31)),
        ("coin", 20, "HOUR", "ETH", date(2026, 3, 31)),
        ("usd", 1500, "MINUTE", "BTC", date(2026, 3, 31)),
    ]


@pytest.mark.parametrize("coin", ["PURR/USDC", "@107", "xyz:SILVER", "../x", "a=b", "007", "NULL", "1e5", "true", "'"])
def test_a_coin_is_text_whatever_it_looks_like(tmp_path: Path, coin: str) -> None:
    put(tmp_path, day_of(Series(coin)), day_of(BTC))
    with connect(str(tmp_path)) as connection:
        query = "SELECT count(*), any_value(coin) FROM liquidations WHERE coin = $1"
        assert connection.execute(query, [coin]).fetchall() == [(120, coin)]


KEYS = ("coin=DOGE", "date=2020-01-01", "back\\coin=DOGE")


@pytest.mark.parametrize("name", KEYS)
def test_a_root_that_would_be_taken_for_a_partition_is_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, day_of(BTC))
    with pytest.raises(ConfigError, match=name.removeprefix("back\\")):
        connect(str(tmp_path / name))


@pytest.mark.parametrize("name", ["back\\slash*", "\\[a]", "what\\?"])
def test_a_root_that_duckdb_cannot_open_is_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, day_of(BTC))
    with pytest.raises(ConfigError, match="its name has both"):
        connect(str(tmp_path / name))


@pytest.mark.parametrize("name", [*(name for name in ODD_ROOTS if name not in KEYS), 'it\'s \\ "50%" ünï', "end\\"])
def test_a_root_may_be_called_anything(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, day_of(BTC))
    put(tmp_path / "brackets a", day_of(Series("WRONG")))
    assert describe(tmp_path / name) == DESCRIBED
    assert ask(tmp_path / name, "SELECT DISTINCT coin, date FROM liquidations") == [("BTC", date(2026, 3, 31))]


def test_a_root_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "data", day_of(BTC))
    monkeypatch.chdir(tmp_path)
    assert ask("data", "SELECT count(*) FROM liquidations") == [(120,)]


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
def test_times_are_compared_and_shown_in_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    put(tmp_path, day_of(BTC))
    rows = ask(
        tmp_path,
        "SELECT DISTINCT timestamp, CAST(timestamp AS VARCHAR) FROM liquidations "
        "WHERE timestamp >= '2026-03-31 00:10:00' AND timestamp < '2026-03-31 00:11:00'",
    )
    ((stamp, text),) = rows
    assert stamp == datetime(2026, 3, 31, 0, 10, tzinfo=UTC)
    assert text == "2026-03-31 00:10:00+00"


def test_a_cursor_of_the_connection_is_in_utc_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads use cursors, and each is a session of its own."""
    put(tmp_path, day_of(BTC))
    with connect(str(tmp_path)) as connection, connection.cursor() as cursor:
        assert cursor.execute("SELECT current_setting('TimeZone')").fetchall() == [("UTC",)]


@pytest.mark.parametrize(
    ("series", "shift"),
    [(BTC, 0), (BTC, -2), (Series("ETH"), -1), (Series("AAA"), -1), (Series("BTC", unit="usd"), -1)],
    ids=["the day after", "the day before", "a coin behind", "a coin before", "the other unit"],
)
def test_only_the_files_that_are_asked_for_are_opened(tmp_path: Path, series: Series, shift: int) -> None:
    """The others are not even Parquet."""
    for each in (BTC, Series("ETH"), Series("AAA"), Series("BTC", unit="usd")):
        put(tmp_path, *(day_of(each, NUMBER + number) for number in (-2, -1, 0)))
    damage(str(tmp_path), series, NUMBER + shift)
    query = "SELECT count(*) FROM liquidations WHERE coin = 'BTC' AND unit = 'coin' AND date = '2026-03-30'"
    assert ask(tmp_path, query) == [(120,)]


def test_a_view_shows_what_has_been_written_since(tmp_path: Path) -> None:
    put(tmp_path, day_of(BTC, NUMBER - 1), day_of(BTC, minutes=60))
    with connect(str(tmp_path)) as connection:
        count = "SELECT count(*), sum(volume) FROM liquidations"
        before = connection.execute(count).fetchall()
        put(tmp_path, day_of(BTC, minutes=90), day_of(Series("ETH"), minutes=30))
        after = connection.execute(count).fetchall()
    assert (before[0][0], after[0][0]) == (240, 360)
    rows = [Store(str(tmp_path)).read_day(s, n) for s, n in ((BTC, NUMBER - 1), (BTC, NUMBER), (Series("ETH"), NUMBER))]
    assert after[0][1] == pytest.approx(sum(day.snapshots.volume.sum() for day in rows if day is not None))


@pytest.mark.parametrize("copy", [True, False], ids=["copy", "garbage"])
@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_not_the_datasets_own_is_not_read(tmp_path: Path, name: str, copy: bool) -> None:
    put(tmp_path, day_of(BTC), day_of(BTC, NUMBER - 1), day_of(Series("PURR/USDC")))
    rows = "SELECT count(*), round(sum(volume), 6), count(DISTINCT date) FROM liquidations"
    chosen = f"{rows} WHERE coin = 'BTC' AND date = '2026-03-31'"
    before = [ask(tmp_path, query) for query in (rows, chosen)]
    put_foreign(tmp_path, name, copy=copy)
    assert [ask(tmp_path, query) for query in (rows, chosen)] == before


ODD_FOLDERS = [
    "date=2026-3-31",
    "date=2026-03-31 (1)",
    "date=2026-03-31.sync-conflict-20260928",
    "date=",
    ".date=2026-3-31",
]


@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_nor_is_what_came_since(tmp_path: Path, name: str) -> None:
    put(tmp_path, day_of(BTC))
    with connect(str(tmp_path)) as connection:
        put_foreign(tmp_path, f"{COIN}/{name}/part-0.parquet", copy=True)
        assert connection.execute("SELECT count(*) FROM liquidations").fetchall() == [(120,)]


def test_only_the_files_that_are_asked_for_are_opened_beside_a_foreign_one(tmp_path: Path) -> None:
    put(tmp_path, *(day_of(BTC, NUMBER + number) for number in (-2, -1, 0)), day_of(Series("ETH"), NUMBER - 1))
    put_foreign(tmp_path, f"{COIN}/date=2026-13-45/part-0.parquet", copy=False)
    damage(str(tmp_path), BTC, NUMBER)
    damage(str(tmp_path), Series("ETH"), NUMBER - 1)
    query = "SELECT count(*) FROM liquidations WHERE coin = 'BTC' AND unit = 'coin' AND date = '2026-03-30'"
    assert ask(tmp_path, query) == [(120,)]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    put(tmp_path, day_of(BTC))
    make_tree(tmp_path, [f"{COIN}/date=2026-03-29/part-0.parquet/", f"{COIN}/date=2026-03-28/"])
    os.mkfifo(tmp_path / COIN / "date=2026-03-28/part-0.parquet")
    assert ask(tmp_path, "SELECT count(*) FROM liquidations") == [(120,)]


def test_the_table_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    put(tmp_path / "other", day_of(BTC))
    (tmp_path / "liquidations").symlink_to(tmp_path / "other" / "liquidations")
    assert ask(tmp_path, "SELECT count(*) FROM liquidations") == [(120,)]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_name_means_its_bytes_whatever_the_locale(tmp_path: Path, encoding: str) -> None:
    root = os.fsencode(tmp_path / "data-") + "börse".encode(encoding)
    put(os.fsdecode(root), day_of(BTC))
    program = (
        "import sys, heatpipe; con = heatpipe.connect(sys.argv[1]); "
        "print(con.sql('SELECT count(*) FROM liquidations').fetchall())"
    )
    for locale in ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONUTF8": "1"}):
        ended = subprocess.run(
            [sys.executable, "-c", program, root], env=os.environ | locale, capture_output=True, check=False, timeout=60
        )
        if encoding == "utf-8":
            assert (ended.stdout, ended.stderr) == (b"[(120,)]\n", b"")
        else:
            assert b"is no name in UTF-8" in ended.stderr.splitlines()[-1]


def test_the_connection_writes_nowhere(tmp_path: Path) -> None:
    put(tmp_path, day_of(BTC))
    with connect(str(tmp_path)) as connection, pytest.raises(duckdb.Error):
        connection.execute("DELETE FROM liquidations")

"""Coins that differ by case alone, on a file system that folds case: no coin ever takes another one's place.

The file system is a real one, mounted through FUSE in a namespace of its own; where that may not be, those tests are
skipped.
"""

import os
import shutil
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest

import heatpipe
from heatpipe.cli import app, run
from heatpipe.config import Settings, Target
from heatpipe.disk import Disk, other_spelling
from heatpipe.errors import ConfigError, DatasetError
from heatpipe.frame import scan_series
from heatpipe.heatmap import build_heatmap
from heatpipe.ingest import backfill, update
from heatpipe.layout import day_path, series_path
from heatpipe.model import Series, Span
from heatpipe.plan import plan_slabs
from heatpipe.report import Report
from heatpipe.status import take_stock
from heatpipe.store import Store
from heatpipe.survey import make_plan, make_update_plan
from heatpipe.verify import Choice, verify_files
from tests.conftest import (
    DAY,
    HOUR,
    NOW_S,
    TODAY,
    Asked,
    Clock,
    MakeSettings,
    MakeUpstream,
    Upstream,
    honest,
    read_tree,
)

HERE: Final = Path(__file__).parents[1]
YESTERDAY: Final = TODAY - DAY
LATER: Final = YESTERDAY + HOUR
SMALL, LARGE = (Series(coin, depth=2) for coin in ("kPEPE", "KPEPE"))
BOTH: Final = r"coin=KPEPE is coin=kPEPE on this disk"
PLACE: Final = day_path(SMALL, YESTERDAY // DAY)

# --- names alone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "names", "other"),
    [
        ("coin=KPEPE", ["coin=BTC", "coin=kPEPE"], "coin=kPEPE"),
        ("coin=kPEPE", ["coin=KPEPE", "coin=kPEPE"], None),
        ("coin=ETH", ["coin=BTC", "coin=kPEPE"], None),
        ("coin=PURR%2FUSDC", ["coin=PURR%2fUSDC"], "coin=PURR%2fUSDC"),
        ("liquidations", ["Liquidations"], "Liquidations"),
        ("börse", [unicodedata.normalize("NFD", "börse")], unicodedata.normalize("NFD", "börse")),
        ("BÖRSE", [unicodedata.normalize("NFD", "börse")], unicodedata.normalize("NFD", "börse")),
        ("STRASSE", ["straße"], "straße"),
        ("x", ["\udcff"], None),
        ("x", [], None),
    ],
)
def test_another_spelling_differs_in_case_or_in_the_form_of_unicode(
    name: str, names: list[str], other: str | None
) -> None:
    assert other_spelling(name, names) == other


def test_a_folder_is_listed_once_and_for_what_is_new_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no file system folds case, this stands for one: what is asked of the system, and no more."""
    listed: list[str] = []

    def listdir(path: Path) -> list[str]:
        listed.append(str(path))
        return [*names]

    names = [f"coin=C{number}" for number in range(100)]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "coin=c7").mkdir()  # found under its other spelling, as it were
    monkeypatch.setattr(os, "listdir", listdir)
    disk = Disk()
    assert [disk.spelling(tmp_path, name) for name in names] == names
    assert disk.spelling(tmp_path, "coin=ETH") is None
    assert listed == [str(tmp_path)]
    assert disk.spelling(tmp_path, "coin=c7") == "coin=C7"
    assert len(listed) == 2


def test_where_case_is_told_apart_both_coins_have_their_folder(upstream: MakeUpstream, settings: MakeSettings) -> None:
    chosen = settings(upstream(honest).url)
    assert fill(chosen, [SMALL, LARGE]).points == 120
    assert Store(chosen.root).all_series() == [LARGE, SMALL]


# --- on such a disk -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that folds case."""
    folder, mountpoint = (tmp_path_factory.mktemp(name) for name in ("folding", "mounted"))
    namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-r", "-m"]
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here, so no file system of a test's own")
    command = [*namespace, sys.executable, "-m", "tests.folding", str(folder), str(mountpoint)]
    with subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        if server.stdout.readline() != "ready\n":
            server.kill()
            pytest.skip(f"no file system may be mounted here: {server.stderr.read()[-200:]}")
        yield Path(f"/proc/{server.pid}/root{mountpoint}")
        server.kill()


@pytest.fixture
def root(disk: Path, request: pytest.FixtureRequest) -> Path:
    return disk / str(abs(hash(request.node.name)))


@pytest.fixture
def server(upstream: MakeUpstream) -> Upstream:
    return upstream(honest)


@pytest.fixture
def chosen(server: Upstream, settings: MakeSettings, root: Path) -> Settings:
    return settings(server.url, root=str(root))


@pytest.fixture
def stored(chosen: Settings, server: Upstream) -> Settings:
    """An hour of kPEPE, and nothing else."""
    assert fill(chosen, SMALL).points == 60
    server.asked.clear()
    return chosen


def fill(chosen: Settings, series: Series | list[Series], start: int = YESTERDAY, end: int = LATER) -> Report:
    return backfill(series, start, end, settings=chosen, clock=Clock())


def test_the_disk_folds_case_and_keeps_the_spelling(disk: Path) -> None:
    (disk / "Some" / "kPEPE").mkdir(parents=True)
    (disk / "sOME" / "KPEPE" / "x").write_text("mine")
    assert [path.name for path in (disk / "SOME").iterdir()] == ["kPEPE"]
    assert (disk / "some/kpepe/X").read_text() == "mine"


def test_a_coin_goes_on_under_its_own_spelling(stored: Settings, server: Upstream) -> None:
    assert fill(stored, SMALL, YESTERDAY, YESTERDAY + 3 * HOUR).points == 120
    assert update([SMALL], settings=stored, clock=Clock()).failures == ()
    assert verify_files(Store(stored.root)).problems == ()
    assert {asked.params["coin"] for asked in server.asked} == {"kPEPE"}


ASKING: Final[dict[str, Callable[[Settings], object]]] = {
    "backfill": lambda chosen: fill(chosen, LARGE),
    "another day": lambda chosen: fill(chosen, LARGE, TODAY, TODAY + HOUR),
    "both": lambda chosen: fill(chosen, [SMALL, LARGE], YESTERDAY, TODAY),
    "refetch": lambda chosen: backfill(LARGE, YESTERDAY, settings=chosen, refetch=True, clock=Clock()),
    "update": lambda chosen: update(LARGE, settings=chosen, clock=Clock()),
    "update from": lambda chosen: update(LARGE, YESTERDAY, settings=chosen, clock=Clock()),
    "plan": lambda chosen: make_plan([Target(LARGE, YESTERDAY, TODAY)], Store(chosen.root), chosen, NOW_S),
    "plan --update": lambda chosen: make_update_plan([Target(LARGE)], Store(chosen.root), chosen, NOW_S),
    "status": lambda chosen: take_stock(Store(chosen.root), [Target(LARGE)], chosen, NOW_S),
    "status of a span": lambda chosen: take_stock(Store(chosen.root), [Target(LARGE, YESTERDAY, TODAY)], chosen, NOW_S),
    "heatmap": lambda chosen: build_heatmap(chosen.root, LARGE, Span(YESTERDAY, TODAY)),
    "scan": lambda chosen: scan_series(Store(chosen.root), [LARGE]),
    "verify": lambda chosen: verify_files(Store(chosen.root), [Choice(LARGE)]),
    "footer": lambda chosen: Store(chosen.root).footer(LARGE, YESTERDAY // DAY),
    "a day": lambda chosen: Store(chosen.root).read_day(LARGE, YESTERDAY // DAY),
    "lock": lambda chosen: Store(chosen.root).lock(plan_slabs(LARGE, Span(YESTERDAY, TODAY))[0]).__enter__(),
}


@pytest.mark.parametrize("name", ASKING)
def test_a_coin_whose_folder_is_spelt_otherwise_is_refused_before_anything_is_asked(
    stored: Settings, server: Upstream, name: str
) -> None:
    before = read_tree(stored.root)
    with pytest.raises(DatasetError, match=BOTH) as refused:
        ASKING[name](stored)
    assert "\n" not in str(refused.value)
    assert str(Path(stored.root) / series_path(LARGE)) in str(refused.value)
    assert server.asked == []
    assert read_tree(stored.root) == before


def test_scan_names_the_coin_that_is_there(stored: Settings) -> None:
    with pytest.raises(ConfigError, match="no coin 'KPEPE' in the dataset; there is kPEPE"):
        heatpipe.scan(stored.root, coin="KPEPE")
    assert heatpipe.scan(stored.root, coin="kPEPE").collect().height == 120


SPAN: Final = ("--start", "2026-03-30", "--end", "2026-03-31")


@pytest.mark.parametrize(
    "command",
    [("plan",), ("plan", "--update"), ("backfill",), ("update",), ("status",), ("verify",), ("heatmap", "-o", "x.png")],
    ids=" ".join,
)
def test_the_command_line_says_so_in_one_line(
    stored: Settings,
    server: Upstream,
    command: Iterable[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    variables = {"KIYOTAKA_API_KEY": "k", "HEATPIPE_API_URL": server.url, "HEATPIPE_DATA": stored.root}
    for variable, value in (variables | {"HEATPIPE_HISTORY_DAYS": "0"}).items():
        monkeypatch.setenv(variable, value)
    code = run(app, [*command, "--coin", "KPEPE", "--depth", "2", *SPAN])
    said = capfd.readouterr()
    assert (code, said.out) == (1, "")
    (line,) = said.err.splitlines()
    assert "coin=KPEPE is coin=kPEPE on this disk" in line
    assert server.asked == []


@pytest.mark.parametrize("there", ["", "liquidations", "liquidations/unit=coin/depth=2/interval=MINUTE/coin=BTC"])
def test_two_coins_of_a_run_that_would_share_a_folder_are_refused_before_anything_is_asked(
    chosen: Settings, server: Upstream, there: str
) -> None:
    if there:
        (Path(chosen.root) / there).mkdir(parents=True)
    before = sorted(Path(chosen.root).rglob("*"))
    with pytest.raises(DatasetError, match=r"coin=kPEPE is coin=KPEPE on this disk"):
        fill(chosen, [SMALL, Series("BTC", depth=2), LARGE])
    assert server.asked == []
    assert sorted(Path(chosen.root).rglob("*")) == before
    assert Path(chosen.root).exists() == bool(there)


def test_a_coin_in_two_units_is_no_pair(chosen: Settings) -> None:
    usd = Series("KPEPE", "MINUTE", "usd", 2)
    assert fill(chosen, [SMALL, usd]).points == 120
    assert set(Store(chosen.root).all_series()) == {SMALL, usd}


def test_a_folder_that_another_run_makes_meanwhile_is_not_written_to(upstream: MakeUpstream, chosen: Settings) -> None:
    """Neither was there when the two began, in slabs apart; what the second one brings has no place here."""

    def meanwhile(asked: Asked) -> bytes:
        if asked.params["coin"] == "KPEPE":
            fill(chosen, SMALL, YESTERDAY - 30 * DAY, YESTERDAY - 29 * DAY)
            kept.update(read_tree(Path(chosen.root) / "liquidations"))
        return honest(asked)

    kept: dict[str, bytes] = {}
    server = upstream(meanwhile)
    slow = Settings(chosen.api_key, server.url, burst=10**9, root=chosen.root)
    with pytest.raises(DatasetError, match=BOTH):
        fill(slow, LARGE)
    assert len(kept) == 1
    assert read_tree(Path(chosen.root) / "liquidations") == kept
    assert read_tree(Path(chosen.root) / "_tmp") == {}


def test_who_waits_for_the_other_coin_is_refused_when_that_has_come(
    upstream: MakeUpstream, chosen: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """In one slab they have one lock on such a disk."""
    refused: list[str] = []

    def wait() -> None:
        try:
            fill(chosen, LARGE)
        except DatasetError as exc:
            refused.append(str(exc))

    def meanwhile(asked: Asked) -> bytes:
        assert asked.params["coin"] == "kPEPE"
        second.start()
        while second.is_alive() and not caplog.messages:
            second.join(0.01)
        return honest(asked)

    second = threading.Thread(target=wait)
    slow = Settings(chosen.api_key, upstream(meanwhile).url, burst=10**9, root=chosen.root)
    assert fill(slow, SMALL).points == 60
    second.join()
    assert "waiting: KPEPE MINUTE" in caplog.messages[0]
    (line,) = refused
    assert "coin=KPEPE is coin=kPEPE on this disk" in line


@pytest.mark.parametrize(
    "part", ["LIQUIDATIONS", "Unit=Coin", "Depth=2", "interval=Minute", "Coin=kPEPE", "Date=2026-03-30"]
)
def test_every_folder_on_the_way_has_its_own_spelling(stored: Settings, server: Upstream, part: str) -> None:
    path = next(path for path in (Path(stored.root) / PLACE).parents if path.name.lower() == part.lower())
    path.rename(path.with_name("elsewhere"))
    path.with_name("elsewhere").rename(path.with_name(part))
    for name in ("backfill", "plan", "status"):
        with pytest.raises(DatasetError, match=f"{path.name} is {part} on this disk"):
            OWN[name](stored)
    assert server.asked == []


OWN: Final[dict[str, Callable[[Settings], object]]] = {
    "backfill": lambda chosen: fill(chosen, SMALL),
    "plan": lambda chosen: make_plan([Target(SMALL, YESTERDAY, TODAY)], Store(chosen.root), chosen, NOW_S),
    "status": lambda chosen: take_stock(Store(chosen.root), [Target(SMALL, YESTERDAY, TODAY)], chosen, NOW_S),
}


def test_records_of_a_coin_that_is_spelt_otherwise_are_left_alone(chosen: Settings, server: Upstream) -> None:
    """Of the other coin nothing came, so that it has records, and no rows."""
    store, slab = Store(chosen.root), plan_slabs(SMALL, Span(YESTERDAY, TODAY))[0]
    store.quarantine(slab, Span(YESTERDAY, YESTERDAY + HOUR), {"reason": "never came"}, b"[]")
    before = read_tree(Path(chosen.root) / "_quarantine")
    for name in ("backfill", "status"):
        with pytest.raises(DatasetError, match=BOTH):
            ASKING[name](chosen)
    assert server.asked == []
    assert read_tree(Path(chosen.root) / "_quarantine") == before

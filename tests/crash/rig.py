"""Runs that die and runs that go on: the upstream, the dataset they start from, and what must hold after each death."""

import pickle
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from heatpipe import layout
from heatpipe.errors import HeatpipeError
from heatpipe.model import Coverage, Series, Span, Spans, day_span, days_of
from heatpipe.sandbox import Market, Options, Points, Tier, serve
from heatpipe.sandbox.app import Answered
from heatpipe.store import Store
from heatpipe.verify import verify_files
from tests.conftest import read_tree
from tests.crash.launcher import Job, Launcher, Operation, Order, Record

DAY: Final = 86_400
KEYS: Final = {"sandbox-key": Tier("enterprise", 10**9, 10**9, history_days=0)}
CONCURRENCY: Final = 2
WRITES_CUT: Final = 12

# Long closed, and by a tier without a history's end, so that the day on which a test runs makes no difference.
FIRST: Final = 1_780_272_000  # 2026-06-01
SPAN: Final = Span(FIRST, FIRST + 4 * DAY)
SERIES: Final = (Series("BTC", depth=3), Series("ETH", depth=3))
EXTENDED: Final = Span(FIRST + DAY + 6 * 3600, FIRST + DAY + 12 * 3600)
"""On disk when a run starts, of the first coin: a part of its second day, with holes on both sides."""


def command(*coins: str, start: str, end: str) -> list[str]:
    """Return what a user types."""
    chosen = [word for coin in coins for word in ("--coin", coin)]
    return ["backfill", *chosen, "--interval", "MINUTE", "--depth", "3", "--start", start, "--end", end]


BACKFILL: Final = command("BTC", "ETH", start="2026-06-01", end="2026-06-05")
EXTEND: Final = command("BTC", start="2026-06-02T06:00", end="2026-06-02T12:00")


class SwiftMarket(Market):
    """The market, a day of it computed once: dozens of runs ask for the same."""

    def snapshots(
        self, coin: str, interval_s: int, start_s: int, end_s: int, *, depth: int = 1500, usd: bool = False
    ) -> Points:
        days = [
            _day(Market(self.seed, self.gaps), coin, interval_s, day, depth, usd)
            for day in range(start_s // DAY, max(start_s // DAY + 1, -(-end_s // DAY)))
        ]
        stamp = np.concatenate([day.timestamp_us for day in days])
        levels = np.concatenate([day.levels for day in days])
        points = (stamp >= start_s * 1_000_000) & (stamp < end_s * 1_000_000)
        rows = np.repeat(points, levels)
        price = np.concatenate([day.price for day in days])[rows]
        volume = np.concatenate([day.volume for day in days])[rows]
        return Points(stamp[points], levels[points], price, volume)


@lru_cache(1024)
def _day(market: Market, coin: str, interval_s: int, day: int, depth: int, usd: bool) -> Points:
    return market.snapshots(coin, interval_s, day * DAY, (day + 1) * DAY, depth=depth, usd=usd)


# --- what must hold at any moment ---------------------------------------------------------------------------------


def check_sound(root: Path) -> None:
    """Every file below ``liquidations/`` is a whole day that its own footer vouches for; nothing else is there."""
    store = Store(str(root))
    problems = verify_files(store).problems
    assert not problems, str(problems)
    files = {path for path in (root / layout.TABLE).rglob("*") if not path.is_dir()}
    known = {store._path(series, day) for series in store.all_series() for day in store.days(series)}
    assert files == known
    for series in store.all_series():
        for day in store.days(series):
            assert store.read_day(series, day) is not None
    for path in files:
        check_version(path)


def check_version(path: Path) -> Coverage:
    """Read a day in one opening, as a stranger would; return what it covers."""
    with path.open("rb") as file:
        table = pq.ParquetFile(file, page_checksum_verification=True).read()
    assert table.schema.equals(layout.SCHEMA), path
    footer = layout.decode_footer(table.schema.metadata, str(path))
    rows = layout.decode_rows(table)
    stamps = rows.row_timestamps()
    assert layout.digest_rows(stamps, rows.price, rows.volume) == footer.digest, path
    assert (rows.rows, rows.points) == (footer.rows, footer.snapshots), path
    earlier = (stamps[:-1] < stamps[1:]) | ((stamps[:-1] == stamps[1:]) & (rows.price[:-1] < rows.price[1:]))
    assert earlier.all(), f"{path}: out of order or twice"
    held = Spans.of_intervals(rows.timestamp // 1_000_000, footer.series.interval_s)
    assert held == footer.coverage.present, f"{path}: rows for {held}, vouched for {footer.coverage.present}"
    return footer.coverage


@dataclass(slots=True)
class Reader:
    """Reads every day below a root again and again, each version of a file once, while others write.

    Parameters
    ----------
    root : Path
        The dataset's.

    Attributes
    ----------
    versions : int
        How many it has read.
    wrong : list of str
        What should not have been.
    """

    root: Path
    versions: int = 0
    wrong: list[str] = field(default_factory=list)
    _seen: dict[Path, tuple[tuple[int, int, int], Coverage]] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def reading(self) -> Iterator[Self]:
        """Read while the block lasts; what was wrong is raised at its end."""
        thread = threading.Thread(target=self._loop, name="reader")
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()
        assert not self.wrong, "\n".join(self.wrong)

    def _loop(self) -> None:
        while not self._over.wait(0.003):
            for path in {*(self.root / layout.TABLE).rglob("part-0.parquet"), *self._seen}:
                try:
                    self._look(path)
                except (AssertionError, OSError, pa.ArrowException, HeatpipeError) as exc:
                    self.wrong.append(repr(exc))

    def _look(self, path: Path) -> None:
        status = path.stat()
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        known, before = self._seen.get(path, (None, Coverage()))
        if version == known:
            return
        coverage = check_version(path)
        assert not before.covered - coverage.covered, f"{path}: covers less than before"
        self._seen[path] = (version, coverage)
        self.versions += 1


def whole_days(root: Path, series: Series, span: Span) -> set[int]:
    """Return the days of a span that need not be asked for any more."""
    store = Store(str(root))
    wanted = {day: Spans.of([day_span(day).clip(span)]) for day in days_of(span)}
    return {day for day, part in wanted.items() if not part - store.coverage(series, day).covered}


def files_below(folder: Path) -> list[Path]:
    """Everything below a folder that is no folder."""
    return [path for path in folder.rglob("*") if not path.is_dir()]


def folders_below(folder: Path) -> set[str]:
    """Every folder below a folder, by its path from there."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir()}


# --- runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rig:
    """A launcher and an upstream, with what a run that nobody disturbs does.

    Parameters
    ----------
    launcher : Launcher
        Runs the command line.
    url : str
        Of the upstream.
    ledger : list of Answered
        What the upstream has been asked.
    folder : Path
        Where the rig's own datasets and the runs' outputs are.
    """

    launcher: Launcher
    url: str
    ledger: list[Answered]
    folder: Path

    @property
    def start(self) -> Path:
        """The dataset that each run finds."""
        return self.folder / "start"

    @property
    def output(self) -> str:
        """What the last run said."""
        return (self.folder / "output").read_text()

    def run(self, root: Path, order: Order | None = None, *, arguments: list[str] | None = None, log: str = "") -> int:
        """Run the command line; return its exit code."""
        environment = {
            "KIYOTAKA_API_KEY": "sandbox-key",
            "HEATPIPE_API_URL": self.url,
            "HEATPIPE_DATA": str(root),
            "HEATPIPE_WEIGHT_PER_MINUTE": "1000000000",
            "HEATPIPE_BURST": "1000000000",
            "HEATPIPE_HISTORY_DAYS": "0",
            "HEATPIPE_CONCURRENCY": str(CONCURRENCY),
        }
        words = tuple(arguments or BACKFILL)
        return self.launcher.run(Job(words, environment, str(root), order or Order(), str(self.folder / "output"), log))

    def record(self, root: Path) -> Record:
        """Run undisturbed and return what was done to the disk."""
        log = self.folder / "log"
        assert self.run(root, log=str(log)) == 0, self.output
        record = pickle.loads(log.read_bytes())
        assert isinstance(record, Record)
        return record


@dataclass(frozen=True)
class Undisturbed:
    """What a run does that nobody disturbs.

    Parameters
    ----------
    tree : mapping
        Every file below ``liquidations/`` at its end.
    folders : set of str
        Every folder there.
    requests : int
        What it asked.
    lines : int
        How many lines it executed in the modules that write.
    operations : list of Operation
        What it did to the disk.
    """

    tree: dict[str, bytes]
    folders: set[str]
    requests: int
    lines: int
    operations: list[Operation]


@contextmanager
def make_rig(folder: Path) -> Iterator[tuple[Rig, Undisturbed]]:
    """Start an upstream and a launcher, make the dataset to start from, and run once undisturbed."""
    with ExitStack() as stack:
        options = Options(market=SwiftMarket(7, gaps=True), keys=KEYS)
        rig = Rig(stack.enter_context(Launcher()), stack.enter_context(serve(options)), options.ledger, folder)
        assert rig.run(rig.start, arguments=EXTEND) == 0, rig.output
        clean = folder / "clean"
        shutil.copytree(rig.start, clean)
        asked = len(options.ledger)
        record = rig.record(clean)
        table = clean / layout.TABLE
        yield (
            rig,
            Undisturbed(
                read_tree(table),
                folders_below(table),
                len(options.ledger) - asked,
                record.lines,
                record.operations,
            ),
        )


def die_and_go_on(rig: Rig, undisturbed: Undisturbed, root: Path, order: Order) -> int:
    """Let a run die as ordered, look, and run the same command again; return how many requests both took."""
    shutil.copytree(rig.start, root)
    asked = len(rig.ledger)
    reader = Reader(root)
    with reader.reading():
        code = rig.run(root, order)
        assert code == order.expected, f"{order}: {code}, {rig.output}"
        check_sound(root)
        paid = len(rig.ledger)
        whole = {series.coin: whole_days(root, series, SPAN) for series in SERIES}
        code = rig.run(root)
        assert code == 0, f"{order}: {rig.output}"
        check_sound(root)
    for answered in rig.ledger[paid:]:
        check_was_missing(answered, whole)
    check_done(root, undisturbed)
    assert reader.versions >= len(undisturbed.tree)
    # In flight at death: a window for each thread and one in line, one in hand, and the day that waits for its rest,
    # which may touch two windows more. What was answered before is on disk and not asked for again.
    assert len(rig.ledger) - asked <= undisturbed.requests + CONCURRENCY + 4, order
    return len(rig.ledger) - asked


def check_was_missing(answered: Answered, whole: dict[str, set[int]]) -> None:
    """A request of the second run begins and ends in days that were not whole when the first one died."""
    start = int(answered.params["from"])
    end = start + int(answered.params["period"])
    assert start // DAY not in whole[answered.params["coin"]], answered
    assert (end - 1) // DAY not in whole[answered.params["coin"]], answered


def check_done(root: Path, undisturbed: Undisturbed) -> None:
    """The dataset is what it would have been without any disturbance; nothing temporary is left."""
    table = root / layout.TABLE
    found = read_tree(table)
    assert found.keys() == undisturbed.tree.keys()
    assert [path for path in found if found[path] != undisturbed.tree[path]] == []
    assert folders_below(table) == undisturbed.folders
    assert files_below(root / "_tmp") == []


def spread(lines: int, points: int) -> list[Order]:
    """Return deaths at lines spread evenly over a run, but for its last moments, which may come a line sooner."""
    return [Order(line=1 + int(lines * 0.98 * point / points)) for point in range(points)]


def kill_points(rig: Rig, undisturbed: Undisturbed, number: int) -> list[Order]:
    """Return deaths before and after each operation, in the middle of writes, and at lines for the rest of them."""
    operations = (one for one in undisturbed.operations if one.kind != "write")  # no moment of its own
    texts = dict.fromkeys(one.text(rig.folder / "clean") for one in operations)
    around = [order for text in texts for order in (Order(before=text), Order(after=text))]
    largest = max(len(content) for content in undisturbed.tree.values())
    sizes = [Order(size_bytes=largest * part // WRITES_CUT) for part in range(WRITES_CUT)]
    return (around + sizes + spread(undisturbed.lines, max(1, number - len(around) - len(sizes))))[:number]

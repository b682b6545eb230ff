"""SIGKILL at any moment of an update that replaces what it asked for again: the same promises as a backfill's."""

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from heatpipe import layout
from heatpipe.layout import Day
from heatpipe.model import Span
from heatpipe.plan import plan_slabs
from heatpipe.store import Store
from tests.conftest import read_tree
from tests.crash.launcher import Order
from tests.crash.rig import EXTENDED, SERIES, Reader, Rig, Undisturbed, check_sound, command, files_below

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are named by /proc")

SPAN = {"start": "2026-06-01", "end": "2026-06-03"}
BACKFILL = command("BTC", "ETH", **SPAN)
UPDATE = ["update", *BACKFILL[1:]]
REVISED = Span(EXTENDED.end - 1800, EXTENDED.end - 1740)
"""An interval in the lookback, of which the disk holds something else than the upstream sends."""
DAY = "*coin=BTC/date=2026-06-02"


@pytest.fixture(scope="module")
def revised(stage: tuple[Rig, Undisturbed], tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """A rig whose runs start from a dataset that the upstream has revised since."""
    rig = replace(stage[0], folder=tmp_path_factory.mktemp("revised"))
    shutil.copytree(stage[0].start, rig.start)
    store = Store(str(rig.start))
    day = store.read_day(SERIES[0], EXTENDED.start // 86_400)
    assert day is not None
    volume = day.snapshots.volume.copy()
    at = day.snapshots.row_timestamps() // 1_000_000
    rows = (at >= REVISED.start) & (at < REVISED.end)
    assert rows.any(), "an interval without rows proves nothing"
    volume[rows] += 1.0
    (slab,) = plan_slabs(SERIES[0], EXTENDED)
    store.write_day(Day(SERIES[0], day.number, replace(day.snapshots, volume=volume), day.coverage), slab)
    return rig


@pytest.fixture(scope="module")
def truth(revised: Rig) -> dict[str, bytes]:
    """What a backfill from nothing leaves."""
    root = revised.folder / "scratch"
    assert revised.run(root, arguments=BACKFILL) == 0, revised.output
    return read_tree(root / layout.TABLE)


def test_the_revision_is_on_disk_and_only_an_update_finds_it(
    revised: Rig, truth: dict[str, bytes], tmp_path: Path
) -> None:
    for number, (words, found) in enumerate(((BACKFILL, False), (UPDATE, True))):
        root = tmp_path / str(number)
        shutil.copytree(revised.start, root)
        assert revised.run(root, arguments=words) == 0, revised.output
        assert (read_tree(root / layout.TABLE) == truth) == found


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(Order(after="flock _locks/*BTC*"), id="right after taking the lock"),
        pytest.param(Order(after="rename liquidations/*coin=BTC/date=2026-06-01/*"), id="with a new day written"),
        pytest.param(Order(before=f"rename {DAY}/*"), id="between write and rename"),
        pytest.param(Order(after=f"rename {DAY}/*"), id="right after the rename"),
        pytest.param(Order(before="rmdir _tmp/*ETH*"), id="all is written"),
    ],
)
def test_a_death_in_an_update_loses_nothing(
    revised: Rig, truth: dict[str, bytes], tmp_path: Path, order: Order
) -> None:
    root = tmp_path / "data"
    shutil.copytree(revised.start, root)
    reader = Reader(root)
    with reader.reading():
        assert revised.run(root, order, arguments=UPDATE) == -signal.SIGKILL, revised.output
        check_sound(root)
        assert revised.run(root, arguments=UPDATE) == 0, revised.output
        check_sound(root)
    assert read_tree(root / layout.TABLE) == truth
    assert files_below(root / "_tmp") == []
    asked = len(revised.ledger)
    assert revised.run(root, arguments=UPDATE) == 0, revised.output
    assert len(revised.ledger) == asked

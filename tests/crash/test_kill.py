"""SIGKILL at any line and around the steps of a write, SIGINT and SIGTERM likewise: nothing lost, nothing false."""

import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from heatpipe import layout
from heatpipe.store import Store
from tests.conftest import Answer, Asked, MakeUpstream, document, honest, http, plain_levels, read_tree
from tests.crash.launcher import Order
from tests.crash.rig import (
    FIRST,
    SERIES,
    SPAN,
    Reader,
    Rig,
    Undisturbed,
    check_sound,
    command,
    die_and_go_on,
    files_below,
    spread,
    whole_days,
)

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are named by /proc")

EVENLY = 8
INTERRUPTS = 3
EXTENDED = "*coin=BTC/date=2026-06-02"


def test_the_extended_day_is_one_of_those_that_a_run_replaces(stage: tuple[Rig, Undisturbed]) -> None:
    rig, undisturbed = stage
    (path,) = read_tree(rig.start / layout.TABLE)
    assert path in undisturbed.tree
    assert (rig.start / layout.TABLE / path).read_bytes() != undisturbed.tree[path]


@pytest.mark.parametrize("point", range(EVENLY))
def test_a_death_at_any_line_loses_nothing(stage: tuple[Rig, Undisturbed], tmp_path: Path, point: int) -> None:
    rig, undisturbed = stage
    die_and_go_on(rig, undisturbed, tmp_path / "data", spread(undisturbed.lines, EVENLY)[point])


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(Order(after="flock _locks/*BTC*"), id="right after taking the lock"),
        pytest.param(Order(after="mkdir _tmp/*"), id="with an empty scratch folder"),
        pytest.param(Order(after="create _tmp/*BTC*2026-06-02*"), id="before the first byte of an extended day"),
        pytest.param(Order(size_bytes=12_000), id="in the middle of a write"),
        pytest.param(Order(before="fsync _tmp/*BTC*2026-06-02*"), id="between write and sync"),
        pytest.param(Order(before=f"rename {EXTENDED}/*"), id="between write and rename"),
        pytest.param(Order(after=f"rename {EXTENDED}/*"), id="right after the rename"),
        pytest.param(Order(before=f"fsync {EXTENDED}"), id="between rename and folder sync"),
        pytest.param(Order(after="mkdir liquidations/*date=2026-06-03"), id="with a folder that waits for its file"),
        pytest.param(Order(before="rmdir _tmp/*ETH*"), id="all is written"),
    ],
)
def test_a_death_around_a_write_loses_nothing(stage: tuple[Rig, Undisturbed], tmp_path: Path, order: Order) -> None:
    rig, undisturbed = stage
    die_and_go_on(rig, undisturbed, tmp_path / "data", order)


def test_a_death_at_the_last_byte_of_a_day_loses_nothing(stage: tuple[Rig, Undisturbed], tmp_path: Path) -> None:
    rig, undisturbed = stage
    largest = max(len(content) for content in undisturbed.tree.values())
    die_and_go_on(rig, undisturbed, tmp_path / "data", Order(size_bytes=largest - 1))


@pytest.mark.parametrize("point", range(INTERRUPTS))
@pytest.mark.parametrize("again_s", [0.0, 0.005], ids=["once", "twice"])
def test_an_interrupt_at_any_line_loses_nothing_and_ends_soon(
    stage: tuple[Rig, Undisturbed], tmp_path: Path, point: int, again_s: float
) -> None:
    rig, undisturbed = stage
    order = replace(
        spread(undisturbed.lines, INTERRUPTS + 1)[point + 1],
        signal=signal.SIGTERM if point % 2 else signal.SIGINT,
        again_s=again_s,
    )
    requests = die_and_go_on(rig, undisturbed, tmp_path / "data", order)
    if not again_s:  # all that was paid for is on disk but the answer in hand, so that one window is asked for again
        assert requests <= undisturbed.requests + 1


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(Order(after="create _tmp/*BTC*2026-06-02*", signal=signal.SIGTERM), id="SIGTERM while writing"),
        pytest.param(Order(before=f"rename {EXTENDED}/*", signal=signal.SIGINT), id="SIGINT before the rename"),
    ],
)
def test_an_interrupt_within_a_write_writes_the_day_all_the_same(
    stage: tuple[Rig, Undisturbed], tmp_path: Path, order: Order
) -> None:
    rig, undisturbed = stage
    assert die_and_go_on(rig, undisturbed, tmp_path / "data", order) <= undisturbed.requests + 1


# --- within the quarantine ----------------------------------------------------------------------------------------

ONE_DAY = command("BTC", start="2026-06-01", end="2026-06-02")
TWO_DAYS_S = 2 * 86_400
TWO_DAYS = command("BTC", start="2026-06-01", end="2026-06-03")
BAD = FIRST + 9 * 3600
RECORD = f"{BAD}-{BAD + 60}.json"


def damaged(asked: Asked) -> Answer:
    """Answer with a negative price at one minute."""
    points = {start: plain_levels(start) for start in asked.starts}
    if BAD in points:
        points[BAD] = [(-1.0, 1.0)]
    return http(body=document(asked, points))


@pytest.fixture
def quarantining(upstream: MakeUpstream, tmp_path: Path, stage: tuple[Rig, Undisturbed]) -> tuple[Rig, Rig]:
    """An upstream with a bad point, and the same one repaired."""
    launcher = stage[0].launcher
    return Rig(launcher, upstream(damaged).url, [], tmp_path), Rig(launcher, upstream(honest).url, [], tmp_path)


def quarantined(root: Path) -> list[str]:
    return sorted(path.name for path in files_below(root / "_quarantine"))


@pytest.mark.parametrize(
    ("order", "repaired"),
    [
        pytest.param(Order(after="create _tmp/*.json"), True, id="before the record, then repaired"),
        pytest.param(Order(before="rename _quarantine/*.json"), False, id="with the record on its way, still bad"),
        pytest.param(Order(after="rename _quarantine/*.json"), True, id="before the answer, then repaired"),
        pytest.param(Order(after="rename _quarantine/*.json"), False, id="before the answer, still bad"),
        pytest.param(Order(after="rename _quarantine/*.body"), True, id="with both, then repaired"),
    ],
)
def test_a_death_within_the_quarantine_leaves_no_trace(
    quarantining: tuple[Rig, Rig], tmp_path: Path, order: Order, repaired: bool
) -> None:
    broken, mended = quarantining
    root = tmp_path / "data"
    reader = Reader(root)
    with reader.reading():
        code = broken.run(root, order, arguments=ONE_DAY)
        assert code == -signal.SIGKILL, f"{code}, {broken.output}"
        check_sound(root)
        if not repaired:
            assert broken.run(root, arguments=ONE_DAY) == 1, broken.output
            assert RECORD in quarantined(root)
            assert Store(str(root)).quarantined(SERIES[0])
            check_sound(root)
        assert mended.run(root, arguments=ONE_DAY) == 0, mended.output
        check_sound(root)
    assert quarantined(root) == []
    assert files_below(root / "_tmp") == []
    assert mended.run(tmp_path / "other", arguments=ONE_DAY) == 0
    assert read_tree(root / layout.TABLE) == read_tree(tmp_path / "other" / layout.TABLE)


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(Order(before="rename liquidations/*"), id="before the day is whole"),
        pytest.param(Order(after="rename liquidations/*"), id="after the day is whole"),
        pytest.param(Order(after="remove _quarantine/*"), id="while it goes"),
    ],
)
def test_a_death_while_a_record_goes_leaves_no_trace(
    quarantining: tuple[Rig, Rig], tmp_path: Path, order: Order
) -> None:
    broken, mended = quarantining
    root = tmp_path / "data"
    assert broken.run(root, arguments=ONE_DAY) == 1, broken.output
    assert mended.run(root, order, arguments=ONE_DAY) == -signal.SIGKILL, mended.output
    check_sound(root)
    assert mended.run(root, arguments=ONE_DAY) == 0, mended.output
    check_sound(root)
    assert quarantined(root) == []


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(Order(before="link _quarantine/*.old"), id="before it has a second name"),
        pytest.param(Order(after="link _quarantine/*.old"), id="with two names"),
        pytest.param(Order(before=f"rename {EXTENDED}/*"), id="before it is replaced"),
        pytest.param(Order(after=f"rename {EXTENDED}/*"), id="after it was replaced"),
    ],
)
def test_a_death_while_a_damaged_day_is_set_aside_keeps_it(
    stage: tuple[Rig, Undisturbed], tmp_path: Path, order: Order
) -> None:
    rig, undisturbed = stage
    root = tmp_path / "data"
    path = Store(str(root))._path(SERIES[0], SPAN.start // 86_400 + 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1 was here")
    code = rig.run(root, order)
    assert code == -signal.SIGKILL, f"{code}, {rig.output}"
    assert rig.run(root) == 0, rig.output
    assert read_tree(root / layout.TABLE) == undisturbed.tree
    (copy,) = files_below(root / "_quarantine")
    assert copy.read_bytes() == b"PAR1 was here"


def test_an_interrupt_ends_within_two_seconds_whatever_hangs(
    upstream: MakeUpstream, tmp_path: Path, stage: tuple[Rig, Undisturbed]
) -> None:
    def hang(asked: Asked) -> Answer:
        if asked.span.end < SPAN.start + TWO_DAYS_S:
            return honest(asked)
        hung.append(time.monotonic())
        return (piece for piece in (b"HTTP/1.1 ", wait()))

    def wait() -> bytes:
        server.gone.wait(20)
        return b""

    hung: list[float] = []
    server = upstream(hang)
    rig = Rig(stage[0].launcher, server.url, [], tmp_path)
    order = Order(after="rename liquidations/*", signal=signal.SIGTERM)
    assert rig.run(tmp_path / "data", order, arguments=TWO_DAYS) == 130, rig.output
    # To end takes two seconds at most; on a busy machine some time is not the program's.
    assert time.monotonic() - hung[0] < 3.0
    assert whole_days(tmp_path / "data", SERIES[0], SPAN) == {SPAN.start // 86_400}

"""What cannot be read now: its slab is left alone and unpaid, all else goes on, and nothing is replaced or lost."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from heatpipe.config import Settings, Target
from heatpipe.ingest import backfill, update
from heatpipe.model import DAY_S, Series, Span, day_span, days_of
from heatpipe.plan import plan_slabs
from heatpipe.report import Report
from heatpipe.status import COUNTS, take_stock
from heatpipe.store import Store
from heatpipe.survey import make_plan
from tests.conftest import (
    DAY,
    HOUR,
    MINUTE,
    NOW_S,
    TODAY,
    Asked,
    Clock,
    MakeSettings,
    MakeUpstream,
    Mortal,
    Upstream,
    honest,
)
from tests.test_store import lead_nowhere, loop, of_a_later_version, of_nobody

YESTERDAY = TODAY - DAY
BTC, ETH = Series("BTC", depth=2), Series("ETH", depth=2)
DATES = "liquidations/unit=coin/depth=2/interval=MINUTE/coin=BTC"
PLACE = f"{DATES}/date=2026-03-30/part-0.parquet"


def cannot_be_looked_into(path: Path) -> None:
    path.parent.chmod(0)


BARS = [loop, lead_nowhere, os.mkfifo, Path.mkdir, of_a_later_version, of_nobody, cannot_be_looked_into]
ONTO_NOTHING = [loop, lead_nowhere, os.mkfifo, Path.mkdir]
"""What can only be put where nothing is."""


def bar(how: Callable[[Path], None], path: Path) -> None:
    if how in ONTO_NOTHING:
        path.rename(path.parents[6] / "the day as it was")
    how(path)


def fill(settings: Settings, series: Series | list[Series], *span: int, **more: object) -> Report:
    return backfill(series, *span, settings=settings, clock=Clock(), **more)  # type: ignore[arg-type]


@pytest.fixture
def server(upstream: MakeUpstream) -> Upstream:
    return upstream(honest)


@pytest.fixture
def stored(server: Upstream, settings: MakeSettings) -> Settings:
    """A dataset of an hour of BTC, and of nothing else; nothing was asked for yet."""
    chosen = settings(server.url)
    fill(chosen, BTC, YESTERDAY, YESTERDAY + HOUR)
    server.asked.clear()
    return chosen


def links_and_bytes(root: str) -> dict[str, object]:
    """All that is below ``liquidations/`` of BTC, links as links."""
    found: dict[str, object] = {}
    for folder, folders, files in os.walk(Path(root) / DATES):
        for name in folders + files:
            path = Path(folder, name)
            found[str(path)] = path.readlink() if path.is_symlink() else path.lstat().st_ino
    return found


@pytest.mark.parametrize("how", BARS)
@pytest.mark.parametrize("refetch", [False, True], ids=["fill", "refetch"])
def test_a_slab_with_a_day_that_cannot_be_read_now_is_not_paid_for_and_the_others_are(
    server: Upstream, stored: Settings, mortal: Mortal, how: Callable[[Path], None], refetch: bool
) -> None:
    path = Path(stored.root) / PLACE
    bar(how, path)
    before = links_and_bytes(stored.root)
    with mortal(stored.root):
        report = fill(stored, [BTC, ETH], YESTERDAY, TODAY, refetch=refetch)
        (failure,) = report.failures
        path.parent.chmod(0o755)
    assert links_and_bytes(stored.root) == before
    assert not (Path(stored.root) / "_quarantine").exists()
    assert (failure.series, failure.span, failure.counts) == (BTC, Span(YESTERDAY, TODAY), True)
    assert str(path) in failure.reason
    assert "nothing of BTC MINUTE 2026-03-30/2026-03-30 was asked for" in failure.reason
    assert {asked.params["coin"] for asked in server.asked} == {"ETH"}
    assert Store(stored.root).covered(ETH, days_of(Span(YESTERDAY, TODAY))).seconds == DAY


@pytest.mark.parametrize("how", BARS)
def test_an_update_leaves_such_a_slab_out_and_brings_the_others_up_to_date(
    server: Upstream, stored: Settings, mortal: Mortal, how: Callable[[Path], None]
) -> None:
    fill(stored, ETH, YESTERDAY, YESTERDAY + HOUR)
    server.asked.clear()
    bar(how, Path(stored.root) / PLACE)
    with mortal(stored.root):
        report = update([BTC, ETH], settings=stored, clock=Clock())
        (Path(stored.root) / PLACE).parent.chmod(0o755)
    (failure,) = report.failures
    assert str(Path(stored.root) / PLACE) in failure.reason
    assert {asked.params["coin"] for asked in server.asked} == {"ETH"}
    assert report.points > 1000


def test_a_coin_whose_folder_cannot_be_looked_into_fails_alone(
    server: Upstream, stored: Settings, mortal: Mortal
) -> None:
    fill(stored, ETH, YESTERDAY, YESTERDAY + HOUR)
    server.asked.clear()
    with mortal(stored.root):
        (Path(stored.root) / DATES).chmod(0)
        report = update([BTC, ETH], settings=stored, clock=Clock())
        (tally,) = take_stock(Store(stored.root), [Target(BTC)], stored, NOW_S)
        (Path(stored.root) / DATES).chmod(0o755)
    (failure,) = report.failures
    assert str(Path(stored.root) / DATES) in failure.reason
    assert {asked.params["coin"] for asked in server.asked} == {"ETH"}
    assert tally.unreadable == (f"{Path(stored.root) / DATES} cannot be read now: Permission denied",)


def test_other_slabs_of_the_series_go_on(server: Upstream, stored: Settings) -> None:
    bar(Path.mkdir, Path(stored.root) / PLACE)
    first, second = plan_slabs(BTC, Span(YESTERDAY - 20 * DAY, TODAY))
    report = fill(stored, BTC, first.span.end - HOUR, TODAY)
    (failure,) = report.failures
    assert failure.span == Span(second.span.start, TODAY)
    assert server.spans == [Span(first.span.end - HOUR, first.span.end)]


def test_a_plan_leaves_it_out_and_says_so(stored: Settings) -> None:
    bar(Path.mkdir, Path(stored.root) / PLACE)
    plan = make_plan([Target(BTC, YESTERDAY, TODAY), Target(ETH, YESTERDAY, TODAY)], Store(stored.root), stored, NOW_S)
    assert {window.series for window in plan.windows} == {ETH}
    assert plan.intervals == plan.missing == 1440
    (line,) = plan.left_out
    assert PLACE in line


@pytest.mark.parametrize("how", [Path.mkdir, of_a_later_version])
def test_what_turns_unreadable_in_mid_run_stays_and_the_days_that_came_are_written(
    upstream: MakeUpstream, settings: MakeSettings, how: Callable[[Path], None]
) -> None:
    """The first day is whole with the second window, and cannot be merged; so nothing after those on their way is
    asked for."""

    def answer(asked: Asked) -> bytes:
        if asked.params["coin"] == "BTC" and asked.span.start > YESTERDAY - 9 * DAY and not barred:
            bar(how, path)
            barred.append(links_and_bytes(chosen.root))
        return honest(asked)

    barred: list[dict[str, object]] = []
    server = upstream(answer)
    chosen = settings(server.url, concurrency=1)
    fill(chosen, BTC, YESTERDAY - 9 * DAY, YESTERDAY - 9 * DAY + HOUR)
    (path,) = (Path(chosen.root) / DATES).rglob("*.parquet")
    server.asked.clear()
    span = Span(YESTERDAY - 9 * DAY, YESTERDAY)
    report = fill(chosen, [BTC, ETH], *span)
    (failure,) = report.failures
    assert failure.series == BTC
    assert failure.counts
    assert str(path) in failure.reason
    assert failure.span == day_span(span.start // DAY_S)
    asked = [one.span for one in server.asked if one.params["coin"] == "BTC"]
    assert 2 <= len(asked) <= 4
    days = [day for day in days_of(Span(span.start, asked[-1].end)) if day != span.start // DAY_S]
    covered = Store(chosen.root).covered(BTC, days)
    assert covered.hull == Span(span.start + DAY, asked[-1].end)
    assert Store(chosen.root).covered(ETH, days_of(span)).seconds == span.seconds
    assert barred[0].items() <= links_and_bytes(chosen.root).items()


def test_status_counts_the_rest_names_the_path_and_its_sums_equal_the_span(stored: Settings) -> None:
    fill(stored, [BTC, ETH], YESTERDAY - DAY, TODAY)
    bar(Path.mkdir, Path(stored.root) / PLACE)
    btc, eth = take_stock(Store(stored.root), [Target(BTC), Target(ETH)], stored, NOW_S)
    for tally in (btc, eth):
        assert sum(getattr(tally, name) for name in COUNTS) == tally.span.seconds // MINUTE
    assert (btc.present, eth.present) == (1440, 2880)
    assert btc.span == eth.span
    (line,) = btc.unreadable
    assert PLACE in line
    assert eth.unreadable == ()


# --- the command line ---------------------------------------------------------------------------------------------

Heatpipe = Callable[..., "subprocess.CompletedProcess[str]"]
SPAN = ("--depth", "2", "--start", "2026-03-30", "--end", "2026-03-31")


@pytest.fixture
def heatpipe(stored: Settings, tmp_path: Path) -> Heatpipe:
    """Run a command with the dataset, in a process that may take so much address space."""
    variables = {"KIYOTAKA_API_KEY": "sandbox-key", "HEATPIPE_API_URL": stored.url, "HEATPIPE_DATA": stored.root}
    limits = {"HEATPIPE_WEIGHT_PER_MINUTE": "1000000", "HEATPIPE_BURST": "1000000", "HEATPIPE_HISTORY_DAYS": "0"}

    def call(*arguments: str, kib: int | None = None) -> subprocess.CompletedProcess[str]:
        limit = -1 if kib is None else kib << 10
        return subprocess.run(
            [sys.executable, "-m", "heatpipe", *arguments],
            env=os.environ | variables | limits,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )

    return call


def test_every_command_says_in_a_line_what_it_could_not_read(heatpipe: Heatpipe, stored: Settings) -> None:
    fill(stored, ETH, YESTERDAY, YESTERDAY + HOUR)
    bar(of_a_later_version, Path(stored.root) / PLACE)
    told = f"{Path(stored.root) / PLACE} has a footer of version 2, this heatpipe reads 1"
    left_out = f"{told}; nothing of BTC MINUTE 2026-03-30/2026-03-30 was asked for"

    planned = heatpipe("plan", "--coin", "BTC", "--coin", "ETH", *SPAN, "--json")
    assert (planned.returncode, planned.stderr.splitlines()) == (0, [f"warning: {left_out}"])
    assert {window["coin"] for window in json.loads(planned.stdout)["windows"]} == {"ETH"}

    shown = heatpipe("status", "--json")
    assert (shown.returncode, shown.stderr.splitlines()) == (1, [f"failed: {told}"])
    assert [series["coin"] for series in json.loads(shown.stdout)["series"]] == ["BTC", "ETH"]

    filled = heatpipe("backfill", "--coin", "BTC", "--coin", "ETH", *SPAN, "--quiet")
    assert (filled.returncode, filled.stderr.splitlines()) == (1, [f"failed: {left_out}"])
    again = heatpipe("backfill", "--coin", "BTC", "--coin", "ETH", *SPAN)
    assert (again.returncode, again.stderr.splitlines()) == (1, [f"failed: {left_out}"])
    assert again.stdout == "Nothing was fetched.\n"

    verified = heatpipe("verify")
    assert verified.returncode == 3
    assert "refetch" not in verified.stdout
    assert "see to the cause, and verify again" in verified.stdout

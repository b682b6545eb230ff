"""Twice as much is twice the work, and not four times: in days, coins, records, windows and failures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from heatpipe.config import Settings, Target
from heatpipe.heatmap import build_heatmap
from heatpipe.layout import Day, day_path
from heatpipe.model import Coverage, Series, Snapshots, Span, Spans, day_span
from heatpipe.status import take_stock
from heatpipe.store import Store, encode_file
from heatpipe.survey import make_update_plan
from tests.conftest import DAY, MINUTE, NOW_S, TODAY, count_lines

BTC = Series("BTC")
ABSENT_A_DAY = 60


def put_day(root: Path, series: Series, number: int) -> None:
    """Write a day of which every second minute of two hours is absent, and the others hold a level."""
    span = day_span(number)
    absent = Spans.of((at, at + MINUTE) for at in range(span.start, span.start + ABSENT_A_DAY * 120, 120))
    stamps = np.array([at for part in Spans((span,)) - absent for at in range(*part, MINUTE)], np.int64)
    ones = np.ones(len(stamps))
    snapshots = Snapshots(stamps * 1_000_000, ones.astype(np.int64), ones, ones)
    path = root / day_path(series, number)
    path.parent.mkdir(parents=True)
    path.write_bytes(encode_file(Day(series, number, snapshots, Coverage(Spans((span,)), absent))))


def span_of(days: int) -> Span:
    return Span(TODAY - days * DAY, TODAY)


WORK: dict[str, Callable[[str, Span], object]] = {
    "status": lambda root, span: take_stock(Store(root), [Target(BTC, *span)], Settings(root=root), NOW_S),
    "plan --update": lambda root, _: make_update_plan([Target(BTC)], Store(root), Settings(root=root), NOW_S),
    "heatmap": lambda root, span: build_heatmap(root, BTC, span),
}


@pytest.mark.parametrize("name", WORK)
def test_twice_the_days_are_twice_the_work(tmp_path: Path, name: str) -> None:
    def work(days: int) -> int:
        root = tmp_path / str(days)
        for number in range(1, days + 1):
            put_day(root, BTC, TODAY // DAY - number)
        return count_lines(lambda: WORK[name](str(root), span_of(days)))

    work(1)  # imports
    assert work(40) < 2.5 * work(20)

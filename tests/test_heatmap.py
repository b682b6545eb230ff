"""Rows to matrix to picture: what is summed, what is averaged, what is not known."""

import io
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray

from heatpipe import layout
from heatpipe.errors import ConfigError, DatasetError, HeatpipeError
from heatpipe.heatmap import (
    BEYOND,
    NOT_KNOWN,
    PRICE_BINS,
    SHOWN_SHARE,
    TIME_BINS,
    Heatmap,
    build_heatmap,
    check_picture,
    draw_heatmap,
    paint,
)
from heatpipe.ingest import backfill
from heatpipe.layout import Day
from heatpipe.model import Coverage, Series, Snapshots, Span, Spans, day_span
from heatpipe.store import PARQUET
from tests.conftest import DAY, HOUR, MARKET, MINUTE, TODAY, Clock, Level, MakeSettings, Mortal, Sandbox
from tests.test_frame import put

BTC = Series("BTC")
TWO = Series("BTC", depth=2)
NUMBER = TODAY // DAY


def put_points(root: Path, points: dict[int, list[Level]], covered: int, series: Series = BTC) -> None:
    """Write a day of which so many minutes are covered, from a dictionary of minute to levels."""
    known = {minute: points[minute] for minute in sorted(points)}
    with_levels = {minute: levels for minute, levels in known.items() if levels}
    snapshots = Snapshots(
        np.array([(TODAY + MINUTE * minute) * 1_000_000 for minute in with_levels], np.int64),
        np.array([len(levels) for levels in with_levels.values()], np.int64),
        np.array([price for levels in with_levels.values() for price, _ in levels], np.float64),
        np.array([volume for levels in with_levels.values() for _, volume in levels], np.float64),
    )
    coverage = Coverage(
        Spans.of([(TODAY, TODAY + covered * MINUTE)]),
        spans(set(range(covered)) - set(known)),
        spans({minute for minute, levels in known.items() if not levels}),
    )
    put(root, Day(series, NUMBER, snapshots, coverage))


def as_before(path: Path) -> None:
    """Write a file as a heatpipe did that did not count snapshots at the depth cap."""
    table = pq.ParquetFile(path).read()
    sink = pa.BufferOutputStream()
    footer = {layout.FOOTER_KEY: table.schema.metadata[layout.FOOTER_KEY]}
    with pq.ParquetWriter(sink, table.schema.with_metadata(footer), **PARQUET) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({layout.SEAL_KEY: layout.blank_seal()})
    data = bytearray(sink.getvalue())
    layout.seal(data)
    path.write_bytes(data)


def damage_column(path: Path, column: int) -> None:
    """Flip a byte in the first page of a column."""
    found = pq.read_metadata(path).row_group(0).column(column)
    first = found.dictionary_page_offset if found.has_dictionary_page else found.data_page_offset
    data = bytearray(path.read_bytes())
    data[first + 40] ^= 0xFF
    path.write_bytes(data)


def spans(minutes: set[int]) -> Spans:
    return Spans.of((TODAY + MINUTE * minute, TODAY + MINUTE * (minute + 1)) for minute in minutes)


def minutes(first: int, last: int) -> Span:
    return Span(TODAY + first * MINUTE, TODAY + last * MINUTE)


def test_a_short_span_has_one_column_for_each_snapshot(tmp_path: Path) -> None:
    put_points(tmp_path, {0: [(10.0, 1.0), (20.0, 2.0)], 1: [(10.0, 3.0), (30.0, 4.0)], 2: [(20.0, 5.0)]}, covered=3)
    found = build_heatmap(str(tmp_path), BTC, minutes(0, 3))
    assert found.time_edges.tolist() == [TODAY, TODAY + 60, TODAY + 120, TODAY + 180]
    assert found.price_edges.tolist() == [5.0, 15.0, 25.0, 35.0]
    assert found.volume.tolist() == [[1.0, 3.0, 0.0], [2.0, 0.0, 5.0], [0.0, 4.0, 0.0]]


def test_time_that_is_not_known_is_nan_and_not_nothing(tmp_path: Path) -> None:
    """Minute 1 is absent, minute 2 has no levels, minute 4 was never asked for."""
    put_points(tmp_path, {0: [(10.0, 1.0)], 2: [], 3: [(10.0, 7.0), (20.0, 1.0)]}, covered=4)
    found = build_heatmap(str(tmp_path), BTC, minutes(0, 5))
    np.testing.assert_array_equal(found.volume, [[1.0, np.nan, 0.0, 7.0, np.nan], [0.0, np.nan, 0.0, 1.0, np.nan]])


def test_a_time_bin_is_the_mean_of_its_snapshots(tmp_path: Path) -> None:
    """Volumes are a stock: what stands for two minutes at 6 is 6, not 12; a snapshot without levels counts as 0."""
    width = 2
    count = TIME_BINS * width
    points: dict[int, list[Level]] = {minute: [(10.0, 6.0), (20.0, 4.0)] for minute in range(1440)}
    points[2] = [(10.0, 2.0)]
    points[4] = []
    del points[6]
    del points[8], points[9]
    put_points(tmp_path, points, covered=1440)
    found = build_heatmap(str(tmp_path), BTC, Span(TODAY, TODAY + count * MINUTE))
    assert np.diff(found.time_edges).tolist() == [width * MINUTE] * TIME_BINS
    expected = [[6, (2 + 6) / 2, (0 + 6) / 2, 6, np.nan, 6], [4, (0 + 4) / 2, (0 + 4) / 2, 4, np.nan, 4]]
    np.testing.assert_allclose(found.volume[:, :6], expected)
    assert np.isnan(found.volume[:, 720:]).all()


def test_the_last_time_bin_may_be_shorter(tmp_path: Path) -> None:
    put_points(tmp_path, {minute: [(10.0, 6.0)] for minute in range(1440)}, covered=1440)
    found = build_heatmap(str(tmp_path), BTC, minutes(0, TIME_BINS + 1))
    assert np.diff(found.time_edges).tolist() == [120] * (TIME_BINS // 2) + [60]
    assert set(found.volume.ravel().tolist()) == {6.0}


def test_a_price_bin_is_the_sum_of_its_levels(tmp_path: Path) -> None:
    steps = 4 * PRICE_BINS
    levels = [(100.0 + step, 1.0) for step in range(steps)]
    put_points(tmp_path, {0: levels, 1: levels}, covered=2)
    found = build_heatmap(str(tmp_path), BTC, minutes(0, 2))
    assert found.volume.shape[0] <= 1.1 * PRICE_BINS
    # Every bin holds the same number of steps of the grid, the last maybe fewer; nothing counts twice.
    assert set(found.volume[:-1].ravel().tolist()) == {4.0}
    assert steps * SHOWN_SHARE - 4 <= found.volume[:, 0].sum() <= steps * SHOWN_SHARE + 5


def test_prices_far_out_do_not_flatten_the_picture(tmp_path: Path) -> None:
    levels = [(1.0, 0.01), *((1000.0 + step, 10.0) for step in range(100)), (99_000.0, 0.01)]
    put_points(tmp_path, {0: levels}, covered=1)
    found = build_heatmap(str(tmp_path), BTC, minutes(0, 1))
    assert 990 < found.price_edges[0] < found.price_edges[-1] < 1110


@pytest.mark.parametrize("levels", [[(10.0, 1.0)], [(10.0, 0.0)], [(10.0, 0.0), (20.0, 0.0)]])
def test_few_levels_or_none_that_stand_are_a_heatmap_too(tmp_path: Path, levels: list[Level]) -> None:
    put_points(tmp_path, {0: levels}, covered=1)
    found = build_heatmap(str(tmp_path), BTC, minutes(0, 1))
    assert np.nansum(found.volume) == sum(volume for _, volume in levels)
    paint(found)


@pytest.mark.parametrize("coin", ["BTC", "kPEPE"])
def test_what_is_shown_is_what_the_market_says(sandbox: Sandbox, settings: MakeSettings, coin: str) -> None:
    """One coin's prices are tens of thousands, the other's are thousandths."""
    series, chosen = Series(coin), settings()
    span = Span(TODAY, TODAY + HOUR)
    backfill(series, *span, settings=chosen, clock=Clock())
    found = build_heatmap(chosen.root, series, span)
    points = MARKET.snapshots(coin, 60, *span)
    stamps = np.repeat(points.timestamp_us // 1_000_000, points.levels)
    expected, *_ = np.histogram2d(
        points.price, stamps, bins=(found.price_edges, found.time_edges.astype(np.float64)), weights=points.volume
    )
    shown = ~np.isnan(found.volume)
    np.testing.assert_allclose(found.volume[shown], expected[shown], rtol=1e-9)
    assert found.volume[shown].sum() >= 0.95 * points.volume.sum()


def test_other_series_do_not_mix_in(tmp_path: Path) -> None:
    put_points(tmp_path, {0: [(10.0, 1.0)]}, covered=1)
    put_points(tmp_path, {0: [(10.0, 100.0)]}, covered=1, series=Series("BTC", unit="usd"))
    put_points(tmp_path, {0: [(10.0, 100.0)]}, covered=1, series=Series("ETH"))
    assert build_heatmap(str(tmp_path), BTC, minutes(0, 1)).volume.tolist() == [[1.0]]


@pytest.mark.parametrize("span", [minutes(5, 10), minutes(0, 0), minutes(10, 5)])
def test_nothing_to_show_is_told(tmp_path: Path, span: Span) -> None:
    put_points(tmp_path, {0: [(10.0, 1.0)]}, covered=10)
    with pytest.raises(ConfigError, match="no rows in"):
        build_heatmap(str(tmp_path), BTC, span)


def test_an_empty_dataset_has_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"BTC MINUTE .*no rows"):
        build_heatmap(str(tmp_path / "data"), BTC, minutes(0, 5))


# --- the depth cap ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True], ids=["counted", "from-before"])
def test_beyond_the_outermost_level_of_a_snapshot_at_the_cap_nothing_is_known(tmp_path: Path, old: bool) -> None:
    """Minute 0 has as many levels as the depth allows, minute 1 fewer, minute 2 none, minute 3 is absent."""
    put_points(
        tmp_path, {0: [(20.0, 1.0), (40.0, 2.0)], 1: [(10.0, 5.0)], 2: [], 4: [(30.0, 7.0), (50.0, 8.0)]}, 5, TWO
    )
    if old:
        as_before(tmp_path / layout.day_path(TWO, NUMBER))
    nan = np.nan
    expected = [
        [nan, 5.0, 0.0, nan, nan],
        [1.0, 0.0, 0.0, nan, nan],
        [0.0, 0.0, 0.0, nan, 7.0],
        [2.0, 0.0, 0.0, nan, 0.0],
        [nan, 0.0, 0.0, nan, 8.0],
    ]
    np.testing.assert_array_equal(build_heatmap(str(tmp_path), TWO, minutes(0, 5)).volume, expected)


def test_a_deeper_series_knows_all(tmp_path: Path) -> None:
    put_points(tmp_path, {0: [(20.0, 1.0), (40.0, 2.0)], 1: [(10.0, 5.0)]}, 2, Series("BTC", depth=3))
    found = build_heatmap(str(tmp_path), Series("BTC", depth=3), minutes(0, 2))
    assert np.isfinite(found.volume).all()


def test_a_mean_is_over_the_snapshots_that_know_the_price(tmp_path: Path) -> None:
    points: dict[int, list[Level]] = {minute: [] for minute in range(1440)}
    points |= {0: [(10.0, 2.0), (20.0, 4.0)], 1: [(10.0, 6.0)]}
    points |= {2: [(20.0, 1.0), (30.0, 1.0)], 3: [(20.0, 3.0), (30.0, 5.0)]}
    put_points(tmp_path, points, 1440, TWO)
    found = build_heatmap(str(tmp_path), TWO, Span(TODAY, TODAY + DAY))
    # Of the first two minutes one is at the cap, and knows 10 and 20; of the next two both are, and know 20 and 30.
    np.testing.assert_array_equal(found.volume[:, 0], [(2 + 6) / 2, (4 + 0) / 2, 0.0])
    np.testing.assert_array_equal(found.volume[:, 1], [np.nan, (1 + 3) / 2, (1 + 5) / 2])
    np.testing.assert_array_equal(found.volume[:, 2], [0.0, 0.0, 0.0])


def test_a_price_bin_with_the_outermost_level_is_known(tmp_path: Path) -> None:
    series = Series("BTC", depth=3)
    levels: list[Level] = [(1000.0 + step, 1.0) for step in range(4 * PRICE_BINS)]
    put_points(tmp_path, {0: [(1401.0, 1.0), (1402.0, 1.0), (1410.0, 1.0)], 1: levels[:2], 2: levels[-2:]}, 3, series)
    found = build_heatmap(str(tmp_path), series, minutes(0, 3))
    low, high = np.searchsorted(found.price_edges, [1401.0, 1410.0], side="right") - 1
    assert np.flatnonzero(np.isfinite(found.volume[:, 0])).tolist() == list(range(low, high + 1))
    assert np.diff(found.price_edges)[0] > 1


def test_prices_that_are_not_shown_do_not_make_others_known(tmp_path: Path) -> None:
    """The snapshots at the cap lie wholly below and above the axis."""
    few: list[Level] = [(1.0, 0.01), (2.0, 0.01)]
    many: list[Level] = [(9000.0, 0.01), (9001.0, 0.01)]
    put_points(tmp_path, {0: few, 1: [(500.0, 1000.0)], 2: many}, 3, TWO)
    found = build_heatmap(str(tmp_path), TWO, minutes(0, 3))
    assert found.volume.shape[0] == 1
    np.testing.assert_array_equal(found.volume, [[np.nan, 1000.0, np.nan]])


LEVELS = st.dictionaries(st.integers(1, 12), st.integers(0, 9), max_size=4)
POINTS = st.dictionaries(st.integers(0, 2 * 1440 * 2 - 1), LEVELS, max_size=60)
"""By the half minute, over two days; two in one minute are legal."""


def put_two_days(root: str, series: Series, points: Mapping[int, dict[int, int]], covered: Spans) -> None:
    for number in (NUMBER, NUMBER + 1):
        day = day_span(number)
        mine = {TODAY + half * 30: dict(sorted(points[half].items())) for half in sorted(points)}
        mine = {at: levels for at, levels in mine.items() if day.start <= at < day.end}
        known = {at // MINUTE * MINUTE for at in mine}
        full = {at: levels for at, levels in mine.items() if levels}
        snapshots = Snapshots(
            np.array([at * 1_000_000 for at in full], np.int64),
            np.array([len(levels) for levels in full.values()], np.int64),
            np.array([price for levels in full.values() for price in levels], np.float64),
            np.array([volume for levels in full.values() for volume in levels.values()], np.float64),
        )
        pointed = Spans.of((at, at + MINUTE) for at in known)
        present = Spans.of((at // MINUTE * MINUTE, at // MINUTE * MINUTE + MINUTE) for at in full)
        mine_covered = covered.within(day) | pointed
        put(root, Day(series, number, snapshots, Coverage(mine_covered, mine_covered - pointed, pointed - present)))


def average_slowly(found: Heatmap, points: Mapping[int, dict[int, int]], depth: int) -> NDArray[np.float64]:
    """Look at each snapshot of each column, price bin by price bin."""
    times, prices = found.time_edges.tolist(), found.price_edges.tolist()
    expected = np.full(found.volume.shape, np.nan)
    for column, (start, end) in enumerate(pairwise(times)):
        snapshots = [levels for half, levels in points.items() if start <= TODAY + half * 30 < end]
        for row, (low, high) in enumerate(pairwise(prices)) if snapshots else ():
            seen = [
                sum(volume for price, volume in levels.items() if low <= price < high)
                for levels in snapshots
                if len(levels) < depth or (min(levels) < high and max(levels) >= low)
            ]
            expected[row, column] = sum(seen) / len(seen) if seen else np.nan
    return expected


@tried(max_examples=60, deadline=None)
@given(
    points=POINTS,
    depth=st.integers(1, 4),
    first=st.integers(0, 1440),
    length=st.integers(1, 2 * 1440),
    covered=st.sampled_from([Spans(), Spans((Span(TODAY, TODAY + 2 * DAY),))]),
)
def test_the_grid_is_what_a_slow_look_at_each_snapshot_finds(
    points: dict[int, dict[int, int]], depth: int, first: int, length: int, covered: Spans
) -> None:
    # An interval whose points are partly without levels cannot be told from one where all have some.
    points = {half: levels for half, levels in points.items() if levels or not (points.get(half ^ 1) or half % 2)}
    points = {half: dict(list(levels.items())[:depth]) for half, levels in points.items()}
    series, span = Series("BTC", depth=depth), minutes(first, min(first + length, 2 * 1440))
    with tempfile.TemporaryDirectory() as root:
        put_two_days(root, series, points, covered)
        shown = [levels for half, levels in points.items() if span.start <= TODAY + half * 30 < span.end]
        if not any(shown):
            with pytest.raises(ConfigError, match="no rows"):
                build_heatmap(root, series, span)
            return
        found = build_heatmap(root, series, span)
    np.testing.assert_allclose(found.volume, average_slowly(found, points, depth))
    total = sum(sum(levels.values()) for levels in shown)
    on_axis = [price for levels in shown for price in levels if found.price_edges[0] < price < found.price_edges[-1]]
    assert on_axis
    assert total * SHOWN_SHARE <= 1e-9 + sum(
        volume for levels in shown for price, volume in levels.items() if price in on_axis
    )


# --- numbers and names that nobody expects -------------------------------------------------------------------------

LARGEST = float(np.finfo(np.float64).max)
ODD_POINTS: dict[str, dict[int, list[Level]]] = {
    "sums beyond the largest float": {0: [(10.0, 1e308), (20.0, LARGEST)], 1: [(10.0, 1e308), (20.0, LARGEST)]},
    "the least float": {0: [(10.0, 5e-324), (20.0, 5e-324)]},
    "both": {0: [(10.0, 5e-324), (20.0, LARGEST)], 1: [(10.0, 1.0)]},
    "zeros": {0: [(10.0, 0.0), (20.0, 0.0)]},
    "all equal": {minute: [(10.0, 1.0), (20.0, 1.0)] for minute in range(60)},
    "low prices": {0: [(1e-12, 1.0), (2e-12, 1.0)]},
    "high prices": {0: [(1e12, 1.0), (1e12 + 1, 2.0)]},
    "an outlier": {0: [(1e-9, 1.0), (100.0, 1.0), (1e15, 3.0)]},
    "prices side by side": {0: [(100.0, 1.0), (float(np.nextafter(100, 101)), 1.0), (100.5, 1.0)]},
    "every second minute": {minute: [(10.0, 1.0)] for minute in range(0, 200, 2)},
}


def save(heatmap: Heatmap) -> Figure:
    """Draw a picture for good, and look at its limits; warnings are errors here."""
    figure = paint(heatmap)
    with tempfile.TemporaryFile() as file:
        figure.savefig(file, format="png", dpi=40)
    mesh, axes = figure.axes[0].collections[0], figure.axes[0]
    limits = [*axes.get_ylim(), *axes.get_xlim(), *mesh.get_clim()]
    assert np.isfinite(np.array(limits, np.float64)).all()
    assert axes.get_ylim() == (heatmap.price_edges[0], heatmap.price_edges[-1])
    assert mesh.get_clim()[0] > 0
    return figure


@pytest.mark.parametrize("kind", ODD_POINTS)
def test_odd_numbers_are_a_picture_too(tmp_path: Path, kind: str) -> None:
    points = ODD_POINTS[kind]
    put_points(tmp_path, points, covered=max(points) + 1)
    found = build_heatmap(str(tmp_path), BTC, minutes(0, max(points) + 2))
    assert np.isfinite(found.volume[:, 0]).all()
    assert np.isnan(found.volume[:, -1]).all()
    assert (np.diff(found.price_edges) > 0).all()
    save(found)


@pytest.mark.parametrize("volume", [5e-324, 1.0, LARGEST])
def test_a_volume_that_stands_has_another_colour_than_zero(tmp_path: Path, volume: float) -> None:
    put_points(tmp_path, {0: [(10.0, volume), (20.0, volume)], 1: [(10.0, volume)]}, covered=2)
    (mesh,) = paint(build_heatmap(str(tmp_path), BTC, minutes(0, 2))).axes[0].collections
    cells = mesh.get_array()
    assert cells is not None
    colours = [to_hex(mesh.to_rgba(cells)[row, column]) for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert colours[0] == colours[1] == colours[2] != colours[3] == "#000004"


@pytest.mark.parametrize("prices", [(5e-324, 1e-323), (5e-324, 5e-324), (1.0, LARGEST), (1e300, 2e300)])
def test_prices_that_cannot_be_drawn_are_told_in_one_line(tmp_path: Path, prices: tuple[float, float]) -> None:
    put_points(tmp_path, {0: [(price, 1.0) for price in dict.fromkeys(prices)]}, covered=1)
    with pytest.raises(ConfigError, match=r"has prices from .* USD .*, which cannot be drawn$"):
        build_heatmap(str(tmp_path), BTC, minutes(0, 1))


COINS = {
    "$$": "$$",
    "a$b$c": "a$b$c",
    r"\frac_1^2": r"\frac_1^2",
    r"\$": r"\$",
    "%s{x}<b>&": "%s{x}<b>&",
    "W" * 64: "W" * 19 + "…",
    "币安人生": "币安人生".encode("unicode_escape").decode()[:19] + "…",
    "🚀": r"\U0001f680",
    "زيتون": "زيتون",
}
"""What a picture shows of a coin's name, with the font that matplotlib brings."""


@pytest.mark.parametrize("coin", COINS)
def test_a_coin_may_be_called_anything(tmp_path: Path, coin: str) -> None:
    series = Series(coin)
    put_points(tmp_path, {0: [(10.0, 1.0)]}, covered=1, series=series)
    axes, scale = save(build_heatmap(str(tmp_path), series, minutes(0, 1))).axes
    assert axes.get_title(loc="left").startswith(f"{COINS[coin]} liquidation heatmap · volume in {COINS[coin]} ·")
    assert scale.get_ylabel().endswith(f"({COINS[coin]})")
    assert axes.get_position().width > 0.7  # a long name takes no room from the picture


@pytest.mark.parametrize("first", ["0001-01-01", "1969-12-31", "9999-12-31"])
def test_a_day_of_any_year_is_a_picture(tmp_path: Path, first: str) -> None:
    number = layout.parse_day(f"date={first}")
    span, series = day_span(number), Series("BTC", "HOUR")
    one = np.ones(1)
    snapshots = Snapshots(np.array([span.start * 1_000_000]), one.astype(np.int64), one, one)
    absent = Spans((Span(span.start + HOUR, span.end),))
    put(tmp_path, Day(series, number, snapshots, Coverage(Spans((span,)), absent)))
    save(build_heatmap(str(tmp_path), series, span))


# --- files that nobody expects --------------------------------------------------------------------------------------


def put_three_days(root: Path) -> Path:
    """Write three days of a level at the first minute; return the folder of the middle one."""
    one = np.ones(1)
    for number in range(NUMBER, NUMBER + 3):
        span = day_span(number)
        snapshots = Snapshots(np.array([span.start * 1_000_000]), one.astype(np.int64), one, one)
        first = Spans((Span(span.start, span.start + MINUTE),))
        put(root, Day(BTC, number, snapshots, Coverage(first)))
    return (root / layout.day_path(BTC, NUMBER + 1)).parent


def standing(root: Path) -> list[bool]:
    """Whether something is known at the beginning of each of the three days."""
    found = build_heatmap(str(root), BTC, Span(TODAY, TODAY + 3 * DAY))
    columns = np.searchsorted(found.time_edges, [TODAY + day * DAY for day in range(3)])
    return [bool(volume > 0) for volume in found.volume[0, columns]]


def copy_to(folder: Path, *names: str) -> None:
    for target in map(folder.joinpath, names):
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((folder / layout.FILE_NAME).read_bytes())


def put_instead(path: Path, target: str | None) -> None:
    """Put a link in the place of a file, or a folder."""
    path.unlink()
    if target is None:
        path.mkdir()
    else:
        path.symlink_to(target)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "copies": lambda folder: copy_to(folder, "part-0 (1).parquet", "part-0.sync-conflict.parquet"),
    "a stray file": lambda folder: [(folder / name).write_text("x") for name in (".DS_Store", "._part-0.parquet")],
    "a file between days": lambda folder: (folder.parent / "heatmap").write_text("x"),
    "a file between coins": lambda folder: (folder.parent.parent / "x.parquet").write_text("x"),
    "a day spelt otherwise": lambda folder: copy_to(folder, "../date=2026-3-1/part-0.parquet"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_not_drawn(tmp_path: Path, kind: str) -> None:
    FOREIGN[kind](put_three_days(tmp_path))
    assert standing(tmp_path) == [True, True, True]


@pytest.mark.parametrize("text", ["", "no Parquet", "PAR1 not at all PAR1"])
def test_a_day_that_is_damaged_is_not_known_and_told_once(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (put_three_days(tmp_path) / layout.FILE_NAME).write_text(text)
    with caplog.at_level(logging.WARNING):
        assert standing(tmp_path) == [True, False, True]
    assert len(caplog.messages) == 1


def write_rows(path: Path, **columns: list[float]) -> None:
    """Put other columns in place of those that are there; the footer stays."""
    table = pq.ParquetFile(path).read()
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, path)


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: put_instead(path, None),
    "a link to nowhere": lambda path: put_instead(path, "/nowhere"),
    "a price that is none": lambda path: write_rows(path, price=[float("nan")]),
    "a price of zero": lambda path: write_rows(path, price=[0.0]),
    "a volume that is none": lambda path: write_rows(path, volume=[float("nan")]),
    "a negative volume": lambda path: write_rows(path, volume=[-1.0]),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_rows_that_cannot_be_read_are_told_in_one_line(tmp_path: Path, kind: str) -> None:
    UNREADABLE[kind](put_three_days(tmp_path) / layout.FILE_NAME)
    with pytest.raises(DatasetError) as raised:
        standing(tmp_path)
    assert re.search("move it away|a link leads nowhere|heatpipe verify", str(raised.value))
    assert "\n" not in str(raised.value)


def test_a_day_without_a_column_is_damaged_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = put_three_days(tmp_path) / layout.FILE_NAME
    pq.write_table(pq.ParquetFile(path).read().drop_columns("volume"), path)
    standing(tmp_path)
    assert "announces 2 columns, not 3; it counts as not covered" in caplog.text


def test_damaged_prices_of_snapshots_at_the_cap_are_told(tmp_path: Path) -> None:
    put_points(tmp_path, {minute: [(10.0, 1.0), (20.0, 1.0)] for minute in range(60)}, covered=60, series=TWO)
    damage_column(tmp_path / layout.day_path(TWO, NUMBER), 0)
    with pytest.raises(DatasetError, match="heatpipe verify"):
        build_heatmap(str(tmp_path), TWO, minutes(0, 60))


# --- the picture --------------------------------------------------------------------------------------------------


@pytest.fixture
def heatmap(tmp_path: Path) -> Heatmap:
    put_points(tmp_path, {0: [(10.0, 1.0)], 2: [], 3: [(10.0, 7.0), (20.0, 1.0)]}, covered=4)
    return build_heatmap(str(tmp_path), BTC, minutes(0, 5))


MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".PNG": b"\x89PNG"}


@pytest.mark.parametrize("ending", MAGIC)
def test_a_picture_is_written_in_the_format_of_its_ending(heatmap: Heatmap, tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    path = folder / f"picture{ending}"
    path.write_bytes(b"an old one")
    draw_heatmap(heatmap, str(path))
    assert path.read_bytes().startswith(MAGIC[ending])
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize("name", ["picture.jpg", "picture", "picture.png.gz", ".png", ""])
def test_another_ending_is_refused(heatmap: Heatmap, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"\.png, \.svg, \.pdf"):
        draw_heatmap(heatmap, str(folder / name))
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(heatmap: Heatmap, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cannot write .*nowhere.*No such file"):
        draw_heatmap(heatmap, str(tmp_path / "nowhere" / "picture.png"))


def test_a_picture_that_cannot_take_its_place_leaves_nothing(heatmap: Heatmap, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "picture.png").mkdir(parents=True)
    with pytest.raises(DatasetError, match="cannot write"):
        draw_heatmap(heatmap, str(folder / "picture.png"))
    assert [path.name for path in folder.iterdir()] == ["picture.png"]


def test_the_picture_says_what_it_shows(heatmap: Heatmap) -> None:
    figure = paint(heatmap)
    axes = figure.axes[0]
    title = axes.get_title(loc="left")
    for word in ("BTC", "MINUTE", "depth 1500", "volume in BTC", "2026-03-31 00:00 to 2026-03-31 00:05 UTC"):
        assert word in title
    assert axes.get_xlabel() == "time (UTC)"
    assert axes.get_ylabel() == "price (USD)"
    assert figure.axes[1].get_ylabel() == "liquidation volume standing at a price (BTC)"
    # Minutes 1 and 4 are not known: each is one hatched span.
    assert len([patch for patch in axes.patches if patch.get_hatch()]) == 2


def hatched(figure: Figure) -> dict[str | None, str]:
    """What the legend says of each hatch."""
    legend = figure.axes[0].get_legend()
    if legend is None:
        return {}
    texts = [text.get_text() for text in legend.get_texts()]
    return dict(zip([patch.get_hatch() for patch in legend.get_patches()], texts, strict=True))


def test_the_legend_says_what_each_hatch_means(heatmap: Heatmap, tmp_path: Path) -> None:
    assert hatched(paint(heatmap)) == {NOT_KNOWN["hatch"]: "not known"}
    levels: list[Level] = [(10.0, 1.0), (20.0, 2.0)]
    put_points(tmp_path / "capped", {0: levels, 2: [(30.0, 1.0)]}, covered=3, series=TWO)
    capped = build_heatmap(str(tmp_path / "capped"), TWO, minutes(0, 3))
    figure = paint(capped)
    said = "not known: beyond the 2 levels of a snapshot"
    assert hatched(figure) == {NOT_KNOWN["hatch"]: "not known", BEYOND["hatch"]: said}
    # One ground behind all cells, and a span for minute 1, of which nothing is known at all.
    assert sorted(patch.get_hatch() for patch in figure.axes[0].patches) == [NOT_KNOWN["hatch"], BEYOND["hatch"]]
    put_points(tmp_path / "all", {0: levels}, covered=1)
    assert hatched(paint(build_heatmap(str(tmp_path / "all"), BTC, minutes(0, 1)))) == {}


def test_a_cell_beyond_the_cap_has_another_colour_than_zero_and_than_unknown_time(tmp_path: Path) -> None:
    """As the pixels have it: minute 0 is at the cap, minute 1 knows that nothing stands at 30, minute 2 is absent."""
    levels: list[Level] = [(10.0, 1.0), (20.0, 2.0)]
    put_points(tmp_path, {0: levels, 1: levels[:1], 3: [(30.0, 1.0)]}, covered=4, series=TWO)
    figure = paint(build_heatmap(str(tmp_path), TWO, minutes(0, 4)))
    figure.set_dpi(50)
    picture = io.BytesIO()
    figure.savefig(picture, format="raw", dpi=50)
    pixels = np.frombuffer(picture.getvalue(), np.uint8).reshape(375, 700, 4)[:, :, :3].astype(np.int64)
    axes = figure.axes[0]

    def greys(minute: int, price: float) -> NDArray[np.int64]:
        """Brightness around the middle of a cell, where it is grey; -1 where it has a colour."""
        left, right = axes.get_xlim()
        x, y = axes.transData.transform((left + (minute + 0.5) / 4 * (right - left), price)).astype(int)
        patch = pixels[len(pixels) - y - 8 : len(pixels) - y + 8, x - 8 : x + 8].reshape(-1, 3)
        return np.where(np.ptp(patch, axis=1) <= 4, patch.mean(axis=1), -1).astype(np.int64)

    beyond, zero, absent = greys(0, 30.0), greys(1, 30.0), greys(2, 30.0)
    assert zero.max() < 10
    assert 90 < beyond.min() < beyond.max() < 150
    assert absent.max() > 200
    assert greys(0, 20.0).max() == -1


def test_what_can_be_seen_of_a_picture_is_seen_before_it_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for name in ("x.jpg", "folder.png", "nowhere/x.png", "file/x.png", f"{'x' * 300}.png"):
        with pytest.raises(HeatpipeError, match=r"^('.*' is none of|cannot write .*: )"):
            check_picture(str(tmp_path / name))
    check_picture(str(tmp_path / "x.png"))


def test_a_folder_that_may_not_be_written_to_is_told(heatmap: Heatmap, tmp_path: Path, mortal: Mortal) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    with mortal(folder):
        folder.chmod(0o500)
        with pytest.raises(DatasetError, match=r"^cannot write .*/x\.png: Permission denied$"):
            draw_heatmap(heatmap, str(folder / "x.png"))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("MPLBACKEND", "nonsense"), ("MATPLOTLIBRC", "")])
def test_matplotlib_that_does_not_load_is_told_in_one_line(tmp_path: Path, name: str, value: str) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe")
    command = "from heatpipe.heatmap import check_picture as c\ntry: c('x.png')\nexcept Exception as e: print(repr(e))"
    done = subprocess.run(
        [sys.executable, "-c", command],
        env={**os.environ, name: value or str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(r"ConfigError\(.matplotlib cannot be loaded: .*; look at MPLBACKEND.*\)\n", done.stdout)
    assert len(done.stderr.splitlines()) <= 1  # matplotlib's own

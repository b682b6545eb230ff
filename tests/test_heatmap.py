"""Rows to matrix to picture: what is summed, what is averaged, what is not known."""

from pathlib import Path

import numpy as np
import pytest

from heatpipe.errors import ConfigError, DatasetError
from heatpipe.heatmap import PRICE_BINS, SHOWN_SHARE, TIME_BINS, Heatmap, build_heatmap, draw_heatmap, paint
from heatpipe.ingest import backfill
from heatpipe.layout import Day
from heatpipe.model import Coverage, Series, Snapshots, Span, Spans
from tests.conftest import DAY, HOUR, MARKET, MINUTE, TODAY, Clock, Level, MakeSettings, Sandbox
from tests.test_frame import put

BTC = Series("BTC")
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


@pytest.mark.parametrize("name", ["picture.jpg", "picture", "picture.png.gz", ".png"])
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

"""Rows to a time × price matrix to a picture. Reads through `frame`; writes the one file it is asked for."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from heatpipe.errors import ConfigError, DatasetError
from heatpipe.frame import scan_series
from heatpipe.model import Series, Span, days_of, show_time
from heatpipe.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TIME_BINS: Final = 1200
PRICE_BINS: Final = 500
SHOWN_SHARE: Final = 0.96
"""Share of the standing volume that the price axis spans; what lies further out would flatten the rest."""
COLOUR_RANGE: Final = (0.30, 0.998)
"""Quantiles of the cells with volume at which the colours begin and end."""
PICTURES: Final = (".png", ".svg", ".pdf")


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Standing liquidation volume over time and price.

    Parameters
    ----------
    series : Series
        Whose.
    time_edges : ndarray
        (times + 1,) Unix seconds.
    price_edges : ndarray
        (prices + 1,) USD.
    volume : ndarray
        (prices, times) in the series' unit: the sum over a price bin's levels, the mean over a time bin's snapshots.
        nan where no snapshot is known, which is not the same as 0.
    """

    series: Series
    time_edges: NDArray[np.int64]
    price_edges: NDArray[np.float64]
    volume: NDArray[np.float64]


def build_heatmap(root: str, series: Series, span: Span) -> Heatmap:
    """Bin a series' rows by time and price.

    Parameters
    ----------
    root : str
        The dataset's folder.
    series : Series
        Which series.
    span : Span
        From when to when, on the series' grid.

    Raises
    ------
    ConfigError
        There are no rows in the span.
    """
    nothing = f"{series} has no rows in {span}; fetch them with heatpipe backfill"
    if span.seconds <= 0:
        raise ConfigError(nothing)
    store = Store(root)
    bounds = (datetime.fromtimestamp(at, UTC) for at in span)
    rows = scan_series(store, [series], *bounds).select("timestamp", "price", "volume")
    time_edges = _time_edges(span, series.interval_s)
    price_edges = _price_edges(rows, nothing)
    snapshots = _count_snapshots(store, series, time_edges)
    total = _sum_volume(rows, time_edges, price_edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Heatmap(series, time_edges, price_edges, np.where(snapshots > 0, total / snapshots, np.nan))


def _time_edges(span: Span, interval_s: int) -> NDArray[np.int64]:
    points = span.seconds // interval_s
    width = -(-points // TIME_BINS) * interval_s
    return np.append(np.arange(span.start, span.end, width), span.end)


def _price_edges(rows: pl.LazyFrame, nothing: str) -> NDArray[np.float64]:
    """Span the prices that hold most of the volume, in bins that are whole steps of the price grid."""
    by_price = rows.group_by("price").agg(pl.col("volume").sum()).sort("price").collect(engine="streaming")
    if by_price.is_empty():
        raise ConfigError(nothing)
    prices = by_price["price"].to_numpy()
    share = np.cumsum(by_price["volume"].to_numpy())
    if share[-1] > 0:
        low, high = np.searchsorted(share, share[-1] * (0.5 + np.array([-0.5, 0.5]) * SHOWN_SHARE))
        prices = prices[low : high + 1]
    grid = float(np.min(np.diff(prices), initial=np.inf))
    grid = grid if np.isfinite(grid) else prices[0] * 1e-3
    step = max(1, round((prices[-1] - prices[0]) / grid / PRICE_BINS)) * grid
    # Edges fall between the grid's prices, so that every bin holds the same number of them.
    bins = int((prices[-1] - prices[0] + grid / 2) // step) + 1
    edges: NDArray[np.float64] = prices[0] - grid / 2 + np.arange(bins + 1) * step
    return edges


def _count_snapshots(store: Store, series: Series, time_edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (times,) how many intervals of each bin have a point: the divisor of its mean, 0 where none is known."""
    coverage = store.coverage_of(series, days_of(Span(int(time_edges[0]), int(time_edges[-1]))))
    known = coverage.covered - coverage.absent
    return known.seconds_between(time_edges) / series.interval_s


def _sum_volume(
    rows: pl.LazyFrame, time_edges: NDArray[np.int64], price_edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (prices, times), the sum of the volumes in each cell."""
    start, width = int(time_edges[0]) * 1_000_000, int(time_edges[1] - time_edges[0]) * 1_000_000
    low, step = float(price_edges[0]), float(price_edges[1] - price_edges[0])
    cells = (
        rows.with_columns(
            time=(pl.col("timestamp").dt.epoch("us") - start) // width,
            level=((pl.col("price") - low) / step).floor().cast(pl.Int64),
        )
        .filter(pl.col("level").is_between(0, len(price_edges) - 2))
        .group_by("time", "level")
        .agg(pl.col("volume").sum())
        .collect(engine="streaming")
    )
    total = np.zeros((len(price_edges) - 1, len(time_edges) - 1))
    total[cells["level"].to_numpy(), cells["time"].to_numpy()] = cells["volume"].to_numpy()
    return total


def draw_heatmap(heatmap: Heatmap, path: str) -> None:
    """Draw a heatmap and write it; the file's ending says in which format.

    Parameters
    ----------
    heatmap : Heatmap
        What to draw.
    path : str
        A .png, .svg or .pdf file; replaced if it is there.

    Raises
    ------
    ConfigError
        Another ending, or matplotlib is not installed.
    DatasetError
        The file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in PICTURES:
        raise ConfigError(f"{path} is none of the pictures that can be drawn: {', '.join(PICTURES)}")
    figure = paint(heatmap)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        figure.savefig(temporary, dpi=150)
        temporary.replace(target)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise DatasetError(f"cannot write {path}: {exc.strerror}", path) from exc


def paint(heatmap: Heatmap) -> "Figure":
    """Return the picture: time (UTC) to the right, price (USD) up, volume as colour, unknown time hatched."""
    try:
        from matplotlib.colors import LogNorm
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigError("matplotlib is not installed: pip install 'heatpipe[plot]'") from exc
    figure = Figure(figsize=(14, 7.5), layout="constrained")
    axes = figure.add_subplot()
    unknown = np.isnan(heatmap.volume[0])
    low, high = _colour_limits(heatmap.volume)
    # Zero has no logarithm: it is clipped to the darkest colour, and only unknown time stays unpainted.
    cells = np.ma.masked_array(np.maximum(heatmap.volume, low), np.isnan(heatmap.volume))
    times = np.array([np.datetime64(int(edge), "s") for edge in heatmap.time_edges])
    mesh = axes.pcolormesh(
        times, heatmap.price_edges, cells, norm=LogNorm(low, high, clip=True), cmap="inferno", rasterized=True
    )
    for start, end in _runs(unknown):
        axes.axvspan(times[start], times[end], facecolor="0.85", edgecolor="0.6", hatch="//", linewidth=0)
    _label(axes, heatmap)
    unit = heatmap.series.coin if heatmap.series.unit == "coin" else "USD"
    figure.colorbar(mesh, ax=axes, pad=0.01, extend="both", label=f"liquidation volume standing at a price ({unit})")
    return figure


def _colour_limits(volume: NDArray[np.float64]) -> tuple[float, float]:
    seen = volume[volume > 0]
    if not len(seen):
        return 0.1, 1.0
    low, high = np.quantile(seen, COLOUR_RANGE)
    return float(low), float(max(high, low * 10))


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _label(axes: "Axes", heatmap: Heatmap) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.ticker import StrMethodFormatter

    series = heatmap.series
    locator = AutoDateLocator(tz=UTC)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))  # type: ignore[no-untyped-call]
    if heatmap.price_edges[0] >= 100:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("time (UTC)")
    axes.set_ylabel("price (USD)")
    width_s = int(heatmap.time_edges[1] - heatmap.time_edges[0])
    mean = "one snapshot" if width_s == series.interval_s else f"mean of {width_s // series.interval_s} snapshots"
    first, end = (show_time(int(edge))[:16].replace("T", " ") for edge in heatmap.time_edges[[0, -1]])
    axes.set_title(
        f"{series.coin} liquidation heatmap · volume in {series.coin if series.unit == 'coin' else 'USD'} · "
        f"{series.interval}, {mean} per column · depth {series.depth}\n{first} to {end} UTC · hatched: not known",
        loc="left",
        fontsize=11,
    )

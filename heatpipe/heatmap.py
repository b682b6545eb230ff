"""Rows to a time × price matrix to a picture. Reads through `frame` and `store`; writes the file it is asked for."""

import errno
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from heatpipe.disk import reason
from heatpipe.errors import ConfigError, DamagedError, DatasetError
from heatpipe.frame import scan_series
from heatpipe.layout import Bounds, Footer
from heatpipe.model import Coverage, Series, Span, days_of, show_time
from heatpipe.store import Store
from heatpipe.times import SECONDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TIME_BINS: Final = 1200
PRICE_BINS: Final = 500
SHOWN_SHARE: Final = 0.96
"""Share of the standing volume that the price axis spans; what lies further out would flatten the rest."""
FINEST_GRID: Final = 2.0**-40
"""Of the highest price: what lies closer together than this counts as one price, for edges between would be equal."""
LARGEST: Final = float(np.finfo(np.float64).max)
COLOUR_RANGE: Final = (0.30, 0.998)
"""Quantiles of the cells with volume at which the colours begin and end."""
DRAWABLE: Final = (1e-100, 1e100)
"""Between which matplotlib can draw scales, of prices and of colours."""
PICTURES: Final = (".png", ".svg", ".pdf")
MOST_DIGITS, MOST_DECIMALS = 15, 8
"""Of a price that is written out; others are written as powers of ten."""
NAME_SHOWN: Final = 20
"""Characters of a coin's name that a title has room for."""
NOT_KNOWN: Final[dict[str, Any]] = {"facecolor": "0.85", "edgecolor": "0.6", "hatch": "//", "linewidth": 0}
BEYOND: Final[dict[str, Any]] = {"facecolor": "0.42", "edgecolor": "0.54", "hatch": "\\\\\\", "linewidth": 0}
"""On another ground than zero, which is black, and than time that is not known."""


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
        (prices, times) in the series' unit: the sum over a price bin's levels, the mean over those of a time bin's
        snapshots that know the cell. 0 where they have no level there. nan where no snapshot knows it, which is not
        the same: no snapshot was fetched, or there is none; or all of them hold as many levels as the depth allows,
        and the cell lies beyond their outermost.
    """

    series: Series
    time_edges: NDArray[np.int64]
    price_edges: NDArray[np.float64]
    volume: NDArray[np.float64]


def build_heatmap(root: str, series: Series, span: Span, *, store: Store | None = None) -> Heatmap:
    """Bin a series' rows by time and price.

    A snapshot at the depth cap, one with as many levels as the series' depth, knows nothing of prices below its lowest
    level and above its highest: there it counts neither as 0 nor at all. A cell that holds its outermost level counts
    as known, though a part of it may lie beyond. A sum that no float can hold is the largest one.

    Parameters
    ----------
    root : str
        The dataset's folder.
    series : Series
        Which series.
    span : Span
        From when to when, on the series' grid.
    store : Store, optional
        The one at `root` that has been asked before, which does not warn of the same file again.

    Returns
    -------
    Heatmap
        At most 1,200 times, and prices that hold 96% of the volume. nan is where nothing is known.

    Raises
    ------
    ConfigError
        There are no rows in the span, or prices that cannot be binned.
    DatasetError
        A file cannot be read. Days whose footer is damaged are warned about, and not known.
    """
    if span.seconds <= 0:
        raise _no_rows(series, span)
    store = store or Store(root)
    footers, barred = store.footers(series, days_of(span))
    for exc in barred.values():
        raise exc
    with _naming_damage():
        for day in footers:
            store.check_pages(series, day)  # polars takes a file's word for it
    bounds = (datetime.fromtimestamp(at, UTC) if at in SECONDS else None for at in span)
    rows = scan_series(store, [series], *bounds, days=footers).select("timestamp", "price", "volume")
    time_edges = _time_edges(span, series.interval_s)
    price_edges = _price_edges(series, span, rows)
    known = _count_known(_read_bounds(store, footers), footers, series, time_edges, price_edges)
    total = _sum_volume(series, rows, time_edges, price_edges)
    volume = np.divide(total, known, out=np.full_like(total, np.nan), where=known > 0)
    return Heatmap(series, time_edges, price_edges, volume)


def _no_rows(series: Series, span: Span) -> ConfigError:
    return ConfigError(f"{series} has no rows in {span}; fetch them with heatpipe backfill")


def _time_edges(span: Span, interval_s: int) -> NDArray[np.int64]:
    points = span.seconds // interval_s
    width = -(-points // TIME_BINS) * interval_s
    return np.append(np.arange(span.start, span.end, width), span.end)


def _price_edges(series: Series, span: Span, rows: pl.LazyFrame) -> NDArray[np.float64]:
    """Span the prices that hold most of the volume, in bins that are whole steps of the price grid."""
    sums = rows.group_by("price").agg(pl.col("volume").sum(), pl.col("volume").min().alias("least"))
    by_price = _collect(series, sums.sort("price"))
    if by_price.is_empty():
        raise _no_rows(series, span)
    prices, volume = by_price["price"].to_numpy(), np.minimum(by_price["volume"].to_numpy(), LARGEST)
    # polars checks no page's checksum; a sum with nan is nan, the least of values that are not all nan is not
    if not ((prices > 0) & (prices < np.inf) & (volume >= 0) & (by_price["least"].to_numpy() >= 0)).all():
        raise DatasetError(f"the rows of {series} hold numbers that cannot be; heatpipe verify names the file")
    if largest := volume.max():
        share = np.cumsum(volume / largest)
        low, high = np.searchsorted(share, share[-1] * (0.5 + np.array([-0.5, 0.5]) * SHOWN_SHARE))
        prices = prices[low : high + 1]
    if not DRAWABLE[0] <= prices[0] <= prices[-1] <= DRAWABLE[1]:
        raise ConfigError(
            f"{series} has prices from {prices[0]:g} to {prices[-1]:g} USD in {span}, which cannot be drawn"
        )
    grid = float(np.min(np.diff(prices), initial=np.inf))
    grid = max(grid, prices[-1] * FINEST_GRID) if np.isfinite(grid) else prices[0] * 1e-3
    step = max(1, round((prices[-1] - prices[0]) / grid / PRICE_BINS)) * grid
    # Edges fall between the grid's prices, so that every bin holds the same number of them.
    bins = int((prices[-1] - prices[0] + grid / 2) // step) + 1
    edges: NDArray[np.float64] = prices[0] - grid / 2 + np.arange(bins + 1) * step
    return edges


def _read_bounds(store: Store, footers: Mapping[int, Footer]) -> Iterator[Bounds]:
    """Yield how far the snapshots reach of those days where that is not said by coverage alone."""
    for day, footer in footers.items():
        intervals = footer.coverage.present.seconds // footer.series.interval_s
        may_be_capped = footer.capped != 0 and footer.rows >= footer.series.depth
        if may_be_capped or footer.snapshots > intervals:
            with _naming_damage():
                found = store.read_bounds(footer.series, day)
            yield found


@contextmanager
def _naming_damage() -> Iterator[None]:
    try:
        yield
    except DamagedError as exc:
        raise DatasetError(f"{exc}; see heatpipe verify", exc.path) from exc


def _count_known(
    days: Iterable[Bounds],
    footers: Mapping[int, Footer],
    series: Series,
    time_edges: NDArray[np.int64],
    price_edges: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Return (prices, times), how many snapshots know each cell."""
    coverage = Coverage.union([footer.coverage for footer in footers.values()])
    # Where the number of them changes from one price bin to that above it; the last one is beyond the axis.
    change = np.zeros((len(price_edges), len(time_edges) - 1), np.int64)
    change[0] = (coverage.covered - coverage.absent).seconds_between(time_edges) // series.interval_s
    for found in days:
        seconds = found.timestamp // 1_000_000
        time = np.searchsorted(time_edges, seconds, side="right") - 1
        shown = (time >= 0) & (time < change.shape[1])
        interval = seconds // series.interval_s
        again = shown & (np.diff(interval, prepend=interval[:1] - 1) == 0)  # a second snapshot in one interval
        np.add.at(change[0], time[again], 1)
        capped = shown & (found.levels == series.depth)
        np.add.at(change[0], time[capped], -1)
        np.add.at(change, (_bin_prices(found.low[capped], price_edges), time[capped]), 1)
        np.add.at(change, (_bin_prices(found.high[capped], price_edges, beyond=1), time[capped]), -1)
    known: NDArray[np.int64] = np.cumsum(change, axis=0)[:-1]
    return known


def _bin_prices(price: NDArray[np.float64], edges: NDArray[np.float64], beyond: int = 0) -> NDArray[np.int64]:
    """Return the price bin of each price, or one so far beyond it; within the axis and its end."""
    step = edges[1] - edges[0]
    bins: NDArray[np.int64] = np.clip(np.floor((price - edges[0]) / step) + beyond, 0, len(edges) - 1).astype(np.int64)
    return bins


def _sum_volume(
    series: Series, rows: pl.LazyFrame, time_edges: NDArray[np.int64], price_edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (prices, times), the sum of the volumes in each cell."""
    start, width = int(time_edges[0]) * 1_000_000, int(time_edges[1] - time_edges[0]) * 1_000_000
    low, step = float(price_edges[0]), float(price_edges[1] - price_edges[0])
    cells = _collect(
        series,
        rows.filter(pl.col("price").is_between(low, float(price_edges[-1])))
        .with_columns(
            time=(pl.col("timestamp").dt.epoch("us") - start) // width,
            level=((pl.col("price") - low) / step).floor().cast(pl.Int64),
        )
        .filter(pl.col("level").is_between(0, len(price_edges) - 2))
        .group_by("time", "level")
        .agg(pl.col("volume").sum()),
    )
    total = np.zeros((len(price_edges) - 1, len(time_edges) - 1))
    total[cells["level"].to_numpy(), cells["time"].to_numpy()] = cells["volume"].to_numpy()
    return np.minimum(total, LARGEST)


def _collect(series: Series, frame: pl.LazyFrame) -> pl.DataFrame:
    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as exc:
        said = f"the rows of {series} cannot be read: {reason(exc)}; try again, and see heatpipe verify"
        raise DatasetError(said) from exc


def check_picture(path: str) -> None:
    """Raise a HeatpipeError where no picture could be written, before anything is read for it.

    Parameters
    ----------
    path : str
        As for `draw_heatmap`.

    Raises
    ------
    ConfigError
        The name has another ending than .png, .svg or .pdf, or matplotlib cannot be loaded.
    DatasetError
        There is no folder for it, or a folder in its place.
    """
    target = Path(path)
    if target.suffix.lower() not in PICTURES:
        raise ConfigError(f"{path!r} is none of the pictures that can be drawn: {', '.join(PICTURES)}")
    _load_matplotlib()
    with _writing(path):
        os.stat(f"{target.parent}/.")  # noqa: PTH116 - a Path would leave the dot out, which asks for a folder
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


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
        Another ending, or matplotlib cannot be loaded.
    DatasetError
        The file cannot be written.
    """
    check_picture(path)
    target = Path(path)
    from matplotlib import rc_context

    picture = io.BytesIO()
    with rc_context({"text.usetex": False}):  # a coin's name is no TeX
        paint(heatmap).savefig(picture, format=target.suffix[1:].lower(), dpi=150)
    temporary = target.with_name(f".heatpipe-{token_hex(8)}{target.suffix}")
    with _writing(path), temporary.open("xb") as file:
        try:
            file.write(picture.getbuffer())
            file.close()
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise DatasetError(f"cannot write {path}: {reason(exc)}", path) from exc


def _load_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as exc:
        raise ConfigError("matplotlib is not installed: pip install 'heatpipe[plot]'") from exc
    except (ImportError, OSError, ValueError) as exc:  # what it finds in variables and files of its own
        raise ConfigError(f"matplotlib cannot be loaded: {reason(exc)}; look at MPLBACKEND and MPLCONFIGDIR") from exc


def paint(heatmap: Heatmap) -> "Figure":
    """Return the picture: time (UTC) to the right, price (USD) up, volume as colour; a legend tells hatches apart."""
    _load_matplotlib()
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7.5), layout="constrained")
    axes = figure.add_subplot()
    unknown = np.isnan(heatmap.volume)
    volume = np.where(heatmap.volume > 0, np.clip(heatmap.volume, *DRAWABLE), 0)
    low, high = _colour_limits(volume)
    # Zero has no logarithm: it is clipped to the darkest colour, and only what is not known stays unpainted.
    cells = np.ma.masked_array(np.maximum(volume, low), unknown)
    times = np.minimum(heatmap.time_edges, SECONDS.stop - 1).astype("datetime64[s]")
    mesh = axes.pcolormesh(
        times, heatmap.price_edges, cells, norm=LogNorm(low, high, clip=True), cmap="inferno", rasterized=True
    )
    axes.set_ylim(heatmap.price_edges[0], heatmap.price_edges[-1])
    _hatch(axes, times, unknown, heatmap.series.depth)
    _label(axes, heatmap)
    label = f"liquidation volume standing at a price ({_name_unit(heatmap.series)})"
    figure.colorbar(mesh, ax=axes, pad=0.01, extend="both").set_label(label, parse_math=False)
    return figure


def _colour_limits(volume: NDArray[np.float64]) -> tuple[float, float]:
    """Return where the colours begin and end, a power of ten apart at least: equal volumes must not be black."""
    seen = volume[volume > 0]
    if not len(seen):
        return 0.1, 1.0
    low, high = np.log10(np.quantile(seen, COLOUR_RANGE))
    wider = max(0.0, 1 - (high - low)) / 2
    return float(10 ** (low - wider)), float(10 ** (high + wider))


def _hatch(axes: "Axes", times: NDArray[np.datetime64], unknown: NDArray[np.bool_], depth: int) -> None:
    """Hatch the columns of which nothing is known, and, behind the cells, what is not known in other columns."""
    from matplotlib.patches import Patch, Rectangle

    columns: NDArray[np.bool_] = np.all(unknown, axis=0)
    for start, end in _runs(columns):
        axes.axvspan(times[start], times[end], **NOT_KNOWN)
    legend = [Patch(label="not known", **NOT_KNOWN)] if columns.any() else []
    if (unknown & ~columns).any():
        axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, zorder=0, **BEYOND))
        legend.append(Patch(label=f"not known: beyond the {depth:,} levels of a snapshot", **BEYOND))
    if legend:
        axes.legend(
            handles=legend, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(legend), frameon=False, fontsize=9,
            borderaxespad=0.2,
        )  # fmt: skip


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
    decimals = max(0, 2 - int(np.floor(np.log10(heatmap.price_edges[-1] - heatmap.price_edges[0]))))
    if decimals <= MOST_DECIMALS and heatmap.price_edges[-1] < 10.0**MOST_DIGITS:
        axes.yaxis.set_major_formatter(StrMethodFormatter(f"{{x:,.{decimals}f}}"))
    axes.set_xlabel("time (UTC)")
    axes.set_ylabel("price (USD)")
    width_s = int(heatmap.time_edges[1] - heatmap.time_edges[0])
    mean = "one snapshot" if width_s == series.interval_s else f"mean of {width_s // series.interval_s} snapshots"
    first, end = (show_time(int(edge))[:16].replace("T", " ") for edge in heatmap.time_edges[[0, -1]])
    axes.set_title(
        f"{_spell(series.coin)} liquidation heatmap · volume in {_name_unit(series)} · "
        f"{series.interval}, {mean} per column · depth {series.depth}\n{first} to {end} UTC",
        loc="left",
        fontsize=11,
        parse_math=False,  # a coin may be called $$
    )


def _name_unit(series: Series) -> str:
    return _spell(series.coin) if series.unit == "coin" else "USD"


def _spell(name: str) -> str:
    """Return a name as a title can show it: cut to its room; what no font has is spelt out, else it would be a box."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in FontProperties().get_family()]
    spelt = "".join(
        char if any(font.get_char_index(ord(char)) for font in fonts) else char.encode("unicode_escape").decode()
        for char in name
    )
    return spelt if len(spelt) <= NAME_SHOWN else f"{spelt[: NAME_SHOWN - 1]}…"

"""The made-up market behind the sandbox: where liquidations stand, minute by minute. Pure: no I/O, no clock.

Everything is a function of (seed, coin, minute), so any cut of a span into windows gives the same snapshots. Two habits
keep that true to the last bit:

* Randomness is a hash of what it belongs to (`_bits`), never a stream that someone has to have started somewhere. What
  takes many steps (the price path, the positions) is computed in blocks on a fixed grid, whoever asks.
* Volumes are added up as whole numbers of the coin's smallest size, so the order of additions cannot matter. The float
  noise that a vendor's sums show is put on at the end, as a function of the level alone (`_as_summed`).

How it works: groups of traders (`Habit`) open positions at the price of the minute, long or short, at a common
leverage 1/d. Each is liquidated at about (1 - d) or (1 + d) times the price it was opened at, unless closed earlier. A
snapshot is the sum, per step of the price grid, over the positions open at that minute: bands at the common distances
that last until the price sweeps them or their owners leave. A position lasts six days at most, so a snapshot looks back
no further.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Bits: TypeAlias = NDArray[np.uint64]

MINUTE_S = 60
DAY_MINUTES = 1440
INCLUDED_DEPTH = 1500

# As many points as keep the matrix points x grid steps in a few megabytes, near the processor.
CHUNK_POINTS = 256
# That matrix is the largest thing here: however many ask, there is one.
_ONE_AT_A_TIME = threading.Lock()
# What windows next to each other share, and no more: a block is up to 150 kB, a day of the path 60 kB.
BLOCKS_KEPT = 128
DAYS_KEPT = 128
# One snapshot in so many has no levels; with gaps, one interval in so many is left out, and a run in so many stretches.
EMPTY_ONE_IN = 3000
GAP_ONE_IN = 1500
GAP_RUN_ONE_IN = 40
GAP_STRETCH_MINUTES = 240
GAP_RUN_LONGEST = 32
# Of 256 volumes, so many are written as a sum of two; about a quarter of those sums end in noise.
SUMMED_OF_256 = 150


@dataclass(frozen=True, slots=True)
class Points:
    """Snapshots in columns, back to back: the very doubles whose text the server sends.

    Attributes
    ----------
    timestamp_us : (points,) int64
        The interval's start, microseconds UTC, ascending.
    levels : (points,) int64
        How many rows belong to each point; 0 is legal.
    price : (rows,) float64
        USD, above 0, strictly ascending within a point.
    volume : (rows,) float64
        In coin, or in USD if so asked; finite, not negative.
    """

    timestamp_us: Ints
    levels: Ints
    price: Floats
    volume: Floats


@dataclass(frozen=True)
class Market:
    """A market that never was, the same for everyone who names the same seed.

    Parameters
    ----------
    seed : int
        Another seed, another market.
    gaps : bool
        Leave out an interval now and then, and once in a while a run of some, as an upstream with holes would.
    """

    seed: int = 0
    gaps: bool = False

    def snapshots(
        self,
        coin: str,
        interval_s: int,
        start_s: int,
        end_s: int,
        *,
        depth: int = INCLUDED_DEPTH,
        usd: bool = False,
    ) -> Points:
        """Give the snapshots of one coin in ``[start_s, end_s)``.

        Parameters
        ----------
        coin : str
            Any name; one that is not in `COINS` gets a price, a grid and a following by the hash of its name.
        interval_s : int
            Whole minutes, in seconds. Points stand at its multiples since the epoch (a WEEK thus starts on a Thursday).
            A longer interval samples: its point is the MINUTE snapshot standing at the interval's start.
        start_s, end_s : int
            Half-open span, Unix seconds.
        depth : int
            The most levels of a snapshot. Of more, those nearest the price are kept; of two as near, the lower.
        usd : bool
            Volumes times price instead of volumes in coin.

        Returns
        -------
        Points
            One per interval whose start lies in the span. About 1 snapshot in 3,000 has no levels.

        Raises
        ------
        ValueError
            The interval is not a positive number of whole minutes, or the depth is not positive.
        """
        if interval_s <= 0 or interval_s % MINUTE_S:
            raise ValueError(f"expected an interval of whole minutes, received {interval_s} s")
        if depth < 1:
            raise ValueError(f"expected a depth of 1 level or more, received {depth}")
        first_s = -(-start_s // interval_s) * interval_s
        minutes = np.arange(first_s, end_s, interval_s, dtype=np.int64) // MINUTE_S
        if self.gaps:
            minutes = minutes[~_left_out(self.seed, coin, minutes)]
        listing = listing_of(coin)
        stamps = minutes * (MINUTE_S * 1_000_000)
        levels, price, volume = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0)]
        with _ONE_AT_A_TIME:
            for i in range(0, len(minutes), CHUNK_POINTS):
                chunk = _chunk(self.seed, coin, minutes[i : i + CHUNK_POINTS], depth)
                levels.append(chunk.levels)
                price.append(listing.price_at(chunk.tick))
                volume.append(_as_summed(chunk.tick, chunk.stock, listing.size_decimals))
                if usd:
                    volume[-1] *= price[-1]
            return Points(stamps, np.concatenate(levels), np.concatenate(price), np.concatenate(volume))


@dataclass(frozen=True, slots=True)
class Listing:
    """How a coin trades.

    Attributes
    ----------
    price : float
        USD, around which the path wanders.
    step : int
        The price grid's step is ``step / 10**price_decimals``.
    size_decimals : int
        The smallest size is ``10**-size_decimals`` coins.
    volatility : float
        1 is BTC's.
    following : float
        How many trade it; 1 is BTC's number.
    """

    price: float
    step: int
    price_decimals: int
    size_decimals: int
    volatility: float
    following: float

    def price_at(self, tick: Ints) -> Floats:
        """Price of grid steps; one division, so that the text is as short as a person would write it."""
        price: Floats = (tick * self.step) / float(10**self.price_decimals)
        return price

    @property
    def price_in_ticks(self) -> float:
        """The middle of the path, in steps of the price grid."""
        return self.price * float(10**self.price_decimals) / self.step


COINS = {
    "BTC": Listing(79_000.0, 10, 0, 5, 1.0, 1.0),
    "ETH": Listing(2_900.0, 5, 1, 4, 1.3, 0.95),
    "SOL": Listing(155.0, 2, 2, 2, 1.6, 0.9),
    "HYPE": Listing(34.0, 5, 3, 2, 2.0, 0.7),
    "XRP": Listing(2.2, 3, 4, 0, 1.5, 0.5),
    "DOGE": Listing(0.18, 2, 5, 0, 1.8, 0.45),
    "kPEPE": Listing(0.0095, 1, 6, 0, 2.2, 0.35),
}


@lru_cache(maxsize=1024)
def listing_of(coin: str) -> Listing:
    """Look the coin up, or make its listing up from the hash of its name where `COINS` has none."""
    if coin in COINS:
        return COINS[coin]
    dice = _stream(0, coin, "listing")
    exponent = dice % 7 - 3  # from 0.001 to 9,999 USD
    price = (1 + (dice >> 8) % 900 / 100) * 10.0**exponent
    # A step of about 1/7000 of the price, in whole units of a power of ten: 1 to 9.
    price_decimals = 4 - exponent
    step = max(1, round(price / 7000 * 10**price_decimals))
    size_decimals = max(0, min(5, exponent + 1))
    return Listing(
        price, step, price_decimals, size_decimals, 0.8 + (dice >> 24) % 16 / 10, 0.1 + (dice >> 32) % 50 / 100
    )


# --- from minutes to levels ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Levels:
    levels: Ints  # (points,)
    tick: Ints  # (rows,) ascending within a point
    stock: Ints  # (rows,) in smallest sizes, above 0


def _chunk(seed: int, coin: str, minutes: Ints, depth: int) -> _Levels:
    """Add up the positions that stand at each of some minutes, cut to the depth."""
    book = _standing(seed, coin, minutes)
    lowest = int(book.tick.min())
    width = int(book.tick.max()) - lowest + 1
    # Every position enters at one row and leaves at another; the running sum down the rows is what stands.
    change = np.zeros((len(minutes) + 1) * width, np.int64)
    column = book.tick - lowest
    np.add.at(change, np.searchsorted(minutes, book.opened) * width + column, book.size)
    np.add.at(change, np.searchsorted(minutes, book.closed) * width + column, -book.size)
    stock = change.reshape(-1, width)[:-1]
    np.cumsum(stock, axis=0, out=stock)
    stock[_empty(seed, coin, minutes)] = 0
    cells = np.flatnonzero(stock)
    point, tick = np.divmod(cells, width)
    levels = np.bincount(point, minlength=len(minutes))
    everything = _Levels(levels, tick + lowest, stock.ravel()[cells])
    return _nearest(everything, depth, _prices(seed, coin, minutes)) if levels.max() > depth else everything


def _nearest(book: _Levels, depth: int, price: Floats) -> _Levels:
    """Keep in each point the levels nearest the price: a run of them, whose start is found by bisection."""
    start = np.cumsum(book.levels) - book.levels
    low = np.zeros_like(start)
    high = np.maximum(book.levels - depth, 0)
    while (open_ := low < high).any():
        middle = (low + high) // 2
        left = np.where(open_, start + middle, 0)
        right = np.where(open_, left + depth, 0)
        move = open_ & (price - book.tick[left] > book.tick[right] - price)
        low = np.where(move, middle + 1, low)
        high = np.where(open_ & ~move, middle, high)
    rank = np.arange(len(book.tick)) - np.repeat(start + low, book.levels)
    kept = (rank >= 0) & (rank < depth)
    return _Levels(np.minimum(book.levels, depth), book.tick[kept], book.stock[kept])


def _as_summed(tick: Ints, stock: Ints, decimals: int) -> Floats:
    """Turn whole sizes into the double that a vendor gets by adding two decimal parts: 1.6482400000000001."""
    unit = float(10**decimals)
    dice = _bits(0x5EED, tick ^ (stock << 20))
    share = ((dice >> np.uint64(8)) & np.uint64(255)).astype(np.int64)
    share[(dice & np.uint64(255)) >= SUMMED_OF_256] = 0  # one position stands here: nothing to add
    part = stock * share >> 8
    return part / unit + (stock - part) / unit


def _empty(seed: int, coin: str, minutes: Ints) -> NDArray[np.bool_]:
    """Which snapshots have no levels."""
    empty: NDArray[np.bool_] = _bits(_stream(seed, coin, "empty"), minutes) % np.uint64(EMPTY_ONE_IN) == 0
    return empty


def _left_out(seed: int, coin: str, minutes: Ints) -> NDArray[np.bool_]:
    """Which points a market with gaps does not have: single ones, and here and there a run."""
    single: NDArray[np.bool_] = _bits(_stream(seed, coin, "gap"), minutes) % np.uint64(GAP_ONE_IN) == 0
    stretch, offset = np.divmod(minutes, GAP_STRETCH_MINUTES)
    dice = _bits(_stream(seed, coin, "gap run"), stretch)
    length = ((dice >> np.uint64(16)) % np.uint64(GAP_RUN_LONGEST - 1)).astype(np.int64) + 2
    begin = ((dice >> np.uint64(32)) % np.uint64(GAP_STRETCH_MINUTES - GAP_RUN_LONGEST)).astype(np.int64)
    run: NDArray[np.bool_] = (dice % np.uint64(GAP_RUN_ONE_IN) == 0) & (begin <= offset) & (offset < begin + length)
    return single | run


# --- positions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Habit:
    """How one kind of trader opens positions; a herd of them shares entry, side and leverage.

    Attributes
    ----------
    block : int
        Minutes of openings computed as one, on a grid counted from the epoch.
    slot : int
        Minutes between openings.
    herds : float
        Herds a slot, for a coin with a following of 1, at an ordinary hour.
    members : int
        Positions a herd.
    life : tuple of int
        Shortest and longest time until a position is closed, in minutes; log-uniform between them.
    size_usd, spread : float
        Median size, and the deviation of its logarithm.
    herd_spread : float
        The deviation of the logarithm of a whole herd's size: what makes some bands bright.
    blur : float
        Deviation of the liquidation distance among members, relative to the distance.
    leverages : tuple of int
        Drawn from alike; repeat one to make it more common.
    """

    name: str
    block: int
    slot: int
    herds: float
    members: int
    life: tuple[int, int]
    size_usd: float
    spread: float
    herd_spread: float
    blur: float
    leverages: tuple[int, ...]


HABITS = (
    # The speckle that comes and goes: it makes a tenth of the levels change from one minute to the next.
    Habit("scalp", 60, 1, 58.0, 1, (1, 45), 900.0, 1.9, 0.0, 0.25, (100, 50, 50, 50, 25, 25, 25, 25, 10, 10, 10, 5)),
    # The bands: many positions at nearly one price, for hours and days.
    Habit(
        "swing", 1440, 5, 0.4, 8, (180, 6 * 1440), 9_000.0, 1.2, 1.9, 0.006, (100, 50, 50, 25, 25, 25, 10, 10, 10, 5)
    ),
)
MAINTENANCE = 0.1  # share of the distance 1/leverage that the exchange keeps: positions go before nothing is left


@dataclass(frozen=True, slots=True)
class _Positions:
    opened: Ints  # minute of the first snapshot that has it
    closed: Ints  # minute of the first snapshot that has it no more
    tick: Ints  # where it would be liquidated
    size: Ints  # in smallest sizes


def _standing(seed: int, coin: str, minutes: Ints) -> _Positions:
    """Every position that may stand at one of the minutes (ascending), and some that do not."""
    blocks = [
        _opened_in(seed, coin, habit, int(block))
        for habit in HABITS
        for block in _blocks_reaching(minutes, habit.block, habit.life[1])
    ]
    return _Positions(
        np.concatenate([block.opened for block in blocks]),
        np.concatenate([block.closed for block in blocks]),
        np.concatenate([block.tick for block in blocks]),
        np.concatenate([block.size for block in blocks]),
    )


def _blocks_reaching(minutes: Ints, block: int, life: int) -> Ints:
    """Blocks whose openings can still stand at one of the minutes."""
    back = np.append(np.arange(0, life, block), life - 1)
    return np.unique((minutes[:, np.newaxis] - back) // block)


@lru_cache(maxsize=BLOCKS_KEPT)
def _opened_in(seed: int, coin: str, habit: Habit, block: int) -> _Positions:
    """Open one block of the fixed grid: its positions, with the minute in which each ends."""
    listing = listing_of(coin)
    start = block * habit.block
    path = _path(seed, coin, start, start + habit.block + habit.life[1])
    slots = np.arange(start, start + habit.block, habit.slot)
    dice = _bits(_stream(seed, coin, habit.name + " arrivals"), slots)
    wanted = habit.herds * listing.following * path.bustle[slots - path.start]
    herds = (wanted + _uniform(dice, 0)).astype(np.int64)
    slot = np.repeat(slots, herds)
    number = np.arange(len(slot)) - np.repeat(np.cumsum(herds) - herds, herds)
    herd = _bits(_stream(seed, coin, habit.name + " herd"), slot * 4096 + number)
    member = _bits(
        _stream(seed, coin, habit.name + " member"),
        (np.repeat(slot * 4096 + number, habit.members) * 64 + np.tile(np.arange(habit.members), len(slot))),
    )
    herd, opened = np.repeat(herd, habit.members), np.repeat(slot, habit.members)

    leverage = np.array(habit.leverages)[(_uniform(herd, 0) * len(habit.leverages)).astype(np.int64)]
    distance = (1 - MAINTENANCE) / leverage * (1 + habit.blur * _normal(member, 0))
    short = (herd >> np.uint64(20)) & np.uint64(1) == 1
    entry = path.price[opened - path.start] * (1 + 0.0004 * _normal(herd, 24))
    tick = np.rint(entry * np.where(short, 1 + distance, 1 - distance)).astype(np.int64)

    size = _size_table(habit.spread)[_pick(member, 12)] * _size_table(habit.herd_spread)[_pick(herd, 36)]
    size *= 0.75 + 0.5 * _uniform(member, 24)
    units = np.rint(size * (habit.size_usd / listing.price * 10**listing.size_decimals)).astype(np.int64)

    life = _life_table(*habit.life)[_pick(member, 48)]
    swept = np.where(
        short,
        _first_reaching(path.high, opened + 1 - path.start, tick.astype(np.float64)),
        _first_reaching(-path.low, opened + 1 - path.start, -tick.astype(np.float64)),
    )
    closed = np.minimum(opened + life, swept + path.start)
    kept = (units > 0) & (closed > opened)
    return _Positions(opened[kept], closed[kept], tick[kept], units[kept])


def _first_reaching(values: Floats, start: Ints, target: Floats) -> Ints:
    """For each start, the first index at or after it where values >= target; len(values) if there is none.

    Strides of halving length over the maxima of all runs of that length: 13 vectorised steps for a week.
    """
    # Infinity past the end: no stride leads beyond it.
    maxima = [np.append(values, np.inf)]
    while (stride := 1 << (len(maxima) - 1)) * 2 <= len(values):
        doubled = np.full(len(values) + 1, np.inf)
        doubled[:-stride] = np.maximum(maxima[-1][:-stride], maxima[-1][stride:])
        maxima.append(doubled)
    at = start.copy()
    for power, of_run in reversed(list(enumerate(maxima))):
        at += (of_run[at] < target) * (1 << power)
    return at


@lru_cache(maxsize=64)
def _size_table(spread: float) -> Floats:
    """Quantiles of a log-normal of median 1: no transcendental function where millions are drawn."""
    return np.exp(spread * _NORMAL)


@lru_cache(maxsize=64)
def _life_table(shortest: int, longest: int) -> Ints:
    """Quantiles of a log-uniform time, in minutes."""
    return np.rint(shortest * (longest / shortest) ** _UNIFORM).astype(np.int64)


# --- the price ----------------------------------------------------------------------------------------------------

# The path is the sum of noises on ever coarser grids (1, 2, 4 ... minutes), each sqrt(2) times as strong as the finer
# one: a random walk that can be read off at any minute. The last grid is of about a year; beyond, the price returns to
# where the listing has it.
OCTAVES = 20
BRISK_OCTAVES = 9  # those up to about four hours are louder when the market is busy
FINEST = 0.00032  # of the price, for a volatility of 1
COARSEST = 0.11  # the most that one grid may move it, so that coins of high volatility stay on their price grid
TICK_FRACTIONS = 64  # the path in 64ths of a step: what a processor's last bit of exp() differs by is rounded away


@dataclass(frozen=True, slots=True)
class _Path:
    start: int  # minute of index 0
    price: Floats  # in ticks, at the minute
    high: Floats  # in ticks, over the minute that ends here
    low: Floats
    bustle: Floats  # around 1: how busy the market is


def _prices(seed: int, coin: str, minutes: Ints) -> Floats:
    """Read the price at each minute, in ticks."""
    days, minute_of_day = np.divmod(minutes, DAY_MINUTES)
    prices = np.empty(len(minutes))
    for day in np.unique(days):
        of_day = days == day
        prices[of_day] = _path_of_day(seed, coin, int(day)).price[minute_of_day[of_day]]
    return prices


def _path(seed: int, coin: str, start: int, end: int) -> _Path:
    """Cut the path over [start, end), in minutes, out of its days."""
    first = start // DAY_MINUTES
    days = [_path_of_day(seed, coin, day) for day in range(first, -(-end // DAY_MINUTES))]
    cut = slice(start - first * DAY_MINUTES, end - first * DAY_MINUTES)
    return _Path(
        start,
        np.concatenate([day.price for day in days])[cut],
        np.concatenate([day.high for day in days])[cut],
        np.concatenate([day.low for day in days])[cut],
        np.concatenate([day.bustle for day in days])[cut],
    )


@lru_cache(maxsize=DAYS_KEPT)
def _path_of_day(seed: int, coin: str, day: int) -> _Path:
    """One day of the path: 1,440 minutes, and the one before for the first minute's range."""
    listing = listing_of(coin)
    start = day * DAY_MINUTES
    minutes = np.arange(start - 1, start + DAY_MINUTES)
    bustle = _bustle(seed, coin, minutes)
    logarithm = np.zeros(len(minutes))
    for octave in range(OCTAVES):
        strength = min(FINEST * listing.volatility * 2 ** (octave / 2), COARSEST)
        noise = strength * _noise(_stream(seed, coin, f"path {octave}"), minutes, 1 << octave)
        logarithm += noise * np.sqrt(bustle) if octave < BRISK_OCTAVES else noise
    price = np.rint(np.exp(logarithm) * (listing.price_in_ticks * TICK_FRACTIONS)) / TICK_FRACTIONS
    wick = 1 + np.abs(_normal(_bits(_stream(seed, coin, "wick"), minutes[1:]), 0)) * (0.0008 * listing.volatility)
    return _Path(
        start,
        price[1:],
        np.maximum(price[1:], price[:-1]) * wick,
        np.minimum(price[1:], price[:-1]) / wick,
        bustle[1:],
    )


# How busy each hour of a UTC day is: Europe's morning, then New York's.
NIGHT_AND_MORNING = (0.8, 0.8, 0.75, 0.7, 0.65, 0.65, 0.7, 0.85, 1.0, 1.05, 1.0, 0.95)
AFTERNOON_AND_EVENING = (1.05, 1.3, 1.5, 1.45, 1.35, 1.25, 1.15, 1.1, 1.1, 1.0, 0.9, 0.85)
HOURS = np.array((*NIGHT_AND_MORNING, *AFTERNOON_AND_EVENING))


def _bustle(seed: int, coin: str, minutes: Ints) -> Floats:
    """How busy the market is: the hour of the day times slow swings, so that storms last and pass."""
    hour, minute = np.divmod(minutes % DAY_MINUTES, 60)
    by_hour = HOURS[hour] + (HOURS[(hour + 1) % 24] - HOURS[hour]) * (minute / 60)
    swings = 0.25 * _noise(_stream(seed, coin, "hours"), minutes, 150)
    swings += 0.22 * _noise(_stream(seed, coin, "days"), minutes, 2000)
    bustle: Floats = by_hour * np.exp(swings)
    return bustle


def _noise(stream: int, minutes: Ints, spacing: int) -> Floats:
    """Draw standard normal values every `spacing` minutes, and straight lines between them."""
    # Without a shift of its own, every grid would have a knot at the epoch and kink at the same hours.
    knot, offset = np.divmod(minutes + stream % spacing, spacing)
    first = int(knot[0])
    values = _normal(_bits(stream, np.arange(first, int(knot[-1]) + 2)), 0)
    left = values[knot - first]
    noise: Floats = left + (values[knot - first + 1] - left) * (offset / spacing)
    return noise


# --- randomness ---------------------------------------------------------------------------------------------------

_UNIFORM = (np.arange(4096) + 0.5) / 4096
_NORMAL = np.array([NormalDist().inv_cdf(u) for u in _UNIFORM])


@lru_cache(maxsize=4096)
def _stream(seed: int, coin: str, name: str) -> int:
    """Make a 64-bit key for one use of randomness; Python's own hash() of text differs from process to process."""
    text = f"{seed}\0{coin}\0{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _bits(stream: int, index: Ints) -> Bits:
    """64 random bits for each index: splitmix64's finish over a counter."""
    bits = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _pick(bits: Bits, shift: int) -> Ints:
    """12 of the bits, as an index into a table of quantiles."""
    return ((bits >> np.uint64(shift)) & np.uint64(4095)).astype(np.int64)


def _uniform(bits: Bits, shift: int) -> Floats:
    """12 of the bits, as a number in (0, 1)."""
    return _UNIFORM[_pick(bits, shift)]


def _normal(bits: Bits, shift: int) -> Floats:
    """12 of the bits, as a standard normal."""
    return _NORMAL[_pick(bits, shift)]

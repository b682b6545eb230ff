"""The made-up market: pure, whatever the cut; and like a market to look at."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatpipe.sandbox import market as sandbox_market
from heatpipe.sandbox.market import COINS, Market, Points, listing_of

HOUR_S = 3600
DAY_S = 86_400
START_S = 1_774_742_400  # 2026-03-29
INTERVALS_S = (60, 300, 900, 3600, 14_400, 86_400, 604_800)
ODD_NAMES = ("PURR/USDC", "@107", "xyz:SILVER", "007", "ÅNGSTRÖM", "\ud800", "")


def digest(points: Points) -> str:
    columns = (points.timestamp_us, points.levels, points.price, points.volume)
    return blake2b(b"".join(column.tobytes() for column in columns), digest_size=16).hexdigest()


def joined(parts: list[Points]) -> Points:
    return Points(
        np.concatenate([part.timestamp_us for part in parts]),
        np.concatenate([part.levels for part in parts]),
        np.concatenate([part.price for part in parts]),
        np.concatenate([part.volume for part in parts]),
    )


def snapshots_of(points: Points) -> list[dict[float, float]]:
    ends = np.cumsum(points.levels)
    return [
        dict(zip(points.price[end - n : end].tolist(), points.volume[end - n : end].tolist(), strict=True))
        for end, n in zip(ends.tolist(), points.levels.tolist(), strict=True)
    ]


@settings(max_examples=25, deadline=None)
@given(
    coin=st.sampled_from(["BTC", "DOGE", "xyz:SILVER"]),
    interval_s=st.sampled_from([60, 300, 3600]),
    start=st.integers(0, 900_000),
    cuts=st.lists(st.integers(0, 700), max_size=4),
    usd=st.booleans(),
    depth=st.sampled_from([200, 1500]),
)
def test_any_cut_of_a_span_gives_the_same_snapshots(
    coin: str, interval_s: int, start: int, cuts: list[int], usd: bool, depth: int
) -> None:
    market = Market(seed=3, gaps=True)
    points = 300 if interval_s < HOUR_S else 40
    start_s = START_S - start
    edges = [start_s, *sorted(start_s + cut % points * interval_s + cut for cut in cuts), start_s + points * interval_s]
    edges = np.minimum(edges, edges[-1]).tolist()
    whole = market.snapshots(coin, interval_s, edges[0], edges[-1], depth=depth, usd=usd)
    parts = [market.snapshots(coin, interval_s, a, b, depth=depth, usd=usd) for a, b in pairwise(edges)]
    assert digest(joined(parts)) == digest(whole)


def test_another_process_sees_the_same_market() -> None:
    program = (
        "from heatpipe.sandbox.market import Market; import hashlib;"
        f"p = Market(5).snapshots('@107', 60, {START_S}, {START_S + HOUR_S}, usd=True);"
        "c = (p.timestamp_us, p.levels, p.price, p.volume);"
        "print(hashlib.blake2b(b''.join(x.tobytes() for x in c), digest_size=16).hexdigest())"
    )
    # -R: another random seed for hash() in every process.
    other = subprocess.run([sys.executable, "-R", "-c", program], check=True, capture_output=True, text=True)
    assert other.stdout.strip() == digest(Market(5).snapshots("@107", 60, START_S, START_S + HOUR_S, usd=True))


def test_threads_see_the_same_market() -> None:
    def ask(hour: int) -> str:
        return digest(Market(11).snapshots("SOL", 60, START_S + hour * HOUR_S, START_S + (hour + 1) * HOUR_S))

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(ask, [0, 1, 2, 3] * 4))
    assert together == [ask(hour) for hour in (0, 1, 2, 3)] * 4


def test_seed_and_coin_make_another_market() -> None:
    spans = [
        Market(seed).snapshots(coin, 60, START_S, START_S + 600) for seed in (0, 1) for coin in ("BTC", "ETH", "Btc")
    ]
    assert len({digest(span) for span in spans}) == len(spans)


@pytest.mark.parametrize("interval_s", INTERVALS_S)
def test_one_point_per_interval_at_its_start(interval_s: int) -> None:
    start_s = START_S + 17
    points = Market().snapshots("HYPE", interval_s, start_s, start_s + 7 * interval_s)
    first_s = -(-start_s // interval_s) * interval_s
    assert points.timestamp_us.tolist() == [(first_s + k * interval_s) * 1_000_000 for k in range(7)]


@pytest.mark.parametrize("interval_s", [300, 3600, 86_400])
def test_a_longer_interval_samples_the_minute_at_its_start(interval_s: int) -> None:
    market = Market()
    points = market.snapshots("ETH", interval_s, START_S, START_S + 3 * interval_s)
    minutes = [market.snapshots("ETH", 60, START_S + k * interval_s, START_S + k * interval_s + 60) for k in range(3)]
    assert digest(points) == digest(joined(minutes))


def test_the_span_is_half_open_and_may_be_empty() -> None:
    assert Market().snapshots("BTC", 60, START_S, START_S + 60).timestamp_us.tolist() == [START_S * 1_000_000]
    for end_s in (START_S, START_S - 600):
        empty = Market().snapshots("BTC", 60, START_S, end_s)
        assert [len(empty.timestamp_us), len(empty.levels), len(empty.price), len(empty.volume)] == [0, 0, 0, 0]


@pytest.mark.parametrize("coin", [*COINS, *ODD_NAMES])
@pytest.mark.parametrize("usd", [False, True])
def test_levels_are_sound(coin: str, usd: bool) -> None:
    points = Market().snapshots(coin, 60, START_S, START_S + 1800, usd=usd)
    assert points.levels.sum() == len(points.price) == len(points.volume) > 0
    assert (points.price > 0).all()
    assert np.isfinite(points.volume).all()
    assert (points.volume > 0).all()
    for snapshot in snapshots_of(points):
        prices = list(snapshot)
        assert prices == sorted(set(prices))


@pytest.mark.parametrize("coin", [*COINS, *ODD_NAMES])
def test_prices_lie_on_a_grid_and_are_short_to_write(coin: str) -> None:
    listing = listing_of(coin)
    price = Market().snapshots(coin, 60, START_S, START_S + 300).price
    steps = price * 10**listing.price_decimals / listing.step
    assert np.allclose(steps, np.rint(steps), rtol=0, atol=1e-6)
    assert max(len(repr(value)) for value in price.tolist()) <= 10


def test_usd_is_volume_times_price() -> None:
    in_coin = Market().snapshots("BTC", 60, START_S, START_S + 300)
    in_usd = Market().snapshots("BTC", 60, START_S, START_S + 300, usd=True)
    assert (in_usd.volume == in_coin.volume * in_coin.price).all()
    assert (in_usd.price == in_coin.price).all()


@pytest.mark.parametrize("coin", ["BTC", "ETH", "SOL"])
def test_a_snapshot_has_about_a_thousand_levels(coin: str) -> None:
    levels = [
        Market().snapshots(coin, HOUR_S, START_S - week * 7 * DAY_S, START_S - week * 7 * DAY_S + DAY_S).levels
        for week in range(6)
    ]
    assert 800 < np.concatenate(levels).mean() < 1250


@pytest.mark.parametrize("coin", ["BTC", "SOL", "DOGE", "@107"])
def test_about_a_tenth_of_the_levels_change_in_a_minute(coin: str) -> None:
    snapshots = [s for s in snapshots_of(Market().snapshots(coin, 60, START_S, START_S + 2 * HOUR_S)) if s]
    shares = []
    for before, after in pairwise(snapshots):
        prices = before.keys() | after.keys()
        shares.append(sum(before.get(price) != after.get(price) for price in prices) / len(prices))
    assert 0.05 < np.mean(shares) < 0.2


def test_some_volumes_carry_the_noise_of_a_sum() -> None:
    volumes = Market().snapshots("BTC", 60, START_S, START_S + HOUR_S).volume
    noisy = [value for value in volumes.tolist() if round(value, 5) != value]
    assert 0.08 < len(noisy) / len(volumes) < 0.18
    assert np.abs(np.array(noisy) * 1e5 - np.rint(np.array(noisy) * 1e5)).max() < 1e-3


def test_some_snapshots_have_no_levels() -> None:
    levels = Market().snapshots("007", 60, START_S, START_S + 7 * DAY_S, depth=1).levels
    assert 1 <= (levels == 0).sum() <= 12  # 3.4 expected


def test_only_a_market_with_gaps_leaves_intervals_out() -> None:
    span = ("007", 60, START_S, START_S + 8 * DAY_S)
    whole, holed = Market().snapshots(*span, depth=1), Market(gaps=True).snapshots(*span, depth=1)
    minutes = 8 * 1440
    assert len(whole.timestamp_us) == minutes
    missing = np.setdiff1d(whole.timestamp_us, holed.timestamp_us) // 60_000_000
    assert 0.0005 < len(missing) / minutes < 0.01
    runs = np.diff(np.flatnonzero(np.diff(missing, prepend=-9, append=missing[-1] + 9) != 1))
    assert 1 in runs
    assert 5 < runs.max() < 40


def test_the_cap_keeps_the_levels_nearest_the_price() -> None:
    minutes = np.arange(START_S // 60, START_S // 60 + 30)
    price = sandbox_market._prices(0, "SOL", minutes) * 0.02
    everything = snapshots_of(Market().snapshots("SOL", 60, START_S, START_S + 1800, depth=10**6))
    for depth in (1, 2, 333):
        capped = snapshots_of(Market().snapshots("SOL", 60, START_S, START_S + 1800, depth=depth))
        for of_price, levels, kept in zip(price.tolist(), everything, capped, strict=True):
            nearest = sorted(levels, key=lambda level: (round(abs(level - of_price), 9), level))[:depth]
            assert kept == {level: levels[level] for level in sorted(nearest)}


def test_busy_hours_of_btc_reach_the_included_depth() -> None:

    levels = Market().snapshots("BTC", 4 * HOUR_S, START_S - 60 * DAY_S, START_S).levels
    assert 0 < (levels == 1500).mean() < 0.2
    assert levels.max() == 1500


def test_no_level_survives_the_price() -> None:
    minutes = np.arange(START_S // 60, START_S // 60 + 1440)
    price = sandbox_market._prices(0, "BTC", minutes) * 10
    snapshots = snapshots_of(Market().snapshots("BTC", 60, START_S, START_S + DAY_S, depth=10**6))
    swept = 0
    for k, snapshot in enumerate(snapshots[:-30]):
        later = snapshots[k + 30]
        low, high = price[k : k + 31].min(), price[k : k + 31].max()
        crossed = [level for level in snapshot if low <= level <= high]
        swept += len(crossed)
        # What stands there now was opened since, by whoever trades at the highest leverage.
        assert all(later.get(level, 0) != snapshot[level] for level in crossed)
    assert swept > 1000


def test_bands_stand_at_the_distances_of_common_leverages() -> None:
    points = Market().snapshots("BTC", 4 * HOUR_S, START_S - 60 * DAY_S, START_S, depth=10**6)
    price = sandbox_market._prices(0, "BTC", points.timestamp_us // 60_000_000) * 10
    distance = np.abs(points.price / np.repeat(price, points.levels) - 1)
    near, between, far = (
        points.volume[(low < distance) & (distance < high)].sum() / (high - low)
        for low, high in ((0.02, 0.05), (0.12, 0.15), (0.23, 0.30))
    )
    assert near > 3 * between > 30 * far


def test_volumes_are_heavy_tailed() -> None:
    volume = np.sort(Market().snapshots("BTC", HOUR_S, START_S, START_S + DAY_S).volume)
    assert volume[-len(volume) // 100 :].sum() > 0.2 * volume.sum()


def test_the_first_touch_is_found_as_a_plain_search_finds_it() -> None:
    dice = np.random.default_rng(0)
    for length in range(1, 70):
        values = dice.integers(0, 30, length).astype(float)
        start, target = dice.integers(0, length + 1, 20), dice.integers(0, 33, 20).astype(float)
        found = sandbox_market._first_reaching(values, start, target)
        for at, wanted, got in zip(start, target, found, strict=True):
            assert got == next((i for i in range(at, length) if values[i] >= wanted), length)


@pytest.mark.parametrize("interval_s", [0, -60, 59, 90])
def test_an_interval_off_the_minute_is_refused(interval_s: int) -> None:
    with pytest.raises(ValueError, match="whole minutes"):
        Market().snapshots("BTC", interval_s, 0, 600)


def test_a_depth_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="depth of 1"):
        Market().snapshots("BTC", 60, 0, 600, depth=0)

"""What the vendor sells, held against the vendor's formulas in exact fractions."""

from dataclasses import replace
from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatpipe.model import DAY_S
from heatpipe.upstream import (
    BURST,
    HISTORY_DAYS,
    LIQUIDATIONS,
    UNSUPPORTED_INTERVALS,
    WEIGHT_PER_MINUTE,
    Interval,
)


def vendors_weight(points: int, depth: int, multiplier: int = 5) -> int:
    """Evaluate the formula as the vendor writes it down, without rounding in between."""
    base_weight = ceil(Fraction(points, 1000)) * multiplier
    depth_multiplier = 1 + Fraction(2, 10) * floor(Fraction(depth - 1, 1500))
    return max(1, ceil(base_weight * depth_multiplier))


@pytest.mark.parametrize(
    ("points", "depth", "weight"),
    [
        (1, 1500, 5),
        (1000, 1500, 5),
        (1001, 1500, 10),
        (1440, 1500, 10),  # a day of minutes pays for 2,000
        (2000, 1500, 10),
        (2001, 1500, 15),
        (5000, 1500, 25),
        (1000, 1, 5),  # less depth is not cheaper
        (1000, 1501, 6),
        (1000, 3000, 6),
        (1000, 3001, 7),
        (1000, 4500, 7),
        (1000, 4501, 8),
        (5000, 3001, 35),
        (1000, 10_501, 12),  # where doubles can be one off
        (3000, 10_501, 36),
        (5000, 100_000, 355),
    ],
)
def test_weight_steps_at_a_thousand_points_and_at_each_band_of_depth(points: int, depth: int, weight: int) -> None:
    assert LIQUIDATIONS.weigh(points, depth) == weight
    assert vendors_weight(points, depth) == weight


@given(st.integers(1, 50_000), st.integers(1, 1_000_000), st.integers(1, 20))
def test_weight_is_the_vendors_formula_in_exact_arithmetic(points: int, depth: int, multiplier: int) -> None:
    weight = replace(LIQUIDATIONS, weight=multiplier).weigh(points, depth)
    assert weight == vendors_weight(points, depth, multiplier)
    assert type(weight) is int


def test_the_type_is_sold_at_the_documented_weight_and_limits() -> None:
    found = (LIQUIDATIONS.name, LIQUIDATIONS.weight, LIQUIDATIONS.max_points, LIQUIDATIONS.included_depth)
    assert found == ("HYPERLIQUID_LIQUIDATION_AGG", 5, 5000, 1500)
    assert (WEIGHT_PER_MINUTE, BURST, HISTORY_DAYS) == (750, 1500, 365)


@given(st.integers(1, 100_000))
def test_a_window_of_a_thousand_points_costs_per_point_what_one_of_five_thousand_does(depth: int) -> None:
    assert 5 * LIQUIDATIONS.weigh(1000, depth) == LIQUIDATIONS.weigh(5000, depth)


@pytest.mark.parametrize(("points", "depth"), [(0, 1500), (-1, 1500), (1, 0), (1, -5)])
def test_a_request_for_nothing_has_no_weight(points: int, depth: int) -> None:
    with pytest.raises(ValueError, match="at least 1 point and 1 level"):
        LIQUIDATIONS.weigh(points, depth)


def test_intervals_are_the_documented_ones_and_divide_a_day() -> None:
    assert {each.name: each.seconds for each in Interval} == {
        "MINUTE": 60,
        "FIVE_MINUTES": 300,
        "FIFTEEN_MINUTES": 900,
        "HOUR": 3600,
        "FOUR_HOURS": 14_400,
        "DAY": 86_400,
    }
    assert all(DAY_S % each.seconds == 0 for each in Interval)
    assert set(UNSUPPORTED_INTERVALS) == {"WEEK"}

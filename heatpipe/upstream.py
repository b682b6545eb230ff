"""What the vendor sells: type, intervals, weight, limits. Pure; the one place where these facts stand.

Sources: [S] the vendor's page "Liquidation Heatmap"; [D] other pages of the vendor's documentation.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

DEFAULT_URL: Final = "https://api.kiyotaka.ai"
DEFAULT_KEY_HEADER: Final = "X-Kiyotaka-Key"
POINTS_PATH: Final = "/v1/points"

WEIGHT_PER_MINUTE: Final = 750
"""Weight that the Advanced tier allows per minute [D]."""
BURST: Final = 1500
"""Weight that the Advanced tier allows at once [D]."""
HISTORY_DAYS: Final = 365
"""Days of history that the Advanced tier sells [D]."""
LOOKBACK: Final = 60
"""Intervals that an update asks for again: whether points are published late, or revised, is not documented."""


class Interval(Enum):
    """A snapshot interval that heatpipe fetches; the value is its length in seconds, a divisor of a day [S] [D]."""

    MINUTE = 60
    FIVE_MINUTES = 300
    FIFTEEN_MINUTES = 900
    HOUR = 3600
    FOUR_HOURS = 14400
    DAY = 86400

    @property
    def seconds(self) -> int:
        """Length in seconds."""
        return self.value


UNSUPPORTED_INTERVALS: Final = {
    "WEEK": "on which day the upstream's weeks begin is not documented, so WEEK cannot be stored by date yet",
}


@dataclass(frozen=True, slots=True)
class DataType:
    """One data type of the vendor: its name, price and limits.

    Parameters
    ----------
    name : str
        Value of the request parameter ``type``.
    weight : int
        Weight of each started `points_per_weight` points.
    points_per_weight : int
        Quantum of cost, in points.
    max_points : int
        Most points that one request may ask for.
    included_depth : int
        Levels a snapshot that the base weight includes; each further band of as many costs a fifth more.
    max_depth : int
        Deepest `maxDepth` that heatpipe asks for. The vendor names no limit; this one keeps a single point's
        answer within a few MiB.
    """

    name: str
    weight: int
    points_per_weight: int
    max_points: int
    included_depth: int
    max_depth: int

    def weigh(self, points: int, depth: int) -> int:
        """Weight of a request for `points` points at `depth` levels, in exact integers.

        References
        ----------
        .. [1] Vendor documentation, rate limits: ``ceil(ceil(points / 1000) * 5 * (1 + 0.2 * bands))``, at least 1.
        """
        if points < 1 or depth < 1:
            raise ValueError(f"a request has at least 1 point and 1 level, not {points} and {depth}")
        quanta = -(-points // self.points_per_weight)
        bands = (depth - 1) // self.included_depth
        return max(1, -(-quanta * self.weight * (5 + bands) // 5))


LIQUIDATIONS: Final = DataType(
    name="HYPERLIQUID_LIQUIDATION_AGG",
    weight=5,
    points_per_weight=1000,
    max_points=5000,
    included_depth=1500,
    max_depth=100_000,
)

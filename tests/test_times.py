"""What Python, numpy and pandas call an instant, what a number means, and what is refused in words."""

import warnings
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any

import numpy as np
import pytest

from heatpipe.errors import ConfigError
from heatpipe.times import read_instant

MARCH = datetime(2026, 3, 1, tzinfo=UTC)
SECONDS = 1_772_323_200
MICROSECOND = timedelta(microseconds=1)


class Timestamp(datetime):
    """As pandas' own: a datetime with nanoseconds, which warns where they are dropped."""

    nanosecond = 7

    def to_pydatetime(self) -> datetime:
        warnings.warn("Discarding nonzero nanoseconds in conversion.", UserWarning, stacklevel=2)
        return datetime.fromtimestamp(self.timestamp(), UTC)


class NaT(datetime):
    """pandas' NaTType: a datetime that equals nothing."""

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = datetime.__hash__


class Converted:
    def to_pydatetime(self) -> datetime:
        return MARCH


class Written:
    def isoformat(self) -> str:
        return "2026-03-01T01:00:00+01:00"


@pytest.mark.parametrize(
    ("value", "micros"),
    [
        ("2026-03-01", 0),
        ("2026-03-01T00:00:00.25Z", 250_000),
        (date(2026, 3, 1), 0),
        (datetime(2026, 3, 1), 0),  # noqa: DTZ001 - without an offset it is UTC
        (datetime(2026, 3, 1, 1, tzinfo=timezone(timedelta(hours=1))), 0),
        (SECONDS, 0),
        (float(SECONDS), 0),
        (SECONDS + 0.5, 500_000),
        *((kind(SECONDS), 0) for kind in (np.int64, np.uint32, np.float32)),
        (np.str_("2026-03-01T00"), 0),
        *(
            (np.datetime64("2026-03-01", unit), 0) for unit in ("D", "h", "s", "ms", "us", "ns")
        ),  # numpy itself has no picoseconds of this century
        (np.datetime64("2026-03"), 0),
        (np.datetime64("2026-03-01T00:00:00.000001"), 1),
        (np.datetime64("2026-03-01T00:00:00.000000001"), 1),  # rounded up: no row lies between
        (Timestamp(2026, 3, 1, tzinfo=UTC), 1),
        (Converted(), 0),
        (Written(), 0),
    ],
)
def test_an_instant_is_read_as_utc_unless_it_says_otherwise(value: Any, micros: int) -> None:
    found = read_instant(value, "start")
    assert found == MARCH + micros * MICROSECOND
    assert found.tzinfo is UTC


@pytest.mark.parametrize("value", [0, -1, 1e-6, 253_402_300_799, -62_135_596_800])
def test_a_number_is_unix_seconds_of_any_year(value: float) -> None:
    assert read_instant(value, "start") == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=value)


@pytest.mark.parametrize("factor", [1e3, 1e6, 1e9])
@pytest.mark.parametrize("kind", [int, float, np.int64, np.uint64, np.float64])
def test_a_number_that_cannot_be_seconds_is_refused(kind: type, factor: float) -> None:
    with pytest.raises(ConfigError, match=r"^start: a number as a time is Unix seconds, not milliseconds.*1.*77"):
        read_instant(kind(SECONDS * factor), "start")


@pytest.mark.parametrize(
    "value",
    [
        *(float("nan"), float("inf"), np.float32("nan"), np.datetime64("NaT"), NaT(1, 1, 1)),
        *(True, False, np.True_, pytest.param(10**5000, id="huge"), -(10**12), "", "now", "1772323200", b"2026-03-01"),
        *(time(12), timedelta(1), np.timedelta64(1, "s"), np.datetime64("20000-01-01"), [SECONDS], object()),
        np.datetime64("-5000-01-01"),
    ],
)
def test_what_is_no_instant_is_refused_in_words(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^end: ") as raised:
        read_instant(value, "end")
    assert "\n" not in str(raised.value)

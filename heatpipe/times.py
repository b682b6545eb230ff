"""Instants as people, Python, numpy and pandas write them, to a datetime in UTC. Pure."""

import warnings
from datetime import UTC, date, datetime, time, timedelta
from math import isfinite
from typing import Any, Final

import numpy as np

from heatpipe.errors import ConfigError

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
SECONDS: Final = range(-62_135_596_800, 253_402_300_800)
"""Of the years that a calendar has, 1 to 9999."""

Instant = str | date | float | np.datetime64 | np.integer[Any] | np.floating[Any]
"""What is taken for one; pandas' Timestamp is a datetime, a number is Unix seconds."""


def read_instant(value: Instant, name: str) -> datetime:
    """Read what Python, numpy or pandas call an instant; without an offset it is UTC, a number is Unix seconds.

    What is finer than a microsecond is rounded up: no row of the dataset is, so that a bound means the same.

    Parameters
    ----------
    value : str, date, datetime, int, float, numpy.datetime64, numpy number or pandas.Timestamp
        What the user gave.
    name : str
        What it is, for the error.

    Raises
    ------
    ConfigError
        It is none of them, or not a time, or a number that cannot be seconds.
    """
    if isinstance(value, bool | np.bool_ | np.timedelta64):  # numpy counts lengths among the integers
        raise ConfigError(f"{name}: {value} is no time; give a date, an instant, or Unix seconds")
    if isinstance(value, int | float | np.integer | np.floating):
        return _read_number(value, name)
    if isinstance(value, np.datetime64):
        return _read_numpy(value, name)
    if isinstance(value, datetime) and value != value:  # as pandas' NaT has it
        raise ConfigError(f"{name}: NaT is no time")
    finer = 0
    if hasattr(value, "to_pydatetime"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nanoseconds are dropped
            finer = getattr(value, "nanosecond", 0)
            value = value.to_pydatetime()
    elif not isinstance(value, str | date) and hasattr(value, "isoformat"):
        value = value.isoformat()
    return read_date(value, name) + bool(finer) * MICROSECOND


def _read_number(value: Any, name: str) -> datetime:
    if not isinstance(value, int | np.integer) and not isfinite(value):
        raise ConfigError(f"{name}: {value} is no time")
    if not SECONDS.start <= value < SECONDS.stop:
        size = "is too large" if abs(value) > 10**30 else f"is {value}, which lies in no year that a calendar has"
        raise ConfigError(f"{name}: a number as a time is Unix seconds, not milliseconds or finer; this one {size}")
    if isinstance(value, int | np.integer):
        return EPOCH + timedelta(seconds=int(value))
    return EPOCH + timedelta(microseconds=round(float(value) * 1e6))


def _read_numpy(value: np.datetime64, name: str) -> datetime:
    if np.isnat(value):
        raise ConfigError(f"{name}: NaT is no time")
    micros = value.astype("datetime64[us]")
    if micros < value:
        micros += np.timedelta64(1, "us")
    moment = micros.item()
    if not isinstance(moment, datetime):
        raise ConfigError(f"{name}: {value} lies in no year that a calendar has")
    return moment.replace(tzinfo=UTC)


def read_date(value: Any, name: str) -> datetime:
    """Read a date or an ISO 8601 instant; without an offset it is UTC.

    Parameters
    ----------
    value : str, date or datetime
        What the user wrote.
    name : str
        What it is, for the error.

    Raises
    ------
    ConfigError
        It is neither.
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ConfigError(
                f"{name}: {value!r} is not a date or an ISO 8601 instant; write 2026-03-01 or 2026-03-01T12:30:00Z"
            ) from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        raise ConfigError(f"{name}: {value!r} is not a date or an ISO 8601 instant")
    if value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    try:
        moment: datetime = value.astimezone(UTC)
    except OverflowError:
        raise ConfigError(f"{name}: {value.isoformat()} lies in no year that a calendar has in UTC") from None
    return moment


def whole_seconds(moment: datetime, name: str) -> int:
    """Return an instant as Unix seconds; a ConfigError where it is finer."""
    if moment.microsecond:
        raise ConfigError(f"{name}: {moment.isoformat()} is finer than a second")
    return int(moment.timestamp())

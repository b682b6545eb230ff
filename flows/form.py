"""The fields of the forms: their types, and how what was filled in becomes targets.

A field is one plain type with a default: where a field may be null, the form asks for its type first.
"""

from typing import Annotated, Any, Final

from prefect import runtime
from pydantic import BeforeValidator, WithJsonSchema

from heatpipe.config import Target, parse_instant, parse_last
from heatpipe.errors import ConfigError
from heatpipe.model import UNITS, Series
from heatpipe.upstream import UNSUPPORTED_INTERVALS, Interval

NAMED_COINS: Final = 3
"""Coins that the name of a run tells; the others are counted."""


def _choice(*names: str) -> Any:
    """Offer names in a drop-down; whatever else comes is refused by heatpipe, in one sentence."""
    return WithJsonSchema({"type": "string", "enum": list(names)})


IntervalName = Annotated[str, _choice(*(name for name in Interval.__members__ if name not in UNSUPPORTED_INTERVALS))]
UnitName = Annotated[str, _choice(*UNITS)]
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value), WithJsonSchema({"type": "string"})]


def read_series(coins: list[str], interval: str, unit: str, depth: int) -> list[Series]:
    """Return the series of some coins, each once.

    Raises
    ------
    ConfigError
        One of them is not possible.
    """
    return [Series(coin, interval, unit, depth) for coin in dict.fromkeys(coins)]


def read_targets(series: list[Series], start: str, end: str = "") -> list[Target]:
    """Return what is wanted of some series.

    Raises
    ------
    ConfigError
        A time cannot be read.
    """
    bounds = {
        name: parse_instant(text.strip(), name) for name, text in (("start", start), ("end", end)) if text.strip()
    }
    return [Target(one, **bounds) for one in series]


def read_last(last: str) -> int | None:
    """Return the seconds of a length such as ``7d``; None for none.

    Raises
    ------
    ConfigError
        It is no length.
    """
    if not last.strip():
        return None
    try:
        return parse_last(last.strip())
    except ConfigError as exc:
        raise ConfigError(str(exc).removeprefix("--")) from exc  # here it is a field, not a flag


def name_run() -> str:
    """Say coins and span in the run's name."""
    given = runtime.flow_run.parameters
    coins = list(given.get("coins") or ["all series"])
    more = len(coins) - NAMED_COINS
    words = [*coins[:NAMED_COINS], *([f"and {more} more"] if more > 0 else []), given.get("interval", ""), _span(given)]
    return " ".join(word for word in words if word)


def _span(given: dict[str, Any]) -> str:
    if given.get("start"):
        return f"{given['start']} to {given.get('end') or 'now'}"
    if not given.get("last"):
        return "to now" if "interval" in given else "all days"
    return f"last {given['last']}" + (f" to {given['end']}" if given.get("end") else "")

"""Flags, environment and TOML file to Settings, in that order of precedence. Reads one file and the environment."""

import os
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from math import isfinite
from typing import Any, Final, Self
from urllib.parse import urlsplit

from heatpipe.errors import ConfigError, KeyRefusedError
from heatpipe.model import Series, Span, show_time
from heatpipe.plan import Horizon
from heatpipe.redaction import KEY_VARIABLE, Secret
from heatpipe.times import read_date, whole_seconds
from heatpipe.upstream import BURST, DEFAULT_KEY_HEADER, DEFAULT_URL, HISTORY_DAYS, WEIGHT_PER_MINUTE

DEFAULT_ROOT: Final = "data"
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
UNSHOWN: Final = "(a value not shown: it may be a secret)"
SHOWN_DIGITS: Final = 16
"""Most characters of a number that is shown."""
HTTP_HEADERS: Final = re.compile(
    "(accept|access-control|content|if|proxy|sec|upgrade|x-forwarded)(-.+)?|age|allow|alt-svc|cache-control|connection"
    "|cookie2?|date|etag|expect|expires|forwarded|from|host|http2-settings|keep-alive|last-modified|link|location"
    "|max-forwards|origin|pragma|prefer|priority|range|referer|retry-after|server|set-cookie2?|te|trailers?"
    "|transfer-encoding|user-agent|vary|via|warning|www-authenticate"
)
"""What HTTP, or a proxy on the way, reads for its own ends. Not Authorization: that is for keys."""
MOST_FILE_BYTES: Final = 4 << 20
"""A configuration of 5,000 coins takes a hundredth of it."""
MOST_DOTS: Final = 100
"""In a line: of a key with more parts the parser makes as many keys, each longer by one, which takes the square."""


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to keep on disk, from a ``[[series]]`` table or from flags.

    Parameters
    ----------
    series : Series
        What.
    start, end : int or None
        From when to when, in Unix seconds; None where it was not said.
    """

    series: Series
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, checked.

    Parameters
    ----------
    api_key : Secret or None
        From the environment only.
    url, key_header : str
        Where the API is, and the header that carries the key.
    weight_per_minute, burst : int
        The key's budget.
    history_days : int
        Days of history that the tier sells; 0 for all.
    timeout_s : float
        Seconds without a byte, or for connecting, after which a request has failed.
    patience_s : float
        Seconds for which one window may keep failing.
    concurrency : int
        Requests in flight.
    settle_s : int
        Seconds after its end at which an interval is closed.
    root : str
        The dataset's folder; a ``~`` in front is the user's home.
    retired : tuple of str
        Coins that an update of all that is on disk, or of the file's ``[[series]]``, leaves out.
    targets : tuple of Target
        What the file's ``[[series]]`` name.
    """

    api_key: Secret | None = field(default=None)
    url: str = DEFAULT_URL
    key_header: str = DEFAULT_KEY_HEADER
    weight_per_minute: int = WEIGHT_PER_MINUTE
    burst: int = BURST
    history_days: int = HISTORY_DAYS
    timeout_s: float = 60.0
    patience_s: float = 600.0
    concurrency: int = 4
    settle_s: int = 120
    root: str = DEFAULT_ROOT
    retired: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()

    def __post_init__(self) -> None:
        for name, spec in _FIELDS.items():
            spec.check(getattr(self, name), name)
        object.__setattr__(self, "root", os.path.expanduser(self.root))  # noqa: PTH111 - a Path would lose a slash

    def horizon(self, now: float) -> Horizon:
        """Return what can be asked for at a moment."""
        return Horizon(now, self.settle_s, self.history_days)

    def key(self) -> Secret:
        """Return the API key.

        Raises
        ------
        KeyRefusedError
            There is none.
        """
        if self.api_key is None:
            raise KeyRefusedError(
                f"no API key: set the environment variable {KEY_VARIABLE} (the sandbox takes 'sandbox-key')"
            )
        return self.api_key

    @classmethod
    def load(
        cls,
        overrides: Mapping[str, Any] | None = None,
        *,
        file: str | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> Self:
        """Put settings together: `overrides`, else the environment, else the TOML file, else the defaults.

        Parameters
        ----------
        overrides : mapping, optional
            Fields of Settings by name; None stands for "not given".
        file : str, optional
            Path of a TOML file.
        environment : mapping
            Variables, `os.environ` unless a test says otherwise.

        Raises
        ------
        ConfigError
            A value, a key or the file is wrong; names it and its place.
        """
        found: dict[str, Any] = {} if file is None else _read_file(file)
        found |= _read_environment(environment)
        for name, value in (overrides or {}).items():
            if value is not None:
                found[name] = _FIELDS[name].check(value, _FIELDS[name].flag)
        settings = cls(**found)
        _check_working_folder(settings.root)
        return settings


def default_root() -> str:
    """Return the folder of the dataset where none was named: that of HEATPIPE_DATA, else ``data``."""
    return os.environ.get("HEATPIPE_DATA") or DEFAULT_ROOT


def choose_root(root: str | os.PathLike[str] | None) -> str:
    """Return the dataset's folder: the one that is given, else that of HEATPIPE_DATA, else ``data``.

    Raises
    ------
    ConfigError
        It is no local folder.
    """
    given = os.fspath(root) if isinstance(root, os.PathLike) else root
    return str(_FIELDS["root"].check(default_root() if given is None else given, "root"))


def _check_working_folder(root: str) -> None:
    if not os.path.isabs(root):  # noqa: PTH117 - a text is enough
        try:
            os.getcwd()  # noqa: PTH109 - as it is
        except OSError as exc:
            raise ConfigError(
                f"{root} is a path from the working folder, and that is gone ({exc.strerror}): "
                "change into one that is there, or give --data an absolute path"
            ) from exc


@dataclass(frozen=True, slots=True)
class _Field:
    """Where one setting can be given, and what it may be."""

    table: str
    key: str
    variable: str
    flag: str
    parse: Callable[[str], Any]
    problem: Callable[[Any], str | None]

    def check(self, value: Any, place: str) -> Any:
        problem = self.problem(value)
        if problem:
            raise ConfigError(f"{place}: {problem}")
        return tuple(value) if isinstance(value, list) else value

    def read_text(self, text: str) -> Any:
        if _has_control(text):
            raise ConfigError(f"{self.variable}: {CONTROL}")
        try:
            value = self.parse(text)
        except ValueError:
            raise ConfigError(f"{self.variable}: {show_number(text)} is not a number") from None
        return self.check(value, self.variable)


def _number_from(least: float, most: float, *, whole: bool) -> Callable[[Any], str | None]:
    def problem(value: Any) -> str | None:
        shown = show_number(value)
        if isinstance(value, int) and abs(value) > most:  # it may be too large to be compared as a float
            return f"{shown} is not between {least} and {most}"
        kind = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind) or not isfinite(value):
            return f"{shown} is not a {'whole ' if whole else ''}number"
        return None if least <= value <= most else f"{shown} is not between {least} and {most}"

    return problem


def show_number(value: Any) -> str:
    """Show what was given where a number belongs, unless it looks like none: a secret may stand there by mistake."""
    if isinstance(value, int) and abs(value) >= 10**SHOWN_DIGITS:
        return UNSHOWN
    if isinstance(value, str):
        return repr(value) if re.fullmatch(rf"[0-9eE.,_+ -]{{0,{SHOWN_DIGITS}}}", value) else UNSHOWN
    return repr(value) if isinstance(value, int | float) else UNSHOWN


def _url_problem(value: Any) -> str | None:
    if not isinstance(value, str) or not all("!" <= character <= "~" for character in value):
        return f"{UNSHOWN} is not a URL such as {DEFAULT_URL}"
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return f"{UNSHOWN} is not a URL such as {DEFAULT_URL}"
    if "@" in value or parts.query or parts.fragment:
        return "a URL with a user, a password, a query or a fragment is refused"
    if parts.scheme not in ("http", "https") or not host:
        return f"{UNSHOWN} is not a URL such as {DEFAULT_URL}"
    if parts.scheme == "http" and host not in LOOPBACK:
        return f"with http the key would travel in clear: use https (http is for {', '.join(LOOPBACK)} only)"
    return None


def _header_problem(value: Any) -> str | None:
    if not isinstance(value, str) or not value or not all(c.isascii() and (c.isalnum() or c in "-_") for c in value):
        return f"{UNSHOWN} is not the name of an HTTP header such as {DEFAULT_KEY_HEADER}"
    if HTTP_HEADERS.fullmatch(value.lower().replace("_", "-")):
        return f"HTTP uses {value} itself; a key travels in a header of its own, such as {DEFAULT_KEY_HEADER}"
    return None


CONTROL: Final = "it holds a control character, such as the end of a line"


def _has_control(text: str) -> bool:
    return any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)


def _path_problem(value: Any) -> str | None:
    if not isinstance(value, str) or not value:
        return f"{UNSHOWN if value else repr(value)} is not a path"
    if _has_control(value):
        return CONTROL
    if value.startswith("~") and os.path.expanduser(value) == value:  # noqa: PTH111 - a Path raises
        return f"{value!r}: there is no user of that name; write ./{value} for a folder that is called so"
    return None


def _root_problem(value: Any) -> str | None:
    if problem := _path_problem(value):
        return problem
    if "://" in value or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", value):  # as Path writes s3://…
        return f"{UNSHOWN} is a URL: only local folders are supported"
    return None


def _split_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _coins_problem(value: Any) -> str | None:
    if not isinstance(value, list | tuple) or not all(isinstance(coin, str) for coin in value):
        return 'it is not a list of coins, such as ["LUNA", "FTT"]'
    try:
        for coin in value:
            Series(coin)
    except ConfigError as exc:
        return str(exc)
    return None


_FIELDS: Final = {
    name: _Field(*spec)
    for name, spec in {
        "url": ("api", "url", "HEATPIPE_API_URL", "--api-url", str, _url_problem),
        "key_header": ("api", "key_header", "HEATPIPE_KEY_HEADER", "key_header", str, _header_problem),
        "weight_per_minute": (
            *("api", "weight_per_minute", "HEATPIPE_WEIGHT_PER_MINUTE", "weight_per_minute"),
            *(int, _number_from(1, 10**9, whole=True)),
        ),
        "burst": ("api", "burst", "HEATPIPE_BURST", "burst", int, _number_from(5, 10**9, whole=True)),
        "history_days": (
            *("api", "history_days", "HEATPIPE_HISTORY_DAYS", "history_days"),
            *(int, _number_from(0, 36500, whole=True)),
        ),
        "timeout_s": (
            *("api", "timeout_s", "HEATPIPE_TIMEOUT_S", "timeout_s"),
            *(float, _number_from(0.01, 3600, whole=False)),
        ),
        "patience_s": (
            *("api", "patience_s", "HEATPIPE_PATIENCE_S", "patience_s"),
            *(float, _number_from(0, 86400, whole=False)),
        ),
        "concurrency": (
            *("api", "concurrency", "HEATPIPE_CONCURRENCY", "concurrency"),
            *(int, _number_from(1, 64, whole=True)),
        ),
        "settle_s": (
            *("api", "settle_s", "HEATPIPE_SETTLE_S", "settle_s"),
            *(int, _number_from(0, 86400, whole=True)),
        ),
        "root": ("dataset", "root", "HEATPIPE_DATA", "--data", str, _root_problem),
    }.items()
} | {"retired": _Field("dataset", "retired", "HEATPIPE_RETIRED", "retired", _split_names, _coins_problem)}


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, spec in _FIELDS.items():
        text = environment.get(spec.variable, "")
        if text:
            found[name] = spec.read_text(text)
    key = environment.get(KEY_VARIABLE, "").strip()
    if key:
        if not (key.isascii() and key.isprintable()):
            raise KeyRefusedError(f"{KEY_VARIABLE} holds characters that no API key has")
        found["api_key"] = Secret(key)
    return found


def _read_file(file: str) -> dict[str, Any]:
    if problem := _path_problem(file):
        raise ConfigError(f"--config: {problem}")
    text = _read_text(file)
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MOST_DOTS and not line.lstrip().startswith("#"):
            raise ConfigError(f"{file} is no configuration: line {number} has more than {MOST_DOTS} dots")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{file} is not TOML: {exc}") from exc
    tables: dict[str, Any] = {spec.table: {} for spec in _FIELDS.values()} | {"series": {}}
    _refuse_unknown(document, tables, file)
    found: dict[str, Any] = {}
    for table in ("api", "dataset"):
        keys = {spec.key: name for name, spec in _FIELDS.items() if spec.table == table}
        given = document.get(table, {})
        if not isinstance(given, dict):
            raise ConfigError(f"{file}: {table} is not a table; write [{table}]")
        if "api_key" in given or "key" in given:
            raise ConfigError(f"{file}: a key never stands in a file; set {KEY_VARIABLE}")
        _refuse_unknown(given, keys, f"{file}, [{table}]")
        for key, value in given.items():
            found[keys[key]] = _FIELDS[keys[key]].check(value, f"{file}, [{table}] {key}")
    found["targets"] = _read_targets(document.get("series", []), file)
    return found


def _read_text(file: str) -> str:
    """Read a text in UTF-8, with or without a byte order mark; of a device or a pipe, nothing."""
    try:
        descriptor = os.open(os.path.expanduser(file), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # noqa: PTH111
        with os.fdopen(descriptor, "rb") as opened:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"cannot read the configuration file {file}: it is a device or a pipe, not a file")
            found = opened.read(MOST_FILE_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"cannot read the configuration file {file}: {exc.strerror}") from exc
    if len(found) > MOST_FILE_BYTES:
        raise ConfigError(f"cannot read the configuration file {file}: it has more than {MOST_FILE_BYTES:,} bytes")
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ConfigError(f"cannot read the configuration file {file}: it is not UTF-8") from exc


def _refuse_unknown(given: Mapping[str, Any], known: Iterable[str], place: str) -> None:
    names = list(known)
    for key in given:
        if key not in names:
            near = get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(names))}"
            raise ConfigError(f"{place}: unknown key {key!r}; {hint}")


def _read_targets(tables: Any, file: str) -> tuple[Target, ...]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{file}: series is not an array of tables; write [[series]]")
    targets: list[Target] = []
    for number, table in enumerate(tables, 1):
        place = f"{file}, [[series]] number {number}"
        _refuse_unknown(table, ("coins", "interval", "unit", "depth", "start", "end"), place)
        try:
            targets.extend(_read_target(table))
        except ConfigError as exc:
            raise ConfigError(f"{place}: {exc}") from exc
    for series, times in Counter(target.series for target in targets).items():
        if times > 1:
            raise ConfigError(f"{file}: {series} stands there twice")
    return tuple(targets)


def _read_target(table: Mapping[str, Any]) -> Iterable[Target]:
    coins = table.get("coins")
    if not isinstance(coins, list) or not coins or not all(isinstance(coin, str) for coin in coins):
        raise ConfigError('coins is not a list of names, such as coins = ["BTC", "ETH"]')
    parts = {name: table[name] for name in ("interval", "unit", "depth") if name in table}
    for name, value in parts.items():
        kind = int if name == "depth" else str
        if isinstance(value, bool) or not isinstance(value, kind):
            raise ConfigError(f"{name} is {show_number(value)}, not a {'number' if kind is int else 'text'}")
    bounds = {name: parse_instant(table[name], name) for name in ("start", "end") if name in table}
    for coin in coins:
        yield Target(Series(coin, **parts), **bounds)


def parse_instant(value: Any, name: str) -> int:
    """Read a date or an ISO 8601 instant as Unix seconds; without an offset it is UTC.

    Parameters
    ----------
    value : str, date or datetime
        What the user wrote.
    name : str
        What it is, for the error.

    Raises
    ------
    ConfigError
        It is neither, or finer than a second.
    """
    return whole_seconds(read_date(value, name), name)


LONGEST: Final = timedelta(days=36_500)
LAST_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_last(text: str) -> int:
    """Read a length such as ``7d``, ``36h``, ``90m``, ``2w`` as seconds.

    Raises
    ------
    ConfigError
        It is none.
    """
    number, unit = text[:-1], text[-1:]
    if number.isascii() and number.isdigit() and len(number) <= 6 and unit in LAST_UNITS:
        length = timedelta(**{LAST_UNITS[unit]: int(number)})
        if timedelta() < length <= LONGEST:
            return int(length.total_seconds())
    raise ConfigError(f"--last {text!r} is not a length; write 90m, 36h, 7d or 2w")


def resolve_span(start: int | None, end: int | None, last_s: int | None, closed_end: int) -> Span:
    """Put a span together from what the user gave; `start` goes before `last_s`.

    Parameters
    ----------
    start, end : int or None
        Unix seconds.
    last_s : int or None
        Length in seconds up to `end`.
    closed_end : int
        End of the last closed interval, taken where no end was given.

    Raises
    ------
    ConfigError
        Neither a start nor a length was given; or no end, and what starts then is not closed yet.
    """
    if end is None and start is not None and start > closed_end:
        raise ConfigError(
            f"the span starts {show_time(start)}, and the last closed interval ended {show_time(closed_end)}: "
            "there is nothing to ask for yet"
        )
    stop = closed_end if end is None else end
    if start is None:
        if last_s is None:
            raise ConfigError("no span: give --start (and --end), or --last 7d")
        start = stop - last_s
    return Span(start, stop)

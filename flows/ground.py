"""What flows stand on: the environment, Prefect's folder and profile, its server. Seen to before anything is asked for.

Imports no Prefect by itself: that raises where it cannot read its own settings.
"""

import contextlib
import functools
import importlib
import io
import os
import re
import sqlite3
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn
from urllib.parse import urlsplit

from cyclopts import App, Parameter

from heatpipe import cli, process
from heatpipe.errors import ConfigError, HeatpipeError

WISHES: Final = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
"""Prefect sends nothing home, unless it is told to."""
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
HOME: Final = "PREFECT_HOME"
API_URL: Final = "PREFECT_API_URL"
QUIET: Final = ("PREFECT_SERVER_LOGGING_LEVEL", "PREFECT_LOGGING_SERVER_LEVEL")
"""Two names of one setting: how much the server says that a flow starts for itself."""
START_S: Final = 60
"""On a slow machine the first start, which makes the tables, takes half of it."""
BUSY_S: Final = 20.0
"""How long a server may answer that it cannot now: one on SQLite does, now and then."""
LOCKED_S: Final = 5.0
"""How long its database may be busy."""
LEAVE_S: Final = 15.0
"""How long after a first signal a further one does nothing: a run needs ten seconds at most to write what has come."""
NO_URL: Final = "which is no URL such as http://127.0.0.1:4200/api"
OTHER_FOLDER: Final = f"name a folder that may be written in {HOME}"


Verbose = Annotated[bool, Parameter(negative=(), show_default=False, help="Show the traceback of what ends it.")]
"""For the help only: `heatpipe.process` looks for it in the arguments by itself."""


def set_environment() -> None:
    """Set what the user has not set. To be called before Prefect is imported."""
    for name, value in WISHES.items():
        os.environ.setdefault(name, value)
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = _spare_loopback(os.environ.get(name) or os.environ.get(name.swapcase(), ""))


def _spare_loopback(hosts: str) -> str:
    """Add loopback to those that are asked without a proxy, which could not reach it."""
    given = [host.strip() for host in hosts.split(",") if host.strip()]
    return "*" if given == ["*"] else ",".join([*given, *(host for host in LOOPBACK if host not in given)])


def prepare(*, load: bool = True) -> None:
    """Make a main program of this process; what is wrong with Prefect's settings ends it with one line.

    To be called before anything that imports Prefect.

    Parameters
    ----------
    load : bool
        Import Prefect: it reads its settings then, and once.
    """
    process.guard_process(leave_s=LEAVE_S)
    if code := process.call(lambda: tell_causes(lambda: _prepare(load=load))):
        sys.exit(code)


def _prepare(*, load: bool) -> int:
    from heatpipe.client import check_proxies, load_certificates

    set_environment()
    check_proxies()
    load_certificates()
    check_profile()
    if load:
        _import_prefect()
    return cli.DONE


def _import_prefect() -> None:
    if os.environ.get(API_URL):
        _check_url(os.environ[API_URL])
    said = io.StringIO()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Failed to create the Prefect home directory")  # see `check_server`
            with contextlib.redirect_stderr(said):  # what it cannot read, it tells twice
                importlib.import_module("prefect")
            importlib.import_module("prefect.main")  # its logs go to what stderr is now
    except (ImportError, MemoryError):
        raise
    except Exception as exc:
        raise ConfigError(f"Prefect cannot read its settings: {_describe_settings(exc)}") from exc
    sys.stderr.write(said.getvalue())


def _describe_settings(exc: Exception) -> str:
    """Say which variable is wrong, if that can be told, and not what is in it."""
    listed = getattr(exc, "errors", None)  # pydantic's
    if not callable(listed):
        return f"{' '.join(str(exc).split())[: process.SAID_MOST]}; see the variables PREFECT_…, and {_find_home()}"
    first = listed()[0]
    field = "_".join(str(part) for part in first["loc"])
    variables = [name for name in os.environ if name.startswith("PREFECT_") and name.endswith(f"_{field.upper()}")]
    return f"{', '.join(sorted(variables)) or field or 'the variables PREFECT_…'}: {first['msg']}"


def run_process(command: Callable[[], int]) -> NoReturn:
    """Call a command of flows and end the process with the exit code of the contract."""
    process.run_process(lambda: tell_causes(command), leave_s=LEAVE_S, in_order=True)


def run_app(app: App) -> NoReturn:
    """Run a command line of flows and end the process with the exit code of the contract."""
    run_process(lambda: cli.parse_and_call(app))


def tell_causes(command: Callable[[], int]) -> int:
    """Call a command; with ``--verbose``, show what is behind a known error."""
    try:
        return command()
    except HeatpipeError as exc:
        if process.VERBOSE in sys.argv and exc.__cause__ is not None:
            traceback.print_exception(exc)
        raise


def make_app(name: str, text: str) -> App:
    """Return the command line of a module of flows."""
    return App(
        name=f"python -m flows.{name}",
        help=text,
        help_format="markdown",
        version_flags=(),
        suppress_keyboard_interrupt=False,  # heatpipe.process says what is on disk first
    )


# Prefect's own files


def _find_home() -> Path:
    return Path(os.environ.get(HOME) or "~/.prefect").expanduser()


def check_home(home: Path | None = None) -> Path:
    """Return the folder that Prefect keeps its files in, made if it is not there.

    Raises
    ------
    ConfigError
        It cannot be made, or not be written.
    """
    home = home or _find_home()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as exc:
        said = "it is a file" if home.is_file() else exc.strerror
        raise ConfigError(f"{HOME}: Prefect cannot keep its files in {home}: {said}; {OTHER_FOLDER}") from exc
    return home


def check_profile() -> None:
    """See to it that Prefect can read its profiles, and that the active one is there.

    Raises
    ------
    ConfigError
        It would raise, or take another one.
    """
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or _find_home() / "profiles.toml").expanduser()
    profiles = _read_profiles(path)
    shipped = find_spec("prefect")
    folders = (shipped and shipped.submodule_search_locations) or []
    known = [profiles, *(_read_profiles(Path(folder, "settings", "profiles.toml")) for folder in folders)]
    names = sorted({name for some in known for name in some.get("profiles", {})})
    chosen, told = os.environ.get("PREFECT_PROFILE"), "PREFECT_PROFILE"
    if chosen is None:
        chosen, told = profiles.get("active"), str(path)
    if chosen is not None and chosen not in names:
        raise ConfigError(f"{told}: Prefect has no profile {chosen!r}; there is {', '.join(names)}")


def _read_profiles(path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as exc:
        raise ConfigError(f"{path}: Prefect's profiles cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError(f"{path}: Prefect's profiles are no TOML ({exc}); mend the file, or move it away") from exc
    if not isinstance(found.get("profiles", {}), dict):
        raise ConfigError(f"{path}: Prefect's profiles are no tables; mend the file, or move it away")
    return found


def check_database(path: Path) -> None:
    """See to it that the database of Prefect's own server can be written.

    Raises
    ------
    ConfigError
        It cannot; says why.
    """
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=LOCKED_S)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("PRAGMA user_version").fetchone()
            database.rollback()
    except sqlite3.Error as exc:
        locked = getattr(exc, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        way_out = (
            "end the process that holds it" if locked else "move it away: it holds the history of runs, and no rows"
        )
        raise ConfigError(f"{HOME}: Prefect's database {path} cannot be used: {exc}; {way_out}") from exc


# Its server


def check_server(*, start: bool = True) -> None:
    """See to it that there is a Prefect server: that of PREFECT_API_URL, else one of our own.

    Parameters
    ----------
    start : bool
        Start our own where it is needed; else only see whether it could.

    Raises
    ------
    ConfigError
        There is none; says what to do.
    """
    from prefect.settings import PREFECT_API_URL

    if url := PREFECT_API_URL.value():
        _check_there(url)
    else:
        home = _check_own()
        if start:
            _start_own(home)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as exc:
        _refuse_server(url, NO_URL, exc)
    if not sound:
        _refuse_server(url, NO_URL)


def _check_there(url: str) -> None:
    """Ask the server for something that only Prefect knows."""
    _check_url(url)
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.context import SettingsContext, get_settings_context
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES

    context = get_settings_context()
    # Prefect's client asks again by itself for a minute and more.
    settings = context.settings.copy_with_update(updates={PREFECT_CLIENT_MAX_RETRIES: 0})
    deadline = time.monotonic() + BUSY_S
    refuse = functools.partial(_refuse_server, url)
    with SettingsContext(profile=context.profile, settings=settings):
        while True:
            try:
                with get_client({"timeout": httpx.Timeout(10.0, connect=3.0)}, sync_client=True) as client:
                    client.read_flows(limit=1)
            except httpx.HTTPStatusError as exc:
                status = exc.response.status_code
                if (exc.response.is_server_error or status == httpx.codes.TOO_MANY_REQUESTS) and (
                    time.monotonic() < deadline
                ):
                    time.sleep(1.0)
                    continue
                key = "; PREFECT_API_KEY or PREFECT_API_AUTH_STRING opens it" if status in (401, 403) else ""
                refuse(f"what answers there says {status}{key}", exc)
            except httpx.InvalidURL as exc:
                refuse(NO_URL, exc)
            except httpx.RequestError as exc:
                refuse(f"where no server answers ({' '.join(str(exc).split()) or type(exc).__name__})", exc)
            except (ValueError, TypeError) as exc:
                refuse("where something answers that is no Prefect server", exc)
            return


def _refuse_server(url: str, said: str, exc: Exception | None = None) -> NoReturn:
    todo = f"start one with `prefect server start`, or unset {API_URL} to run without"
    raise ConfigError(f"{API_URL} is {show_url(url)}, {said}: {todo}") from exc


def show_url(url: str) -> str:
    """Return a URL without what may be a secret: user, password, query, fragment."""
    scheme, found, rest = url.strip().rpartition("://")
    shown = re.split(r"[?#]", rest.rpartition("@")[2])[0]
    return (f"{scheme}://" if found and re.fullmatch("[A-Za-z][A-Za-z0-9+.-]*", scheme) else "") + shown


def _check_own() -> Path:
    """Return where Prefect's ephemeral server keeps its files, if it can."""
    from prefect.settings import (
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
        PREFECT_SERVER_DATABASE_CONNECTION_URL,
        get_current_settings,
    )

    if not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        raise ConfigError(
            f"{API_URL} is not set, and PREFECT_SERVER_EPHEMERAL_ENABLED lets Prefect start no server of its own: "
            f"set one of them"
        )
    home = check_home(get_current_settings().home)
    kind, _, path = str(PREFECT_SERVER_DATABASE_CONNECTION_URL.value() or "").partition(":///")
    if kind.startswith("sqlite") and Path(path).exists():
        check_database(Path(path))
    return home


def _start_own(home: Path) -> None:
    """Start Prefect's ephemeral server, which ends with this process; it says nothing but that it cannot."""
    if not any(name in os.environ for name in QUIET):
        os.environ[QUIET[0]] = "CRITICAL"
    from prefect.server.api.server import SubprocessASGIServer

    try:
        SubprocessASGIServer().start(timeout=START_S)
    except (RuntimeError, OSError) as exc:
        raise ConfigError(
            f"{HOME}: Prefect's own server does not start in {home}; with {QUIET[0]}=WARNING it says why. "
            f"Or set {API_URL} to the address of one that runs"
        ) from exc

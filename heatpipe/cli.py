"""Parse, call, print: the command line, and the only place that ends the process.

Engines are imported in the commands that use them: ``heatpipe --help`` answers before polars could be loaded.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter, Token

from heatpipe import __version__
from heatpipe.errors import ConfigError, DatasetError, Stopped
from heatpipe.process import DONE as DONE
from heatpipe.process import FAILED as FAILED
from heatpipe.process import INTERRUPTED as INTERRUPTED
from heatpipe.process import UNSOUND as UNSOUND
from heatpipe.process import USAGE as USAGE
from heatpipe.process import call as call
from heatpipe.process import on_interrupt, prepare_process, run_process
from heatpipe.upstream import LOOKBACK

if TYPE_CHECKING:
    from heatpipe.config import Settings, Target
    from heatpipe.plan import Plan
    from heatpipe.report import Report
    from heatpipe.status import Tally
    from heatpipe.store import Store
    from heatpipe.verify import Findings

app = App(
    name="heatpipe",
    version=__version__,
    help="Bring liquidation heatmaps of the Kiyotaka Data API home as partitioned Parquet.",
    help_epilogue="""Try it without a key: `heatpipe sandbox` in one terminal, and in another

`KIYOTAKA_API_KEY=sandbox-key heatpipe backfill --coin BTC --last 1d --api-url http://127.0.0.1:8765`""",
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # cyclopts would end the process; `call` says what is on disk first
)

SERIES = Group("Series", sort_key=1)
SHARED = Group("Settings", sort_key=2)


def _read_whole(_type: Any, tokens: Sequence[Token]) -> int:
    """Read a whole number; cyclopts alone would take 1.5 for 2."""
    from heatpipe.config import show_number

    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{show_number(text)} is no whole number.") from None


WHOLE: Final = Parameter(converter=_read_whole)


@Parameter(name="*", group=SERIES)
@dataclass(frozen=True, kw_only=True)
class SeriesFlags:
    """Which series, and from when to when."""

    coin: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = ()
    """Coin in Hyperliquid's spelling, such as BTC, kPEPE, PURR/USDC; repeatable. Else the file's [[series]]."""
    interval: str | None = None
    """MINUTE (default), FIVE_MINUTES, FIFTEEN_MINUTES, HOUR, FOUR_HOURS or DAY."""
    unit: str | None = None
    """What volumes are counted in: coin (default) or usd."""
    depth: Annotated[int | None, WHOLE] = None
    """Most price levels per snapshot; 1500 by default, and each further 1500 cost a fifth more."""
    start: str | None = None
    """Date or ISO 8601 instant; without an offset it is UTC."""
    end: str | None = None
    """The same; not included. By default the last closed interval."""
    last: str | None = None
    """Length up to the end, in place of a start: 90m, 36h, 7d, 2w."""


@Parameter(name="*", group=SHARED)
@dataclass(frozen=True, kw_only=True)
class SharedFlags:
    """Where things are, and how much is said."""

    data: str | None = None
    """Folder of the dataset. [HEATPIPE_DATA; default: data]"""
    config: str | None = None
    """TOML file with settings and series."""
    api_url: str | None = None
    """URL of the API. [HEATPIPE_API_URL; default: https://api.kiyotaka.ai]"""
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False
    """One JSON document on stdout, everything else on stderr."""
    quiet: Annotated[bool, Parameter(negative=(), show_default=False)] = False
    """Say nothing but warnings and errors."""
    verbose: Annotated[bool, Parameter(negative=(), show_default=False)] = False
    """Say what is retried, and why."""


NO_ROWS: Final = "the API has sent no row of it, and none is on disk; is the name spelt as Hyperliquid spells it?"
NO_SERIES: Final = SeriesFlags()
NO_SHARED: Final = SharedFlags()
MaxWeight = Annotated[int | None, WHOLE, Parameter(help="Refuse a plan that costs more than this weight.")]
Refetch = Annotated[bool, Parameter(negative=(), help="Ask again for what is on disk, and replace it.")]
RefetchAbsent = Annotated[bool, Parameter(negative=(), help="Ask again for intervals of which the API had nothing.")]
NoWait = Annotated[
    bool, Parameter(negative=(), help="Leave out what another process works on, rather than wait for it.")
]


@app.command
def plan(
    *,
    series: SeriesFlags = NO_SERIES,
    shared: SharedFlags = NO_SHARED,
    max_weight: MaxWeight = None,
    refetch: Refetch = False,
    refetch_absent: RefetchAbsent = False,
    update: Annotated[bool, Parameter(negative=(), help="Plan what `heatpipe update` would do.")] = False,
) -> int:
    """Say what a backfill would cost and take; spends nothing, needs no key.

    Example: `heatpipe plan --coin BTC --coin ETH --start 2026-03-01 --end 2026-03-08`
    """
    from heatpipe.store import Store
    from heatpipe.survey import check_plan

    if update + refetch + refetch_absent > 1:
        raise ConfigError("--update, --refetch and --refetch-absent exclude each other")
    settings = _settings(shared)
    store = Store(settings.root)
    found = (
        _plan_update(series, settings, store, LOOKBACK)
        if update
        else _plan_backfill(series, settings, store, refetch=refetch, refetch_absent=refetch_absent)
    )
    _warn([*found.warnings, *found.left_out])
    check_plan(found, store, settings, max_weight)
    if shared.json:
        _print_plan_json(found, settings)
    else:
        _print_plan(found, settings, store.free_bytes())
    return DONE


@app.command
def backfill(
    *,
    series: SeriesFlags = NO_SERIES,
    shared: SharedFlags = NO_SHARED,
    max_weight: MaxWeight = None,
    refetch: Refetch = False,
    refetch_absent: RefetchAbsent = False,
    no_wait: NoWait = False,
) -> int:
    """Fetch what is missing in a span; spends weight. The same command again fetches only what did not come.

    Example: `heatpipe backfill --coin BTC --last 7d`
    """
    from heatpipe.store import Store

    if refetch and refetch_absent:
        raise ConfigError("--refetch and --refetch-absent exclude each other")
    settings = _settings(shared)
    settings.key()
    store = Store(settings.root)
    how = {"refetch": refetch, "refetch_absent": refetch_absent}
    found = _plan_backfill(series, settings, store, **how)
    return _carry_out(found, settings, store, shared, max_weight=max_weight, no_wait=no_wait, **how)


@app.command
def update(
    *,
    series: SeriesFlags = NO_SERIES,
    shared: SharedFlags = NO_SHARED,
    lookback: Annotated[
        int, WHOLE, Parameter(help="Newest intervals on disk to ask for again, as many of them as cost no weight.")
    ] = LOOKBACK,
    max_weight: MaxWeight = None,
    no_wait: NoWait = False,
) -> int:
    """Fetch what has come since, from the first interval on disk to the last closed one; spends weight.

    Holes are filled. Without a coin and without [[series]] in a file, all that is on disk is updated. What is asked
    for again and comes back different replaces what is stored, and is counted. `heatpipe plan --update` says the cost.

    Example: `heatpipe update --coin BTC`
    """
    from heatpipe.store import Store

    settings = _settings(shared)
    settings.key()
    store = Store(settings.root)
    found = _plan_update(series, settings, store, lookback)
    return _carry_out(
        found,
        settings,
        store,
        shared,
        max_weight=max_weight,
        no_wait=no_wait,
        named=bool(series.coin or settings.targets),
    )


@app.command
def status(*, series: SeriesFlags = NO_SERIES, shared: SharedFlags = NO_SHARED) -> int:
    """Add up the coverage of each series, and its snapshots at the depth cap; reads footers.

    Example: `heatpipe status --coin BTC --start 2026-03-01 --end 2026-03-08`
    """
    from heatpipe.status import take_stock
    from heatpipe.store import Store

    settings = _settings(shared)
    store = Store(settings.root)
    tallies = take_stock(store, _targets_on_disk(series, settings), settings, time.time(), last_s=_last(series))
    if shared.json:
        _print_json({"series": [tally.as_document() for tally in tallies]})
    else:
        _print_status(tallies, settings.root)
    unreadable = dict.fromkeys(line for tally in tallies for line in tally.unreadable)
    for line in unreadable:
        _say(f"failed: {line}")
    return FAILED if unreadable else DONE


@app.command
def verify(*, series: SeriesFlags = NO_SERIES, shared: SharedFlags = NO_SHARED) -> int:
    """Read every file back and prove it sound; without a series, all that lies in the dataset. Changes nothing.

    Each problem is a line with the path and the cause, and makes the exit code 3.

    Example: `heatpipe verify --coin BTC --last 7d`
    """
    from heatpipe.progress import show_files
    from heatpipe.store import Store
    from heatpipe.verify import choose_days, verify_files

    settings = _settings(shared)
    chosen = None
    if series != NO_SERIES or settings.targets:
        chosen = choose_days(_targets_on_disk(series, settings), settings, time.time(), last_s=_last(series))
    with show_files(quiet=shared.quiet) as on_file:
        findings = verify_files(Store(settings.root), chosen, on_file=on_file)
    if shared.json:
        _print_json(findings.as_document())
    else:
        _print_findings(findings, quiet=shared.quiet)
    if not (findings.files or findings.problems):
        raise DatasetError(f"nothing to verify: there is no such file in {settings.root}", settings.root)
    return UNSOUND if findings.problems else DONE


@app.command
def heatmap(
    *,
    series: SeriesFlags = NO_SERIES,
    shared: SharedFlags = NO_SHARED,
    output: Annotated[str, Parameter(name=("--output", "-o"), help="The picture: a .png, .svg or .pdf file.")],
) -> int:
    """Draw time × price with the standing liquidation volume as colour, from what is on disk.

    Example: `heatpipe heatmap --coin BTC --last 7d -o btc.png`
    """
    from heatpipe.config import Target
    from heatpipe.heatmap import build_heatmap, check_picture, draw_heatmap
    from heatpipe.status import choose_span, take_stock
    from heatpipe.store import Store

    settings = _settings(shared)
    os.environ.pop("MPLBACKEND", None)  # it is about windows, and matplotlib would not start with one it does not know
    if not shared.verbose:
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its caches are not the picture's reader's business
    targets = _targets_on_disk(series, settings)
    if len(targets) != 1:
        names = ", ".join(str(target.series) for target in targets) or f"nothing in {settings.root}"
        raise ConfigError(f"a picture shows one series, not {len(targets)}: {names}; choose with --coin, --unit …")
    output = os.path.expanduser(output)  # noqa: PTH111 - a shell leaves the ~ of --output=~/x.png alone
    check_picture(output)
    store = Store(settings.root)
    [target], now = targets, time.time()
    if not (series.start or series.end or series.last):  # what is on disk, not the time since
        covered = store.hull(target.series)
        target = target if covered is None else Target(target.series, *covered)
    span, _ = choose_span(store, target, settings, now, last_s=_last(series))
    draw_heatmap(build_heatmap(settings.root, target.series, span, store=store), output)
    if shared.json:
        [tally] = take_stock(store, [Target(target.series, *span)], settings, now)
        _print_json({"output": output, **tally.as_document()})
    elif not shared.quiet:
        print(f"{output}: {target.series}, {span}")
    return DONE


@app.command
def sandbox(
    *,
    port: Annotated[int, WHOLE] = 8765,
    seed: Annotated[int, WHOLE] = 0,
    weight_per_minute: Annotated[int, WHOLE] = 750,
    burst: Annotated[int, WHOLE] = 1500,
    latency: float = 0.0,
    gaps: Annotated[bool, Parameter(negative=())] = False,
    chaos: float = 0.0,
) -> int:
    """Serve an emulated API with a made-up market on loopback, until Ctrl-C.

    Example: `heatpipe sandbox --port 8765 --latency 0.3`

    Parameters
    ----------
    port : int
        Port on 127.0.0.1; 0 takes a free one.
    seed : int
        Another number, another market and other dice.
    weight_per_minute : int
        Weight that the key "sandbox-key" may spend in a minute.
    burst : int
        Weight that it may spend at once.
    latency : float
        Seconds that every answer takes longer.
    gaps : bool
        Leave out an interval now and then.
    chaos : float
        Share of the answers, from 0 to 1, that dice damage: refused, reset, cut short, out of order, or broken so that
        a careful reader can tell. No interval is left out. A hang or a drip ends by itself after 5 s.
    """
    from heatpipe.sandbox import Market, Options, Tier
    from heatpipe.sandbox import run as run_sandbox

    if not 0 <= port <= 65535 or weight_per_minute < 1 or burst < 1:
        raise ConfigError("a port lies between 0 and 65535, a budget is at least 1")
    if not 0 <= latency < float("inf"):
        raise ConfigError(f"--latency is a number of seconds from 0 on, not {latency:g}")
    if not 0 <= chaos <= 1:
        raise ConfigError(f"--chaos is a share of the answers, from 0 to 1, not {chaos:g}")
    keys = {"sandbox-key": Tier("advanced", weight_per_minute, burst)}
    options = Options(market=Market(seed, gaps=gaps), keys=keys, latency_s=latency, chaos=chaos, seed=seed)
    try:
        run_sandbox(options, port, on_start=_print_sandbox)
    except OSError as exc:
        raise ConfigError(f"cannot listen on 127.0.0.1:{port}: {exc.strerror}; choose another --port") from exc
    return DONE


# What commands share


def _plan_backfill(series: SeriesFlags, settings: "Settings", store: "Store", **how: bool) -> "Plan":
    from heatpipe.survey import make_plan

    targets = _targets(series, settings)
    return make_plan(targets, store, settings, time.time(), last_s=_last(series), **how)


def _plan_update(series: SeriesFlags, settings: "Settings", store: "Store", lookback: int) -> "Plan":
    from heatpipe.survey import make_update_plan

    targets = _targets_to_update(series, settings, store)
    return make_update_plan(targets, store, settings, time.time(), last_s=_last(series), lookback=lookback)


def _carry_out(
    found: "Plan",
    settings: "Settings",
    store: "Store",
    shared: SharedFlags,
    *,
    max_weight: int | None,
    no_wait: bool,
    refetch: bool = False,
    refetch_absent: bool = False,
    named: bool = True,
) -> int:
    """Do what a plan says, and tell what was done; `named` is whether its coins were asked for by name."""
    from heatpipe.fetch import Crew, Stop
    from heatpipe.ingest import carry_out
    from heatpipe.progress import show_progress
    from heatpipe.survey import check_plan, without_rows

    _warn(found.warnings)
    check_plan(found, store, settings, max_weight)
    started = time.monotonic()
    stop = Stop()
    try:
        with (
            on_interrupt(stop.set),
            show_progress(settings, quiet=shared.quiet) as on_progress,
            Crew(settings, stop=stop) as crew,
        ):
            report = carry_out(
                found,
                store,
                crew,
                refetch=refetch,
                refetch_absent=refetch_absent,
                wait_for_locks=not no_wait,
                on_progress=on_progress,
            )
    except (KeyboardInterrupt, Stopped):
        raise KeyboardInterrupt("what had arrived is on disk, the same command fetches the rest") from None
    seconds = time.monotonic() - started
    if report.requests and named:
        _warn(f"{coin}: {NO_ROWS}" for coin in without_rows(found, report, store))
    for failure in report.failures:
        _say(f"failed: {failure.reason}" if failure.counts else f"left out: {failure.reason}")
    if shared.json:
        _print_json(
            {
                **report.as_document(),
                "seconds": round(seconds, 3),
                "intervals": found.intervals,
                "open": found.open + report.open,
            }
        )
    elif not shared.quiet:
        _print_report(report, found, seconds)
    return FAILED if any(failure.counts for failure in report.failures) else DONE


# From flags to values


def _settings(shared: SharedFlags) -> "Settings":
    from heatpipe.config import Settings

    stamp = "" if sys.stderr.isatty() else "%(asctime)s "  # who reads it later wants to know when
    logging.basicConfig(stream=sys.stderr, format=f"{stamp}%(message)s", datefmt="%Y-%m-%dT%H:%M:%S%z")
    if shared.verbose:
        logging.getLogger("heatpipe").setLevel(logging.DEBUG)
    return Settings.load({"root": shared.data, "url": shared.api_url}, file=shared.config)


def _targets(flags: SeriesFlags, settings: "Settings") -> "list[Target]":
    """Return the coins of the flags, else the series of the file, with the bounds that the flags give."""
    from heatpipe.config import Target
    from heatpipe.model import Series

    bounds = _bounds(flags)
    if flags.coin:
        parts = _parts(flags)
        return [Target(Series(coin, **parts), **bounds) for coin in dict.fromkeys(flags.coin)]
    if _parts(flags):
        raise ConfigError("--interval, --unit and --depth go with --coin; the file's [[series]] name their own")
    if not settings.targets:
        raise ConfigError("no coin: give --coin BTC, or a --config file with [[series]]")
    if flags.last:
        bounds["start"] = None  # the file's start must not outdo the flag
    return [
        Target(target.series, bounds.get("start", target.start), bounds.get("end", target.end))
        for target in settings.targets
    ]


def _targets_to_update(flags: SeriesFlags, settings: "Settings", store: "Store") -> "list[Target]":
    """Return what a backfill would take; where neither flags nor file name a series, all that is on disk."""
    from heatpipe.config import Target
    from heatpipe.survey import choose_to_update, leave_out_retired

    if flags.coin:
        return _targets(flags, settings)
    if settings.targets:
        return leave_out_retired(_targets(flags, settings), settings)
    found = [Target(series, **_bounds(flags)) for series in choose_to_update(store, **_parts(flags))]
    return leave_out_retired(found, settings)


def _targets_on_disk(flags: SeriesFlags, settings: "Settings") -> "list[Target]":
    """Return the series on disk that the flags choose, all of them without flags; or what is asked about by span."""
    from heatpipe.config import Target
    from heatpipe.model import Series
    from heatpipe.store import Store
    from heatpipe.survey import choose_coins

    if not flags.coin and settings.targets:
        return _targets(flags, settings)
    bounds, parts = _bounds(flags), _parts(flags)
    found = [
        series
        for series in Store(settings.root).all_series()
        if all(getattr(series, part) == wanted for part, wanted in parts.items())
    ]
    if not (flags.start or flags.last):
        return [Target(series, **bounds) for series in choose_coins(found, flags.coin or None)]
    by_coin: dict[str, list[Series]] = {coin: [] for coin in flags.coin}
    for series in found:
        if series.coin in by_coin or not flags.coin:
            by_coin.setdefault(series.coin, []).append(series)
    asked = (series for coin, some in by_coin.items() for series in some or [Series(coin, **parts)])
    return [Target(series, **bounds) for series in sorted(asked)]


def _parts(flags: SeriesFlags) -> dict[str, Any]:
    parts = {"interval": flags.interval, "unit": flags.unit, "depth": flags.depth}
    return {name: value for name, value in parts.items() if value is not None}


def _bounds(flags: SeriesFlags) -> dict[str, int | None]:
    from heatpipe.config import parse_instant

    if flags.start and flags.last:
        raise ConfigError("--start and --last exclude each other")
    bounds = {"--start": flags.start, "--end": flags.end}
    return {name[2:]: parse_instant(text, name) for name, text in bounds.items() if text is not None}


def _last(flags: SeriesFlags) -> int | None:
    from heatpipe.config import parse_last

    return None if flags.last is None else parse_last(flags.last)


# From values to text


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        _say(f"warning: {warning}")


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2))


def _plan_document(found: "Plan", settings: "Settings") -> dict[str, Any]:
    from heatpipe.plan import estimate

    expected = estimate(found)
    return {
        "requests": found.requests,
        "weight": found.weight,
        "seconds": round(found.seconds(settings.weight_per_minute, settings.burst), 3),
        "intervals": found.intervals,
        "missing": found.missing,
        "open": found.open,
        "estimated_rows": expected.rows,
        "estimated_download_bytes": expected.wire_bytes,
        "estimated_disk_bytes": expected.disk_bytes,
        "warnings": [*found.warnings, *found.left_out],
    }


def _print_plan_json(found: "Plan", settings: "Settings") -> None:
    """Print the document of a plan, its windows one by one: years of many coins have millions."""
    from heatpipe.plan import cut_windows, weigh_window

    head = json.dumps(_plan_document(found, settings), indent=2)
    print(head.removesuffix("\n}"), end=',\n  "windows": [')
    comma = ""
    for series, wanted in ((one.slab.series, one.wanted) for one in found.slabs):
        coin, weight = json.dumps(series.coin), weigh_window(series)
        for start, end in cut_windows(series, wanted):
            line = f'{{"coin": {coin}, "from": {start}, "period": {end - start}, "weight": {weight}}}'
            sys.stdout.write(f"{comma}\n    {line}")
            comma = ","
    print("\n  ]\n}")


def _print_plan(found: "Plan", settings: "Settings", free_bytes: int) -> None:
    from heatpipe.plan import estimate
    from heatpipe.progress import show_bytes, show_seconds

    expected = estimate(found)
    seconds = found.seconds(settings.weight_per_minute, settings.burst)
    budget = f"{settings.weight_per_minute:,} a minute, {settings.burst:,} at once"
    print(f"to fetch    {found.missing:,} of {found.intervals:,} intervals")
    if found.open:
        print(f"open        {found.open:,} intervals, not closed yet")
    print(f"requests    {found.requests:,}")
    print(f"weight      {found.weight:,}")
    print(f"time        {show_seconds(seconds)} at the budget ({budget})")
    print("Estimates, at what the sandbox's market takes a row:")
    print(f"rows        {expected.rows:,}")
    print(f"download    {show_bytes(expected.wire_bytes)}")
    print(f"on disk     {show_bytes(expected.disk_bytes)} more, {show_bytes(free_bytes)} free")


def _print_report(report: "Report", found: "Plan", seconds: float) -> None:
    from heatpipe.progress import show_bytes

    if found.open:
        print(f"{found.open:,} intervals are not closed yet: ask again later")
    if not report.requests:
        print(_say_nothing_came(report, found))
        return
    print(
        f"{report.rows:,} rows of {report.points:,} snapshots in {report.days:,} day files "
        f"({show_bytes(report.bytes_written)}), {seconds:.1f} s"
    )
    planned = "" if report.requests == found.requests else f" ({found.requests:,} were planned)"
    print(f"{report.requests:,} requests{planned}, weight {report.weight:,}, {show_bytes(report.wire_bytes)} received")
    if report.asked_again:
        print(f"{report.asked_again:,} intervals were on disk already and asked for again: {_say_difference(report)}")
    if report.absent:
        print(f"{report.absent:,} intervals are absent: the API has no point there (--refetch-absent asks again)")
    if report.open or report.young:
        print(f"{report.open + report.young:,} intervals are open, or not yet sure to be absent: ask again later")


def _say_difference(report: "Report") -> str:
    counts = {name: getattr(report, name) for name in ("changed", "appeared", "vanished")}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "all unchanged"


def _say_nothing_came(report: "Report", found: "Plan") -> str:
    if report.failures:
        return "Nothing was fetched."
    if found.requests:
        return "Nothing left to fetch: another process has brought it."
    on_disk = found.intervals - found.missing
    return f"Nothing to fetch: {on_disk:,} intervals are on disk already." if on_disk else "Nothing to fetch."


def _print_status(tallies: "list[Tally]", root: str) -> None:
    """Print a line a series; counts that are 0 for all of them are left out, so that a line fits a terminal."""
    from rich.console import Console
    from rich.table import Table

    from heatpipe.status import COUNTS

    if not tallies:
        print(f"no series in {root}")
        return
    counted = (*COUNTS, "capped")
    shown = [name for name in counted if name in ("present", "missing") or any(getattr(t, name) for t in tallies)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("series", "from", "to (UTC)"):
        table.add_column(name, no_wrap=True)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for tally in tallies:
        series = f"{tally.series.coin} {tally.series.interval} {tally.series.unit} {tally.series.depth}"
        counts = [f"{getattr(tally, name):,}" for name in shown]
        table.add_row(series, *(_minute(at) for at in tally.span), *counts)
    # Wider than any terminal: a line that wraps can be read, one that is squeezed cannot.
    Console(width=1000, markup=False, highlight=False).print(table)


def _print_findings(findings: "Findings", *, quiet: bool) -> None:
    from heatpipe.progress import show_bytes

    for problem in findings.problems:
        print(f"{problem.path}: {problem.cause}")
    if findings.files and not quiet:
        read = f"{findings.files:,} files, {findings.rows:,} sound rows, {show_bytes(findings.size_bytes)}"
        print(f"{read}; problems: {len(findings.problems):,}" if findings.problems else f"{read}; all sound")
    if not all(problem.unreadable for problem in findings.problems) and not quiet:
        print("A damaged day is fetched anew by `heatpipe backfill --refetch`; what does not belong there, move away.")
    if any(problem.unreadable for problem in findings.problems) and not quiet:
        print("What cannot be read now may be sound: see to the cause, and verify again.")


def _minute(time_s: int) -> str:
    from heatpipe.model import show_time

    return show_time(time_s)[:16].replace("T", " ")


def _print_sandbox(url: str) -> None:
    print(
        f"The sandbox listens on {url}; Ctrl-C ends it. In another terminal:\n\n"
        f"  export KIYOTAKA_API_KEY=sandbox-key HEATPIPE_API_URL={url}\n"
        "  heatpipe backfill --coin BTC --last 1d",
        flush=True,
    )


# The process


def main() -> NoReturn:
    """Run the command line and end the process, as ``python -m heatpipe`` does."""
    run_process(lambda: run(app))


def run(commands: App, arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    prepare_process()
    return call(lambda: parse_and_call(commands, arguments))


def parse_and_call(commands: App, arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code, or raise what ends it.

    Raises
    ------
    ConfigError
        There is no such command, or flag.
    """
    try:
        code: int | None = commands(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as exc:
        raise ConfigError(str(exc)) from exc
    return code or DONE

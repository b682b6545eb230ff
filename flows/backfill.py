"""The flow `backfill`: plan, then one task a slab. What is done is what is on disk; any new run resumes from there."""

import sys
import time
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from cyclopts import App
from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import wait
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from heatpipe import cli
from heatpipe.config import Settings, Target, parse_instant, parse_last
from heatpipe.errors import ConfigError, HeatpipeError, IncompleteError, Stopped
from heatpipe.fetch import Crew, Stop
from heatpipe.ingest import Standing, carry_out, tidy
from heatpipe.model import Series
from heatpipe.plan import Plan, SlabPlan
from heatpipe.progress import plain_progress, show_bytes, show_seconds
from heatpipe.report import Report
from heatpipe.store import Store
from heatpipe.survey import check_plan, make_plan

SLABS_AT_ONCE = 2
"""While one slab waits for its last answer, the next is under way."""

IntervalName = Literal["MINUTE", "FIVE_MINUTES", "FIFTEEN_MINUTES", "HOUR", "FOUR_HOURS", "DAY"]


class Shared:
    """What the tasks of one run share: a crew with its budget, and what was learned. Threads only."""

    def __init__(self) -> None:
        self.stop = Stop()
        self.standing = Standing()
        self.reports: list[Report] = []
        self.refusal = ""
        self._crew: Crew | None = None
        self._lock = Lock()

    def crew(self, root: str) -> Crew:
        """Return the crew; the first task that asks for it reads the settings, and the key, and makes it."""
        with self._lock:
            if self._crew is None:
                self._crew = Crew(Settings.load({"root": root}), stop=self.stop)
            return self._crew

    def close(self) -> None:
        """End everything."""
        self.stop.set()
        if self._crew is not None:
            self._crew.__exit__()


def name_run() -> str:
    """Say coins and span in the run's name."""
    given = runtime.flow_run.parameters
    span = f"{given['start']} to {given['end'] or 'now'}" if given["start"] else f"last {given['last']}"
    return f"{' '.join(given['coins'])} {given['interval']} {span}"


# The docstring's "Args" is where Prefect takes the descriptions from that the form in its UI shows.
@flow(
    name="backfill",
    flow_run_name=name_run,
    task_runner=ThreadPoolTaskRunner(max_workers=SLABS_AT_ONCE),  # type: ignore[arg-type]
)
def backfill(
    coins: list[str],
    interval: IntervalName = "MINUTE",
    unit: Literal["coin", "usd"] = "coin",
    depth: int = 1500,
    start: str | None = None,
    end: str | None = None,
    last: str | None = "1d",
    data: str | None = None,
) -> dict[str, Any] | State[Any]:
    """Fetch the liquidation heatmaps that are missing of some coins in a span, and store them as Parquet.

    Spends weight of the API key in KIYOTAKA_API_KEY.

    Args:
        coins: Coins in Hyperliquid's spelling, such as BTC, kPEPE, PURR/USDC.
        interval: Time between two snapshots.
        unit: What volumes are counted in: the coin itself, or USD.
        depth: Most price levels per snapshot. Up to 1500 are included; each further 1500 cost a fifth more.
        start: Date or ISO 8601 instant, such as 2026-03-01 or 2026-03-01T12:30:00Z. Without an offset it is UTC.
        end: The same; not included. Empty for the last closed interval.
        last: Length up to the end, such as 90m, 36h, 7d or 2w. Ignored where there is a start.
        data: Folder of the dataset. In a deployment an absolute path, for a worker's own folder is temporary.
    """
    try:
        plan, settings = _plan(_targets(coins, interval, unit, depth, start, end), last, data)
        return _fill_slabs(plan, settings)
    except HeatpipeError as exc:
        return Failed(message=str(exc))  # raised, it would fill the log with a traceback that helps no one


def _plan(targets: list[Target], last: str | None, data: str | None) -> tuple[Plan, Settings]:
    """Plan the run and say in its log what it will cost."""
    logger = get_run_logger()
    settings = Settings.load({"root": data})
    settings.key()
    store = Store(_check_root(settings.root))
    plan = make_plan(targets, store, settings, time.time(), last_s=None if last is None else parse_last(last))
    check_plan(plan, store, settings)
    for warning in plan.warnings:
        logger.warning(warning)
    at_least = show_seconds(plan.seconds(settings.weight_per_minute, settings.burst))
    logger.info(
        "%s of %s intervals are missing: %s requests, weight %s, at least %s at the budget",
        *(f"{number:,}" for number in (plan.missing, plan.intervals, plan.requests, plan.weight)),
        at_least,
    )
    if plan.open:
        logger.info("%s intervals are not closed yet, and left out", f"{plan.open:,}")
    return plan, settings


def _check_root(root: str) -> str:
    if runtime.deployment.id is not None and not Path(root).is_absolute():
        raise ConfigError(f"data is {root!r}: a deployed flow needs an absolute path, its own folder is temporary")
    return root


def _targets(
    coins: list[str], interval: str, unit: str, depth: int, start: str | None, end: str | None
) -> list[Target]:
    if not coins:
        raise ConfigError("coins is empty: name at least one, such as BTC")
    bounds = {name: parse_instant(text, name) for name, text in (("start", start), ("end", end)) if text}
    return [Target(Series(coin, interval, unit, depth), **bounds) for coin in dict.fromkeys(coins)]


def _fill_slabs(plan: Plan, settings: Settings) -> dict[str, Any] | State[Any]:
    """Run a task for each slab that has something to fetch; end them all when this run is ended."""
    shared = Shared()
    tidy(plan, Store(settings.root))
    try:
        futures = [fill_slab.submit(slab, settings.root, shared) for slab in plan.slabs if slab.windows]
        wait(futures)
    finally:
        shared.close()
    if shared.refusal:
        return Failed(message=shared.refusal)
    failed = dict.fromkeys(future.state.message or "" for future in futures if future.state.is_failed())
    if failed:
        return Failed(message=f"not all of it came, a new run fetches the rest: {'; '.join(failed)}")
    return sum(shared.reports, Report()).as_document()


@task(name="fill-slab", task_run_name="{plan}", cache_policy=NO_CACHE, persist_result=False)
def fill_slab(plan: SlabPlan, root: str, shared: Shared) -> State[Any]:
    """Fetch and store what is missing of one slab. The key is read in a task: it is never a parameter."""
    logger = get_run_logger()
    if plan.slab.series in shared.standing.ended:
        return Cancelled(message=f"not asked for: {plan.slab.series} was given up")
    try:
        crew = shared.crew(root)
        report = carry_out(
            Plan((plan,)),
            Store(root),
            crew,
            on_progress=plain_progress(crew.settings, lambda line: logger.info("%s: %s", plan, line)),
            standing=shared.standing,
        )
    except Stopped:
        return Cancelled(message="stopped")
    except HeatpipeError as exc:
        shared.refusal = shared.refusal or str(exc)
        shared.stop.set()  # a wrong key or a full disk is so for every slab
        return Failed(message=str(exc))
    shared.reports.append(report)
    said = (
        f"{report.rows:,} rows, {report.days:,} days, {show_bytes(report.bytes_written)}, "
        f"{report.requests:,} requests, weight {report.weight:,}"
    )
    logger.info("%s: %s", plan, said)
    reasons = [failure.reason for failure in report.failures if failure.counts]
    return Failed(message="; ".join(reasons)) if reasons else Completed(message=said)


app = App(
    name="python -m flows.backfill",
    help="""Run the flow here, on the server of PREFECT_API_URL or on an ephemeral one.

Example: `KIYOTAKA_API_KEY=… python -m flows.backfill --coin BTC --last 7d --data /srv/heatpipe`""",
    help_format="markdown",
    version_flags=(),
    suppress_keyboard_interrupt=False,
)


@app.default
def main(*, series: cli.SeriesFlags = cli.NO_SERIES, data: str | None = None) -> int:
    """Run the flow once.

    Parameters
    ----------
    data : str, optional
        Folder of the dataset. [HEATPIPE_DATA; default: data]
    """
    settings = Settings.load({"root": data})
    settings.key()
    given = {name: getattr(series, name) for name in ("interval", "unit", "depth", "start", "end", "last")}
    given = {name: value for name, value in given.items() if value is not None}
    if not series.coin:
        raise ConfigError("no coin: give --coin BTC")
    for coin in series.coin:  # said here in one line, not by Prefect in many
        Series(coin, **{name: given[name] for name in ("interval", "unit", "depth") if name in given})
    state = backfill(list(series.coin), **given, data=data, return_state=True)
    if not state.is_completed():
        raise IncompleteError(state.message or "the flow run did not complete")
    return cli.DONE


if __name__ == "__main__":
    sys.exit(cli.run(app))

"""The flow `update`: fetch what has come since, holes and a lookback included, one task a slab."""

from flows import ground

if __name__ == "__main__":
    ground.prepare()  # before Prefect is imported

import time
from typing import Annotated, Any

from cyclopts import Parameter
from prefect import flow
from prefect.client.schemas.objects import State

from flows.command import NO_FLAGS, DryRun, FlowFlags, fill_form, fill_limit, make_app, run_flow
from flows.form import IntervalName, Text, UnitName, name_run, read_series, read_targets
from flows.slabs import make_task_runner, run_plan
from heatpipe import cli
from heatpipe.config import Settings
from heatpipe.errors import ConfigError
from heatpipe.plan import Plan
from heatpipe.store import Store
from heatpipe.survey import choose_to_update, leave_out_retired, make_update_plan
from heatpipe.upstream import LOOKBACK


@flow(name="update", flow_run_name=name_run, task_runner=make_task_runner())
def update(
    coins: list[str] = [],  # noqa: B006 - the form shows it, nobody changes it
    interval: IntervalName = "MINUTE",
    unit: UnitName = "coin",
    depth: int = 1500,
    start: Text = "",
    lookback: int = LOOKBACK,
    dry_run: bool = False,
    max_weight: int = 0,
    wait: bool = False,
    data: Text = "",
) -> State[Any]:
    """Fetch what has come since the last run, from the first covered instant on, inner holes included.

    Spends weight of the API key, which comes from KIYOTAKA_API_KEY where the flow runs, or from the Secret block
    kiyotaka-api-key. Some intervals before the new ones are asked for again, as far as that is free, and replaced
    where the API has changed its mind.

    Args:
        coins: Coins in Hyperliquid's spelling, one a field. Empty for all that are on disk with the three below,
            but for those that HEATPIPE_RETIRED names.
        interval: Time between two snapshots.
        unit: What volumes are counted in: the coin itself, or USD.
        depth: Most price levels per snapshot.
        start: Date or instant, in UTC whatever your browser's time zone, such as 2026-03-01 or 2026-03-01T12:30.
            Empty for the first instant that is on disk; a coin with nothing on disk needs one.
        lookback: Intervals before the new ones that are asked for again, at most as many as cost nothing.
        dry_run: Only plan, and show what it would cost; spends nothing, needs no key.
        max_weight: Refuse a plan that costs more than this weight. 0 for no limit.
        wait: Wait for what another run is fetching. Else it is left to that run, and the report names it.
        data: Folder of the dataset, an absolute path where the flow runs. Empty for that of HEATPIPE_DATA there.
    """

    def plan(store: Store, settings: Settings) -> Plan:
        targets = read_targets(read_series(coins, interval, unit, depth), start)
        if not targets:
            series = choose_to_update(store, interval=interval, unit=unit, depth=depth)
            targets = leave_out_retired(read_targets(series, start), settings)
        return make_update_plan(targets, store, settings, time.time(), lookback=lookback)

    return run_plan("update", plan, data=data, dry_run=dry_run, max_weight=max_weight, named=bool(coins), wait=wait)


app = make_app("update", "--coin BTC --data /srv/heatpipe")


@app.default
def main(
    *,
    series: cli.SeriesFlags = cli.NO_SERIES,
    flags: FlowFlags = NO_FLAGS,
    lookback: Annotated[
        int, cli.WHOLE, Parameter(help="Intervals that are asked for again, as far as that is free.")
    ] = LOOKBACK,
    dry_run: DryRun = False,
    max_weight: cli.MaxWeight = None,
    no_wait: cli.NoWait = False,
) -> int:
    """Run the flow once; without a coin and without a file's [[series]], for all that is on disk."""
    if series.end or series.last:
        raise ConfigError("an update goes up to the last closed interval: it takes no --end, and no --last")
    form = {name: value for name, value in fill_form(series, flags).items() if name != "end"}
    limits = {"lookback": lookback, "dry_run": dry_run, "max_weight": fill_limit(max_weight), "wait": not no_wait}
    return run_flow(update, flags, form | limits)


if __name__ == "__main__":
    ground.run_app(app)

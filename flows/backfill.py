"""The flow `backfill`: fetch what is missing of some coins in a span, one task a slab."""

from flows import ground

if __name__ == "__main__":
    ground.prepare()  # before Prefect is imported

import time
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.command import NO_FLAGS, DryRun, FlowFlags, fill_form, fill_limit, make_app, run_flow
from flows.form import IntervalName, Text, UnitName, name_run, read_last, read_series, read_targets
from flows.slabs import make_task_runner, run_plan
from heatpipe import cli
from heatpipe.config import Settings
from heatpipe.errors import ConfigError
from heatpipe.plan import Plan
from heatpipe.store import Store
from heatpipe.survey import make_plan


# The docstring's "Args" is where Prefect takes the descriptions from that the form in its UI shows.
@flow(name="backfill", flow_run_name=name_run, task_runner=make_task_runner())
def backfill(
    coins: list[str] = ["BTC"],  # noqa: B006 - the form shows it, nobody changes it
    interval: IntervalName = "MINUTE",
    unit: UnitName = "coin",
    depth: int = 1500,
    start: Text = "",
    end: Text = "",
    last: Text = "1d",
    dry_run: bool = False,
    max_weight: int = 0,
    refetch: bool = False,
    refetch_absent: bool = False,
    data: Text = "",
) -> State[Any]:
    """Fetch the liquidation heatmaps that are missing of some coins in a span, and store them as Parquet.

    Spends weight of the API key, which comes from KIYOTAKA_API_KEY where the flow runs, or from the Secret block
    kiyotaka-api-key. What is on disk is not asked for again: a new run finishes what an earlier one has left.

    Args:
        coins: Coins in Hyperliquid's spelling, such as BTC, kPEPE, PURR/USDC; one a field.
        interval: Time between two snapshots.
        unit: What volumes are counted in: the coin itself, or USD.
        depth: Most price levels per snapshot. Up to 1500 are included; each further 1500 cost a fifth more.
        start: Date or instant, in UTC whatever your browser's time zone, such as 2026-03-01 or 2026-03-01T12:30.
            Empty for the length below.
        end: The same, in UTC; not included. Empty for the last closed interval when the run starts.
        last: Length up to the end, such as 90m, 36h, 7d or 2w, counted when the run starts. Ignored where there is
            a start.
        dry_run: Only plan, and show what it would cost; spends nothing, needs no key.
        max_weight: Refuse a plan that costs more than this weight. 0 for no limit.
        refetch: Ask again for what is on disk, and replace it.
        refetch_absent: Ask again for intervals of which the API had nothing.
        data: Folder of the dataset, an absolute path where the flow runs. Empty for that of HEATPIPE_DATA there.
    """

    def plan(store: Store, settings: Settings) -> Plan:
        if not coins:
            raise ConfigError("coins is empty: name at least one, such as BTC")
        if refetch and refetch_absent:
            raise ConfigError("refetch and refetch_absent exclude each other")
        targets = read_targets(read_series(coins, interval, unit, depth), start, end)
        return make_plan(targets, store, settings, time.time(), last_s=read_last(last), **how)

    how = {"refetch": refetch, "refetch_absent": refetch_absent}
    return run_plan("backfill", plan, data=data, dry_run=dry_run, max_weight=max_weight, **how)


app = make_app("backfill", "--coin BTC --last 7d --data /srv/heatpipe")


@app.default
def main(
    *,
    series: cli.SeriesFlags = cli.NO_SERIES,
    flags: FlowFlags = NO_FLAGS,
    dry_run: DryRun = False,
    max_weight: cli.MaxWeight = None,
    refetch: cli.Refetch = False,
    refetch_absent: cli.RefetchAbsent = False,
) -> int:
    """Run the flow once."""
    form = {"last": "", **fill_form(series, flags)}
    if not form.get("coins"):
        raise ConfigError("no coin: give --coin BTC, or a --config file with [[series]]")
    limits = {"dry_run": dry_run, "max_weight": fill_limit(max_weight)}
    how = {"refetch": refetch, "refetch_absent": refetch_absent}
    return run_flow(backfill, flags, form | limits | how)


if __name__ == "__main__":
    ground.run_app(app)

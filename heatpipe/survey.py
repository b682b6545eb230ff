"""What is wanted against what is on disk: a Plan, and whether it may be carried out. Spends nothing."""

from collections.abc import Iterable

from heatpipe.config import Settings, Target, resolve_span
from heatpipe.errors import ConfigError
from heatpipe.model import Spans, days_of
from heatpipe.plan import Plan, SlabPlan, clip_span, estimate, plan_slab, plan_slabs
from heatpipe.store import Store


def make_plan(
    targets: Iterable[Target],
    store: Store,
    settings: Settings,
    now: float,
    *,
    last_s: int | None = None,
    refetch: bool = False,
) -> Plan:
    """Look at what is on disk and plan the rest. Spends nothing.

    Parameters
    ----------
    targets : iterable of Target
        What is wanted.
    store : Store
        Where it is to be.
    settings : Settings
        The budget's burst, the history, the settling time.
    now : float
        Unix seconds.
    last_s : int, optional
        Length of the span of a target that names no start.
    refetch : bool
        Plan as if nothing were on disk.

    Raises
    ------
    ConfigError
        A target cannot be asked for; see `heatpipe.plan.clip_span`.
    """
    slabs: list[SlabPlan] = []
    warnings: list[str] = []
    horizon = settings.horizon(now)
    for target in targets:
        step = target.series.interval_s
        wanted = resolve_span(target.start, target.end, last_s, horizon.closed_end(step))
        clipped = clip_span(wanted, step, horizon)
        warnings += [f"{target.series.coin}: {warning}" for warning in clipped.warnings]
        for slab in plan_slabs(target.series, clipped.span):
            days = days_of(slab.span.clip(clipped.span))
            covered = Spans() if refetch else store.covered(target.series, days)
            slabs.append(plan_slab(slab, clipped.span, covered))
    return Plan(tuple(slabs), tuple(dict.fromkeys(warnings)))


def check_plan(plan: Plan, store: Store, settings: Settings, max_weight: int | None = None) -> None:
    """Refuse, before anything is spent, a plan that costs too much or will not fit.

    Raises
    ------
    ConfigError
        It is over `max_weight`, one request is over the burst, or the disk is too small.
    """
    if max_weight is not None and plan.weight > max_weight:
        raise ConfigError(f"the plan costs a weight of {plan.weight:,}, allowed are {max_weight:,} (--max-weight)")
    heaviest = max((window.weight for window in plan.windows), default=0)
    if heaviest > settings.burst:
        raise ConfigError(f"one request weighs {heaviest}, the budget's burst is only {settings.burst}")
    free, needed = store.free_bytes(), estimate(plan).disk_bytes
    if needed > free:
        raise ConfigError(
            f"the plan needs about {needed / 1e9:.1f} GB in {store.root}, {free / 1e9:.1f} GB are free; "
            "plan a shorter span, or point --data to a larger disk"
        )

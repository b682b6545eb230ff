"""``python -m flows.…``: flags to the fields of a form, a flow's end to an exit code."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

from cyclopts import App, Parameter
from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal

from flows import ground
from flows.settings import COMMAND_LINE, CommandLine
from heatpipe import cli
from heatpipe.config import Settings, Target
from heatpipe.errors import ConfigError, IncompleteError
from heatpipe.model import show_time


@Parameter(name="*", group=cli.SHARED)
@dataclass(frozen=True, kw_only=True)
class FlowFlags:
    """Where things are."""

    data: str | None = None
    """Folder of the dataset. [HEATPIPE_DATA; default: data]"""
    config: str | None = None
    """TOML file with settings and series."""
    api_url: str | None = None
    """URL of the API. [HEATPIPE_API_URL; default: https://api.kiyotaka.ai]"""
    verbose: Annotated[bool, Parameter(negative=(), show_default=False)] = False
    """Say what is retried, and why; show the traceback of what ends the run."""

    def load(self) -> Settings:
        """Put the settings together."""
        return Settings.load({"root": self.data, "url": self.api_url}, file=self.config)


NO_FLAGS: Final = FlowFlags()
DryRun = Annotated[bool, Parameter(negative=(), help="Only plan, and say what it would cost; spends nothing.")]


def make_app(name: str, example: str) -> App:
    """Return a command line that runs one flow."""
    return ground.make_app(
        name,
        f"""Run the flow here, on the server of PREFECT_API_URL or on an ephemeral one.

Example: `KIYOTAKA_API_KEY=… python -m flows.{name} {example}`""",
    )


def fill_form(series: cli.SeriesFlags, flags: FlowFlags) -> dict[str, Any]:
    """Fill in the form of a flow from the flags, and from the file's ``[[series]]`` where no coin was named.

    Raises
    ------
    ConfigError
        They contradict each other, or the file's series do not fit one form.
    """
    if series.start and series.last:
        raise ConfigError("--start and --last exclude each other")
    names = ("interval", "unit", "depth", "start", "end", "last")
    given = {name: getattr(series, name) for name in names if getattr(series, name) is not None}
    if series.coin:
        return {"coins": list(dict.fromkeys(series.coin)), **given}
    targets = flags.load().targets
    if targets and {"interval", "unit", "depth"} & given.keys():
        raise ConfigError("--interval, --unit and --depth go with --coin; the file's [[series]] name their own")
    forms = [_fill_from_file(target) for target in targets]
    if any(form != forms[0] for form in forms):
        raise ConfigError(
            "the file's [[series]] differ in interval, unit, depth or span, and a flow run has one of each: "
            "name some with --coin, or use the command heatpipe, which takes them all"
        )
    form = {"coins": [target.series.coin for target in targets], **forms[0]} if forms else {}
    if series.last:
        form.pop("start", None)  # the file's start must not outdo the flag
    return form | given


def fill_limit(max_weight: int | None) -> int:
    """Fill in the field `max_weight`, whose 0 stands for no limit.

    Raises
    ------
    ConfigError
        The flag is 0.
    """
    if max_weight == 0:
        raise ConfigError("--max-weight 0 would refuse all that is to be fetched; --dry-run only plans")
    return max_weight or 0


def _fill_from_file(target: Target) -> dict[str, Any]:
    bounds = {"start": target.start, "end": target.end}
    return {
        "interval": target.series.interval,
        "unit": target.series.unit,
        "depth": target.series.depth,
        **{name: show_time(time_s) for name, time_s in bounds.items() if time_s is not None},
    }


def run_flow(flow: Flow[..., State[Any]], flags: FlowFlags, form: dict[str, Any]) -> int:
    """Run a flow once and return the exit code of the command line's contract.

    Raises
    ------
    ConfigError
        There is no Prefect server to run it on.
    HeatpipeError
        What made the run fail.
    KeyboardInterrupt
        The run was ended by a signal.
    """
    ground.check_server()
    token = COMMAND_LINE.set(CommandLine(flags.config, flags.api_url, flags.verbose))
    try:
        state: State[Any] = flow(**form, data=flags.data or "", return_state=True)
    except (KeyboardInterrupt, TerminationSignal):
        raise KeyboardInterrupt("what had arrived is on disk, the same command fetches the rest") from None
    finally:
        COMMAND_LINE.reset(token)
    if state.is_failed():
        state.result()  # raises what the flow failed with
    if not state.is_completed():
        raise IncompleteError(state.message or "the flow run did not complete")
    return cli.DONE

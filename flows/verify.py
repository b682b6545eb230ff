"""The flow `verify`: every file read back and proved sound. Changes nothing, asks nobody."""

from flows import ground

if __name__ == "__main__":
    ground.prepare()  # before Prefect is imported

import sys
import time
from collections.abc import Callable
from typing import Any, Final

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.account import Gauge, show_findings
from flows.command import NO_FLAGS, FlowFlags, make_app, run_flow
from flows.form import Text, name_run, read_last, read_targets
from flows.settings import load_settings
from flows.slabs import SHOWN_EVERY_S, fail, forward_warnings, known_errors, told_once
from heatpipe import cli
from heatpipe.config import Settings
from heatpipe.errors import DatasetError, HeatpipeError
from heatpipe.progress import show_bytes
from heatpipe.store import Store
from heatpipe.survey import choose_coins
from heatpipe.verify import Choice, Findings, choose_days, verify_files

MOST_LOGGED: Final = 20
"""Problems that the log names; the report has more."""


class UnsoundError(DatasetError):
    """A file is not as heatpipe leaves it."""


@flow(name="verify", flow_run_name=name_run)
def verify(
    coins: list[str] = [],  # noqa: B006 - the form shows it, nobody changes it
    last: Text = "",
    data: Text = "",
) -> State[Any]:
    """Read files back and prove them sound; each problem is named with its path.

    Spends nothing and changes nothing. A problem makes the run Failed.

    Args:
        coins: Coins in Hyperliquid's spelling, one a field. Empty for all that lies in the dataset.
        last: Newest days, as a length such as 36h, 7d or 2w, counted when the run starts. Empty for all days.
        data: Folder of the dataset, an absolute path where the flow runs. Empty for that of HEATPIPE_DATA there.
    """
    with told_once(), forward_warnings():
        try:
            with known_errors():
                settings = load_settings(data)
                store = Store(settings.root)
                findings = verify_files(store, _choose(coins, last, store, settings), on_file=_show_files())
                return _judge(findings, settings.root)
        except HeatpipeError as exc:
            return fail(exc)


def _choose(coins: list[str], last: str, store: Store, settings: Settings) -> list[Choice] | None:
    """Choose days of series; None for all that lies there, what does not belong there included."""
    last_s = read_last(last)
    if not coins and last_s is None:
        return None
    series = choose_coins(store.all_series(), coins or None)
    return choose_days(read_targets(series, ""), settings, time.time(), last_s=last_s)


def _show_files() -> Callable[[int, int], None]:
    gauge = Gauge("verify-progress")
    due = time.monotonic() + SHOWN_EVERY_S

    def show(done: int, files: int) -> None:
        nonlocal due
        if done == files or time.monotonic() >= due:
            due = time.monotonic() + SHOWN_EVERY_S
            gauge.show(done / files, f"{done:,} of {files:,} files")

    return show


def _judge(findings: Findings, root: str) -> State[Any]:
    """Say what was found, in the log, as an artifact and as the run's end."""
    problems = findings.problems
    if not (findings.files or problems):
        raise DatasetError(f"nothing to verify: there is no such file in {root}", root)
    for problem in problems[:MOST_LOGGED]:
        get_run_logger().error("%s: %s", problem.path, problem.cause)
    show_findings(findings, root)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
        first = f"{problems[0].path}: {problems[0].cause}"
        raise UnsoundError(f"{count} in {findings.files:,} files; the first: {first}", problems[0].path)
    read = f"{findings.files:,} files, {findings.rows:,} rows, {show_bytes(findings.size_bytes)}: all sound"
    return Completed(message=read, data=findings.as_document())


app = make_app("verify", "--data /srv/heatpipe")


@app.default
def main(
    *,
    coin: tuple[str, ...] = (),
    last: str = "",
    flags: FlowFlags = NO_FLAGS,
) -> int:
    """Run the flow once.

    Parameters
    ----------
    coin : tuple of str
        Coin in Hyperliquid's spelling; repeatable. Else all that lies in the dataset.
    last : str
        Newest days only, as a length such as 36h, 7d or 2w.
    """
    try:
        return run_flow(verify, flags, {"coins": list(coin), "last": last})
    except UnsoundError as exc:
        print(f"heatpipe: {exc}", file=sys.stderr)
        return cli.UNSOUND


if __name__ == "__main__":
    ground.run_app(app)

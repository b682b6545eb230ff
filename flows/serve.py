"""The deployments of ``prefect.yaml`` without a work pool or a worker: ``python -m flows.serve``."""

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]  # what Prefect reads the same file with; it ships no types
from prefect import Flow
from prefect.runner import Runner
from prefect.schedules import Schedule

from flows.backfill import backfill
from flows.update import update
from flows.verify import verify
from heatpipe import cli

FILE: Final = Path(__file__).parent.parent / "prefect.yaml"
FLOWS: Final[dict[str, Flow[..., Any]]] = {flow.name: flow for flow in (backfill, update, verify)}


def read_deployments() -> list[dict[str, Any]]:
    """Return what ``prefect.yaml`` deploys."""
    found: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())["deployments"]
    return found


class _Runner(Runner):
    """Prefect's runner, which on SIGTERM falls over its own feet; here it is a Ctrl-C, which ends it in order."""

    def handle_sigterm(self, *_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGINT)


def serve(on_ready: Callable[[], None]) -> None:
    """Deploy on the server of PREFECT_API_URL, and run here what is started there, until interrupted.

    Parameters
    ----------
    on_ready : callable
        Called when the deployments are there.
    """
    asyncio.run(_serve(on_ready))


async def _serve(on_ready: Callable[[], None]) -> None:
    runner = _Runner(name="heatpipe", pause_on_shutdown=True)
    for one in read_deployments():
        flow = FLOWS[one["entrypoint"].rpartition(":")[2]]
        schedules = [Schedule(**schedule) for schedule in one.get("schedules", [])]
        deployment = await flow.ato_deployment(one["name"], description=one["description"], schedules=schedules)
        await runner.aadd_deployment(deployment)
    on_ready()
    running = asyncio.create_task(runner.start())
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:  # cancelled itself, it would kill the runs, and what they have paid for
        if runner.started:
            await runner.astop()
            await running
        raise


def main() -> int:
    """Serve, and say what."""
    names = ", ".join(f"{flow.name}/{flow.name}" for flow in FLOWS.values())
    try:
        serve(lambda: print(f"Serving {names}; Ctrl-C ends it.", flush=True))
    except KeyboardInterrupt:
        return cli.INTERRUPTED
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())

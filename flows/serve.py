"""The deployments of ``prefect.yaml`` without a work pool or a worker: ``python -m flows.serve``."""

from flows import ground

if __name__ == "__main__":
    ground.prepare()  # before Prefect is imported

import asyncio
import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]  # what Prefect reads the same file with; it ships no types
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.schedules import Schedule

from flows.backfill import backfill
from flows.update import update
from flows.verify import verify
from heatpipe import cli
from heatpipe.errors import ConfigError

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

    Raises
    ------
    ConfigError
        The server has one of them for a work pool, whose workers are to run it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else asyncio would not cancel what it runs
    asyncio.run(_serve(on_ready))


async def _serve(on_ready: Callable[[], None]) -> None:
    await _check_pools()
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


async def _check_pools() -> None:
    """Leave deployments of a work pool alone: served as well, their runs would look for the code in the wrong place."""
    async with get_client() as client:
        for one in read_deployments():
            name = f"{one['entrypoint'].rpartition(':')[2]}/{one['name']}"
            with contextlib.suppress(ObjectNotFound):
                pool = (await client.read_deployment_by_name(name)).work_pool_name
                if pool:
                    raise ConfigError(
                        f"the server has {name} for the work pool {pool!r}: start `python -m flows.worker`, "
                        f"or delete them first, as with `prefect deployment delete {name}`"
                    )


app = ground.make_app(
    "serve",
    """Serve the deployments of prefect.yaml without a pool, on the server of PREFECT_API_URL, until Ctrl-C.

Example: `KIYOTAKA_API_KEY=… HEATPIPE_DATA=/srv/heatpipe python -m flows.serve`""",
)


@app.default
def main(*, verbose: ground.Verbose = False) -> int:  # noqa: ARG001 - see flows.ground
    """Serve, and say what."""
    ground.check_server()
    names = ", ".join(f"{flow.name}/{flow.name}" for flow in FLOWS.values())
    try:
        serve(lambda: print(f"Serving {names}; Ctrl-C ends it.", flush=True))
    except KeyboardInterrupt:
        return cli.INTERRUPTED
    return cli.DONE


if __name__ == "__main__":
    ground.run_app(app)

"""One PostgreSQL, and one Prefect server on it, for the tests of this folder; they run only when asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.rig import PrefectServer, run_postgres, run_prefect


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless the command line names it."""
    here = Path(__file__).parent
    named = [config.invocation_params.dir / argument.split("::")[0] for argument in config.args]
    return None if any(here in (path, *path.parents) for path in named) else True


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with run_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def server(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with run_prefect(tmp_path_factory.mktemp("prefect"), postgres) as running:
        yield running

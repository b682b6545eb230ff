"""One rig for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.crash.rig import Rig, Undisturbed, make_rig


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, Undisturbed]]:
    with make_rig(tmp_path_factory.mktemp("rig")) as made:
        yield made

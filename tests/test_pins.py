"""What users build upon stays as it is: trees byte for byte, ``--json`` documents, exit codes; see `tests.pins`."""

import json
from pathlib import Path

from tests.pins import GOLDEN, run_all


def test_trees_documents_and_exit_codes_are_those_that_are_pinned(tmp_path: Path) -> None:
    pinned, found = json.loads(GOLDEN.read_text()), run_all(tmp_path)
    assert found.keys() == pinned.keys()
    for name, given in found.items():
        assert given == pinned[name], name

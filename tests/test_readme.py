"""Every command and snippet of the README is run, in its order, in a folder like a fresh checkout's."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from heatpipe.sandbox import Market, Options, Tier, serve

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
BLOCK = re.compile(r"^( *)```(console|python)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(kind, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)) for indent, kind, text in BLOCK.findall(README)]
COMMANDS = [line.split("  #")[0].strip() for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]
SNIPPETS = [text for kind, text in BLOCKS if kind == "python"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield a folder in which the demo has run, and an environment whose upstream is a sandbox."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "data").mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEATPIPE_", "KIYOTAKA_"))}
    environment = kept | {"PYTHONPATH": str(REPOSITORY), "PREFECT_HOME": str(folder / ".prefect")}
    demo = subprocess.run(
        [sys.executable, "-m", "flows.demo"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    (folder / "demo.txt").write_text(demo.stdout)
    with serve(Options(market=Market(), keys={"sandbox-key": Tier("advanced", 10**6, 10**6)})) as url:
        yield folder, environment | {"HEATPIPE_API_URL": url}


def run(command: str, checkout: tuple[Path, dict[str, str]]) -> subprocess.CompletedProcess[str]:
    folder, environment = checkout
    return subprocess.run(
        shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_demo_ends_with_rows_a_picture_and_what_to_do_next(checkout: tuple[Path, dict[str, str]]) -> None:
    said = (checkout[0] / "demo.txt").read_text()
    rows = re.search(r"([0-9,]+) rows on disk", said)
    assert rows is not None
    assert int(rows[1].replace(",", "")) > 5_000_000
    assert (checkout[0] / "data" / "demo.png").read_bytes().startswith(b"\x89PNG")
    commands = [line.strip() for line in said.split("What to do next:")[1].splitlines() if line.startswith("  .venv")]
    assert len(commands) == 3
    for command in commands:
        result = run(command, checkout)
        assert result.returncode == 0, f"{command}: {result.stderr}"


def test_the_commands_of_the_readme_run_in_their_order(checkout: tuple[Path, dict[str, str]]) -> None:
    folder, environment = checkout
    environment = {**environment}
    makefile = (REPOSITORY / "Makefile").read_text()
    for command in COMMANDS:
        if command.startswith("export "):
            given = dict(word.split("=", 1) for word in shlex.split(command)[1:])
            given.pop("HEATPIPE_API_URL", None)  # the sandbox of this test
            environment |= given | {"KIYOTAKA_API_KEY": "sandbox-key"}
        elif command.startswith("make "):  # the demo has run already; this test is part of make test
            assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE), command
        elif command != ".venv/bin/heatpipe sandbox":
            result = run(command, (folder, environment))
            assert result.returncode == 0, f"{command}: {result.stderr}"
    assert COMMANDS.count(".venv/bin/heatpipe sandbox") == 1
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_the_snippets_of_the_readme_run(checkout: tuple[Path, dict[str, str]], number: int) -> None:
    folder, environment = checkout
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", SNIPPETS[number]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_the_files_that_the_readme_names_are_there() -> None:
    for path, section in re.findall(r"\]\(((?!https?:)[^)#]+)#?([^)]*)\)", README):
        assert (REPOSITORY / path).exists(), path
        if section:
            titles = re.findall(r"^#+ (.+)$", (REPOSITORY / path).read_text(), re.MULTILINE)
            assert section in [title.lower().replace(" ", "-") for title in titles], section


def test_the_readme_says_what_the_flags_do() -> None:
    assert "export KIYOTAKA_API_KEY" in README
    assert {"coin", "interval", "unit", "depth", "start", "end", "last", "json"} <= set(
        re.findall(r"--([a-z]+)", README)
    )

"""The import graph, drawn from the code: data walks one way, and each engine has its house."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]

# From words to the exit: an import points to something further up. A new module takes its place here and in the docs.
ORDER = (
    "errors",
    "upstream",
    "redaction",
    "process",
    "inflate",
    "memory",
    "model",
    "plan",
    "report",
    "times",
    "config",
    "budget",
    "client",
    "decode",
    "finality",
    "fetch",
    "pages",
    "layout",
    "disk",
    "lock",
    "store",
    "compare",
    "slab",
    "survey",
    "ingest",
    "frame",
    "sql",
    "status",
    "verify",
    "heatmap",
    "progress",
    "cli",
)

# Which files may know an engine. The sandbox is another program: it has engines of its own.
ENGINES = {
    "httpx": {"client"},
    "isal": {"inflate"},
    "pyarrow": {"decode", "layout", "store"},
    "polars": {"frame", "heatmap"},
    "duckdb": {"sql"},
    "matplotlib": {"heatmap"},
    "xxhash": {"layout"},
    "cyclopts": {"cli"},
    "rich": {"cli", "progress"},
    "prefect": set(),
    "starlette": set(),
    "uvicorn": set(),
}

LATE = ("numpy", "pyarrow", "polars", "httpx", "prefect", "matplotlib", "duckdb")


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, those for the type checker included, by its full name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module
            found.add(node.module)
            # `from heatpipe import layout` names a module, `from heatpipe import __version__` does not
            found |= {
                f"{node.module}.{alias.name}"
                for alias in node.names
                if (HOUSE / node.module.replace(".", "/") / f"{alias.name}.py").exists()
            }
    return found


MODULES = {path.stem: path for path in sorted((HOUSE / "heatpipe").glob("*.py")) if not path.stem.startswith("__")}
GRAPH = {name: imports_of(path) for name, path in MODULES.items()}


def own_imports(name: str) -> Iterator[str]:
    """Names of heatpipe's own modules that one of them imports."""
    for module in GRAPH[name]:
        package, _, inner = module.partition(".")
        if package == "heatpipe" and inner:
            yield inner.partition(".")[0]


def roots(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def test_the_order_names_every_module_once() -> None:
    assert sorted(ORDER) == sorted(MODULES)


def test_the_graph_is_drawn_from_the_code() -> None:
    assert {"errors", "model", "upstream"} <= set(own_imports("decode"))
    assert "layout" in set(own_imports("store"))  # from heatpipe import layout
    assert "sandbox" in set(own_imports("cli"))  # within a function
    assert not set(own_imports("errors"))


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_only_to_earlier_words(name: str) -> None:
    earlier = set(ORDER[: ORDER.index(name)])
    assert set(own_imports(name)) - {"sandbox"} <= earlier


def test_only_the_command_line_knows_the_sandbox() -> None:
    assert [name for name in ORDER if "sandbox" in own_imports(name)] == ["cli"]


def test_the_sandbox_knows_nothing_of_heatpipe() -> None:
    for path in (HOUSE / "heatpipe" / "sandbox").glob("*.py"):
        own = {module for module in imports_of(path) if module.partition(".")[0] == "heatpipe"}
        assert all(module == "heatpipe.sandbox" or module.startswith("heatpipe.sandbox.") for module in own), path


def test_heatpipe_never_imports_the_flows_nor_the_tests() -> None:
    for path in (HOUSE / "heatpipe").rglob("*.py"):
        assert not roots(imports_of(path)) & {"flows", "tests", "prefect"}, path


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_is_known_only_in_its_own_house(engine: str) -> None:
    assert {name for name in ORDER if engine in roots(GRAPH[name])} == ENGINES[engine]


def test_third_parties_are_the_known_ones() -> None:
    ours = {"heatpipe", "numpy", *ENGINES}
    for name in ORDER:
        assert roots(GRAPH[name]) - set(sys.stdlib_module_names) <= ours, name


@pytest.mark.parametrize(
    "module", ["errors", "upstream", "memory", "model", "plan", "report", "decode", "layout", "compare"]
)
def test_pure_modules_know_no_clock_no_network_and_no_files(module: str) -> None:
    impure = {"os", "io", "time", "random", "socket", "subprocess", "threading", "shutil", "tempfile", "logging"}
    assert not roots(GRAPH[module]) & impure


@pytest.mark.parametrize("statement", ["import heatpipe", "import heatpipe.cli", "import heatpipe.errors"])
def test_no_engine_is_loaded_before_it_is_used(statement: str) -> None:
    program = f"import sys; {statement}; print(*sorted({set(LATE)!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=HOUSE,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == []


def test_the_public_names_are_found_where_they_are_promised() -> None:
    import heatpipe

    for name in ("HeatpipeError", "ConfigError", "DatasetError"):
        assert issubclass(getattr(heatpipe, name), heatpipe.HeatpipeError)
    assert heatpipe.__all__ == ["backfill", "connect", "scan", "update", "Series", "Settings"]
    for name in heatpipe.__all__:
        assert getattr(heatpipe, name).__name__ == name
        assert name in dir(heatpipe)
    with pytest.raises(AttributeError, match="has no attribute 'backfil'"):
        heatpipe.backfil  # noqa: B018

"""What users build upon, pinned: trees byte for byte, ``--json`` documents, exit codes, of a run through all commands.

``python -m tests.pins`` writes them anew, after a change that is meant to change them.
"""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from heatpipe import cli
from heatpipe.sandbox import Market, Options, Rule, Tier, faults, serve

GOLDEN: Final = Path(__file__).parent / "golden" / "pins.json"
KEY: Final = "a-key-for-tests"
DAY: Final = "liquidations/unit=coin/depth=5/interval=HOUR/coin=BTC/date=2026-06-02/part-0.parquet"
HOURS: Final = ("--interval", "HOUR", "--depth", "5")
BTC: Final = ("--coin", "BTC", *HOURS)
EARLY: Final = ("--start", "2026-06-01", "--end", "2026-06-03")
LATE: Final = ("--start", "2026-06-01", "--end", "2026-06-05")
VARYING: Final = frozenset({"seconds", "free_bytes", "given_up_at"})
"""Members of documents that differ from run to run."""


@dataclass(frozen=True)
class Step:
    """One command, and what is done to the folder before it.

    Parameters
    ----------
    name : str
        What it stands for.
    arguments : tuple of str
        Of the command ``heatpipe``.
    faults : tuple of Rule
        What the sandbox does wrong meanwhile.
    before : callable, optional
        Changes the dataset's folder.
    environment : dict
        Variables that differ.
    """

    name: str
    arguments: tuple[str, ...]
    faults: tuple[Rule, ...] = ()
    before: Callable[[Path], object] | None = None
    environment: dict[str, str] = field(default_factory=dict)


def flip(root: Path) -> None:
    data = bytearray((root / DAY).read_bytes())
    data[40] ^= 1
    (root / DAY).write_bytes(data)


def add_file(root: Path) -> None:
    (root / DAY).with_name("more.parquet").touch()


def each_in_turn(*chosen: faults.Fault) -> tuple[Rule, ...]:
    return tuple(Rule(fault, nth=number) for number, fault in enumerate(chosen, 1))


PASSING: Final = (faults.INTERNAL_ERROR, faults.GZIP_CUT, faults.TIMEOUT, faults.RESET, faults.JSON_CUT)
STEPS: Final = (
    Step("nothing there", ("status", "--json")),
    Step("no coin", ("backfill", "--json")),
    Step("plan", ("plan", *BTC, *EARLY, "--json")),
    Step("plan, too heavy", ("plan", *BTC, *EARLY, "--max-weight", "1", "--json")),
    Step("backfill", ("backfill", *BTC, *EARLY, "--json")),
    Step("backfill, again", ("backfill", *BTC, *EARLY, "--json")),
    Step("plan, the rest", ("plan", *BTC, *LATE, "--json")),
    Step("backfill, the rest, with faults", ("backfill", *BTC, *LATE, "--json"), each_in_turn(*PASSING)),
    Step("plan --update", ("plan", "--update", "--coin", "BTC", *HOURS, "--end", "2026-06-06", "--json")),
    Step("update", ("update", *BTC, "--end", "2026-06-06", "--json")),
    Step("update, a lookback", ("update", *BTC, "--end", "2026-06-06", "--lookback", "24", "--json")),
    Step("refetch", ("backfill", *BTC, *EARLY, "--refetch", "--json")),
    Step("refetch what is absent", ("backfill", *BTC, *EARLY, "--refetch-absent", "--json")),
    Step(
        "two coins, usd, minutes",
        ("backfill", "--coin", "BTC", "--coin", "ETH", "--unit", "usd", "--depth", "50", *EARLY, "--json"),
    ),
    Step(
        "bad data",
        ("backfill", "--coin", "SOL", *HOURS, *EARLY, "--json"),
        tuple(Rule(faults.PRICE_NEGATIVE, coin="SOL", nth=number) for number in range(1, 40)),
    ),
    Step("bad data that has passed", ("backfill", "--coin", "SOL", *HOURS, *EARLY, "--json")),
    Step("nothing comes", ("backfill", "--coin", "DOGE", *HOURS, *EARLY, "--json"), (Rule(faults.NO_SERIES),)),
    Step("an unknown coin", ("backfill", "--coin", "NOPE", *HOURS, *EARLY, "--json"), (Rule(faults.INVALID_SYMBOL),)),
    Step("a wrong key", ("backfill", *BTC, *LATE, "--refetch", "--json"), (), None, {"KIYOTAKA_API_KEY": "another"}),
    Step("no key", ("backfill", *BTC, *LATE, "--refetch", "--json"), (), None, {"KIYOTAKA_API_KEY": ""}),
    Step("a wrong tier", ("backfill", "--coin", "XRP", *HOURS, *EARLY, "--json"), (Rule(faults.WRONG_TIER),)),
    Step("beyond the history", ("backfill", "--coin", "XRP", *HOURS, *EARLY, "--json"), (Rule(faults.BEYOND_HISTORY),)),
    Step(
        "nobody there",
        ("backfill", "--coin", "XRP", *HOURS, *EARLY, "--json"),
        (),
        None,
        {"HEATPIPE_API_URL": "http://127.0.0.1:9", "HEATPIPE_PATIENCE_S": "1"},
    ),
    Step("status", ("status", *EARLY, "--json")),
    Step("status of one", ("status", *BTC, *LATE, "--json")),
    Step("verify", ("verify", "--json")),
    Step("heatmap", ("heatmap", *BTC, *EARLY, "--output", "picture.png", "--json")),
    Step("heatmap of a folder with several units", ("heatmap", "--coin", "BTC", *EARLY, "-o", "picture.png", "--json")),
    Step("verify a damaged day", ("verify", "--json"), (), flip),
    Step("backfill with a damaged day", ("backfill", *BTC, *LATE, "--json")),
    Step(
        "a foreign file", ("verify", "--json"), (), lambda root: (root / DAY).with_name("more.parquet").write_bytes(b"")
    ),
    Step("status, as text", ("status", *EARLY)),
    Step("an unknown option", ("status", "--nonsense")),
)


def run_all(folder: Path) -> dict[str, Any]:
    """Run all steps in a folder, one after the other; return what each gave, and which files were there after it."""
    found: dict[str, Any] = {}
    tree: dict[str, str] = {}
    for step in STEPS:
        root = folder / "data"
        if step.before:
            step.before(root)
        with serve_with(step.faults) as url:
            code, said = run(folder, make_environment(url) | step.environment, step.arguments)
        after = read_digests(root)
        found[step.name] = {
            "exit": code,
            "document": read_document(said) if "--json" in step.arguments else said.splitlines(),
            "changed": {path: digest for path, digest in after.items() if tree.get(path) != digest},
            "gone": [path for path in tree if path not in after],
        }
        tree = after
    return found


def run(folder: Path, environment: dict[str, str], arguments: tuple[str, ...]) -> tuple[int, str]:
    """Run a command in this process, for most of them take less time than Python's start; return what it gave."""
    before, said = dict(os.environ), io.StringIO()
    with chdir(folder), redirect_stdout(said), redirect_stderr(io.StringIO()):
        os.environ.clear()
        os.environ.update(environment)
        try:
            return cli.run(cli.app, list(arguments)), said.getvalue()
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def serve_with(rules: tuple[Rule, ...]) -> Iterator[str]:
    tier = Tier("enterprise", 10**9, 10**9, history_days=0)
    with serve(Options(market=Market(7, gaps=True), keys={KEY: tier}, faults=rules)) as url:
        yield url


def make_environment(url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEATPIPE_", "KIYOTAKA_"))}
    return kept | {
        "KIYOTAKA_API_KEY": KEY,
        "HEATPIPE_API_URL": url,
        "HEATPIPE_HISTORY_DAYS": "0",
        "HEATPIPE_CONCURRENCY": "1",  # which request meets which fault must not be left to chance
        "HEATPIPE_PATIENCE_S": "10",
        "COLUMNS": "100",
    }


def read_digests(root: Path) -> dict[str, str]:
    """Return half of each file's SHA-256, by its path, but for locks, which hold the number of a process."""
    return {
        str(path.relative_to(root)): hashlib.sha256(read_lasting(path)).hexdigest()[:32]
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] != "_locks"
    }


def read_lasting(path: Path) -> bytes:
    """Return the bytes of a file; of a record, what does not differ from run to run."""
    if path.suffix != ".json":
        return path.read_bytes()
    return json.dumps(without_varying(json.loads(path.read_text()))).encode()


def read_document(text: str) -> Any:
    return without_varying(json.loads(text)) if text else None


def without_varying(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: "…" if key in VARYING else without_varying(member) for key, member in value.items()}
    return [without_varying(member) for member in value] if isinstance(value, list) else value


def main() -> None:
    """Write the pins."""
    with tempfile.TemporaryDirectory() as folder:
        found = run_all(Path(folder))
    GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

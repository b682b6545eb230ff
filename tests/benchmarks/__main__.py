"""``make bench``: one table of what heatpipe costs, beside its peers and limits; docs/performance.md explains it.

Select rows by name: ``make bench ARGS="whole budget --runs 9 --json bench.json"``. Without names all but `flow` are
measured, in about seven minutes; ``--long`` takes that one in as well.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tests.benchmarks import budget, flow, growth, memory, planning, queries, stages, whole
from tests.benchmarks.table import Row, lay_out

PARTS: dict[str, Callable[[int], Iterable[Row]]] = {
    stages.NAME: stages.measure_stages,
    whole.NAME: whole.measure_whole,
    stages.SIZE_NAME: stages.measure_size,
    queries.NAME: queries.measure_queries,
    memory.NAME: memory.measure_memory,
    budget.NAME: budget.measure_budget,
    budget.SUSTAINED_NAME: budget.measure_sustained,
    planning.NAME: planning.measure_planning,
    planning.START_NAME: planning.measure_start,
    growth.YEARS_NAME: growth.measure_years,
    growth.COINS_NAME: growth.measure_coins,
    growth.RECORDS_NAME: growth.measure_records,
    growth.FILE_NAME: growth.measure_file,
    growth.SANDBOX_NAME: growth.measure_sandbox,
    flow.NAME: flow.measure_flow,
}

LONG = (flow.NAME,)
"""Left out unless asked for: the default run should end within ten minutes."""


def measure_parts(names: Sequence[str], runs: int) -> Iterator[Row]:
    """Measure one part after the other; say which on stderr, for it takes a while."""
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        yield from PARTS[name](runs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"rows: {', '.join(PARTS)} (default: all but the long ones)"
    )
    parser.add_argument(
        "--runs", type=int, default=5, help="rounds in which heatpipe and a peer take turns (default 5)"
    )
    parser.add_argument("--long", action="store_true", help=f"all rows, {', '.join(LONG)} too")
    parser.add_argument("--json", type=Path, help="file to write the same to")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in PARTS]:
        parser.error(f"no row is called {unknown[0]!r}; there are {', '.join(PARTS)}")
    if options.runs < 1:
        parser.error("--runs is at least 1")
    chosen = options.names or [name for name in PARTS if options.long or name not in LONG]
    rows = list(measure_parts(chosen, options.runs))
    print(lay_out(rows))
    if options.json:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        document = {"runs": options.runs, **machine, "rows": [row.as_document() for row in rows]}
        options.json.write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()

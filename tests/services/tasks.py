"""A flow of many tasks that do nothing, then one of a single task: says what they took, and the longest silence.

``python -m tests.services.tasks TASKS``
"""

import json
import sys
import time
from itertools import pairwise
from threading import Lock

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

ENDED: list[float] = []
LOCK = Lock()


@task(cache_policy=NO_CACHE, persist_result=False, log_prints=False)
def do_nothing(number: int) -> int:
    """End, and note when."""
    with LOCK:
        ENDED.append(time.monotonic())
    return number


@flow(task_runner=ThreadPoolTaskRunner(max_workers=8))  # type: ignore[arg-type]
def many_tasks(tasks: int) -> None:
    """Run so many."""
    wait([do_nothing.submit(number) for number in range(tasks)])


def main(tasks: str) -> None:
    """Run both flows; print what it took as JSON."""
    started = time.monotonic()
    many_tasks(int(tasks))
    between = time.monotonic()
    many_tasks(1)
    done = time.monotonic()
    longest_s = max(later - earlier for earlier, later in pairwise(ENDED[: int(tasks)]))
    print(
        json.dumps({"many_s": between - started, "next_s": done - between, "longest_s": longest_s, "ended": len(ENDED)})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

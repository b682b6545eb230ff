"""Run a command and write what it took to a file. With nothing imported: a process starts with its parent's peak.

::

    python -I -S launch.py USAGE.json COMMAND …
"""

import json
import os
import sys
import time


def main(usage_file: str, *command: str) -> int:
    """Run the command; write its wall and CPU seconds and its peak memory, those of its children included."""
    started = time.monotonic()
    child = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    wall_s = time.monotonic() - started
    with open(usage_file, "w") as file:  # noqa: PTH123 - pathlib would be the largest thing in this process
        json.dump(
            {
                "wall_s": wall_s,
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            },
            file,
        )
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""``make test-services``: run what needs PostgreSQL, or say in one line what is missing."""

import subprocess
import sys
from shutil import which

from tests.services.rig import find_postgres


def main() -> int:
    """Run the tests of this folder; arguments go to pytest."""
    if find_postgres() is None or which("systemd-analyze") is None:
        print(
            "make test-services needs PostgreSQL and systemd: on Debian and Ubuntu, apt-get install postgresql systemd"
        )
        return 1
    # In a process of its own: pytest wants to see its plugins before anybody else imports them.
    return subprocess.run([sys.executable, "-m", "pytest", "tests/services", *sys.argv[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

"""``make test-ui``: drive Prefect's UI with a real browser, or say in one line what is missing."""

import subprocess
import sys

from tests.ui.rig import find_chromium


def main() -> int:
    """Run the tests of this folder; arguments go to pytest."""
    if find_chromium() is None:
        print("make test-ui needs Chromium: on Debian, apt-get install -y chromium")
        return 1
    # In a process of its own: pytest wants to see its plugins before anybody else imports them.
    return subprocess.run([sys.executable, "-m", "pytest", "tests/ui", *sys.argv[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

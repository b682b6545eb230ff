"""``python -m heatpipe`` and the script ``heatpipe``: the command line, imported once its signals are in order."""

import os
import signal


def main() -> None:
    """Run the command line and end the process with the exit code of the contract."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    from heatpipe.process import run_process

    run_process(_run)


def _leave(*_: object) -> None:
    """Nothing has begun yet."""
    os.write(2, b"heatpipe: interrupted\n")
    os._exit(130)


def _run() -> int:
    from heatpipe.cli import app, run

    return run(app)


if __name__ == "__main__":
    main()

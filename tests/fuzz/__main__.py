"""``make fuzz SECONDS=60``: the decoder under a coverage-guided fuzzer, held against a slow plain reader.

Ends with the number of cases and exit code 0; with 1 where the two disagree or the decoder dies, naming the file that
holds the case. ``python -m tests.fuzz --case FILE`` tries such a file again. What was worth keeping stays below
``.fuzz/`` and is where the next run begins.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from heatpipe import decode
from tests.fuzz.cases import LONGEST, ask, make_seeds
from tests.fuzz.reader import check_decoder

FOLDER = Path(".fuzz")
LOG = FOLDER / "log.txt"


def run_fuzzer(seconds: int) -> int:
    """Fuzz, say how it went, and return the exit code."""
    for name in ("corpus", "seeds"):
        (FOLDER / name).mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(make_seeds()):
        (FOLDER / "seeds" / f"{number:02}").write_bytes(seed)
    arguments = [
        f"-max_total_time={seconds}",
        f"-artifact_prefix={FOLDER}/finding-",
        f"-max_len={LONGEST}",
        "-timeout=20",
        "-rss_limit_mb=4096",  # atheris itself keeps some 170 bytes a case; the decoder keeps none
        "-print_final_stats=1",
        f"{FOLDER}/corpus",  # what is new goes into the first
        f"{FOLDER}/seeds",
    ]
    print(f"fuzzing heatpipe.decode for {seconds} s; the fuzzer's own log is {LOG}", flush=True)
    with LOG.open("w") as log:
        command = [sys.executable, "-m", "tests.fuzz.target", *arguments]
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    said = LOG.read_text(errors="replace")
    cases = re.findall(r"^(?:stat::number_of_executed_units: |#)(\d+)", said, re.MULTILINE)
    done = f"{int(cases[-1]) if cases else 0:,} cases"
    if code == 0 and cases:
        print(f"{done}, no finding")
        return 0
    finding = re.search(r"Test unit written to (\S+)", said)
    print(_show_exception(said))
    print(f"{done}; the last is a finding: {finding[1]}" if finding else f"the fuzzer ended with exit code {code}")
    return 1


def _show_exception(said: str) -> str:
    """Return what Python said last, without the fuzzer's own lines."""
    found = re.search(r"^ === Uncaught Python exception: ===\n(.*?)^==\d+==", said, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else "\n".join(said.splitlines()[-20:])


def try_file(path: Path) -> int:
    """Try one case, without the fuzzer."""
    question, body = ask(path.read_bytes())
    vars(decode)["PARSE_BLOCK"] = question.block
    print(f"asked was {question.window}, in blocks of {question.block:,} bytes; the answer:\n{body!r}")
    print("read" if check_decoder(body, question.window, decode.decode_body) else "refused, as it must be")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="how long, 60 unless told")
    parser.add_argument("--case", type=Path, metavar="FILE", help="try this one case again, and nothing else")
    options = parser.parse_args()
    try:
        sys.exit(try_file(options.case) if options.case else run_fuzzer(options.seconds))
    except KeyboardInterrupt:
        sys.exit(130)

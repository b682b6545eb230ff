"""The process that atheris drives, started by ``make fuzz``; its arguments are libFuzzer's."""

import sys
from random import Random

import atheris

with atheris.instrument_imports(include=["heatpipe.decode", "heatpipe.model", "tests.fuzz.reader"]):
    from heatpipe import decode
    from tests.fuzz.reader import check_decoder

from tests.fuzz.cases import LONGEST, ask, damage_case


def try_case(case: bytes) -> None:
    """Let a disagreement, or whatever else the decoder raises, pass through to the fuzzer."""
    question, body = ask(case)
    vars(decode)["PARSE_BLOCK"] = question.block
    check_decoder(body, question.window, decode.decode_body)


def mutate_case(case: bytes, longest: int, seed: int) -> bytes:
    """Damage a case with our hand or with libFuzzer's."""
    return damage_case(case, Random(seed), lambda text: bytes(atheris.Mutate(text, max(len(text), LONGEST))))[:longest]


if __name__ == "__main__":
    atheris.Setup(sys.argv, try_case, custom_mutator=mutate_case)
    atheris.Fuzz()

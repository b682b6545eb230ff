"""What an answer may take, whatever comes: 600 MiB of memory, Python and its libraries included, and 10 s of CPU."""

import gzip
import json
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from heatpipe.client import body_cap, wire_cap
from heatpipe.model import Series, Span, Window
from heatpipe.upstream import LIQUIDATIONS
from tests.conftest import DAY, MINUTE, TODAY, Asked, MakeUpstream, http

MOST_MIB: Final = 600
MOST_CPU_S: Final = 10
SPAN: Final = Span(TODAY - 10 * DAY, TODAY - 10 * DAY + 1000 * MINUTE)
PROGRAM: Final = """
import json, resource, sys
import heatpipe.client
from heatpipe.config import Settings
from heatpipe.redaction import Secret
from heatpipe.ingest import backfill
from heatpipe.model import Series

url, root, coins, depth, start, end = sys.argv[1:]
heatpipe.client.MAX_REQUESTS = 2  # more of the same takes no more memory
settings = Settings(api_key=Secret("a-key-for-tests"), url=url, root=root, patience_s=0.0, history_days=0)
series = [Series(coin, depth=int(depth)) for coin in coins.split(",")]
report = backfill(series, int(start), int(end), settings=settings, clock=lambda: {now})
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
used = resource.getrusage(resource.RUSAGE_SELF)
cpu = used.ru_utime + used.ru_stime
print(json.dumps([peak / 1024, cpu, report.requests, [one.reason for one in report.failures]]))
"""


def envelope(asked: Asked, inside: str) -> tuple[bytes, bytes]:
    """What stands before and behind the text that is repeated."""
    identity = json.dumps({name: asked.params[name] for name in ("type", "interval", "coin")})
    before, behind = inside.split("…")
    return (text.replace("@", identity).encode() for text in (before, behind))  # type: ignore[return-value]


def window_of(asked: Asked) -> Window:
    return Window(Series("BTC", depth=int(asked.params["maxDepth"])), asked.span)


def deflate(before: bytes, unit: bytes, size: int, behind: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=31)
    many = unit * (1 + (1 << 20) // len(unit))
    parts = (before, *[many] * (size // len(many)), behind)
    return b"".join([*map(packer.compress, parts), packer.flush()])


REPEATED: Final = {
    "objects": ('{"series":[…{}]}', "{},"),
    "arrays": ('{"series":[…[]]}', "[],"),
    "points": ('{"series":[{"id":@,"points":[…{}]}]}', '{"t":1,"l":[{"p":1,"v":2}]},'),
    "objects in flat_points": ('{"series":[{"id":@,"flat_points":[…{}]}]}', "{},"),
    "objects behind flat_points": ('{"series":[{"id":@,"flat_points":[],"more":[…0]}]}', "{},"),
    "objects before flat_points": ('{"more":[…0],"series":[{"id":@,"flat_points":[]}]}', "{},"),
    "nothing but depth": ("…", "["),
    "depth in flat_points": ('{"series":[{"id":@,"flat_points":[…]}]}', "["),
    "one string": ('{"series":"…"}', "x"),
    "escapes": ('{"series":"…"}', "\\\\u0000"),
    "quotes in flat_points": ('{"series":[{"id":@,"flat_points":[…]}]}', '"'),
    "white space": ('{"series":[{"id":@,"flat_points":[…x]}]}', " "),
    "white space around numbers": ('{"series":[{"id":@,"flat_points":[…0]}]}', "0 , "),
    "commas": ('{"series":[{"id":@,"flat_points":[…]}]}', ","),
    "no points, often": ('{"series":[{"id":@,"flat_points":[…0,0]}]}', "0,0,"),
    "one number": ('{"series":[{"id":@,"flat_points":[…]}]}', "1"),
    "many numbers of one level": ('{"series":[{"id":@,"flat_points":[…0,0]}]}', "1,0,1,0,"),
    "zeros": ("…", "\0"),
}


def repeat(name: str) -> Callable[[Asked], bytes]:
    inside, unit = REPEATED[name]

    @cache
    def body(window: Window, before: bytes, behind: bytes) -> bytes:
        return deflate(before, unit.encode(), body_cap(window) - 1000, behind)

    def answer(asked: Asked) -> bytes:
        return http(body=body(window_of(asked), *envelope(asked, inside)), headers={"Content-Encoding": "gzip"})

    return answer


def descending(asked: Asked) -> bytes:
    """A million points without a level, the last one first."""
    window = window_of(asked)
    first, count = window.span.start * 1_000_000, min(1_400_000, body_cap(window) // 30)
    numbers = ",".join(f"0,{first + at}" for at in range(count, 0, -1))
    before, behind = envelope(asked, '{"series":[{"id":@,"flat_points":[…]}]}')
    return http(body=gzip.compress(before + numbers.encode() + behind, 1), headers={"Content-Encoding": "gzip"})


def unique_keys(asked: Asked) -> bytes:
    keys = ",".join(f'"{at:x}":0' for at in range(body_cap(window_of(asked)) // 12))
    return http(body=gzip.compress(b"{" + keys.encode() + b"}", 1), headers={"Content-Encoding": "gzip"})


def small_chunks(asked: Asked) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    for _ in range(1000):
        yield b"2\r\n  \r\n" * 1000
    yield b"0\r\n\r\n"


def gzip_members(asked: Asked) -> bytes:
    return http(body=gzip.compress(b"") * (wire_cap(window_of(asked)) // 20), headers={"Content-Encoding": "gzip"})


def long_header(asked: Asked) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nX: "
    for _ in range(100):
        yield b"x" * (1 << 20)
    yield b"\r\n\r\n"


def plain(asked: Asked) -> bytes:
    return http(body=b" " * (wire_cap(window_of(asked)) - 10))


OTHERS: Final = (descending, unique_keys, small_chunks, gzip_members, long_header, plain)
DEEP: Final = ("objects in flat_points", "quotes in flat_points", "commas", "many numbers of one level")
"""Also at a depth with which the caps are not those of what was asked, but of any answer."""
USUAL, MOST = LIQUIDATIONS.included_depth, LIQUIDATIONS.max_depth
ANSWERS: Final = [
    *(pytest.param(repeat(name), USUAL, id=name) for name in REPEATED),
    *(pytest.param(answer, USUAL, id=answer.__name__) for answer in OTHERS),
    *(pytest.param(repeat(name), MOST, id=f"{name}, deep") for name in DEEP),
    *(pytest.param(answer, MOST, id=f"{answer.__name__}, deep") for answer in (descending, plain)),
]


def ask(upstream: MakeUpstream, answer: Callable[[Asked], bytes], *what: str) -> list[Any]:
    """Have a process of its own ask; return its MiB of memory at most, seconds of CPU, requests and failures."""
    program = PROGRAM.replace("{now}", str(TODAY))
    ended = subprocess.run(
        [sys.executable, "-c", program, upstream(answer).url, *what, *map(str, SPAN)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: list[Any] = json.loads(ended.stdout)
    return found


def has_status() -> bool:
    return Path("/proc/self/status").exists()


@pytest.mark.skipif(not has_status(), reason="there is no /proc to look at")
@pytest.mark.parametrize(("answer", "depth"), ANSWERS)
def test_whatever_comes_takes_little_memory_and_time(
    upstream: MakeUpstream, tmp_path: Path, answer: Callable[[Asked], bytes], depth: int
) -> None:
    peak_mib, cpu_s, requests, failures = ask(upstream, answer, str(tmp_path / "data"), "BTC", str(depth))
    assert peak_mib <= MOST_MIB
    assert cpu_s <= MOST_CPU_S * requests
    assert failures


@pytest.mark.skipif(not has_status(), reason="there is no /proc to look at")
@pytest.mark.parametrize("answer", [repeat("commas"), plain], ids=["commas", "plain"])
def test_many_such_answers_at_once_take_no_more(
    upstream: MakeUpstream, tmp_path: Path, answer: Callable[[Asked], bytes]
) -> None:
    peak_mib, _, requests, failures = ask(upstream, answer, str(tmp_path / "data"), "A,B,C,D,E,F,G,H", str(MOST))
    assert peak_mib <= MOST_MIB
    assert requests >= 8
    assert len(failures) >= 8

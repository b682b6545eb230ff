"""Realistic answers, made once by the sandbox's market and kept in the temporary folder.

An answer is a head, which names the coin, and the numbers, which the coins of one lot share: one market's numbers under
many names are many series to whoever fetches them. A gzip stream is put together from both without compressing again:
the head as a stored block, then the numbers' deflate stream.
"""

import contextlib
import hashlib
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

from heatpipe.model import Series, Span, Spans, Window
from heatpipe.plan import plan_slab, plan_slabs
from heatpipe.sandbox import Market, app, market

START = 820 * 25 * 86_400
"""2026-02-16, the first day of a slab of minutes."""
MINUTE_S = 60
WINDOW_S = 1_000 * MINUTE_S
DAY_S = 86_400

GZIP_HEAD = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
VERSION = "1"


@dataclass(frozen=True, slots=True)
class Lot:
    """Answers for some coins that all show one market, over some spans.

    Parameters
    ----------
    coins : tuple of str
        Names, all with the same numbers.
    listing : str
        Whose market.
    following : float
        How many trade it: 1 makes some 1,070 levels a snapshot, 3 more than 1,500.
    ends : tuple of int
        Ends of the spans, in seconds after `START`.
    """

    coins: tuple[str, ...]
    listing: str
    following: float
    ends: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of its folder: other answers, another name."""
        makers = [Path(market.__file__), Path(app.__file__), Path(__file__)]
        said = VERSION + repr(self) + "".join(path.read_text() for path in makers)
        return f"{self.coins[0]}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"

    def spans(self) -> list[Span]:
        """Return the windows that a backfill of any of the spans asks for, in order, each once."""
        found: dict[Span, None] = {}
        for end in self.ends:
            found |= dict.fromkeys(window.span for window in windows_of(self.coins[0], end))
        return sorted(found)


def windows_of(coin: str, end: int) -> list[Window]:
    """Return the windows of a backfill from `START`, so many seconds long."""
    series, span = Series(coin), Span(START, START + end)
    return [window for slab in plan_slabs(series, span) for window in plan_slab(slab, span, Spans()).windows]


def coins_named(name: str, count: int) -> tuple[str, ...]:
    """Make names of the same length."""
    return tuple(f"{name}{number:02}" for number in range(count))


BTC = Lot(("BTC", *coins_named("ALT", 11)), "BTC", 1.0, (3 * DAY_S, 10 * DAY_S, 30 * DAY_S))
"""Twelve coins for a month are as many answers as one coin for a year."""
DEEP = Lot(coins_named("DEEP", 16), "BTC", 3.0, (10 * WINDOW_S,))
QUIET = Lot(coins_named("QUIET", 7), "BTC", 0.1, (15 * WINDOW_S,))
TINY = Lot(("TINY",), "BTC", 0.05, (2 * WINDOW_S,))
LOTS = {lot.coins[0]: lot for lot in (BTC, DEEP, QUIET, TINY)}
PLAIN = "PLAIN"
"""Begins the names of coins of which any span is answered, with one level a snapshot."""
PLAIN_DEPTH = 1


@dataclass(frozen=True, slots=True)
class Body:
    """One answer, in the parts of its gzip stream; the numbers are shared with other coins' answers."""

    head: bytes
    numbers: bytes
    trailer: bytes

    @property
    def wire(self) -> bytes:
        """As it travels."""
        return self.head + self.numbers + self.trailer

    def text(self) -> bytes:
        """As it is read."""
        return zlib.decompress(self.wire, wbits=31)


def folder_of_all() -> Path:
    """Return the folder in which everything lies that is made once."""
    folder = Path(tempfile.gettempdir()) / f"heatpipe-bench-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def make_lot(lot: Lot) -> Path:
    """Return the folder of a lot's answers; make them first, on all cores, where they were not made before."""
    folder = folder_of_all() / lot.name
    if folder.exists():
        return folder
    print(f"making answers for {lot.coins[0]}, once: {folder}", flush=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        with ProcessPoolExecutor() as pool:
            made = dict(pool.map(partial(_make_window, lot, scratch), lot.spans(), chunksize=4))
        (scratch / "index.json").write_text(json.dumps(made))
        with contextlib.suppress(OSError):  # another process was quicker: the answers are the same
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def read_lot(lot: Lot) -> Iterator[tuple[str, Span, Body]]:
    """Give every answer of a lot: the coin, what was asked for, the body."""
    folder = make_lot(lot)
    for file, trailers in json.loads((folder / "index.json").read_text()).items():
        start, end = map(int, file.split("-"))
        deflated = (folder / file).read_bytes()
        for coin, trailer in trailers.items():
            yield coin, Span(start, end), Body(_gzip_head(_head(coin)), deflated, bytes.fromhex(trailer))


def _make_window(lot: Lot, folder: Path, span: Span) -> tuple[str, dict[str, str]]:
    """Write one window's numbers, deflated; return their name, and for each coin the gzip trailer."""
    market.COINS[lot.coins[0]] = replace(market.COINS[lot.listing], following=lot.following)
    points = Market().snapshots(lot.coins[0], MINUTE_S, *span)
    query = app._Query(
        lot.coins[0], "MINUTE", span.start, span.seconds, 1500, flatten=True, usd=False, descending=False
    )
    text = b"".join(app._document(query, [points]).text())
    numbers = text.removeprefix(_head(lot.coins[0]))
    assert len(numbers) < len(text)
    deflate = zlib.compressobj(app.GZIP_LEVEL, wbits=-zlib.MAX_WBITS)
    name = f"{span.start}-{span.end}"
    (folder / name).write_bytes(deflate.compress(numbers) + deflate.flush())
    return name, {coin: _trailer(_head(coin), numbers).hex() for coin in lot.coins}


def make_plain(coin: str, span: Span) -> Body:
    """Make an answer up for a coin whose name begins with `PLAIN`."""
    numbers, deflated = _plain_numbers(span)
    return Body(_gzip_head(_head(coin)), deflated, _trailer(_head(coin), numbers))


@lru_cache(maxsize=1024)
def _plain_numbers(span: Span) -> tuple[bytes, bytes]:
    """Return the numbers and what ends their document, and the same deflated."""
    points = ",".join(f"1,{at}000000,100,1.5" for at in range(*span, MINUTE_S))
    numbers = f"{points}]}}]}}".encode()
    deflate = zlib.compressobj(app.GZIP_LEVEL, wbits=-zlib.MAX_WBITS)
    return numbers, deflate.compress(numbers) + deflate.flush()


def _head(coin: str) -> bytes:
    """Return what the sandbox writes before the numbers."""
    identity = f'{{"type":"{app.DATA_TYPE}","interval":"MINUTE","coin":"{coin}"}}'
    return f'{{"series":[{{"id":{identity},"flat_points":['.encode()


def _gzip_head(head: bytes) -> bytes:
    """Begin a gzip stream with a head that is stored, not compressed, in a block that is not the last."""
    return GZIP_HEAD + b"\0" + struct.pack("<HH", len(head), len(head) ^ 0xFFFF) + head


def _trailer(head: bytes, numbers: bytes) -> bytes:
    """End the gzip stream of both: checksum and length."""
    return struct.pack("<II", zlib.crc32(numbers, zlib.crc32(head)), (len(head) + len(numbers)) % 2**32)

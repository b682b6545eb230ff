"""A text is what was compressed, however it travelled; or it says what is wrong before it is memory."""

import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatpipe.errors import TooHeavyError, TransientError
from heatpipe.inflate import PIECE_BYTES, Text

NUMBERS = b",".join(b"%d.%d" % (at, at * at) for at in range(100_000))


def text_of(packed: bytes, *, size: int = 65_536, cap: int = 1 << 30) -> Text:
    chunks = [packed[at : at + size] for at in range(0, len(packed), size)]
    return Text(chunks, compressed=True, cap=cap, name="BTC")


def with_checksum(packed: bytes) -> bytes:
    """Give a gzip member a checksum of its header, which isal takes only in one piece."""
    head = packed[:3] + b"\x02" + packed[4:10]
    return head + (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little") + packed[10:]


def test_a_text_comes_in_pieces_of_bounded_size_as_often_as_it_is_asked_for() -> None:
    text = text_of(gzip.compress(NUMBERS))
    for _ in range(2):
        pieces = list(text)
        assert len(pieces) > 5
        assert max(map(len, pieces)) <= PIECE_BYTES
        assert b"".join(pieces) == text.whole() == NUMBERS
    assert text.expected_size == len(NUMBERS)


def test_a_text_that_is_not_compressed_comes_in_pieces_too() -> None:
    text = Text.of(NUMBERS)
    assert max(map(len, text)) == PIECE_BYTES
    assert text.whole() == NUMBERS
    assert text.expected_size == len(NUMBERS)
    assert list(Text.of(b"")) == []


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.integers(1, 50))
@settings(deadline=None)
def test_members_of_gzip_are_one_text_however_they_are_cut(members: list[bytes], size: int) -> None:
    packed = b"".join(map(gzip.compress, members))
    assert text_of(packed, size=size).whole() == b"".join(members)


@pytest.mark.parametrize("size", [1, 4, 1000, 65_536])
def test_zlib_goes_on_where_isal_gives_up(size: int) -> None:
    first, second = NUMBERS[:700_000], NUMBERS[700_000:]
    packed = gzip.compress(first) + with_checksum(gzip.compress(second))
    assert text_of(packed, size=size).whole() == NUMBERS


def test_a_text_over_its_cap_ends_with_the_piece_that_is_too_much() -> None:
    text = text_of(gzip.compress(bytes(64 << 20)), cap=3 * PIECE_BYTES)
    pieces: list[object] = []
    with pytest.raises(TooHeavyError, match=f"^BTC: the answer is larger than {3 * PIECE_BYTES:,} bytes$"):
        pieces.extend(text)
    assert len(pieces) <= 4
    assert text.expected_size == 3 * PIECE_BYTES


@pytest.mark.parametrize(
    ("packed", "says"),
    [
        (gzip.compress(NUMBERS)[:-1], "cut short"),
        (gzip.compress(NUMBERS)[:1000], "cut short"),
        (b"", "cut short"),
        (NUMBERS, "damaged"),
        (gzip.compress(NUMBERS)[:-8] + bytes(8), "damaged"),
        (gzip.compress(NUMBERS) + b"more", "damaged"),
    ],
    ids=["its last byte is missing", "most is missing", "nothing came", "not gzip", "another checksum", "more behind"],
)
def test_a_damaged_text_says_so(packed: bytes, says: str) -> None:
    with pytest.raises(TransientError, match=f"^BTC: the compressed answer is {says}$"):
        text_of(packed).whole()

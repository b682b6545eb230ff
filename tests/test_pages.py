"""Page headers are walked as they were written, and whatever else stands in their place is refused in words."""

import contextlib
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatpipe.pages import MOST_HEADER_BYTES, measure_pages
from heatpipe.store import encode_file
from tests import thrift
from tests.test_verify import make_day
from tests.thrift import BINARY, INT, LIST, LONG, STRUCT, TRUE

DATA: Final = bytes(encode_file(make_day(intervals=1440)))
HEADER: Final = {1: (INT, 0), 2: (INT, 100), 3: (INT, 5), 5: (STRUCT, {1: (INT, 7), 5: (STRUCT, {1: (BINARY, b"x")})})}


def measure(data: bytes, *, start: int = 0, most: int = 10, most_inflated: int = 1000) -> tuple[int, int]:
    return measure_pages(
        lambda size, at: data[at : at + size], start, len(data), most=most, most_inflated=most_inflated
    )


def write(header: dict[int, thrift.Value], body: bytes = b"12345") -> bytes:
    return thrift.write(STRUCT, header) + body


def test_the_pages_of_a_day_are_as_many_and_as_large_as_arrow_says() -> None:
    group = pq.ParquetFile(pa.BufferReader(DATA)).metadata.row_group(0)
    for number in range(3):
        column = group.column(number)
        start = column.dictionary_page_offset or column.data_page_offset
        data = DATA[: start + column.total_compressed_size]
        pages, inflated = measure(data, start=start, most_inflated=1 << 20)
        assert pages == 1 + bool(column.dictionary_page_offset)
        assert 0 < column.total_uncompressed_size - inflated < MOST_HEADER_BYTES  # Arrow counts the headers too


def test_what_stands_in_a_header_beside_the_sizes_is_passed_over() -> None:
    more = {6: (TRUE, True), 30: (LONG, -1), 31: (BINARY, b"\0" * 100)}
    assert measure(write(HEADER) + write(HEADER | more)) == (2, 200)
    assert measure(b"") == (0, 0)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (write(HEADER) * 11, "more pages than its rows fill"),
        (write(HEADER | {2: (INT, 1001)}), "has 1,001 bytes when inflated"),
        (write(HEADER, b"1234"), "behind the end"),
        (write(HEADER | {3: (INT, 2**31 - 1)}), "behind the end"),
        (write(HEADER | {2: (INT, -1)}), "says no sizes"),
        (write(HEADER | {3: (INT, -1)}), "says no sizes"),
        (write({1: (INT, 0)}), "says no sizes"),
        (write({1: (INT, 0)})[:2], "no header"),
        (write(HEADER | {5: (BINARY, bytes(2000))}), "no header"),
        (write(HEADER | {6: (LIST, (INT, [1]))}), "fields that none has"),
        (b"\x1c" * 1000, "too deep"),
        (b"\x15" + b"\xff" * 2000, "no header"),
        (bytes(100), "says no sizes"),
    ],
)
def test_what_no_page_has_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        measure(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_measured_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        pages, inflated = measure(data)
        assert pages <= 10
        assert inflated <= 1000 * pages

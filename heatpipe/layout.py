"""Series and day to path, Snapshots to Arrow table, coverage to footer, and back. Pure: touches no file.

::

    <root>/liquidations/unit=coin/depth=1500/interval=MINUTE/coin=BTC/date=2026-03-30/part-0.parquet
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from heatpipe.errors import ConfigError, DamagedError, UnreadableError
from heatpipe.model import DAY_S, Coverage, Series, Snapshots, Spans, day_span
from heatpipe.plan import Slab

TABLE: Final = "liquidations"
FILE_NAME: Final = "part-0.parquet"
FOOTER_KEY: Final = b"heatpipe"
FOOTER_VERSION: Final = 1
SEAL_KEY: Final = b"heatpipe.seal"
SEAL_BYTES: Final = 32
CAPPED_KEY: Final = b"heatpipe.capped"
MOST_QUOTED: Final = 300
"""Characters of what is wrong with a footer, that a message repeats."""
COUNT: Final = re.compile(rb"0|[1-9][0-9]{0,17}")

SPARE_ROWS: Final = 1 << 19
"""Rows that a day may have beyond a snapshot of full depth in each interval, which is all that real ones have: an
upstream may send more, as long as it says when."""
MOST_BYTES_PER_ROW: Final = 32
"""Three columns of eight bytes, and what Parquet puts around them: no compression makes more of it."""
MOST_FOOTER_BYTES: Final = 1 << 20
"""What Parquet's metadata may take: that of a day whose every second minute is covered takes a tenth of it."""

SCHEMA: Final = pa.schema(
    [
        pa.field("timestamp", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("price", pa.float64(), nullable=False),
        pa.field("volume", pa.float64(), nullable=False),
    ]
)

SLAB_NAME: Final = re.compile(r"([a-z]+)-([0-9]+)-([A-Z_]+)-(.+)-(-?[0-9]+)")
DAY_NAME: Final = re.compile(r"date=[0-9]{4}-[0-9]{2}-[0-9]{2}-part-0\.parquet")
ASIDE: Final = ".parquet.old"
"""End of the name of a day's file in the quarantine: no pattern for Parquet files finds it there."""
TURN_NAME: Final = "turn.lock"
"""Beside a slab's temporary files: locked by whoever writes them at this moment."""
RECORD_NAME: Final = re.compile(r"-?[0-9]+--?[0-9]+\.(body|json)|[0-9]{4}-[0-9]{2}-[0-9]{2}(-[0-9]+)?\.parquet(\.old)?")

PARTITIONS: Final = ("unit", "depth", "interval", "coin", "date")
"""Keys of the partition folders, outermost first."""


def series_path(series: Series) -> PurePosixPath:
    """Return the folder of a series' days, relative to the root."""
    return PurePosixPath(
        TABLE,
        f"unit={series.unit}",
        f"depth={series.depth}",
        f"interval={series.interval}",
        f"coin={encode_value(series.coin)}",
    )


def day_path(series: Series, day: int) -> PurePosixPath:
    """Return the file of one day, counted from the epoch, relative to the root."""
    return series_path(series) / f"date={day_date(day)}" / FILE_NAME


def day_date(day: int) -> date:
    """Return the date of the UTC day with this number."""
    return datetime.fromtimestamp(day * DAY_S, UTC).date()


def parse_folder(key: str, name: str) -> str:
    """Return the value in a partition folder's name, decoded.

    Raises
    ------
    ValueError
        The folder is not one that heatpipe makes for this key.
    """
    found, equals, encoded = name.partition("=")
    value = unquote(encoded)
    if found != key or not equals or encode_value(value) != encoded:
        raise ValueError(f"{name!r} is not a folder {key}=…")
    return value


def parse_day(name: str) -> int:
    """Return the day's number, counted from the epoch, of a folder ``date=2026-03-30``."""
    text = parse_folder("date", name)
    value = date.fromisoformat(text)
    if value.isoformat() != text:  # other ISO 8601 forms are not what day_path writes
        raise ValueError(f"{name!r} is not a folder date=2026-03-30")
    return (value - date(1970, 1, 1)).days


def parse_part(key: str, name: str) -> str | int:
    """Return the value in a partition folder's name, of any key: a day's number for ``date``, else a part of a series.

    Raises
    ------
    ValueError, ConfigError
        No series or day has this folder, or it is another spelling of one that has.
    """
    if key == "date":
        return parse_day(name)
    text = parse_folder(key, name)
    if key == "depth" and (not text.isdecimal() or str(int(text)) != text):
        raise ValueError(f"{name!r} is not a folder depth=1500")
    part = int(text) if key == "depth" else text
    Series(**{"coin": "any", key: part})  # type: ignore[arg-type]
    return part


def encode_value(value: str) -> str:
    """Percent-encode a partition value as Hive does, so that it is one path component on any file system.

    ``NULL`` gets its first letter encoded as well: some readers take the bare word for a missing value.
    """
    encoded = quote(value, safe="@")
    return f"%{ord(value[0]):02X}{encoded[1:]}" if value.upper() == "NULL" else encoded


def slab_name(slab: Slab) -> str:
    """Return one path component that names a slab, for its lock and its temporary files."""
    series = slab.series
    return f"{series.unit}-{series.depth}-{series.interval}-{encode_value(series.coin)}-{slab.number}"


def parse_slab_name(name: str) -> Slab:
    """Return the slab that a path component names.

    Raises
    ------
    ValueError, ConfigError
        It names none.
    """
    found = SLAB_NAME.fullmatch(name)
    if not found:
        raise ValueError(f"{name!r} names no slab")
    unit, depth, interval, coin, number = found.groups()
    slab = Slab(Series(unquote(coin), interval, unit, int(depth)), int(number))
    if slab_name(slab) != name:
        raise ValueError(f"{name!r} is not how a slab is named")
    return slab


def temporary_name(path: PurePosixPath) -> str:
    """Return what a file is called, in its slab's folder, until it is whole."""
    return "-".join(path.parts[-2:])


def is_temporary_name(name: str, slab: Slab) -> bool:
    """Whether a file of a slab's folder has such a name: a day, what is known of a window, or the lock beside them."""
    coin = f"coin={encode_value(slab.series.coin)}-"
    return (
        name == TURN_NAME
        or DAY_NAME.fullmatch(name) is not None
        or (name.startswith(coin) and RECORD_NAME.fullmatch(name.removeprefix(coin)) is not None)
    )


@dataclass(frozen=True, slots=True)
class Day:
    """What one file holds: a UTC day of a series.

    Parameters
    ----------
    series : Series
        Whose.
    number : int
        The day, counted from the epoch.
    snapshots : Snapshots
        Its points with levels. A file has no place for points without; `coverage` knows them.
    coverage : Coverage
        What has been asked and answered.
    """

    series: Series
    number: int
    snapshots: Snapshots
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class Footer:
    """What a file says of itself, under the key ``heatpipe``; and `capped` under a key of its own."""

    series: Series
    coverage: Coverage
    snapshots: int
    rows: int
    digest: str
    capped: int | None = None
    """how many snapshots have as many levels as the depth allows; None in a file from before that was written"""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far the snapshots of a day reach; those without levels are not among them."""

    timestamp: NDArray[np.int64]
    """(snapshots,) microseconds since the epoch, UTC; strictly ascending"""
    levels: NDArray[np.int64]
    """(snapshots,) 1 or more"""
    low: NDArray[np.float64]
    """(snapshots,) USD, the price of the lowest level"""
    high: NDArray[np.float64]
    """(snapshots,) USD, the price of the highest level"""


def encode_day(day: Day) -> pa.Table:
    """Make the table of a day, its footer in the schema's metadata."""
    points = day.snapshots
    timestamp = points.row_timestamps()
    footer = Footer(
        series=day.series,
        coverage=day.coverage,
        snapshots=int(np.count_nonzero(points.levels)),
        rows=points.rows,
        digest=digest_rows(timestamp, points.price, points.volume),
    )
    columns = [
        pa.Array.from_buffers(field.type, points.rows, [None, pa.py_buffer(np.ascontiguousarray(column))])
        for field, column in zip(SCHEMA, (timestamp, points.price, points.volume), strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata({FOOTER_KEY: encode_footer(footer)}))


def digest_rows(timestamp: NDArray[np.int64], price: NDArray[np.float64], volume: NDArray[np.float64]) -> str:
    """XXH3 (128 bits, hexadecimal) of the columns' little-endian bytes, one column after the other."""
    digest = xxhash.xxh3_128()
    for column, kind in ((timestamp, "<i8"), (price, "<f8"), (volume, "<f8")):
        digest.update(np.ascontiguousarray(column, kind).data)
    return digest.hexdigest()


def count_capped(levels: NDArray[np.int64], depth: int) -> int:
    """Return how many snapshots have as many levels as the depth allows: beyond the outermost nothing is known."""
    return int(np.count_nonzero(levels == depth))


def seal(data: bytearray) -> None:
    """Fill a file's seal in, in place: XXH3 (128 bits, hexadecimal) of all its bytes, with zeros where the seal stands.

    The digest vouches for the rows. The seal vouches for what readers prune by as well: statistics, page index, footer.
    """
    place = _find_seal(data)
    data[place] = blank_seal()
    data[place] = xxhash.xxh3_128_hexdigest(data).encode()


def check_seal(data: bytes, path: str) -> None:
    """Raise a DamagedError unless a file's bytes are those that were written."""
    try:
        place = _find_seal(data)
    except ValueError as exc:
        raise DamagedError(f"{path} has no seal of heatpipe's", path) from exc
    digest = xxhash.xxh3_128()
    view = memoryview(data)  # a slice of bytes would be a copy, for which there may be no memory
    for part in (view[: place.start], blank_seal(), view[place.stop :]):
        digest.update(part)
    if digest.hexdigest().encode() != data[place]:
        raise DamagedError(f"{path} is not, byte for byte, what heatpipe wrote", path)


def blank_seal() -> bytes:
    """Return what stands in the place of the seal while it is computed."""
    return b"0" * SEAL_BYTES


def _find_seal(data: bytes | bytearray) -> slice:
    # As Parquet's metadata, in Thrift's compact protocol, writes it: the key, then a field of 32 bytes.
    marker = SEAL_KEY + bytes((0x18, SEAL_BYTES))
    start = data.rindex(marker) + len(marker)
    return slice(start, start + SEAL_BYTES)


def decode_rows(table: pa.Table) -> Snapshots:
    """Return the snapshots of a day's table."""
    timestamp, levels = decode_points(table)
    return Snapshots(timestamp, levels, _column(table, "price"), _column(table, "volume"))


def decode_points(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return timestamps and levels of the snapshots of a day's table, of which only the first column is needed."""
    stamps = _column(table, "timestamp").view(np.int64)
    begins = np.ones(len(stamps), bool)  # a flag a row: a third of the time that differences take
    np.not_equal(stamps[1:], stamps[:-1], out=begins[1:])
    firsts = np.flatnonzero(begins)
    return stamps[firsts], np.diff(firsts, append=len(stamps))


def decode_bounds(table: pa.Table) -> Bounds:
    """Return how far the snapshots of a day's table reach, of which timestamps and prices are needed."""
    timestamp, levels = decode_points(table)
    price = _column(table, "price")
    ends = np.cumsum(levels)
    return Bounds(timestamp, levels, price[ends - levels], price[ends - 1])


def _column(table: pa.Table, name: str) -> NDArray[Any]:
    column = table.column(name).combine_chunks()
    found: NDArray[Any] = column.to_numpy(zero_copy_only=True)
    return found


def encode_footer(footer: Footer) -> bytes:
    """Write the footer as JSON: no clock, no host name, so that equal content gives equal bytes."""
    series, coverage = footer.series, footer.coverage
    document = {
        "version": FOOTER_VERSION,
        "series": {
            "coin": series.coin,
            "interval": series.interval,
            "unit": series.unit,
            "depth": series.depth,
        },
        "covered": list(coverage.covered),
        "absent": list(coverage.absent),
        "empty": list(coverage.empty),
        "snapshots": footer.snapshots,
        "rows": footer.rows,
        "digest": footer.digest,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def decode_footer(metadata: Mapping[bytes, bytes] | None, path: str) -> Footer:
    """Read the footer from a file's key-value metadata.

    Raises
    ------
    DamagedError
        There is none, or none that can be true.
    UnreadableError
        It is one of another version of heatpipe's.
    """
    text = (metadata or {}).get(FOOTER_KEY)
    if text is None:
        raise DamagedError(f"{path} has no footer of heatpipe's", path)
    try:
        document = json.loads(text)
        version = document["version"]
        if version != FOOTER_VERSION:
            raise UnreadableError(
                f"{path} has a footer of version {version}, this heatpipe reads {FOOTER_VERSION}", path
            )
        series = Series(**document["series"])
        return Footer(
            series=series,
            coverage=_read_coverage(document, series.interval_s),
            snapshots=int(document["snapshots"]),
            rows=int(document["rows"]),
            digest=str(document["digest"]),
            capped=_read_count((metadata or {}).get(CAPPED_KEY)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, ConfigError) as exc:
        said = repr(exc)  # which may quote all of it
        said = said if len(said) <= MOST_QUOTED else f"{said[:MOST_QUOTED]}…"
        raise DamagedError(f"{path} has a footer that cannot be read: {said}", path) from exc


def _read_count(text: bytes | None) -> int | None:
    if text is not None and not COUNT.fullmatch(text):
        raise ValueError(f"{text[:20]!r} is not how a count is written")
    return None if text is None else int(text)


def _read_coverage(document: Mapping[str, Any], interval_s: int) -> Coverage:
    """Read coverage strictly: what it says is covered is never fetched again."""
    covered, absent, empty = (_read_spans(document[key], interval_s) for key in ("covered", "absent", "empty"))
    if (absent | empty) - covered or absent & empty:
        raise ValueError("absent and empty are not disjoint parts of covered")
    return Coverage(covered, absent, empty)


def _read_spans(pairs: Iterable[Iterable[Any]], interval_s: int) -> Spans:
    given = [(start, end) for start, end in pairs]
    if not all(type(at) is int and at % interval_s == 0 for pair in given for at in pair):
        raise ValueError(f"ranges are off the grid: {given}")
    spans = Spans.of(given)
    if [tuple(span) for span in spans] != given:
        raise ValueError(f"ranges are not sorted and merged: {given}")
    return spans


def most_rows(series: Series) -> int:
    """Return how many rows a day can have: one that has more is not written, and whatever announces more is damaged."""
    return SPARE_ROWS + series.depth * (DAY_S // series.interval_s)


def check_size(size_bytes: int, series: Series, path: str) -> None:
    """Raise a DamagedError where a file is larger than any day of its series: it need not be read to know that."""
    most = MOST_BYTES_PER_ROW * most_rows(series) + 2 * MOST_FOOTER_BYTES
    if size_bytes > most:
        raise DamagedError(f"{path} has {size_bytes:,} bytes, a day of {series} at most {most:,}", path)


def check_announced(metadata: Any, series: Series, path: str) -> None:
    """Raise a DamagedError where Parquet's metadata announces more than a day can hold: nothing of it is read then.

    Parameters
    ----------
    metadata : pyarrow.parquet.FileMetaData
        Of the file.
    series : Series
        Whose day it is.
    path : str
        What errors call it.
    """
    if metadata.num_columns != len(SCHEMA):
        raise DamagedError(f"{path} announces {metadata.num_columns:,} columns, not {len(SCHEMA)}", path)
    most = most_rows(series)
    if not 0 <= metadata.num_rows <= most:
        raise DamagedError(f"{path} announces {metadata.num_rows:,} rows, a day of {series} has at most {most:,}", path)
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    size = sum(group.column(number).total_uncompressed_size for group in groups for number in range(len(SCHEMA)))
    most = MOST_BYTES_PER_ROW * most + 2 * MOST_FOOTER_BYTES
    if size > most:
        raise DamagedError(f"{path} announces {size:,} bytes of columns, a day of {series} has at most {most:,}", path)


def check_columns(schema: pa.Schema, path: str) -> None:
    """Raise a DamagedError where a file has other columns than heatpipe writes."""
    if not schema.equals(SCHEMA):
        raise DamagedError(f"{path} has the columns {_name_columns(schema)}, not {_name_columns(SCHEMA)}", path)


def _name_columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}{'?' if field.nullable else ''}" for field in schema) or "none"


def check_place(footer: Footer, series: Series, day: int, path: str) -> None:
    """Raise a DamagedError where a file lies in the folder of another series or day."""
    if footer.series != series:
        raise DamagedError(f"{path} holds {footer.series}, its folder says {series}", path)
    if footer.coverage.covered and footer.coverage.covered != footer.coverage.covered.within(day_span(day)):
        raise DamagedError(f"{path} covers other days, its folder says {day_date(day)}", path)

"""Paths, tables and footers: there and back again, and nothing that a name from outside could break."""

import io
import json
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from heatpipe import layout
from heatpipe.errors import ConfigError, DamagedError, DatasetError
from heatpipe.layout import Day, Footer
from heatpipe.model import DAY_S, Coverage, Series, Snapshots, Span, Spans
from heatpipe.plan import Slab
from heatpipe.store import encode_file
from heatpipe.upstream import Interval

BTC = Series("BTC")
DAY = 20_542  # 2026-03-30
START = DAY * DAY_S
HOUR = 3600

COINS = [
    "BTC",
    "kPEPE",
    "PURR/USDC",
    "@107",
    "xyz:SILVER",
    "../x",
    "/etc/passwd",
    "a=b",
    "coin=BTC",
    "007",
    "1e5",
    "NULL",
    "null",
    "Null",
    "NULLS",
    "true",
    "é x",
    "e\u0301",
    "𝔹",
    "..",
    ".",
    "...",
    "~",
    "~root",
    "CON",
    "nul.txt",
    "a%2Fb",
    "%",
    "%00",
    "100%",
    "a\\b",
    'a"b',
    "a'b",
    "*?[]",
    "{x}",
    "a b",
    "-rf",
    "#",
    "part-0.parquet",
    "__HIVE_DEFAULT_PARTITION",
    "x" * 64,
    "é" * 32,
]

coins = st.sampled_from(COINS) | st.text(min_size=1, max_size=21)


def series_of(coin: str) -> Series:
    try:
        return Series(coin)
    except ConfigError:
        assume(False)
        raise


# Paths


def test_a_day_lies_where_the_contract_says() -> None:
    assert str(layout.day_path(BTC, DAY)) == (
        "liquidations/unit=coin/depth=1500/interval=MINUTE/coin=BTC/date=2026-03-30/part-0.parquet"
    )
    assert str(layout.day_path(Series("PURR/USDC", "HOUR", "usd", 3000), 0)) == (
        "liquidations/unit=usd/depth=3000/interval=HOUR/coin=PURR%2FUSDC/date=1970-01-01/part-0.parquet"
    )


@pytest.mark.parametrize(
    ("coin", "folder"),
    [
        ("BTC", "coin=BTC"),
        ("PURR/USDC", "coin=PURR%2FUSDC"),
        ("@107", "coin=@107"),
        ("xyz:SILVER", "coin=xyz%3ASILVER"),
        ("../x", "coin=..%2Fx"),
        ("a=b", "coin=a%3Db"),
        ("007", "coin=007"),
        ("NULL", "coin=%4EULL"),
        ("null", "coin=%6Eull"),
        ("é x", "coin=%C3%A9%20x"),
        ("a%2Fb", "coin=a%252Fb"),
    ],
)
def test_a_coin_is_percent_encoded_as_hive_does(coin: str, folder: str) -> None:
    assert layout.series_path(Series(coin)).name == folder


@pytest.mark.parametrize("coin", COINS)
def test_no_coin_leaves_its_folder(coin: str, tmp_path: Path) -> None:
    series = Series(coin)
    path = layout.day_path(series, DAY)
    parts = path.parts
    assert len(parts) == 7
    assert parts[0] == "liquidations"
    assert [part.partition("=")[0] for part in parts[1:6]] == list(layout.PARTITIONS)
    assert path.as_posix().isascii()
    assert not set(path.as_posix()) & set("\\:*?\"'<>|{}[] \0\n")
    assert all(len(part.encode()) <= 255 for part in parts)
    whole = tmp_path / path
    whole.parent.mkdir(parents=True)
    whole.write_bytes(b"")
    assert whole.resolve().is_relative_to((tmp_path / "liquidations").resolve())
    assert [found.relative_to(tmp_path) for found in tmp_path.rglob("*") if found.is_file()] == [Path(path)]


@given(
    coins,
    st.sampled_from(list(Interval)),
    st.sampled_from(["coin", "usd"]),
    st.integers(1, 100_000),
    st.integers(0, 60_000),
)
@settings(deadline=None)
def test_a_path_names_its_series_and_day_again(coin: str, interval: Interval, unit: str, depth: int, day: int) -> None:
    series_of(coin)
    series = Series(coin, interval.name, unit, depth)
    path = layout.day_path(series, day)
    assert PurePosixPath(str(path)) == path
    _, in_unit, in_depth, in_interval, in_coin, in_date, name = path.parts
    assert name == "part-0.parquet"
    assert layout.parse_day(in_date) == day
    assert series == Series(
        coin=layout.parse_folder("coin", in_coin),
        interval=layout.parse_folder("interval", in_interval),
        unit=layout.parse_folder("unit", in_unit),
        depth=int(layout.parse_folder("depth", in_depth)),
    )


@given(coins, coins)
@settings(deadline=None)
def test_two_coins_never_share_a_folder_or_a_lock(one: str, other: str) -> None:
    assume(one != other)
    a, b = series_of(one), series_of(other)
    assert layout.series_path(a) != layout.series_path(b)
    assert layout.slab_name(Slab(a, 7)) != layout.slab_name(Slab(b, 7))


@given(coins, st.sampled_from(list(Interval)), st.sampled_from(["coin", "usd"]), st.integers(1, 100_000))
@settings(deadline=None)
def test_a_slab_s_name_names_it_again(coin: str, interval: Interval, unit: str, depth: int) -> None:
    series_of(coin)
    slab = Slab(Series(coin, interval.name, unit, depth), 821)
    assert layout.parse_slab_name(layout.slab_name(slab)) == slab


@given(coins)
@settings(deadline=None)
def test_what_a_slab_writes_has_a_name_of_its_own_until_it_is_whole(coin: str) -> None:
    slab, other = Slab(series_of(coin), 821), Slab(Series("another"), 821)
    folder = PurePosixPath("_quarantine", layout.series_path(slab.series).relative_to(layout.TABLE))
    records = [
        folder / name for name in ("0-60.json", "0-60.body", "2026-03-31.parquet.old", "2026-03-31-2.parquet.old")
    ]
    names = [layout.temporary_name(path) for path in (layout.day_path(slab.series, DAY), *records)]
    assert all(layout.is_temporary_name(name, slab) for name in names)
    assert not any(layout.is_temporary_name(name, other) for name in names[1:])
    assert not any(layout.is_temporary_name(name + end, slab) for name in names for end in ("x", "\n", "~"))


@given(coins, st.integers(0, 1000))
def test_a_slab_s_name_is_one_harmless_path_component(coin: str, number: int) -> None:
    name = layout.slab_name(Slab(series_of(coin), number))
    assert PurePosixPath(name).parts == (name,)
    assert name not in (".", "..")
    assert name.isascii()
    assert "/" not in name
    assert "\\" not in name
    assert len(name) + len(".lock") <= 255


def test_names_of_slabs_differ_in_every_part_of_the_series() -> None:
    variants = [BTC, Series("BTC", "HOUR"), Series("BTC", unit="usd"), Series("BTC", depth=3000), Series("ETH")]
    slabs = [Slab(series, number) for series in variants for number in (1, 2)]
    assert len({layout.slab_name(slab) for slab in slabs}) == len(slabs)


@pytest.mark.parametrize(
    "name",
    [
        "coin",
        "BTC",
        "unit=BTC",
        "COIN=BTC",
        "coin=a%2fb",  # not as heatpipe writes it
        "coin=a b",
        "coin=%42TC",
        "coin=NULL",
        "coin=%FF",
        "coin=a=b",
        ".coin=BTC",
        "",
    ],
)
def test_a_folder_that_heatpipe_does_not_make_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a folder coin="):
        layout.parse_folder("coin", name)


@pytest.mark.parametrize(
    "name",
    [
        "date=2026-3-30",
        "date=20260330",
        "date=2026-W14-1",
        "date=2026-02-30",
        "date=2026-03-30T00%3A00",
        "date=",
        "date=x",
        "day=2026-03-30",
        "2026-03-30",
    ],
)
def test_a_folder_of_no_date_as_heatpipe_writes_it_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        layout.parse_day(name)


def test_days_are_counted_from_the_epoch() -> None:
    assert layout.day_date(0) == date(1970, 1, 1)
    assert layout.day_date(DAY) == date(2026, 3, 30)
    assert layout.parse_day("date=2026-03-30") == DAY


# Tables


@st.composite
def days(draw: st.DrawFn) -> Day:
    counts = draw(st.lists(st.integers(1, 4), max_size=6))
    stamps = draw(
        st.lists(
            st.integers(START * 10**6, (START + DAY_S) * 10**6 - 1),
            min_size=len(counts),
            max_size=len(counts),
            unique=True,
        )
    )
    price = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
    volume = st.floats(min_value=0, allow_infinity=False) | st.just(-0.0)
    prices = [sorted(draw(st.lists(price, min_size=count, max_size=count, unique=True))) for count in counts]
    volumes = draw(st.lists(volume, min_size=sum(counts), max_size=sum(counts)))
    snapshots = Snapshots(
        np.array(sorted(stamps), np.int64),
        np.array(counts, np.int64),
        np.array([each for group in prices for each in group], np.float64),
        np.array(volumes, np.float64),
    )
    return Day(BTC, DAY, snapshots, Coverage(Spans.of([(START, START + DAY_S)])))


def columns(snapshots: Snapshots) -> list[bytes]:
    return [
        np.ascontiguousarray(column).tobytes()
        for column in (snapshots.timestamp, snapshots.levels, snapshots.price, snapshots.volume)
    ]


def day_of(*points: tuple[int, list[float], list[float]], coverage: Coverage | None = None) -> Day:
    snapshots = Snapshots(
        np.array([(START + second) * 10**6 for second, _, _ in points], np.int64),
        np.array([len(price) for _, price, _ in points], np.int64),
        np.array([each for _, price, _ in points for each in price], np.float64),
        np.array([each for _, _, volume in points for each in volume], np.float64),
    )
    return Day(BTC, DAY, snapshots, coverage or Coverage(Spans.of([(START, START + DAY_S)])))


SMALL = day_of((0, [1.0, 2.0], [0.5, -0.0]), (60, [1.5], [3.0]))


def test_the_schema_is_the_contract_s() -> None:
    table = layout.encode_day(SMALL)
    for schema in (layout.SCHEMA, table.schema.remove_metadata()):
        assert schema.names == ["timestamp", "price", "volume"]
        assert schema.types == [pa.timestamp("us", tz="UTC"), pa.float64(), pa.float64()]
        assert not any(field.nullable for field in schema)
    assert table.schema.equals(layout.SCHEMA)


@given(days())
@settings(deadline=None)
def test_a_day_s_rows_come_back_bit_for_bit(day: Day) -> None:
    table = layout.encode_day(day)
    table.validate(full=True)
    assert columns(layout.decode_rows(table)) == columns(day.snapshots)
    assert table.num_rows == day.snapshots.rows
    assert not any(column.null_count for column in table.columns)


@given(days(), st.integers(1, 5))
@settings(deadline=None)
def test_rows_come_back_from_a_table_in_pieces(day: Day, size: int) -> None:
    table = layout.encode_day(day)
    pieces = pa.Table.from_batches(table.to_batches(max_chunksize=size), schema=table.schema)
    assert columns(layout.decode_rows(pieces)) == columns(day.snapshots)


def test_a_day_without_rows_is_a_table_without_rows() -> None:
    day = Day(BTC, DAY, Snapshots(), Coverage(Spans.of([(START, START + DAY_S)])))
    table = layout.encode_day(day)
    assert (table.num_rows, table.schema.equals(layout.SCHEMA)) == (0, True)
    assert layout.decode_rows(table).points == 0
    footer = layout.decode_footer(table.schema.metadata, "x")
    assert (footer.snapshots, footer.rows, footer.coverage) == (0, 0, day.coverage)


def test_a_timestamp_is_stored_as_the_instant_it_is() -> None:
    table = layout.encode_day(day_of((61, [1.0], [1.0])))
    assert table.column("timestamp")[0].as_py().isoformat() == "2026-03-30T00:01:01+00:00"


def test_a_point_without_levels_leaves_no_row_and_is_not_counted() -> None:
    table = layout.encode_day(day_of((0, [1.0], [1.0]), (60, [], []), (120, [2.0], [1.0])))
    footer = layout.decode_footer(table.schema.metadata, "x")
    assert (footer.snapshots, footer.rows) == (2, 2)
    assert layout.decode_rows(table).levels.tolist() == [1, 1]


# Digests


def digest_of(day: Day) -> str:
    rows = day.snapshots
    return layout.digest_rows(rows.row_timestamps(), rows.price, rows.volume)


def test_the_footer_carries_the_digest_of_the_rows() -> None:
    footer = layout.decode_footer(layout.encode_day(SMALL).schema.metadata, "x")
    assert footer.digest == digest_of(SMALL)
    assert len(footer.digest) == 32
    assert int(footer.digest, 16)


@pytest.mark.parametrize(
    "other",
    [
        day_of((0, [1.0, 2.0], [0.5, 0.0]), (60, [1.5], [3.0])),  # the sign of a zero
        day_of((0, [1.0, 2.0], [0.5, -0.0]), (60, [1.5], [np.nextafter(3.0, 4.0)])),
        day_of((0, [np.nextafter(1.0, 2.0), 2.0], [0.5, -0.0]), (60, [1.5], [3.0])),
        day_of((0, [1.0, 2.0], [0.5, -0.0]), (61, [1.5], [3.0])),
        day_of((0, [1.0, 2.0], [-0.0, 0.5]), (60, [1.5], [3.0])),
        day_of((0, [1.0], [0.5]), (60, [1.5, 2.0], [-0.0, 3.0])),
        day_of((0, [1.0, 2.0], [0.5, -0.0])),
        day_of((0, [0.5, 3.0], [1.0, 2.0]), (60, [1.5], [-0.0])),  # columns that swapped places
        day_of(),
    ],
)
def test_a_digest_changes_with_any_value(other: Day) -> None:
    assert digest_of(other) != digest_of(SMALL)


@given(days(), st.data())
@settings(deadline=None)
def test_a_digest_changes_with_any_bit(day: Day, data: st.DataObject) -> None:
    assume(day.snapshots.rows)
    stamps, price, volume = day.snapshots.row_timestamps(), day.snapshots.price.copy(), day.snapshots.volume.copy()
    changed = data.draw(st.sampled_from([each.view(np.uint8) for each in (stamps, price, volume)]))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert layout.digest_rows(stamps, price, volume) != digest_of(day)


@given(days())
@settings(deadline=None)
def test_a_digest_does_not_depend_on_how_the_columns_lie_in_memory(day: Day) -> None:
    stamps, price, volume = day.snapshots.row_timestamps(), day.snapshots.price, day.snapshots.volume
    strided = np.stack([price, volume], axis=1)
    assert layout.digest_rows(stamps, strided[:, 0], strided[:, 1]) == digest_of(day)
    assert layout.digest_rows(stamps.astype(">i8"), price.astype(">f8"), volume) == digest_of(day)


def test_equal_days_give_equal_footers_and_coverage_shows_in_them() -> None:
    other = Day(BTC, DAY, SMALL.snapshots, Coverage(Spans.of([(START, START + HOUR)])))
    ours, same, theirs = (
        layout.encode_day(day).schema.metadata
        for day in (SMALL, day_of((0, [1.0, 2.0], [0.5, -0.0]), (60, [1.5], [3.0])), other)
    )
    assert ours == same
    assert ours != theirs
    assert layout.decode_footer(ours, "x").digest == layout.decode_footer(theirs, "x").digest


# Footers

FOOTER = Footer(
    series=Series("PURR/USDC", "HOUR", "usd", 3000),
    coverage=Coverage(
        Spans.of([(START, START + 5 * HOUR), (START + 6 * HOUR, START + 7 * HOUR)]),
        absent=Spans.of([(START, START + HOUR)]),
        empty=Spans.of([(START + HOUR, START + 2 * HOUR), (START + 6 * HOUR, START + 7 * HOUR)]),
    ),
    snapshots=3,
    rows=17,
    digest="0123456789abcdef0123456789abcdef",
)


def test_a_footer_is_the_documented_json() -> None:
    assert json.loads(layout.encode_footer(FOOTER)) == {
        "version": 1,
        "series": {"coin": "PURR/USDC", "interval": "HOUR", "unit": "usd", "depth": 3000},
        "covered": [[START, START + 5 * HOUR], [START + 6 * HOUR, START + 7 * HOUR]],
        "absent": [[START, START + HOUR]],
        "empty": [[START + HOUR, START + 2 * HOUR], [START + 6 * HOUR, START + 7 * HOUR]],
        "snapshots": 3,
        "rows": 17,
        "digest": "0123456789abcdef0123456789abcdef",
    }
    assert layout.FOOTER_KEY == b"heatpipe"


ranges = st.lists(st.tuples(st.integers(0, 24), st.integers(0, 24)), max_size=5)


@given(coins, ranges, st.sets(st.integers(0, 23)), st.sets(st.integers(0, 23)), st.integers(0, 10**9))
@settings(deadline=None)
def test_a_footer_comes_back_as_it_was(
    coin: str, covered: list[tuple[int, int]], absent: set[int], empty: set[int], rows: int
) -> None:
    def hours(numbers: set[int]) -> Spans:
        return Spans.of((START + at * HOUR, START + at * HOUR + HOUR) for at in numbers)

    series_of(coin)
    spans = Spans.of((START + start * HOUR, START + end * HOUR) for start, end in covered)
    footer = Footer(
        series=Series(coin, "HOUR"),
        coverage=Coverage(spans, hours(absent) & spans, hours(empty - absent) & spans),
        snapshots=min(rows, 24),
        rows=rows,
        digest="ab" * 16,
    )
    assert layout.decode_footer({b"heatpipe": layout.encode_footer(footer), b"other": b"x"}, "x") == footer


def decode_document(document: Any) -> Footer:
    return layout.decode_footer({b"heatpipe": json.dumps(document).encode()}, "some/path")


def sound_document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(layout.encode_footer(FOOTER))
    return document


@pytest.mark.parametrize("metadata", [None, {}, {b"pandas": b"{}"}, {b"HEATPIPE": b"{}"}])
def test_a_foreign_file_has_no_footer(metadata: dict[bytes, bytes] | None) -> None:
    with pytest.raises(DatasetError, match="some/path has no footer of heatpipe's") as caught:
        layout.decode_footer(metadata, "some/path")
    assert caught.value.path == "some/path"


@pytest.mark.parametrize("version", [0, 2, None, "1", 1.5])
def test_a_footer_of_another_version_is_refused(version: object) -> None:
    with pytest.raises(DatasetError, match=r"version .*, this heatpipe reads 1"):
        decode_document(sound_document() | {"version": version})


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff", b"{}", b"[" * 100_000, b'{"version":1}', b"\x00"],
)
def test_a_footer_that_is_no_document_of_ours_is_a_damaged_file(text: bytes) -> None:
    with pytest.raises(DatasetError, match="some/path") as caught:
        layout.decode_footer({b"heatpipe": text}, "some/path")
    assert caught.value.path == "some/path"


def test_every_truncation_of_a_footer_is_a_damaged_file() -> None:
    text = layout.encode_footer(FOOTER)
    for length in range(len(text)):
        with pytest.raises(DatasetError):
            layout.decode_footer({b"heatpipe": text[:length]}, "some/path")


@pytest.mark.parametrize("key", ["series", "covered", "absent", "empty", "snapshots", "rows", "digest"])
def test_a_footer_that_lacks_a_key_is_a_damaged_file(key: str) -> None:
    document = sound_document()
    del document[key]
    with pytest.raises(DatasetError, match="cannot be read"):
        decode_document(document)


NO_TEXT: tuple[object, ...] = (None, True, -1, 1.5, float("inf"), [], [[]], {})
NO_NUMBER: tuple[object, ...] = (None, "x", [], {}, float("inf"), float("nan"))
NO_RANGES: tuple[object, ...] = (None, True, 1.5, float("inf"), "x", [[]], [5], {"a": 1})
WRONG = [
    *(("coin", value) for value in (*NO_TEXT, "", "\n")),
    *(("interval", value) for value in (*NO_TEXT, "x", "WEEK")),
    *(("unit", value) for value in (*NO_TEXT, "x")),
    *(("depth", value) for value in (*NO_NUMBER, 0, -1, 10**9)),
    *((key, value) for key in ("covered", "absent", "empty") for value in NO_RANGES),
    *((key, value) for key in ("snapshots", "rows") for value in NO_NUMBER),
    *(("series", value) for value in (*NO_TEXT, "x", {"coin": "BTC", "colour": "red"})),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_footer_with_a_value_of_another_kind_is_a_damaged_file(key: str, value: object) -> None:
    document = sound_document()
    document |= {"series": document["series"] | {key: value}} if key in document["series"] else {key: value}
    with pytest.raises(DatasetError, match="some/path has a footer that cannot be read"):
        decode_document(document)


@pytest.mark.parametrize(
    "spans",
    [
        [[START, START + HOUR], [START + HOUR, START + 2 * HOUR]],  # not merged
        [[START + 2 * HOUR, START + 3 * HOUR], [START, START + HOUR]],  # not sorted
        [[START, START + 2 * HOUR], [START + HOUR, START + 3 * HOUR]],  # overlapping
        [[START, START]],
        [[START + HOUR, START]],
        [[START]],
        [[START, START + HOUR, 5]],
        [START, START + HOUR],
        [[START + 0.5, START + HOUR]],
        [[str(START), str(START + HOUR)]],
        [[START, None]],
        [[START, float("inf")]],
        [[START + 1, START + HOUR]],  # off the grid
        [[START, START + HOUR - 1]],
    ],
)
def test_a_footer_with_ranges_that_cannot_be_is_a_damaged_file(spans: object) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        decode_document(sound_document() | {"covered": spans, "absent": [], "empty": []})


@pytest.mark.parametrize("key", ["absent", "empty"])
def test_a_footer_that_calls_absent_or_empty_what_is_not_covered_is_a_damaged_file(key: str) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        decode_document(sound_document() | {key: [[START + 5 * HOUR, START + 6 * HOUR]]})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(sound_document())), json_values)
@settings(deadline=None, max_examples=200)
def test_whatever_stands_in_a_footer_it_is_read_or_the_file_is_called_damaged(key: str, value: object) -> None:
    try:
        decode_document(sound_document() | {key: value})
    except DatasetError as exc:
        assert exc.path == "some/path"  # noqa: PT017 - most of them may as well be read


@given(st.binary(max_size=100))
def test_whatever_bytes_a_footer_holds_the_file_is_called_damaged(text: bytes) -> None:
    with pytest.raises(DatasetError):
        layout.decode_footer({b"heatpipe": text}, "some/path")


# Places


def test_a_file_in_its_own_place_is_let_be() -> None:
    layout.check_place(FOOTER, FOOTER.series, DAY, "some/path")
    nothing = Footer(BTC, Coverage(), 0, 0, "")
    layout.check_place(nothing, BTC, DAY, "some/path")


@pytest.mark.parametrize(
    "series",
    [
        Series("PURR/USDC", "HOUR", "coin", 3000),
        Series("PURR/USDC", "HOUR", "usd", 1500),
        Series("PURR/USDC", "DAY", "usd", 3000),
        Series("PURR", "HOUR", "usd", 3000),
    ],
)
def test_a_file_in_the_folder_of_another_series_is_refused(series: Series) -> None:
    with pytest.raises(DatasetError, match="some/path holds PURR/USDC HOUR in usd at depth 3000, its folder says"):
        layout.check_place(FOOTER, series, DAY, "some/path")


@pytest.mark.parametrize("day", [DAY - 1, DAY + 1])
def test_a_file_in_the_folder_of_another_day_is_refused(day: int) -> None:
    with pytest.raises(DatasetError, match="its folder says 2026-03-"):
        layout.check_place(FOOTER, FOOTER.series, day, "some/path")


def test_a_file_that_covers_more_than_its_day_is_refused() -> None:
    long = Footer(BTC, Coverage(Spans.of([Span(START, START + DAY_S + 60)])), 0, 0, "")
    with pytest.raises(DatasetError, match="its folder says 2026-03-30"):
        layout.check_place(long, BTC, DAY, "some/path")


# --- the seal -----------------------------------------------------------------------------------------------------


def sealed_file() -> bytearray:
    return encode_file(SMALL)


def test_every_flipped_byte_breaks_the_seal() -> None:
    data = sealed_file()
    layout.check_seal(bytes(data), "x")
    for at in range(len(data)):
        data[at] ^= 1
        with pytest.raises(DamagedError, match=r"^x "):
            layout.check_seal(bytes(data), "x")
        data[at] ^= 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"heatpipe.seal\x18 ",
        bytes(sealed_file()[:-1]),
        bytes(sealed_file()[1:]),
        bytes(sealed_file() + b"\0"),
        bytes(sealed_file().replace(b"heatpipe.seal", b"heatpipe.sale")),
    ],
    ids=["nothing", "only a marker", "cut short", "beheaded", "one byte too many", "without a seal"],
)
def test_what_is_not_whole_has_no_seal(data: bytes) -> None:
    with pytest.raises(DamagedError):
        layout.check_seal(data, "x")


def test_a_seal_is_what_the_readme_says() -> None:
    """Anyone can check it: XXH3 of the file with zeros where the seal stands."""
    data = bytes(sealed_file())
    found = pq.read_metadata(io.BytesIO(data)).metadata[b"heatpipe.seal"]
    assert xxhash.xxh3_128_hexdigest(data.replace(found, b"0" * 32)).encode() == found

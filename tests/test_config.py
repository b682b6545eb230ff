"""Where settings come from, which of them wins, and what is said of a wrong one."""

import copy
import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatpipe.config import _FIELDS, Settings, Target, parse_instant, parse_last, resolve_span
from heatpipe.errors import ConfigError, KeyRefusedError
from heatpipe.model import Series, Span
from heatpipe.plan import Horizon
from heatpipe.redaction import Secret
from heatpipe.store import Store

KEY = "sk-Do-Not-Show-Me-31415"

WriteToml = Callable[[str], str]


@pytest.fixture
def toml(tmp_path: Path) -> WriteToml:
    def write(text: str) -> str:
        path = tmp_path / "heatpipe.toml"
        path.write_text(text)
        return str(path)

    return write


@dataclass(frozen=True)
class Setting:
    """One line of the table in the design, and three values for it, as text and as they are read."""

    name: str
    table: str
    key: str
    variable: str
    default: Any
    texts: tuple[str, str, str]
    values: tuple[Any, Any, Any]

    @property
    def toml(self) -> str:
        text = self.texts[0] if isinstance(self.values[0], int | float) else f'"{self.texts[0]}"'
        if isinstance(self.values[0], tuple):
            text = f"[{text}]"
        return f"[{self.table}]\n{self.key} = {text}\n"


SETTINGS = [
    Setting(
        *("url", "api", "url", "HEATPIPE_API_URL", "https://api.kiyotaka.ai"),
        ("https://a.example", "https://b.example/x", "http://localhost:8765"),
        ("https://a.example", "https://b.example/x", "http://localhost:8765"),
    ),
    Setting(
        *("key_header", "api", "key_header", "HEATPIPE_KEY_HEADER", "X-Kiyotaka-Key"),
        ("X-A", "X-OpenMarket-Key", "X_C"),
        ("X-A", "X-OpenMarket-Key", "X_C"),
    ),
    Setting(
        *("weight_per_minute", "api", "weight_per_minute", "HEATPIPE_WEIGHT_PER_MINUTE", 750),
        ("1", "5000", "999"),
        (1, 5000, 999),
    ),
    Setting("burst", "api", "burst", "HEATPIPE_BURST", 1500, ("5", "3000", "99"), (5, 3000, 99)),
    Setting("history_days", "api", "history_days", "HEATPIPE_HISTORY_DAYS", 365, ("0", "30", "7"), (0, 30, 7)),
    Setting("timeout_s", "api", "timeout_s", "HEATPIPE_TIMEOUT_S", 60.0, ("0.5", "2.5", "7"), (0.5, 2.5, 7.0)),
    Setting("patience_s", "api", "patience_s", "HEATPIPE_PATIENCE_S", 600.0, ("0", "2.5", "7"), (0.0, 2.5, 7.0)),
    Setting("concurrency", "api", "concurrency", "HEATPIPE_CONCURRENCY", 4, ("1", "64", "2"), (1, 64, 2)),
    Setting("settle_s", "api", "settle_s", "HEATPIPE_SETTLE_S", 120, ("0", "600", "30"), (0, 600, 30)),
    Setting("root", "dataset", "root", "HEATPIPE_DATA", "data", ("a", "/b/c", "./ä ö"), ("a", "/b/c", "./ä ö")),
    Setting(
        *("retired", "dataset", "retired", "HEATPIPE_RETIRED", ()),
        ("LUNA", " LUNA, PURR/USDC,", "kPEPE"),
        (("LUNA",), ("LUNA", "PURR/USDC"), ("kPEPE",)),
    ),
]


def by_name(setting: Setting) -> str:
    return setting.name


def load(
    overrides: Mapping[str, Any] | None = None, *, file: str | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    return Settings.load(overrides, file=file, environment=environment or {})


# Precedence


def test_the_table_below_has_every_setting() -> None:
    assert {setting.name for setting in SETTINGS} | {"api_key", "targets"} == {field.name for field in fields(Settings)}


@pytest.mark.parametrize("setting", SETTINGS, ids=by_name)
def test_flags_go_before_the_environment_before_the_file_before_the_default(setting: Setting, toml: WriteToml) -> None:
    in_file, in_environment, in_flag = setting.values
    file = toml(setting.toml)
    environment = {setting.variable: setting.texts[1]}

    def found(**given: Any) -> Any:
        return getattr(load(**given), setting.name)

    assert found() == setting.default
    assert found(file=file) == in_file
    assert found(environment=environment) == in_environment
    assert found(overrides={setting.name: in_flag}) == in_flag
    assert found(file=file, environment=environment) == in_environment
    assert found(file=file, overrides={setting.name: in_flag}) == in_flag
    assert found(file=file, environment=environment, overrides={setting.name: in_flag}) == in_flag
    assert found(file=file, environment=environment, overrides={setting.name: None}) == in_environment
    assert found(file=file, environment={setting.variable: ""}) == in_file


@pytest.mark.parametrize("setting", SETTINGS, ids=by_name)
def test_one_setting_leaves_the_others_alone(setting: Setting, toml: WriteToml) -> None:
    for found in (
        load(file=toml(setting.toml)),
        load(environment={setting.variable: setting.texts[0]}),
        load({setting.name: setting.values[0]}),
    ):
        assert found == Settings(**{setting.name: setting.values[0]})


def test_all_of_a_file_is_read(toml: WriteToml) -> None:
    tables: dict[str, list[str]] = {}
    for setting in SETTINGS:
        tables.setdefault(setting.table, []).append(setting.toml.split("\n")[1])
    text = "\n".join(f"[{table}]\n" + "\n".join(lines) for table, lines in tables.items())
    assert load(file=toml(text)) == Settings(**{setting.name: setting.values[0] for setting in SETTINGS})


def test_an_empty_file_changes_nothing(toml: WriteToml) -> None:
    assert load(file=toml("")) == Settings()


def test_other_variables_are_not_our_business() -> None:
    assert load(environment={"HEATPIPE_COLOUR": "red", "PATH": "/bin"}) == Settings()


def test_settings_know_the_horizon() -> None:
    assert Settings(settle_s=7, history_days=9).horizon(5.0) == Horizon(5.0, 7, 9)


# Wrong values


def refusal(given: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        given()
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert len(text) < 400
    return text


WRONG: dict[str, tuple[str, ...]] = {
    "url": (
        "api.kiyotaka.ai",
        "ftp://api.kiyotaka.ai",
        "https://",
        "https://:80",
        "https://h:99999",
        "https://h:x",
        "https://[::1",
        "https://u:p@h",
        "https://u@h",
        "https://h?a=1",
        "https://h#a",
        "https://a b",
        " https://h",
        "https://h\t",
        "http://api.kiyotaka.ai",
    ),
    "key_header": ("X Key", "X:Key", "Ü", "a\tb"),
    "weight_per_minute": ("0", "-1", "x", "1.5", "nan", "inf", "1e400", "1" * 11, "1" * 400),
    "burst": ("4", "0", "-5", "x", "5.5", "1" * 400),
    "history_days": ("-1", "x", "1.5", "36501"),
    "timeout_s": ("0", "-1", "x", "nan", "inf", "3601"),
    "patience_s": ("-1", "x", "nan", "inf", "-inf", "86401"),
    "concurrency": ("0", "65", "-4", "x", "4.5"),
    "settle_s": ("-1", "x", "1.5", "86401"),
    "root": ("s3://bucket/x", "a\0b"),
    "retired": ("a\tb", "LUNA,x\0"),
}


@pytest.mark.parametrize(("setting", "text"), [(each, text) for each in SETTINGS for text in WRONG[each.name]])
def test_a_wrong_value_in_the_environment_is_refused_in_a_line_that_names_the_variable(
    setting: Setting, text: str
) -> None:
    assert refusal(lambda: load(environment={setting.variable: text})).startswith(f"{setting.variable}: ")


WRONG_TOML: dict[str, tuple[str, ...]] = {
    "url": ('"api.kiyotaka.ai"', '"http://api.kiyotaka.ai"', '""', "5", "true", "[]", '["https://h"]'),
    "key_header": ('"X Key"', '""', "5", "{}"),
    "weight_per_minute": ("0", "-1", '"750"', "1.5", "750.0", "true", "nan", "inf", "[]", "1" * 400, "2026-03-01"),
    "burst": ("4", '"1500"', "1500.0", "false"),
    "history_days": ("-1", '"365"', "1.5", "true"),
    "timeout_s": ("0", '"60"', "nan", "inf", "true", "1" * 400),
    "patience_s": ("-1", '"600"', "-inf", "true"),
    "concurrency": ("0", "65", '"4"', "4.0", "true"),
    "settle_s": ("-1", '"120"', "0.5", "true"),
    "root": ('"s3://bucket/x"', '""', "5", "true"),
    "retired": ('"LUNA"', "[5]", '[""]', '[" LUNA"]', "true"),
}


@pytest.mark.parametrize(("setting", "text"), [(each, text) for each in SETTINGS for text in WRONG_TOML[each.name]])
def test_a_wrong_value_in_the_file_is_refused_in_a_line_that_names_the_file_and_the_key(
    setting: Setting, text: str, toml: WriteToml
) -> None:
    file = toml(f"[{setting.table}]\n{setting.key} = {text}\n")
    assert refusal(lambda: load(file=file)).startswith(f"{file}, [{setting.table}] {setting.key}: ")


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        ({"url": "http://api.kiyotaka.ai"}, "--api-url: "),
        ({"url": ""}, "--api-url: "),
        ({"root": "s3://bucket"}, "--data: "),
        ({"root": ""}, "--data: "),
        ({"concurrency": 0}, "concurrency: "),
    ],
)
def test_a_wrong_flag_is_refused_in_a_line_that_names_it(overrides: dict[str, Any], place: str) -> None:
    assert refusal(lambda: load(overrides)).startswith(place)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[api", "is not TOML"),
        ("a = 1\na = 2", "is not TOML"),
        (f"[api]\nburst = {'1' * 5000}", "is not TOML"),
        (f"a = {'[' * 5000}", "is not TOML"),
        ("[ap]\nurl = 'https://h'", "unknown key 'ap'; did you mean 'api'?"),
        ("burst = 5", "unknown key 'burst'; known are api, dataset, series"),
        ("[api]\nburts = 5", "[api]: unknown key 'burts'; did you mean 'burst'?"),
        ("[api]\nroot = 'x'", "[api]: unknown key 'root'; known are burst, concurrency, history_days"),
        ("[dataset]\nrot = 'x'", "[dataset]: unknown key 'rot'; did you mean 'root'?"),
        ("[api.url]\nx = 1", "[api] url: "),
        ("api = 5", "api is not a table; write [api]"),
        ("[[api]]\nburst = 5", "api is not a table; write [api]"),
        ("[series]\ncoins = ['BTC']", "series is not an array of tables; write [[series]]"),
        ("series = 5", "series is not an array of tables"),
        ("series = [5]", "series is not an array of tables"),
    ],
)
def test_a_wrong_file_is_refused_in_a_line_that_names_it(text: str, says: str, toml: WriteToml) -> None:
    file = toml(text)
    refused = refusal(lambda: load(file=file))
    assert says in refused
    assert file in refused


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.toml")
    assert refusal(lambda: load(file=missing)) == (
        f"cannot read the configuration file {missing}: No such file or directory"
    )
    assert "Is a directory" in refusal(lambda: load(file=str(tmp_path)))
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"[dataset]\nroot = '\xe9'\n")
    assert "it is not UTF-8" in refusal(lambda: load(file=str(latin)))


def test_what_is_no_file_of_a_reasonable_size_is_refused_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.toml")
    (huge := tmp_path / "huge.toml").touch()
    os.truncate(huge, 1 << 40)
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    for file, says in (
        ("/dev/zero", "a device or a pipe"),
        ("/dev/null", "a device or a pipe"),
        (str(pipe), "a device or a pipe"),
        (str(huge), "it has more than 4,194,304 bytes"),
        (str(tmp_path / "loop.toml"), "symbolic link"),
        ("", "is not a path"),
        ("a\nb.toml", "a control character"),
        ("~nobody-of-that-name/a.toml", "no user of that name"),
        ("x" * 300, "File name too long"),
    ):
        assert says in refusal(lambda file=file: load(file=file))  # type: ignore[misc]


def test_a_key_of_many_parts_which_would_take_all_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "dots.toml"
    for text in ("# " + "." * 2000 + "\n" + "a." * 2000 + "a = 1", "\n[" + "a." * 2000 + "a]"):
        file.write_text(text)
        assert refusal(lambda: load(file=str(file))).endswith("is no configuration: line 2 has more than 100 dots")
    file.write_text("# " + "." * 2000)
    assert load(file=str(file)).targets == ()


def test_a_byte_order_mark_and_a_dos_end_of_line_are_read(tmp_path: Path) -> None:
    file = tmp_path / "windows.toml"
    file.write_bytes(b"\xef\xbb\xbf[api]\r\nburst = 77\r\n")
    assert load(file=str(file)).burst == 77


def test_a_tilde_is_the_home_of_its_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.toml").write_text("[dataset]\nroot = '~/there'")
    there = str(tmp_path / "there")
    assert load(file="~/a.toml").root == there
    assert load(environment={"HEATPIPE_DATA": "~/there"}).root == there
    assert load(overrides={"root": "~/there"}).root == Settings(root="~/there").root == there
    assert load(overrides={"root": "~"}).root == str(tmp_path)
    assert str(Store("~/there").root) == there
    assert load(overrides={"root": "./~/there"}).root == "./~/there"
    assert load(overrides={"root": "~root/there"}).root == str(Path("~root/there").expanduser())
    assert "no user of that name" in refusal(lambda: load(overrides={"root": "~nobody-of-that-name"}))


@pytest.mark.parametrize("control", ["\n", "\x1b", "\x7f", "\0", "\x9b", "\t"])
def test_a_control_character_is_refused_and_not_shown(control: str, toml: WriteToml) -> None:
    place = f"a{control}b"
    for variable in ("HEATPIPE_DATA", "HEATPIPE_BURST", "HEATPIPE_API_URL", "HEATPIPE_KEY_HEADER"):
        refused = refusal(lambda variable=variable: load(environment={variable: place}))  # type: ignore[misc]
        assert variable in refused
        assert control not in refused
    assert "control character" in refusal(lambda: load(environment={"HEATPIPE_BURST": f"77{control}"}))
    assert "control character" in refusal(lambda: load(overrides={"root": place}))
    assert "control character" in refusal(lambda: Settings(root=place))
    written = place.encode("unicode_escape").decode().replace("\\x", "\\u00")
    assert "control character" in refusal(lambda: load(file=toml(f'[dataset]\nroot = "{written}"')))


@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        ("https://api.kiyotaka.ai", True),
        ("https://api.kiyotaka.ai:8443/base", True),
        ("http://localhost:8765", True),
        ("http://LOCALHOST", True),
        ("http://127.0.0.1:8765", True),
        ("http://[::1]:8765", True),
        ("http://api.kiyotaka.ai", False),
        ("http://localhost.example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("http://localhost@example.com", False),
        ("http://10.0.0.1", False),
        ("http://0.0.0.0", False),
        ("HTTP://api.kiyotaka.ai", False),
        ("ws://localhost", False),
    ],
)
def test_the_key_never_travels_in_clear_but_on_loopback(url: str, accepted: bool) -> None:
    if accepted:
        assert load({"url": url}).url == url
    else:
        refusal(lambda: load({"url": url}))


# The key


def test_the_key_comes_from_the_environment() -> None:
    settings = load(environment={"KIYOTAKA_API_KEY": f" {KEY}\n"})
    assert settings.key().reveal() == KEY


@pytest.mark.parametrize("environment", [{}, {"KIYOTAKA_API_KEY": ""}, {"KIYOTAKA_API_KEY": "  "}])
def test_without_a_key_nothing_is_refused_before_it_is_needed(environment: dict[str, str]) -> None:
    settings = load(environment=environment)
    assert settings.api_key is None
    with pytest.raises(KeyRefusedError, match="set the environment variable KIYOTAKA_API_KEY"):
        settings.key()


@pytest.mark.parametrize("bad", ["ä", "a\nb", "a\x00", "a\x7f"])
def test_a_key_that_no_header_carries_is_refused_unseen(bad: str) -> None:
    with pytest.raises(KeyRefusedError, match="KIYOTAKA_API_KEY holds characters that no API key has") as caught:
        load(environment={"KIYOTAKA_API_KEY": KEY + bad})
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("held", [Secret(KEY), load(environment={"KIYOTAKA_API_KEY": KEY})])
def test_no_repr_text_format_or_pickle_shows_the_key(held: object) -> None:
    for shown in (repr(held), str(held), f"{held}", f"{held!s}", f"{held!r}", f"{[held]}"):
        assert KEY not in shown
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(held, protocol)
    with pytest.raises(TypeError):
        copy.deepcopy(held)
    assert not hasattr(held, "__dict__")


@pytest.mark.parametrize(
    "text",
    [
        f"[api]\napi_key = '{KEY}'",
        f"[api]\nkey = '{KEY}'",
        f"[dataset]\nkey = '{KEY}'",
        f"[api]\nkiyotaka_api_key = '{KEY}'",
        f"api_key = '{KEY}'",
        f"KIYOTAKA_API_KEY = '{KEY}'",
        f"[api.api_key]\nx = '{KEY}'",
    ],
)
def test_a_key_in_a_file_is_refused_and_not_shown(text: str, toml: WriteToml) -> None:
    assert KEY not in refusal(lambda: load(file=toml(text), environment={"KIYOTAKA_API_KEY": KEY}))


@pytest.mark.parametrize("key", ["api_key", "key"])
def test_who_puts_the_key_into_a_file_is_told_where_it_belongs(key: str, toml: WriteToml) -> None:
    refused = refusal(lambda: load(file=toml(f"[api]\n{key} = '{KEY}'")))
    assert "a key never stands in a file; set KIYOTAKA_API_KEY" in refused


# Series of a file


def test_series_of_a_file_become_targets_coin_by_coin(toml: WriteToml) -> None:
    text = """
        [[series]]
        coins = ["BTC", "PURR/USDC"]
        start = 2026-03-01
        [[series]]
        coins = ["BTC"]
        interval = "HOUR"
        unit = "usd"
        depth = 3000
        start = "2026-03-01T12:00:00+02:00"
        end = 2026-03-08T00:00:00Z
    """
    first = 1_772_323_200
    assert load(file=toml(text)).targets == (
        Target(Series("BTC"), first),
        Target(Series("PURR/USDC"), first),
        Target(Series("BTC", "HOUR", "usd", 3000), first + 10 * 3600, first + 7 * 86_400),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("interval = 'HOUR'", 'coins is not a list of names, such as coins = ["BTC", "ETH"]'),
        ("coins = 'BTC'", "coins is not a list of names"),
        ("coins = []", "coins is not a list of names"),
        ("coins = [5]", "coins is not a list of names"),
        ("coins = ['']", "coin '' is empty"),
        ("coin = 'BTC'", "unknown key 'coin'; did you mean 'coins'?"),
        ("coins = ['BTC']\nintervall = 'HOUR'", "unknown key 'intervall'; did you mean 'interval'?"),
        ("coins = ['BTC']\ninterval = 'HOURS'", "unknown interval 'HOURS'; did you mean 'HOUR'?"),
        ("coins = ['BTC']\ninterval = 'WEEK'", "interval WEEK is refused"),
        ("coins = ['BTC']\ninterval = 60", "interval is 60, not a text"),
        ("coins = ['BTC']\nunit = 'eur'", "unknown unit 'eur'"),
        ("coins = ['BTC']\ndepth = '1500'", "depth is '1500', not a number"),
        ("coins = ['BTC']\ndepth = 1500.0", "depth is 1500.0, not a number"),
        ("coins = ['BTC']\ndepth = true", "depth is True, not a number"),
        ("coins = ['BTC']\ndepth = 0", "depth 0 is not between"),
        ("coins = ['BTC']\nstart = 5", "start: 5 is not a date"),
        ("coins = ['BTC']\nend = 'soon'", "end: 'soon' is not a date"),
        ("coins = ['BTC']\nend = 12:00:00", "is not a date"),
    ],
)
def test_a_wrong_series_is_refused_in_a_line_that_counts_it(text: str, says: str, toml: WriteToml) -> None:
    file = toml(f"[[series]]\ncoins = ['ETH']\n[[series]]\n{text}\n")
    refused = refusal(lambda: load(file=file))
    assert refused.startswith(f"{file}, [[series]] number 2: ")
    assert says in refused


@pytest.mark.parametrize(
    "text",
    [
        "[[series]]\ncoins = ['BTC', 'BTC']",
        "[[series]]\ncoins = ['BTC']\n[[series]]\ncoins = ['ETH', 'BTC']\nstart = 2026-03-01",
    ],
)
def test_a_series_that_stands_twice_is_refused(text: str, toml: WriteToml) -> None:
    assert "BTC MINUTE in coin at depth 1500 stands there twice" in refusal(lambda: load(file=toml(text)))


# Instants and lengths

MARCH = 1_772_323_200  # 2026-03-01T00:00Z


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2026-03-01", MARCH),
        ("2026-03-01T00:00", MARCH),
        ("2026-03-01 00:00:00", MARCH),
        ("2026-03-01T12:30:05", MARCH + 45_005),
        ("2026-03-01T12:30:05Z", MARCH + 45_005),
        ("2026-03-01T12:30:05+00:00", MARCH + 45_005),
        ("2026-03-01T02:00:00+02:00", MARCH),
        ("2026-02-28T18:30-05:30", MARCH),
        ("2026-03-01T00:00:00.000Z", MARCH),
        ("1970-01-01", 0),
        ("1969-12-31T23:59:59", -1),
        ("9999-12-31", 253_402_214_400),
        (date(2026, 3, 1), MARCH),
        (datetime(2026, 3, 1, 1), MARCH + 3600),  # noqa: DTZ001 - without an offset it is UTC
        (datetime(2026, 3, 1, 1, tzinfo=UTC), MARCH + 3600),
        (datetime(2026, 3, 1, 1, tzinfo=timezone(timedelta(hours=1))), MARCH),
    ],
)
def test_a_date_or_an_instant_is_read_as_utc_unless_it_says_otherwise(value: object, seconds: int) -> None:
    assert parse_instant(value, "--start") == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "today",
        "2026",
        "2026-03",
        "2026-02-30",
        "2026-13-01",
        "01.03.2026",
        "2026-03-01T25:00",
        "2026-03-01T00:00:00.5Z",
        "2026-03-01T00:00:00.000001",
        "12:30",
        "1772323200",
        5,
        1.5,
        True,
        None,
        time(12),
        ["2026-03-01"],
    ],
)
def test_what_is_no_instant_is_refused_in_a_line_that_names_it(value: object) -> None:
    assert refusal(lambda: parse_instant(value, "--start")).startswith("--start: ")


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)))  # noqa: DTZ001 - hypothesis wants them naive
def test_an_instant_comes_back_from_its_iso_text(instant: datetime) -> None:
    whole = instant.replace(microsecond=0, tzinfo=UTC)
    seconds = parse_instant(whole.isoformat(), "--start")
    assert datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds) == whole


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1m", 60), ("90m", 5400), ("36h", 129_600), ("7d", 604_800), ("2w", 1_209_600), ("007d", 604_800)],
)
def test_a_length_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert parse_last(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "d",
        "0d",
        "-1d",
        "+1d",
        "1.5d",
        "7 d",
        " 7d",
        "7D",
        "7days",
        "7s",
        "7M",
        "7y",
        "٧d",
        "²d",
        "1000000d",
        "d7",
    ],
)
def test_what_is_no_length_is_refused_with_examples(text: str) -> None:
    assert refusal(lambda: parse_last(text)) == f"--last {text!r} is not a length; write 90m, 36h, 7d or 2w"


@pytest.mark.parametrize(
    ("start", "end", "last_s", "span"),
    [
        (100, 200, None, Span(100, 200)),
        (100, None, None, Span(100, 1000)),
        (None, None, 300, Span(700, 1000)),
        (None, 900, 300, Span(600, 900)),
        (100, None, 300, Span(100, 1000)),  # start goes before last
        (100, 200, 300, Span(100, 200)),
        (0, None, None, Span(0, 1000)),
    ],
)
def test_a_span_is_put_together_from_what_was_given(
    start: int | None, end: int | None, last_s: int | None, span: Span
) -> None:
    assert resolve_span(start, end, last_s, closed_end=1000) == span


@pytest.mark.parametrize("end", [None, 500])
def test_a_span_needs_a_beginning(end: int | None) -> None:
    assert refusal(lambda: resolve_span(None, end, None, 1000)) == ("no span: give --start (and --end), or --last 7d")


def test_a_span_up_to_now_does_not_begin_later() -> None:
    assert resolve_span(1000, None, None, 1000) == Span(1000, 1000)
    assert refusal(lambda: resolve_span(1001, None, None, 1000)) == (
        "the span starts 1970-01-01T00:16:41Z, and the last closed interval ended 1970-01-01T00:16:40Z: "
        "there is nothing to ask for yet"
    )


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "configs").glob("*.toml")), ids=lambda p: p.name
)
def test_the_example_files_load(path: Path) -> None:
    assert Settings.load(file=str(path), environment={}).root


def test_the_example_file_shows_every_setting_and_its_default() -> None:
    example = Settings.load(file=str(Path(__file__).parent.parent / "configs" / "example.toml"), environment={})
    assert replace(example, targets=()) == Settings()
    assert len(example.targets) == 4


# What a refusal shows

SECRET = "s3cr3t-Abc_123456"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HEATPIPE_API_URL", f"https://user:{SECRET}@api.kiyotaka.ai"),
        ("HEATPIPE_API_URL", f"https://user:{SECRET}@api.kiyotaka.ai:port"),
        ("HEATPIPE_API_URL", f"https://api.kiyotaka.ai/?key={SECRET}"),
        ("HEATPIPE_API_URL", f"https://api.kiyotaka.ai/#{SECRET}"),
        ("HEATPIPE_API_URL", f"https://[{SECRET}"),
        ("HEATPIPE_API_URL", f"http://{SECRET}"),
        ("HEATPIPE_API_URL", f"ftp://{SECRET}"),
        ("HEATPIPE_API_URL", SECRET),
        ("HEATPIPE_API_URL", f"https://é{SECRET}"),
        ("HEATPIPE_KEY_HEADER", f"X-Key: {SECRET}"),
        ("HEATPIPE_KEY_HEADER", f"{SECRET}="),
        ("HEATPIPE_DATA", f"s3://user:{SECRET}@bucket/prefix"),
        ("HEATPIPE_DATA", f"https://host/data?sig={SECRET}"),
        *(
            (variable, secret)
            for variable in (
                *("HEATPIPE_WEIGHT_PER_MINUTE", "HEATPIPE_BURST", "HEATPIPE_HISTORY_DAYS", "HEATPIPE_TIMEOUT_S"),
                *("HEATPIPE_PATIENCE_S", "HEATPIPE_CONCURRENCY", "HEATPIPE_SETTLE_S"),
            )
            for secret in (SECRET, "31415926535897932384", f"7{SECRET}")
        ),
    ],
)
def test_a_refused_setting_is_named_and_not_shown(variable: str, value: str, toml: WriteToml) -> None:
    spec = next(spec for spec in _FIELDS.values() if spec.variable == variable)
    written = toml(f"[{spec.table}]\n{spec.key} = {json.dumps(value)}")
    for place, said in (
        (variable, refusal(lambda: load(environment={variable: value}))),
        (spec.key, refusal(lambda: load(file=written))),
    ):
        assert place in said
        assert SECRET[:6] not in said
        assert "31415926" not in said


def test_a_number_that_is_written_out_of_bounds_is_shown() -> None:
    for value in ("0", "12.5", "-3", "1e3", "99999999999"):
        assert value in refusal(lambda value=value: load(environment={"HEATPIPE_BURST": value}))  # type: ignore[misc]


def test_a_key_in_place_of_a_depth_is_not_shown(toml: WriteToml) -> None:
    said = refusal(lambda: load(file=toml(f"[[series]]\ncoins = ['BTC']\ndepth = '{SECRET}'")))
    assert "depth is" in said
    assert SECRET[:6] not in said


@pytest.mark.parametrize(
    "header",
    [
        *("Host", "Content-Length", "transfer-encoding", "Connection", "Accept", "Accept-Encoding", "User-Agent"),
        *("Cookie", "TE", "Upgrade", "Expect", "Range", "If-None-Match", "Proxy-Authorization", "Date", "Content_Type"),
        *("Sec-Fetch-Mode", "X-Forwarded-For", "Keep-Alive", "Max-Forwards"),
    ],
)
def test_a_header_that_http_uses_itself_carries_no_key(header: str) -> None:
    said = refusal(lambda: load(environment={"HEATPIPE_KEY_HEADER": header}))
    assert "HTTP uses" in said
    assert "X-Kiyotaka-Key" in said


@pytest.mark.parametrize("header", ["X-Kiyotaka-Key", "Authorization", "api_key", "X-Content-Key", "Secret", "Tenant"])
def test_any_other_header_may_carry_the_key(header: str) -> None:
    assert load(environment={"HEATPIPE_KEY_HEADER": header}).key_header == header

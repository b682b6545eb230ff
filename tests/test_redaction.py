"""The key in foreign text: whatever spelling each of its characters has."""

import html
import html.entities
import json
import pickle
import time
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatpipe.redaction import SURE_CHARACTERS, Redactor, Secret

KEY = "c4n4ry/5f0e+9d=&<\"'%\\"
PRINTABLE = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
NAMES = {meant: f"&{name}" for name, meant in html.entities.html5.items() if len(meant) == 1 and name.endswith(";")}

SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "itself": str,
    "upper case": str.upper,
    "JSON": lambda c: f"\\u{ord(c):04x}",
    "JSON, upper case": lambda c: f"\\u{ord(c):04X}",
    "JSON, within JSON": lambda c: f"\\\\u{ord(c):04x}",
    "JSON, a backslash before it": lambda c: f"\\{c}" if c in '/"\\' else c,
    "JavaScript": lambda c: f"\\x{ord(c):02x}",
    "JavaScript, braces": lambda c: f"\\u{{{ord(c):X}}}",
    "octal": lambda c: f"\\{ord(c):03o}",
    "Python, long": lambda c: f"\\U{ord(c):08x}",
    "URL": lambda c: f"%{ord(c):02x}",
    "URL, upper case": lambda c: f"%{ord(c):02X}",
    "URL, within a URL": lambda c: f"%25{ord(c):02x}",
    "URL, three deep": lambda c: f"%2525{ord(c):02x}",
    "URL, within JSON": lambda c: f"\\u0025{ord(c):02x}",
    "URL, escape()": lambda c: f"%u{ord(c):04x}",
    "HTML": lambda c: f"&#{ord(c)};",
    "HTML, zeros": lambda c: f"&#{ord(c):06};",
    "HTML, hexadecimal": lambda c: f"&#x{ord(c):x};",
    "HTML, in upper case": lambda c: f"&#X{ord(c):X};",
    "HTML, open": lambda c: f"&#{ord(c)}",
    "HTML, by name": lambda c: NAMES.get(c, c),
    "HTML, within HTML": lambda c: f"&amp;#{ord(c)};",
    "HTML, within JSON": lambda c: f"\\u0026#{ord(c)};",
    "HTML, within a URL": lambda c: f"%26%23{ord(c)}%3B",
    "HTML, as html.escape has it": html.escape,
    "UTF-16": lambda c: f"{c}\0",
    "UTF-32": lambda c: f"{c}\0\0\0",
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_key_is_found_in_every_spelling(name: str) -> None:
    spelt = "".join(map(SPELLINGS[name], KEY))
    redactor = Redactor(Secret(KEY))
    assert redactor.clean(f"no access for '{spelt}' at all") == "no access for '(key)' at all"
    assert redactor.clean_data(f"é{spelt}é".encode()) == "é(key)é".encode()


@settings(deadline=None)
@given(st.data())
def test_a_key_is_found_in_every_mixture(data: st.DataObject) -> None:
    # A backslash before an escape can be read in two ways; the table above has one.
    key = data.draw(
        st.text(PRINTABLE.filter(lambda character: character != "\\"), min_size=1, max_size=40), label="key"
    )
    spell = data.draw(st.lists(st.sampled_from(list(SPELLINGS)), min_size=len(key), max_size=len(key)), label="spell")
    spelt = "".join(SPELLINGS[name](character) for name, character in zip(spell, key, strict=True))
    found = Redactor(Secret(key)).clean(f"«{spelt}»")
    assert "(key)" in found
    assert found.replace("(key)", "").strip("«\\\0;»") == "", found


@settings(deadline=None)
@given(st.text(PRINTABLE, min_size=SURE_CHARACTERS, max_size=40), st.data())
def test_the_beginning_of_a_key_is_found_where_the_rest_was_cut_off(key: str, data: st.DataObject) -> None:
    length = data.draw(st.integers(SURE_CHARACTERS, len(key)))
    assert key[:length] not in Redactor(Secret(key)).clean(f"é{key[:length]}").replace("(key)", "")


@given(st.text("abcdxyz\\%&#;/+u0123456789", max_size=200))
def test_what_is_no_key_stays_as_it_is(text: str) -> None:
    redactor = Redactor(Secret("qqqqqqqq"))
    assert redactor.clean(text) == text
    assert redactor.clean_data(text.encode()) == text.encode()


def test_without_a_key_nothing_is_found() -> None:
    assert Redactor(Secret("")).clean("a text") == "a text"


def test_a_document_without_the_key_is_still_a_document() -> None:
    body = json.dumps({"error": f"no access for {KEY}", "key": KEY}).encode()
    assert json.loads(Redactor(Secret(KEY)).clean_data(body)) == {"error": "no access for (key)", "key": "(key)"}


@pytest.mark.parametrize(
    "piece",
    ["12345.5,", "c", "c4n4ry/", "\\", "%", "&", "%25", "&amp;", "\\u0", "\\u0063", "&#0000", "c\0\0\0", "\\\\\\\\u0"],
)
def test_hostile_text_takes_no_more_time_than_it_is_long(piece: str) -> None:
    """A tenth of a second each; what grows with the square would take an hour."""
    data = (piece * (1 << 20))[: 1 << 20].encode()
    began = time.process_time()
    for key in (KEY, "c" * 40, "\\" * 40, "%" * 40, "%25" * 14, "&amp;" * 8):
        Redactor(Secret(key)).clean_data(data)
    assert time.process_time() - began < 30


def test_who_finds_a_key_does_not_show_it() -> None:
    redactor = Redactor(Secret(KEY))
    assert KEY[:6] not in repr(redactor)
    with pytest.raises(TypeError):
        pickle.dumps(redactor)

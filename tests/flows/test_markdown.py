"""What is not ours means nothing in Prefect's markdown: a parser shows exactly the text, and nothing else."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from prefect.client.orchestration import SyncPrefectClient

from flows.markdown import code, escape, table
from flows.verify import verify
from heatpipe.model import Series
from tests.flows.conftest import artifacts_of, newest_run

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PIECES = st.sampled_from(
    [
        *("$$", "|", "\\", "\\|", "`", "``", "[x](javascript:alert(1))", "<img src=x>", "<!--", "&amp;", "&#124;"),
        *("**b**", "_i_", "a_b_c", "~~s~~", "![p](http://x)", "http://x.org/?a=b", "www.x.org", "me@x.org", "# ", "- "),
        *("1. ", "2) ", "12. ", "> ", "+ ", "===", "---", "\n", "\n\n", "\r\n", "\t", " ", "  ", "\u00a0", "\u2028"),
        *(
            "BTC",
            "a[b]",
            "'",
            "(x)",
            "kPEPE",
            "PURR/USDC",
            "币",
            "\U0001f4a9",
            "```\n",
            "    code",
            "|---|",
            "[a]: http://x",
            ":",
            "//",
        ),
    ]
)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=6).map("".join),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
)


def shown(tokens: list[Token]) -> str:
    """What a reader sees of a line, in which there is nothing but text."""
    (inline,) = [token for token in tokens if token.type == "inline"]
    found = inline.children or []
    assert {token.type for token in found} <= {"text", "text_special"}, found
    return "".join(token.content for token in found)


@given(TEXTS, TEXTS)
@example("\\", "|")
@example(" ", " \n ")
def test_a_text_is_one_cell_and_nothing_but_text(text: str, other: str) -> None:
    lines = table(("coin", "cause"), [(escape(text), escape(other)), ("last", "line")])
    tokens = PARSER.parse("\n".join(lines))
    cells = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "td_open"]
    assert len(cells) == 4
    assert [shown([cell]) for cell in cells] == [text, other, "last", "line"]


@given(TEXTS.filter(str.strip))
def test_a_text_is_one_paragraph_one_item_one_heading(text: str) -> None:
    for before, kind in (("", "paragraph_open"), ("* ", "bullet_list_open"), ("## ", "heading_open")):
        tokens = PARSER.parse(f"{before}{escape(text)}")
        assert tokens[0].type == kind
        assert shown(tokens) == text
        assert len([token for token in tokens if token.nesting == 1]) <= 3


@given(TEXTS)
def test_a_code_span_holds_the_text_or_is_none(text: str) -> None:
    tokens = PARSER.parse("\n".join(table(("path",), [(code(text),)])))
    cells = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "td_open"]
    assert len(cells) == 1
    assert "".join(token.content for token in cells[0].children or []) == text


@given(TEXTS)
def test_nothing_is_made_a_link_that_asks_for_none(text: str) -> None:
    """As GitHub's dialect does, which Prefect's page speaks."""
    assert not re.search(r"(?<!\\)(://|@)|www\.", escape(text))


def test_what_is_no_character_is_shown_as_one() -> None:
    assert (
        escape("a\x00b\x1b[0m\x85")
        == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}\\[0m\N{REPLACEMENT CHARACTER}"
    )
    assert escape("a\udcffb") == r"a\\udcffb"
    assert [escape(coin) for coin in ("BTC", "PURR/USDC", "a_b", "1.5")] == ["BTC", "PURR/USDC", "a_b", "1.5"]


@pytest.mark.usefixtures("in_process")
def test_a_report_shows_what_a_stranger_has_named(client: SyncPrefectClient, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)> `a|b` [x](javascript:1)"
    (tmp_path / "liquidations").mkdir()
    (tmp_path / "liquidations" / name).touch()
    (tmp_path / "liquidations" / b"\xff\n|".decode("utf-8", "surrogateescape")).touch()
    state = verify(data=str(tmp_path), return_state=True)
    assert state.is_failed()
    report = str(artifacts_of(client, newest_run(client))["verify-report"].data)
    tokens = PARSER.parse(report)
    assert not [token for token in tokens if token.type.startswith("html")]
    paths = [shown([tokens[i + 1]]) for i, token in enumerate(tokens) if token.type == "td_open"][::2]
    assert sorted(paths) == sorted([f"liquidations/{name}", r"liquidations/\udcff\n|"]), report


def test_the_queries_hold_a_coin_whatever_it_is_called() -> None:
    from flows.account import _queries

    coin = """a"'\\`<b>"""
    python = re.findall(r"```python\n(.*?)```", "\n".join(_queries("ro`ot", Series(coin))), re.DOTALL)
    assert len(python) == 2
    for query in python:
        compile(query, "query", "exec")
    assert repr(coin) in python[0]

"""Words to Prefect's markdown, in which nothing that is not ours means anything. Pure.

Coins, paths and the errors of others go through `escape`, or through `code`; only what stands here makes markup.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

SPECIAL: Final = re.compile(
    r"""
    (?P<kept>(?<=\w)\[[A-Za-z0-9]+\](?=[^(\[:]))  # no link, as in heatpipe[plot]
    | [\\`*\[\]<>|~$&@]                 # code, emphasis, links, HTML, cells, strokes, formulas, entities, addresses
    | (?<![^\W_])_ | _(?![^\W_])      # emphasis; within a word it is none
    | :(?=//) | (?<=www)\.            # what is made a link without being asked
    | ^[-+#=]                         # at the start: lists, headings
    """,
    re.VERBOSE | re.IGNORECASE,
)
LIST: Final = re.compile(r"^([0-9]{1,9})([.)])(?=\s|$)")
PLAIN: Final = re.compile(r"[\w.,:;/=%+@()'-]([\w.,:;/=%+@()' -]*[\w.,:;/=%+@()'-])?", re.ASCII)
"""What means the same within a code span and a cell, whatever reads it."""


def escape(text: str) -> str:
    """Return markdown that shows a text as it is: anywhere in a line, in a cell, a heading or a list.

    A control character is shown as U+FFFD, the end of a line as a space; what is no Unicode, as a backslash and digits.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    text = "".join("\N{REPLACEMENT CHARACTER}" if _is_control(char) else char for char in text)
    text = LIST.sub(r"\1\\\2", SPECIAL.sub(lambda found: found["kept"] or f"\\{found[0]}", text))
    text = re.sub(r"^ | $", "&#32;", text)
    return re.sub(r"[^\S ]", lambda found: f"&#{ord(found[0])};", text)


def code(text: str) -> str:
    """Return a code span, where a text can stand in one; else the text alone, which is shown as it is."""
    return f"`{text}`" if PLAIN.fullmatch(text) else escape(text)


def table(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; its cells are markdown already."""
    rule = ["---", *("---:" for _ in titles[1:])]
    return [f"| {' | '.join(line)} |" for line in (titles, rule, *lines)]


def _is_control(char: str) -> bool:
    return unicodedata.category(char) == "Cc" and char not in "\t\n\r"

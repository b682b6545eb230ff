"""The API key: a text that nothing shows, and how it is found in what others say. Imports nothing of heatpipe."""

import html.entities
import re
from typing import Final

KEY_VARIABLE: Final = "KIYOTAKA_API_KEY"
SHOWN_INSTEAD: Final = "(key)"
SURE_CHARACTERS: Final = 8
"""So many of the key's first characters are no chance, and whoever repeats them may have cut off the others."""

# All that repeats is bounded, and so is the time that a place in a text takes.
_ZEROS: Final = "0{0,8}+"
_SEMICOLON: Final = "(?:;|%3[bB])?"
_PADDING: Final = r"\x00{0,3}+"
"""What UTF-16 and UTF-32 put between ASCII."""


class Secret:
    """A text that no repr, str, format or pickle shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text, for the one place that sends it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not written down")


class Redactor:
    """Finds a key in foreign text, and replaces it: each character may be itself, in either case, or spelt otherwise.

    Spellings are those of JSON, URLs, HTML and of string literals, also one within another where encoders do so. What
    repeats no more than the beginning of the key is found as well. It takes time linear in the text.

    Parameters
    ----------
    key : Secret
        Printable ASCII. An empty one is found nowhere.
    """

    def __init__(self, key: Secret) -> None:
        spelt = [_spell(character) for character in key.reveal()]
        sure, rest = spelt[:SURE_CHARACTERS], spelt[SURE_CHARACTERS:]
        pattern = "".join(sure) + "".join(f"(?:{one})?" for one in rest) or "(?!)"
        self._in_text = re.compile(pattern)
        self._in_data = re.compile(pattern.encode())

    def __reduce__(self) -> str:
        raise TypeError("a Redactor knows a key, and is not written down")

    def clean(self, text: str) -> str:
        """Return a text without the key. It is to be cut, if at all, after this."""
        return self._in_text.sub(SHOWN_INSTEAD, text)

    def clean_data(self, data: bytes) -> bytes:
        """Return bytes without the key."""
        return self._in_data.sub(SHOWN_INSTEAD.encode(), data)


def _spell(character: str) -> str:
    r"""Return a pattern of all spellings of a character.

    Its alternatives begin with one certain character each: `re` skips all places that begin with another. Encoders that
    escape twice leave a ``%25`` for a ``%``, an ``&amp;`` or a ``\u0026`` for an ``&``, two backslashes for one.
    """
    code = ord(character)
    hexadecimal = _in_either_case(f"{code:02x}")
    names = sorted({name.rstrip(";") for name, meant in html.entities.html5.items() if meant == character})
    numbers = (f"(?:#|%23)(?:{_ZEROS}{code}|[xX]{_ZEROS}{hexadecimal})", *map(_in_either_case, names))
    entity = f"(?:amp;|#38;|#[xX]26;){{0,4}}(?:{'|'.join(numbers)}){_SEMICOLON}"
    escaped = (
        f"u0025(?:25){{0,4}}{hexadecimal}",
        f"u0026{entity}",
        f"[uUxX]{_ZEROS}{hexadecimal}",
        rf"[uU]\{{{_ZEROS}{hexadecimal}\}}",
        f"{_ZEROS}{code:o}",
        *([_in_either_case(character)] if character != "\\" else []),
    )
    # The longer ones first: where the character is a `%`, it is the beginning of its own spellings as well.
    alternatives = (
        rf"\\\\{{0,7}}+(?:{'|'.join(escaped)})",
        f"%(?:25){{0,4}}(?:26{entity}|[uU]00{hexadecimal}|{hexadecimal})",
        f"&{entity}",
        *(sorted({re.escape(character.lower()), re.escape(character.upper())}) if character != "\\" else [r"\\\\?"]),
    )
    return f"(?:{'|'.join(alternatives)}){_PADDING}"


def _in_either_case(text: str) -> str:
    return "".join(f"[{letter.lower()}{letter.upper()}]" if letter.isalpha() else re.escape(letter) for letter in text)

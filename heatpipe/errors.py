"""What can go wrong, as a tree whose branches are what the caller does next. Imports nothing of heatpipe.

::

    HeatpipeError
    ├── TransientError        try again: the same request may succeed later
    │   └── RateLimitedError      ... after `retry_after_s`, and nobody else before then either
    ├── TooHeavyError         ask for less: split the window
    ├── RequestError          fix the request; the others may go on
    │   ├── SymbolError           ... the upstream does not know this coin
    │   └── HistoryError          ... older than the history the tier sells
    ├── ConfigError           fix the configuration; nothing else can succeed before that
    │   ├── ClockError            ... this machine's clock is wrong
    │   ├── KeyRefusedError       ... the key is missing or wrong
    │   └── TierError             ... the tier does not sell this
    ├── DecodeError           look at the quarantine: the answer breaks the contract
    │   └── EnvelopeError         ... as a whole: no part of it can be trusted
    ├── DatasetError          look at the folder: a file is damaged, foreign, or cannot be written
    │   ├── DamagedError          ... a file says nothing that can be believed: it is set aside, and fetched anew
    │   ├── UnreadableError       ... it may be sound, and cannot be read now: it is left as it is, the rest goes on
    │   └── LockedError           ... another process works there
    ├── UnreachableError      run it again later: nobody answers, whatever is asked for
    ├── IncompleteError       run it again: some of what was asked for did not come
    └── Stopped               nothing: the user asked for an end

A promise broken by heatpipe's own code is a ValueError, never one of these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SHOWN_CHARACTERS: Final = 80
"""What is shown of a foreign value."""


class HeatpipeError(Exception):
    """Base of all that heatpipe raises on purpose; its text is fit for a user's eyes."""


class TransientError(HeatpipeError):
    """A passing fault of the network or the upstream; the same request may succeed later."""


class RateLimitedError(TransientError):
    """The upstream asked everyone to wait.

    Attributes
    ----------
    retry_after_s : float or None
        Seconds the upstream named; None where it named none.
    """

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooHeavyError(HeatpipeError):
    """The upstream, or our own cap on an answer's size, cannot carry this window: ask for less."""


class RequestError(HeatpipeError):
    """The upstream will never answer this request; others may be answered."""


class SymbolError(RequestError):
    """The upstream does not know, or does not sell, this coin."""


class HistoryError(RequestError):
    """The window reaches further back than the tier's history."""


class ConfigError(HeatpipeError):
    """A flag, variable or file is wrong; nothing can succeed until it is mended."""


class ClockError(ConfigError):
    """The clock of this machine cannot be right: what is closed, and what the history holds, is counted by it."""


class KeyRefusedError(ConfigError):
    """There is no API key, or the upstream refuses it."""


class TierError(ConfigError):
    """The key's tier does not include what was asked for."""


class DecodeError(HeatpipeError):
    """An answer breaks the contract; no row of it was kept.

    Parameters
    ----------
    *parts : str or Foreign
        Its text. What the answer said stands there whole: a part of a key could not be found any more.
    """

    def __init__(self, *parts: "str | Foreign") -> None:
        super().__init__(*parts)
        self.parts = parts

    def __str__(self) -> str:
        return self.say(lambda text: text)

    def say(self, clean: Callable[[str], str]) -> str:
        """Return the text, with the foreign parts cleaned, and then cut."""
        return "".join(part if isinstance(part, str) else part.show(clean) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A part of an error's text that others have written.

    Parameters
    ----------
    value : object
        What was read; shown as Python writes it, in ASCII.
    """

    value: object

    def show(self, clean: Callable[[str], str]) -> str:
        """Return it cleaned, and then cut."""
        text = clean(ascii(self.value))
        return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


class EnvelopeError(DecodeError):
    """An answer is not the document that was asked for: other JSON, another type, coin or interval."""


class DatasetError(HeatpipeError):
    """Something below the root is damaged, foreign, or cannot be read or written.

    Attributes
    ----------
    path : str
        What it is about.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class DamagedError(DatasetError):
    """A file cannot be what heatpipe wrote: it counts as not there, and may be replaced once it is set aside."""


class UnreadableError(DatasetError):
    """What is there cannot be read, locked, or held in memory now, which says nothing of what it is: leave it alone."""


class LockedError(DatasetError):
    """Another process holds the lock of a slab."""


class UnreachableError(HeatpipeError):
    """Nothing good has come for as long as one window may fail; what came before that is on disk.

    Attributes
    ----------
    is_there : bool
        Whether somebody has answered, if only that it cannot: something else may still be had there.
    """

    def __init__(self, message: str, *, is_there: bool = False) -> None:
        super().__init__(message)
        self.is_there = is_there


class IncompleteError(HeatpipeError):
    """A run ended with something left out; what came is on disk."""


class Stopped(HeatpipeError):  # noqa: N818 - an end that was asked for is no error
    """The run was asked to end; what had arrived has been written."""

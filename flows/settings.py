"""What a flow run works with: the settings of its process, and the key from there or from a Secret block."""

from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

from prefect import runtime
from prefect.blocks.system import Secret as SecretBlock

from heatpipe.config import Settings
from heatpipe.errors import ConfigError, KeyRefusedError
from heatpipe.redaction import KEY_VARIABLE

KEY_BLOCK: Final = "kiyotaka-api-key"


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What ``python -m flows.…`` was given; a form has no such fields, for the key goes to that address.

    Parameters
    ----------
    config : str, optional
        TOML file with settings and series.
    api_url : str, optional
        URL of the API.
    verbose : bool
        Say more in the log.
    """

    config: str | None = None
    api_url: str | None = None
    verbose: bool = False


COMMAND_LINE: Final[ContextVar[CommandLine]] = ContextVar("COMMAND_LINE", default=CommandLine())  # noqa: B039 - frozen


def load_settings(data: str) -> Settings:
    """Put the settings of this process together.

    Parameters
    ----------
    data : str
        Folder of the dataset; empty for that of HEATPIPE_DATA.

    Raises
    ------
    ConfigError
        One of them is wrong; or a deployment would write to its worker's own folder, which is temporary.
    """
    given = COMMAND_LINE.get()
    settings = Settings.load({"root": data or None, "url": given.api_url}, file=given.config)
    if runtime.deployment.id is not None and not Path(settings.root).is_absolute():
        raise ConfigError(
            f"data is {settings.root!r}: a deployed flow needs an absolute path, for its own folder is temporary; "
            "fill in data, or set HEATPIPE_DATA where the worker runs"
        )
    return settings


def find_key(settings: Settings) -> Settings:
    """Return settings that hold the key: that of the environment, else that of the Secret block.

    Raises
    ------
    KeyRefusedError
        Neither has one that could be a key.
    """
    if settings.api_key is not None:
        return settings
    try:
        text = cast("SecretBlock[Any]", SecretBlock.load(KEY_BLOCK)).get()
    except ValueError as exc:  # what Prefect raises where there is no such block
        raise KeyRefusedError(
            f"no API key: set {KEY_VARIABLE} where the flow runs, or save it as the Secret block {KEY_BLOCK!r} "
            "(the sandbox takes 'sandbox-key')"
        ) from exc
    try:
        found = Settings.load(environment={KEY_VARIABLE: text if isinstance(text, str) else ""})
        return replace(settings, api_key=found.key())
    except KeyRefusedError:
        raise KeyRefusedError(f"the Secret block {KEY_BLOCK!r} holds nothing that could be an API key") from None

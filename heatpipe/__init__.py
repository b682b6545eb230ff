"""heatpipe: liquidation heatmaps of the Kiyotaka Data API, brought home as partitioned Parquet."""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself takes as long to import as the interpreter takes to start
if TYPE_CHECKING:
    from typing import Any

    from heatpipe.config import Settings as Settings
    from heatpipe.errors import ConfigError as ConfigError
    from heatpipe.errors import DatasetError as DatasetError
    from heatpipe.errors import HeatpipeError as HeatpipeError
    from heatpipe.frame import scan as scan
    from heatpipe.ingest import backfill as backfill
    from heatpipe.ingest import update as update
    from heatpipe.model import Series as Series
    from heatpipe.sql import connect as connect

__version__ = "0.1.0"

__all__ = ["backfill", "connect", "scan", "update", "Series", "Settings"]

# Errors are asked for by their names; `from heatpipe import *` brings what is called.
_HOMES = {
    "ConfigError": "heatpipe.errors",
    "DatasetError": "heatpipe.errors",
    "HeatpipeError": "heatpipe.errors",
    "backfill": "heatpipe.ingest",
    "connect": "heatpipe.sql",
    "scan": "heatpipe.frame",
    "update": "heatpipe.ingest",
    "Series": "heatpipe.model",
    "Settings": "heatpipe.config",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: the command line must not wait for polars, nor an analyst for httpx.
    if name not in _HOMES:
        raise AttributeError(f"module 'heatpipe' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*_HOMES, "__version__"]

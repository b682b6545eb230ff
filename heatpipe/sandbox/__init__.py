"""The upstream API, emulated: a made-up market (`market`) behind the vendor's HTTP face (`app`), on loopback only.

What it does wrong on purpose stands in `faults`, and how bytes are sent badly in `wire`.

Imports nothing of heatpipe outside this package: it is the other side of the contract.
"""

from heatpipe.sandbox.app import ADVANCED, BASIC, ENTERPRISE, Answered, Options, Tier, create_app, run, serve
from heatpipe.sandbox.faults import Rule
from heatpipe.sandbox.market import Market, Points

__all__ = [
    "ADVANCED",
    "BASIC",
    "ENTERPRISE",
    "Answered",
    "Market",
    "Options",
    "Points",
    "Rule",
    "Tier",
    "create_app",
    "run",
    "serve",
]

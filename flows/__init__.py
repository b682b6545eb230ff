"""Prefect flows: thin shells over the engine in `heatpipe`. Used from a checkout; not in the wheel."""

from flows.ground import set_environment
from heatpipe.process import prepare_process

prepare_process()
set_environment()

"""Prefect flows: thin shells over the engine in `heatpipe`. Used from a checkout; not in the wheel."""

from heatpipe.process import prepare_process

prepare_process()

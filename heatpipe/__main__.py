"""``python -m heatpipe`` is the command line."""

from heatpipe.cli import main

main()

"""What needs a browser: ``make test-ui``. Left out of a plain run of pytest."""

"""What needs PostgreSQL: ``make test-services``. Left out of a plain run of pytest."""

"""What heatpipe costs, beside what its users would write otherwise: ``make bench``, docs/performance.md."""

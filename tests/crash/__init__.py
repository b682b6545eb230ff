"""Death at any moment: kill points, power loss, a reader that never stops; ``make soak`` for all of it at length."""

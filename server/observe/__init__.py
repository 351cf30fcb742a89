"""How fast and how well: metrics and logs."""

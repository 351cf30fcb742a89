"""python -m server fleet: one command for many devices."""

"""Lineside's device half: frames in over HTTP, labels out. Imports no tensorflow."""

__version__ = "0.1.0"

"""Lineside's device half: frames in over HTTP, labels out. Imports no tensorflow."""

__version__ = "0.1.0"
# Unix seconds; no clock that shows an earlier time is right. 2026-11-21, the first commit's day.
RELEASED = 1795219200

"""The cache of answers."""


class CacheDownError(Exception):
    """The cache can't be asked now; the message says why."""

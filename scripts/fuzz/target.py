"""A parser to fuzz, and what it promises about any input."""

from collections.abc import Callable
from typing import NamedTuple

from werkzeug.exceptions import HTTPException

from server.errors import LinesideError

# Processor seconds of one input; MB by which one input may raise the process's peak memory.
SECONDS_MAX, MEMORY_MB_MAX = 2.0, 64


class BrokenPromiseError(AssertionError):
    """Raised if what a parser returned breaks a promise of its docstring."""


def as_it_is(data: bytes) -> bytes:
    return data


class Target(NamedTuple):
    """A parser of bytes from outside.

    run: gives it an input; raises BrokenPromiseError for a result that can't be. seeds: valid
    inputs. words: pieces that mean something to it. refusals: errors that say that an input is
    refused, beside those of the server with a status 4xx, which all routes answer. memory_mb: MB
    by which an input may raise the process's peak memory. size_max: bytes of an input. repair:
    makes an input's checksums right, so that it is not refused for them alone.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
    refusals: tuple[type[Exception], ...] = ()
    memory_mb: int = MEMORY_MB_MAX
    size_max: int = 65_536
    repair: Callable[[bytes], bytes] = as_it_is

    def is_refusal(self, error: Exception) -> bool:
        """Return whether `error` is a documented refusal of an input."""
        if isinstance(error, self.refusals):
            return True
        if isinstance(error, LinesideError):
            return 400 <= error.status < 500
        return isinstance(error, HTTPException) and 400 <= (error.code or 500) < 500


def promise(holds: bool, what: str) -> None:
    """Raise BrokenPromiseError with `what` unless it holds."""
    if not holds:
        raise BrokenPromiseError(what)

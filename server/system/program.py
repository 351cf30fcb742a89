"""Tells which program this is: the same version may come with other code."""

import hashlib
from functools import cache
from pathlib import Path

PROGRAM = Path(__file__).parents[1]
DIGITS = 12


@cache
def program_id(folder: Path = PROGRAM) -> str:
    """Return the first 12 hex digits of the SHA-256 of all files of the program in `folder`, the
    folder `server`; without those that Python makes. Raises OSError."""
    total = hashlib.sha256()
    # Of a folder that is gone, rglob finds nothing and says nothing.
    folder = folder.resolve(strict=True)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{content} {path.relative_to(folder).as_posix()}\n".encode())
    return total.hexdigest()[:DIGITS]

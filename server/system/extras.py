"""Packages that are installed only if they are wanted: those of server/requirements-NAME.txt.

A file of its own, because rooms that do not import each other have such packages.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

_REQUIREMENTS = Path(__file__).parents[1]


def install_command(extra: str) -> str:
    """Returns the command that installs the packages of an extra."""
    if find_spec("pip") is None:  # as scripts/install makes it
        return f"sudo scripts/install --with {extra}"
    return f"{sys.executable} -m pip install -r {_REQUIREMENTS / f'requirements-{extra}.txt'}"

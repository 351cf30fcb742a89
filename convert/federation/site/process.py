"""Stands for Flower's flwr-clientapp at a site: a server's own program is refused.

Flower sends the program of a run from the server to the sites and would start whatever comes. Here
it may only name what the site has already.
"""

import io
import tomllib
import zipfile
from collections.abc import Callable
from typing import Any

from convert.errors import ConvertError
from convert.federation.flower import APP, APP_FILE

# Lists of files and of what the program is called, which Flower adds.
_INFORMATION = ".info/"


def check_program(bundle: bytes) -> None:
    """Raise ConvertError unless a Flower app bundle names our program and brings no other file."""
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            names = {name for name in archive.namelist() if not name.startswith(_INFORMATION)}
            text = archive.read(APP_FILE).decode()
        came, ours = tomllib.loads(text), tomllib.loads(APP)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ConvertError(f"the server sent no readable program: {error}") from None
    parts = [found["tool"]["flwr"]["app"]["components"] for found in (came, ours)]
    if names != {APP_FILE} or parts[0] != parts[1] or came["project"].get("dependencies"):
        raise ConvertError(
            "the server sent a program of its own, which this site does not run: both sides need"
            " the same version of Lineside"
        )


def main() -> None:
    """Run flwr-clientapp with the check before its installation of what the server sent."""
    from flwr.supernode.cli import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp as process

    install: Callable[..., Any] = process.install_from_fab

    def checked(bundle: bytes, *args: Any, **options: Any) -> Any:
        check_program(bundle)
        return install(bundle, *args, **options)

    process.install_from_fab = checked
    flwr_clientapp()

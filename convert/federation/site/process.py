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


def check_program(bundle: bytes, side: str = "site") -> None:
    """Raise ConvertError unless a Flower app bundle names our program and brings no other file.

    side: where it came to, site or server.
    """
    sender = "the server" if side == "site" else "somebody"
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            names = {name for name in archive.namelist() if not name.startswith(_INFORMATION)}
            text = archive.read(APP_FILE).decode()
        came, ours = _identity(tomllib.loads(text)), _identity(tomllib.loads(APP))
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ConvertError(f"{sender} sent no readable program: {error}") from None
    if names != {APP_FILE} or came != ours:
        raise ConvertError(
            f"{sender} sent a program of its own, which this {side} does not run: both sides need"
            " the same version of Lineside"
        )


def _identity(settings: dict[str, Any]) -> tuple[Any, ...]:
    """Return what an app bundle runs, what it needs, and the names of its folder."""
    project, app = settings["project"], settings["tool"]["flwr"]["app"]
    names = project["name"], project["version"], app["publisher"]
    return app["components"], project.get("dependencies") or [], *names


def install_ours_only(runtime: Any, side: str) -> None:
    """Have one of Flower's modules check each program before it installs it."""
    install: Callable[..., Any] = runtime.install_from_fab

    def checked(bundle: bytes, *args: Any, **options: Any) -> Any:
        check_program(bundle, side)
        return install(bundle, *args, **options)

    runtime.install_from_fab = checked


def main() -> None:
    """Run flwr-clientapp with the check before its installation of what the server sent."""
    from flwr.supernode.cli import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp

    install_ours_only(run_clientapp, "site")
    flwr_clientapp()

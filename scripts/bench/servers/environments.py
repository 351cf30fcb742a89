"""A virtual environment for each server, made when first needed, so that none lends another a
package."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

from bench.inputs import ROOT

PEERS = Path(__file__).parents[1] / "peers"
CACHE = ROOT / ".venv-bench"


class InstallError(RuntimeError):
    """A server that can't be installed on this machine, and why."""


def requirements(name: str) -> Path:
    """The pins of a peer, or the product's own for `lineside`."""
    return ROOT / "requirements.txt" if name == "lineside" else PEERS / f"{name}.txt"


def _run(command: list[str], log: Path) -> None:
    with log.open("ab") as file:
        if subprocess.run(command, stdout=file, stderr=file, check=False).returncode:
            text = log.read_text(errors="replace")
            errors = re.findall(r"^(?:ERROR|error).*$", text, re.MULTILINE) or text.splitlines()
            reason = errors[-1] if errors else "no output"
            raise InstallError(f"{' '.join(command[:4])} failed: {reason}; all of it is in {log}")


def prepare(name: str) -> Path:
    """The Python of the environment .venv-bench/NAME, with exactly its pins installed.

    An environment of the same pins and Python is used as it is. Raises InstallError with pip's
    reason.
    """
    folder, log = CACHE / name, CACHE / f"{name}.log"
    python, stamp = folder / "bin" / "python", folder / "installed"
    pins = [requirements(name), PEERS / "net.txt"]
    content = sys.version.encode() + b"".join(path.read_bytes() for path in pins)
    digest = hashlib.sha256(content).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == digest:
        return python
    print(f"installing {pins[0].relative_to(ROOT)} into {folder}", file=sys.stderr, flush=True)
    CACHE.mkdir(exist_ok=True)
    log.write_bytes(b"")
    # pip stays outside, so that site-packages holds what the server needs and nothing else.
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], log)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-r", str(pins[0])]
    _run(pip, log)
    stamp.write_text(digest)
    return python


def installed_size(python: Path) -> float:
    """Megabytes (10^6 bytes) of the files in the environment's site-packages."""
    (site,) = (python.parents[1] / "lib").glob("python*/site-packages")
    return sum(path.lstat().st_size for path in site.rglob("*") if path.is_file()) / 1e6

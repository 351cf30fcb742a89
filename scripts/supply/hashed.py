"""hashed.py FILE...: prints the pins of requirements files with their hashes of requirements.lock.

pip then takes no other file: `pip install --require-hashes -r`. scripts/supply/lock writes the
hashes.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

LOCK = Path(__file__).parents[2] / "requirements.lock"
PIN = re.compile(r"^([A-Za-z0-9._-]+)(==[^\s;\\]+)\s*(?:;\s*([^\\]*?))?\s*\\?$")


class LockError(Exception):
    """A pin can't be given its hashes; the message is a sentence."""


def name_of(written: str) -> str:
    """Return a package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", written).lower()


def pins(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, version with its `==`, and marker of each pin. Raises LockError for a line that
    is none."""
    for line in text.splitlines():
        if line.strip() and not line.startswith(("#", " ")):
            if not (found := PIN.match(line)):
                raise LockError(f"{line!r} is no pin NAME==VERSION")
            yield name_of(found[1]), found[2], found[3] or ""


def read_lock(text: str) -> dict[str, list[str]]:
    """Return the hashes of each NAME==VERSION."""
    hashes: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if line.startswith("    --hash="):
            current.append(line.strip(" \\"))
        else:
            for name, version, _ in pins(line):
                current = hashes.setdefault(name + version, [])
    return hashes


def with_hashes(files: Sequence[Path], lock: Path = LOCK) -> Iterator[str]:
    """Yield the lines of a requirements file. Raises LockError if a pin has no hash, OSError."""
    hashes = read_lock(lock.read_text("utf-8"))
    for file in files:
        for name, version, marker in pins(file.read_text("utf-8")):
            if not hashes.get(name + version):
                raise LockError(
                    f"{lock.name} has no hash of {name}{version}: run scripts/supply/lock"
                )
            condition = f" ; {marker}" if marker else ""
            yield " \\\n    ".join([f"{name}{version}{condition}", *hashes[name + version]])


def main(names: Sequence[str]) -> int:
    """Print the lines; return 0, or 1 if a pin has no hash."""
    try:
        for line in list(with_hashes([Path(name) for name in names])):
            print(line)
    except (LockError, OSError) as error:
        print(f"hashed.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

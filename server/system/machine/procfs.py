"""The kernel's small files, any of which may be absent, closed to us, or say something new."""

from pathlib import Path


def read_text(path: Path) -> str | None:
    """The file's text without the white space around it; None where it can't be read."""
    try:
        return path.read_text("utf-8").strip()
    except (OSError, ValueError):
        return None


def read_number(path: Path) -> int | None:
    """The whole number that is all of the file's text; None where there is none."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return None


def read_fields(path: Path) -> dict[str, int]:
    """Whole numbers by the word before them, one a line, as in /proc/meminfo and memory.stat;
    other lines are passed over, and a unit after the number is."""
    fields = {}
    for line in (read_text(path) or "").splitlines():
        name, _, rest = line.replace(":", " ").partition(" ")
        number = rest.split()[:1]
        if number and number[0].isdecimal():
            fields[name] = int(number[0])
    return fields

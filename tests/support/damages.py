"""What can happen to a file, by a person, a disk or another program."""

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

PAGE = 4096
Damage = Callable[[Path], None]


def _away(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()


def _emptied(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.truncate(path, 0)


def _cut(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.truncate(path, path.stat().st_size // 2)


def _garbage(path: Path) -> None:
    size = path.stat().st_size if path.exists() else PAGE
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(random.Random(size).randbytes(size))


def _folder(path: Path) -> None:
    _away(path)
    path.mkdir()
    (path / "file").write_text("somebody's")


def _fifo(path: Path) -> None:
    _away(path)
    os.mkfifo(path)


def _link_to_nowhere(path: Path) -> None:
    _away(path)
    path.symlink_to("nowhere/at/all")


def _database(path: Path, *statements: str) -> None:
    """Puts a database made by `statements` at `path`, whole at once: a server that runs may set it
    aside the moment that it is there."""
    fresh = path.with_name(f"{path.name}.elsewhere")
    fresh.unlink(missing_ok=True)  # of an attempt that found a folder in its way
    with closing(sqlite3.connect(fresh)) as other:
        for statement in statements:
            other.execute(statement)
        other.commit()
    _away(path)
    fresh.rename(path)


def _another_database(path: Path) -> None:
    _database(
        path, "CREATE TABLE customers (name TEXT)", "INSERT INTO customers VALUES ('somebody')"
    )


def _other_columns(path: Path) -> None:
    tables = ("jobs", "frames", "contents", "answers", "messages", "results")
    _database(path, *(f"CREATE TABLE {table} (name TEXT)" for table in tables))


def _replaced(path: Path) -> None:
    """By an older copy of itself."""
    if path.exists():
        shutil.copy(path, path.with_name("copy"))
        path.with_name("copy").replace(path)


DAMAGES: dict[str, Damage] = {
    "deleted": _away,
    "emptied": _emptied,
    "cut": _cut,
    "garbage": _garbage,
    "a folder": _folder,
    "a FIFO": _fifo,
    "a link to nowhere": _link_to_nowhere,
    "another database": _another_database,
    "other columns": _other_columns,
    "replaced": _replaced,
}


def spoil_page(path: Path, number: int, content: bytes) -> None:
    """Overwrites one page of a file in its place."""
    with path.open("r+b") as file:
        file.seek(number * PAGE)
        file.write(content)

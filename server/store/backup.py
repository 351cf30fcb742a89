"""A copy of all that a server keeps, in one tar file, and the way back from it.

The archive holds `data/`, `models/` and `keys.jsonl`, and as its last member `backup.json` with the
SHA-256 of each. A restored file is moved to its place only once all of them are verified.
"""

import hashlib
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import msgspec

from server import __version__
from server.errors import StartError
from server.store import data_lock
from server.system.files import make_folder, open_plain_file, sync, write_whole

FORMAT = 1
INDEX, DATA, MODELS, KEYS = "backup.json", "data", "models", "keys.jsonl"
# Left out of `data`: the queue, which the server makes again from the jobs; the verdicts that
# outputs still wait for, since no PLC must get an old part's; locks, and companions of databases.
LEFT_OUT = re.compile(r"jobs-queue\.db|outbox\.db|.*\.lock|.*\.db-(wal|shm|journal)")
DATABASE = ".db"
CHUNK_BYTES, INDEX_BYTES_MAX, FILE_BYTES_MAX = 1 << 20, 100_000_000, 1 << 40
# Beside the files of a place: what is being restored, and what was there before.
STAGE, ASIDE = ".restoring", ".before-restore-"
# In each folder from the first file that is moved to the last.
UNFINISHED = ".restore-unfinished"


class Places(msgspec.Struct, frozen=True):
    """The folders and the file of a server. models: None if they are left out."""

    data: Path
    models: Path | None
    keys_file: Path

    def folder(self, name: str) -> Path | None:
        """Return the folder of the archive's folder `name`."""
        return {DATA: self.data, MODELS: self.models}[name]


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Last member of an archive. program: the version that wrote it. at: RFC 3339. files: SHA-256
    in hexadecimal by the name in the archive."""

    format: int
    program: str
    at: str
    files: dict[str, str]


def write_backup(places: Places, target: Path, at: str, *, samples: bool = True) -> Index:
    """Write all that lies at `places` to the tar file `target`, which only its owner can read.

    The server may run: each database is copied as it is at one moment, and every other file of ours
    is replaced as a whole. samples: with the kept frames. Raises StartError if a file can't be read
    or written, or a database is damaged; `target` is then as it was.
    """
    fresh = target.with_name(f".{target.name}.new")
    try:
        with (
            open(fresh, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file,
            tempfile.TemporaryDirectory(dir=target.parent, prefix=".backup-") as scratch,
        ):
            index = Index(FORMAT, __version__, at, {})
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for name, path in _found(places, samples):
                    _add(archive, name, path, Path(scratch) / "copy.db", index)
                data = msgspec.json.encode(index)
                entry = tarfile.TarInfo(INDEX)
                entry.size = len(data)
                archive.addfile(entry, BytesIO(data))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(target)
        sync(target.parent)
    except OSError as error:
        raise StartError(f"the backup can't be made: {_words(error)}") from None
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
    return index


def _words(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _found(places: Places, samples: bool) -> Iterator[tuple[str, Path]]:
    """Yield the name in the archive and the path of each file that belongs into it."""
    for name in (DATA, MODELS):
        folder = places.folder(name)
        for path in sorted(folder.rglob("*")) if folder else ():
            parts = path.relative_to(folder).parts if folder else ()
            hidden = any(part.startswith(".") or ".damaged-" in part for part in parts)
            if hidden or path.is_symlink() or not path.is_file():
                continue
            if name == DATA and (
                LEFT_OUT.fullmatch(path.name)
                or (parts[0] == "samples" and not samples)
                or path == places.keys_file
            ):
                continue
            yield "/".join((name, *parts)), path
    if places.keys_file.is_file():
        yield KEYS, places.keys_file


def _add(archive: tarfile.TarFile, name: str, path: Path, scratch: Path, index: Index) -> None:
    """Add the file at `path`; nothing if the server has removed it meanwhile. scratch: where a
    database is copied to before. Raises OSError, and StartError for a damaged database."""
    source = path
    if path.suffix == DATABASE:
        source = scratch
        _copy_database(path, scratch)
    with suppress(FileNotFoundError), open_plain_file(source, FILE_BYTES_MAX) as file:
        status = os.fstat(file.fileno())
        entry = tarfile.TarInfo(name)
        entry.size, entry.mtime, entry.mode = (
            status.st_size,
            status.st_mtime,
            status.st_mode & 0o777,
        )
        reader = _Hashing(file)
        archive.addfile(entry, reader)
        index.files[name] = reader.digest.hexdigest()


def _copy_database(path: Path, copy: Path) -> None:
    """Copy a database in use (https://sqlite.org/backup.html). Raises StartError if it is damaged
    or can't be read."""
    copy.unlink(missing_ok=True)
    try:
        with (
            closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")
            result = target.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        raise StartError(f"the backup can't be made: {path}: {error}") from None
    if result != "ok":
        raise StartError(f"the backup can't be made: {path} is damaged: {result}")


class _Hashing:
    """Reads from `file` and keeps the SHA-256 of what was read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def restore_backup(source: Path, places: Places, at: str, *, replace: bool = False) -> Index:
    """Put back what the archive `source` holds. Whoever calls it holds the lock of `places.data`.

    at: goes into the names of what is set aside. replace: what lies at the places is moved to
    `.before-restore-AT` beside it; without it, files there are an error. Raises StartError if the
    archive is damaged, incomplete or none of ours, or a place can't be used. If files were moved by
    then, `check_restored` refuses the places until a restore of them succeeds.
    """
    held = [place for place in _folders(places) if any(_visible(place))]
    if (held or places.keys_file.exists()) and not replace:
        what = held[0] if held else places.keys_file
        raise StartError(
            f"{what} is not empty: --replace moves what is there to {ASIDE}{at} and restores"
        )
    try:
        for folder in _folders(places):
            make_folder(folder)
            shutil.rmtree(folder / STAGE, ignore_errors=True)
        keys, index = _unpack(source, places)
        for folder in _folders(places):
            write_whole(folder / UNFINISHED, f"{source}\n".encode())
        for folder in _folders(places):
            _swap(folder, folder / f"{ASIDE}{at}")
        if keys is not None:  # else those of this machine stay: without any, it would be open
            if places.keys_file.exists():
                aside = f"{places.keys_file.name}{ASIDE}{at}"
                places.keys_file.rename(places.keys_file.with_name(aside))
            _write(places.keys_file, BytesIO(keys), 0o600)
            sync(places.keys_file.parent)
        for folder in _folders(places):
            (folder / UNFINISHED).unlink()
            sync(folder)
    except OSError as error:
        raise StartError(f"the backup can't be restored: {_words(error)}") from None
    finally:
        for folder in _folders(places):
            shutil.rmtree(folder / STAGE, ignore_errors=True)
    return index


def check_restored(*folders: Path) -> None:
    """Raise StartError if files of a backup were moved to one of `folders`, and not all of them: it
    may lack its keys, its journal or its models."""
    for folder in folders:
        if os.path.lexists(folder / UNFINISHED):
            raise StartError(
                f"{folder} is partly restored: a restore ended too early. Run python -m server"
                " restore FILE --replace again"
            )


def _folders(places: Places) -> list[Path]:
    return [folder for folder in (places.data, places.models) if folder]


def _visible(folder: Path) -> Iterator[Path]:
    """Yield what lies in `folder`, but for the lock and what begins with a dot."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name != data_lock.FILE and not path.name.startswith("."):
            yield path


def _unpack(source: Path, places: Places) -> tuple[bytes | None, Index]:
    """Unpack the archive into the stages of its places. Return the keys and the index, which all
    files agree with. Raises OSError and StartError."""
    found: dict[str, str] = {}
    keys: bytes | None = None
    try:
        with tarfile.open(source, "r:") as archive:
            for entry in archive:
                content = archive.extractfile(entry) if entry.isfile() else None
                if content is None or entry.name in found:
                    raise _refused(source, f"{entry.name!r} is no plain file, or twice in it")
                if entry.name == INDEX:
                    index = _index(source, content.read(INDEX_BYTES_MAX))
                    break
                reader = _Hashing(content)  # type: ignore[arg-type]
                if entry.name == KEYS:
                    keys = reader.read(INDEX_BYTES_MAX)
                elif (path := _stage(source, entry.name, places)) is not None:
                    make_folder(path.parent)
                    _write(path, reader, entry.mode & 0o777)
                else:
                    continue
                found[entry.name] = reader.digest.hexdigest()
            else:
                raise _refused(source, f"it has no {INDEX} at its end, as if it were cut off")
    except tarfile.TarError as error:
        raise _refused(source, str(error)) from None
    for name, digest in index.files.items():
        if found.get(name) != digest and (name == KEYS or _stage(source, name, places)):
            raise _refused(source, f"{name} in it is missing or damaged")
    if others := found.keys() - index.files.keys():
        raise _refused(source, f"{min(others)} is not in its {INDEX}")
    return keys, index


def _refused(source: Path, why: str) -> StartError:
    return StartError(f"{source} is no backup, or damaged: {why}")


def _index(source: Path, data: bytes) -> Index:
    try:
        index = msgspec.json.decode(data, type=Index)
    except msgspec.DecodeError as error:
        raise _refused(source, f"{INDEX}: {error}") from None
    if index.format != FORMAT:
        raise _refused(source, f"its format is {index.format}, and this program reads {FORMAT}")
    return index


def _stage(source: Path, name: str, places: Places) -> Path | None:
    """Return where the file `name` is unpacked to; None for models that are left out. Raises
    StartError for a name that no backup has."""
    parts = PurePosixPath(name).parts
    odd = [part for part in parts if part.startswith(".") or "\\" in part or "\0" in part]
    if len(parts) < 2 or parts[0] not in (DATA, MODELS) or odd or name != "/".join(parts):
        raise _refused(source, f"it holds {name!r}")
    folder = places.folder(parts[0])
    return folder.joinpath(STAGE, *parts[1:]) if folder else None


def _write(path: Path, content: "_Hashing | BytesIO", mode: int) -> None:
    """Write a new file of the owner of its folder. Raises OSError."""
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        while piece := content.read(CHUNK_BYTES):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    _keep_owner(path)


def _keep_owner(path: Path) -> None:
    """Give `path` the owner of its folder, if a superuser restores for a service."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def _swap(folder: Path, aside: Path) -> None:
    """Move what lies in `folder` to `aside`, and what lies in its stage to it. Raises OSError."""
    stage = folder / STAGE
    # Rows that wait for the journal there must not get into the restored one.
    # Here, since it imports NumPy, for which a start that is refused is not to wait.
    from server.store.journal.waiting import NAMES

    waiting = [folder / name for name in NAMES if os.path.lexists(folder / name)]
    if before := [*_visible(folder), *waiting]:
        aside.mkdir()
        for path in before:
            path.rename(aside / path.name)
    for path in sorted(stage.rglob("*")) if stage.is_dir() else ():
        if path.is_dir():
            _keep_owner(path)
    for path in sorted(stage.iterdir()) if stage.is_dir() else ():
        path.rename(folder / path.name)
    sync(folder)

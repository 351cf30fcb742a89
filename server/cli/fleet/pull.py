"""python -m server fleet pull: the journal and the samples of each device, to this machine.

FOLDER/DEVICE/journal.jsonl has the rows as the device answers them, oldest first; what came last
says where the next pull goes on. FOLDER/DEVICE/samples has each sample as the device keeps it,
ID.json and its image, so that `python -m convert train` takes the folder.
"""

import argparse
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from server.cli.fleet.device import Device, DeviceError, decode
from server.cli.fleet.hosts import find_devices, folder_name, on_each
from server.errors import StartError
from server.recognition.sample import ID, SUFFIXES
from server.system.files import write_whole

JOURNAL, SAMPLES, LOCK = "journal.jsonl", "samples", ".lock"
JOURNAL_ROWS, SAMPLE_ROWS = 1000, 200
TAIL_BYTES = 1 << 16
TIMES = ("at", "labelled_at")
_ID = re.compile(ID)


class RowHead(msgspec.Struct, frozen=True):
    """By what a row of the journal is known again."""

    id: int
    time: str
    request_id: str


class RowPage(msgspec.Struct, frozen=True):
    """A page of the journal."""

    rows: tuple[msgspec.Raw, ...]


class SamplePage(msgspec.Struct, frozen=True):
    """A page of samples, whose fields are the device's."""

    samples: tuple[dict[str, Any], ...]
    next: str | None


class Pulled(msgspec.Struct, frozen=True):
    """Counts of what came new. rows: None if the device keeps no journal."""

    rows: int | None
    samples: int


def pull(args: argparse.Namespace) -> int:
    """Print a line a device; return 0 if all were pulled, else 1. Raises StartError if a file
    can't be written here."""
    code = 0
    devices = find_devices(args)
    folders = {device: args.folder / folder_name(device) for device in devices}
    if len(set(folders.values())) < len(devices):
        raise StartError("two devices would share a folder: give them names in a host file")
    try:
        pulled = on_each(devices, lambda each: _pull(each, folders[each]), args.parallel)
        for device, found in pulled:
            if isinstance(found, DeviceError):
                print(f"{device.name}: failed, {found}", flush=True)
                code = 1
            else:
                rows = "no journal" if found.rows is None else f"{found.rows} rows"
                print(f"{device.name}: {rows} and {found.samples} samples more", flush=True)
    except OSError as error:
        raise StartError(f"{error.filename or args.folder} can't be written: {error}") from None
    return code


def _pull(device: Device, folder: Path) -> Pulled:
    with _locked(folder):
        rows = pull_journal(device, folder)
        return Pulled(rows, pull_samples(device, folder / SAMPLES))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder of a device, so that no other pull writes to it. Raises DeviceError if one
    does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeviceError(f"another pull writes to {folder} now") from None
        yield


def pull_journal(device: Device, folder: Path) -> int | None:
    """Append the rows that the device has more; return how many, None if it keeps no journal.

    If the device's journal was begun anew, the rows before are kept in journal-1.jsonl and so on.
    Raises DeviceError, OSError.
    """
    path = folder / JOURNAL
    last = _last_row(path)
    count = 0
    try:
        if last and _is_another(device, last):
            path.rename(_free_name(folder))
            last = None
        rows = _rows(device, last.id if last else 0)
        with path.open("ab") as file:
            while rows:
                file.write(b"".join(bytes(row) + b"\n" for row in rows))
                file.flush()
                count += len(rows)
                before, last = last, decode(bytes(rows[-1]), RowHead)
                if before and last.id <= before.id:
                    raise DeviceError(f"its journal goes on with row {last.id} after {before.id}")
                rows = _rows(device, last.id)
            os.fsync(file.fileno())
    except DeviceError as error:
        if error.status == 404:
            return None
        raise
    return count


def _rows(device: Device, after: int, limit: int = JOURNAL_ROWS) -> tuple[msgspec.Raw, ...]:
    path = f"/v1/journal?format=json&order=oldest&limit={limit}&cursor={after}"
    return device.get(path, RowPage).rows


def _is_another(device: Device, last: RowHead) -> bool:
    """Return whether the device's journal is not the one that `last` is of. It may have dropped
    `last` by its age, but never its newest row."""
    rows = _rows(device, last.id - 1, limit=1)
    if rows:
        first = decode(bytes(rows[0]), RowHead)
        return first.id == last.id and first != last
    return bool(_rows(device, 0, limit=1))


def _last_row(path: Path) -> RowHead | None:
    """Return the last row of the file; None if it has none. What a pull that was cut off left of a
    row is removed. Raises DeviceError if it is no row."""
    if not path.exists():
        return None
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        tail, start = b"", end
        while start and tail.count(b"\n") < 2:
            start = max(0, start - TAIL_BYTES)
            file.seek(start)
            tail = file.read(end - start)
        whole = tail[: tail.rfind(b"\n") + 1]
        file.truncate(start + len(whole))
    lines = whole.splitlines()
    if not lines:
        return None
    try:
        return msgspec.json.decode(lines[-1], type=RowHead)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise DeviceError(f"the last line of {path} is no row of a journal: move it away") from None


def _free_name(folder: Path) -> Path:
    number = 1
    while (folder / f"journal-{number}.jsonl").exists():
        number += 1
    return folder / f"journal-{number}.jsonl"


def pull_samples(device: Device, folder: Path) -> int:
    """Fetch the samples that are not in `folder`, and labels that were given since; return how many
    images came. Raises DeviceError, OSError."""
    count, cursor = 0, ""
    folder.mkdir(exist_ok=True)
    while True:
        page = device.get(f"/v1/samples?limit={SAMPLE_ROWS}{cursor}", SamplePage)
        for sample in page.samples:
            count += _pull_sample(device, folder, sample)
        if page.next is None:
            break
        cursor = f"&cursor={quote(page.next)}"
    return count


def _pull_sample(device: Device, folder: Path, sample: dict[str, Any]) -> bool:
    """Fetch one sample; return whether its image was not here before. The record is written last,
    so that it is never without its image."""
    name, suffix = sample.get("id"), SUFFIXES.get(sample.get("image"))  # type: ignore[arg-type]
    if not isinstance(name, str) or not _ID.fullmatch(name) or suffix is None:
        raise DeviceError(f"it has a sample that is none: {str(name)[:60]!r}")
    image, record = folder / f"{name}{suffix}", folder / f"{name}.json"
    if fresh := not image.exists():
        try:
            data = device.ask("GET", f"/v1/samples/{name}/image")
        except DeviceError as error:
            if error.status == 404:  # removed meanwhile
                return False
            raise
        if not name.endswith(hashlib.sha256(data).hexdigest()[:16]):
            raise DeviceError(f"the image of its sample {name} is damaged")
        write_whole(image, data)
    text = msgspec.json.encode(sample | {key: _seconds(sample.get(key)) for key in TIMES})
    if not record.exists() or record.read_bytes() != text:
        write_whole(record, text)
    return fresh


def _seconds(moment: object) -> object:
    """Return RFC 3339 as Unix seconds, as samples are kept; all else as it is."""
    if not isinstance(moment, str):
        return moment
    try:
        return round(datetime.fromisoformat(moment).timestamp(), 3)
    except ValueError:
        raise DeviceError(f"it has a sample of the time {moment[:40]!r}") from None

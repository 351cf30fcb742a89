"""Samples on disk: frames kept for a person to look at, under a cap, in one folder.

A sample is whole once its ID.json is there, which is renamed into place last. Frames are not
synced to the disk, which would wear an SD card out: what a cut of power left empty or cut off is
removed at the next start. Labels, which are people's work, are synced.
"""

import hashlib
import logging
import os
import re
import threading
from contextlib import suppress
from pathlib import Path

import msgspec

from server.errors import NotFoundError, NotReadyError, StorageError
from server.recognition.answers import FrameAnswered
from server.recognition.frame import read_header
from server.recognition.images.header import ANY_SIZE
from server.recognition.sample import MEDIA_TYPES, MediaType, Reason, Sample, read_sample
from server.store.samples.index import Filter, SampleIndex, on_disk
from server.system.files import (
    IMAGE_MAX,
    beside,
    make_folder,
    read_plain_file,
    set_aside,
    sync,
    write_whole,
)

logger = logging.getLogger(__name__)

# Bounds the memory of the index if images are small.
SAMPLES_MAX = 20_000
# The frame was decoded before, under the limits that hold.
# Files that are ours to remove; all other files in the folder are left alone.
OURS = re.compile(r"\.?[0-9]{9}-[0-9a-f]{16}\.[a-z]+(\.new)?")


class TooLargeError(Exception):
    """An image that would not fit under the cap if it were alone."""


class Contents(msgspec.Struct, frozen=True):
    """The content of a folder: samples, those with a label, the bytes of disk that they take and
    may take, and the number of each label, by model."""

    samples: int
    labelled: int
    bytes: int
    cap_bytes: int
    labels: dict[str, dict[str, int]]


def describe(event: FrameAnswered, reason: Reason, name: str, image: MediaType) -> Sample:
    """Returns the sample of the ID `name` that an answered frame becomes."""
    answer, options = event.answer, event.options
    return Sample(
        id=name,
        at=round(event.at, 3),
        reason=reason,
        request_id=event.request_id,
        model=answer.model,
        model_version=answer.version,
        camera=options.camera or None,
        part=options.part or None,
        best=answer.best,
        predictions=answer.predictions,
        verdict=answer.verdict,
        image=image,
        bytes=len(event.data or b""),
    )


class SampleFolder:
    """The samples in `folder`, which together take at most `cap` bytes of disk.

    `_lock` guards the index and the files: a thread that changes one of them holds it. What is
    there is learned by `open`; until then, asking raises NotReadyError.
    """

    def __init__(self, folder: Path, cap: int) -> None:
        self.folder = folder
        self.cap = cap
        self._lock = threading.Lock()
        self._index = SampleIndex()
        self._opened = self._warned = False
        self._scraps: list[Path] = []
        self._inode: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        return self._index.bytes

    def open(self) -> None:
        """Learns what is there, and removes what is left of samples that were not finished.

        Raises OSError if the folder can't be read.
        """
        with self._lock:
            self._open()

    def _open(self) -> None:
        self._index = SampleIndex()
        self._set_aside_other_kind()
        whole: set[str] = set()
        names = sorted(os.listdir(self.folder)) if self.folder.is_dir() else []
        self._inode = self._look()
        for name in names:
            if name.endswith(".json") and not name.startswith("."):
                whole |= self._take(self.folder / name)
        scraps = (name for name in names if name not in whole and OURS.fullmatch(name))
        self._scraps = [self.folder / name for name in scraps]
        self._opened = True
        self._remove_scraps()
        self._make_room(0)

    def _set_aside_other_kind(self) -> None:
        """Makes way for the folder if a file, or a link to nowhere, is in its place."""
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            fields = {"path": str(self.folder), "moved_to": str(set_aside(self.folder))}
            logger.error("the folder of samples is begun anew", extra={"fields": fields})

    def _look(self) -> tuple[int, int] | None:
        """Returns device and inode of the folder; None if there is none."""
        with suppress(OSError):
            status = self.folder.stat()
            return status.st_dev, status.st_ino
        return None

    def _take(self, path: Path) -> set[str]:
        """Puts the sample of ID.json into the index, if it is whole; the names of its files."""
        try:
            sample = read_sample(path)
            if path.with_name(sample.image_name).stat().st_size != sample.bytes:
                return set()
            self._index.enter(sample, path.stat().st_size)
        except (OSError, ValueError):
            return set()
        return {path.name, sample.image_name}

    def _remove_scraps(self) -> None:
        while self._scraps:
            try:
                self._scraps[-1].unlink(missing_ok=True)
            except IsADirectoryError:
                pass  # not made by us, and in nobody's way
            except OSError:
                return  # the disk is read-only; they go with the next frame that can be kept
            self._scraps.pop()

    def _remove(self, name: str) -> None:
        """Removes a sample's files, ID.json first, so that no cut of power leaves half of one."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)
        self._scraps.append(self.folder / (name + self._index[name].suffix))
        self._index.forget(name)
        self._remove_scraps()

    def _make_room(self, size: int, spare: str = "") -> None:
        """Removes samples, but not `spare`, until `size` bytes more fit. Raises OSError."""
        while self._index.bytes + size > self.cap or len(self._index) > SAMPLES_MAX:
            name = self._index.next_out(spare)
            if name is None:
                return
            if self._index[name].label is not None and not self._warned:
                self._warned = True
                fields = {"folder": str(self.folder), "cap_mb": self.cap / 1e6}
                logger.warning(
                    "labelled samples are removed, since they alone reach the cap",
                    extra={"fields": fields},
                )
            self._remove(name)

    def add(self, event: FrameAnswered, reason: Reason) -> bool:
        """Keeps a frame; False if its very bytes are kept already.

        Raises OSError if it can't be written, TooLargeError if it is larger than the cap.
        """
        assert event.data is not None
        digest = hashlib.sha256(event.data).hexdigest()[:16]
        image = MEDIA_TYPES[read_header(event.data, ANY_SIZE).format]
        with self._lock:
            if not self._opened or self._look() != self._inode:
                self._open()
            if self._index.holds(digest):
                return False
            sample = describe(event, reason, f"{self._index.last + 1:09}-{digest}", image)
            text = msgspec.json.encode(sample)
            # ID.json twice: a label is kept by writing a new one beside the old, under the cap too.
            size = on_disk(sample.bytes) + 2 * on_disk(len(text))
            if size > self.cap:
                raise TooLargeError
            make_folder(self.folder)
            self._inode = self._look()
            self._remove_scraps()
            self._make_room(size)
            try:
                self._write(sample.image_name, event.data)
                self._write(f"{sample.id}.json", text)
            except OSError:
                self._scraps.append(self.folder / sample.image_name)
                self._remove_scraps()
                raise
            self._index.enter(sample, len(text))
        return True

    def _write(self, name: str, data: bytes, *, synced: bool = False) -> None:
        """Writes a file whole or not at all; `synced`: also if the power is cut. Raises
        OSError."""
        path = self.folder / name
        try:
            write_whole(path, data, synced=synced)
        except OSError:
            self._scraps.append(beside(path))
            self._remove_scraps()
            raise

    def contents(self) -> Contents:
        with self._lock:
            index = self._index
            return Contents(len(index), index.labelled, index.bytes, self.cap, index.labels())

    def find(self, wanted: Filter, before: str, limit: int) -> tuple[list[Sample], str | None]:
        """Returns at most `limit` samples that `wanted` admits, newest first, all older than the
        one of the ID `before` ('': any), and the ID to go on from, None at the end.

        Raises NotReadyError.
        """
        with self._lock:
            self._check_open()
            names = self._index.find(wanted, before)
        samples = (self._read(name) for name in names[:limit])
        after = names[limit - 1] if len(names) > limit else None
        return [sample for sample in samples if sample is not None], after

    def _check_open(self) -> None:
        if not self._opened:
            raise NotReadyError("the folder of samples has not been read yet", retry_after=1)

    def _read(self, name: str) -> Sample | None:
        try:
            return read_sample(self.folder / f"{name}.json")
        except (OSError, ValueError):
            return None  # removed since, or changed by hand

    def get(self, name: str) -> Sample:
        """Returns the sample with the ID `name`. Raises NotFoundError, NotReadyError."""
        with self._lock:
            return self._held(name)

    def _held(self, name: str) -> Sample:
        self._check_open()
        sample = self._read(name) if name in self._index else None
        if sample is None:
            raise NotFoundError(f"there is no sample {name}")
        return sample

    def image(self, sample: Sample) -> bytes:
        """Returns the image file as it was received. Raises NotFoundError."""
        try:
            return read_plain_file(self.folder / sample.image_name, IMAGE_MAX)
        except OSError:
            raise NotFoundError(f"the image of the sample {sample.id} is gone") from None

    def label(self, name: str, label: str | None, at: float) -> Sample:
        """Keeps what a person said, at the Unix time `at`, that the sample shows; None takes it
        back.

        Raises NotFoundError, NotReadyError, and StorageError if it can't be written.
        """
        with self._lock:
            sample = self._held(name)
            when = None if label is None else at
            sample = msgspec.structs.replace(sample, label=label, labelled_at=when)
            text = msgspec.json.encode(sample)
            try:
                self._make_room(on_disk(len(text)), spare=name)
                sync(self.folder / sample.image_name)
                self._write(f"{name}.json", text, synced=True)
                self._index.enter(sample, len(text))
            except OSError as error:
                raise StorageError(f"the label can't be kept: {error.strerror}") from None
            return sample

    def delete(self, name: str) -> Sample:
        """Removes a sample; returns what it was.

        Raises NotFoundError, NotReadyError, and StorageError if it can't be removed.
        """
        with self._lock:
            sample = self._held(name)
            try:
                self._remove(name)
            except OSError as error:
                raise StorageError(f"{name} can't be removed: {error.strerror}") from None
            return sample

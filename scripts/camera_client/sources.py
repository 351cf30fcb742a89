"""Read the frames of a pushing camera from a folder, a video, a camera, or the simulation.

A folder needs Python alone; videos and cameras need OpenCV, which is imported on first use.
"""

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from camera_client.frames import Frame

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FOLDER_POLL_S = 0.1
JPEG_QUALITY = 95
# FFmpeg's time-outs for a camera that does not answer, or stops in the middle.
OPEN_TIMEOUT_MS, READ_TIMEOUT_MS = 10_000, 5_000
RETRY_MIN_S, RETRY_MAX_S = 0.25, 5.0


class Source(Protocol):
    """Yields frames until it ends or `stop` is set. is_live: frames come at their own pace, so an
    older one gives way to a newer one; else each waits until the one before it was sent.

    Raises OSError if it can't be read.
    """

    is_live: bool

    def frames(self, stop: threading.Event) -> Iterator[Frame]: ...


class Folder:
    """The image files of a folder, newest first; with `watch`, those that come later as well, each
    once its size has stayed the same between two looks. `part` is the file's name without its
    ending."""

    is_live = False

    def __init__(self, path: Path, unreadable: Callable[[str], None], *, watch: bool) -> None:
        """unreadable: called with the reason for a file that can't be read; the others go on."""
        self._path = path
        self._unreadable = unreadable
        self._watch = watch

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        sent: set[tuple[str, int, int]] = set()
        before = self._look()
        while not stop.is_set():
            now = self._look()
            new = (now & before) - sent
            before = now
            if not new:
                if not self._watch:
                    return
                stop.wait(FOLDER_POLL_S)
                continue
            version = max(new, key=lambda each: (each[1], each[0]))
            sent = (sent & now) | {version}
            path = self._path / version[0]
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue  # moved away since it was listed
            except OSError as error:
                self._unreadable(f"{path} can't be read: {error.strerror}")
                continue
            yield Frame(data, version[1] / 1e9, path.stem)

    def _look(self) -> set[tuple[str, int, int]]:
        """Return name, time of change (ns) and size of each image file."""
        versions = set()
        for path in self._path.iterdir():
            if path.suffix.lower() in IMAGE_SUFFIXES:
                try:
                    status = path.stat()
                except OSError:
                    continue  # moved away since it was listed, or a link to nothing
                if stat.S_ISREG(status.st_mode):
                    versions.add((path.name, status.st_mtime_ns, status.st_size))
        return versions


class Video:
    """A video file: each frame, or `rate` frames a second of the video's own time. A camera (USB
    by number or /dev/videoN, or a URL): at most `rate` frames a second, opened again after a
    fault; `report` is called with the fault once."""

    def __init__(
        self, name: str, rate: float | None, part: str, report: Callable[[str], None]
    ) -> None:
        self.is_live = "://" in name or name.isdecimal() or name.startswith("/dev/")
        self._name = name
        self._rate = rate
        self._part = part
        self._report = report

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        number, retry_s = 0, RETRY_MIN_S
        while not stop.is_set():
            try:
                capture = self._open()
                for captured, data in self._read(capture, stop):
                    number, retry_s = number + 1, RETRY_MIN_S
                    part = f"{self._part}{number:06d}" if self._part else ""
                    yield Frame(data, captured, part)
                if not self.is_live:
                    return
                fault = "the camera sends no more frames"
            except OSError as error:
                if not self.is_live:
                    raise
                fault = str(error)
            if retry_s == RETRY_MIN_S:
                self._report(f"{fault}; trying again")
            stop.wait(retry_s)
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    def _open(self) -> Any:
        # AV_LOG_QUIET of FFmpeg; both would write beside the live line.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        import cv2

        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        limits = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS),
        ]
        try:
            if self._name.isdecimal():
                capture = cv2.VideoCapture(int(self._name))
            elif self._name.startswith("/dev/"):
                capture = cv2.VideoCapture(self._name, cv2.CAP_V4L2)
            else:
                capture = cv2.VideoCapture(self._name, cv2.CAP_FFMPEG, limits)
        except cv2.error:
            capture = None
        if capture is None or not capture.isOpened():
            raise OSError("the camera or video can't be opened")
        return capture

    def _read(self, capture: Any, stop: threading.Event) -> Iterator[tuple[float, bytes]]:
        """Yield the time of capture (Unix seconds) and a JPEG file: of a live camera when one is
        due, of a video in steps of its own time."""
        import cv2

        step = 1 / self._rate if self._rate else 0.0
        per_frame = 1 / (capture.get(cv2.CAP_PROP_FPS) or 25.0)
        at, due = 0.0, 0.0
        try:
            while not stop.is_set() and capture.grab():
                at = time.monotonic() if self.is_live else at + per_frame
                if at < due:
                    continue
                due = max(due + step, at) if due else at + step
                captured = time.time()
                done, pixels = capture.retrieve()
                if done:
                    _, encoded = cv2.imencode(
                        ".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
                    )
                    yield captured, encoded.tobytes()
        finally:
            capture.release()


class Simulated:
    """Parts of the simulated line, whose classes are known: `pictures` in turn, `rate` a second,
    each with a number of its own as `part`; `count` of them, or without end."""

    is_live = True

    def __init__(self, pictures: Sequence[Frame], rate: float, count: int | None) -> None:
        self._pictures = pictures
        self._rate = rate
        self._count = count

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        start, number = time.monotonic(), 0
        while self._count is None or number < self._count:
            if stop.wait(max(0.0, start + number / self._rate - time.monotonic())):
                return
            picture = self._pictures[number % len(self._pictures)]
            number += 1
            yield Frame(picture.data, time.time(), f"{number:06d}", picture.kind)

"""The sources that OpenCV decodes: RTSP and USB cameras, and video files.

FFmpeg delivers frames that the network held up, and frames that it could not decode whole, as if
they were fresh and whole. So `StreamClock` finds how late each one is, and `ErrorLog` says after
which ones the pictures are damaged.
"""

import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from server.line.cameras.sources import Shot, Source, SourceEndedError, SourceError, Stream

JPEG_QUALITY = 95
# A camera that came back must not wait for an older attempt.
OPEN_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 5.0
# Time after which a stream without a whole picture is opened again.
DAMAGED_MAX_S = 2.0
# Most seconds by which a camera's clock goes wrong in a second.
DRIFT_MAX = 1e-3
# Video alone, since FFmpeg moves the times of frames to match the sound; and no frames kept back
# to learn the rate from.
RTSP_OPTIONS = (
    "rtsp_transport;tcp|allowed_media_types;video|analyzeduration;1|fpsprobesize;0|probesize;32"
)
# Parts of lines that FFmpeg writes about pictures that are whole.
HARMLESS = (b"SEI type", b"APP fields", b"deprecated pixel format")


def to_jpeg(pixels: Any) -> bytes:
    import cv2

    done, data = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
    if not done:
        raise SourceError("a frame could not be written as JPEG")
    return bytes(data)


def open_capture(target: str, options: tuple[int, ...], backend: int) -> Any:
    import cv2

    try:
        capture = cv2.VideoCapture(target, backend, options)
        if capture.isOpened():
            return capture
    except cv2.error:
        pass
    raise SourceError("the camera can't be opened")


def check_device(device: str) -> None:
    """Raise SourceError that says why the device file of a USB camera can't be used."""
    try:
        mode = os.stat(device).st_mode
    except OSError:
        raise SourceError(
            f"there is no device {device}: `python -m server cameras` lists those that there are"
        ) from None
    if not stat.S_ISCHR(mode):
        raise SourceError(f"{device} is no device of a camera")
    if not os.access(device, os.R_OK | os.W_OK):
        raise SourceError(f"the server may not open {device}: is its account in the group video?")


class StreamClock:
    """Finds when the frames of one stream were captured.

    A frame's time in the stream and the time of its arrival differ by the same for all frames that
    came without delay. What a frame has beyond the least difference so far is its delay.
    """

    def __init__(self) -> None:
        self._position = self._arrived = self._least = 0.0
        self._is_live = False

    def captured(self, asked: float, arrived: float, position: float) -> float | None:
        """Return the latest time at which a frame may have been captured (time.monotonic()); None
        if it may have waited since before the stream was open, by an unknown time.

        asked, arrived: when it was waited for and when it came. position: its time in the stream in
        seconds; one that does not grow begins a new count.
        """
        step, passed = position - self._position, arrived - self._arrived
        difference = arrived - position
        # Frames that waited come faster than they were captured.
        self._is_live |= 0 < step < 2 * passed and self._arrived > 0
        drifted = self._least + passed * DRIFT_MAX
        self._least = min(drifted, difference) if step > 0 and self._arrived else difference
        self._position, self._arrived = position, arrived
        return min(asked, position + self._least) if self._is_live else None


class ErrorLog:
    """Reads what libraries write to standard error in this process."""

    def __init__(self) -> None:
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        # A full pipe must not stop the decoder.
        os.set_blocking(write, False)
        os.dup2(write, 2)
        os.close(write)

    def has_errors(self) -> bool:
        """Return whether there is an error among the lines since the last call."""
        lines: list[bytes] = []
        with suppress(BlockingIOError):
            while data := os.read(self._read, 1 << 16):
                lines += data.splitlines()
        return any(not any(part in line for part in HARMLESS) for line in lines)


class CaptureStream(Stream):
    """RTSP and USB cameras. Each frame is grabbed; only a wanted one is encoded."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._table = table
        self._is_usb = table["kind"] == "usb"
        super().__init__()

    def shots(self) -> Iterator[Shot | None]:
        import cv2

        log, clock = ErrorLog(), StreamClock()
        capture = self._open()
        damaged_since: float | None = None
        while True:
            asked = time.monotonic()
            log.has_errors()
            if not capture.grab():
                raise SourceError("the camera sends no more frames")
            arrived = time.monotonic()
            captured = clock.captured(asked, arrived, capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
            if captured is not None and arrived - captured > self._table["stall_s"]:
                raise SourceError("the camera's frames come too late")
            if log.has_errors():
                damaged_since = damaged_since or asked
            elif self._is_usb or capture.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME) == 1:
                # Other frames are drawn from those before them.
                damaged_since = None
            if damaged_since is not None and arrived - damaged_since > DAMAGED_MAX_S:
                raise SourceError("the camera's pictures arrive damaged")
            if not self.wanted or captured is None or damaged_since is not None:
                yield None
                continue
            whole, pixels = capture.retrieve()
            if not whole:
                raise SourceError("a frame could not be decoded")
            yield Shot(captured, to_jpeg(pixels), captured)

    def _open(self) -> Any:
        # FFmpeg reads it as OpenCV opens the stream.
        os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = RTSP_OPTIONS
        import cv2

        table = self._table
        if self._is_usb:
            size = {cv2.CAP_PROP_FRAME_WIDTH: "width", cv2.CAP_PROP_FRAME_HEIGHT: "height"}
            wanted = [(key, table[name]) for key, name in size.items() if table[name]]
            flat = tuple(number for pair in wanted for number in pair)
            check_device(table["device"])
            return open_capture(table["device"], flat, cv2.CAP_V4L2)
        scheme, rest = table["url"].split("://", 1)
        if table["username"]:
            login = f"{quote(table['username'], '')}:{quote(table['password'], '')}"
            rest = f"{login}@{rest}"
        options = {
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: int(OPEN_TIMEOUT_S * 1000),
            cv2.CAP_PROP_READ_TIMEOUT_MSEC: int(READ_TIMEOUT_S * 1000),
            # With more, each keeps back one frame.
            cv2.CAP_PROP_N_THREADS: 1,
        }
        flat = tuple(number for pair in options.items() for number in pair)
        return open_capture(f"{scheme}://{rest}", flat, cv2.CAP_FFMPEG)


class Video(Source):
    """A video file: each frame that is asked for is the next one."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        super().__init__()
        self._path, self._loop = table["path"], table["loop"]
        self._capture = self._open()
        self.seen = time.monotonic()

    def _open(self) -> Any:
        import cv2

        return open_capture(self._path, (), cv2.CAP_FFMPEG)

    def take(self, after: float, wait_s: float) -> Shot | None:
        self.seen = time.monotonic()
        if wait_s <= 0:
            return None
        whole, pixels = self._capture.read()
        if not whole and self._loop:
            self._capture = self._open()
            whole, pixels = self._capture.read()
        if not whole:
            raise SourceEndedError("the video is at its end")
        captured = time.monotonic()
        return Shot(captured, to_jpeg(pixels), captured)

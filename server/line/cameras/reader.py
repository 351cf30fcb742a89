"""The process that reads one camera: `python -m server.line.cameras.reader`.

Standard input: the camera's table as one line of JSON, then a line for each question, with two
numbers: AFTER (seconds of time.monotonic(); -inf, if the camera is triggered by motion: the next
frame with which a movement has settled) and WAIT (seconds). Standard output: an answer for each
question, a HEADER and as many bytes as it says. So a frame is only sent if it is asked for, and no
queue can grow. Nothing of a camera is in the process's arguments or environment.
"""

import json
import os
import signal
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from server.line.cameras.captures import CaptureStream, Video
from server.line.cameras.motion import MotionSource
from server.line.cameras.region import RegionSource
from server.line.cameras.sources import Folder, Mjpeg, Snapshot, SourceEndedError, SourceError
from server.system.process import end_with_parent

# Kind of answer, two times (time.monotonic()), lengths of the name, the data and the whole frame
# that follow. For FRAME they are those of a Shot; for NONE the first time is that at which the
# camera last gave something, or -inf. ERROR and ENDED are the last.
HEADER = struct.Struct("<cddHII")
FRAME, NONE, ERROR, ENDED = b"F", b"N", b"E", b"X"
SOURCES: Mapping[str, type[Any]] = {
    "http": Snapshot,
    "mjpeg": Mjpeg,
    "rtsp": CaptureStream,
    "usb": CaptureStream,
    "video": Video,
    "folder": Folder,
}


def main() -> None:
    """Answer questions until standard input ends or the camera can't be read."""
    end_with_parent(signal.SIGKILL)
    # Those for the whole group of processes: the server ends its readers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Only answers may be written there, whatever a library prints.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def answer(
        kind: bytes,
        at: float,
        data: bytes = b"",
        earliest: float = 0.0,
        name: str = "",
        whole: bytes = b"",
    ) -> None:
        encoded = os.fsencode(name)
        out.write(HEADER.pack(kind, at, earliest, len(encoded), len(data), len(whole)))
        out.write(encoded)
        out.write(data)
        out.write(whole)
        out.flush()

    table = json.loads(sys.stdin.readline())
    try:
        source = SOURCES[table["kind"]](table)
        if table["trigger"] == "motion":
            source = MotionSource(table, source)
        if table["region"]:
            source = RegionSource(table["region"], source)
        for line in sys.stdin:
            after, wait = map(float, line.split())
            shot = source.take(after, wait)
            if shot is None:
                answer(NONE, source.seen)
            else:
                answer(FRAME, *shot)
    except SourceEndedError as error:
        answer(ENDED, 0.0, str(error).encode())
    except SourceError as error:
        answer(ERROR, 0.0, str(error).encode())


if __name__ == "__main__":
    # The server that asked has ended.
    with suppress(BrokenPipeError):
        main()
    # Without waiting for a thread that hangs in a read.
    os._exit(0)

"""The trigger by motion: finds when what moved in a region of the picture has come to rest.

Runs in the reader's process, on small grey pictures, so that frames without motion go nowhere.
"""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from server.line.cameras.sources import Shot, Source, SourceError, Stream

# Columns and rows of the grey picture of a region.
GRID = 64
# Grey levels, of 255, by which a cell that has changed differs at least.
CHANGE_MIN_LEVELS = 15
# Seconds in which the picture at rest follows slow changes, such as daylight.
FOLLOW_S = 10.0
TAKE_WAIT_S = 0.5
# Frames of settled movements that wait for the server; of further ones only the time is kept.
SETTLED_MAX = 4


class MotionDetector:
    """Finds, picture by picture, when a movement has settled.

    threshold: share of the cells, 0..1, beyond which a change is a movement. Each picture is
    compared with the first one that looks as the scene does now, so that slow movements add up. A
    movement has settled once no further one began for `settle_s` seconds.
    """

    def __init__(self, threshold: float, settle_s: float) -> None:
        self._threshold = threshold
        self._settle_s = settle_s
        self._rest: Any = None
        self._moving = False
        # When the last movement was seen; the time of the last picture.
        self._moved = self._last = 0.0

    def look(self, picture: Any, now: float) -> bool:
        """Return whether a movement has settled with this picture, of uint8 with GRID rows and
        columns, captured at `now` seconds."""
        import numpy as np

        cells = picture.astype(np.float32)
        elapsed, self._last = now - self._last, now
        if self._rest is None:
            self._rest = cells
            return False
        changed = np.mean(np.abs(cells - self._rest) >= CHANGE_MIN_LEVELS)
        if changed > self._threshold:
            self._rest, self._moving, self._moved = cells, True, now
        elif not self._moving:
            self._rest += (cells - self._rest) * min(1.0, elapsed / FOLLOW_S)
        elif now - self._moved >= self._settle_s:
            self._moving = False
            return True
        return False


def grey_picture(data: bytes, region: Sequence[float]) -> Any:
    """Return the region of an image file as uint8, GRID x GRID; None if it can't be decoded.
    region: x, y, width and height as shares of the frame; empty: all of it."""
    import cv2
    import numpy as np

    whole = None
    # An eighth of the size, which is faster, unless nothing would be left of the picture.
    for mode in (cv2.IMREAD_REDUCED_GRAYSCALE_8, cv2.IMREAD_GRAYSCALE):
        with suppress(cv2.error):
            whole = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
        if whole is not None:
            break
    else:
        return None
    height, width = whole.shape
    x, y, across, down = region or (0.0, 0.0, 1.0, 1.0)
    left, top = min(int(x * width), width - 1), min(int(y * height), height - 1)
    right = max(left + 1, math.ceil((x + across) * width))
    bottom = max(top + 1, math.ceil((y + down) * height))
    part = whole[top:bottom, left:right]
    return cv2.resize(part, (GRID, GRID), interpolation=cv2.INTER_AREA)


class MotionSource(Stream):
    """Looks at the frames of `source` all the time, `motion_fps` a second."""

    def __init__(self, table: Mapping[str, Any], source: Source) -> None:
        self._table = table
        self._source = source
        self._settled: deque[Shot] = deque()
        super().__init__()

    def shots(self) -> Iterator[Shot]:
        table = self._table
        detector = MotionDetector(table["motion_threshold"], table["settle_s"])
        last, readable = -math.inf, time.monotonic()
        while True:
            began = time.monotonic()
            shot = self._source.take(last, TAKE_WAIT_S)
            if shot is None:
                continue
            last = shot.captured
            picture = grey_picture(shot.data, table["motion_region"])
            if picture is not None:
                readable = shot.captured
                if detector.look(picture, shot.captured):
                    room = len(self._settled) < SETTLED_MAX
                    self._settled.append(shot if room else Shot(shot.captured, b""))
            elif shot.captured - readable > table["stall_s"]:
                raise SourceError(f"no frame could be decoded for {table['stall_s']:g} s")
            yield shot
            time.sleep(max(0.0, began + 1 / table["motion_fps"] - time.monotonic()))

    def take(self, after: float, wait_s: float) -> Shot | None:
        """Return the next frame with which a movement has settled if `after` is -inf, else as
        other sources do."""
        if after > -math.inf:
            return super().take(after, wait_s)
        with self._changed:
            self._changed.wait_for(lambda: self._settled or self._error is not None, wait_s)
            if self._settled:
                return self._settled.popleft()
            if self._error is not None:
                raise self._error
        return None

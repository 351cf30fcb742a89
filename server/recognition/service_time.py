"""How long a frame holds a slot, learnt from those that did."""

import math
from collections import OrderedDict

# Weight of the newest frame in a running estimate: about 20 frames' memory.
NEWEST = 0.05
# Seconds for which an estimate is believed after its last frame. Without an end, one estimate
# longer than any deadline would refuse every frame, and so never be corrected.
BELIEVED = 1.0
# Cameras whose own time is known, those last seen: names come from clients.
MOST_CAMERAS = 256


class Estimate:
    """A running mean of seconds; `measured` is when it was last brought up to date."""

    __slots__ = ("measured", "seconds")

    def __init__(self) -> None:
        self.seconds, self.measured = 0.0, -math.inf

    def learn(self, took: float, now: float) -> None:
        # Asked of the moment when this frame came: one that took long is no reason to forget what
        # was known before it, and to refuse all that come after it.
        weight = NEWEST if self.believed(now - took) else 1.0
        self.seconds += (took - self.seconds) * weight
        self.measured = now

    def believed(self, now: float) -> bool:
        return now - self.measured < BELIEVED


class ServiceTimes:
    """Of all frames and of each camera's own.

    Cameras differ in the size of their pictures and in the model they ask for: one whose frames
    are slow must not have the quick frames of another refused.
    """

    def __init__(self) -> None:
        self._all = Estimate()
        self._own: OrderedDict[str, Estimate] = OrderedDict()

    @property
    def mean(self) -> float:
        """Seconds a frame, of all cameras; 0 before the first."""
        return self._all.seconds

    def known(self, camera: str, now: float) -> float | None:
        """Seconds a frame of `camera`; None where none was answered of late."""
        own = self._own.get(camera)
        return own.seconds if own is not None and own.believed(now) else None

    def likely(self, camera: str, now: float) -> float:
        """Seconds a frame of `camera`, or of all where that is not known."""
        known = self.known(camera, now)
        return self.mean if known is None else known

    def learn(self, camera: str, took: float, now: float) -> None:
        """A frame of `camera` held a slot for `took` seconds until `now`."""
        self._all.learn(took, now)
        own = self._own.setdefault(camera, Estimate())
        own.learn(took, now)
        self._own.move_to_end(camera)
        if len(self._own) > MOST_CAMERAS:
            self._own.popitem(last=False)

"""What stands around the native readers of images, should one of them end the process."""

from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol


class Sender(NamedTuple):
    """Whose frame is read: `camera` and `request_id`, empty if unknown; deadline: until when an
    answer is of use, in seconds of time.monotonic()."""

    camera: str
    request_id: str
    deadline: float


class ReaderGuard(Protocol):
    """Remembers which frames are in the hands of native readers."""

    def reading(self, data: bytes, sender: Sender) -> AbstractContextManager[None]:
        """A context around the reading of `data`, an image file's bytes.

        Entering raises UnsafeImageError for a frame that has ended a process before, and
        NotReadyError if that is not known by the sender's deadline.
        """

"""What is told of each answered frame to those who keep or count it."""

from collections.abc import Callable

import msgspec

from server.recognition.recognizer import Answer, Options


class FrameAnswered(msgspec.Struct, frozen=True):
    """One frame that was answered. at: when, in Unix seconds. data: the image file as received,
    None where the request carried tensors. cached: whether the answer was another request's."""

    at: float
    request_id: str
    answer: Answer
    options: Options
    data: bytes | None = None
    cached: bool = False


# Called in the thread that answers, and that may be before the answer is sent: it returns at once
# and raises nothing.
Listener = Callable[[FrameAnswered], None]


class FrameRefused(msgspec.Struct, frozen=True):
    """One frame that got no labels. at: when, in Unix seconds. status, code: of the error that was
    answered. model, version, camera, part: as far as they were known, else empty and 0. seconds:
    from the request's arrival. reason: the sentence that the sender was told, without keys. cause:
    finer than the code, or empty. address: the sender's, if known. let_in: the sender has a valid
    key, or needs none because it is on this machine."""

    at: float
    request_id: str
    status: int
    code: str
    model: str = ""
    version: int = 0
    camera: str = ""
    part: str = ""
    seconds: float = 0.0
    reason: str = ""
    cause: str = ""
    address: str = ""
    let_in: bool = False


# Called as a Listener is, but of frames that were refused or failed.
RefusalListener = Callable[[FrameRefused], None]

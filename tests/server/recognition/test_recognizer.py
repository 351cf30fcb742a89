"""Recognizer: a deadline that passes while a frame is decoded."""

from collections.abc import Callable

import pytest
from images import encode, picture
from server_process import ROOT

from server.errors import DeadlineExceededError
from server.recognition.admission import Admission
from server.recognition.answers import Options
from server.recognition.frame import Limits
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import read_bundle
from server.recognition.recognizer import Recognizer
from server.recognition.tensor_model import run_images

Recognize = Callable[[Recognizer, bytes, Options], object]


class Slow:
    """A model of which every image takes 5 s to decode, by its own clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.stages: list[str] = []
        bundle = read_bundle(ROOT / "models" / "parts" / "1")
        pool = InterpreterPool(bundle.model_path, 1)
        admission = Admission(1, 1, lambda: self.now)
        self.recognizer = Recognizer(bundle, pool, admission, Limits(), self._ended)

    def _ended(self, stage: str, _seconds: float) -> None:
        self.stages.append(stage)
        if stage == "decode":
            self.now += 5


@pytest.mark.parametrize(
    "recognize",
    [
        lambda model, data, options: model.recognize(data, options),
        lambda model, data, options: run_images(model, [data], options),
    ],
    ids=["recognize", "run_images"],
)
def test_frame_late_after_decoding_gets_no_interpreter(recognize: Recognize) -> None:
    """A frame that is late once it is decoded gets no interpreter."""
    slow = Slow()
    data = encode(picture())
    with pytest.raises(DeadlineExceededError, match="while the image was decoded") as refused:
        recognize(slow.recognizer, data, Options(deadline=slow.now + 4.9))
    assert refused.value.status == 503
    assert slow.stages == ["wait", "decode"]
    assert slow.recognizer.admission.busy == 0
    assert recognize(slow.recognizer, data, Options(deadline=slow.now + 5))
    assert slow.stages[2:] == ["wait", "decode", "preprocess", "inference"]

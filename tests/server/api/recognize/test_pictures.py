"""Answers to /v1/recognize as pictures, for callers who ask for that."""

from contextlib import ExitStack

import cv2
import numpy as np
import pytest
import requests
from images import encode
from PIL import Image
from server_process import LiveServer

from server.api.recognize.pictures import Pictures, wants_picture
from server.config.thread_budget import DRAWING_REQUESTS_MAX
from server.errors import OverloadedError
from server.recognition.drawing import VERDICT_COLORS
from server.recognition.frame import Pixels


def shown(response: requests.Response) -> Pixels:
    """The picture of an answer, RGB."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "image/jpeg"
    pixels = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    return np.asarray(pixels, np.uint8)


@pytest.mark.parametrize(
    ("accept", "picture"),
    [
        ("image/jpeg", True),
        ("IMAGE/JPEG;q=0.9, */*;q=0.1", True),
        ("image/png, image/jpeg", True),
        ("image/jpeg, application/json;q=0.5", True),
        ("", False),
        ("*/*", False),
        ("image/*", False),
        ("image/jpeg;q=0", False),
        ("image/jpeg, */*", False),
        ("application/json, image/jpeg", False),
        ("application/json, image/jpeg;q=0.9", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8", False),
        ("text/html, application/xml;q=0.9, image/png, image/jpeg, */*;q=0.1", False),
        ("image/jpeg;q=nonsense, \xff;;,,", False),
    ],
)
def test_accept_has_to_prefer_a_jpeg(accept: str, picture: bool) -> None:
    assert wants_picture(None, accept) is picture
    assert wants_picture(True, accept)
    assert not wants_picture(False, accept)


def test_picture_shows_the_frame_and_the_verdict(server: LiveServer, sample: bytes) -> None:
    answer = server.recognize(sample).json()
    url = f"{server.url}/v1/recognize"
    headers = {"Content-Type": "image/jpeg", "Accept": "image/jpeg", "X-Request-Id": "drawn-1"}
    raw = requests.post(url, sample, headers=headers, timeout=60)
    form = requests.post(url, {"render": "true"}, files={"file": sample}, timeout=60)
    query = server.recognize(sample, render="true")
    drawn = shown(raw).astype(int)
    assert (shown(form) == drawn).all()
    assert (shown(query) == drawn).all()
    frame = cv2.imdecode(np.frombuffer(sample, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert frame is not None
    assert drawn.shape == frame.shape
    assert np.abs(drawn[150:] - frame[150:]).mean() < 3
    red = np.abs(drawn[:60, :200] - VERDICT_COLORS["fail"]).sum(axis=-1) < 30
    assert red.sum() > 500
    assert raw.headers["X-Request-Id"] == "drawn-1"
    model = f"{answer['model']}/{answer['model_version']}"
    for response in (raw, form, query):
        assert response.headers["X-Model"] == model
        assert response.headers["X-Verdict"] == answer["verdict"]
        assert response.headers["X-Verdict-Reason"] == answer["verdict_reason"]


def test_render_false_outweighs_accept(server: LiveServer, sample: bytes) -> None:
    answer = requests.post(
        f"{server.url}/v1/recognize?render=false",
        sample,
        headers={"Content-Type": "image/jpeg", "Accept": "image/jpeg"},
        timeout=60,
    )
    assert answer.json()["predictions"][0]["label"] == "scratched"


def test_picture_is_upright(server: LiveServer, sample: bytes) -> None:
    """A frame that EXIF turns by 90 degrees comes back turned, at its full size."""
    pixels = cv2.imdecode(np.frombuffer(sample, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    exif = Image.Exif()
    exif[0x0112] = 6
    height, width = pixels.shape[:2]
    drawn = shown(server.recognize(encode(pixels, "JPEG", exif=exif), render="true"))
    assert drawn.shape == (width, height, 3)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_picture_of_any_format_is_a_jpeg(server: LiveServer, kind: str) -> None:
    frame = np.full((24, 32, 3), 90, np.uint8)
    assert shown(server.recognize(encode(frame, kind), render="true")).shape == (240, 320, 3)


def test_errors_of_pictures_stay_json(server: LiveServer, sample: bytes) -> None:
    for data, params, status, code in (
        (b"no image at all", {}, 415, "UNSUPPORTED_IMAGE"),
        (sample[: len(sample) // 2], {}, 422, "UNDECODABLE_IMAGE"),
        (sample, {"render": "perhaps"}, 400, "INVALID_FIELD"),
        (sample, {"model": "nobody"}, 404, "MODEL_NOT_FOUND"),
    ):
        answer = server.recognize(data, **{"render": "true", **params})
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == code


def test_numbers_and_batches_have_no_picture(server: LiveServer, sample: bytes) -> None:
    numbers = b'{"input": [5.1, 3.5, 1.4, 0.2], "model": "iris", "render": true}'
    answer = requests.post(
        f"{server.url}/v1/recognize",
        numbers,
        headers={"Content-Type": "application/json"},
        timeout=60,
    )
    assert answer.json()["error"]["code"] == "INVALID_FIELD"
    url = f"{server.url}/v1/recognize/batch"
    batch = requests.post(url, {"render": "true"}, files={"file": sample}, timeout=60)
    assert batch.status_code == 400


def test_pictures_are_refused_beyond_their_bound() -> None:
    pictures = Pictures()
    with ExitStack() as held:
        for _ in range(DRAWING_REQUESTS_MAX):
            held.enter_context(pictures.place())
        with pytest.raises(OverloadedError), pictures.place():
            pass
    with pictures.place():
        pass
    pictures.close()

"""Image formats and sample depths by the settings, as cameras meet them over HTTP."""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import requests
from fuzz.image_kinds import KINDS
from PIL import Image
from server_process import ROOT, LiveServer, live_server

DEFAULT = ("JPEG", "PNG", "BMP", "WEBP")


def first(format_: str) -> bytes:
    return next(iter(KINDS[format_].values()))


@pytest.fixture(scope="module")
def good(shipped: Any) -> bytes:
    """A good part in 12 of 16 bits, as a Mono12 camera's PNG."""
    grey = Image.open(shipped / "samples" / "good.jpg").convert("L")
    deep = np.asarray(grey).astype(np.uint16) << 4
    return cv2.imencode(".png", deep)[1].tobytes()


@pytest.fixture(scope="module")
def all_formats() -> Iterator[LiveServer]:
    """A server that takes every format, and knows of cameras of 12 bits."""
    formats = "jpeg, Png,BMP,webp,tiff,ppm"
    with live_server(models=ROOT / "models", image_formats=formats, significant_bits=12) as running:
        yield running


@pytest.mark.parametrize("format_", KINDS)
def test_formats_of_the_default_settings(server: LiveServer, format_: str) -> None:
    answer = server.recognize(first(format_))
    if format_ in DEFAULT:
        assert answer.status_code == 200
        return
    assert answer.status_code == 415
    error = answer.json()["error"]
    assert error["code"] == "UNSUPPORTED_IMAGE"
    assert f"a {format_}" in error["message"]
    assert "image_formats" in error["message"]


@pytest.mark.parametrize("format_", KINDS)
def test_formats_that_are_named_are_taken(all_formats: LiveServer, format_: str) -> None:
    kind = "p6" if format_ == "PPM" else next(iter(KINDS[format_]))
    assert all_formats.recognize(KINDS[format_][kind]).status_code == 200


def test_12_bits_of_16_are_right_by_the_setting(all_formats: LiveServer, good: bytes) -> None:
    answer = all_formats.recognize(good).json()
    assert answer["predictions"][0]["label"] == "good"
    assert "warnings" not in answer
    full = np.full((64, 64), 4096, np.uint16)
    refused = all_formats.recognize(cv2.imencode(".png", full)[1].tobytes())
    assert refused.status_code == 422
    assert "significant_bits" in refused.json()["error"]["message"]


def test_12_bits_of_16_are_warned_of(good: bytes) -> None:
    """In the answer, the metric, and once in the log of each camera's minute."""
    with live_server(models=ROOT / "models") as server:
        name, labels = "lineside_frames_suspect_total", {"reason": "upper_bits_empty"}
        assert server.sample(name, **labels) == 0
        plain = server.recognize(first("JPEG")).json()
        assert "warnings" not in plain
        for camera in ("a", "a", "b", "a"):
            answer = server.recognize(good, camera=camera).json()
            [sentence] = answer["warnings"]
            assert "significant_bits" in sentence
        assert server.sample(name, **labels) == 4
        files = [("file", ("good.png", good, "image/png"))] * 2
        batch = requests.post(server.url + "/v1/recognize/batch", files=files, timeout=60).json()
        assert all(each["result"]["warnings"] for each in batch["results"])
        # A tutorial's answer keeps its shape.
        upload = {"file": ("good.png", good, "image/png")}
        shape = requests.post(server.url + "/classify", files=upload, timeout=60).json()
        usual = {"file": ("good.jpg", first("JPEG"), "image/jpeg")}
        other = requests.post(server.url + "/classify", files=usual, timeout=60).json()
        assert shape.keys() == other.keys()
        server.stop()
        lines = [line for line in server.lines if line["event"] == "suspect frame"]
        assert sorted(line.get("camera", "") for line in lines) == ["", "a", "b"]
        assert {line["reason"] for line in lines} == {"upper_bits_empty"}


def test_stderr_holds_nothing_but_json(shipped: Any) -> None:
    """Whatever native readers would print of damaged and of padded images."""
    jpeg = (shipped / "samples" / "good.jpg").read_bytes()
    padded = jpeg[:-2] + bytes(500) + jpeg[-2:]
    formats = ",".join(KINDS)
    with live_server(models=ROOT / "models", image_formats=formats) as server:
        assert server.recognize(padded).status_code == 200
        for kinds in KINDS.values():
            for data in kinds.values():
                third = len(data) // 3
                server.recognize(data[:third] + bytes(40) + data[third + 40 :])
                server.recognize(data[: 2 * third])
        server.stop()
        printed = [line["text"] for line in server.lines if line["event"] == "stderr"]
        # What LiteRT says as it loads the model.
        assert [text for text in printed if "TensorFlow Lite" not in text] == []


def test_damaged_frame_in_any_format_is_no_answer(all_formats: LiveServer) -> None:
    for format_, kinds in KINDS.items():
        for kind, data in kinds.items():
            answer = all_formats.recognize(data[: len(data) // 2])
            assert answer.status_code == 422, (format_, kind)
            assert answer.json()["error"]["code"] == "UNDECODABLE_IMAGE"

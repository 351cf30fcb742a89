"""Answers drawn over their frames."""

import cv2
import numpy as np
import pytest
from images import plain

from server.recognition.drawing import (
    MARK_COLORS,
    VERDICT_COLORS,
    HeatMap,
    Mark,
    Overlay,
    colors_of,
    draw,
    to_jpeg,
)
from server.recognition.frame import Pixels

GREY = (120, 120, 120)


def has_color(pixels: Pixels, color: tuple[int, int, int]) -> bool:
    return bool((pixels == color).all(axis=-1).any())


def test_drawing_leaves_the_frame_and_its_size() -> None:
    frame = plain(GREY, 640, 480)
    drawn = draw(frame, Overlay(verdict="fail", verdict_reason="anomaly", lines=("cut 0.9",)))
    assert drawn.shape == frame.shape
    assert (frame == GREY).all()
    assert has_color(drawn[:100], VERDICT_COLORS["fail"])
    assert (drawn[120:] == GREY).all()


def test_drawing_of_a_small_frame_is_magnified() -> None:
    drawn = draw(plain(GREY, 96, 72), Overlay(marks=(Mark((48, 36, 20, 20), "nut 0.9"),)))
    assert drawn.shape == (288, 384, 3)
    ys, xs = np.nonzero((drawn == MARK_COLORS[0]).all(axis=-1))
    assert abs(xs.min() - 4 * 48) <= 3
    assert abs(ys.max() - 4 * 56) <= 3


def test_marks_of_two_kinds_differ_in_color() -> None:
    marks = (Mark((40, 200, 80, 80), "a", 0), Mark((300, 200, 80, 80), "b", 1))
    drawn = draw(plain(GREY, 640, 480), Overlay(marks=marks))
    assert has_color(drawn[:, :200], MARK_COLORS[0])
    assert has_color(drawn[:, 250:], MARK_COLORS[1])


@pytest.mark.parametrize("text", ["Größe", "划痕", "Царапина"])
def test_text_of_any_script_is_drawn(text: str) -> None:
    """Each letter has a shape of its own, so none is a box for letters that the font lacks."""
    shapes = {draw(plain(GREY, 320, 320), Overlay(lines=(letter,))).tobytes() for letter in text}
    assert len(shapes) == len(set(text))


def test_text_longer_than_the_frame_is_cut() -> None:
    drawn = draw(plain(GREY, 400, 300), Overlay(lines=("wide\x00\n" * 4000, "", "\x07")))
    assert (drawn[:, -6:] == GREY).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (40_000, 3), (3, 40_000)])
def test_frame_of_any_shape_can_be_drawn_on(size: tuple[int, int]) -> None:
    width, height = size
    heat = HeatMap(np.full((3, 3), 0.9, np.float32), 0.5, (-10.0, -10.0, width + 20.0, 1e6))
    marks = (Mark((-1e9, -1e9, 2e9, 2e9), "everything"), Mark((5e8, 5e8, 0.0, 0.0), "far off"))
    overlay = Overlay(verdict="unsure", lines=("label",), marks=marks, heats=(heat,))
    drawn = draw(plain(GREY, width, height), overlay)
    assert drawn.shape[0] % height == drawn.shape[1] % width == 0
    assert to_jpeg(drawn).startswith(b"\xff\xd8")


def test_heat_map_lies_in_its_box() -> None:
    scores = np.zeros((4, 4), np.float32)
    scores[0, 3] = 1.0
    heat = HeatMap(scores, 0.5, (100.0, 80.0, 400.0, 320.0))
    drawn = draw(plain(GREY, 640, 480), Overlay(heats=(heat,))).astype(int)
    changed = np.abs(drawn - 120).sum(axis=-1) > 30
    changed[200:, 500:] = False  # the scale
    ys, xs = np.nonzero(changed)
    assert xs.max() == 499
    assert ys.min() == 80
    assert xs.min() > 300
    assert ys.max() < 240


def test_low_scores_leave_the_frame_as_it_is() -> None:
    heat = HeatMap(np.full((4, 4), 0.2, np.float32), 0.5)
    drawn = draw(plain(GREY, 640, 480), Overlay(heats=(heat,)))
    assert (drawn[:200] == GREY).all()
    assert has_color(drawn[200:], (255, 255, 255))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_colors_change_at_the_threshold(threshold: float) -> None:
    colors, opacity = colors_of(threshold)
    last = int(np.floor(threshold * 255))
    for level in range(256):
        red, _, blue = (int(value) for value in colors[level])
        assert (blue > red) == (level <= last)
    assert (np.diff(opacity) >= 0).all()


def test_jpeg_shows_the_drawing() -> None:
    drawn = draw(plain(GREY, 640, 480), Overlay(verdict="pass", lines=("good 0.99",)))
    decoded = cv2.imdecode(np.frombuffer(to_jpeg(drawn), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert decoded is not None
    assert np.abs(decoded.astype(int) - drawn).mean() < 2

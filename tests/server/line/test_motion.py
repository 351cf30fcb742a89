"""The trigger by motion: one for each movement that settles, none for what is no movement."""

import itertools

import numpy as np
import pytest
from images import encode, plain

from server.line.cameras.motion import GRID, MotionDetector, grey_picture

THRESHOLD, SETTLE_S, PERIOD_S = 0.02, 0.4, 0.2


class Scene:
    """A grey belt on which a bright part of 16 x 16 cells moves, with noise."""

    def __init__(self) -> None:
        noise = np.random.default_rng(1).normal(0, 3, (20, GRID, GRID)).astype(np.float32)
        self._noise = itertools.cycle(noise)
        self._detector = MotionDetector(THRESHOLD, SETTLE_S)
        self._now = 100.0
        self.light = 90.0

    def frame(self, x: int | None) -> bool:
        """Whether a movement has settled with a frame that shows the part at `x`, or no part."""
        picture = next(self._noise) + self.light
        if x is not None:
            picture[24:40, x : x + 16] += 100
        self._now += PERIOD_S
        return self._detector.look(picture.clip(0, 255).astype(np.uint8), self._now)


def test_each_of_1000_movements_is_one_trigger() -> None:
    """The part comes in, rests for a while, and leaves with the next one coming in."""
    scene, random = Scene(), np.random.default_rng(2)
    assert not any(scene.frame(None) for _ in range(5))
    for _ in range(1000):
        place, speed = int(random.integers(8, 40)), int(random.integers(3, 8))
        moving = [scene.frame(x) for x in range(0, place, speed)]
        resting = [scene.frame(place) for _ in range(int(random.integers(4, 12)))]
        assert (sum(moving), sum(resting)) == (0, 1)


def test_movement_without_rest_is_no_trigger() -> None:
    scene = Scene()
    assert not any(scene.frame(x) for x in (0, 8, 16, 24) * 50)


def test_slow_movement_adds_up_to_one_trigger() -> None:
    """Two pictures in a row do not differ by more than the threshold."""
    scene = Scene()
    scene.frame(0)
    assert not any(scene.frame(x) for x in range(0, 48, 2))
    assert sum(scene.frame(48) for _ in range(20)) == 1


def test_daylight_that_changes_is_no_trigger() -> None:
    scene = Scene()
    for light in np.linspace(90, 180, 1500):
        scene.light = light
        assert not scene.frame(20)


@pytest.mark.parametrize("size", [(640, 480), (33, 7), (1, 1)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_region_of_any_picture_is_a_grid(size: tuple[int, int], form: str) -> None:
    data = encode(plain((0, 255, 0), *size), form)
    for region in ((), (0.0, 0.0, 1.0, 1.0), (0.9, 0.9, 0.1, 0.1), (0.5, 0.5, 1e-6, 1e-6)):
        picture = grey_picture(data, region)
        assert picture.shape == (GRID, GRID)
        assert abs(int(picture.mean()) - 150) < 3


def test_region_is_where_it_is_looked_for() -> None:
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[240:, 320:] = 255
    data = encode(pixels, "PNG")
    assert grey_picture(data, (0.5, 0.5, 0.5, 0.5)).mean() > 250
    assert grey_picture(data, (0.0, 0.0, 0.5, 0.5)).mean() < 5


@pytest.mark.parametrize("data", [b"", b"no picture", b"\xff\xd8\xff"])
def test_damaged_picture_is_none(data: bytes) -> None:
    assert grey_picture(data, ()) is None

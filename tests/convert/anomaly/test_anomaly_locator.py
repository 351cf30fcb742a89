"""Painted defects, and the network that learns from them where a defect is."""

from typing import Any

import numpy as np
import pytest

from convert.anomaly import locator
from convert.anomaly.defects import LARGEST_AREA, LEAST_CHANGE, paint
from convert.anomaly.statistics import SIDE, Floats

DEPTH, PAINTED = 8, 40


def frames(count: int, seed: int) -> tuple[Floats, Floats]:
    """Features of frames that differ by a constant as a whole, and that have a defect of a few
    places; the share of it in each place."""
    rng = np.random.default_rng(seed)
    features = rng.normal(0, 0.5, (count, SIDE * SIDE, DEPTH)) + rng.normal(size=(count, 1, DEPTH))
    shares = np.zeros((count, SIDE, SIDE), np.float32)
    for one, share in zip(features, shares, strict=True):
        top, left = (int(each) for each in rng.integers(0, SIDE - 3, 2))
        share[top : top + 3, left : left + 3] = 1
        one[share.reshape(-1) > 0, :2] += 2
    return np.asarray(features, np.float32), shares


@pytest.fixture(scope="module")
def learned(tf: Any) -> locator.Locator:
    return locator.learn(*frames(200, 1))


def test_locator_scores_the_defect_above_the_rest(learned: locator.Locator) -> None:
    """The distance is the same all over: what the network learned decides alone."""
    features, shares = frames(20, 2)
    alike = np.full(shares.shape, 2.0, np.float32)
    maps = locator.calibrated(learned, features, alike + shares).maps(features, alike)

    highest = [np.unravel_index(one.argmax(), one.shape) for one in maps]
    assert all(share[place] == 1 for share, place in zip(shares, highest, strict=True))


def test_calibrated_evidence_varies_by_its_influence(learned: locator.Locator) -> None:
    rng = np.random.default_rng(0)
    good = rng.normal(0, 0.5, (100, SIDE * SIDE, DEPTH)).astype(np.float32)
    distances = rng.lognormal(1, 0.2, (100, SIDE, SIDE)).astype(np.float32)
    fitted = locator.calibrated(learned, good, distances)

    evidence = fitted.evidence(good)
    assert abs(float(evidence.mean())) < 0.01
    assert abs(float(evidence.std()) - 0.2 * locator.INFLUENCE) < 0.01


def test_painted_frame_differs_where_it_says() -> None:
    rng = np.random.default_rng(0)
    frame = np.full((224, 224, 3), 120, np.uint8)
    other = rng.integers(0, 255, frame.shape).astype(np.uint8)
    covered = 0
    for _ in range(PAINTED):
        painted, area = paint(frame, other, rng)
        change = np.abs(painted.astype(float) - frame).mean(axis=2)
        assert painted.dtype == np.uint8
        assert painted.shape == frame.shape
        assert area.mean() <= 2 * LARGEST_AREA
        if area.any():
            covered += 1
            assert change[area].mean() >= LEAST_CHANGE / 2
            assert change[area].mean() > 5 * change[~area].mean()
    assert covered > PAINTED / 2


def test_painting_is_the_same_for_the_same_seed() -> None:
    frame = np.full((224, 224, 3), 120, np.uint8)
    once, again = (paint(frame, frame // 2, np.random.default_rng(5)) for _ in range(2))

    np.testing.assert_array_equal(once[0], again[0])
    np.testing.assert_array_equal(once[1], again[1])

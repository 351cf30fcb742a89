"""The statistics of good frames: what is usual is near, what is not is far, and where it is."""

import numpy as np
import pytest

from convert.anomaly import scoring, statistics
from convert.anomaly.scoring import FINE_CHANNELS, FINE_SIDE, Features
from convert.anomaly.statistics import SIDE, Floats

PLACES, DEPTH = SIDE * SIDE, 8


def good_features(count: int, seed: int) -> Floats:
    """Frames that differ as a whole by three hidden quantities, and at each place by noise."""
    rng = np.random.default_rng(seed)
    pattern = np.random.default_rng(99).normal(size=(3, PLACES, DEPTH))
    hidden = rng.normal(size=(count, 3))
    noise = rng.normal(0, 0.2, (count, PLACES, DEPTH))
    return np.asarray(np.tensordot(hidden, pattern, 1) + noise, np.float32)


def fine_features(count: int, seed: int) -> Floats:
    """Frames whose channels go together, alike at all places."""
    mixing = np.random.default_rng(99).normal(size=(FINE_CHANNELS, FINE_CHANNELS))
    values = np.random.default_rng(seed).normal(size=(count, FINE_SIDE**2, FINE_CHANNELS))
    return np.asarray(values @ mixing, np.float32)


def both(count: int, seed: int) -> Features:
    return Features(good_features(count, seed), fine_features(count, seed))


def highest(fitted: statistics.Statistics, features: Floats) -> Floats:
    return np.asarray(fitted.maps(features).max(axis=(1, 2)), np.float32)


def test_defect_is_far_and_found_at_its_place() -> None:
    fitted = statistics.fit(good_features(80, 1))
    good, bad = good_features(20, 2), good_features(20, 2)
    bad[:, 5 * SIDE + 9] += 1.5

    assert highest(fitted, bad).min() > highest(fitted, good).max()
    for one in fitted.maps(bad):
        assert np.unravel_index(one.argmax(), one.shape) == (5, 9)


def test_change_of_a_whole_frame_is_usual() -> None:
    """A frame is judged given its code: twice the usual change of light is no defect."""
    fitted = statistics.fit(good_features(80, 1))
    pattern = np.random.default_rng(99).normal(size=(3, PLACES, DEPTH))
    noise = np.random.default_rng(3).normal(0, 0.2, (1, PLACES, DEPTH))
    changed = np.asarray(2 * pattern[:1] + noise, np.float32)

    assert highest(fitted, changed)[0] < 1.3 * highest(fitted, good_features(20, 2)).max()


def test_held_out_scores_are_those_of_new_frames() -> None:
    """In-sample scores would be lower, and the threshold made of them too low."""
    frames = both(80, 1)
    held = scoring.held_out(frames).scores
    fresh = scoring.fit(frames).scores(both(80, 2))

    assert np.median(held) == pytest.approx(np.median(fresh), rel=0.1)


def test_fit_is_the_same_for_the_same_frames() -> None:
    frames = good_features(30, 1)
    once, again = statistics.fit(frames), statistics.fit(frames)

    np.testing.assert_array_equal(once.whitening, again.whitening)
    np.testing.assert_array_equal(once.decoder, again.decoder)


def test_fit_bears_frames_that_are_all_alike() -> None:
    frames = np.ones((8, PLACES, DEPTH), np.float32)
    fitted = statistics.fit(frames)

    assert np.isfinite(highest(fitted, frames + 0.5)).all()
    assert highest(fitted, frames + 0.5)[0] > highest(fitted, frames)[0]


def test_texture_finds_a_few_fine_places_from_ten_frames() -> None:
    """All places share one Gaussian, so that ten frames are thousands of examples."""
    usual = scoring.fit(both(10, 1))
    good, bad = both(20, 2), both(20, 2)
    rng = np.random.default_rng(0)
    bad.fine[:, 40:42] = rng.normal(0, 6, (20, 2, FINE_CHANNELS))

    assert usual.texture.highest(bad.fine).min() > usual.texture.highest(good.fine).max()
    assert (usual.scores(bad) > usual.scores(good)).all()


def test_texture_bears_frames_that_are_all_alike() -> None:
    alike = Features(
        np.ones((8, PLACES, DEPTH), np.float32),
        np.ones((8, FINE_SIDE**2, FINE_CHANNELS), np.float32),
    )
    usual = scoring.fit(alike)
    changed = Features(alike.coarse + 0.5, alike.fine + 0.5)

    assert np.isfinite(usual.scores(changed)).all()
    assert usual.scores(changed)[0] > usual.scores(alike)[0]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_threshold_rejects_the_stated_share_of_good(share: float) -> None:
    rng = np.random.default_rng(0)
    rejected = [
        (rng.lognormal(0, 0.3, 1000) > statistics.threshold_of(rng.lognormal(0, 0.3, 400), share))
        for _ in range(50)
    ]
    assert np.mean(rejected) == pytest.approx(share, rel=0.25)


def test_threshold_of_few_frames_is_above_them_all() -> None:
    scores = np.array([1.0, 1.1, 0.9, 1.2], np.float32)
    assert statistics.threshold_of(scores, 0.01) >= scores.max()

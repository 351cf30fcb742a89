"""What is expected of a frame, learnt from those before it."""

import pytest

from server.recognition.admission import ESTIMATE_MAX_AGE_S, NEWEST_WEIGHT, ServiceTimes


def test_one_slow_frame_does_not_raise_the_estimate() -> None:
    """The machine stood still in the midst of it, say."""
    times = ServiceTimes()
    times.learn("a", 0.02, 10.0)
    times.learn("a", 3.02, 13.1)
    assert times.mean == pytest.approx(0.02 + 3.0 * NEWEST_WEIGHT)
    assert times.likely("a", 13.1) == pytest.approx(times.mean)


def test_after_a_pause_the_first_frame_counts_alone() -> None:
    times = ServiceTimes()
    times.learn("a", 0.02, 10.0)
    times.learn("a", 0.5, 10.5 + ESTIMATE_MAX_AGE_S)
    assert times.mean == 0.5


def test_frames_that_all_take_long_are_averaged() -> None:
    """Frames that all take longer than an estimate is believed are averaged."""
    times = ServiceTimes()
    for number in range(3):
        times.learn(
            "a", 2 * ESTIMATE_MAX_AGE_S + 0.01 * number, 10.0 + 2.02 * ESTIMATE_MAX_AGE_S * number
        )
    assert 2 * ESTIMATE_MAX_AGE_S < times.mean < 2 * ESTIMATE_MAX_AGE_S + 0.01

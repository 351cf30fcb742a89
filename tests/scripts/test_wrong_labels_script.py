"""The measurement of how many wrong labels are found."""

import numpy as np
import wrong_labels


def test_planted_labels_are_counted_where_they_are_listed() -> None:
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(3), 60).astype(np.intp)
    features = np.eye(3, 16)[labels] + rng.normal(0, 0.2, (len(labels), 16))
    changed, planted = wrong_labels.planted_labels(labels, 3, 10, seed=1)
    assert planted == set(np.flatnonzero(changed != labels).tolist())
    assert len(planted) == 10
    first, every = wrong_labels.count_found(features.astype(np.float32), changed, 3, planted, 20)
    assert 9 <= first <= every <= 10

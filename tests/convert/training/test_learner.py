"""One step of a training: what Keras would compute, prepared once."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convert.training.learner import AVERAGE_MOMENTUM, Learner
from convert.training.network import cross_entropy

RATE, CLASSES = 1e-2, 3
Values = NDArray[np.float32]


@pytest.fixture
def model(tf: Any) -> Any:
    """A `keras.Model` of frames of 4 x 4 pixels whose statistics and weights learn."""
    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    taken = values = layers.Input((4, 4, 3))
    inner = [layers.Conv2D(5, 3), layers.BatchNormalization(), layers.GlobalAveragePooling2D()]
    for layer in (*inner, layers.Dense(CLASSES)):
        values = layer(values)
    return tf.keras.Model(taken, values)


def batches() -> list[tuple[Values, Values, Values]]:
    """Frames, targets and weights of six steps, the last of them on fewer frames."""
    rng = np.random.default_rng(0)
    return [
        (
            rng.normal(size=(n, 4, 4, 3)).astype(np.float32),
            np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=n)],
            rng.uniform(0.5, 2, n).astype(np.float32),
        )
        for n in (4, 4, 4, 4, 4, 3)
    ]


def test_steps_are_those_of_keras(tf: Any, model: Any) -> None:
    twin = tf.keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    learner = Learner(model, cross_entropy, (CLASSES,))
    adam = tf.keras.optimizers.Adam(
        RATE, use_ema=True, ema_momentum=AVERAGE_MOMENTUM, ema_overwrite_frequency=None
    )
    twin.compile(adam, tf.keras.losses.CategoricalCrossentropy(from_logits=True))
    losses = [learner.learn(*batch, RATE) for batch in batches()]
    np.testing.assert_allclose(losses, [twin.train_on_batch(*b) for b in batches()], rtol=1e-5)
    for ours, theirs in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    learner.optimizer.take_average()
    adam.finalize_variable_values(twin.trainable_variables)
    for ours, theirs in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert learner._learn.experimental_get_tracing_count() == 1


def test_a_state_goes_on_and_a_reset_begins_anew(model: Any) -> None:
    learner = Learner(model, cross_entropy, (CLASSES,))
    begun = model.get_weights()
    for batch in batches()[:3]:
        learner.learn(*batch, RATE)
    state, between = learner.optimizer.state, model.get_weights()
    learner.learn(*batches()[3], RATE)
    whole = model.get_weights()
    learner.reset()
    for ours, first in zip(model.get_weights(), begun, strict=True):
        np.testing.assert_array_equal(ours, first)
    learner.optimizer.restore(state)
    model.set_weights(between)
    learner.learn(*batches()[3], RATE)
    for ours, once in zip(model.get_weights(), whole, strict=True):
        np.testing.assert_array_equal(ours, once)


def test_features_are_what_the_last_layer_takes(model: Any) -> None:
    learner = Learner(model, cross_entropy, (CLASSES,))
    kernel, bias = model.layers[-1].get_weights()
    for frames, *_ in (batches()[0], batches()[-1]):
        features, logits = learner.forward(frames)
        np.testing.assert_allclose(features @ kernel + bias, logits, rtol=1e-4, atol=1e-6)
    assert learner._forward.experimental_get_tracing_count() == 1

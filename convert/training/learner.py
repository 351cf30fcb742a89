"""Computes a training's steps, by functions that TensorFlow prepares once for batches of any size.

Keras prepares its functions anew for a last batch that is smaller and for each network, and its
Adam treats MobileNetV2's 158 weights one by one, which takes longer to prepare than the gradient.
That is most of the time of a training on few frames.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.terminal import suppress_native_output, tensorflow

# What is validated and kept is a moving average of the weights over some fifty steps: single steps
# of so few frames swing by more than an epoch gains (Polyak and Juditsky, 1992).
AVERAGE_MOMENTUM = 0.98
# Adam's, as Keras has them.
_FIRST, _SECOND, _LEAST = 0.9, 0.999, 1e-7

# targets [n, ...] and logits [n, classes] -> the loss of each frame [n]
Loss = Callable[[Any, Any], Any]


class Learner:
    """A network that learns, and what it computes.

    model: a `keras.Model` of [batch, height, width, channels] to logits [batch, classes], whose
    last layer takes [batch, features]. Which of its layers learn is settled before. target: shape
    of one frame's targets. Several trainings may use it one after the other, each from `reset` on.
    """

    def __init__(self, model: Any, loss: Loss, target: Sequence[int]) -> None:
        self.model = model
        self._loss, self._target = loss, tuple(target)
        self._learning = [variable.value for variable in model.trainable_variables]
        self._begun = model.get_weights()
        self.optimizer = AveragedAdam(self._learning)

    def reset(self) -> None:
        """Set the model's weights to those that it had at first, and forget all steps."""
        self.model.set_weights(self._begun)
        self.optimizer.reset()

    def forward(
        self, batch: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what the last layer takes, [n, features], and the logits, [n, classes]."""
        features, logits = self._forward(batch)
        return np.asarray(features), np.asarray(logits)

    def learn(
        self,
        batch: NDArray[np.float32],
        targets: NDArray[np.float32],
        weights: NDArray[np.float32],
        rate: float,
    ) -> float:
        """Take one step of Adam at `rate` and return the mean loss of the frames as they weigh.

        weights: of each frame, [n].
        """
        return float(self._learn(batch, targets, weights, rate))

    @cached_property
    def _forward(self) -> Any:
        tf = tensorflow()
        with suppress_native_output():
            both = tf.keras.Model(
                self.model.input, [self.model.layers[-2].output, self.model.output]
            )
        return tf.function(
            lambda batch: both(batch, training=False),
            input_signature=[self._signature()],
            autograph=False,
        )

    @cached_property
    def _learn(self) -> Any:
        tf = tensorflow()

        def learn(batch: Any, targets: Any, weights: Any, rate: Any) -> Any:
            with tf.GradientTape() as tape:
                losses = self._loss(targets, self.model(batch, training=True)) * weights
                mean = tf.reduce_sum(losses) / tf.cast(tf.size(losses), tf.float32)
            self.optimizer.apply(tape.gradient(mean, self._learning), rate)
            return mean

        signature = [
            self._signature(),
            tf.TensorSpec((None, *self._target)),
            tf.TensorSpec((None,)),
            tf.TensorSpec(()),
        ]
        # XLA on a CPU computes the gradient of a depthwise convolution many times slower.
        return tf.function(learn, input_signature=signature, autograph=False, jit_compile=False)

    def _signature(self) -> Any:
        return tensorflow().TensorSpec((None, *self.model.input_shape[1:]))


class AveragedAdam:
    """Adam (Kingma and Ba, 2015, arXiv:1412.6980) on all variables as one vector, with a moving
    average of their values. It computes what Keras's does.

    variables: tf.Variable of float32. state: what continues it: number of steps, int64 [], then
    the average and both moments, float32 [values].
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        tf = tensorflow()
        self._variables = list(variables)
        self._sizes = [int(np.prod(variable.shape)) for variable in self._variables]
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._average, self._first, self._second = (
            tf.Variable(tf.zeros(sum(self._sizes)), trainable=False) for _ in range(3)
        )

    @property
    def state(self) -> list[NDArray[Any]]:
        return [variable.numpy() for variable in self._stored]

    def restore(self, state: Sequence[NDArray[Any]]) -> None:
        """Go on from a `state`."""
        for variable, value in zip(self._stored, state, strict=True):
            variable.assign(value)

    def reset(self) -> None:
        """Forget all steps."""
        for variable in self._stored:
            variable.assign(np.zeros(variable.shape, variable.dtype.as_numpy_dtype))

    def apply(self, gradients: Sequence[Any], rate: Any) -> None:
        """Take a step, within a TensorFlow function. gradients: one for each variable."""
        tf = tensorflow()
        gradient, values = _flat(tf, gradients), _flat(tf, self._variables)
        number = tf.cast(self._step + 1, tf.float32)
        rate = rate * tf.sqrt(1 - tf.pow(_SECOND, number)) / (1 - tf.pow(_FIRST, number))
        first = self._first.assign_add((gradient - self._first) * (1 - _FIRST))
        second = self._second.assign_add((tf.square(gradient) - self._second) * (1 - _SECOND))
        values -= first * rate / (tf.sqrt(second) + _LEAST)
        momentum = AVERAGE_MOMENTUM * tf.cast(self._step > 0, tf.float32)
        self._average.assign(momentum * self._average + (1 - momentum) * values)
        self._give(tf, values)
        self._step.assign_add(1)

    def take_average(self) -> None:
        """Set the variables to the average of their values after each step."""
        self._give(tensorflow(), self._average)

    @property
    def _stored(self) -> tuple[Any, ...]:
        return self._step, self._average, self._first, self._second

    def _give(self, tf: Any, values: Any) -> None:
        parts = tf.split(values, self._sizes)
        for variable, part in zip(self._variables, parts, strict=True):
            variable.assign(tf.reshape(part, variable.shape))


def _flat(tf: Any, values: Sequence[Any]) -> Any:
    return tf.concat([tf.reshape(value, [-1]) for value in values], 0)

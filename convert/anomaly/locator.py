"""The part of an anomaly model that says where a defect is: a small network that has learned from
painted defects, whose word counts somewhat more than the distance from good.

The distances alone say that a frame is unlike the good ones, and are then high all over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from convert.anomaly.statistics import BLUR, SIDE, Floats
from convert.terminal import tensorflow

# Of the three convolutions: places along a side that each sees, and its channels.
FIRST, SECOND, THIRD = (1, 64), (3, 32), (5, 16)
EPOCHS, BATCH, RATE = 10, 16, 3e-3
# Of a channel's deviation, relative to the mean of all.
LEAST_DEVIATION = 1e-2
LEAST_DISTANCE = 1e-9
# Of the network's answers over those of the distances, in deviations over good frames.
INFLUENCE = 1.3
# So often is the map smoothed.
BLURS = 2


@dataclass(frozen=True, slots=True)
class Locator:
    """The network's weights. features: less the mean of good ones at each place."""

    weights: tuple[Floats, ...]

    def evidence(self, features: Floats) -> Floats:
        """The network's answers: [frames, places, depth] -> [frames, SIDE, SIDE]."""
        grid = features.reshape(len(features), SIDE, SIDE, -1)
        parts = [logits(grid[i : i + 64], self.weights) for i in range(0, len(grid), 64)]
        return np.concatenate([np.asarray(part)[..., 0] for part in parts])

    def maps(self, features: Floats, distances: Floats) -> Floats:
        """Smoothed distances, each times e to the network's answer: [frames, SIDE, SIDE]."""
        logs = np.log(np.maximum(distances, LEAST_DISTANCE)) + self.evidence(features)
        for _ in range(BLURS):
            logs = np.stack([cv2.sepFilter2D(one, -1, BLUR, BLUR) for one in logs])
        return np.exp(logs)


def logits(features: Any, weights: Sequence[Any]) -> Any:
    """The network in TensorFlow: [frames, SIDE, SIDE, depth] -> [frames, SIDE, SIDE, 1].

    A place is judged by its neighbours and by the mean of its frame: what is usual in a frame is no
    defect of it.
    """
    tf = tensorflow()
    first, whole, second, third, last, *biases = weights
    mean = tf.reduce_mean(features, axis=[1, 2], keepdims=True)
    hidden = tf.nn.conv2d(features, first, 1, "SAME") + tf.nn.conv2d(mean, whole, 1, "SAME")
    hidden = tf.nn.relu(hidden + biases[0])
    hidden = tf.nn.relu(tf.nn.conv2d(hidden, second, 1, "SAME") + biases[1])
    hidden = tf.nn.relu(tf.nn.conv2d(hidden, third, 1, "SAME") + biases[2])
    return tf.nn.conv2d(hidden, last, 1, "SAME") + biases[3]


def learn(features: Floats, shares: Floats, seed: int = 0) -> Locator:
    """Learn from frames with painted defects.

    features: [frames, places, depth], less the mean of good ones at each place. shares: of each
    place that is painted, 0..1, [frames, SIDE, SIDE]. The locator is not calibrated.
    """
    tf = tensorflow()
    rng = np.random.default_rng(seed)
    deviation = features.std(axis=(0, 1))
    deviation = np.maximum(deviation, LEAST_DEVIATION * max(float(deviation.mean()), 1e-6))
    standard = (features / deviation).reshape(len(features), SIDE, SIDE, -1)
    variables = [tf.Variable(each) for each in _initial(standard.shape[3], rng)]
    steps = EPOCHS * -(-len(standard) // BATCH)
    rate = tf.keras.optimizers.schedules.CosineDecay(RATE, steps)
    optimizer = tf.keras.optimizers.AdamW(rate, weight_decay=1e-4)
    # Otherwise the first step makes its variables, and TensorFlow prepares the step twice.
    optimizer.build(variables)

    # Prepared once, also for a last batch that is smaller, and without AutoGraph, which would
    # rewrite functions that branch on no tensor.
    sides = (None, SIDE, SIDE)
    signature = [tf.TensorSpec((*sides, standard.shape[3])), tf.TensorSpec(sides)]

    @tf.function(input_signature=signature, autograph=False)
    def step(grid: Any, truth: Any) -> None:
        with tf.GradientTape() as tape:
            answers = logits(grid, variables)[..., 0]
            losses = tf.nn.sigmoid_cross_entropy_with_logits(truth, answers)
            loss = tf.reduce_mean(losses)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    for _ in range(EPOCHS):
        order = rng.permutation(len(standard))
        for at in range(0, len(order), BATCH):
            chosen = order[at : at + BATCH]
            step(standard[chosen], shares[chosen])
    first, whole, *others = (variable.numpy() for variable in variables)
    return Locator((first / deviation[:, None], whole / deviation[:, None], *others))


def calibrated(locator: Locator, features: Floats, distances: Floats) -> Locator:
    """Give the network's answers INFLUENCE times the distances' say, and 0 as their mean.

    Both vary over good frames; in deviations of that they are on one scale. features, distances:
    of good frames from which neither the network nor the statistics have learned; smoothed,
    [frames, SIDE, SIDE].
    """
    evidence = locator.evidence(features)
    spread = float(np.log(np.maximum(distances, LEAST_DISTANCE)).std())
    influence = np.float32(INFLUENCE * spread / max(float(evidence.std()), 1e-6))
    *others, last, first_bias, second_bias, third_bias, bias = locator.weights
    bias = influence * (bias - evidence.mean())
    weights = (*others, influence * last, first_bias, second_bias, third_bias, bias)
    return Locator(tuple(np.asarray(each, np.float32) for each in weights))


def shares_of(masks: NDArray[np.bool_]) -> Floats:
    """Masks [frames, side, side] as the share of each place: [frames, SIDE, SIDE]."""
    cell = masks.shape[1] // SIDE
    grid = masks.reshape(len(masks), SIDE, cell, SIDE, cell)
    return np.asarray(grid.mean(axis=(2, 4)), np.float32)


def _initial(depth: int, rng: np.random.Generator) -> list[Floats]:
    """Weights as He et al. start them (2015, arXiv:1502.01852), and biases of 0."""
    shapes = [(1, 1, depth, FIRST[1])] * 2
    for (_, before), (seen, channels) in ((FIRST, SECOND), (SECOND, THIRD), (THIRD, (1, 1))):
        shapes.append((seen, seen, before, channels))
    kernels = [
        rng.normal(0, np.sqrt(2 / np.prod(shape[:3])), shape).astype(np.float32) for shape in shapes
    ]
    return kernels + [np.zeros(shape[3], np.float32) for shape in shapes[1:]]

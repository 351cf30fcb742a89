"""A site's part of the training: from the weights that came to those that go back.

Frames, their pixels and their features stay in the site's own folder of work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.data.dataset import Dataset, LabelledFrame
from convert.errors import ConvertError
from convert.federation.plans import Course, SitePlan
from convert.federation.weights import Arrays, Scale, Vector, moments, pack, unpack
from convert.sources import imagenet
from convert.training import network
from convert.training.inputs import Augmentation, augment, labels_of, load_pixels, to_batch
from convert.training.learner import Learner
from convert.training.train import HEAD_COPIES, HEAD_RATE
from server.recognition.frame import Limits

FEATURES = "features.npz"
ClassWeights = NDArray[np.float32]
# Adam's, as Keras has them.
_FIRST, _SECOND, _LEAST = 0.9, 0.999, 1e-7


@dataclass(frozen=True, slots=True)
class Judged:
    """Counts of a site's held-back frames: those that the weights name right, and all."""

    right: int
    frames: int


class SiteTraining:
    """The frames of one site, decoded once. classes: of the agreement, in output order."""

    def __init__(self, plan: SitePlan, course: Course, classes: Sequence[str], work: Path) -> None:
        self.course, self.classes, self.work = course, tuple(classes), work
        self.recipe = imagenet.recipe(course.size)
        trained, held = dataset(plan.trained, classes), dataset(plan.held, classes)
        self.labels, self.held_labels = labels_of(trained), labels_of(held)
        self.pixels = load_pixels(trained, self.recipe, Limits(), work / "trained.npy")
        self.held = load_pixels(held, self.recipe, Limits(), work / "held.npy")

    def prepare(self, weights: Vector) -> NDArray[np.float64]:
        """Compute what the head learns from: the pooled features of the frames and of varied copies
        of them, kept in this site's folder; return their `moments`."""
        learner = self._learner(weights)
        passes = []
        for number in range(1 + HEAD_COPIES):
            rng = np.random.default_rng([self.course.seed, number])
            pixels = self._augmented(self.pixels, rng) if number else self.pixels
            passes.append(self._forward(learner, pixels)[0])
        trained = np.concatenate(passes)
        np.savez(self.work / FEATURES, trained=trained, held=self._forward(learner, self.held)[0])
        return moments(trained)

    def train_head(
        self, head: Vector, scale: Scale, class_weights: ClassWeights, number: int
    ) -> tuple[Vector, Judged]:
        """Return kernel [features, classes] and bias [classes] for scaled features, packed, after
        round `number`."""
        with np.load(self.work / FEATURES) as stored:
            trained, held = scale.apply(stored["trained"]), scale.apply(stored["held"])
        classes = len(self.classes)
        kernel, bias = unpack(head, [(trained.shape[1], classes), (classes,)])
        judged = self._judged(held @ kernel + bias)
        rng = np.random.default_rng([self.course.seed, number])
        labels = np.tile(self.labels, len(trained) // len(self.labels))
        fitted = fit_head([kernel, bias], trained, labels, class_weights, self.course, rng)
        return pack(fitted), judged

    def tune(
        self, weights: Vector, class_weights: ClassWeights, number: int, rate: float
    ) -> tuple[Vector, Judged]:
        """Return all arrays of the model, packed, after round `number`, at Adam's `rate`."""
        learner = self._learner(weights)
        judged = self._judged(self._forward(learner, self.held)[1])
        one_hot = np.eye(len(self.classes), dtype=np.float32)
        rng = np.random.default_rng([self.course.seed, number])
        for _ in range(self.course.epochs):
            order = rng.permutation(len(self.labels))
            for start in range(0, len(order), self.course.batch):
                rows = order[start : start + self.course.batch]
                labels = self.labels[rows]
                batch = to_batch(self._augmented(self.pixels[rows], rng), self.recipe)
                learner.learn(batch, one_hot[labels], class_weights[labels], rate)
        return pack(learner.model.get_weights()), judged

    def network(self) -> Any:
        """Make the `keras.Model` that all sites train, with random weights."""
        return network.build(len(self.classes), self.course.alpha, self.course.size, "none")

    @cached_property
    def _prepared(self) -> Learner:
        model = self.network()
        network.freeze(model, pretrained=self.course.weights in network.PRETRAINED)
        return Learner(model, network.cross_entropy, (len(self.classes),))

    def _learner(self, weights: Vector) -> Learner:
        """Return a learner that begins with these weights."""
        learner = self._prepared
        learner.reset()
        model = learner.model
        model.set_weights(unpack(weights, [tuple(v.shape) for v in model.weights]))
        return learner

    def _augmented(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        bounds = Augmentation(flips=self.course.flips)
        return np.stack([augment(p, rng, bounds) for p in pixels])

    def _forward(
        self, learner: Learner, pixels: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what the head takes, [n, features], and the logits, [n, classes]."""
        outputs = [
            learner.forward(to_batch(pixels[start : start + 16], self.recipe))
            for start in range(0, len(pixels), 16)
        ]
        if not outputs:
            sides = learner.model.layers[-2].output, learner.model.output
            features, logits = (np.zeros((0, side.shape[1]), np.float32) for side in sides)
            return features, logits
        features, logits = (np.concatenate(side) for side in zip(*outputs, strict=True))
        return features, logits

    def _judged(self, logits: NDArray[np.float32]) -> Judged:
        right = int((logits.argmax(axis=1) == self.held_labels).sum()) if len(logits) else 0
        return Judged(right, len(self.held_labels))


def dataset(frames: Sequence[tuple[Path, str]], classes: Sequence[str]) -> Dataset:
    """Return frames and names of their classes as a data set of `classes`.

    Raises ConvertError for a class that the server did not agree to.
    """
    places = {name: place for place, name in enumerate(classes)}
    if unknown := sorted({name for _, name in frames} - set(places)):
        raise ConvertError(f"the server's classes lack {', '.join(unknown)}, which this site has")
    return Dataset(
        tuple(classes), tuple(LabelledFrame(path, places[name]) for path, name in frames)
    )


def fit_head(
    head: Arrays,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_weights: ClassWeights,
    course: Course,
    rng: np.random.Generator,
) -> Arrays:
    """Return kernel and bias after `course.head_epochs` passes of Adam over the features, by the
    weighted cross entropy. In NumPy, since one layer takes less time than TensorFlow's start.

    head: kernel float32 [features, classes] and bias float32 [classes].
    """
    values = np.concatenate([head[0], head[1][None]]).astype(np.float32)
    inputs = np.concatenate([features, np.ones((len(features), 1), np.float32)], axis=1)
    one_hot = np.eye(values.shape[1], dtype=np.float32)
    mean, square = np.zeros_like(values), np.zeros_like(values)
    step = 0
    for _ in range(course.head_epochs):
        order = rng.permutation(len(labels))
        for start in range(0, len(order), course.batch):
            rows = order[start : start + course.batch]
            logits = inputs[rows] @ values
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            wrong = powers / powers.sum(axis=1, keepdims=True) - one_hot[labels[rows]]
            gradient = inputs[rows].T @ (wrong * class_weights[labels[rows], None]) / len(rows)
            step += 1
            mean = _FIRST * mean + (1 - _FIRST) * gradient
            square = _SECOND * square + (1 - _SECOND) * gradient**2
            scale = np.sqrt(square / (1 - _SECOND**step)) + _LEAST
            values -= np.float32(HEAD_RATE / (1 - _FIRST**step)) * mean / scale
    return [values[:-1].astype(np.float32), values[-1].astype(np.float32)]

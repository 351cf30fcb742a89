"""From labelled frames to a trained Keras model: the head first, then the layers under it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from convert.data.dataset import Dataset
from convert.evaluation import metrics
from convert.terminal import Terminal, tensorflow
from convert.training import distill, network
from convert.training.checkpoint import CHECKPOINT, Arrays, Checkpoint
from convert.training.epochs import hits_of_others_choice, judged
from convert.training.inputs import (
    Augmentation,
    augment,
    class_weights,
    labels_of,
    load_pixels,
    mixed,
    to_batch,
)
from convert.training.learner import Learner
from convert.training.light import Light
from convert.training.network import Pruner
from server.recognition import frame
from server.recognition.manifest import Recipe

# Adam's rates. If ImageNet's normalisation is kept, several times the first lose its features in a
# few hundred frames.
KEPT_RATE, RATE, HEAD_RATE = 3e-5, 1e-3, 1e-3
HEAD_EPOCHS, HEAD_PATIENCE = 300, 20
# From so many frames on, normalisation that learns names more parts right that it has not seen.
LEARNING_FRAMES = 150
# Frames a step at least: the statistics of fewer are worth little, and of one frame they hide it.
LEARNING_BATCH = 4
# Epochs without a better one that end a training, unless its normalisation learns: its last ones
# are nearly always the best.
PATIENCE = 6
# Of the loss of the frames that are learned from, which never stops falling.
HEAD_LEAST_GAIN = 2e-3
# Varied copies of each frame that the head learns from beside the frame itself. A head that has
# seen none meets them first in fine-tuning, and its errors then damage the features.
HEAD_COPIES = 2


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a training.

    alpha, size, weights: of `network.build`. epochs: of fine-tuning, at most. patience: epochs
    without a better validation after which it ends, and rate: Adam's highest learning rate; both
    None for what suits weights and normalisation. batch: frames a step. sparsity: share
    of zeros, 0..1, in the pruned kernels. teacher: what `distill.load_teacher` reads, None without
    one. frozen: blocks that stay as they are, and normalisation: both of `network.freeze`.
    smoothing: share of each label, 0..1, that is given to all classes alike: Szegedy et al., 2016
    (arXiv:1512.00567), section 7. mixup: `spread` of `inputs.mixed`, 0 for frames as they are.
    light: of the pictures that the network is shown.
    """

    alpha: float = 1.0
    size: int = 224
    weights: network.Weights = "imagenet"
    epochs: int = 20
    patience: int | None = None
    batch: int = 16
    rate: float | None = None
    seed: int = 0
    sparsity: float = 0.0
    teacher: Path | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    frozen: int = network.FROZEN_BLOCKS
    normalisation: network.Normalisation = "keep"
    smoothing: float = 0.0
    mixup: float = 0.0
    light: Light = "as-is"

    @property
    def pretrained(self) -> bool:
        """Return True if the features are trained already and only the head is missing."""
        return self.weights in network.PRETRAINED

    @property
    def peak_rate(self) -> float:
        """Return Adam's highest learning rate: `rate`, or what suits."""
        return self.rate or (KEPT_RATE if self.keeps else RATE)

    @property
    def keeps(self) -> bool:
        """Return True if ImageNet's normalisation stays as it is."""
        return self.pretrained and self.normalisation == "keep"

    @property
    def idle_epochs(self) -> float:
        """Return after how many epochs without a better one it ends, inf for never: `patience`, or
        what suits."""
        learns = self.pretrained and not self.keeps
        return self.patience or (math.inf if learns else PATIENCE)

    @property
    def first_epoch(self) -> int:
        """Return the first epoch after which the weights can be kept: that of full sparsity, and
        never random weights if there is an epoch."""
        if self.sparsity:
            return math.ceil(self.epochs / 2)
        return 0 if self.pretrained else min(1, self.epochs)


def suited_normalisation(
    frames: int, batch: int, folds: int | None = None
) -> network.Normalisation:
    """Return the normalisation that suits so many frames to train on, `batch` of them a step.

    folds: parts of the frames of which each training holds one back, None if there are none.
    """
    if folds:
        frames = frames * (folds - 1) // folds
    return "learn" if frames >= LEARNING_FRAMES and batch >= LEARNING_BATCH else "keep"


@dataclass(frozen=True, slots=True)
class Frames:
    """A data set in memory: uint8 [n, height, width, channels] and int64 [n]."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


def prepare(classes: int, options: Options) -> Learner:
    """Return the network of a training with its first weights.

    Raises ConvertError for weights that can't be had.
    """
    tf = tensorflow()
    tf.keras.utils.set_random_seed(options.seed)
    tf.config.experimental.enable_op_determinism()
    model = network.build(classes, options.alpha, options.size, options.weights, options.light)
    network.freeze(
        model,
        pretrained=options.pretrained,
        blocks=options.frozen,
        normalisation=options.normalisation,
    )
    if options.teacher:
        return Learner(model, distill.loss(), (2, classes))
    return Learner(model, network.cross_entropy, (classes,))


# frames, targets and weights, as `Learner.learn` takes them
Batch = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
# epoch, top-1 (0..1) and loss of the validation
OnEpoch = Callable[[int, float, float], object]


class Training:
    """One training in the folder `work`, which keeps its checkpoint and its decoded frames.

    validation: chooses when the head is trained and the epoch that is kept; None keeps the last.
    chooses: False if it is only judged, after every epoch, and has no influence on the weights of
    any. frames: those of `train` and `validation`, if they are decoded already. on_epoch: called
    after each epoch that is stored, from 0 on, with the epoch, and the top-1 (0..1) and loss of the
    validation, nan without one; an exception that it raises ends `run`, and a later `run` goes on
    after that epoch. stop_after: the last epoch of a longer schedule that is trained.
    learner: of `prepare` for as many classes and the same options; trainings may share it one after
    the other, since TensorFlow takes seconds to prepare a network. What one of them returns then
    holds until the next begins.

    fair_top1: after it, the `metrics.rate` of validation frames that are named right if each is
    judged by the epoch that the other half of them chooses; None before, and for a single frame.

    Two trainings of the same frames, options and machine end in the same weights, killed in
    between or not. Raises ConvertError for weights or a teacher that can't be had.
    """

    def __init__(
        self,
        train: Dataset,
        validation: Dataset | None,
        recipe: Recipe,
        options: Options,
        work: Path,
        terminal: Terminal,
        threads: int,
        *,
        frames: tuple[Frames, Frames | None] | None = None,
        on_epoch: OnEpoch = lambda *_: None,
        stop_after: int | None = None,
        chooses: bool = True,
        learner: Learner | None = None,
    ) -> None:
        self.chooses = chooses
        self.options, self.recipe, self.work, self.terminal = options, recipe, work, terminal
        self.fair_top1: dict[str, Any] | None = None
        self.classes = len(train.classes)
        self.weights = class_weights(train.counts())
        self.learner = learner or prepare(self.classes, options)
        self.model = self.learner.model
        self.teacher = (
            distill.load_teacher(options.teacher, recipe, train.classes, threads)
            if options.teacher
            else None
        )
        self.validation: Frames | None = None
        if frames:
            self.train, self.validation = frames
        else:
            self.train = self._load(train, "training")
            if validation is not None:
                self.validation = self._load(validation, "validation")
        self.on_epoch = on_epoch
        self.last_epoch = options.epochs if stop_after is None else stop_after
        self.steps = math.ceil(len(self.train.labels) / options.batch)
        total = self.steps * options.epochs
        self.pruner = Pruner(self.model, options.sparsity, total) if options.sparsity else None
        self._rate = tensorflow().keras.optimizers.schedules.CosineDecay(
            options.peak_rate / 10,
            max(1, total - self.steps),
            warmup_target=options.peak_rate,
            warmup_steps=self.steps,
        )

    def run(self) -> Any:
        """Trains, or goes on training, and returns a `keras.Model` that answers probabilities,
        with the weights of the epoch that named most validation frames right, and among equal ones
        of that with the lowest loss."""
        state = self.fit()
        if self.validation is not None and state.epoch and not state.best_epoch:
            self.terminal.say("no epoch was better than the head alone, which is kept")
        self._tell_of_others_choice(state)
        self.model.set_weights(state.best)
        return network.with_softmax(self.model)

    def fit(self) -> Checkpoint:
        """Trains, or goes on training, and returns the last checkpoint."""
        self.learner.reset()
        state = Checkpoint.load(self.work / CHECKPOINT)
        if state is None:
            state = self._begin()
        else:
            self._restore(state)
            self.terminal.say(f"resuming after epoch {state.epoch} of {self.options.epochs}")
        self._tune(state)
        return state

    def _tell_of_others_choice(self, state: Checkpoint) -> None:
        if self.validation is None:
            return
        first = self.options.first_epoch
        frames = len(self.validation.labels)
        # One frame leaves none to choose by.
        if frames > 1 and first <= state.epoch < len(state.logits):
            right, losses = judged(np.stack(state.logits), self.validation.labels)
            hits = hits_of_others_choice(right, losses, first)
            self.fair_top1 = metrics.rate(round(hits), frames)
            low, high = self.fair_top1["interval"]
            self.terminal.say(
                f"top-1 {hits / frames:.2%} ({low:.1%} to {high:.1%}) of {frames} frames, each half"
                " of them judged by the epoch that the other half chooses, a mean of divisions"
            )

    def _load(self, dataset: Dataset, name: str) -> Frames:
        file = self.work / f"{name}.npy"
        left = 0 if file.exists() else len(dataset.frames)
        with self.terminal.bar(f"Decoding the {name} set", left) as advance:
            pixels = load_pixels(dataset, self.recipe, frame.Limits(), file, advance)
        return Frames(pixels, labels_of(dataset))

    def _begin(self) -> Checkpoint:
        if self.options.pretrained:
            self._train_head()
        state = Checkpoint()
        loss, top1 = self._validate(state)
        if self.validation is not None:
            self.terminal.say(f"before fine-tuning: validation loss {loss:.4f}, top-1 {top1:.2%}")
        if not self.options.first_epoch:
            state.best_top1, state.best_loss = top1, loss
        state.best = self.model.get_weights()
        if not self.options.keeps:
            # The features that it learned from are ImageNet's, which other statistics change. Its
            # errors would then do more harm than learning it again.
            head = self.model.get_layer(network.HEAD)
            head.set_weights([np.zeros_like(values) for values in head.get_weights()])
        self._store(state, self.model.get_weights())
        self.on_epoch(0, top1, loss)
        return state

    def _train_head(self) -> None:
        """Return the dense layer alone, to convergence, on the features of the frames and of varied
        copies of them."""
        keras = tensorflow().keras
        # The same, whatever was computed before in this process.
        keras.utils.set_random_seed(self.options.seed)
        passes = []
        for number in range(1 + HEAD_COPIES):
            rng = np.random.default_rng([self.options.seed, number])
            frames = self.train.pixels
            pixels = self._augmented(frames, rng) if number else frames
            name = f"Features, training set, {number + 1} of {1 + HEAD_COPIES}"
            passes.append(self._forward(pixels, name)[0])
        features, labels = np.concatenate(passes), np.tile(self.train.labels, len(passes))
        held, monitored, gain = None, "loss", HEAD_LEAST_GAIN
        if self.validation is not None and self.chooses:
            pixels = self.validation.pixels
            held = (
                self._forward(pixels, "Features, validation set")[0],
                self.validation.labels,
            )
            monitored, gain = "val_loss", 0.0
        inputs = keras.Input(features.shape[1:])
        head = keras.Model(inputs, self.model.get_layer(network.HEAD)(inputs))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        head.compile(keras.optimizers.Adam(HEAD_RATE), loss, jit_compile=False)
        stop = keras.callbacks.EarlyStopping(
            monitored, gain, patience=HEAD_PATIENCE, restore_best_weights=True
        )
        with self.terminal.bar("Training the head", HEAD_EPOCHS) as advance:
            head.fit(
                features,
                labels,
                sample_weight=self.weights[labels],
                validation_data=held,
                batch_size=self.options.batch,
                epochs=HEAD_EPOCHS,
                verbose=0,
                callbacks=[
                    stop,
                    keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: advance()),
                ],
            )

    def _tune(self, state: Checkpoint) -> None:
        options = self.options
        done, total = (epochs * self.steps for epochs in (state.epoch, options.epochs))
        with self.terminal.bar("Fine-tuning", total, done) as advance:
            while state.epoch < self.last_epoch and not self._exhausted(state):
                losses = []
                first = state.epoch * self.steps
                for step, batch in enumerate(self._batches(state.epoch), first):
                    losses.append(self.learner.learn(*batch, float(self._rate(step))))
                    if self.pruner:
                        self.pruner.apply(step + 1)
                    advance()
                state.epoch += 1
                self._finish_epoch(state, float(np.mean(losses)))

    def _finish_epoch(self, state: Checkpoint, train_loss: float) -> None:
        weights = self.model.get_weights()
        self.learner.optimizer.take_average()
        if self.pruner:
            self.pruner.apply(state.epoch * self.steps)
        loss, top1 = self._validate(state)
        better = self.validation is None or (top1, -loss) > (state.best_top1, -state.best_loss)
        better = better and state.epoch >= self.options.first_epoch
        if better:
            state.best_top1, state.best_loss, state.best_epoch = top1, loss, state.epoch
            state.best = self.model.get_weights()
        self.model.set_weights(weights)
        self._store(state, weights)
        line = f"epoch {state.epoch} of {self.options.epochs}: loss {train_loss:.4f}"
        if self.validation is not None:
            line += f", validation loss {loss:.4f}, top-1 {top1:.2%}{' *' if better else ''}"
        self.terminal.say(line)
        self.on_epoch(state.epoch, top1, loss)

    def _exhausted(self, state: Checkpoint) -> bool:
        """Return True if the last `idle_epochs` could have been the best and were not."""
        idle = state.epoch - max(state.best_epoch, self.options.first_epoch)
        return idle >= self.options.idle_epochs

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """(float32 frames, targets, weights) of one epoch; the same for the same epoch."""
        options = self.options
        smooth = np.full((self.classes, self.classes), options.smoothing / self.classes, np.float32)
        smooth += (1 - options.smoothing) * np.eye(self.classes, dtype=np.float32)
        order = np.random.default_rng([self.options.seed, epoch]).permutation(
            len(self.train.labels)
        )
        # Of one size: the statistics of a last one with a frame or two would be worth little.
        for step, rows in enumerate(np.array_split(order, self.steps)):
            rng = np.random.default_rng([self.options.seed, epoch, step])
            pixels = self._augmented(self.train.pixels[rows], rng)
            weights = self.weights[self.train.labels[rows]]
            targets = smooth[self.train.labels[rows]]
            if options.mixup:
                weighed = np.column_stack([targets, weights])
                pixels, weighed = mixed(pixels, weighed, rng, options.mixup)
                targets, weights = weighed[:, :-1], weighed[:, -1]
            if self.teacher:
                targets = np.stack([targets, self.teacher(pixels)], axis=1)
            yield to_batch(pixels, self.recipe), targets, weights

    def _augmented(self, pixels: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
        return np.stack([augment(p, rng, self.options.augmentation) for p in pixels])

    def _validate(self, state: Checkpoint) -> tuple[float, float]:
        """Return mean cross entropy in nats, and the share of frames whose best class is right;
        nan for both without a validation. `state` gets the logits."""
        if self.validation is None:
            return math.nan, math.nan
        logits = self._forward(self.validation.pixels)[1]
        state.logits.append(logits)
        right, losses = judged(logits, self.validation.labels)
        return float(losses.mean()), float(right.mean())

    def _forward(
        self, pixels: NDArray[np.uint8], text: str = ""
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what the head takes, [n, features], and the logits, [n, classes]."""
        starts = range(0, len(pixels), self.options.batch)
        outputs = []
        with self.terminal.bar(text, len(starts) if text else 0) as advance:
            for start in starts:
                batch = to_batch(pixels[start : start + self.options.batch], self.recipe)
                outputs.append(self.learner.forward(batch))
                advance()
        features, logits = zip(*outputs, strict=True)
        return np.concatenate(features), np.concatenate(logits)

    def _store(self, state: Checkpoint, weights: Arrays) -> None:
        state.weights = weights
        state.optimizer = self.learner.optimizer.state
        state.save(self.work / CHECKPOINT)

    def _restore(self, state: Checkpoint) -> None:
        self.model.set_weights(state.weights)
        self.learner.optimizer.restore(state.optimizer)

"""k-fold cross-validation of a training: every frame is judged by a model that never saw it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.data.dataset import Dataset
from convert.errors import ConvertError
from convert.evaluation import metrics
from convert.terminal import Terminal
from convert.training.checkpoint import CHECKPOINT, Checkpoint
from convert.training.epochs import best_epoch, judged
from convert.training.folds import assign_folds, without
from convert.training.inputs import labels_of, load_pixels
from convert.training.learner import Learner
from convert.training.light_choice import LightChoice
from convert.training.train import Frames, OnEpoch, Options, Training
from server.recognition import frame
from server.recognition.manifest import Recipe

FRAMES = "frames.npy"


@dataclass(frozen=True, slots=True)
class Progress:
    """One epoch of one fold.

    fold: from 0. epoch: of fine-tuning, from 0, which is the trained head alone. top1 (0..1) and
    loss (nats): of the frames that the fold holds back; the best of several epochs flatters.
    finished: top-1 of each earlier fold's frames after its last epoch.
    """

    fold: int
    epoch: int
    top1: float
    loss: float
    finished: tuple[float, ...]


OnProgress = Callable[[Progress], object]


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """The answers to all frames by models that never saw them.

    truth: class of each frame, [frames]. folds: its fold, [frames]. epochs: of each fold, the epoch
    after which its frames are judged, [folds]. logits: of each frame, by its fold's model after
    that epoch, float32 [frames, classes]. epoch: the one that names most frames of all folds
    right, for a training on all of them.
    """

    truth: NDArray[np.int64]
    folds: NDArray[np.intp]
    epochs: tuple[int, ...]
    logits: NDArray[np.float32]
    epoch: int

    @property
    def right(self) -> NDArray[np.bool_]:
        """True for each frame whose class was named, [frames]."""
        return np.asarray(self.logits.argmax(axis=1) == self.truth)

    @property
    def top1(self) -> dict[str, Any]:
        """The `metrics.rate` of frames that were named right."""
        return metrics.rate(int(self.right.sum()), len(self.truth))

    @property
    def recalls(self) -> list[dict[str, Any]]:
        """The `metrics.rate` of each class's frames that were named right, in order of classes."""
        of = [self.right[self.truth == label] for label in range(self.logits.shape[1])]
        return [metrics.rate(int(right.sum()), len(right)) for right in of]


def cross_validate(
    dataset: Dataset,
    recipe: Recipe,
    options: Options,
    work: Path,
    terminal: Terminal,
    threads: int,
    *,
    count: int = 5,
    groups: Mapping[Path, int] | None = None,
    decoded: Path | None = None,
    on_progress: OnProgress = lambda _: None,
    learner: Learner | None = None,
    lights: LightChoice | None = None,
) -> CrossValidation:
    """Train `count` models, each on all frames but those of a fold, and judge every frame once.

    A fold's frames are judged after the epoch that names most of the other folds' frames right, so
    they do not choose it. For the same reason each fold trains all of `options.epochs`, and its
    head as long as one is trained without a validation: its own frames would say when to stop.

    groups: frames of one number stay in one fold, see `assign_folds`. work: keeps what resuming
    needs; it belongs to these frames, options and folds alone, and one caller at a time. decoded:
    .npy of the frames as `recipe` shows them, written if it is not there; calls with the same
    frames and recipe may share it. None for FRAMES in `work`.

    learner: of `prepare`, if it is used elsewhere too. lights: chooses for each fold, from the
    other folds, the light of the pictures; None for that of `options`.

    on_progress: called for each epoch of each fold in turn, also for those that an earlier call
    trained. What it raises comes out of this function; the same call then goes on where this one
    ended. A pruner of Optuna ends a trial so:

        def on_progress(progress: Progress) -> None:
            trial.report(progress.top1, progress.fold * (options.epochs + 1) + progress.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

    The same frames, options and machine give the same result, killed in between or not. Raises
    ConvertError as `assign_folds` and `Training` do, and if `work` can't be written.
    """
    options = _to_the_end(options)
    folds, labels = assign_folds(dataset, count, options.seed, groups), labels_of(dataset)
    file = decoded or work / FRAMES
    _made(file.parent)
    with terminal.bar(
        "Decoding the frames", 0 if file.exists() else len(dataset.frames)
    ) as advance:
        pixels = load_pixels(dataset, recipe, frame.Limits(), file, advance)
    runs: list[NDArray[np.float32]] = []
    finished: tuple[float, ...] = ()
    for fold in range(count):
        is_held, place = folds == fold, _made(work / f"fold-{fold + 1}")
        terminal.say(f"fold {fold + 1} of {count}")
        tell = _told(on_progress, fold, finished)
        state = Checkpoint.load(place / CHECKPOINT)
        if state is not None:
            right, losses = judged(np.stack(state.logits), labels[is_held])
            for epoch, (hits, nats) in enumerate(zip(right, losses, strict=True)):
                tell(epoch, float(hits.mean()), float(nats.mean()))
        if state is None or state.epoch < options.epochs:
            own = options
            if lights is not None:
                chosen, learner = lights.training_on(~is_held)
                own = _to_the_end(chosen)
                terminal.say(lights.told)
            training = Training(
                *without(dataset, folds, fold),
                recipe,
                own,
                place,
                terminal,
                threads,
                frames=(
                    Frames(pixels[~is_held], labels[~is_held]),
                    Frames(pixels[is_held], labels[is_held]),
                ),
                on_epoch=tell,
                chooses=False,
                learner=learner,
            )
            learner = training.learner
            state = training.fit()
            # What is left of it to need: the epochs' answers.
            replace(state, weights=[], best=[], optimizer=[]).save(place / CHECKPOINT)
        runs.append(np.stack(state.logits))
        finished += (float(judged(runs[-1][-1], labels[is_held])[0].mean()),)
    return judge(runs, labels, folds, options.first_epoch)


def _to_the_end(options: Options) -> Options:
    """Return the same options for a training that no epoch ends early."""
    return replace(options, patience=options.epochs + 1)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConvertError(f"{folder} can't be used: {error.strerror}") from None
    return folder


def _told(on_progress: OnProgress, fold: int, finished: tuple[float, ...]) -> OnEpoch:
    return lambda epoch, top1, loss: on_progress(Progress(fold, epoch, top1, loss, finished))


def judge(
    runs: Sequence[NDArray[np.float32]],
    truth: NDArray[np.int64],
    folds: NDArray[np.intp],
    first: int,
) -> CrossValidation:
    """Return the result of folds that are trained.

    runs: of each fold, logits of its frames after each epoch, [epochs, its frames, classes].
    truth, folds: class and fold of each frame, [frames]. first: the epoch from which on one can be
    chosen.
    """
    logits = np.empty((len(runs[0]), len(truth), runs[0].shape[-1]), np.float32)
    for fold, run in enumerate(runs):
        logits[:, folds == fold] = run
    right, losses = judged(logits, truth)
    choice = np.arange(first, len(logits), dtype=np.intp)
    epochs = tuple(
        best_epoch(right[:, folds != fold], losses[:, folds != fold], choice)
        for fold in range(len(runs))
    )
    return CrossValidation(
        truth=truth,
        folds=folds,
        epochs=epochs,
        logits=logits[np.array(epochs)[folds], np.arange(len(truth))],
        epoch=best_epoch(right, losses, choice),
    )

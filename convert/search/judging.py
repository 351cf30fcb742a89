"""Judges a candidate by cross-validation, and trains the chosen one on all frames."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from convert.data.dataset import Dataset
from convert.errors import ConvertError
from convert.recipe.choice import recipe_with
from convert.search.clock import TimeOverError
from convert.search.space import Candidate, Resize
from convert.search.study import Best, Judged, OnStep
from convert.sources import imagenet
from convert.terminal import Terminal, tensorflow
from convert.training.cross_validation import Progress, cross_validate
from convert.training.epochs import judged
from convert.training.folds import assign_folds
from convert.training.train import Training
from server.recognition.manifest import Recipe
from server.system.resources import available_cores


@dataclass(frozen=True, slots=True)
class Bench:
    """The frames that judge all candidates.

    frames: those that may choose. groups: a number for each of them, the same for those that are
    nearly the same picture. folds: of the cross-validation. view: fields of the recipe that the
    user gave. work: where a broken off candidate keeps what it needs to go on.
    """

    frames: Dataset
    groups: Mapping[Path, int]
    folds: int
    view: Mapping[str, Any]
    work: Path

    def recipe(self, size: int, resize: Resize) -> Recipe:
        """Return how a network is fed."""
        return recipe_with(imagenet.recipe(size), resize=resize, **self.view)

    def check(self) -> None:
        """Raise ConvertError for a class with fewer pictures that differ than there are folds."""
        few = {}
        for label, name in enumerate(self.frames.classes):
            own = {self.groups[item.path] for item in self.frames.frames if item.label == label}
            if len(own) < self.folds:
                few[name] = len(own)
        if few:
            listed = ", ".join(f"{name} {count}" for name, count in few.items())
            raise ConvertError(
                f"too few pictures for --folds {self.folds}, of which each needs one of every class"
                f" that differs from those of the others, beside the frames that are held back:"
                f" {listed}; take more photographs, or fewer folds"
            )

    def judge(self, candidate: Candidate, on_step: OnStep, terminal: Terminal) -> Judged:
        """Return what the candidate reached on frames that its models never saw.

        on_step: told after each epoch; it may raise optuna.TrialPruned. terminal: may raise
        TimeOverError. Both come out of this method.
        """
        options = candidate.options
        place = self._place(candidate, "candidate")
        sizes = np.bincount(
            assign_folds(self.frames, self.folds, options.seed, self.groups), minlength=self.folds
        )

        def on_progress(progress: Progress) -> None:
            tops = (*progress.finished, progress.top1)
            counts = sizes[: len(tops)]
            hits = sum(round(top1 * int(n)) for top1, n in zip(tops, counts, strict=True))
            reached = Judged(len(progress.finished), hits, int(counts.sum()), progress.loss)
            on_step(progress.fold * (options.epochs + 1) + progress.epoch + 1, reached)

        try:
            found = cross_validate(
                self.frames,
                self.recipe(candidate.network.size, candidate.resize),
                options,
                place,
                terminal,
                available_cores(),
                count=self.folds,
                groups=self.groups,
                on_progress=on_progress,
            )
        except (optuna.TrialPruned, TimeOverError):
            shutil.rmtree(place)
            raise
        finally:
            # Keras keeps every network that was built in this process.
            tensorflow().keras.backend.clear_session()
        losses = judged(found.logits, found.truth)[1]
        shutil.rmtree(place)
        hits = int(found.right.sum())
        return Judged(self.folds, hits, len(found.truth), float(losses.mean()), found.epoch)

    def train(self, best: Best, terminal: Terminal) -> tuple[Any, Training]:
        """Return the chosen candidate trained on all frames that may choose, for as many epochs as
        the cross-validation found best: a `keras.Model` that answers probabilities, and its
        training. Killed in between, the same call goes on."""
        candidate = best.candidate
        place = self._place(candidate, "final")
        place.mkdir(exist_ok=True)
        training = Training(
            self.frames,
            None,
            self.recipe(candidate.network.size, candidate.resize),
            candidate.options,
            place,
            terminal,
            available_cores(),
            stop_after=best.judged.epoch,
        )
        return training.run(), training

    def _place(self, candidate: Candidate, kind: str) -> Path:
        text = repr((candidate.options, self.recipe(candidate.network.size, candidate.resize)))
        return self.work / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

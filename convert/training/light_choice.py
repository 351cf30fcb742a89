"""Chooses the light of the pictures that a network is shown, before it is trained."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from convert.folder_check.features import strongest
from convert.folder_check.judge import folds_by_class, probabilities
from convert.terminal import Terminal
from convert.training.inputs import to_batch
from convert.training.learner import Learner
from convert.training.light import LIGHTS, Light
from convert.training.train import Frames, Options, prepare
from server.recognition.manifest import Recipe

# Even light costs a frame a tenth of its time, so it has to be better by more than chance: by twice
# the deviation of the difference (McNemar, 1947).
_DEVIATIONS = 2.0


class LightChoice:
    """Chooses, for any of the frames, the light in which ImageNet's features tell their classes
    apart better.

    A logistic regression on the pooled features judges each frame by those of other folds. frames:
    all of them. groups: a number for each frame, [frames], the same for those that are nearly the
    same picture, which stay in one fold: in even light a part in another exposure is the same
    picture again, and says nothing of other parts. options: of the training, with pretrained
    weights. learner: of `prepare` for the same options.

    light: the one that was chosen last; tops: top-1 of both, 0..1, in the order of LIGHTS.
    """

    def __init__(
        self,
        frames: Frames,
        groups: NDArray[np.intp],
        classes: int,
        recipe: Recipe,
        options: Options,
        terminal: Terminal,
        learner: Learner,
    ) -> None:
        self.frames, self._groups, self._classes, self._recipe = frames, groups, classes, recipe
        self._options, self._terminal = options, terminal
        self._learners: dict[Light, Learner] = {options.light: learner}
        self._features: dict[Light, NDArray[np.float32]] = {}
        self.light: Light = options.light
        self.tops = (0.0, 0.0)

    def training_on(self, chosen: NDArray[np.bool_]) -> tuple[Options, Learner]:
        """Return the options and the network of a training on the frames that `chosen`, [frames],
        is True for. No other frame has a part in it."""
        labels = self.frames.labels[chosen].astype(np.intp)
        folds = folds_by_class(labels, self._groups[chosen], self._options.seed)
        as_is, even = (
            _named_right(self._read(light)[chosen], labels, self._classes, folds)
            for light in LIGHTS
        )
        self.light = "even" if is_better(even, as_is) else "as-is"
        self.tops = float(as_is.mean()), float(even.mean())
        return replace(self._options, light=self.light), self._learner(self.light)

    @property
    def told(self) -> str:
        """Return the line that says which light was chosen last, and why."""
        shown = "in even light" if self.light == "even" else "as they are"
        as_is, even = self.tops
        return (
            f"--light {self.light}: the network is shown the frames {shown}; ImageNet's features"
            f" tell {as_is:.1%} of them apart as they are, {even:.1%} in even light"
        )

    def _learner(self, light: Light) -> Learner:
        if light not in self._learners:
            options = replace(self._options, light=light)
            self._learners[light] = prepare(self._classes, options)
        return self._learners[light]

    def _read(self, light: Light) -> NDArray[np.float32]:
        """The features of all frames, [frames, features]."""
        if light not in self._features:
            learner, pixels, batch = self._learner(light), self.frames.pixels, self._options.batch
            learner.reset()
            parts = []
            text = "Features in even light" if light == "even" else "Features"
            with self._terminal.bar(text, len(pixels)) as advance:
                for start in range(0, len(pixels), batch):
                    part = pixels[start : start + batch]
                    parts.append(learner.forward(to_batch(part, self._recipe))[0])
                    for _ in part:
                        advance()
            self._features[light] = np.concatenate(parts)
        return self._features[light]


def _named_right(
    features: NDArray[np.float32], labels: NDArray[np.intp], classes: int, folds: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """True for each frame that is named right by a regression on other folds, [frames]."""
    answers = probabilities(strongest(features), labels, classes, folds)
    return np.asarray(answers.argmax(axis=1) == labels)


def is_better(ours: NDArray[np.bool_], others: NDArray[np.bool_]) -> bool:
    """Return True if `ours` names more frames right than `others` does, by more than chance. Both
    are True for a frame that is named right, [frames]."""
    gained, lost = int((ours & ~others).sum()), int((others & ~ours).sum())
    return bool(gained - lost > _DEVIATIONS * np.sqrt(gained + lost))

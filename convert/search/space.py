"""The space of a search: the networks, and the options of a training of one of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from convert.errors import ConvertError
from convert.search.networks import Network
from convert.search.trail import Setting
from convert.sources.imagenet import ALPHAS, LARGEST, SIZES, WEIGHTS_URL, cache_folder, require_file
from convert.training import network
from convert.training.train import Options

Resize = Literal["stretch", "letterbox", "crop"]
RESIZES: tuple[Resize, ...] = ("stretch", "letterbox", "crop")
# Adam's highest rate, about the default of a training on both sides.
_RATES_KEPT, _RATES = (1e-5, 3e-4), (3e-4, 3e-3)
# One parameter has but one range in a study.
_RATE_KEPT, _RATE = "rate with ImageNet's normalisation", "rate"
_MIXUPS = (0.0, 0.1, 0.2, 0.4)
_FROZEN_MOST, _FROZEN_STEP = 15, 3
_SMOOTHING_MOST, _SMOOTHING_STEP = 0.2, 0.05
_STRENGTH_MOST, _STRENGTH_STEP = 2.0, 0.5


class Suggests(Protocol):
    """The part of an Optuna trial that is needed: each method returns one of the values given."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network and the way it is fed and trained."""

    network: Network
    resize: Resize
    options: Options
    strength: float

    def settings(self) -> dict[str, Setting]:
        """Return everything that was chosen, for the table."""
        options = self.options
        return {
            "alpha": self.network.alpha,
            "size": self.network.size,
            "mode": self.network.mode,
            "light": self.network.light,
            "weights": options.weights,
            "resize": self.resize,
            "augmentation": self.strength,
            "rate": options.peak_rate,
            "frozen": options.frozen if options.pretrained else 0,
            "smoothing": options.smoothing,
            "mixup": options.mixup,
            "teacher": options.teacher is not None,
        }


@dataclass(frozen=True, slots=True)
class Space:
    """Everything that may be tried.

    networks: those within the budget, at least one. starts: for each of their alphas and sizes the
    weights that it may begin with. base: what every training shares, such as epochs and seed.
    teacher: a larger model to learn from, None without; taught: sizes and resizes by which it is
    fed too.
    """

    networks: tuple[Network, ...]
    starts: Mapping[tuple[float, int], tuple[network.Weights, ...]]
    base: Options
    resizes: tuple[Resize, ...] = RESIZES
    teacher: Path | None = None
    taught: frozenset[tuple[int, Resize]] = field(default_factory=frozenset)

    def suggest(self, trial: Suggests) -> Candidate:
        """Return the candidate that `trial` asks for."""
        by_name = {str(each): each for each in self.networks}
        chosen = by_name[trial.suggest_categorical("network", tuple(by_name))]
        starts = self.starts[chosen.alpha, chosen.size]
        # Named by its choices, since a name may have but one set of them.
        weights = starts[0]
        if len(starts) > 1:
            weights = trial.suggest_categorical(f"weights of {'/'.join(starts)}", starts)
        if replace(self.base, weights=weights).keeps:
            rate = trial.suggest_float(_RATE_KEPT, *_RATES_KEPT, log=True)
        else:
            rate = trial.suggest_float(_RATE, *_RATES, log=True)
        frozen = self.base.frozen
        if weights in network.PRETRAINED:
            frozen = trial.suggest_int("frozen", 0, _FROZEN_MOST, step=_FROZEN_STEP)
        strength = trial.suggest_float("strength", 0, _STRENGTH_MOST, step=_STRENGTH_STEP)
        smoothing = trial.suggest_float("smoothing", 0, _SMOOTHING_MOST, step=_SMOOTHING_STEP)
        mixup = trial.suggest_categorical("mixup", _MIXUPS)
        resize = self.resizes[0]
        if len(self.resizes) > 1:
            resize = trial.suggest_categorical("resize", self.resizes)
        taught = (chosen.size, resize) in self.taught
        taught = taught and trial.suggest_categorical("teacher", (False, True))
        options = replace(
            self.base,
            alpha=chosen.alpha,
            size=chosen.size,
            weights=weights,
            rate=rate,
            frozen=frozen,
            smoothing=smoothing,
            mixup=mixup,
            augmentation=self.base.augmentation.scaled(strength),
            teacher=self.teacher if taught else None,
            light=chosen.light,
        )
        return Candidate(chosen, resize, options, strength)

    def defaults(self, chosen: Network) -> dict[str, Any]:
        """Return the parameters of the training that `convert train` would do of a network."""
        starts = self.starts[chosen.alpha, chosen.size]
        base = replace(self.base, weights=starts[0], rate=None)
        return {
            "network": str(chosen),
            f"weights of {'/'.join(starts)}": starts[0],
            _RATE_KEPT if base.keeps else _RATE: base.peak_rate,
            "frozen": network.FROZEN_BLOCKS,
            "strength": 1.0,
            "smoothing": 0.0,
            "mixup": 0.0,
            "resize": self.resizes[0],
            "teacher": False,
        }


def fetch_weights(alphas: Sequence[float], say: Callable[[str], object]) -> None:
    """Fetch ImageNet's weights of these widths that are not on this machine. What can't be fetched
    is told, and left out by `available_starts`."""
    for alpha in alphas:
        if alpha not in ALPHAS:
            continue
        name = network.backbone_file(alpha, LARGEST)
        try:
            require_file(name, WEIGHTS_URL + name)
        except ConvertError:
            # Another address of the same server would not answer either.
            say(
                f"searched without ImageNet's weights of alpha {alpha:g} and others, which are not"
                " on this machine and can't be fetched"
            )
            return


def available_starts(
    alpha: float, size: int, wanted: network.Weights | None = None
) -> tuple[network.Weights, ...]:
    """Return the weights that a network can begin with on this machine, the best first; random
    ones only if there are no others. wanted: the only ones that are allowed.

    Raises ConvertError if `wanted` are not there.
    """
    held: list[network.Weights] = []
    if alpha in ALPHAS:
        if size in SIZES and _has(alpha, size):
            held.append("imagenet")
        # At that size they are the same file.
        if (size != LARGEST or wanted == "imagenet-224") and _has(alpha, LARGEST):
            held.append("imagenet-224")
    if alpha < 1 and _has(1.0, LARGEST):
        held.append("slice")
    if wanted == "none" or not held:
        held = ["none"]
    if wanted is None:
        return tuple(held)
    if wanted not in held:
        raise ConvertError(
            f"--weights {wanted} are not on this machine for alpha {alpha:g} at {size} pixels:"
            " point KERAS_HOME at a folder that has them, or begin with --weights none"
        )
    return (wanted,)


def _has(alpha: float, size: int) -> bool:
    return (cache_folder() / network.backbone_file(alpha, size)).is_file()

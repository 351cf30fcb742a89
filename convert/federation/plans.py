"""Tell each side of a federation at its start what to do: JSON files that stay on its machine."""

from pathlib import Path
from typing import TypeVar

import msgspec

from convert.errors import ConvertError
from convert.training.network import PRETRAINED, Weights

# Adam's. A site's optimiser starts anew in each round, and its first steps are its largest: at 1e-4
# the average of four sites of unequal classes is worse after a round than before it.
PRETRAINED_RATE, SCRATCH_RATE = 5e-6, 1e-3
SERVER_PLAN, SITE_PLAN = "LINESIDE_FEDERATION_SERVER", "LINESIDE_FEDERATION_SITE"
PLAN, PROGRESS, OUTCOME, MODEL = "plan.json", "progress.txt", "outcome.json", "float.tflite"


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """The training that all sites take part in.

    alpha, size, weights: of `network.build`. head_rounds, rounds: averages of the last layer alone,
    then of all layers. head_epochs, epochs: passes of a site over its frames between two averages.
    batch: frames a step. rate: Adam's highest learning rate, None for the one that suits `weights`.
    flips: frames may be mirrored.
    """

    alpha: float = 1.0
    size: int = 224
    weights: Weights = "imagenet"
    head_rounds: int = 50
    head_epochs: int = 5
    rounds: int = 0
    epochs: int = 1
    batch: int = 16
    rate: float | None = None
    flips: bool = True
    seed: int = 0

    @property
    def peak_rate(self) -> float:
        """Return the learning rate that `rate` or `weights` asks for."""
        return self.rate or (PRETRAINED_RATE if self.weights in PRETRAINED else SCRATCH_RATE)


class ServerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Says what the server does. sites: that have to be there before it starts. The others are of
    BundleOptions; `validate` and `calibrate` are folders of the server's own frames, if any."""

    sites: int
    course: Course
    name: str
    out: Path
    version: int | None = None
    mode: str = "dynamic"
    source: str = ""
    license: str = ""
    accept: tuple[str, ...] = ()
    min_probability: float = 0.5
    max_accuracy_drop: float | None = None
    validate: Path | None = None
    calibrate: Path | None = None
    allow_similar_classes: bool = False


class SitePlan(msgspec.Struct, frozen=True, kw_only=True):
    """A site's frames: `trained` and `held` back, each a file and its class by name."""

    name: str
    trained: tuple[tuple[Path, str], ...]
    held: tuple[tuple[Path, str], ...]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Says how a federation ended. error: a sentence, empty if it succeeded. exit_code: of the
    command. bundle: NAME/VERSION on the server. labels, size: of the model's classes and input."""

    error: str = ""
    exit_code: int = 0
    bundle: str = ""
    labels: tuple[str, ...] = ()
    size: int = 0


Stored = TypeVar("Stored", ServerPlan, SitePlan, Outcome)


def write(file: Path, value: ServerPlan | SitePlan | Outcome) -> None:
    """Write the file, all or nothing, since another process waits for it."""
    part = file.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(value, enc_hook=str))
    part.replace(file)


def read(file: Path, kind: type[Stored]) -> Stored:
    """Read what `write` wrote. Raises ConvertError for a file that is not there or damaged."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind, dec_hook=_path)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConvertError(f"{file} can't be read: {error}") from None


def _path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError


def check_ranges(course: Course) -> None:
    """Raise ConvertError for a value out of its range."""
    for option, value, low, high in (
        ("--alpha", course.alpha, 0.05, 4.0),
        ("--size", course.size, 32, 1024),
        ("--head-rounds", course.head_rounds, 0, 1000),
        ("--head-epochs", course.head_epochs, 1, 1000),
        ("--rounds", course.rounds, 0, 1000),
        ("--local-epochs", course.epochs, 1, 1000),
        ("--batch", course.batch, 1, 4096),
        ("--seed", course.seed, 0, 2**32 - 1),
    ):
        if not low <= value <= high:
            raise ConvertError(f"{option} {value:g} should be from {low:g} to {high:g}")
    if course.rate is not None and not 0 < course.rate <= 10:
        raise ConvertError(f"--rate {course.rate:g} should be above 0 and at most 10")


def check_course(course: Course) -> None:
    """Raise ConvertError for a value out of its range, and for a course that trains nothing."""
    check_ranges(course)
    if course.rounds + course.head_rounds == 0:
        raise ConvertError("--rounds 0 and --head-rounds 0 leave nothing to train")
    if course.weights not in PRETRAINED and course.head_rounds:
        raise ConvertError(
            f"--weights {course.weights} has no features that a head alone could learn from: give"
            " --head-rounds 0 too"
        )

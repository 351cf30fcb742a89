"""A site's command: it checks the frames, connects to the server, and waits for the end."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convert.data.checks import check_dataset
from convert.data.dataset import Dataset, read_dataset, split, with_samples
from convert.errors import ConvertError
from convert.federation import flower, plans, wire
from convert.federation.flower import Security
from convert.federation.site.training import dataset
from convert.folder_check import checking
from convert.pipeline import BundleOptions, build
from convert.sources import imagenet
from convert.terminal import Terminal, columns
from convert.training.checkpoint import exclusive_lock
from server.recognition.frame import Limits
from server.recognition.manifest import VerdictPolicy
from server.values.labels import Label
from server.values.wording import counted

LOG = "flower.log"
_LOOK_SECONDS = 0.3
# For the last answer to leave, after which nothing is expected any more.
_FAREWELL_SECONDS = 30.0
_ASKED, _ANSWERED = "Receiving: ", "Sent successfully"


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """The options of a site. hold_back: share of each class that judges and does not train.
    work: for decoded frames. out: for a bundle of its own, None for none. The others are as on the
    command line."""

    folder: Path
    server: str
    security: Security
    name: str
    labelled: Path | None
    labelled_of: str | None
    hold_back: float
    seed: int
    work: Path
    out: Path | None
    accept: tuple[str, ...] = ()


def take_part(options: SiteOptions, terminal: Terminal) -> int:
    """Train for the server until it says how it ended, and return the exit code.

    Raises DatasetError for frames that can't be used, and ConvertError if it failed.
    """
    trained, held = read_frames(options, terminal)
    work = options.work / options.name
    with exclusive_lock(work):
        for old in work.iterdir():
            if old.name != "lock" and old.is_file():
                old.unlink()
        plans.write(
            work / plans.PLAN,
            plans.SitePlan(name=options.name, trained=_named(trained), held=_named(held)),
        )
        outcome = _connect(options, work, terminal)
        terminal.say("what the messages carried, in bytes; frames and features stayed here")
        for row in columns(wire.table(wire.read_account(work))):
            terminal.say(row)
        if outcome.error:
            raise ConvertError(f"the server gave up: {outcome.error}")
        terminal.say(f"the server wrote {outcome.bundle}")
        if options.out is not None:
            _build(options, outcome, held, trained, work, terminal)
    return 0


def read_frames(options: SiteOptions, terminal: Terminal) -> tuple[Dataset, Dataset]:
    """Return the frames to train on and those held back, checked as `train` checks its own, but for
    classes that a site has few frames of. Frames that are nearly the same stay on one side."""
    found = read_dataset(options.folder)
    if options.labelled is not None:
        own = len(found.frames)
        found = with_samples(found, options.labelled, options.labelled_of or "")
        terminal.say(f"{len(found.frames) - own} labelled samples from {options.labelled}")
    found = _without_empty(found)
    with terminal.bar("Checking the images", len(found.frames)) as advance:
        check_dataset(found, None, Limits(), advance, allow_similar=True, partial=True)
    if not options.hold_back:
        return found, Dataset(found.classes, ())
    prints = checking.read_fingerprints(
        [item.path for item in found.frames], checking.check_recipe(), terminal
    )
    groups = checking.grouped(found, prints)
    trained, held = split(found, options.hold_back, options.seed, groups)
    terminal.say(
        f"{counted(len(trained.frames), 'frame')} to train on, {len(held.frames)} held back"
    )
    return trained, held


def _without_empty(found: Dataset) -> Dataset:
    """Leave out classes without frames; a folder may stand for one that is still to come."""
    named = [(item.path, found.classes[item.label]) for item in found.frames]
    if not named:
        raise ConvertError("there are no frames to train on")
    return dataset(named, sorted({name for _, name in named}))


def _named(found: Dataset) -> tuple[tuple[Path, str], ...]:
    return tuple((item.path.absolute(), found.classes[item.label]) for item in found.frames)


def _connect(options: SiteOptions, work: Path, terminal: Terminal) -> plans.Outcome:
    env = environment(work)
    with flower.site(options.server, options.security, env, work / LOG) as process:
        terminal.say(f"waiting for work from {options.server}")
        while not (work / plans.OUTCOME).exists():
            if process.poll() is not None:
                raise ConvertError(
                    f"Flower's program ended with {process.returncode}; {work / LOG} has its words"
                )
            time.sleep(_LOOK_SECONDS)
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while (
            process.poll() is None
            and time.monotonic() < deadline
            and not _all_answered((work / LOG).read_text("utf-8", "replace"))
        ):
            time.sleep(_LOOK_SECONDS)
    return plans.read(work / plans.OUTCOME, plans.Outcome)


def _all_answered(log: str) -> bool:
    """Return True if Flower's log says that each message was answered."""
    return log.count(_ANSWERED) >= log.count(_ASKED)


def environment(work: Path) -> Mapping[str, str]:
    """Return the environment of Flower's programs at a site whose folder is `work`."""
    env = flower.environment(work / "flower", **{plans.SITE_PLAN: str(work / plans.PLAN)})
    return flower.with_own_programs(env, work / "programs", "site")


def _build(
    options: SiteOptions,
    outcome: plans.Outcome,
    held: Dataset,
    trained: Dataset,
    work: Path,
    terminal: Terminal,
) -> None:
    """Write the bundle that this site's own frames correct and judge."""
    labels = outcome.labels
    judged = dataset(_named(held), labels)
    policy = VerdictPolicy(accept=options.accept) if options.accept else None
    assert options.out is not None
    bundle = BundleOptions(
        labels=tuple(Label(name) for name in labels),
        name=outcome.bundle.partition("/")[0],
        out=options.out,
        source=f"trained at several sites, of which this is {options.name}",
        validation=judged if judged.frames else None,
        calibration=[item.path for item in trained.frames],
        verdict=policy,
    )
    recipe = imagenet.recipe(outcome.size)
    model = (work / plans.MODEL).read_bytes()
    build(bundle.request(model, recipe, "probabilities"), terminal.say)

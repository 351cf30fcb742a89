"""`python -m convert search FOLDER`: the best model for a device, found and proved."""

import argparse
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.cli.arguments import (
    add_folder_arguments,
    add_labelled_arguments,
    add_place_arguments,
    add_verdict_arguments,
    add_view_arguments,
    bundle_options,
    view_values,
)
from convert.cli.train import check_calibration, default_name, read_frames
from convert.errors import ConvertError
from server.values.wording import counted

if TYPE_CHECKING:
    from convert.pipeline import BundleOptions
    from convert.search.device import Reference
    from convert.search.judging import Bench
    from convert.search.networks import Network
    from convert.search.space import Space
    from convert.search.study import Best
    from convert.terminal import Terminal
    from convert.training.train import Options

ALPHAS = (0.35, 0.5, 0.75, 1.0)
SIZES = (96, 128, 160, 192, 224)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of what is searched, for how long, and where the bundle goes."""
    add_folder_arguments(parser)
    add_labelled_arguments(parser)
    parser.add_argument(
        "--budget-ms",
        type=float,
        required=True,
        metavar="MS",
        help="of one inference on one thread, at most; slower networks are never trained",
    )
    parser.add_argument(
        "--device",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="figures of the device, from `python -m server bench --export FILE`; one of each mode"
        " (without it, this machine is measured)",
    )
    parser.add_argument(
        "--validate",
        type=Path,
        metavar="DIR",
        help="frames that choose nothing and judge the result (a fifth of FOLDER is held back)",
    )
    how = parser.add_argument_group("search")
    how.add_argument(
        "--minutes",
        type=float,
        default=60.0,
        help="of the whole search, about (60)",
    )
    how.add_argument("--trials", type=int, metavar="N", help="candidates at most (no limit)")
    # `read_frames` reads the name folds as of a training that holds nothing back.
    how.add_argument(
        "--folds",
        type=int,
        default=5,
        dest="parts",
        metavar="K",
        help="of each cross-validation (5)",
    )
    how.add_argument("--epochs", type=int, default=20, help="of fine-tuning, at most (20)")
    how.add_argument("--batch", type=int, default=16, help="frames a step (16)")
    how.add_argument(
        "--alphas", type=float, nargs="+", default=ALPHAS, help="widths (0.35 0.5 0.75 1.0)"
    )
    how.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, help="sides in pixels (96 128 160 192 224)"
    )
    how.add_argument(
        "--modes",
        nargs="+",
        default=("dynamic",),
        help="of quantisation; the folds judge the float model, of which int8 may lose points"
        " (dynamic)",
    )
    how.add_argument(
        "--lights",
        nargs="+",
        choices=("as-is", "even"),
        default=("as-is", "even"),
        help="of the pictures that a network is shown; int8 is shown them as they are (both)",
    )
    how.add_argument(
        "--weights",
        choices=("imagenet", "imagenet-224", "slice", "none"),
        help="the only ones to start from, as of `train` (all that suit and are there)",
    )
    how.add_argument(
        "--teacher",
        type=Path,
        metavar="BUNDLE_OR_KERAS",
        help="larger model to learn from, which has not seen the frames that judge",
    )
    how.add_argument(
        "--no-flips",
        action="store_true",
        help="for parts whose left and right or up and down differ",
    )
    how.add_argument("--seed", type=int, default=0)
    how.add_argument(
        "--work", type=Path, metavar="FOLDER", help="keeps what resuming needs (OUT/.search)"
    )
    add_view_arguments(parser)
    where = add_place_arguments(parser, "that of FOLDER")
    add_verdict_arguments(where)
    where.add_argument(
        "--max-accuracy-drop",
        type=float,
        metavar="POINTS",
        help="of top-1 that quantisation may lose on the frames that judge (0.5)",
    )
    where.add_argument(
        "--seconds", type=float, default=4.0, help="duration of the latency measurement (4)"
    )
    where.add_argument("--samples", type=int, default=0, help="frames copied into samples/ (0)")
    # What `bundle_options` reads besides; the search chooses it.
    parser.set_defaults(
        name=None, mode="dynamic", tune=False, calibrate=None, io=None, max_size_ratio=None
    )
    parser.set_defaults(folds=None, frames=None, plot=None)


def run(args: argparse.Namespace) -> int:
    """Search, train what was chosen, write the bundle, and return the exit code.

    Raises ConvertError and GateError. After any of them, a kill or Ctrl-C the same command goes on
    with the time that is left.
    """
    import shutil

    from convert.all_modes import SHIPPED_MODELS
    from convert.folder_check import checking
    from convert.recipe.choice import recipe_with
    from convert.search.clock import Clock
    from convert.search.device import Reference, references
    from convert.search.judging import Bench
    from convert.search.latency import within_budget
    from convert.search.run import search
    from convert.search.study import Study
    from convert.search.trail import Trail, lines, too_slow
    from convert.sources import imagenet
    from convert.terminal import Terminal
    from convert.training.checkpoint import exclusive_lock, fingerprint
    from convert.training.train import suited_normalisation
    from server.values.labels import Label

    base, terminal = _base(args), Terminal()
    found: dict[str, Reference] = {}
    device = ""
    if args.device:
        found, device = references(args.device, (args.out, SHIPPED_MODELS))
    name = args.name or default_name(args.folder)
    frames, held, prints = read_frames(args, name, terminal)
    suited = suited_normalisation(len(frames.frames), base.batch, args.parts)
    base = dataclasses.replace(base, normalisation=suited)
    options = bundle_options(
        args,
        tuple(Label(label) for label in frames.classes),
        name=name,
        source=f"searched on {args.folder.name}, {counted(len(frames.frames), 'frame')}",
        validation=held,
    )
    options.destination()
    view = view_values(args)
    if "int8" in args.modes:
        paths = tuple(item.path for item in frames.frames)
        usable = dataclasses.replace(options, mode="int8", calibration=paths)
        check_calibration(usable, recipe_with(imagenet.recipe(args.sizes[0]), **view))
    there = {mode: each.there for mode, each in found.items()}
    state = fingerprint((_searched(args), there, base, view), frames, held)
    root = args.work or args.out / ".search"
    work = root / f"{name}-{state}"
    # Not in `work`, which is of one budget: whoever is told that it is too low raises it.
    networks = fingerprint((_networks(args), len(frames.classes), there))
    latency = root / f"{name}-{networks}.json"
    bench = Bench(frames, checking.grouped(frames, prints), args.parts, view, work)
    bench.check()
    with exclusive_lock(work):
        clock = Clock(work / "spent.json", args.minutes * 60)
        folder = checking.check_folder(
            frames, held, prints, checking.check_recipe(**view), terminal, download=False
        )
        times, measured = _times(args, bench, latency, found, device, terminal)
        try:
            fit, slow = within_budget(times, args.budget_ms)
        except ConvertError:
            shutil.rmtree(work)  # with this budget it can't go on
            raise
        terminal.say(
            f"{len(fit)} of {len(times)} networks take at most {args.budget_ms:g} ms"
            f" ({min(fit.values()):.2f} to {max(fit.values()):.2f}), {measured}"
        )
        space = _space(args, base, bench, list(fit), terminal)
        study = Study(work, space, fit, args.parts * (args.epochs + 1))
        best = search(study, bench, clock, args.trials, terminal)
        trail = Trail(
            budget=args.budget_ms,
            measured=measured,
            folds=args.parts,
            held_back="the folder of --validate" if args.validate else "a fifth of each class",
            seconds=clock.spent,
            tried=(*study.tried(), *(too_slow(each, ms) for each, ms in slow.items())),
        )
        for line in lines(trail):
            terminal.say(line)
        _finish(dataclasses.replace(options, folder=folder, search=trail), best, bench, terminal)
        shutil.rmtree(work)
        latency.unlink(missing_ok=True)
    return 0


def _searched(args: argparse.Namespace) -> tuple[object, ...]:
    """Return the arguments with which another search begins: not its time, which may be raised."""
    return (
        args.budget_ms,
        args.parts,
        tuple(args.alphas),
        tuple(args.sizes),
        tuple(args.modes),
        tuple(args.lights),
        args.weights,
        args.teacher,
    )


def _base(args: argparse.Namespace) -> "Options":
    """Return what all trainings share. Raises ConvertError for a value out of its range."""
    from convert.quantization.quantize import MODES
    from convert.training.inputs import Augmentation
    from convert.training.train import Options

    for name, values, low, high in (
        ("minutes", (args.minutes,), 0.0, 100_000.0),
        ("trials", () if args.trials is None else (args.trials,), 1, 100_000),
        ("folds", (args.parts,), 2, 20),
        ("epochs", (args.epochs,), 0, 100_000),
        ("batch", (args.batch,), 1, 4096),
        ("alphas", args.alphas, 0.05, 4.0),
        ("sizes", args.sizes, 32, 1024),
        ("seed", (args.seed,), 0, 2**32 - 1),
    ):
        for value in values:
            if not low <= value <= high:
                raise ConvertError(f"--{name} {value:g} should be from {low:g} to {high:g}")
    if not 0 < args.budget_ms < math.inf:
        raise ConvertError(f"--budget-ms {args.budget_ms:g} should be a number above 0")
    if unknown := [mode for mode in args.modes if mode not in MODES]:
        raise ConvertError(f"--modes {unknown[0]} should be some of {', '.join(MODES)}")
    if set(args.modes) == {"int8"} and set(args.lights) == {"even"}:
        raise ConvertError("--lights even can't be with --modes int8, which is too coarse for it")
    return Options(
        epochs=args.epochs,
        batch=args.batch,
        seed=args.seed,
        augmentation=Augmentation(flips=not args.no_flips),
    )


def _networks(args: argparse.Namespace) -> "list[Network]":
    """Return the networks that may be searched, smaller ones first. The whole numbers of int8 are
    too coarse for even light."""
    from convert.search.networks import Network

    return [
        Network(alpha, size, mode, light)
        for alpha in sorted(set(args.alphas))
        for size in sorted(set(args.sizes))
        for mode in dict.fromkeys(args.modes)
        for light in dict.fromkeys(args.lights)
        if light == "as-is" or mode != "int8"
    ]


def _times(
    args: argparse.Namespace,
    bench: "Bench",
    latency: Path,
    found: "dict[str, Reference]",
    device: str,
    terminal: "Terminal",
) -> "tuple[dict[Network, float], str]":
    """Return the milliseconds of each network that may be searched, and where they come from.

    latency: the file that keeps them. found, device: of `device.references`; empty without
    --device.
    """
    from convert.evaluation.results import processor
    from convert.search.device import device_times
    from convert.search.kept import kept
    from convert.search.latency import Times, measure_networks

    networks = _networks(args)
    times = kept(
        latency,
        Times,
        lambda: measure_networks(
            networks,
            len(bench.frames.classes),
            {mode: each.model for mode, each in found.items()},
            args.seconds,
            terminal,
        ),
        lambda each: each.has(networks, found),
    )
    if not found:
        here = {each: times.networks[str(each)] for each in networks}
        return here, f"measured on this machine ({processor()})"
    there = device_times(times, networks, found)
    if not there:
        raise ConvertError(
            f"--device has figures of a model whose mode is {', '.join(found)}, but --modes are"
            f" {', '.join(args.modes)}: what integer arithmetic gains differs by processor"
        )
    if missing := [mode for mode in args.modes if mode not in {each.mode for each in there}]:
        terminal.say(f"--modes {', '.join(missing)} left out: --device has no figures of it")
    return there, f"on {device}, by the ratio of a model that was measured there and here"


def _space(
    args: argparse.Namespace,
    base: "Options",
    bench: "Bench",
    networks: "list[Network]",
    terminal: "Terminal",
) -> "Space":
    from convert.search.kept import kept
    from convert.search.space import RESIZES, Space, available_starts, fetch_weights
    from convert.training.network import Weights

    def look() -> list[tuple[float, int, tuple[Weights, ...]]]:
        if args.weights in (None, "imagenet-224"):
            fetch_weights(sorted({each.alpha for each in networks}), terminal.say)
        return [
            (alpha, size, available_starts(alpha, size, args.weights))
            for alpha, size in sorted({(each.alpha, each.size) for each in networks})
        ]

    # Also if others have been fetched since: trials name the weights that they chose from.
    rows = kept(bench.work / "starts.json", list[tuple[float, int, tuple[Weights, ...]]], look)
    starts = {(alpha, size): weights for alpha, size, weights in rows}
    taught = frozenset[tuple[int, Any]]()
    if args.teacher:
        taught = _taught(args.teacher, bench, sorted({each.size for each in networks}))
    return Space(tuple(networks), starts, base, RESIZES, args.teacher, taught)


def _taught(teacher: Path, bench: "Bench", sizes: list[int]) -> "frozenset[tuple[int, Any]]":
    """Return the sizes and resizes whose input is the teacher's. Raises ConvertError, as
    `load_teacher` does, if there are none."""
    from convert.search.space import RESIZES
    from convert.training.distill import load_teacher

    found, refusal = [], None
    for size in sizes:
        for resize in RESIZES:
            try:
                load_teacher(teacher, bench.recipe(size, resize), bench.frames.classes, 1)
            except ConvertError as error:
                refusal = error
            else:
                found.append((size, resize))
    if not found and refusal is not None:
        raise refusal
    return frozenset(found)


def _finish(options: "BundleOptions", best: "Best", bench: "Bench", terminal: "Terminal") -> None:
    """Train the chosen candidate on all frames that may choose, and write its bundle."""
    from convert.pipeline import build
    from convert.sources.keras import from_keras

    terminal.say(
        f"training {best.candidate.network} on all {len(bench.frames.frames)} frames, for"
        f" {counted(best.judged.epoch, 'epoch')}"
    )
    model, training = bench.train(best, terminal)
    options = dataclasses.replace(
        options, mode=best.candidate.network.mode, calibration=training.train.pixels
    )
    recipe = bench.recipe(best.candidate.network.size, best.candidate.resize)
    check_calibration(options, recipe)
    build(options.request(from_keras(model), recipe, "probabilities"), terminal.say)

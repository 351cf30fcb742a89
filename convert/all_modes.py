"""`--mode all`: one float model in every mode, in one table."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.bundle_writer import VERSION
from convert.data.dataset import images
from convert.data.frames import decoded, float_spec, input_range
from convert.errors import CalibrationError, ConvertError
from convert.evaluation.compare import compare, plot, table
from convert.evaluation.evaluate import Model
from convert.pipeline import Progress, Request, check, make, result_recipe
from convert.quantization.quantize import quantize
from convert.terminal import suppress_native_output
from server.recognition.frame import Pixels
from server.recognition.manifest import GOLDEN, Recipe
from server.recognition.preprocessing import to_tensor

# Where neither --calibrate nor --frames is given: the frames of the bundles that ship.
SHIPPED = Path(__file__).resolve().parents[2] / "models"
# Fewer frames are looked at from nearer too.
FEW_FRAMES = 32


def every_mode(request: Request, args: argparse.Namespace, progress: Progress = print) -> None:
    """Prints the table of float32, float16, dynamic and int8, and with --frames or --validate
    writes the plot that --plot names. No bundle is written.

    With --tune the tuned model is one more row. int8 is calibrated on --calibrate, --frames or
    the frames of the bundles that ship, and left out with a sentence where they won't do.
    Raises ConvertError.
    """
    if request.quantized:
        raise ConvertError(
            f"--mode all starts from a float32 model, and this one is quantised already"
            f" ({request.mode})"
        )
    frames = _frames(request, args)
    check(replace(request, mode="float32", tune=False))
    models = [_model(request, "float32", request.float_model)]
    for mode in ("float16", "dynamic"):
        one = replace(request, mode=mode, tune=False)
        models.append(_model(one, mode, make(one, progress)[0]))
    if request.tune:
        tuned = replace(request, mode="dynamic")
        models.append(_model(tuned, "dynamic, tuned", make(tuned, progress)[0]))
    models += _int8(request, args, progress)
    rows = compare(models, frames, args.seconds)
    progress(table(rows, "float32"))
    if frames and args.plot:
        try:
            args.plot.write_bytes(plot(rows))
        except OSError as error:
            raise ConvertError(f"{args.plot} can't be written: {error.strerror}") from None
        progress(f"wrote {args.plot}")
    progress("no bundle was written: --mode with one of them writes it")


def _frames(request: Request, args: argparse.Namespace) -> Path | None:
    """Names the frames of the table's accuracy. Raises ConvertError for two answers, and for
    limits: a table keeps nothing back. With --tune the size is the plan's."""
    if args.frames and args.validate:
        raise ConvertError("--mode all judges on --frames or on --validate: give one of them")
    if request.max_accuracy_drop is not None or (request.max_size_ratio and not request.tune):
        raise ConvertError(
            "--mode all writes no bundle that --max-accuracy-drop or --max-size-ratio could refuse"
        )
    return args.frames or args.validate  # type: ignore[no-any-return]


def _model(request: Request, name: str, data: bytes) -> Model:
    return Model(name, data, result_recipe(request), request.output, request.labels)


def _int8(request: Request, args: argparse.Namespace, progress: Progress) -> list[Model]:
    paths = list(images(args.calibrate or args.frames)) if args.calibrate or args.frames else []
    where = str(args.calibrate or args.frames)
    if not paths:
        paths, where = bundled_frames(), "the bundles that ship"
    if not paths:
        progress("int8 is left out: give real frames with --calibrate or --frames FOLDER")
        return []
    one = replace(request, mode="int8", tune=False, calibration=paths)
    frames = list(calibration_views(paths, request.recipe))
    progress(f"int8 calibrated on {len(frames)} views of {len(paths)} frames of {where}")
    try:
        with suppress_native_output():
            data = quantize(
                request.float_model,
                "int8",
                calibration=frames,
                io_dtype=request.io_dtype,
                taken=input_range(request.recipe),
            )
    except CalibrationError as error:
        progress(f"int8 is left out: {error}")
        return []
    return [_model(one, "int8", data)]


def bundled_frames() -> list[Path]:
    """The golden and sample frames of the bundles in the project's own models folder."""
    return sorted(
        path
        for folder in SHIPPED.glob("*/*")
        if VERSION.fullmatch(folder.name)
        for part in (GOLDEN, "samples")
        for path in (folder / part).glob("*")
    )


def calibration_views(paths: Sequence[Path], recipe: Recipe) -> Iterator[NDArray[np.float32]]:
    """Each frame as the float model's input; with fewer than FEW_FRAMES also its four corners at
    three quarters of its size, which is what the same camera would show from nearer.

    Raises ConvertError naming a file that is not a readable image.
    """
    spec = float_spec(recipe)
    for path in paths:
        pixels = decoded(path, recipe)
        parts = [pixels, *_corners(pixels)] if len(paths) < FEW_FRAMES else [pixels]
        yield from (to_tensor(part, recipe, spec) for part in parts)


def _corners(pixels: Pixels) -> list[Pixels]:
    height, width = (max(1, side * 3 // 4) for side in pixels.shape[:2])
    return [
        np.ascontiguousarray(part)
        for part in (
            pixels[:height, :width],
            pixels[:height, -width:],
            pixels[-height:, :width],
            pixels[-height:, -width:],
        )
    ]

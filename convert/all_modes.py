"""`--mode all`: compares one float model in every mode, and prints a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.bundle_writer import VERSION
from convert.data.dataset import images
from convert.data.frames import decoded, float_spec, input_range
from convert.errors import CalibrationError
from convert.evaluation.compare import compare, table, write_plot
from convert.evaluation.evaluate import Model
from convert.pipeline import Progress, Request, check_model, make, result_recipe
from convert.quantization.quantize import quantize
from convert.terminal import suppress_native_output
from server.recognition.frame import Pixels
from server.recognition.manifest import GOLDEN, Recipe
from server.recognition.preprocessing import to_tensor

SHIPPED_MODELS = Path(__file__).resolve().parents[1] / "models"
# With fewer frames than this, their corners are used too.
FEW_FRAMES = 32


@dataclass(frozen=True, slots=True)
class TableOptions:
    """Options of the table.

    frames: images or labelled frames for the accuracy, None without. calibration: a folder of
    images for int8; None takes `frames`, or else the frames of the shipped bundles. plot: the PNG
    to write, None without.
    """

    frames: Path | None = None
    calibration: Path | None = None
    plot: Path | None = None


def compare_modes(request: Request, options: TableOptions, progress: Progress = print) -> None:
    """Print the table of float32, float16, dynamic and int8, and write the plot. No bundle is made.

    If `request` is to be tuned, the tuned model is one more row. If the frames to calibrate on are
    not usable, int8 is left out and a line says why. Raises ConvertError.
    """
    check_model(replace(request, mode="float32", tune=False))
    models = [_model(request, "float32", request.float_model)]
    for mode in ("float16", "dynamic"):
        one = replace(request, mode=mode, tune=False)
        models.append(_model(one, mode, make(one, progress)[0]))
    if request.tune:
        models.append(_model(request, "dynamic, tuned", make(request, progress)[0]))
    models += _int8(request, options, progress)
    rows = compare(models, options.frames, request.seconds)
    progress(table(rows, "float32"))
    if options.frames and options.plot:
        write_plot(rows, options.plot)
        progress(f"wrote {options.plot}")
    progress("no bundle was written: choose one mode with --mode to write it")


def _model(request: Request, name: str, data: bytes) -> Model:
    return Model(name, data, result_recipe(request), request.output, request.labels)


def _int8(request: Request, options: TableOptions, progress: Progress) -> list[Model]:
    folder = options.calibration or options.frames
    paths = list(images(folder)) if folder else bundled_frames()
    if not paths:
        progress("int8 is left out: give real frames with --calibrate or --frames FOLDER")
        return []
    one = replace(request, mode="int8", tune=False, calibration=paths)
    frames = list(calibration_views(paths, request.recipe))
    source = folder or "the shipped bundles"
    progress(f"int8 calibrated on {len(frames)} views of {len(paths)} frames of {source}")
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
    """Return the golden and sample frames of the bundles in the project's own models folder."""
    return sorted(
        path
        for folder in SHIPPED_MODELS.glob("*/*")
        if VERSION.fullmatch(folder.name)
        for part in (GOLDEN, "samples")
        for path in (folder / part).glob("*")
    )


def calibration_views(paths: Sequence[Path], recipe: Recipe) -> Iterator[NDArray[np.float32]]:
    """Yield each frame as the float model's input, float32 [1, height, width, channels].

    With fewer than FEW_FRAMES paths, also yield its four corners at three quarters of its size,
    as if the camera were nearer. Raises ConvertError that names a file that is not a readable
    image.
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

"""A PyTorch module or exported program as a float32 .tflite, through litert-torch."""

import os
import sys
import tempfile
import zipfile
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError  # nosec B403 # an exception
from typing import Any

from convert.errors import ConvertError
from convert.sources.shapes import describe
from convert.terminal import suppress_native_output

INSTALL = "pip install -r convert/requirements-pytorch.txt, in a virtual environment of its own"


def from_module(module: Any, height: int, width: int, channels: int = 3) -> bytes:
    """Convert a `torch.nn.Module` of one image [1, channels, height, width] to a float32 .tflite.

    The .tflite takes [1, height, width, channels]; batch normalisation is folded into the
    convolutions. Raises ConvertError for a module that does not run on such an image or can't be
    exported.
    """
    torch, litert_torch = _packages()
    image = torch.zeros(1, height, width, channels)
    wrapped = litert_torch.to_channel_last_io(module, args=[0])
    with suppress_native_output(), torch.no_grad(), tempfile.TemporaryDirectory() as d:
        path = Path(d) / "model.tflite"
        try:
            wrapped(image)
            litert_torch.convert(wrapped, (image,)).export(str(path))
        except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
            raise ConvertError(
                f"the module can't be exported for an image of {channels} x {height} x {width}:"
                f" {_first(error)}"
            ) from None
        model = path.read_bytes()
    describe(model)
    return model


def exported_program(path: Path) -> bytes:
    """Convert a program saved by `torch.export.save`, of one image [1, channels, height, width], to
    a float32 .tflite. Raises ConvertError if it is none."""
    torch, _ = _packages()
    with suppress_native_output():
        try:
            program = torch.export.load(path)
        except (OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile):
            raise ConvertError(f"{path} is not a program that torch.export.save wrote") from None
    names = set(program.graph_signature.user_inputs)
    shapes = [tuple(n.meta["val"].shape) for n in program.graph.nodes if n.name in names]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        taken = ", ".join(str(list(shape)) for shape in shapes)
        raise ConvertError(
            f"{path} takes {taken}; a classifier takes one image [1, channels, height, width]"
        )
    _, channels, height, width = (int(n) for n in shapes[0])
    return from_module(program.module(), height, width, channels)


def load_module(name: str, weights: Path | None) -> Any:
    """Return the `torch.nn.Module` that `PACKAGE.MODULE:CALLABLE` returns, in evaluation mode.

    The current folder is searched too. weights: a state_dict file for it, as `torch.save` writes
    it. Raises ConvertError if one of the names does not exist, the callable fails or the
    weights don't fit.
    """
    torch, _ = _packages()
    place, _, factory = name.partition(":")
    if not place or not factory:
        raise ConvertError(f"{name} should be MODULE:CALLABLE")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        make = getattr(import_module(place), factory)
    except ImportError as error:
        raise ConvertError(f"{name}: {error}") from None
    except AttributeError:
        raise ConvertError(f"{name}: {place} has no {factory}") from None
    try:
        module = make()
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ConvertError(f"{name} fails: {_first(error)}") from None
    if not isinstance(module, torch.nn.Module):
        raise ConvertError(f"{name} returns {type(module).__name__}, not a torch.nn.Module")
    if weights is not None:
        _load_weights(torch, module, weights, name)
    return module.eval()


def _load_weights(torch: Any, module: Any, weights: Path, name: str) -> None:
    if not weights.is_file():
        raise ConvertError(f"{weights} does not exist")
    if not zipfile.is_zipfile(weights):
        raise ConvertError(f"{weights} is not a state_dict that torch.save wrote")
    try:
        module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except UnpicklingError:
        # Its message advises to load code from the file.
        raise ConvertError(
            f"{weights} holds more than tensors: save module.state_dict(), not the module"
        ) from None
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ConvertError(f"{weights} does not fit {name}: {_first(error)}") from None


def _packages() -> tuple[Any, Any]:
    try:
        with suppress_native_output():
            # By name: neither is there in the workstation's usual environment.
            return import_module("torch"), import_module("litert_torch")
    except ImportError as error:
        raise ConvertError(f"{error.name} is not installed: {INSTALL}") from None


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines()]
    # PyTorch's first line may only announce the ones that say it.
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return lines[0] if lines else type(error).__name__

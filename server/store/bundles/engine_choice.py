"""Chooses the engine that runs a version on this device.

`models/NAME/engine-VERSION.json` keeps the engine that `python -m server bench` found the quickest
here for a version, with the sha256 of the model's file. It is only a matter of speed: a file that
can't be used is logged and ignored.
"""

import logging
from pathlib import Path

import msgspec

from server.recognition.engines.engine import EngineOptions, installed, runnable
from server.recognition.manifest import Bundle, EngineName
from server.store.bundles.layout import engine_path
from server.system.files import read_plain_file, write_whole
from server.values import json_values
from server.values.validation import InvalidValueError

logger = logging.getLogger(__name__)


class EngineFigures(msgspec.Struct, frozen=True):
    """One engine that was measured. runtime: its name and version. fps: inferences a second, all
    cores busy. ms: median of one inference on one thread. difference: largest difference of its
    outputs from those of the usual engine, as a share of the largest output."""

    engine: EngineName
    runtime: str
    fps: float
    ms: float
    difference: float


class KeptChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engine that was found the quickest for the model with this sha256, and the figures.
    measured_at: RFC 3339."""

    engine: EngineName
    model_sha256: str
    measured_at: str
    figures: tuple[EngineFigures, ...]


def engine_options(bundle: Bundle, options: EngineOptions) -> EngineOptions:
    """Return the options of a device with the engine that runs `bundle`: the settings' if it can
    run such a file, else bundle.json's, else the kept choice, else `auto`."""
    names = runnable(bundle.model_path)
    if options.engine in names:
        return options
    own = bundle.manifest.engine
    engine = own if own != "auto" else load_choice(bundle) or "auto"
    return msgspec.structs.replace(options, engine=engine)


def load_choice(bundle: Bundle) -> EngineName | None:
    """Return the engine that was kept for `bundle`; None without, if it is of another model, or if
    the engine is not installed any more."""
    path = engine_path(bundle.folder)
    try:
        kept = json_values.decode(read_plain_file(path), KeptChoice, name="it", lenient=False)
        if kept.model_sha256 != bundle.model_sha256():
            raise InvalidValueError("it is of another model")
        if kept.engine not in installed(bundle.model_path):
            raise InvalidValueError(f"{kept.engine} is not installed")
    except FileNotFoundError:
        return None
    except (OSError, InvalidValueError) as error:
        fields = {"file": str(path), "reason": str(error)}
        logger.warning("a kept choice of an engine is ignored", extra={"fields": fields})
        return None
    return kept.engine


def keep_choice(bundle: Bundle, choice: KeptChoice) -> Path:
    """Keep the choice for `bundle`; return its file. Raises OSError."""
    path = engine_path(bundle.folder)
    write_whole(path, msgspec.json.format(msgspec.json.encode(choice), indent=1) + b"\n")
    return path

"""Figures of the device that `python -m server bench --export FILE` wrote there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from convert.bundle_writer import VERSION
from convert.errors import ConvertError
from convert.search.latency import FLOAT_MODES, Times
from convert.search.networks import Network
from server.errors import BundleError
from server.recognition.manifest import MANIFEST, MODEL, digest, read_bundle


class Inference(msgspec.Struct):
    """Milliseconds."""

    median: float


class Stages(msgspec.Struct):
    """Of a frame on one thread."""

    inference: Inference


class Device(msgspec.Struct):
    """The figures that are needed. model, version, sha256: of the bundle that was measured.
    stages: by frame, `sample` among them."""

    model: str
    version: int
    sha256: str
    machine: str
    runtime: str
    stages: dict[str, Stages]


def read_device(file: Path) -> Device:
    """Return the figures in `file`. Raises ConvertError if it holds none."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Device)
        if found.stages["sample"].inference.median > 0:
            return found
        problem = "its inference takes no time"
    except OSError as error:
        problem = f"it can't be read: {error.strerror}"
    except msgspec.DecodeError as error:
        problem = str(error)
    except KeyError:
        problem = "it has no figures of the frame sample"
    raise ConvertError(
        f"--device {file} is not what `python -m server bench --export FILE` writes: {problem}"
    )


@dataclass(frozen=True, slots=True)
class Reference:
    """The model that was measured on the device, to be measured here too: its bytes, its mode, and
    the milliseconds that it takes there."""

    model: bytes
    mode: str
    there: float


def references(files: Sequence[Path], models: Sequence[Path]) -> tuple[dict[str, Reference], str]:
    """Return the models of the figures by their mode, and the name of the device.

    models: folders of bundles in which the models are looked for. Raises ConvertError for a file
    that holds no figures, for figures of two machines or two of one mode, and for a model that is
    not in `models` or is no .tflite.
    """
    found: dict[str, Reference] = {}
    devices = [read_device(file) for file in files]
    names = sorted({each.machine for each in devices})
    if len(names) > 1:
        raise ConvertError(f"--device has figures of several machines: {', '.join(names)}")
    for file, each in zip(files, devices, strict=True):
        mode, model = _model(each, file, models)
        if mode in found:
            raise ConvertError(
                f"--device has two figures of a model whose mode is {mode}: give one"
            )
        found[mode] = Reference(model, mode, each.stages["sample"].inference.median)
    runtimes = ", ".join(sorted({each.runtime for each in devices}))
    return found, f"{names[0]}, {runtimes}"


def _model(device: Device, file: Path, models: Sequence[Path]) -> tuple[str, bytes]:
    for folder in models:
        for path in sorted((folder / device.model).glob(f"*/{MANIFEST}")):
            data = path.with_name(MODEL)
            if not VERSION.fullmatch(path.parent.name) or not data.is_file():
                continue
            if digest(data) != device.sha256:
                continue
            try:
                manifest = read_bundle(path.parent).manifest
            except BundleError as error:
                raise ConvertError(f"--device {file}: {error}") from None
            return str(manifest.quantization), data.read_bytes()
    raise ConvertError(
        f"--device {file} has figures of {device.model}/{device.version}, which is not in"
        f" {' or '.join(map(str, models))}: it is measured here too, so copy the device's bundle"
        " there"
    )


def device_times(
    times: Times, networks: Sequence[Network], found: Mapping[str, Reference]
) -> dict[Network, float]:
    """Return the milliseconds that networks take on the device: those here, times the ratio of the
    reference of the same arithmetic. Networks of another arithmetic are left out, since what int8
    gains differs by processor."""
    ratio = {mode: each.there / times.reference[mode] for mode, each in found.items()}
    # These compute alike.
    for mode in FLOAT_MODES:
        for other in FLOAT_MODES:
            if mode in ratio:
                ratio.setdefault(other, ratio[mode])
    return {
        each: times.networks[str(each)] * ratio[each.mode]
        for each in networks
        if each.mode in ratio
    }

"""python -m server fleet upgrade: brings this program to many devices, one after the other.

A device gets the program's files by its shell, and installs them by their scripts/install, which
keeps the old program until the new one is confirmed. It is confirmed if the device answers at its
address with the new program, is ready, and gets its golden frame right. If not, or if the
connection ends, the device goes back to the old program by itself, and no further device is
touched.
"""

import argparse
import base64
import io
import shlex
import tarfile
import time
from pathlib import Path
from urllib.parse import quote

import msgspec

from server.cli.fleet.device import Device, DeviceError, Served, decode
from server.cli.fleet.hosts import find_devices
from server.cli.fleet.shells import RemoteCommand, run
from server.cli.fleet.status import Measured, measured, program_text
from server.errors import StartError
from server.recognition.manifest import MANIFEST, Golden
from server.system.program import program_id

REQUIREMENTS = ("requirements.txt", "requirements.lock")
# What scripts/install needs of a checkout. Models stay as the device has them.
PARTS = ("server", "scripts", "deploy/systemd", "README.md", "LICENSE", *REQUIREMENTS)
INSTALLER = "scripts/install"
# Where scripts/install puts the bundles.
MODELS = "/var/lib/lineside/models"
CONFIRM = "--confirm"
# Seconds in which a new program is confirmed, the device's own wait somewhat longer; in which a
# device that goes back is ready again; and between two looks.
CONFIRM_TIMEOUT_S, BACK_TIMEOUT_S, POLL_S = 60.0, 120.0, 0.5
# /tmp may be in memory. What is sent goes with the shell, however that ends.
UNPACK = (
    "set -e; d=$(mktemp -d /var/tmp/lineside-upgrade.XXXXXX); trap 'rm -rf $d' EXIT; "
    "tar -xz -f - -C $d; trap - EXIT; echo $d"
)
INSTALL = (
    "d={folder}; trap 'rm -rf $d' EXIT; cd $d; "
    'if [ "$(id -u)" = 0 ]; then scripts/install {confirm}; '
    "else sudo -n scripts/install {confirm}; fi"
)


class GoldenFrames(msgspec.Struct, frozen=True):
    """The golden frames in a bundle.json."""

    task: str = "classify"
    golden: tuple[Golden, ...] = ()


class Setting(msgspec.Struct, frozen=True):
    """A setting of a device."""

    name: str
    value: object


class SettingList(msgspec.Struct, frozen=True):
    """The settings of a device."""

    settings: tuple[Setting, ...]


class Explained(msgspec.Struct, frozen=True):
    """Return what a device finds in a frame that is not judged."""

    label: str | None
    probability: float | None


class GoldenFrame(msgspec.Struct, frozen=True):
    """A frame of one of the device's bundles, and what it has to be."""

    model: str
    version: int
    data: bytes
    golden: Golden


class Before(msgspec.Struct, frozen=True):
    """The device before its upgrade. frame: None if no bundle that serves has one."""

    figures: Measured
    served: frozenset[tuple[str, int]]
    frame: GoldenFrame | None


def pack(source: Path) -> bytes:
    """Return the program in the checkout `source` as a compressed tar archive. Raises StartError if
    it is none, or comes before `--confirm`."""
    installer = source / INSTALLER
    if installer.is_file() and f'"{CONFIRM} "' not in installer.read_text("utf-8"):
        raise StartError(f"{installer} can't go back by itself: it does not know {CONFIRM}")
    if missing := [name for name in PARTS if not (source / name).exists()]:
        raise StartError(f"{source} is no checkout of Lineside: it has no {missing[0]}")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name in PARTS:
            archive.add(source / name, name, filter=_plain)
    return out.getvalue()


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Remove the owner, and what Python makes."""
    if "__pycache__" in Path(member.name).parts:
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def upgrade(args: argparse.Namespace) -> int:
    """Print a line a device; return 0 if all run the program of `args.source`, else 1.

    Raises StartError if there is no program, or no such device.
    """
    devices = find_devices(args)
    source: Path = args.source
    archive, program = pack(source), program_id(source / "server")
    for number, device in enumerate(devices):
        try:
            print(f"{device.name}: {_upgrade(device, args, archive, program)}", flush=True)
        except DeviceError as error:
            print(f"{device.name}: failed, {error}", flush=True)
            for rest in devices[number + 1 :]:
                print(f"{rest.name}: untouched", flush=True)
            return 1
    return 0


def _upgrade(device: Device, args: argparse.Namespace, archive: bytes, program: str) -> str:
    """Return what became of it. Raises DeviceError, whose sentence says what serves then."""
    try:
        device.ask("GET", "/readyz")
        figures = measured(device)
        if figures.program == program:
            return f"has the program {program_text(figures)} already"
        before = Before(figures, _served(device.models()), _golden_frame(device, args.reach))
        _check_before(device, before)
        folder = run(args.reach, device.shell, UNPACK, archive)
    except DeviceError as error:
        raise DeviceError(f"{error}; nothing was changed") from None
    confirm = f"{CONFIRM} {round(CONFIRM_TIMEOUT_S * 2)}"
    command = INSTALL.format(folder=shlex.quote(folder), confirm=confirm)
    with RemoteCommand(args.reach, device.shell, command) as remote:
        fault = _install(device, remote, before, program, args.install_timeout)
        code = remote.finish()
    if fault is None and code != 0:
        how = "does not end" if code is None else f"failed ({code})"
        fault = f"scripts/install {how}: {remote.last_words()}"
    if fault is not None:
        raise DeviceError(f"{fault}; {_after_failure(device, before)}")
    golden = "its golden frame is right" if before.frame else "no bundle has a golden frame"
    return f"runs {program_text(measured(device))}, before {program_text(figures)}; {golden}"


def _install(
    device: Device, remote: RemoteCommand, before: Before, program: str, timeout: float
) -> str | None:
    """Wait for the new program, check it, and confirm it; return the fault, None if all is well."""
    if not remote.await_line("confirm within", timeout):
        return f"scripts/install did not come to its end: {remote.last_words()}"
    try:
        _check(device, before, program)
        remote.send(b"keep\n")
    except DeviceError as error:
        return f"the new program fails its check: {error}"
    return None


def _check(device: Device, before: Before, program: str) -> None:
    """Raise DeviceError unless the device is as well with the new program as it was."""
    _await_ready(device, CONFIRM_TIMEOUT_S)
    now = measured(device)
    if now.program != program:
        raise DeviceError(f"another program answers: {program_text(now)}")
    # A model that was loaded by its first frame may not be yet.
    serving = {each.name: each.serving for each in device.models() if each.serving is not None}
    for name, version in sorted(before.served):
        if (other := serving.get(name, version)) != version:
            raise DeviceError(f"{name}/{other} serves, in place of {name}/{version}")
    if before.frame is not None:
        _check_frame(device, before.frame)


def _check_before(device: Device, before: Before) -> None:
    """Raise DeviceError if the golden frame can't be asked for, or is wrong, before anything is
    changed. An old program may not know the question."""
    if before.frame is not None:
        try:
            _check_frame(device, before.frame)
        except DeviceError as error:
            if error.status not in (404, 405):
                raise


def _served(models: tuple[Served, ...]) -> frozenset[tuple[str, int]]:
    return frozenset((each.name, each.serving) for each in models if each.serving is not None)


def _check_frame(device: Device, frame: GoldenFrame) -> None:
    """Raise DeviceError unless the device finds in the frame what it has to. It is explained, not
    judged: journal, outputs and counts of the line know nothing of it."""
    path = f"/v1/explain?model={quote(frame.model)}&version={frame.version}"
    found = decode(device.ask("POST", path, frame.data, "image/jpeg"), Explained)
    wanted = frame.golden
    near = (
        found.probability is not None
        and abs(found.probability - wanted.probability) <= wanted.tolerance
    )
    if found.label != wanted.label or not near:
        raise DeviceError(
            f"the golden frame {wanted.file} should be {wanted.label} at {wanted.probability:.3f}"
            f" but it is {found.label} at {found.probability or 0:.3f}"
        )


def _golden_frame(device: Device, reach: str) -> GoldenFrame | None:
    """Return a golden frame of a classifier that serves, read by the device's shell; None if there
    is none. Raises DeviceError."""
    models = MODELS
    try:
        settings = device.get("/v1/settings", SettingList).settings
        models = next((str(each.value) for each in settings if each.name == "models"), models)
    except DeviceError as error:
        if error.status != 404:  # of an older program
            raise
    for name, version in sorted(_served(device.models())):
        folder = f"{models}/{name}/{version}"
        manifest = _frames(_read(device, reach, f"{folder}/{MANIFEST}"), folder)
        # Frames of a region are a part of a frame, which only the server can check.
        plain = [golden for golden in manifest.golden if not golden.region]
        if manifest.task == "classify" and plain:
            data = _read(device, reach, f"{folder}/{plain[0].file}")
            return GoldenFrame(name, version, data, plain[0])
    return None


def _frames(text: bytes, folder: str) -> GoldenFrames:
    try:
        return msgspec.json.decode(text, type=GoldenFrames)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise DeviceError(f"its {folder}/{MANIFEST} can't be read") from None


def _read(device: Device, reach: str, path: str) -> bytes:
    """Return a file of the device, which its service alone may read."""
    quoted = shlex.quote(path)
    command = (
        f'if [ "$(id -u)" = 0 ]; then base64 -w0 {quoted}; else sudo -n base64 -w0 {quoted}; fi'
    )
    try:
        return base64.b64decode(run(reach, device.shell, command), validate=True)
    except ValueError:
        raise DeviceError(f"its {path} can't be read by its shell") from None


def _await_ready(device: Device, timeout: float) -> None:
    """Return once the device is ready. Raises DeviceError if it is not within `timeout` seconds."""
    until = time.monotonic() + timeout
    while True:
        try:
            device.ask("GET", "/readyz")
            return
        except DeviceError:
            if time.monotonic() >= until:
                raise
        time.sleep(POLL_S)


def _after_failure(device: Device, before: Before) -> str:
    """Return which program serves now, once one does."""
    try:
        _await_ready(device, BACK_TIMEOUT_S)
        now = measured(device)
    except DeviceError as error:
        return f"and the device is not ready: {error}"
    if now.program == before.figures.program and now.version == before.figures.version:
        return f"it is back on the old program {program_text(now)}"
    return f"it runs {program_text(now)}"

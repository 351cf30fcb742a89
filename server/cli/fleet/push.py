"""python -m server fleet push: sends one bundle to many devices, one device after the other.

A device gets the bundle's files, activates the version (which checks its golden frames), and must
then be ready with it. At the first failure no further device is touched.
"""

import argparse
import io
import tarfile
from pathlib import Path
from urllib.parse import quote

from server.cli.fleet.device import Device, DeviceError
from server.cli.fleet.hosts import find_devices
from server.errors import StartError
from server.recognition.manifest import MANIFEST, SIGNATURE, Manifest, read_bundle
from server.store.bundles.layout import versions_of


def pack(bundle: Path, manifest: Manifest) -> bytes:
    """Return the bundle's files as an uncompressed tar archive, as /upload takes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.dereference = True
        signature = (SIGNATURE,) if (bundle / SIGNATURE).exists() else ()
        for name in (MANIFEST, *signature, *manifest.sha256):
            archive.add(bundle / name, name, recursive=False, filter=_without_owner)
    return out.getvalue()


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Remove the owner: a user's number beyond 2,097,151 has no room in ustar."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _take(device: Device, manifest: Manifest, archive: bytes) -> None:
    """Send the version and activate it. Raises DeviceError if the device is not ready with it."""
    path = f"/v1/models/{quote(manifest.name)}/upload"
    device.ask("POST", path, archive, "application/x-tar")
    device.activate(manifest.name, manifest.version)
    device.ask("GET", "/readyz")


def _back_to(device: Device, model: str, version: int | None) -> None:
    """Have it serve again what served before. Raises DeviceError if that was no version."""
    if version is None:
        raise DeviceError("it served no version before")
    device.activate(model, version)


def push(args: argparse.Namespace) -> int:
    """Print a line a device; return 0 if all serve the bundle, else 1.

    Raises BundleError if the bundle is not intact, StartError for a folder of versions.
    """
    folder = args.bundle.absolute()
    inside = versions_of(folder.parent, folder.name)
    if inside and not (folder / MANIFEST).exists():
        raise StartError(
            f"{args.bundle} holds versions: name one of them, such as {args.bundle}/{inside[0]}"
        )
    manifest = read_bundle(args.bundle).manifest
    archive, devices = pack(args.bundle, manifest), find_devices(args)
    name, changed = f"{manifest.name}/{manifest.version}", list[tuple[Device, int | None]]()
    for number, device in enumerate(devices):
        before: int | None = None
        try:
            before = device.serving(manifest.name)
            _take(device, manifest, archive)
        except DeviceError as error:
            print(f"{device.name}: failed, {error}", flush=True)
            if _serves(device, manifest) and before != manifest.version:
                changed.append((device, before))
            _give_up(changed, devices[number + 1 :], manifest.name, args.rollback_on_failure)
            return 1
        if before == manifest.version:
            print(f"{device.name}: served {name} already", flush=True)
        else:
            print(f"{device.name}: serves {name}, before {before or 'none'}", flush=True)
            changed.append((device, before))
    return 0


def _serves(device: Device, manifest: Manifest) -> bool:
    """Return whether the device serves the version although a step failed."""
    try:
        return device.serving(manifest.name) == manifest.version
    except DeviceError:
        return False  # it does not answer; what failed was printed already


def _give_up(
    changed: list[tuple[Device, int | None]], rest: list[Device], model: str, back: bool
) -> None:
    for device, before in reversed(changed):
        if not back:
            print(f"{device.name}: changed, and left so", flush=True)
            continue
        try:
            _back_to(device, model, before)
            print(f"{device.name}: back to {model}/{before}", flush=True)
        except DeviceError as error:
            print(f"{device.name}: changed, and not rolled back: {error}", flush=True)
    for device in rest:
        print(f"{device.name}: untouched", flush=True)

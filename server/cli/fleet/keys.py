"""python -m server fleet key: one name of a key on every device."""

import argparse
import sys
from urllib.parse import quote

import msgspec

from server.cli.fleet.device import Device, DeviceError
from server.cli.fleet.hosts import find_devices, on_each


class MadeKey(msgspec.Struct, frozen=True):
    """A key that a device made."""

    key: str


class KnownKey(msgspec.Struct, frozen=True):
    """A key of a device, without itself."""

    name: str
    rights: tuple[str, ...]
    expires: str | None
    expired: bool
    last_used: str | None


class KeyList(msgspec.Struct, frozen=True):
    """The keys of a device."""

    keys: tuple[KnownKey, ...]


def _add(device: Device, args: argparse.Namespace) -> str:
    wanted = {"name": args.name, "rights": args.rights.split(",")}
    if args.expires:
        wanted["expires"] = args.expires
    return device.post("/v1/keys", wanted, MadeKey).key


def _list(device: Device) -> str:
    texts = []
    for key in device.get("/v1/keys", KeyList).keys:
        ends = f", until {key.expires}{' (expired)' * key.expired}" if key.expires else ""
        used = f", used {key.last_used}" if key.last_used else ""
        texts.append(f"{key.name} ({', '.join(key.rights)}{ends}{used})")
    return "; ".join(texts) or "no keys"


def _revoke(device: Device, name: str) -> str:
    try:
        device.ask("DELETE", f"/v1/keys/{quote(name, safe='')}")
    except DeviceError as error:
        if error.status == 404:
            return f"has no key {name}"
        raise
    return f"{name} no longer opens anything"


def keys(args: argparse.Namespace) -> int:
    """Make, list or revoke keys on all devices, a line each; return 0 if all did it, else 1."""

    def work(device: Device) -> str:
        if args.key_action == "add":
            return _add(device, args)
        return _list(device) if args.key_action == "list" else _revoke(device, args.name)

    code, done = 0, 0
    for device, found in on_each(find_devices(args), work, args.parallel):
        if isinstance(found, DeviceError):
            print(f"{device.name}: failed, {found}", flush=True)
            code = 1
        else:
            print(f"{device.name}: {found}", flush=True)
            done += 1
    if args.key_action == "add" and done:
        print("devices hold only hashes: this is the one time the keys are shown", file=sys.stderr)
    return code

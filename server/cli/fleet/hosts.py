"""Finds the devices of a fleet: the host file, or addresses; and work on many of them at once."""

import argparse
import os
import re
import ssl
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from server.cli.fleet.device import Device, DeviceError
from server.errors import StartError
from server.system.files import read_plain_file
from server.values import validation
from server.values.validation import InvalidValueError

# The environment variable with the API key for the devices.
KEY_VARIABLE = "FLEET_KEY"
# A name is also a folder's; what a shell is given must not look like an option.
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(?!\n)$"
SHELL = r"^([A-Za-z0-9_][A-Za-z0-9_.@:-]*(?!\n))?$"

T = TypeVar("T")


class HostEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table `[[device]]`. key: its API key, or key_file: the file with it, from the folder of
    the host file. group: of several. shell: where ssh finds it, USER@HOST; empty: the address's
    host."""

    name: Annotated[str, Meta(pattern=NAME)]
    address: Annotated[str, Meta(min_length=1)]
    group: str = ""
    key: str = ""
    key_file: str = ""
    shell: Annotated[str, Meta(pattern=SHELL)] = ""


class HostFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The host file. key_file: of the devices that name no key of their own."""

    device: Annotated[tuple[HostEntry, ...], Meta(min_length=1)]
    key_file: str = ""


def read_hosts(path: Path) -> HostFile:
    """Read a host file, strictly. Raises StartError, with a sentence."""
    try:
        values = tomllib.loads(read_plain_file(path).decode())
        file = validation.convert(values, HostFile, lenient=False)
    except OSError as error:
        raise StartError(f"the host file {path} can't be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartError(f"the host file {path} is not valid TOML: {error}") from None
    except InvalidValueError as error:
        raise StartError(f"the host file {path}: {error}") from None
    names = [each.name for each in file.device]
    for each in file.device:
        if names.count(each.name) > 1:
            raise StartError(f"the host file {path} has two devices named {each.name}")
        if each.key and each.key_file:
            raise StartError(f"the host file {path}: {each.name} has both key and key_file")
    if any(each.key for each in file.device) and path.stat().st_mode & 0o077:
        raise StartError(f"the host file {path} holds keys and others may read it: chmod 600 it")
    return file


def find_devices(args: argparse.Namespace) -> list[Device]:
    """Return the devices that a command is for: those of the host file `--hosts` that are named, in
    `--group`, or all; without a host file, those at the addresses that are named. Raises
    StartError."""
    tls = _tls(args)
    if args.hosts_file is None:
        if args.group:
            raise StartError("--group needs a host file: name it with --hosts")
        if not args.hosts:
            raise StartError("name devices, or a host file with --hosts")
        key = _key(args.key_file) if args.key_file else os.environ.get(KEY_VARIABLE, "")
        return [Device(host, host, key, args.timeout, tls) for host in args.hosts]
    file = read_hosts(args.hosts_file)
    names = {each.name for each in file.device}
    if unknown := [host for host in args.hosts if host not in names]:
        raise StartError(f"{args.hosts_file} has no device {unknown[0]}: it has {', '.join(names)}")
    chosen = [
        each
        for each in file.device
        if (not args.hosts or each.name in args.hosts)
        and (not args.group or each.group == args.group)
    ]
    if not chosen:
        raise StartError(f"{args.hosts_file} has no such device in the group {args.group}")
    return [_device(each, file, args, tls) for each in chosen]


def _device(
    entry: HostEntry, file: HostFile, args: argparse.Namespace, tls: ssl.SSLContext | None
) -> Device:
    folder: Path = args.hosts_file.parent
    key = entry.key or os.environ.get(KEY_VARIABLE, "")
    if entry.key_file:
        key = _key(folder / entry.key_file)
    elif not entry.key and args.key_file:
        key = _key(args.key_file)
    elif not entry.key and file.key_file:
        key = _key(folder / file.key_file)
    return Device(entry.name, entry.address, key, args.timeout, tls, entry.shell)


def _key(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"the key file {path} can't be read: {error}") from None


def _tls(args: argparse.Namespace) -> ssl.SSLContext | None:
    """Return the TLS of https:// addresses by the flags --ca and --client-certificate. Raises
    StartError if a file can't be used."""
    if not args.ca and not args.client_certificate:
        return None
    try:
        context = ssl.create_default_context(cafile=args.ca)
        if args.client_certificate:
            context.load_cert_chain(args.client_certificate)
    except OSError as error:  # ssl.SSLError among them
        files = " and ".join(str(path) for path in (args.ca, args.client_certificate) if path)
        raise StartError(f"{files} can't be used: {error.strerror or 'no PEM file'}") from None
    return context


def on_each(
    devices: Sequence[Device], work: Callable[[Device], T], parallel: int
) -> Iterator[tuple[Device, T | DeviceError]]:
    """Yield each device with what `work` returned of it, or the DeviceError that it raised, in the
    order of `devices`. At most `parallel` are worked on at a time."""

    def attempt(device: Device) -> T | DeviceError:
        try:
            return work(device)
        except DeviceError as error:
            return error

    with ThreadPoolExecutor(max_workers=parallel) as pool:
        yield from zip(devices, pool.map(attempt, devices), strict=True)


def folder_name(device: Device) -> str:
    """Return the device's name as that of a folder: one given as an address has other signs."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", device.name).lstrip(".") or "_"

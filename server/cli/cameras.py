"""python -m server cameras: lists the USB cameras that are plugged in, by Video4Linux.

https://docs.kernel.org/userspace-api/media/v4l/vidioc-querycap.html and vidioc-enum-fmt.html
"""

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

SYS_FOLDER, DEVICE_FOLDER = Path("/sys/class/video4linux"), Path("/dev")
# struct v4l2_capability: driver, card, bus_info, version, capabilities, device_caps, reserved.
CAPABILITY = struct.Struct("=16s32s32sIII12x")
# struct v4l2_fmtdesc: index, type, flags, description, pixelformat, mbus_code, reserved.
FORMAT = struct.Struct("=III32s4s16x")
VIDIOC_QUERYCAP, VIDIOC_ENUM_FMT = 0x80685600, 0xC0405602
V4L2_CAP_VIDEO_CAPTURE = V4L2_BUF_TYPE_VIDEO_CAPTURE = 1
FORMATS_MAX = 64

Ioctl = Callable[[int, int, bytes], bytes]


class Device(NamedTuple):
    """One device that gives pictures. formats: four letters each, such as MJPG. fault: why it
    could not be asked; empty if it could."""

    path: Path
    name: str
    formats: tuple[str, ...]
    fault: str = ""


def find_devices(
    sys_folder: Path = SYS_FOLDER, device_folder: Path = DEVICE_FOLDER, ioctl: Ioctl = fcntl.ioctl
) -> list[Device]:
    """Return the devices that give pictures, by their numbers. A camera may have others too, for
    its metadata."""
    folders = sys_folder.glob("video*") if sys_folder.is_dir() else ()
    devices = []
    for folder in sorted(folders, key=lambda each: (len(each.name), each.name)):
        path = device_folder / folder.name
        name = (folder / "name").read_text("utf-8", "replace").strip()
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        except OSError as error:
            devices.append(Device(path, name, (), f"can't be opened: {error.strerror}"))
            continue
        try:
            answer = ioctl(descriptor, VIDIOC_QUERYCAP, bytes(CAPABILITY.size))
            *_, device_caps = CAPABILITY.unpack(answer)
            if device_caps & V4L2_CAP_VIDEO_CAPTURE:
                devices.append(Device(path, name, tuple(_formats(descriptor, ioctl))))
        except OSError as error:
            devices.append(Device(path, name, (), f"can't be asked: {error.strerror}"))
        finally:
            os.close(descriptor)
    return devices


def _formats(descriptor: int, ioctl: Ioctl) -> Iterator[str]:
    """Yield the formats of a device. Raises OSError."""
    for index in range(FORMATS_MAX):
        asked = FORMAT.pack(index, V4L2_BUF_TYPE_VIDEO_CAPTURE, 0, b"", b"")
        try:
            answer = ioctl(descriptor, VIDIOC_ENUM_FMT, asked)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return  # there is no more
            raise
        yield FORMAT.unpack(answer)[4].decode("ascii", "replace").strip()


def run() -> int:
    """Print a line for each device."""
    devices = find_devices()
    for device in devices:
        what = device.fault or "formats " + ", ".join(device.formats)
        print(f"{device.path}  {device.name}  {what}")
    if not devices:
        print(f"no USB camera is plugged in: the kernel lists none in {SYS_FOLDER}")
    return 0

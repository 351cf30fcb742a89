"""`python -m server cameras`. No machine of the tests has a camera, so the kernel's answers are
written here as linux/videodev2.h lays them out."""

import errno
import struct
from pathlib import Path

import pytest

from server.cli.cameras import (
    CAPABILITY,
    FORMAT,
    SYS_FOLDER,
    VIDIOC_ENUM_FMT,
    VIDIOC_QUERYCAP,
    Device,
    find_devices,
)
from server.cli.main import main
from server.config.cameras import UsbCamera
from server.line.cameras.process import ReaderProcess
from server.line.cameras.sources import SourceError

FORMATS = (b"YUYV", b"MJPG")


def answer(descriptor: int, request: int, data: bytes) -> bytes:
    """What a webcam's driver says."""
    if request == VIDIOC_QUERYCAP:
        return struct.pack("=16s32s32s6I", b"uvcvideo", b"C920", b"usb", 6, 1 << 31, 1, 0, 0, 0)
    index, kind = struct.unpack_from("=II", data)
    if index >= len(FORMATS):
        raise OSError(errno.EINVAL, "no more")
    return struct.pack("=III32s4s4I", index, kind, 0, b"", FORMATS[index], 0, 0, 0, 0)


def plug_in(folder: Path, *names: str) -> None:
    for name in names:
        (folder / "sys" / name).mkdir(parents=True)
        (folder / "sys" / name / "name").write_text("C920\n")
        (folder / name).touch()


def test_cameras_are_listed_with_their_formats(tmp_path: Path) -> None:
    plug_in(tmp_path, "video0", "video10", "video2")
    devices = find_devices(tmp_path / "sys", tmp_path, answer)
    names = ("video0", "video2", "video10")
    assert devices == [Device(tmp_path / name, "C920", ("YUYV", "MJPG")) for name in names]


def test_device_that_is_no_camera_is_listed_with_its_fault(tmp_path: Path) -> None:
    """A plain file, which the kernel itself refuses to ask."""
    plug_in(tmp_path, "video0", "video1")
    (tmp_path / "video1").unlink()
    faults = [device.fault for device in find_devices(tmp_path / "sys", tmp_path)]
    assert faults == [
        "can't be asked: Inappropriate ioctl for device",
        "can't be opened: No such file or directory",
    ]


def test_requests_have_the_sizes_of_their_structures() -> None:
    """Bits 16 to 29 of a request (include/uapi/asm-generic/ioctl.h)."""
    assert CAPABILITY.size == VIDIOC_QUERYCAP >> 16 & 0x3FFF
    assert FORMAT.size == VIDIOC_ENUM_FMT >> 16 & 0x3FFF


@pytest.mark.skipif(SYS_FOLDER.exists(), reason="this machine may have a camera")
def test_machine_without_a_camera_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cameras"]) == 0
    assert capsys.readouterr().out.startswith("no USB camera is plugged in")


@pytest.mark.parametrize(
    ("device", "fault"), [("/dev/no-video", "there is no device"), ("/etc/passwd", "is no device")]
)
def test_usb_camera_that_is_not_there_is_lost(device: str, fault: str) -> None:
    table = UsbCamera(name="a", device=device)
    with ReaderProcess(table) as reader, pytest.raises(SourceError, match=fault):
        reader.take(0.0, 30.0, 60)

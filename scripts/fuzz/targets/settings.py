"""Settings: TOML files with their tables, and variables of the environment."""

import tempfile
from pathlib import Path

from fuzz.target import Target, promise
from server.config.load import load, merge_settings, settings_in_force, to_environ
from server.errors import SettingsError

FILE = b"""port = 8080
models = "models"
preload = ["iris"]
max_wait_ms = 500.5
trusted_proxies = ["10.0.0.0/8"]
[recipe]
width = 32
height = 24
region = [0, 0, 0.5, 1]
[[camera]]
name = "st4"
kind = "mjpeg"
url = "http://10.0.0.5/stream"
[[output]]
name = "line"
kind = "mqtt"
host = "10.0.0.6"
[[output]]
name = "plc"
kind = "modbus-server"
port = 1502
[[trigger]]
name = "gate"
kind = "mqtt"
camera = "st4"
host = "10.0.0.6"
topic = "line/4"
[[product]]
name = "nut"
model = "nuts"
"""
ENVIRON = b"""LINESIDE_PORT=8080
LINESIDE_PRELOAD=iris,parts
LINESIDE_MAX_WAIT_MS=500
LINESIDE_RECIPE={"width": 8, "height": 8}
LINESIDE_CAMERA=[{"name": "a", "kind": "folder", "path": "/tmp"}]
LINESIDE_OUTPUT=[{"name": "hook", "kind": "webhook", "url": "http://10.0.0.7/x"}]
"""
WORDS = (
    *(
        b"[[output]]\n",
        b"[[camera]]\n",
        b"kind = ",
        b"name = ",
        b'"""',
        b"'''",
        b"0x" + b"f" * 4400,
    ),
    *(
        b"1979-05-27",
        b"0b1",
        b"1_0",
        b"inf",
        b"{a = 1}",
        b"a.b = 1\n",
        b"LINESIDE_",
        b'{"kind": "mqtt"',
    ),
)


class _File:
    def __init__(self) -> None:
        self._path = Path(tempfile.mkdtemp()) / "lineside.toml"

    def run(self, data: bytes) -> None:
        self._path.write_bytes(data)
        settings = load({}, file=self._path)
        settings_in_force(settings)
        promise(load(to_environ(settings)) == settings, "the environment makes other settings")


def _environ(data: bytes) -> None:
    lines = data.decode("utf-8", "replace").replace("\0", "").splitlines()
    pairs = (line.partition("=") for line in lines)
    load({name: value for name, _, value in pairs if name != "LINESIDE_CONFIG"})


def _merge(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    merge_settings(text, {"port": 1, "max_wait_ms": 2.5})


def targets() -> tuple[Target, ...]:
    return (
        Target("settings-file", _File().run, (FILE,), WORDS, (SettingsError,)),
        Target("settings-environment", _environ, (ENVIRON,), WORDS, (SettingsError,)),
        Target("settings-merge", _merge, (FILE,), WORDS, (ValueError,)),
    )

"""Commands on devices: how their shells end, and what they leave."""

from pathlib import Path

import pytest

from server.cli.fleet import shells
from server.cli.fleet.device import DeviceError
from server.cli.fleet.shells import RemoteCommand, run
from server.cli.fleet.upgrade import UNPACK

# Gets a target and a command, as ssh does.
SHELL = """sh -c 'eval "$1"'"""
# The same, where mktemp makes FOLDER/sent.
SHELL_IN = """sh -c 'mktemp() {{ mkdir {0}/sent; echo {0}/sent; }}; eval "$1"'"""


def test_a_command_that_does_not_end_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shells, "END_TIMEOUT_S", 0.1)
    with pytest.raises(DeviceError, match="does not end: half"):
        run(SHELL, "st4", "echo half; exec sleep 60")


def test_what_keeps_the_output_open_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a connection that ssh keeps for later ones."""
    monkeypatch.setattr(shells, "OUTPUT_TIMEOUT_S", 0.1)
    command = "sleep 600 & echo $!; echo said"
    with RemoteCommand(SHELL, "st4", command) as remote:
        code = remote.finish()
    pid = Path("/proc") / remote.lines[0]
    try:
        assert (code, pid.exists()) == (0, True)
    finally:
        run(SHELL, "st4", f"kill {pid.name}")


def test_what_can_not_be_unpacked_leaves_nothing(tmp_path: Path) -> None:
    reach = SHELL_IN.format(tmp_path)
    with pytest.raises(DeviceError, match="its shell failed"):
        run(reach, "st4", UNPACK, b"no archive")
    assert not list(tmp_path.iterdir())

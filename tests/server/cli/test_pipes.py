"""Commands whose reader has seen enough: no traceback."""

import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from server_process import ROOT, environ_without_coverage

from server.store.keys import add_key

# What a reader takes that is gone before anything is written, and one that takes a line.
READERS = ("true", "head -n 1")
COMMANDS = (
    ["settings"],
    ["key", "list"],
    ["key", "add", "another"],
    ["journal", "--data", "{data}"],
    ["check"],
    ["health"],
    ["fleet", "status", "127.0.0.1:9"],
    ["--help"],
    ["serve", "--help"],
    ["nonsense"],
)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("ends", ["|", "2>&1 |"])
def test_command_with_a_closed_pipe_ends_quietly(
    colors: Path, tmp_path: Path, command: list[str], reader: str, ends: str
) -> None:
    keys = tmp_path / "keys.jsonl"
    add_key(keys, "a", ["recognize"], now=datetime(2026, 1, 1, tzinfo=UTC))
    env = environ_without_coverage()
    env |= {"LINESIDE_KEYS_FILE": str(keys), "LINESIDE_MODELS": str(colors)}
    words = [sys.executable, "-m", "server", *(w.format(data=tmp_path) for w in command)]
    # The reader is gone before the command begins to write.
    script = f"{{ {shlex.join(words)}; }} {ends} {reader}; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr + done.stdout
    assert done.stdout.splitlines()[-1] in ("0", "1", "2")


@pytest.mark.parametrize("output", [">&-", ">/dev/full"])
@pytest.mark.parametrize("command", ["settings", "--help", "key list"])
def test_command_without_an_output_ends_quietly(tmp_path: Path, command: str, output: str) -> None:
    env = environ_without_coverage()
    env |= {"LINESIDE_KEYS_FILE": str(tmp_path / "keys.jsonl")}
    script = f"{shlex.quote(sys.executable)} -m server {command} {output}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or "the output can't be written" in done.stderr

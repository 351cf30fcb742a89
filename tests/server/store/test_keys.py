"""The keys file where several change it at once."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from live import ROOT

from server.store.keys import add_key, read_keys

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_keys_that_are_made_and_revoked_at_once_are_all_made_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    for number in range(4):
        add_key(file, f"old{number}", ["admin"], now=NOW)
    words = [("add", f"new{number}") for number in range(8)]
    words += [("revoke", f"old{number}") for number in range(4)]
    commands = [
        subprocess.Popen(
            [sys.executable, "-m", "server", "key", *each, "--keys-file", str(file)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for each in words
    ]
    told = [command.communicate(timeout=120)[1] for command in commands]
    assert [command.returncode for command in commands] == [0] * len(words), told
    assert {key.name for key in read_keys(file)} == {f"new{number}" for number in range(8)}

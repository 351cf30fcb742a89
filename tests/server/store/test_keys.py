"""The keys file where several change it at once, and where it can't be read for a moment."""

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from live import ROOT

from server.errors import KeysError
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


# In a process of its own, since the limit is one of the process.
UNREADABLE = """
import resource, sys
from datetime import UTC, datetime
from pathlib import Path
from server.store.keys import KeyRing, add_key, revoke_key

file = Path(sys.argv[1])
secret = add_key(file, "a", ["recognize"], now=datetime(2026, 1, 1, tzinfo=UTC))
ring = KeyRing(file)
revoke_key(file, "a")
before = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))  # setrlimit(2): nothing can be opened
print([ring.find(secret) is not None for _ in range(2)])
resource.setrlimit(resource.RLIMIT_NOFILE, before)
print(ring.find(secret) is not None)
"""


def test_a_change_that_could_not_be_read_counts_once_it_can(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNREADABLE, str(tmp_path / "keys.jsonl")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == ["[True, True]", "False"]
    assert done.stderr.splitlines() == ["keys are as before"]


def test_a_moment_without_a_zone_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    add_key(path, "a", ["admin"], now=NOW, expires=NOW + timedelta(days=1))
    text = path.read_text()
    path.write_text(re.sub(r'("expires":"[^"Z+]*)(Z|\+00:00)', r"\1", text))
    assert path.read_text() != text
    with pytest.raises(KeysError, match="line 1 is not a key"):
        read_keys(path)

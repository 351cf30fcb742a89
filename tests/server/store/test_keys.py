"""The keys file where several change it at once, and where it can't be read for a moment."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from live import ROOT

from server.store.keys import KeyRing, add_key, read_keys, revoke_key

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


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Has the kernel open nothing for this process (setrlimit(2))."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_change_that_could_not_be_read_counts_once_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.store.keys.logger.propagate", True)
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "a", ["recognize"], now=NOW)
    ring = KeyRing(file)
    revoke_key(file, "a")
    with no_descriptors():
        assert ring.find(secret)
        assert ring.find(secret)
    assert [record.message for record in caplog.records] == ["keys are as before"]
    assert ring.find(secret) is None

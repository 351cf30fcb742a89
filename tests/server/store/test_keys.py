"""The keys file where several change it at once, and where it can't be read for a moment."""

import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from images import encode, plain
from job_workers import await_that
from server_process import ROOT, LiveServer, live_server

from server.errors import KeysError
from server.store.keys import KeyRing, add_key, read_keys, revoke_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_keys_added_and_revoked_at_once_are_not_lost(tmp_path: Path) -> None:
    """Keys that several processes make and revoke at once are all made and revoked."""
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
from typing import Any
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
    assert done.stderr.splitlines() == ["keys file unusable, keys stay as before"]


def test_keys_file_that_is_a_fifo_keeps_the_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys.jsonl"
    secret = add_key(keys, "a", ["recognize"], now=datetime.now(UTC))
    ring = KeyRing(keys)
    keys.unlink()
    os.mkfifo(keys)
    with ThreadPoolExecutor(1) as pool:
        try:
            assert pool.submit(ring.find, secret).result(60) is not None
        finally:
            os.close(os.open(keys, os.O_RDWR | os.O_NONBLOCK))  # lets a blocked reader go
    with pytest.raises(KeysError, match="FIFO"):
        read_keys(keys)


def test_a_moment_without_a_zone_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    add_key(path, "a", ["admin"], now=NOW, expires=NOW + timedelta(days=1))
    text = path.read_text()
    path.write_text(re.sub(r'("expires":"[^"Z+]*)(Z|\+00:00)', r"\1", text))
    assert path.read_text() != text
    with pytest.raises(KeysError, match="line 1 is not a key"):
        read_keys(path)


GREEN = encode(plain((0, 255, 0)), "PNG")


def file_of(folder: Path, *names: str) -> tuple[Path, dict[str, str]]:
    """A keys file, and its keys by name."""
    file = folder / "keys.jsonl"
    return file, {name: add_key(file, name, ["recognize"], now=NOW) for name in names}


def opens(ring: KeyRing, *secrets: str) -> list[bool]:
    return [ring.find(secret) is not None for secret in secrets]


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def missing(file: Path) -> None:
    file.unlink()


def cut_within_a_line(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def cut_between_lines(file: Path) -> None:
    file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])


def empty_in_its_place(file: Path) -> None:
    """As an editor leaves it for a moment that moves the old file away and writes a new one."""
    file.rename(file.with_suffix(".bak"))
    file.touch()


DAMAGES = [emptied, missing, cut_within_a_line, cut_between_lines, empty_in_its_place]


@pytest.mark.parametrize("damage", DAMAGES)
def test_file_that_is_half_written_loses_no_key(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    file, keys = file_of(tmp_path, "a", "b")
    whole = file.read_bytes()
    ring = KeyRing(file)
    for _ in range(3):
        damage(file)
        assert [opens(ring, *keys.values()) for _ in range(3)] == [[True, True]] * 3
        file.write_bytes(whole)
        assert opens(ring, *keys.values()) == [True, True]
    assert caplog.messages.count("keys file unusable, keys stay as before") <= 1


@pytest.mark.parametrize("damage", [emptied, missing])
def test_file_that_stays_empty_leaves_the_keys_as_they_were(
    tmp_path: Path,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.store.keys.SETTLE_S", 0.2)
    file, keys = file_of(tmp_path, "a")
    ring = KeyRing(file)
    damage(file)
    assert opens(ring, keys["a"]) == [True]
    threading.Event().wait(0.5)  # longer than SETTLE_S
    assert opens(ring, keys["a"]) == [True]
    assert caplog.messages == ["keys file unusable, keys stay as before"]
    with caplog.at_level("INFO"):
        new = add_key(file, "b", ["recognize"], now=NOW)
        assert opens(ring, keys["a"], new) == [False, True]
    assert caplog.messages == [
        "keys file unusable, keys stay as before",
        "keys file is whole again",
    ]


def test_revoked_key_is_closed_with_the_next_request(tmp_path: Path) -> None:
    file, keys = file_of(tmp_path, "a", "b")
    ring = KeyRing(file)
    revoke_key(file, "b")
    assert opens(ring, *keys.values()) == [True, False]
    revoke_key(file, "a")
    assert opens(ring, *keys.values()) == [False, False]
    assert ring.present()


def test_line_removed_by_hand_is_closed_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.store.keys.SETTLE_S", 0.2)
    file, keys = file_of(tmp_path, "a", "b")
    ring = KeyRing(file)
    cut_between_lines(file)
    assert opens(ring, keys["a"]) == [True]
    await_that(lambda: opens(ring, keys["b"]) == [False], "the end of key b")
    assert opens(ring, keys["a"]) == [True]


def test_key_added_by_hand_opens_with_the_next_request(tmp_path: Path) -> None:
    file, _ = file_of(tmp_path, "a")
    ring = KeyRing(file)
    (tmp_path / "more").mkdir()
    other, keys = file_of(tmp_path / "more", "b")
    with file.open("ab") as lines:
        lines.write(other.read_bytes())
    assert opens(ring, keys["b"]) == [True]


def rewrite(file: Path, content: bytes, stop: threading.Event) -> int:
    """Rewrites the file in place, line by line, until `stop`; returns how often."""
    count = 0
    while not stop.wait(0.002):
        with file.open("r+b", buffering=0) as lines:
            lines.truncate(0)
            for line in content.splitlines(keepends=True):
                lines.write(line[:40])
                lines.write(line[40:])
        count += 1
    return count


def post(server: LiveServer, key: str, stop: threading.Event) -> Counter[int]:
    statuses: Counter[int] = Counter()
    with requests.Session() as session:
        session.headers["X-API-Key"] = key
        while not stop.is_set():
            answer = session.post(f"{server.url}/v1/recognize", GREEN, timeout=60)
            statuses[answer.status_code] += 1
            if statuses.total() == 100:
                stop.set()
    return statuses


def test_keys_file_rewritten_under_load_refuses_nobody(colors: Path, tmp_path: Path) -> None:
    file, keys = file_of(tmp_path, *"abcdefgh")
    content = file.read_bytes()
    with live_server(models=colors, keys_file=file, max_waiting=64) as server:
        posted, rewritten = threading.Event(), threading.Event()
        with ThreadPoolExecutor(9) as pool:
            writer = pool.submit(rewrite, file, content, rewritten)
            counts = list(pool.map(lambda key: post(server, key, posted), keys.values()))
            rewritten.set()
            assert writer.result() > 10
        assert set().union(*counts) == {200}
        events = [line["event"] for line in server.lines]
        assert events.count("keys file unusable, keys stay as before") <= 1


def locked_out(folder: Path, how: str) -> Path:
    file = folder / "keys.jsonl"
    if how == "revoked":
        add_key(file, "a", ["recognize"], now=NOW)
        revoke_key(file, "a")
    else:
        add_key(file, "a", ["recognize"], now=NOW, expires=NOW + timedelta(days=1))
    return file


def lines_of(server: LiveServer, event: str) -> list[dict[str, Any]]:
    return [line for line in server.lines if line["event"] == event]


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_server_without_a_usable_key_says_so(colors: Path, tmp_path: Path, how: str) -> None:
    file = locked_out(tmp_path, how)
    listed = key_command("list", "--keys-file", str(file))
    assert "no key opens anything now" in listed.stderr
    with live_server(models=colors, keys_file=file) as server:
        server.await_listening()
        answer = server.recognize(GREEN)
        assert answer.status_code == 401
        assert "no key opens this server now" in answer.json()["error"]["message"]
        (warning,) = lines_of(server, "no key is usable, so everyone is refused")
        assert warning["keys_file"] == str(file)
        (listening,) = await_that(lambda: lines_of(server, "listening"), "its line")
        assert (listening["keys"], listening["usable_keys"]) == (True, 0)
        key = add_key(file, "b", ["recognize"], now=NOW)
        url = f"{server.url}/v1/recognize"
        assert requests.post(url, GREEN, headers={"X-API-Key": key}, timeout=60).status_code == 200
        wrong = requests.post(url, GREEN, headers={"X-API-Key": "ls_x"}, timeout=60)
        assert "no key opens" not in wrong.text


def key_command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "key", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_first_key_says_how_to_open_the_server_again(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.jsonl")
    assert f"there is no {file}" in key_command("list", "--keys-file", file).stderr
    assert "now refuses" in (first := key_command("add", "a", "--keys-file", file)).stderr
    assert "set auth to off, or remove the file" in first.stderr
    assert "now refuses" not in key_command("add", "b", "--keys-file", file).stderr


def test_first_key_changes_nothing_with_auth_off(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(f'auth = "off"\nkeys_file = "{tmp_path / "keys.jsonl"}"\n')
    assert "now refuses" not in key_command("add", "a", "--config", str(settings)).stderr


@pytest.mark.parametrize("words", [("list",), ("add", "b")])
@pytest.mark.parametrize("name", ["file/keys.jsonl", "k" * 300])
def test_path_that_can_be_no_file_is_told(
    tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        key_command(*words, "--keys-file", str(tmp_path / name))
    assert failed.value.stderr.startswith(f"lineside: the keys file {tmp_path / name} can't be ")
    assert "Traceback" not in failed.value.stderr


def test_revoking_the_last_key_says_what_follows(tmp_path: Path) -> None:
    file, _ = file_of(tmp_path, "a", "b")
    assert "no key opens" not in key_command("revoke", "a", "--keys-file", str(file)).stderr
    assert "no key opens" in key_command("revoke", "b", "--keys-file", str(file)).stderr

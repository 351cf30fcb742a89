"""A fleet by its host file: status, data and keys of several servers with keys."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests
from fleets import fleet
from images import encode, plain
from job_workers import await_that
from server_process import LiveServer, live_server
from tiny_models import MakeModel, write_bundle

from server.cli.fleet.hosts import read_hosts
from server.errors import StartError
from server.recognition.sample import labelled_samples
from server.store.keys import add_key
from server.system.program import program_id

NAMES = ("st4", "st5")


@pytest.fixture(scope="module")
def devices(
    tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, LiveServer], dict[str, str]]]:
    """The host file of two servers and of one that is gone; the servers and their keys by name."""
    folder = tmp_path_factory.mktemp("fleet")
    write_bundle(folder / "models" / "colors" / "1", tiny_model("fast"))
    servers, keys, text = dict[str, LiveServer](), dict[str, str](), 'key_file = "st4.key"\n'
    with ExitStack() as stack:
        for name in NAMES:
            file = folder / f"{name}.jsonl"
            keys[name] = add_key(
                file, "owner", ("admin", "metrics", "recognize"), now=datetime.now(UTC)
            )
            (folder / f"{name}.key").write_text(keys[name] + "\n")
            servers[name] = stack.enter_context(
                live_server(
                    models=folder / "models",
                    data=folder / name,
                    keys_file=file,
                    samples="on",
                    samples_share=1,
                )
            )
            url = servers[name].url
            text += f'[[device]]\nname = "{name}"\naddress = "{url}"\ngroup = "hall-1"\n'
        text += 'key_file = "st5.key"\n'
        text += '[[device]]\nname = "gone"\naddress = "127.0.0.1:1"\n'
        (folder / "fleet.toml").write_text(text)
        yield folder / "fleet.toml", servers, keys


def send(server: LiveServer, key: str, *colors: tuple[int, int, int]) -> None:
    for color in colors:
        headers = {"X-API-Key": key, "Content-Type": "image/png"}
        data = encode(plain(color), "PNG")
        url = f"{server.url}/v1/recognize"
        assert requests.post(url, data, headers=headers, timeout=60).status_code == 200


def kept(server: LiveServer, key: str, count: int) -> list[dict[str, object]]:
    """The samples of a server, once there are `count`."""

    def look() -> list[dict[str, object]] | None:
        headers = {"X-API-Key": key}
        answer = requests.get(f"{server.url}/v1/samples", headers=headers, timeout=60).json()
        samples: list[dict[str, object]] = answer["samples"]
        return samples if len(samples) == count else None

    samples: list[dict[str, object]] = await_that(look, f"{count} samples")
    return samples


def test_status_has_a_row_for_each_device(
    devices: tuple[Path, dict[str, LiveServer], dict[str, str]],
) -> None:
    hosts = devices[0]
    code, lines = fleet("status", "--hosts", hosts, "--parallel", 2)
    assert code == 1
    assert [line.partition(":")[0] for line in lines] == ["st4", "st5", "gone"]
    for line in lines[:2]:
        assert re.search(
            r": ready, colors/1; program 0\.1\.0 \([0-9a-f]{12}\); \d+ errors of \d+ requests; "
            r".*disk \d+ % free",
            line,
        )
    assert lines[2].startswith("gone: failed, no answer")
    code, lines = fleet("status", "--hosts", hosts, "--group", "hall-1", "--json")
    assert code == 0
    assert {json.loads(line)["measured"]["program"] for line in lines} == {program_id()}
    code, lines = fleet("status", "--hosts", hosts, "st9")
    assert (code, "has no device st9" in lines[0]) == (1, True)


def test_status_says_what_the_key_may_not_read(
    devices: tuple[Path, dict[str, LiveServer], dict[str, str]], tmp_path: Path
) -> None:
    hosts, servers, _ = devices
    code, lines = fleet("key", "add", "narrow", "--hosts", hosts, "st4")
    key = tmp_path / "key"
    key.write_text(lines[0].partition(": ")[2])
    code, lines = fleet("status", servers["st4"].url, "--key-file", key)
    assert code == 0
    assert re.search(r": ready, colors/1; no metrics: 403: .*; no alerts: 403: ", lines[0])


def test_pull_gets_everything_once(
    devices: tuple[Path, dict[str, LiveServer], dict[str, str]], tmp_path: Path
) -> None:
    hosts, servers, keys = devices
    st4, key = servers["st4"], keys["st4"]
    send(st4, key, (255, 0, 0), (0, 255, 0))
    first = kept(st4, key, 2)
    pull = ("pull", tmp_path, "--hosts", hosts)
    code, lines = fleet(*pull)
    assert code == 1
    assert lines[:2] == ["st4: 2 rows and 2 samples more", "st5: 0 rows and 0 samples more"]
    assert lines[2].startswith("gone: failed, no answer")
    folder, images = tmp_path / "st4", sorted((tmp_path / "st4" / "samples").glob("*.png"))
    before = [image.stat().st_mtime_ns for image in images]
    assert len(images) == 2

    # The next one goes on, also after it was cut off in a row, and takes over a label.
    with (folder / "journal.jsonl").open("a") as file:
        file.write('{"id":3,"time":"2026-')
    send(st4, key, (0, 0, 255))
    kept(st4, key, 3)
    label = f"{st4.url}/v1/samples/{first[0]['id']}/label"
    headers = {"X-API-Key": key}
    assert requests.post(label, json={"label": "red"}, headers=headers, timeout=60).ok
    assert fleet(*pull, "st4") == (0, ["st4: 1 rows and 1 samples more"])
    assert fleet(*pull, "st4") == (0, ["st4: 0 rows and 0 samples more"])
    rows = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    url = f"{st4.url}/v1/journal?order=oldest"
    assert rows == requests.get(url, headers=headers, timeout=60).json()["rows"]
    assert [image.stat().st_mtime_ns for image in images] == before
    (labelled,) = labelled_samples(folder / "samples")
    assert labelled[1].label == "red"


def test_journal_that_was_begun_anew_is_a_file_of_its_own(
    devices: tuple[Path, dict[str, LiveServer], dict[str, str]], tmp_path: Path
) -> None:
    hosts, servers, keys = devices
    send(servers["st5"], keys["st5"], (255, 0, 0))
    kept(servers["st5"], keys["st5"], 1)
    old = '{"id":%d,"time":"2020-01-01T00:00:00.000Z","request_id":"old"}\n'
    (tmp_path / "st5").mkdir()
    for number, last in enumerate((1, 900), 1):
        (tmp_path / "st5" / "journal.jsonl").write_text(old % last)
        code, lines = fleet("pull", tmp_path, "--hosts", hosts, "st5")
        assert (code, lines[0].startswith("st5: 1 rows and ")) == (0, True)
        assert (tmp_path / "st5" / f"journal-{number}.jsonl").read_text() == old % last
    (tmp_path / "st5" / "journal.jsonl").write_text("no row\n")
    code, lines = fleet("pull", tmp_path, "--hosts", hosts, "st5")
    assert (code, "is no row of a journal" in lines[0]) == (1, True)


def test_a_name_gets_keys_and_loses_them_on_every_device(
    devices: tuple[Path, dict[str, LiveServer], dict[str, str]],
) -> None:
    hosts, servers, _ = devices
    every = ("--hosts", hosts)
    code, lines = fleet("key", "add", "camera-9", "--rights", "recognize", *every)
    assert code == 1
    made = dict(line.split(": ", 1) for line in lines[:2])
    assert lines[2].startswith("gone: failed, no answer")
    assert "shown" in lines[3]

    def opens(name: str) -> bool:
        headers = {"X-API-Key": made[name]}
        url = f"{servers[name].url}/v1/models"
        return requests.get(url, headers=headers, timeout=60).status_code == 200

    assert made["st4"] != made["st5"]
    assert opens("st4")
    assert opens("st5")
    code, lines = fleet("key", "add", "camera-9", *every, "st4")
    assert (code, len(lines), lines[0].startswith("st4: failed, 409: ")) == (1, 1, True)
    code, lines = fleet("key", "list", *every, "--group", "hall-1")
    assert code == 0
    assert all("camera-9 (recognize, used " in line for line in lines)
    code, lines = fleet("key", "revoke", "camera-9", *every, "--group", "hall-1")
    assert lines == [f"{name}: camera-9 no longer opens anything" for name in NAMES]
    assert not opens("st4")
    assert not opens("st5")
    code, lines = fleet("key", "revoke", "camera-9", *every, "st4")
    assert (code, lines) == (0, ["st4: has no key camera-9"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["st4..local"], "'st4..local' is no HOST"),
        (["http://-oProxyCommand=x"], "is no HOST"),
        (["st4:port"], "'st4:port' is no HOST"),
        (["st4", "--key-file", "two-lines"], "the key for st4 is more than one line, or no key"),
        (["st4", "--timeout", "nan"], "--timeout: it may be"),
        (["st4", "--timeout", "0"], "--timeout: it may be"),
    ],
)
def test_what_no_device_can_be_asked_with_is_refused(
    words: list[str], says: str, tmp_path: Path
) -> None:
    """By a sentence, before any device is asked."""
    (tmp_path / "two-lines").write_text("ls_a\nls_b\n")
    paths = [tmp_path / word if word == "two-lines" else word for word in words]
    code, lines = fleet("status", *paths)
    assert (code > 0, says in lines[-1]) == (True, True), lines


DEVICE = '[[device]]\nname = "a"\naddress = "a"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "device"),
        (DEVICE + "adress = 'b'", "adress"),
        (DEVICE + DEVICE, "two devices named a"),
        (DEVICE + 'key = "x"\nkey_file = "y"', "both key and key_file"),
        (DEVICE + 'key = "x"', "chmod 600"),
        (DEVICE + 'shell = "-oProxyCommand=x"', "shell"),
        ('[[device]]\nname = "../a"\naddress = "a"', "name"),
        ("[[device]", "TOML"),
    ],
)
def test_host_file_is_read_strictly(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(text)
    with pytest.raises(StartError) as error:
        read_hosts(file)
    assert says in str(error.value)

"""Programs that are brought to devices: from an old one to this one, and back.

Each device is a copy of this machine's files with a service that runs. It is reached by a shell
inside it, in place of ssh.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests
from fleets import fleet
from images import encode, plain
from server_process import ROOT, free_port
from tiny_models import change_manifest

from server.cli.fleet.device import Device
from server.cli.fleet.status import measured
from server.recognition.manifest import MANIFEST
from server.system.program import program_id

HERE = Path(__file__).parent
OLD = "1f52b93"
BEFORE = ROOT / "tests" / "fixtures" / f"server_{OLD}"
ANSWERS: dict[str, Any] = json.loads((BEFORE / "answers.json").read_text())
KEY: str = json.loads((BEFORE / "secret.json").read_text())["line"]
PARTS = ("server", "scripts", "deploy", "README.md", "LICENSE", "requirements.txt")
LOCK = "requirements.lock"
# By these scripts/install knows that a device has its packages: those of the tests, so that none
# are fetched.
STAMP = ("requirements.txt", "scripts/runtime", "scripts/slim.py")
# A device with data of the old program, on which it is installed. It ends with its input.
DEVICE = """
set -eu
for folder in {site} $(readlink -f {python}); do  # where the service, a stranger there, looks
  while folder=$(dirname "$folder"); [ "$folder" != / ]; do chmod o+x "$folder"; done
done
mkdir -p /run/systemd/system /opt/lineside/app /etc/lineside /var/lib/lineside
ln -sf {here}/systemctl /usr/local/bin/systemctl
useradd --system --user-group --no-create-home lineside
{python} -m venv --without-pip /opt/lineside/venv
echo {site} > $(echo /opt/lineside/venv/lib/python3*/site-packages)/tests.pth
cd {old}
{{ {python} --version; cat {stamp}; }} > /opt/lineside/venv/installed
cp -R {data}/models {data}/data /var/lib/lineside/
cp {data}/keys.jsonl /etc/lineside/
chown -R lineside:lineside /var/lib/lineside /etc/lineside/keys.jsonl
cat > /etc/lineside/lineside.toml <<END
host = "127.0.0.1"
port = {port}
model = "colors"
models = "/var/lib/lineside/models"
data = "/var/lib/lineside/data"
keys_file = "/etc/lineside/keys.jsonl"
samples = "on"
samples_share = 0
journal_days = 0
job_result_ttl = 3200000000
END
{more}
scripts/install
echo installed
read -r _ || true
"""
REACH = f"""#!/bin/bash
# reach pidN COMMAND: runs it in the device whose first process is N, as ssh would.
export PYTHON={sys.executable} PATH=/usr/local/bin:$PATH
exec nsenter --target "${{1#pid}}" --mount --pid --root --wd sh -c "$2"
"""
# On one device only, the new program does not see in a frame what is there.
FAULT = """

if __import__("os").path.exists("/etc/faulty"):
    _explain = explain

    def explain(*arguments):
        return msgspec.structs.replace(_explain(*arguments), label="green")
"""


class InstalledDevice:
    """A device with the program in the folder `old` and the data in `data`."""

    def __init__(self, old: Path, data: Path, more: str = "true") -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        values = {
            "here": HERE,
            "data": data,
            "old": old,
            "port": self.port,
            "more": more,
            "stamp": " ".join(STAMP),
        }
        values |= {"python": sys.executable, "site": sysconfig.get_path("purelib")}
        path = f"/usr/local/bin:{os.environ['PATH']}"
        self._process = subprocess.Popen(
            [str(HERE / "fresh_root"), "bash", "-c", DEVICE.format(**values)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHON": sys.executable, "PATH": path},
        )

    def await_installed(self) -> None:
        """Returns once it serves."""
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if line == "installed\n":
                return
        if self._process.wait() == 77:
            pytest.skip(f"no file system over this one: {said}")
        raise AssertionError("".join(said))

    def shell(self) -> str:
        """Where a shell finds it: its first process that has the device's files for its root."""
        pid = self._process.pid
        while os.readlink(f"/proc/{pid}/root") == "/":
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        return f"pid{pid}"

    def ask(self, path: str) -> dict[str, Any]:
        answer = requests.get(self.url + path, headers={"X-API-Key": KEY}, timeout=60)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def stop(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of OLD, with today's packages."""
    if os.getuid():
        pytest.skip("needs root")
    done = subprocess.run(["git", "cat-file", "-t", OLD], cwd=ROOT, capture_output=True, text=True)
    if done.stdout != "commit\n":
        pytest.skip(f"this clone's history does not have {OLD}")
    folder = tmp_path_factory.mktemp("old")
    tar = subprocess.run(["git", "archive", OLD, *PARTS], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", folder], input=tar.stdout, check=True)
    for name in STAMP:
        shutil.copy(ROOT / name, folder / name)
    (folder / "models" / "colors" / "1").mkdir(parents=True)  # which the device has
    return folder


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This program, at fault on one device."""
    folder = tmp_path_factory.mktemp("new")
    for name in (*PARTS, LOCK):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    with (folder / "server" / "api" / "recognize" / "explain.py").open("a") as file:
        file.write(FAULT)
    return folder


@pytest.fixture(scope="module")
def devices(
    old: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[InstalledDevice, InstalledDevice]]:
    """Two devices of the old program with data; the new one will be at fault on the second."""
    data = shutil.copytree(BEFORE, tmp_path_factory.mktemp("data") / "device")
    bundle = data / "models" / "colors" / "2"
    (bundle / "golden").mkdir()
    (bundle / "golden" / "red.png").write_bytes(encode(plain((255, 0, 0)), "PNG"))
    digests = msgspec.json.decode((bundle / MANIFEST).read_bytes())["sha256"]
    digest = hashlib.sha256((bundle / "golden" / "red.png").read_bytes()).hexdigest()
    golden = {"file": "golden/red.png", "label": "red", "probability": 1.0, "tolerance": 0.1}
    change_manifest(
        bundle,
        golden=[golden],
        sha256={**digests, "golden/red.png": digest},
    )
    made = InstalledDevice(old, data), InstalledDevice(old, data, more="touch /etc/faulty")
    try:
        for device in made:
            device.await_installed()
        yield made
    finally:
        for device in made:
            device.stop()


def lost(device: InstalledDevice) -> list[str]:
    """What the device lacks of what OLD left: rows, samples, jobs, the choice of a version."""
    rows = {row["id"]: row for row in device.ask("/v1/journal?limit=1000")["rows"]}
    samples = {sample["id"]: sample for sample in device.ask("/v1/samples")["samples"]}
    job = device.ask(ANSWERS["finished_job"]["status_url"])
    return [
        *(
            f"row {row['id']}"
            for row in ANSWERS["journal"]["rows"]
            if not rows.get(row["id"], {}).items() >= row.items()
        ),
        *(
            f"sample {sample['id']}"
            for sample in ANSWERS["samples"]["samples"]
            if samples.get(sample["id"], {}).get("label", "") != sample["label"]
        ),
        *(["job"] if job["status"] != "succeeded" else []),
        *(["choice"] if device.ask("/v1/models/colors")["serving"] != 2 else []),
    ]


def test_upgrade_loses_nothing_and_goes_back_by_itself(
    devices: tuple[InstalledDevice, InstalledDevice], old: Path, new: Path, tmp_path: Path
) -> None:
    """From a server of OLD with data to this one, and back by scripts/install. A device that fails
    its check is back on the old program by itself."""
    reach, hosts = tmp_path / "reach", tmp_path / "fleet.toml"
    reach.write_text(REACH)
    reach.chmod(0o755)
    (tmp_path / "key").write_text(KEY)
    text = 'key_file = "key"\n'
    good, faulty = devices
    for name, address, shell in (
        ("good", good.url, good.shell()),
        ("faulty", faulty.url, faulty.shell()),
        ("third", "127.0.0.1:1", "nowhere"),
    ):
        text += f'[[device]]\nname = "{name}"\naddress = "{address}"\nshell = "{shell}"\n'
    hosts.write_text(text)
    program = program_id(new / "server")

    code, lines = fleet("upgrade", "--hosts", hosts, "--source", new, "--reach", reach)
    assert code == 1
    assert lines == [
        f"good: runs 0.1.0 ({program}), before 0.1.0 (without a digest); its golden frame is right",
        "faulty: failed, the new program fails its check: the golden frame golden/red.png should be"
        " red at 1.000 but it is green at 1.000; it is back on the old program 0.1.0 (without a"
        " digest)",
        "third: untouched",
    ]
    assert [lost(device) for device in devices] == [[], []]
    code, lines = fleet("upgrade", "good", "--hosts", hosts, "--source", new, "--reach", reach)
    assert (code, lines) == (0, [f"good: has the program 0.1.0 ({program}) already"])

    headers = {"X-API-Key": KEY, "Content-Type": "image/png"}
    frame = encode(plain((0, 255, 0)), "PNG")
    answer = requests.post(f"{good.url}/v1/recognize", frame, headers=headers, timeout=60).json()
    back = subprocess.run(
        [str(reach), good.shell(), f"cd {old} && scripts/install"], capture_output=True, text=True
    )
    assert back.returncode == 0, back.stderr
    assert lost(good) == []
    newest = good.ask("/v1/journal?limit=1")["rows"][0]
    assert newest["request_id"] == answer["request_id"]

    # The connection ends while the new program waits to be confirmed.
    command = [str(reach), good.shell(), f"cd {new} && exec scripts/install --confirm 300"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as remote:
        assert remote.stdin
        assert remote.stdout
        while not (line := remote.stdout.readline()).startswith(b"confirm within"):
            assert line, "scripts/install ended early"
        assert measured(Device("good", good.url, KEY, 60)).program == program
        remote.stdout.close()
        remote.stdin.close()
        assert remote.wait(100) != 0
    assert measured(Device("good", good.url, KEY, 60)).program is None
    assert lost(good) == []


def test_device_without_a_shell_is_not_changed(
    devices: tuple[InstalledDevice, InstalledDevice], new: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(KEY)
    address = f"127.0.0.1:{devices[1].port}"
    code, lines = fleet(
        *("upgrade", address, "--key-file", tmp_path / "key", "--source", new),
        *("--reach", "sh -c 'echo no way in; exit 255'"),
    )
    assert code == 1
    assert lines == [
        f"{address}: failed, its shell failed (255): no way in; nothing was changed",
    ]


def test_what_can_not_go_back_is_not_sent(old: Path, tmp_path: Path) -> None:
    code, lines = fleet("upgrade", "127.0.0.1:1", "--source", tmp_path)
    assert (code, lines[0].endswith("is no checkout of Lineside: it has no server")) == (1, True)
    code, lines = fleet("upgrade", "127.0.0.1:1", "--source", old)
    assert (code, "can't go back by itself" in lines[0]) == (1, True)
    code, lines = fleet("upgrade", "127.0.0.1:1", "--timeout", 5)
    assert code == 1
    assert lines[0].startswith("127.0.0.1:1: failed, no answer")
    assert lines[0].endswith("; nothing was changed")

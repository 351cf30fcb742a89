"""The commands of the guide, executed as they stand, in their order, on a server with keys."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from job_workers import await_that
from server_process import ROOT, LiveServer, live_server
from tiny_models import change_manifest

GUIDE = (ROOT / "docs" / "guide.md").read_text("utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = [line[2:] for block in BLOCKS for line in block.splitlines() if line.startswith("$ ")]
PRODUCTS = "tests/server/line/test_products.py"
HEALTH = "tests/server/line/test_image_health.py"
ADDED = "tests/server/api/test_added_cameras.py"
# Commands that other tests execute, by how they begin, and that no test can.
ELSEWHERE = {
    "LINESIDE_HOST=0.0.0.0 scripts/serve": "tests/server/http/access/test_access_on_live_server.py",
    "ls plain/": "tests/server/store/bundles/test_bare_model.py",
    "python -m server check --models plain": "tests/server/store/bundles/test_bare_model.py",
    "python camera.py send": "tests/scripts/test_camera_client.py",
    "LINESIDE_BROKER_URL=": "tests/server/jobs/test_kills.py",
    "LINESIDE_SAMPLES=on scripts/serve": "tests/server/api/test_samples.py",
    "python -m convert detector": "tests/server/recognition/test_tiles.py",
    "python -m convert train": "tests/convert/data/test_labelled_samples.py",
    ".venv-convert/bin/": "tests/convert/sources/test_onnx_models.py",
    ".venv/bin/python -m pip install": "tests/server/line/test_line_guide.py",
    "sudo apt install mosquitto": "tests/server/line/test_line_guide.py",
    'curl -H "X-API-Key: $KEY" -X POST http://127.0.0.1:8080/v1/products': PRODUCTS,
    'curl -H "X-API-Key: $KEY" -H "Content-Type: application/json" http': ADDED,
    'curl -H "X-API-Key: $KEY" http://127.0.0.1:8080/v1/cameras/st6': ADDED,
    'curl -H "X-API-Key: $KEY" -X DELETE http://127.0.0.1:8080/v1/cameras/st6': ADDED,
    'curl -H "X-API-Key: $KEY" -X DELETE \'http://127.0.0.1:8080/v1/image_health': HEALTH,
    'curl -H "X-API-Key: $KEY" http://127.0.0.1:8080/v1/products': PRODUCTS,
    "scripts/serve --config line.toml": "tests/server/line/test_line_guide.py",
    "mosquitto_sub": "tests/server/line/test_line_guide.py",
    "mosquitto_pub": "tests/server/line/test_line_guide.py",
    ".venv/bin/python -m http.server": "tests/server/line/test_line_guide.py",
    "prometheus ": "tests/deploy/test_watched.py",
    "sudo scripts/install": "tests/scripts/test_install.py",
    "python -m server fleet status --hosts": "tests/server/cli/test_fleet_hosts.py",
    "python -m server fleet pull": "tests/server/cli/test_fleet_hosts.py",
    "python -m server fleet key": "tests/server/cli/test_fleet_hosts.py",
    "python -m server fleet upgrade": "tests/scripts/test_fleet_upgrade.py",
    "python -m server restore": "tests/server/store/test_backup.py",
    "docker ": "tests/deploy/test_packages.py",
}
HERE = [line for line in COMMANDS if not line.startswith(tuple(ELSEWHERE))]


class Shell:
    """A shell in which the guide's commands run one after the other: it keeps `$KEY`, has the
    server's own Python as `python`, and knows the names that the guide makes up."""

    def __init__(self, folder: Path, server: LiveServer, env: dict[str, str]) -> None:
        self.folder, self.server, self.env = folder, server, env
        self.key, self.job, self.sample = "", "", ""

    def run(self, command: str) -> str:
        """Standard output of `command`; fails if it fails, or if a request is refused."""
        port = str(self.server.port)
        for told, real in (
            ("http://127.0.0.1:8080", self.server.url),
            ("http://DEVICE:8080", self.server.url),
            ("st4.local st5.local:8080", f"127.0.0.1:{port}"),
            (".venv/bin/python", "python"),
            ("curl ", "curl --fail-with-body --silent --show-error --max-time 60 "),
            ("/jobs/60d4...", f"/jobs/{self.job}"),
            ("/samples/ID/", f"/samples/{self.sample}/"),
        ):
            command = command.replace(told, real)
        script = f'KEY={self.key}; set -e\n{command}\nprintf "\\n@@%s" "$KEY"\n'
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        output, _, self.key = done.stdout.rpartition("\n@@")
        return output

    def learn(self) -> None:
        """Takes the newest sample's id, once there is one."""
        headers = {"X-API-Key": self.key}

        def newest() -> str:
            page = requests.get(self.server.url + "/v1/samples", headers=headers, timeout=60).json()
            return next((str(sample["id"]) for sample in page.get("samples", ())), "")

        self.sample = await_that(newest, "a sample")


@pytest.fixture
def shell(shipped: Path, tmp_path: Path) -> Iterator[Shell]:
    """A shell beside a running server, in a folder with what the guide's commands name."""
    parts = tmp_path / "models" / "parts"
    shutil.copytree(shipped, parts / "1")
    shutil.copy(shipped / "samples" / "scratched.jpg", tmp_path / "photo.jpg")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    settings = {
        "models": tmp_path / "models",
        "data": tmp_path / "data",
        "keys_file": tmp_path / "keys.jsonl",
    }
    env = {k: v for k, v in os.environ.items() if not k.startswith("LINESIDE_")}
    env |= {f"LINESIDE_{k.upper()}": str(v) for k, v in settings.items()}
    env["PATH"] = f"{tmp_path / 'bin'}:{env['PATH']}"
    env["PYTHONPATH"] = str(ROOT)
    with live_server(samples="on", samples_share=1, **settings) as server:
        yield Shell(tmp_path, server, env)


def test_commands_of_the_guide_work_as_written(shell: Shell) -> None:
    assert len(HERE) > 20
    models = shell.folder / "models" / "parts"
    for command in HERE:
        if command.endswith("# the newest that was not rolled back"):
            shutil.copytree(models / "1", models / "2")
            change_manifest(models / "2", version=2)
        elif "fleet" in command:
            (shell.folder / "key.txt").write_text(shell.key)
        elif "/samples/ID/" in command:
            shell.learn()
        output = shell.run(command)
        if "file=@models/parts" in command and "/v1/jobs" in command:
            shell.job = json.loads(output)["job_id"]
    label = f"{shell.server.url}/v1/samples/{shell.sample}"
    sample = requests.get(label, headers={"X-API-Key": shell.key}, timeout=60).json()
    assert sample["label"] == "scratched"
    assert (shell.folder / "scratched.csv").read_text().startswith("id,time,")


@pytest.mark.parametrize("begin", ELSEWHERE)
def test_other_commands_are_executed_elsewhere(begin: str) -> None:
    assert any(line.startswith(begin) for line in COMMANDS)
    assert (ROOT / ELSEWHERE[begin]).is_file()

"""The guide's part «From camera to PLC in ten minutes», with its own settings and program."""

import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import requests
from job_workers import await_that
from line_outputs import mosquitto, subscriber
from server_process import ROOT, LiveServer, free_port

from server.config.load import load
from server.errors import SettingsError
from server.line.outputs import service

PART = (
    (ROOT / "docs" / "guide.md")
    .read_text("utf-8")
    .split("## From camera to PLC in ten minutes")[1]
    .split("\n## ")[0]
)


def block(kind: str, number: int = 0) -> str:
    """The block of this kind with this number."""
    blocks: list[str] = re.findall(rf"```{kind}\n(.*?)```", PART, re.DOTALL)
    return blocks[number]


def total(server: LiveServer, name: str) -> float:
    """The sum of all series of a metric."""
    lines = requests.get(server.url + "/metrics", timeout=60).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


def delivered(server: LiveServer) -> bool:
    """Whether no output has a message that the other side does not have yet."""
    states = requests.get(server.url + "/v1/outputs", timeout=60).json()["outputs"]
    return all(state["waiting"] == 0 for state in states)


@pytest.mark.skipif(not shutil.which("mosquitto_pub"), reason="needs Debian's mosquitto-clients")
def test_settings_and_plc_of_the_guide_work(tmp_path: Path, sample: bytes) -> None:
    port, config = free_port(), tmp_path / "line.toml"
    with mosquitto(tmp_path) as broker:
        toml = block("toml").replace("port = 5020", f"port = {port}")
        toml = toml.replace('host = "127.0.0.1"', f'host = "127.0.0.1"\nport = {broker}')
        toml = toml.replace("8081", str(camera := free_port()))
        # A machine may stall, and a frame that is late is refused.
        toml = toml.replace('"post"', '"post"\ninterval_s = 60')
        config.write_text(toml, "utf-8")
        server = LiveServer("-m", "server", "serve", "--config", str(config))
        program, coil = (block("python", n).replace("5020", str(port)) for n in (0, 1))
        serve, publish = block("console", 2).replace("$ ", "").splitlines()
        serve = serve.replace(".venv/bin/python", sys.executable).replace("8081", str(camera))
        publish = publish.replace("_pub", f"_pub -p {broker}")
        web = subprocess.Popen(shlex.split(serve), cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            server.await_ready()
            for metric in ("camera_connected", "trigger_connected"):
                await_that(partial(total, server, f"lineside_{metric}"), metric)
            with subscriber(broker, "lineside/+/verdict") as reader:
                answer = server.recognize(sample, camera="st4", part="A-1093").json()
                (message,) = reader.take(1)
            assert (message["part"], message["verdict"]) == ("A-1093", answer["verdict"])
            with subprocess.Popen(
                [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
            ) as plc:
                assert plc.stdout is not None
                assert plc.stdout.readline() == f"1 {answer['verdict']}\n"
                subprocess.run(shlex.split(publish), check=True)
                assert plc.stdout.readline() == "2 fail\n"
                # It acknowledges what it has printed.
                await_that(partial(delivered, server), "the second acknowledgement")
                plc.kill()
            asked = subprocess.run([sys.executable, "-c", coil], stdout=subprocess.PIPE, check=True)
            assert asked.stdout.startswith(b"2 b'A-1095\\x00")
            states = requests.get(server.url + "/v1/outputs", timeout=60).json()["outputs"]
            assert [state["name"] for state in states] == ["broker", "plc"]
        finally:
            server.stop()
            web.terminate()
            web.wait(60)


def test_packages_that_the_guide_installs_are_pinned() -> None:
    for file in re.findall(r"-r (server/\S+)", block("console")):
        lines = (ROOT / file).read_text("utf-8").splitlines()
        pins = dict(line.split("==") for line in lines if not line.startswith("#"))
        assert pins
        assert {name: version(name) for name in pins} == pins


def test_a_missing_package_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence has the command that installs it."""
    monkeypatch.setattr(service, "EXTRAS", {"mqtt": "no_such_package"})
    settings = load({"LINESIDE_OUTPUT": '[{"name": "b", "kind": "mqtt", "host": "h"}]'})
    with pytest.raises(SettingsError) as caught:
        service.check_installed(settings)
    assert str(caught.value).startswith("[[output]] b: kind mqtt needs a package that is not in")
    assert str(caught.value).endswith("requirements-mqtt.txt")

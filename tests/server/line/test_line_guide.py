"""The guide's part «From camera to PLC in ten minutes», with its own settings and program."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import requests
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


def block(kind: str) -> str:
    """The first block of this kind."""
    found = re.search(rf"```{kind}\n(.*?)```", PART, re.DOTALL)
    assert found
    return found[1]


def test_settings_and_plc_of_the_guide_work(tmp_path: Path, sample: bytes) -> None:
    port, config = free_port(), tmp_path / "line.toml"
    with mosquitto(tmp_path) as broker:
        toml = block("toml").replace("port = 5020", f"port = {port}")
        toml = toml.replace('host = "127.0.0.1"', f'host = "127.0.0.1"\nport = {broker}')
        config.write_text(toml, "utf-8")
        server = LiveServer("-m", "server", "serve", "--config", str(config))
        program = block("python").replace("5020", str(port))
        try:
            server.await_ready()
            with subscriber(broker, "lineside/+/verdict") as reader:
                answer = server.recognize(sample, camera="st4", part="A-1093").json()
                (message,) = reader.take(1)
            assert (message["part"], message["verdict"]) == ("A-1093", answer["verdict"])
            with subprocess.Popen(
                [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
            ) as plc:
                assert plc.stdout is not None
                assert plc.stdout.readline() == f"1 {answer['verdict']}\n"
                plc.kill()
            states = requests.get(server.url + "/v1/outputs", timeout=60).json()["outputs"]
            assert [state["name"] for state in states] == ["broker", "plc"]
        finally:
            server.stop()


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

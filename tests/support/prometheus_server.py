"""A real Prometheus with the project's configuration, for tests."""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from server_process import ROOT, free_port

PROMETHEUS = ROOT / "deploy" / "prometheus"
# So that a test need not wait for minutes.
OFTEN = "500ms"


class Prometheus:
    """`prometheus` with a copy of deploy/prometheus in `folder`, of which scrapes and evaluations
    come more often; it scrapes `target`, with the API key `key` where one is given.

    `targets` is its folder of files that list devices.
    """

    def __init__(self, folder: Path, target: str, key: str = "") -> None:
        shutil.copytree(PROMETHEUS, folder / "prometheus")
        config = folder / "prometheus" / "prometheus.yml"
        text = config.read_text("utf-8").replace("interval: 15s", f"interval: {OFTEN}")
        if key:
            (folder / "lineside.key").write_text(key, "utf-8")
            text = text.replace("# authorization:", "authorization:")
            text = text.replace("#   credentials_file: ", "  credentials_file: ")
            text = text.replace("/etc/prometheus/lineside.key", str(folder / "lineside.key"))
        config.write_text(text, "utf-8")
        self.targets = config.parent / "targets"
        targets = self.targets / "lineside.json"
        (group,) = json.loads(targets.read_text("utf-8"))
        targets.write_text(json.dumps([{**group, "targets": [target]}]), "utf-8")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = (folder / "prometheus.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stderr=self._log,
        )

    def get(self, path: str, **params: str) -> Any:
        """`data` of the answer of its HTTP API at /api/v1/`path`."""
        answer = requests.get(f"{self.url}/api/v1/{path}", params, timeout=60)
        assert answer.status_code == 200, f"{params}: {answer.text}"
        return answer.json()["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series that `expr` has at this moment."""
        result = self.get("query", query=expr)["result"]
        assert isinstance(result, list)
        return result

    def rules(self) -> list[dict[str, Any]]:
        """All rules that it has loaded."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def await_up(self, timeout: float = 60) -> None:
        """Returns once it has scraped its target well."""
        pause, until = threading.Event(), time.monotonic() + timeout
        while not self._is_ready():
            assert self._process.poll() is None, self._tell()
            assert time.monotonic() < until, f"not ready: {self._tell()}"
            pause.wait(0.1)
        while [series["value"][1] for series in self.query("up")] != ["1"]:
            assert time.monotonic() < until, f"no scrape: {self.get('targets')} {self._tell()}"
            pause.wait(0.1)

    def _is_ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/-/ready", timeout=60).status_code == 200
        except requests.ConnectionError:
            return False

    def _tell(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._log.close()


@contextmanager
def prometheus(folder: Path, target: str, key: str = "") -> Iterator[Prometheus]:
    """A Prometheus that has scraped `target`, stopped at the end of the block. Skips where the
    Debian package is absent."""
    if shutil.which("prometheus") is None:
        pytest.skip("the Debian package prometheus is not installed")
    running = Prometheus(folder, target, key)
    try:
        running.await_up()
        yield running
    finally:
        running.stop()

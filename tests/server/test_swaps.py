"""Models that come and go under load, in a real server."""

import json
import os
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from images import encode, plain
from live import LiveServer, live_server
from tiny_models import COLORS, MakeModel, change_manifest, write_bundle

CLIENTS = 8
SWAPS = 100
FRAMES = {
    color: encode(plain(pixel), "JPEG")
    for color, pixel in zip(COLORS, ((255, 0, 0), (0, 255, 0), (0, 0, 255)), strict=True)
}


def descriptors(server: LiveServer) -> int:
    return len(os.listdir(f"/proc/{server.worker_pid()}/fd"))


def threads(server: LiveServer) -> Counter[str]:
    """The worker's threads by name; Granian ends its own as they fall idle."""
    folder = Path(f"/proc/{server.worker_pid()}/task")
    return Counter((task / "comm").read_text().strip() for task in folder.iterdir())


class Camera:
    """Posts frames until `stop`; `answers` are (version, right) or the status of an error."""

    def __init__(self, url: str, label: str, upper: set[int]) -> None:
        self.answers: Counter[tuple[int, str]] = Counter()
        self._url, self._label, self._upper = f"{url}/v1/recognize", label, upper

    def run(self, stop: threading.Event) -> None:
        with requests.Session() as session:
            while not stop.is_set():
                answer = session.post(self._url, FRAMES[self._label], timeout=60)
                body = answer.json()
                if answer.status_code != 200:
                    self.answers[answer.status_code, body["error"]["code"]] += 1
                    continue
                version = body["model_version"]
                label = body["predictions"][0]["label"]
                expected = self._label.upper() if version in self._upper else self._label
                self.answers[version, "right" if label == expected else "mixed"] += 1


@pytest.fixture
def two_versions(tiny_model: MakeModel, tmp_path: Path) -> Path:
    """models/colors/1 and 2, of which the second answers in capitals."""
    write_bundle(tmp_path / "colors" / "1", tiny_model("slow"))
    upper = tuple(color.upper() for color in COLORS)
    write_bundle(tmp_path / "colors" / "2", tiny_model("slow"), upper)
    return tmp_path


def test_a_hundred_swaps_under_eight_clients(two_versions: Path) -> None:
    with live_server(models=two_versions) as server:
        change = f"{server.url}/v1/models/colors"

        def swap(count: int) -> None:
            for turn in range(count):
                answer = requests.post(f"{change}/activate", json={"version": 1 + turn % 2})
                assert answer.status_code == 200, answer.text
                assert answer.json()["serving"] == 1 + turn % 2
                server.await_event("model unloaded")

        def under_load(count: int) -> Counter[tuple[int, str]]:
            stop = threading.Event()
            cameras = [Camera(server.url, COLORS[n % 3], {2}) for n in range(CLIENTS)]
            with ThreadPoolExecutor(CLIENTS) as pool:
                running = [pool.submit(camera.run, stop) for camera in cameras]
                try:
                    swap(count)
                finally:
                    stop.set()
                for run in running:
                    run.result()
            return sum((camera.answers for camera in cameras), Counter())

        under_load(10)
        before = server.memory(), threads(server), descriptors(server)
        answers = under_load(SWAPS)
        after = server.memory(), threads(server), descriptors(server)
    assert set(answers) == {(1, "right"), (2, "right")}, answers
    assert abs(after[0] - before[0]) < 10e6, (before, after)
    assert after[1] == before[1]
    assert after[2] == before[2]

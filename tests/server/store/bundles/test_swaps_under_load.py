"""Models that come and go under load, in a real server."""

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from images import encode, plain
from job_workers import await_that, thread_names
from server_process import LiveServer, live_server
from tiny_models import COLORS, MakeModel, write_bundle

from server.store.journal.waiting import NAMES

CLIENTS = 8
SWAPS = 50
FRAMES = {
    color: encode(plain(pixel), "JPEG")
    for color, pixel in zip(COLORS, ((255, 0, 0), (0, 255, 0), (0, 0, 255)), strict=True)
}


def descriptors(server: LiveServer) -> Counter[str]:
    """The worker's open files, pipes and so on by name; connections come and go with clients."""
    folder, found = Path(f"/proc/{server.worker_pid()}/fd"), Counter[str]()
    for link in folder.iterdir():
        with suppress(FileNotFoundError):
            found[os.readlink(link)] += 1
    return Counter({name: n for name, n in found.items() if not name.startswith("socket:")})


def threads(server: LiveServer) -> Counter[str]:
    """The worker's threads by name, but for Granian's own, which come and go with the clients."""
    names = thread_names(server.worker_pid())
    return Counter(name for name in names if "tokio" not in name)


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


def test_fifty_swaps_under_eight_clients(two_versions: Path) -> None:
    with live_server(models=two_versions) as server:
        change = f"{server.url}/v1/models/colors"

        def swap(count: int) -> None:
            for turn in range(count):
                answer = requests.post(f"{change}/activate", json={"version": 1 + turn % 2})
                assert answer.status_code == 200, answer.text
                assert answer.json()["serving"] == 1 + turn % 2
            for _ in range(count):
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

        def journal_at_rest() -> bool:
            # Its files are opened with its first rows, a moment after the first answers, and
            # SQLite opens their folder while it syncs that.
            found = descriptors(server)
            log = next((name for name in found if name.endswith("-wal")), None)
            return log is not None and str(Path(log).parent) not in found

        under_load(10)
        await_that(journal_at_rest, "a journal at rest")
        await_that(lambda: "model-release" not in threads(server), "the last version's end")
        # The journal opens each of these when it first needs it, perhaps only during the swaps.
        waiting = {str(server.data / name) for name in NAMES}

        def lasting() -> tuple[Counter[str], Counter[str]]:
            found = descriptors(server)
            return threads(server), Counter({k: n for k, n in found.items() if k not in waiting})

        memory, before = server.memory(), lasting()
        answers = under_load(SWAPS)

        def as_before() -> bool:
            found = descriptors(server)
            once = all(found[name] <= 1 for name in waiting)
            return once and journal_at_rest() and lasting() == before

        await_that(as_before, f"threads and descriptors as before: {before}")
        assert abs(server.memory() - memory) < 5e6
    assert set(answers) == {(1, "right"), (2, "right")}, answers


def metric(server: LiveServer, name: str) -> dict[str, float]:
    """The samples of a metric by their labels, as text."""
    text = requests.get(f"{server.url}/metrics", timeout=60).text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(name)]
    return {labels.removeprefix(name): float(value) for labels, value in lines}


def test_eight_models_in_memory_for_three(tiny_model: MakeModel, tmp_path: Path) -> None:
    models = [f"m{n}" for n in range(8)]
    for name in models:
        labels = tuple(f"{name}-{color}" for color in COLORS)
        write_bundle(tmp_path / name / "1", tiny_model("slow"), labels)
    sizes = 'lineside_model_memory_bytes{model="m'
    # With a budget, so that the first model too is measured when nothing else is being loaded.
    with live_server(models=tmp_path, model="m0", models_memory_mb=1000) as server:
        assert server.recognize(FRAMES["red"], model="m1").status_code == 200
        first, other = (metric(server, sizes)[f'{n}"}}'] for n in (0, 1))
    # The first model's measure has LiteRT's own start in it.
    budget = first + 2.2 * other
    with live_server(models=tmp_path, model="m0", models_memory_mb=budget / 1e6) as server:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda n: server.recognize(FRAMES[COLORS[n % 3]]), range(40)))
        bare = server.memory() - sum(metric(server, sizes).values())
        most, stop = [0.0], threading.Event()

        def watch() -> None:
            while not stop.wait(0.05):
                most[0] = max(most[0], server.memory())

        def ask(client: int) -> Counter[str]:
            seen: Counter[str] = Counter()
            with requests.Session() as session:
                for turn in range(10):
                    name = models[(client + turn * 3) % 8]
                    color = COLORS[(client + turn) % 3]
                    url = f"{server.url}/v1/recognize?model={name}&deadline_ms=30000"
                    answer = session.post(url, FRAMES[color], timeout=60)
                    assert answer.status_code == 200, answer.text
                    label = answer.json()["predictions"][0]["label"]
                    seen["right" if label == f"{name}-{color}" else "wrong"] += 1
            return seen

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            with ThreadPoolExecutor(CLIENTS) as pool:
                seen = sum(pool.map(ask, range(CLIENTS)), Counter())
        finally:
            stop.set()
            watcher.join()
        assert seen == {"right": 80}
        # Frames in hand and the measure of a model that is just being loaded are the slack.
        assert most[0] < bare + budget + 10e6
        assert sum(metric(server, sizes).values()) <= budget
        assert metric(server, "lineside_models_loaded")[""] <= 3

        def logged() -> Counter[str]:
            return Counter(
                f'{{model="{line["model"].split("/")[0]}",reason="{line["reason"]}"}}'
                for line in server.lines
                if line["event"] == "model unloaded"
            )

        def counted() -> dict[str, float]:
            return metric(server, "lineside_model_unloads_total")

        # The last one that left is told of after its room is free.
        await_that(lambda: counted() == logged(), "each unload counted and in the log")
        unloads = counted()
    assert sum(unloads.values()) >= 5
    assert not any('"m0"' in labels for labels in unloads)

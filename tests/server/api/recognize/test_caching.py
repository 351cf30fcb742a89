"""Frames that come again, against live servers: one inference, equal answers, never an old one."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest
import requests
from clients import frame
from images import encode, plain
from job_workers import await_that
from redis import Redis
from server_process import LiveServer, free_port, live_server
from tiny_models import COLORS, MakeModel, write_bundle

from server.store.keys import add_key

RESULTS = ("hit", "miss", "shared", "bypass", "error")
DOWN, BACK = "the cache's Redis is down, frames go on", "the cache's Redis is back"
# As `-m server`, but one late reply of a Redis on a busy machine does not turn the cache off.
PATIENT = (
    "-c",
    "import sys; from server import __main__; from server.store.cache import redis_backend;"
    " redis_backend.COMMAND_TIMEOUT_S = 30; sys.exit(__main__.main())",
)


def lookups(server: LiveServer) -> dict[str, int]:
    """How frames were looked up so far, those that did not occur left out."""
    counted = {
        result: int(server.sample("lineside_cache_lookups_total", result=result))
        for result in RESULTS
    }
    return {result: count for result, count in counted.items() if count}


def inferences(server: LiveServer) -> int:
    return int(server.sample("lineside_stage_duration_seconds_count", stage="inference"))


def green(seed: int = 0) -> bytes:
    """A green frame whose bytes are like no other seed's."""
    return encode(plain((seed % 50, 255 - seed % 7, seed // 50)), "PNG")


def post(server: LiveServer, data: bytes, cache_control: str = "", **params: Any) -> Any:
    headers = {"Content-Type": "image/png", "Cache-Control": cache_control}
    return requests.post(
        f"{server.url}/v1/recognize", data, params=params, headers=headers, timeout=60
    )


def told(answer: requests.Response) -> dict[str, Any]:
    """What an answer says of the frame, without what belongs to its request."""
    body: dict[str, Any] = answer.json()
    own = ("request_id", "timing_ms", "cached", "camera", "part")
    return {name: value for name, value in body.items() if name not in own}


@pytest.fixture(scope="module")
def caching(
    tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server of the model `slow` whose answers all come from the cache."""
    models = tmp_path_factory.mktemp("caching")
    write_bundle(models / "slow" / "1", tiny_model("slow"))
    with live_server(models=models, cache="true") as server:
        yield server


def at_once(server: LiveServer, path: str, clients: int, **how: Any) -> list[requests.Response]:
    """The answers to the same request of several clients, sent together."""
    barrier = Barrier(clients)

    def client(_: int) -> requests.Response:
        with requests.Session() as session:
            session.get(f"{server.url}/livez", timeout=60)
            barrier.wait(60)
            return session.post(server.url + path, timeout=60, **how)

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(client, range(clients)))


@pytest.mark.parametrize("path", ["/v1/recognize", "/api/recognize_cached"])
def test_eight_clients_with_one_frame_cost_one_inference(caching: LiveServer, path: str) -> None:
    """Eight clients with the same frame cost one inference."""
    before, counted = inferences(caching), lookups(caching)
    answers = at_once(caching, path, 8, files={"file": green(1)})
    assert {answer.status_code for answer in answers} == {200}
    assert inferences(caching) - before == 1
    now = {name: count - counted.get(name, 0) for name, count in lookups(caching).items()}
    assert now["miss"] == 1
    assert now.get("shared", 0) + now.get("hit", 0) == 7
    labels = [answer.json()["predictions"] for answer in answers]
    assert all(label == labels[0] for label in labels)
    assert sum("Age" in answer.headers for answer in answers) == 7


def test_answers_with_and_without_the_cache_are_equal(caching: LiveServer) -> None:
    for seed in range(100, 110):
        began = time.time()
        computed, kept = post(caching, green(seed)), post(caching, green(seed))
        anew = post(caching, green(seed), "no-cache")
        assert [a.json()["cached"] for a in (computed, kept, anew)] == [False, True, False]
        assert told(computed) == told(kept) == told(anew)
        assert "Age" not in computed.headers
        assert 0 <= int(kept.headers["Age"]) <= time.time() - began
        assert kept.json()["request_id"] == kept.headers["X-Request-Id"]
        assert kept.json()["timing_ms"]["inference"] == 0


def test_cached_answer_belongs_to_its_frame_and_options(caching: LiveServer) -> None:
    """A cached answer belongs to its frame and options alone."""
    post(caching, green(200), top_k=3)
    for data, asked in (
        (green(201), {"top_k": 3}),
        (green(200), {"top_k": 2}),
        (green(200), {"top_k": 3, "threshold": 0.5}),
    ):
        answer = post(caching, data, **asked)
        assert answer.json()["cached"] is False
        assert len(answer.json()["predictions"]) == (1 if "threshold" in asked else asked["top_k"])
    again = post(caching, green(200), top_k=3, camera="other", part="B", deadline_ms=1000)
    assert again.json()["cached"] is True
    assert (again.json()["camera"], again.json()["part"]) == ("other", "B")
    form = requests.post(
        f"{caching.url}/v1/recognize?top_k=3", files={"image": green(200)}, timeout=60
    )
    assert form.json()["cached"] is True, "the form in which a frame comes is nothing of it"


@pytest.mark.parametrize(
    ("asked", "cached", "kept"),
    [
        ("no-cache", False, True),
        ("no-store", False, False),
        ("no-cache, no-store", False, False),
        ("max-age=60", False, True),
    ],
)
def test_cache_control_of_a_new_frame(
    caching: LiveServer, asked: str, cached: bool, kept: bool
) -> None:
    data = green(300 + sum(asked.encode()))
    assert post(caching, data, asked).json()["cached"] is cached
    assert post(caching, data).json()["cached"] is kept


@pytest.mark.parametrize(
    ("asked", "cached"),
    [("no-cache", False), ("no-store", True), ("max-age=0", False), ("max-age=60", True)],
)
def test_cache_control_of_a_known_frame(caching: LiveServer, asked: str, cached: bool) -> None:
    post(caching, green(400))
    assert post(caching, green(400), asked).json()["cached"] is cached


def test_each_of_a_batch_says_so(caching: LiveServer) -> None:
    post(caching, green(500))
    files = [("file", ("a.png", green(501))), ("file", ("b.png", green(500)))]
    answer = requests.post(f"{caching.url}/v1/recognize/batch", files=files, timeout=60)
    assert [row["result"]["cached"] for row in answer.json()["results"]] == [False, True]


def test_a_bad_frame_is_as_bad_for_all_who_send_it(caching: LiveServer) -> None:
    answers = at_once(caching, "/v1/recognize", 4, data=green()[:60])
    assert {answer.status_code for answer in answers} == {422}
    ids = {answer.json()["error"]["request_id"] for answer in answers}
    assert len(ids) == 4
    assert post(caching, green()[:60]).status_code == 422, "an error is not kept"


def test_a_hit_needs_no_slot(tiny_model: MakeModel, tmp_path: Path) -> None:
    """While every place is taken, it is answered; what is new is refused."""
    write_bundle(tmp_path / "slow" / "1", tiny_model("slow"))
    settings = {"interpreters": 1, "frames_at_once": 1, "max_waiting": 1, "cache_s": 600}
    with (
        live_server(models=tmp_path, cache="true", **settings) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        post(server, green(1))
        done = Event()

        def keep_busy(seed: int) -> None:
            while not done.is_set():
                post(server, green(seed), "no-cache, no-store")

        def refused() -> bool:
            answer = post(server, green(2), "no-store").json()
            return "error" in answer and answer["error"]["code"] == "OVERLOADED"

        busy = [pool.submit(keep_busy, seed) for seed in range(10, 18)]
        try:
            for _ in range(10):
                await_that(refused, "every place taken")
                assert post(server, green(1)).json()["cached"] is True
        finally:
            done.set()
        for one in busy:
            one.result(60)


def test_a_swap_never_serves_the_old_models_answer(tiny_model: MakeModel, tmp_path: Path) -> None:
    upper = tuple(color.upper() for color in COLORS)
    write_bundle(tmp_path / "colors" / "1", tiny_model("colors"))
    write_bundle(tmp_path / "colors" / "2", tiny_model("colors"), upper)
    with live_server(models=tmp_path, cache="true") as server:

        def swap(version: int) -> None:
            url = f"{server.url}/v1/models/colors/activate"
            assert requests.post(url, json={"version": version}, timeout=60).status_code == 200

        def seen() -> tuple[int, str, bool]:
            body = post(server, green()).json()
            return body["model_version"], body["predictions"][0]["label"], body["cached"]

        for version, label in ((1, "green"), (2, "GREEN")):
            swap(version)
            assert [seen(), seen()] == [(version, label, False), (version, label, True)]
        swap(1)
        assert seen() == (1, "green", True)


def test_a_version_that_was_replaced_in_place_is_another(
    tiny_model: MakeModel, tmp_path: Path
) -> None:
    """Redis outlives the server, and so might an answer of other files under the same number."""
    with redis() as (port, _):
        url = f"redis://127.0.0.1:{port}/0"
        upper = tuple(color.upper() for color in COLORS)
        for labels, cached in ((COLORS, False), (COLORS, True), (upper, False)):
            shutil.rmtree(tmp_path / "colors", ignore_errors=True)
            write_bundle(tmp_path / "colors" / "1", tiny_model("colors"), labels)
            with live_server(*PATIENT, models=tmp_path, cache="true", cache_url=url) as server:
                await_redis(server)
                answer, again = (post(server, green()).json() for _ in range(2))
                assert (answer["cached"], again["cached"]) == (cached, True)
                assert answer["predictions"][0]["label"] == labels[1]
                assert again["predictions"][0]["label"] == labels[1]


def test_the_cached_route_needs_no_setting(clients: LiveServer) -> None:
    files = {"file": frame("magenta")}
    plain_one = requests.post(f"{clients.url}/api/recognize", files=files, timeout=60)
    began = time.time()
    first = requests.post(f"{clients.url}/api/recognize_cached", files=files, timeout=60)
    again = requests.post(f"{clients.url}/api/recognize_cached", files=files, timeout=60)
    assert plain_one.json() == first.json() == again.json()
    assert "Age" not in first.headers
    assert 0 <= int(again.headers["Age"]) <= time.time() - began
    for answer in (first, again):
        recent = requests.get(
            f"{clients.url}/recent", params={"id": answer.headers["X-Request-Id"]}, timeout=60
        )
        assert recent.json() == first.json()
        assert int(recent.headers["Age"]) >= 0
    assert clients.recognize(frame("magenta")).json()["cached"] is False


@pytest.fixture(scope="module")
def forgetful(colors: Path) -> Iterator[LiveServer]:
    """A server that keeps answers for a second."""
    with live_server(models=colors, cache="true", cache_s=1) as server:
        yield server


def await_forgotten(server: LiveServer, answer: requests.Response) -> None:
    """Returns once the server does not know `answer` any more."""
    url = f"{server.url}/recent?id={answer.headers['X-Request-Id']}"
    await_that(lambda: requests.get(url, timeout=60).status_code != 200, "its end")


def test_cached_route_keeps_a_minute_whatever_is_set(forgetful: LiveServer) -> None:
    """The cached route keeps answers for a minute, whatever the setting is."""
    files, route = {"file": green(1)}, f"{forgetful.url}/api/recognize_cached"
    first = requests.post(route, files=files, timeout=60)
    assert first.status_code == 200
    await_forgotten(forgetful, post(forgetful, green(1)))
    assert "Age" in requests.post(route, files=files, timeout=60).headers
    name = first.headers["X-Request-Id"]
    assert requests.get(f"{forgetful.url}/recent?id={name}", timeout=60).status_code == 200
    assert post(forgetful, green(1), top_k=3).json()["cached"] is False, "it asks for one second"


def test_the_cached_route_keeps_for_no_more_than_a_minute(colors: Path) -> None:
    with redis() as (port, _):
        url = f"redis://127.0.0.1:{port}/0"
        how = {"models": colors, "cache": "true", "cache_s": 3600, "cache_url": url}
        with (
            live_server(*PATIENT, **how) as server,
            closing(Redis.from_url(url)) as client,
        ):
            await_redis(server)
            client.flushdb()
            for _ in range(2):
                route = f"{server.url}/api/recognize_cached"
                requests.post(route, files={"file": green()}, timeout=60).raise_for_status()
            kept = list(client.scan_iter("lineside:*"))
            assert len(kept) == 3, "one answer, and two requests that got it"
            assert all(0 < client.ttl(key) <= 60 for key in kept)


def test_recent_of_an_id_that_a_client_chose(clients: LiveServer) -> None:
    answer = requests.post(
        f"{clients.url}/api/recognize_cached",
        files={"file": frame("cyan")},
        headers={"X-Request-Id": "my-part-17"},
        timeout=60,
    )
    recent = requests.get(f"{clients.url}/recent?id=my-part-17", timeout=60)
    assert recent.json() == answer.json()


def test_recent_is_the_callers_own(client_models: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    keys = [add_key(file, name, ["recognize"], now=datetime.now(UTC)) for name in "ab"]
    one, other = ({"X-API-Key": key, "X-Request-Id": "1"} for key in keys)
    with live_server(models=client_models, model="corners", keys_file=file) as server:

        def recent(who: dict[str, str]) -> requests.Response:
            return requests.get(f"{server.url}/recent?id=1", headers=who, timeout=60)

        url = f"{server.url}/api/recognize_cached"
        first = requests.post(url, files={"file": frame("red")}, headers=one, timeout=60)
        assert recent(other).status_code == 404
        requests.post(url, files={"file": frame("blue")}, headers=other, timeout=60)
        assert recent(one).json() == first.json() != recent(other).json()


@pytest.mark.parametrize(
    ("query", "status"), [("", 400), ("?id=", 400), ("?id=nobody", 404), ("?id=%ff%00", 404)]
)
def test_recent_of_what_is_not_kept(clients: LiveServer, query: str, status: int) -> None:
    answer = requests.get(f"{clients.url}/recent{query}", timeout=60)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert isinstance(answer.json()["error"], str)


def test_an_answer_goes_when_its_time_is_over(forgetful: LiveServer) -> None:
    await_forgotten(forgetful, post(forgetful, green(2)))
    assert post(forgetful, green(2)).json()["cached"] is False


@contextmanager
def redis(*arguments: str, port: int = 0) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A Redis of its own: its port and process; skips where there is none."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (Debian: apt install redis-server)")
    port = port or free_port()
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "Ready to accept" in line:
                break
        yield port, process
    finally:
        process.kill()
        process.communicate()


def await_redis(server: LiveServer) -> None:
    """Returns once the server has heard from its Redis."""
    await_that(lambda: post(server, green(3000)).json()["cached"], "an answer from Redis")


def test_two_servers_share_a_redis(colors: Path) -> None:
    with redis() as (port, _):
        how = {"models": colors, "cache": "true", "cache_url": f"redis://127.0.0.1:{port}/1"}
        with live_server(*PATIENT, **how) as one, live_server(*PATIENT, **how) as other:
            await_redis(one)
            await_redis(other)
            first, second = post(one, green(7)), post(other, green(7))
            assert (first.json()["cached"], second.json()["cached"]) == (False, True)
            assert told(first) == told(second)
            name = first.headers["X-Request-Id"]
            recent = requests.get(f"{other.url}/recent?id={name}", timeout=60)
            assert recent.json()["predictions"][0]["label"] == "green"


def test_a_redis_that_hangs_or_dies_costs_no_answer(colors: Path) -> None:
    """On a busy machine one that neither hangs nor dies may be down for a moment, too."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"

    def said() -> list[str]:
        return [line["event"] for line in list(server.lines) if line["event"] in (DOWN, BACK)]

    def await_last(event: str) -> None:
        def last() -> bool:
            assert post(server, green()).status_code == 200
            return said()[-1:] == [event]

        await_that(last, event)

    with live_server(models=colors, cache="true", cache_url=url) as server:
        await_that(said, "a word of the Redis that is not there")
        for _ in range(3):
            assert post(server, green()).json()["cached"] is False
        assert lookups(server) == {"error": 3}
        with redis(port=port) as (_, process):
            await_last(BACK)
            await_that(lambda: post(server, green()).json()["cached"], "an answer from Redis")
            process.send_signal(signal.SIGSTOP)
            answers = [post(server, green(n)) for n in range(20)]
            assert {answer.status_code for answer in answers} == {200}
            await_last(DOWN)
            process.send_signal(signal.SIGCONT)
            await_last(BACK)
            await_that(lambda: post(server, green()).json()["cached"], "an answer from Redis")
        assert post(server, green()).json()["cached"] is False
        await_last(DOWN)
        assert {post(server, green(n)).status_code for n in range(5)} == {200}
    told = said()
    assert told == [DOWN, BACK] * (len(told) // 2) + [DOWN], "each time once"
    assert told.count(DOWN) >= 3


def test_a_full_redis_costs_no_answer(colors: Path) -> None:
    with redis("--maxmemory", "1", "--maxmemory-policy", "noeviction") as (port, _):
        url = f"redis://127.0.0.1:{port}/0"
        with live_server(*PATIENT, models=colors, cache="true", cache_url=url) as server:

            def refuses() -> bool:
                assert post(server, green()).json()["cached"] is False
                told = "the cache's Redis refuses, frames go on"
                return any(line["event"] == told for line in list(server.lines))

            await_that(refuses, "a word of it")
            for _ in range(5):
                assert post(server, green()).json()["cached"] is False
        assert sum("Redis" in line["event"] for line in server.lines) == 1


@pytest.mark.parametrize("url", ["http://x", "redis://", "redis://h:port", "redis://h/0?colour=1"])
def test_an_address_that_is_none_stops_the_start(colors: Path, url: str) -> None:
    server = LiveServer(models=colors, cache_url=url)
    try:
        assert server.process.wait(60) == 1
    finally:
        server.stop()
    assert "cache_url" in str(server.lines).lower()

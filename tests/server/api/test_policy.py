"""/v1/models/NAME/policy: the verdict's thresholds, changed on the device."""

import json
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from job_workers import await_that, patiently
from server_process import ROOT, LiveServer, live_server
from tiny_models import change_manifest

from server.api.policy import POLICY_BYTES_MAX
from server.store.keys import add_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PATH = "/v1/models/parts/policy"
GOOD = (ROOT / "models" / "parts" / "1" / "samples" / "good.jpg").read_bytes()
BUNDLE = {"accept": ["good"], "min_probability": 0.5}
# By which the good part fails.
STRICT = {"accept": ["chipped"], "min_probability": 0.5}


def copy_of_parts(folder: Path) -> Path:
    """A models folder with the shipped bundle as parts/1."""
    shutil.copytree(ROOT / "models" / "parts" / "1", folder / "models" / "parts" / "1")
    return folder / "models"


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.jsonl"


@pytest.fixture(scope="module")
def keys(key_file: Path) -> dict[str, str]:
    return {
        "mes": add_key(key_file, "mes", ["admin", "recognize"], now=NOW),
        "st4": add_key(key_file, "st4", ["recognize"], now=NOW),
    }


@pytest.fixture(scope="module")
def running(
    key_file: Path, keys: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server of parts/1 and the same as parts/2, which serves, with a cache."""
    models = copy_of_parts(tmp_path_factory.mktemp("policy"))
    shutil.copytree(models / "parts" / "1", models / "parts" / "2")
    change_manifest(models / "parts" / "2", version=2)
    with live_server(
        models=models, model="parts", keys_file=key_file, cache=True, cache_s=600
    ) as server:
        yield server


@pytest.fixture
def server(running: LiveServer, keys: dict[str, str]) -> LiveServer:
    """The server, with version 2 and the bundles' policies in force."""
    for version in (1, 2):
        ask(running, keys["mes"], "DELETE", f"{PATH}?version={version}")
    ask(running, keys["mes"], "POST", "/v1/models/parts/activate", json={"version": 2})
    return running


def ask(server: LiveServer, key: str, method: str, path: str, **how: Any) -> requests.Response:
    headers = {"X-API-Key": key} if key else {}
    return requests.request(method, server.url + path, headers=headers, timeout=60, **how)


def judged(server: LiveServer, key: str) -> tuple[str, str, bool]:
    """The good part's verdict, the rule that decided, and whether the answer was cached."""
    answer = ask(server, key, "POST", "/v1/recognize", files={"file": GOOD}).json()
    return answer["verdict"], answer["verdict_reason"], answer["cached"]


def test_change_holds_from_the_next_frame_on(server: LiveServer, keys: dict[str, str]) -> None:
    """Also for answers in the cache, those of either policy."""
    key = keys["mes"]
    ask(server, key, "POST", "/v1/recognize", files={"file": GOOD})
    assert judged(server, key) == ("pass", "accept", True)
    changed = ask(server, key, "POST", PATH, json={"policy": STRICT})
    assert changed.status_code == 200
    assert judged(server, key)[:2] == ("fail", "not_accepted")
    assert judged(server, key) == ("fail", "not_accepted", True)
    stricter = STRICT | {"min_probability": 1.0}
    assert ask(server, key, "POST", PATH, json={"policy": stricter}).status_code == 200
    assert judged(server, key)[:2] == ("unsure", "min_probability")
    unfamiliar = BUNDLE | {"min_familiarity": 0.95}
    assert ask(server, key, "POST", PATH, json={"policy": unfamiliar}).status_code == 200
    assert judged(server, key)[:2] == ("unsure", "unfamiliar")
    assert ask(server, key, "DELETE", PATH).json()["policy"] == BUNDLE
    assert judged(server, key) == ("pass", "accept", True)


def test_jobs_are_judged_by_the_policy_in_force(server: LiveServer, keys: dict[str, str]) -> None:
    def verdict() -> str:
        files = {"file": ("a.jpg", GOOD)}
        sent = patiently(lambda: ask(server, keys["mes"], "POST", "/v1/jobs", files=files))
        path = f"/v1/jobs/{sent.json()['job_id']}"

        def done() -> Any:
            job = patiently(lambda: ask(server, keys["mes"], "GET", path)).json()
            return job if job["status"] in ("succeeded", "failed") else None

        [frame] = await_that(done, "the job's end")["frames"]
        return str(frame["result"]["verdict"])

    assert verdict() == "pass"
    ask(server, keys["mes"], "POST", PATH, json={"policy": STRICT})
    assert verdict() == "fail"
    ask(server, keys["mes"], "POST", PATH, json={"policy": None})
    assert verdict() == "pass"


def test_policy_is_shown_with_who_changed_it(server: LiveServer, keys: dict[str, str]) -> None:
    before = ask(server, keys["st4"], "GET", PATH).json()
    assert before == {
        "model": "parts",
        "version": 2,
        "policy": BUNDLE,
        "bundle": BUNDLE,
        "changed": None,
    }
    answer = ask(server, keys["mes"], "POST", PATH, json={"policy": STRICT}).json()
    assert (answer["policy"], answer["bundle"]) == (STRICT, BUNDLE)
    assert answer["changed"]["caller"] == "mes"
    assert datetime.fromisoformat(answer["changed"]["at"]).tzinfo is not None
    assert ask(server, keys["st4"], "GET", PATH).json() == answer
    model = ask(server, keys["st4"], "GET", "/v1/models/parts").json()
    assert model["policy"] == answer
    assert model["manifest"]["verdict"] == BUNDLE


def test_audit_has_the_policy_before_and_after(server: LiveServer, keys: dict[str, str]) -> None:
    ask(server, keys["mes"], "POST", PATH, json={"policy": STRICT})
    refused = ask(server, keys["mes"], "POST", PATH, json={"policy": {"accept": ["bolt"]}})
    assert refused.status_code == 400
    ask(server, keys["mes"], "DELETE", PATH)
    changes = ask(server, keys["mes"], "GET", "/v1/audit?limit=3").json()["changes"]
    assert [
        (each["policy_before"], each["policy_after"], each["code"]) for each in reversed(changes)
    ] == [(BUNDLE, STRICT, ""), (STRICT, STRICT, "INVALID_FIELD"), (STRICT, BUNDLE, "")]
    assert {(each["action"], each["version"], each["caller"]) for each in changes} == {
        ("policy", 2, "mes")
    }
    ask(server, keys["mes"], "POST", "/v1/models/parts/load")
    [load] = ask(server, keys["mes"], "GET", "/v1/audit?limit=1").json()["changes"]
    assert not {"policy_before", "policy_after"} & set(load)


def test_policy_belongs_to_its_version(server: LiveServer, keys: dict[str, str]) -> None:
    """A rollback has the policy of the version before in force, and that of a version that does
    not serve may be set before it does."""
    key = keys["mes"]
    ask(server, key, "POST", PATH, json={"policy": STRICT})
    rolled_back = ask(server, key, "POST", "/v1/models/parts/rollback").json()
    assert rolled_back["policy"] | {"changed": None} == {
        "model": "parts",
        "version": 1,
        "policy": BUNDLE,
        "bundle": BUNDLE,
        "changed": None,
    }
    assert judged(server, key)[0] == "pass"
    other = STRICT | {"min_probability": 0.75}
    set_before = ask(server, key, "POST", PATH, json={"policy": other, "version": 2}).json()
    assert (set_before["version"], set_before["policy"]) == (2, other)
    assert judged(server, key)[0] == "pass"
    assert ask(server, key, "GET", f"{PATH}?version=2").json() == set_before
    active = ask(server, key, "POST", "/v1/models/parts/activate", json={"version": 2}).json()
    assert active["policy"] == set_before
    assert judged(server, key)[0] == "fail"


def test_only_an_administrator_changes_it(server: LiveServer, keys: dict[str, str]) -> None:
    for key, status in ((keys["st4"], 403), ("", 401)):
        body = {"policy": STRICT}
        assert ask(server, key, "POST", PATH, json=body).status_code == status
        assert ask(server, key, "DELETE", PATH).status_code == status
    assert ask(server, "", "GET", PATH).status_code == 401
    assert ask(server, keys["st4"], "GET", PATH).json()["policy"] == BUNDLE


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "policy is missing"),
        ({"policy": []}, "policy should be an object or null"),
        ({"policy": {}}, "policy.accept is missing"),
        ({"policy": {"accept": "good"}}, "policy.accept should be a list"),
        ({"policy": {"accept": ["goood"]}}, "policy.accept names goood, which labels.txt lacks:"),
        ({"policy": {"accept": [None]}}, "policy.accept[0] should be text, not null"),
        ({"policy": BUNDLE | {"min_probability": 1.5}}, "policy.min_probability should be a numb"),
        ({"policy": BUNDLE | {"min_probability": True}}, "policy.min_probability should be a num"),
        ({"policy": BUNDLE | {"min_familiarity": 0}}, "policy.min_familiarity should be a number"),
        ({"policy": BUNDLE | {"minimum": {"good": 1}}}, "policy.minimum is not known here"),
        ({"policy": BUNDLE, "version": 0}, "version should be a whole number of at least 1"),
        ({"policy": BUNDLE, "model": "iris"}, "model is not known here"),
    ],
)
def test_body_that_does_not_fit_is_refused(
    server: LiveServer, keys: dict[str, str], body: Any, words: str
) -> None:
    answer = ask(server, keys["mes"], "POST", PATH, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_FIELD")
    assert words in answer.json()["error"]["message"]
    assert ask(server, keys["st4"], "GET", PATH).json()["changed"] is None


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"x", 400),
        (b'{"policy": {"accept": ["good"], "min_probability": NaN}}', 400),
        (b'{"policy": {"accept": ["good"], "min_probability": 1e999}}', 400),
        (b'{"policy": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
        (b'{"policy": {"accept": ["\xff"]}}', 400),
        (json.dumps({"policy": {"accept": ["good"] * POLICY_BYTES_MAX}}).encode(), 413),
    ],
)
def test_hostile_body_changes_nothing(
    server: LiveServer, keys: dict[str, str], data: bytes, status: int
) -> None:
    assert ask(server, keys["mes"], "POST", PATH, data=data).status_code == status
    assert ask(server, keys["st4"], "GET", PATH).json()["changed"] is None


def test_unknown_model_or_version_is_404(server: LiveServer, keys: dict[str, str]) -> None:
    for path in ("/v1/models/none/policy", f"{PATH}?version=9"):
        assert ask(server, keys["mes"], "GET", path).status_code == 404
        assert ask(server, keys["mes"], "DELETE", path).status_code == 404
    for version in (9, int("1" * 400)):  # the second is no name that a folder can have
        url, body = f"{PATH}?version={version}", {"policy": BUNDLE, "version": version}
        assert ask(server, keys["mes"], "GET", url).status_code == 404
        assert ask(server, keys["mes"], "DELETE", url).status_code == 404
        assert ask(server, keys["mes"], "POST", PATH, json=body).status_code == 404


def test_policy_outlives_kill_and_damage_stops_passing(tmp_path: Path) -> None:
    """Without its policy a version does not serve; the policy's removal has it serve again."""
    models = copy_of_parts(tmp_path)
    with live_server(models=models, model="parts") as server:
        assert ask(server, "", "POST", PATH, json={"policy": STRICT}).status_code == 200
        server.stop(signal.SIGKILL)
    with live_server(models=models, model="parts") as server:
        assert judged(server, "")[:2] == ("fail", "not_accepted")
        assert ask(server, "", "GET", PATH).json()["policy"] == STRICT
    file = models / "parts" / "policy-1.json"
    file.write_bytes(file.read_bytes().replace(b"chipped", b"good"))
    damaged = LiveServer(models=models, model="parts")
    try:
        damaged.await_event("version refused")
        damaged.await_listening()
        ready = ask(damaged, "", "GET", "/readyz")
        assert ready.status_code == 503
        refused = ask(damaged, "", "POST", "/v1/recognize", files={"file": GOOD})
        assert refused.status_code == 503
        message = refused.json()["error"]["message"]
        assert f"the verdict policy in {file} can't be used" in message
        remedy = "/v1/models/parts/policy?version=1"
        assert f"DELETE {remedy} returns to the bundle's" in message
        assert ask(damaged, "", "DELETE", remedy).json()["policy"] == BUNDLE
        assert ask(damaged, "", "GET", "/readyz").status_code == 200
        assert judged(damaged, "")[0] == "pass"
    finally:
        damaged.stop()


def test_changes_at_once_are_answered_each_with_its_own(
    running: LiveServer, keys: dict[str, str]
) -> None:
    headers = {"X-API-Key": keys["mes"]}

    def change(number: int) -> tuple[float, float]:
        least = 0.5 + number / 100
        body: dict[str, Any] = {"policy": {"accept": ["good"], "min_probability": least}}
        answer = requests.post(running.url + PATH, json=body, headers=headers, timeout=60)
        return least, answer.json()["policy"]["min_probability"]

    with ThreadPoolExecutor(4) as pool:
        assert all(sent == answered for sent, answered in pool.map(change, range(24)))
    requests.delete(running.url + PATH, headers=headers, timeout=60)

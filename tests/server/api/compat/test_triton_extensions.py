"""Triton's configuration, statistics and repository, as its clients ask for them by both forms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from clients import frame
from job_workers import await_that
from server_process import LiveServer
from sites import Site
from triton_clients import Client, client

__all__ = ["client"]


def listed(made: Client) -> dict[tuple[str, str], tuple[str, str]]:
    """State and reason by name and version."""
    found = made.json(made.made.get_model_repository_index)
    models = found if made.by_http else found["models"]
    return {
        (each["name"], each["version"]): (each["state"], each.get("reason", "")) for each in models
    }


def statistics(made: Client, model: str) -> dict[str, Any]:
    """The statistics of a model, its numbers as numbers: JSON of protobuf has them as texts."""
    (found,) = made.json(made.made.get_inference_statistics, model)["model_stats"]

    def number(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: number(each) for key, each in value.items()}
        if isinstance(value, list):
            return list(map(number, value))
        return int(value) if isinstance(value, str) and value.isdigit() else value

    numbers: dict[str, Any] = number(found)
    return numbers


def test_configuration(client: Client) -> None:
    found = client.json(client.made.get_model_config, "corners")
    config = found if client.by_http else found["config"]
    assert (config["name"], config["platform"]) == ("corners", "tensorflow_lite")
    assert config["max_batch_size"] == 32
    (given,) = config["input"]
    assert given["data_type"] == "TYPE_FP32"
    assert [int(size) for size in given["dims"]] == [32, 32, 3]
    assert [int(size) for size in config["output"][0]["dims"]] == [8]
    assert [int(n) for n in config["version_policy"]["specific"]["versions"]] == [1]
    with pytest.raises(client.error, match="no model nuts"):
        client.made.get_model_config("nuts")


def test_statistics_count_frames_rows_and_failures(client: Client) -> None:
    image = client.input("image", np.array([frame("red")], object), "BYTES")
    broken = client.input("image", np.array([frame("red")[:60]], object), "BYTES")
    client.infer("corners", [image])
    before = statistics(client, "corners")
    client.infer("corners", [image])
    with pytest.raises(client.error):
        client.infer("corners", [broken])

    def counted() -> bool:
        found = statistics(client, "corners")
        stats, old = found["inference_stats"], before["inference_stats"]
        return bool(
            found["inference_count"] == before["inference_count"] + 1
            and stats["success"]["count"] == old["success"]["count"] + 1
            and stats["success"]["ns"] > old["success"]["ns"]
            and stats["compute_infer"]["ns"] > old["compute_infer"]["ns"]
            and stats["fail"].get("count", 0) == old["fail"].get("count", 0) + 1
            and found["last_inference"] >= before["last_inference"] > 10**12
        )

    await_that(counted, "the frame and the failure to be counted")


def test_statistics_of_a_model_without_labels(client: Client) -> None:
    rows = np.array([[1, 2], [3, 4]], np.float32)
    given = [
        client.input("left", rows, "FP32"),
        client.input("right", np.array([10, 20], np.int32), "INT32"),
    ]
    client.infer("pair", given)
    before = statistics(client, "pair")
    client.infer("pair", given)
    after = statistics(client, "pair")
    assert after["inference_count"] == before["inference_count"] + 2
    assert after["batch_stats"][0]["compute_infer"]["count"] == after["inference_count"]
    everything = client.json(client.made.get_inference_statistics)["model_stats"]
    assert {"pair", "corners"} <= {each["name"] for each in everything}


def test_repository(client: Client, clients: LiveServer) -> None:
    """A model that was unloaded serves again when it is asked, or loaded."""
    made = client.made
    made.load_model("pair")
    assert listed(client)["pair", "1"] == ("READY", "")
    made.unload_model("pair", unload_dependents=True)
    state, reason = listed(client)["pair", "1"]
    assert (state, reason) == ("UNAVAILABLE", "not in memory: the first request loads it")
    assert ("corners", "1") in listed(client)
    assert made.is_model_ready("pair")
    assert listed(client)["pair", "1"][0] == "READY"
    with pytest.raises(client.error, match="corners is the default model"):
        made.unload_model("corners")
    for change in (made.load_model, made.unload_model):
        with pytest.raises(client.error, match="no model nuts"):
            change("nuts")
    with pytest.raises(client.error, match="parameter config is not taken"):
        made.load_model("pair", config="{}")
    actions = requests.get(f"{clients.url}/v1/audit", timeout=60).json()["changes"]
    refused = [each for each in actions if each["model"] == "corners"]
    assert (refused[0]["action"], refused[0]["code"]) == ("unload", "MODEL_NEEDED")
    assert {"load", "unload"} <= {each["action"] for each in actions if each["model"] == "pair"}


def test_only_ready_models_are_listed(clients: LiveServer) -> None:
    answer = requests.post(f"{clients.url}/v2/repository/index", json={"ready": True}, timeout=60)
    assert {each["state"] for each in answer.json()} == {"READY"}


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_changes_need_the_right_admin(colors: Path, tmp_path: Path, verb: str) -> None:
    site = Site(colors, tmp_path)
    path = f"/v2/repository/models/colors/{verb}"
    assert site.get(path, "POST").status_code == 401
    assert site.bearer(site.keys["recognize"], path, "POST").status_code == 403
    answer = site.bearer(site.keys["admin"], path, "POST")
    assert answer.status_code == (409 if verb == "unload" else 200), answer.text

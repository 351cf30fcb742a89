"""Open Inference Protocol v2: Triton's own clients, and the protocol's edges by hand."""

import base64
import gzip
import json
import struct
from typing import Any

import numpy as np
import pytest
import requests
from clients import SETOSA, VIRGINICA, frame
from images import encode, picture
from server_process import LiveServer
from triton_clients import Client, client, over_http

from server.recognition import frame as frames
from server.recognition.engines.litert import Interpreter
from server.recognition.manifest import read_bundle
from server.recognition.preprocessing import to_tensor

__all__ = ["client", "over_http"]
ROWS = np.array([SETOSA, VIRGINICA], np.float32)
HEADER = "Inference-Header-Content-Length"


def infer(clients: LiveServer, model: str, body: Any) -> requests.Response:
    return requests.post(f"{clients.url}/v2/models/{model}/infer", json=body, timeout=60)


def test_health_and_metadata(client: Client) -> None:
    made = client.made
    assert made.is_server_live()
    assert made.is_server_ready()
    assert made.is_model_ready("corners")
    assert made.is_model_ready("iris", "1")
    assert not made.is_model_ready("nuts")
    assert not made.is_model_ready("iris", "7")
    server = client.server_metadata()
    assert server["name"] == "lineside"
    assert set(server["extensions"]) == {
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "model_repository(unload_dependents)",
        "statistics",
    }
    model = client.metadata("corners", "1")
    assert model["versions"] == ["1"]
    (given,) = model["inputs"]
    assert (given["datatype"], given["shape"]) == ("FP32", [-1, 32, 32, 3])
    assert model["outputs"][0]["shape"] == [-1, 8]


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_numbers_as_json_and_as_binary(over_http: Client, sent: bool, wanted: bool) -> None:
    name = over_http.output_name("iris")
    answer = over_http.infer(
        "iris",
        [over_http.input("features", ROWS, "FP32", sent)],
        outputs=[over_http.output(name, binary_data=wanted)],
        request_id="a7",
    )
    head = answer.get_response()
    assert (head["id"], head["model_name"], head["model_version"]) == ("a7", "iris", "1")
    assert ("data" in head["outputs"][0]) != wanted
    array = answer.as_numpy(name)
    assert (array.dtype, array.shape) == (np.float32, (2, 3))
    assert array.argmax(axis=1).tolist() == [0, 2]


def test_binary_output_is_the_default_of_tritons_client(over_http: Client) -> None:
    answer = over_http.infer("iris", [over_http.input("features", ROWS, "FP32")])
    assert answer.get_response()["outputs"][0]["parameters"]["binary_data_size"] == 24


def test_several_inputs_and_outputs(client: Client) -> None:
    left = client.input("left", np.array([[1, 2], [3, 4]], np.float32), "FP32")
    right = client.input("right", np.array([10, 20], np.int32), "INT32", False)
    answer = client.infer("pair", [right, left])
    names = [output["name"] for output in client.response(answer)["outputs"]]
    arrays = [answer.as_numpy(name).tolist() for name in names]
    assert [13, 27] in arrays
    assert [[2, 4], [6, 8]] in arrays


def test_an_image_as_bytes(client: Client) -> None:
    name = client.output_name("corners")
    files = np.array([frame("red", "JPEG"), frame("white")], object)
    for shape in ([2], [2, 1]):
        given = client.input("image", files.reshape(shape), "BYTES")
        answer = client.infer("corners", [given], outputs=[client.output(name, class_count=2)])
        best = [row[0].decode() for row in answer.as_numpy(name)]
        assert [text.split(":")[1:] for text in best] == [["1", "red"], ["7", "white"]]
    raw = client.infer("corners", [client.input("image", files, "BYTES")]).as_numpy(name)
    assert raw.shape == (2, 8)


def test_the_tensor_and_the_file_answer_alike(client: Client, client_models: Any) -> None:
    bundle = read_bundle(client_models / "corners" / "1")
    recipe = bundle.manifest.recipe
    assert recipe is not None
    data = encode(picture(), "PNG")
    spec = Interpreter(bundle.model_path, 1).inputs[0]
    tensor = to_tensor(frames.decode(data, recipe, frames.Limits()), recipe, spec)
    name = client.output_name("corners")
    as_tensor = client.infer("corners", [client.input(spec.name, tensor, "FP32")]).as_numpy(name)
    file = client.input("image", np.array([data], object), "BYTES")
    assert np.array_equal(as_tensor, client.infer("corners", [file]).as_numpy(name))


def test_classification_as_json_and_binary(over_http: Client) -> None:
    name = over_http.output_name("iris")
    for binary in (True, False):
        wanted = over_http.output(name, binary_data=binary, class_count=9)
        answer = over_http.infer(
            "iris", [over_http.input("features", ROWS, "FP32")], outputs=[wanted]
        )
        array = answer.as_numpy(name)
        assert array.shape == (2, 3)
        texts = [t.decode() if isinstance(t, bytes) else t for t in array[:, 0]]
        assert [text.split(":")[1:] for text in texts] == [["0", "setosa"], ["2", "virginica"]]
        assert float(texts[0].split(":")[0]) > 0.9


def test_base64_images_in_json(clients: LiveServer) -> None:
    data = [base64.b64encode(frame("green")).decode()]
    given = {"name": "image", "shape": [1], "datatype": "BYTES", "data": data}
    answer = infer(clients, "corners", {"inputs": [given]}).json()
    scores = answer["outputs"][0]["data"]
    assert scores.index(max(scores)) == 2


def test_errors_reach_tritons_client(client: Client) -> None:
    with pytest.raises(client.error, match="no model nuts"):
        client.infer("nuts", [client.input("features", ROWS, "FP32")])
    with pytest.raises(client.error, match="takes features"):
        client.infer("iris", [client.input("wrong", ROWS, "FP32")])
    with pytest.raises(client.error, match="is FP32, and FP64"):
        client.infer("iris", [client.input("features", ROWS.astype(np.float64), "FP64")])
    with pytest.raises(client.error, match="takes \\[N, 4\\]"):
        client.infer("iris", [client.input("features", ROWS[:, :3].copy(), "FP32")])
    with pytest.raises(client.error, match="not an image"):
        client.infer("corners", [client.input("image", np.array([b"text"], object), "BYTES")])


def one(**changes: Any) -> dict[str, Any]:
    return {"name": "features", "shape": [1, 4], "datatype": "FP32", "data": SETOSA, **changes}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [one(shape=[1, 5])]}, "has 4 elements, but its shape [1, 5] needs 5"),
        ({"inputs": [one(shape=[0, 10**30])]}, "inputs[0].shape"),
        ({"inputs": [one(datatype="FP8")]}, "FP8"),
        ({"inputs": [one(datatype="INT32", data=[1, 2, 3, 4])]}, "is FP32, and INT32 was sent"),
        ({"inputs": [one(data=None)]}, "neither data nor binary_data_size"),
        ({"inputs": [one(data=[1, 2, 3, "x"])]}, "should be numbers"),
        ({"inputs": [one(data=[1, 2, 3, 1e39])]}, "float32 can't hold"),
        ({"inputs": [one(parameters={"binary_data_size": 16})]}, "0 bytes are left"),
        ({"inputs": [one(), one()]}, "sent twice"),
        ({"inputs": [one(datatype="BYTES", data=["eA=="], shape=[1])]}, "BYTES was sent"),
        ({"inputs": [one()], "outputs": [{"name": "x"}]}, "there is no output x"),
        ({"inputs": [one()], "parameters": {"timeout": -1}}, "timeout"),
        ({"inputs": [one()], "parameters": {"timeout": 10**400}}, "timeout"),
    ],
)
def test_what_can_not_be_used_is_named(clients: LiveServer, body: Any, words: str) -> None:
    answer = infer(clients, "iris", body)
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]


@pytest.mark.parametrize("length", ["0", "-1", "x", "9999", "20"])
def test_a_wrong_header_length(clients: LiveServer, length: str) -> None:
    body = json.dumps({"inputs": [one()]}).encode()
    answer = requests.post(
        f"{clients.url}/v2/models/iris/infer", body, headers={HEADER: length}, timeout=60
    )
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("<I", 9) + b"short", "middle of an element"),
        (b"\0\0", "middle of an element"),
        (struct.pack("<I", 1) + b"a" + struct.pack("<I", 1) + b"b", "has 2 elements"),
        (b"", "has 0 elements"),
    ],
)
def test_broken_bytes_elements(clients: LiveServer, data: bytes, words: str) -> None:
    given = {"name": "image", "shape": [1], "datatype": "BYTES"}
    head = json.dumps(
        {"inputs": [{**given, "parameters": {"binary_data_size": len(data)}}]}
    ).encode()
    answer = requests.post(
        f"{clients.url}/v2/models/corners/infer",
        head + data,
        headers={HEADER: str(len(head))},
        timeout=60,
    )
    assert answer.status_code == 400
    assert words in answer.json()["error"]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client: Client, algorithm: str) -> None:
    given = [client.input("features", ROWS, "FP32")]
    option = "request_compression_algorithm" if client.by_http else "compression_algorithm"
    answer = client.infer("iris", given, **{option: algorithm})
    assert answer.as_numpy(client.output_name("iris")).argmax(axis=1).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("coding", "body", "status", "words"),
    [
        ("gzip", b"no gzip", 400, "not valid gzip"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-6], 400, "cut off"),
        ("gzip", gzip.compress(bytes(50_000_000), 1), 413, "16 MB"),
        ("br", b"{}", 415, "send gzip, deflate"),
    ],
)
def test_compressed_requests_that_can_not_be_used(
    clients: LiveServer, coding: str, body: bytes, status: int, words: str
) -> None:
    url = f"{clients.url}/v2/models/iris/infer"
    answer = requests.post(url, body, headers={"Content-Encoding": coding}, timeout=60)
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_a_timeout_that_can_not_be_met(clients: LiveServer) -> None:
    body = {"inputs": [one()] * 1, "parameters": {"timeout": 1}}
    answer = infer(clients, "iris", body)
    assert answer.status_code == 503
    assert "deadline" in answer.json()["error"]
    assert int(answer.headers["Retry-After"]) >= 1

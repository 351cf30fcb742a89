"""Messages that no client should send: each gets the right code, and the server lives on."""

import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from clients import SETOSA, frame
from server_process import LiveServer

grpc: Any = pytest.importorskip("grpc", reason="grpcio is not installed")
pb: Any = pytest.importorskip("tritonclient.grpc", reason="Triton's client is absent").service_pb2

INFER = "/inference.GRPCInferenceService/ModelInfer"
SETTLED = np.array(SETOSA, np.float32).tobytes()
Call = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def infer(clients: LiveServer) -> Iterator[Call]:
    """Sends bytes as a message; a pure function of them."""
    with grpc.insecure_channel(f"127.0.0.1:{clients.grpc_port}") as channel:
        method = channel.unary_unary(INFER)
        yield lambda data: bytes(method(data, timeout=60))


def request(raw: bytes | None = SETTLED, model: str = "iris", **changes: Any) -> Any:
    """A good request, but for `changes` of its one input; None leaves a field out."""
    fields = {"name": "features", "datatype": "FP32", "shape": [1, 4]} | changes
    made = pb.ModelInferRequest(model_name=model)
    made.inputs.add(**{key: value for key, value in fields.items() if value is not None})
    if raw is not None:
        made.raw_input_contents.append(raw)
    return made


def refusal(infer: Call, data: bytes) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        infer(data)
    return caught.value


def typed(**contents: Any) -> Any:
    return request(None, contents=pb.InferTensorContents(**contents))


def image(data: bytes, **changes: Any) -> Any:
    fields = {"name": "image", "datatype": "BYTES", "shape": [1]} | changes
    return request(data, "corners", **fields)


def element(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


CASES = {
    "no message": (pb.ModelInferRequest(), "NOT_FOUND", "no model"),
    "no inputs": (pb.ModelInferRequest(model_name="iris"), "INVALID_ARGUMENT", "inputs"),
    "unknown model": (request(model="nuts"), "NOT_FOUND", "nuts"),
    "a path as the model": (request(model="iris/versions/1"), "NOT_FOUND", "no model"),
    "another path": (request(model="../../v1/models"), "NOT_FOUND", "no model"),
    "wrong shape": (request(shape=[1, 3]), "INVALID_ARGUMENT", "needs 12"),
    "no shape": (request(shape=None), "INVALID_ARGUMENT", "needs 4"),
    "negative shape": (request(shape=[-1, -4]), "INVALID_ARGUMENT", "shape"),
    "empty shape": (request(shape=[0, 4]), "INVALID_ARGUMENT", "shape"),
    "huge shape": (request(shape=[2**62, 2**62, 4]), "INVALID_ARGUMENT", "needs"),
    "more sizes than a device could keep": (
        request(shape=[2**62] * 200_000),
        "INVALID_ARGUMENT",
        "at most 64",
    ),
    "many sizes": (request(shape=[1] * 1000), "INVALID_ARGUMENT", "shape"),
    "unknown datatype": (request(datatype="FP8"), "INVALID_ARGUMENT", "FP8"),
    "no datatype": (request(datatype=None), "INVALID_ARGUMENT", "datatype"),
    "other datatype": (request(datatype="INT32"), "INVALID_ARGUMENT", "is FP32"),
    "other name": (request(name="nothing"), "INVALID_ARGUMENT", "nothing"),
    "cut off": (request(SETTLED[:-1]), "INVALID_ARGUMENT", "15 bytes"),
    "too many tensors": (request(None), "INVALID_ARGUMENT", "no contents"),
    "typed: too few": (typed(fp32_contents=SETOSA[:3]), "INVALID_ARGUMENT", "12 bytes"),
    "typed: another": (typed(fp64_contents=SETOSA), "INVALID_ARGUMENT", "fp32_contents"),
    "not finite": (typed(fp32_contents=[float("nan")] * 4), "INVALID_ARGUMENT", "finite"),
    "half as typed": (request(None, datatype="FP16"), "INVALID_ARGUMENT", "raw contents"),
    "damaged frame": (
        image(element(frame("red")[:90])),
        "INVALID_ARGUMENT",
        "",
    ),
    "no frame": (image(element(b"text")), "INVALID_ARGUMENT", "not an image"),
    "empty frame": (image(element(b"")), "INVALID_ARGUMENT", ""),
    "frame longer than said": (image(element(frame("red")) + b"x"), "INVALID_ARGUMENT", ""),
    "frame shorter than said": (image(element(frame("red"))[:-1]), "INVALID_ARGUMENT", "middle"),
    "frames of a huge shape": (
        image(element(frame("red")), shape=[10**15]),
        "INVALID_ARGUMENT",
        "1 to 32",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refusals_name_what_is_wrong(infer: Call, case: str) -> None:
    message, code, words = CASES[case]
    error = refusal(infer, message.SerializeToString())
    assert error.code().name == code, error.details()
    assert words in error.details()
    sent = dict(error.trailing_metadata())
    assert sent["x-request-id"]
    assert sent["error-code"]


def test_both_kinds_of_contents(infer: Call) -> None:
    message = typed(fp32_contents=SETOSA)
    assert infer(message.SerializeToString())
    message.raw_input_contents.append(SETTLED)
    assert refusal(infer, message.SerializeToString()).code().name == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x2a\x00" * 1_000_000, "INVALID_ARGUMENT"),
        (b"\x1f\x8bno gzip", "INVALID_ARGUMENT"),
        # Made when it is sent: it takes a second.
        (lambda: zlib.compress(bytes(200_000_000)), "RESOURCE_EXHAUSTED"),
        (bytes(17_000_000), "RESOURCE_EXHAUSTED"),
        # In contents: numbers of one byte that take eight.
        (typed(int64_contents=[1] * 3_000_000).SerializeToString(), "RESOURCE_EXHAUSTED"),
    ],
    ids=["many fields", "no gzip", "a bomb", "too large", "numbers"],
)
def test_sizes_are_bounded(infer: Call, data: bytes | Callable[[], bytes], code: str) -> None:
    assert refusal(infer, data() if callable(data) else data).code().name == code


def test_garbage_is_refused_and_the_server_lives(clients: LiveServer, infer: Call) -> None:
    """Messages of which bytes are changed, cut out or put in get an answer or a refusal, never an
    error of the server."""
    dice = random.Random(20)
    good = [
        request().SerializeToString(),
        typed(fp32_contents=SETOSA).SerializeToString(),
        image(element(frame("red"))).SerializeToString(),
    ]
    codes = set()
    for _ in range(600):
        data = bytearray(dice.choice(good))
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(data) + 1)
            cut = dice.choice((0, 0, 1, 1, 3, len(data)))
            data[at : at + cut] = dice.randbytes(dice.choice((0, 1, 1, 4)))
        try:
            infer(bytes(data))
        except grpc.RpcError as error:
            codes.add(error.code().name)
    assert codes <= {"INVALID_ARGUMENT", "NOT_FOUND"}
    assert infer(good[0])
    assert clients.process.poll() is None
    assert clients.sample("lineside_worker_crashes_total") == 0


def test_unknown_methods(clients: LiveServer) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{clients.grpc_port}") as channel:
        for path in ("/inference.GRPCInferenceService/ModelStreamInfer", "/x.Y/Z"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(path)(b"", timeout=60)
            assert caught.value.code().name == "UNIMPLEMENTED"


def test_no_model_has_the_name_of_a_route(clients: LiveServer) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{clients.grpc_port}") as channel:
        method = channel.unary_unary(INFER.replace("ModelInfer", "ModelMetadata"))
        for name in ("stats", "index", "nuts"):
            error = refusal(method, pb.ModelMetadataRequest(name=name).SerializeToString())
            assert error.code().name == "NOT_FOUND"

"""The Open Inference Protocol over gRPC beside HTTP: one call at a time, the forms in turn.

    python scripts/bench/clients/triton.py [--pairs N]

Triton's own clients, and bare ones that send a request that was made before and read nothing of the
answer: `http.client` on a kept connection, and a channel of grpcio. Each pair has one call of both
forms, in an order of chance. ms at the 5th percentile, which other work disturbs least, the 50th
and the 99th; and gRPC / HTTP at the first, and as the median of the pairs.
"""

import argparse
import http.client
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc
import tritonclient.http

ROOT = Path(__file__).resolve().parents[3]
sys.path[0:1] = [str(ROOT), str(ROOT / "scripts")]

from bench import inputs  # noqa: E402
from bench.clients.forms import build  # noqa: E402
from bench.servers.lineside import Bare, start_server  # noqa: E402
from bench.servers.service import free_port  # noqa: E402

PYTHON = Path(sys.executable)
SERVICE = "/inference.GRPCInferenceService/ModelInfer"
HEADER = "Inference-Header-Content-Length"
WARM_UP = 30

Call = Callable[[], object]
Way = tuple[str, Call, Call]


def given(module: Any, name: str, array: Any, datatype: str) -> Any:
    made = module.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def calls(http_port: int, grpc_port: int, what: str, model: str, tensor: Any) -> list[Way]:
    """The calls of Triton's clients and of bare ones, of both forms. tensor: name, array and
    datatype."""
    by_http = tritonclient.http.InferenceServerClient(f"127.0.0.1:{http_port}")
    by_grpc = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}")
    http_input = given(tritonclient.http, *tensor)
    grpc_input = given(tritonclient.grpc, *tensor)
    body, size = tritonclient.http.InferenceServerClient.generate_request_body([http_input])
    connection = http.client.HTTPConnection("127.0.0.1", http_port)
    channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}").unary_unary(SERVICE)
    message = tritonclient.grpc.service_pb2.ModelInferRequest(model_name=model)
    message.inputs.append(grpc_input._get_tensor())
    message.raw_input_contents.append(grpc_input._get_content())
    data = message.SerializeToString()

    def bare_http() -> None:
        connection.request("POST", f"/v2/models/{model}/infer", body, {HEADER: str(size)})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200

    return [
        (
            f"{what}, Triton's clients",
            lambda: by_http.infer(model, [http_input]),
            lambda: by_grpc.infer(model, [grpc_input]),
        ),
        (f"{what}, bare clients", bare_http, lambda: channel(data)),
    ]


def measure(way: Way, pairs: int) -> str:
    """Return a line of the table."""
    what, *both = way
    for _ in range(WARM_UP):
        for call in both:
            call()
    taken: list[list[float]] = [[], []]
    for _ in range(pairs):
        for place in random.sample((0, 1), 2):
            started = time.perf_counter()
            both[place]()
            taken[place].append((time.perf_counter() - started) * 1000)
    ratio = median(b / a for a, b in zip(*taken, strict=True))
    found = [quantiles(each, n=100) for each in taken]
    cells = [f"{each[4]:.2f} | {each[49]:.2f} | {each[98]:.2f}" for each in found]
    return f"| {what} | {' | '.join(cells)} | {found[1][4] / found[0][4]:.2f} | {ratio:.2f} |"


def main() -> int:
    """Measures and prints a table. Exit code 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=400)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lineside-bench.") as name:
        folder, port = Path(name), free_port()
        inputs.lay_out(ROOT / "models" / "iris" / "1", folder / "models", exact=False)
        model = inputs.lay_out(ROOT / "models" / "parts" / "1", folder / "models", exact=False)
        file = inputs.find_frames(folder, PYTHON)["720p"]
        with Bare(PYTHON, model.bundle) as bare:
            label = bare.measure(file, 1.0)["label"]
        frame = file.read_bytes()
        rows = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
        pixels = np.zeros((1, 224, 224, 3), np.float32)
        with start_server(PYTHON, model, folder / "log", grpc_port=str(port)) as server:
            server.await_answer(build("raw", "file", frame), label)
            http_port = int(server.url.split(":")[2].split("/")[0])
            tensors = {
                f"720p JPEG, {len(frame) // 1000} KB": (
                    "parts",
                    ("image", np.array([frame], object), "BYTES"),
                ),
                "224x224x3 as FP32, 602 KB": (
                    "parts",
                    ("serving_default_args_0:0", pixels, "FP32"),
                ),
                "four numbers": ("iris", ("features", rows, "FP32")),
            }
            print("| | HTTP p5 | p50 | p99 | gRPC p5 | p50 | p99 | gRPC / HTTP, p5 | pairs |")
            print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
            for what, (name, tensor) in tensors.items():
                for way in calls(http_port, port, what, name, tensor):
                    print(measure(way, args.pairs), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Triton's own clients of both forms of the Open Inference Protocol, connected to `clients`."""

from collections.abc import Iterator
from typing import Any

import pytest
from server_process import LiveServer

http_client: Any = pytest.importorskip("tritonclient.http", reason="Triton's client is absent")
grpc_client: Any = pytest.importorskip("tritonclient.grpc", reason="Triton's client is absent")


class Client:
    """Triton's client of one form of the protocol, with what differs between the two."""

    def __init__(self, module: Any, address: str, **options: Any) -> None:
        self.by_http = module is http_client
        self.error = module.InferenceServerException
        self.output = module.InferRequestedOutput
        self._input = module.InferInput
        self.made = module.InferenceServerClient(address, **options)
        self.infer = self.made.infer
        self._json = {} if self.by_http else {"as_json": True}

    def input(self, name: str, array: Any, datatype: str, binary: bool = True) -> Any:
        made = self._input(name, list(array.shape), datatype)
        made.set_data_from_numpy(array, **({"binary_data": binary} if self.by_http else {}))
        return made

    def json(self, ask: Any, *args: Any) -> Any:
        """What a method of the client answers, as JSON."""
        return ask(*args, **self._json)

    def metadata(self, model: str, version: str = "") -> dict[str, Any]:
        """The model's metadata; by gRPC, JSON has the sizes of a shape as texts."""
        found: dict[str, Any] = self.json(self.made.get_model_metadata, model, version)
        for tensor in (*found["inputs"], *found["outputs"]):
            tensor["shape"] = [int(size) for size in tensor["shape"]]
        return found

    def server_metadata(self) -> Any:
        return self.json(self.made.get_server_metadata)

    def output_name(self, model: str) -> str:
        return str(self.metadata(model)["outputs"][0]["name"])

    def response(self, answer: Any) -> Any:
        """What came beside the outputs' data."""
        return answer.get_response(**self._json)


def connected(module: Any, server: LiveServer) -> Iterator[Client]:
    port = server.port if module is http_client else server.grpc_port
    made = Client(module, f"127.0.0.1:{port}")
    yield made
    made.made.close()


@pytest.fixture(params=[http_client, grpc_client], ids=["http", "grpc"])
def client(request: pytest.FixtureRequest, clients: LiveServer) -> Iterator[Client]:
    yield from connected(request.param, clients)


@pytest.fixture
def over_http(clients: LiveServer) -> Iterator[Client]:
    yield from connected(http_client, clients)

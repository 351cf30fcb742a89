"""The load: clients that send frames at a steady rate and note how each ended."""

import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from chaos.frames import Frame, draw
from chaos.history import History
from chaos.plant import MODEL, Plant

# Seconds for which a client waits for an answer: far beyond the server's own deadline.
TIMEOUT_S = 30.0
# Seconds before the next request after a connection that was lost.
PAUSE_S = 0.1


# What gRPC's own client says, under the status UNAVAILABLE of refusals, if the connection could not
# be made or broke; and the status of a call that a server which stops did not wait for.
LOST_SIGNS = (
    "StatusCode.CANCELLED",
    *("failed to connect", "Failed to connect", "Socket closed", "Connection reset", "recvmsg"),
    *("Broken pipe", "Stream removed", "GOAWAY", "RST_STREAM", "sendmsg"),
)
# Milliseconds until gRPC's client connects again: it would wait for up to two minutes.
RECONNECTION = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


class NotAnsweredError(Exception):
    """An operation was not answered. event: `refused` or `lost`; fields: why."""

    def __init__(self, event: str, **fields: Any) -> None:
        super().__init__(event, fields)
        self.event, self.fields = event, fields


class Client(Protocol):
    """One kind of client. kind: of its operations in the history."""

    kind: str

    def send(self, op: str, frame: Frame) -> dict[str, Any]:
        """Send a frame and return the fields of its answer. Raises NotAnsweredError."""

    def close(self) -> None:
        """Let go of connections."""


def post(plant: Plant, path: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """Return the JSON of an answer, by a connection of its own. Raises NotAnsweredError."""
    connection = http.client.HTTPConnection("127.0.0.1", plant.port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotAnsweredError("lost", reason=repr(error)) from None
    finally:
        connection.close()
    found: dict[str, Any] = json.loads(data) if data else {}
    if answer.status in (200, 202):
        return found
    error_fields = found.get("error")
    code = error_fields.get("code") if isinstance(error_fields, dict) else None
    raise NotAnsweredError("refused", status=answer.status, code=code)


class Camera:
    """A camera that pushes frames to /v1/recognize, called `name`."""

    kind = "frame"

    def __init__(self, plant: Plant, name: str) -> None:
        self._plant = plant
        self._name = name

    def send(self, op: str, frame: Frame) -> dict[str, Any]:
        path = f"/v1/recognize?camera={self._name}&part={op}"
        headers = {"Content-Type": "image/jpeg", "X-Request-Id": op}
        answer = post(self._plant, path, frame.data, headers)
        best = answer["predictions"][0] if answer["predictions"] else {"label": None}
        return {
            "label": best["label"],
            "verdict": answer["verdict"],
            "version": answer["model_version"],
        }

    def close(self) -> None:
        """It keeps nothing open."""


class Triton:
    """Triton's own client. over: `http` or `grpc`."""

    def __init__(self, plant: Plant, over: str) -> None:
        import tritonclient.grpc
        import tritonclient.http

        self.kind = f"triton-{over}"
        self._module: Any = tritonclient.http if over == "http" else tritonclient.grpc
        port = plant.port if over == "http" else plant.grpc_port
        options: dict[str, Any] = {"network_timeout": TIMEOUT_S}
        if over == "grpc":
            options = {"channel_args": RECONNECTION}
        self._client = self._module.InferenceServerClient(f"127.0.0.1:{port}", **options)
        self._timeout = {} if over == "http" else {"client_timeout": TIMEOUT_S}
        self._output = ""

    def send(self, op: str, frame: Frame) -> dict[str, Any]:
        image = self._module.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([frame.data], dtype=object))
        headers = {"x-request-id": op}
        try:
            # Asked with the first frame, since a fault may be there before it.
            self._output = self._output or self._first_output()
            wanted = self._module.InferRequestedOutput(self._output, class_count=1)
            answer = self._client.infer(
                MODEL, [image], outputs=[wanted], headers=headers, **self._timeout
            )
        except self._module.InferenceServerException as error:
            status = error.status()
            if status is None or any(sign in str(error) for sign in LOST_SIGNS):
                raise NotAnsweredError("lost", reason=str(error)) from None
            raise NotAnsweredError("refused", status=status, code=error.message()) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            # The client's HTTP library says by ValueError that an answer broke off.
            raise NotAnsweredError("lost", reason=repr(error)) from None
        text = answer.as_numpy(self._output).reshape(-1)[0].decode()
        return {"label": text.split(":")[2], "verdict": None, "version": None}

    def _first_output(self) -> str:
        found = self._client.get_model_metadata(MODEL)
        name = found["outputs"][0]["name"] if isinstance(found, dict) else found.outputs[0].name
        return str(name)

    def close(self) -> None:
        self._client.close()


class Load(threading.Thread):
    """Has one client send `per_second` frames until `stop`, and notes each in the history.

    Operations are named `NAME-1`, `NAME-2`, ..., which is also their request id and part.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Client],
        history: History,
        frames: dict[str, Frame],
        per_second: float,
        seed: int,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._make = make
        self._history = history
        self._frames = frames
        self._interval_s = 1 / per_second
        self._rng = random.Random(seed)
        self._stopping = threading.Event()

    def run(self) -> None:
        client = self._make()
        try:
            number, due = 0, time.monotonic()
            while not self._stopping.is_set():
                number += 1
                self._one(client, f"{self.name}-{number}")
                due = max(due + self._interval_s, time.monotonic() - 1)
                self._stopping.wait(max(0.0, due - time.monotonic()))
        finally:
            client.close()

    def _one(self, client: Client, op: str) -> None:
        frame = draw(self._frames, self._rng)
        self._history.record(op, client.kind, "invoke", frame=frame.name)
        try:
            answer = client.send(op, frame)
        except NotAnsweredError as end:
            self._history.record(op, client.kind, end.event, frame=frame.name, **end.fields)
            if end.event == "lost":
                self._stopping.wait(PAUSE_S)
        else:
            self._history.record(op, client.kind, "ok", frame=frame.name, **answer)

    def stop(self) -> None:
        self._stopping.set()

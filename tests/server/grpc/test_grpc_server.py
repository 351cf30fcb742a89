"""The server of gRPC: keys, deadlines, late and many messages, TLS, metrics, start and stop."""

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from clients import frame
from images import encode
from job_workers import await_that
from server_process import ROOT, LiveServer, environ_without_coverage, free_port, live_server
from sites import NOW

from server.config.settings import Settings
from server.errors import OverloadedError, SettingsError
from server.grpc.waiting import Messages
from server.process.certificates import make_certificate
from server.process.startup import check_values
from server.store.keys import add_key

grpc: Any = pytest.importorskip("grpc", reason="grpcio is not installed")
pb: Any = pytest.importorskip("tritonclient.grpc", reason="Triton's client is absent").service_pb2

SERVICE = "/inference.GRPCInferenceService/"
GREEN = frame("green")


def image_request(data: bytes = GREEN, **parameters: str) -> bytes:
    made = pb.ModelInferRequest(model_name="colors")
    made.inputs.add(name="image", datatype="BYTES", shape=[1])
    made.inputs[0].contents.bytes_contents.append(data)
    for name, value in parameters.items():
        made.parameters[name].string_param = value
    return bytes(made.SerializeToString())


Headers = Mapping[str, str]
NONE: Headers = {}


class Caller:
    """Calls methods over one connection."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def __call__(
        self, method: str, data: bytes = b"", metadata: Headers = NONE, timeout: float = 60
    ) -> bytes:
        call = self._channel.unary_unary(SERVICE + method)
        return bytes(call(data, timeout=timeout, metadata=list(metadata.items())))

    def refusal(
        self, method: str, data: bytes = b"", metadata: Headers = NONE, timeout: float = 60
    ) -> Any:
        with pytest.raises(grpc.RpcError) as caught:
            self(method, data, metadata, timeout)
        return caught.value


@contextmanager
def connected(port: int, credentials: Any = None) -> Iterator[Caller]:
    address = f"localhost:{port}"
    made = (
        grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
    )
    with made as channel:
        yield Caller(channel)


@pytest.fixture(scope="module")
def keyed(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server of `colors` with one slot that asks for keys, has short waits, and keeps frames'
    rows."""
    folder = tmp_path_factory.mktemp("keyed")
    keys = {
        name: add_key(folder / "keys", name, [name], now=NOW) for name in ("recognize", "metrics")
    }
    with live_server(
        models=colors,
        keys_file=folder / "keys",
        grpc_port=free_port(),
        interpreters=1,
        wide_interpreter=False,
        body_timeout=1,
        traced=True,
    ) as server:
        server.keys = keys  # type: ignore[attr-defined]
        yield server


@pytest.fixture
def call(keyed: LiveServer) -> Iterator[Caller]:
    with connected(keyed.grpc_port) as caller:
        yield caller


def key(server: LiveServer, name: str = "recognize") -> dict[str, str]:
    return {"authorization": f"Bearer {server.keys[name]}"}  # type: ignore[attr-defined]


def test_keys_are_metadata(keyed: LiveServer, call: Caller) -> None:
    assert call("ServerLive") == b"\x08\x01"
    assert call.refusal("ModelInfer", image_request()).code().name == "UNAUTHENTICATED"
    wrong = call.refusal("ModelInfer", image_request(), {"authorization": "Bearer ls_wrong"})
    assert wrong.code().name == "UNAUTHENTICATED"
    other = call.refusal("ModelInfer", image_request(), key(keyed, "metrics"))
    assert other.code().name == "PERMISSION_DENIED"
    assert call("ModelInfer", image_request(), key(keyed))
    secret = keyed.keys["recognize"]  # type: ignore[attr-defined]
    assert call("ModelInfer", image_request(), {"x-api-key": secret})


def test_log_line_names_caller_camera_and_trace(keyed: LiveServer, call: Caller) -> None:
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    message = image_request(camera="gate", part="p7")
    headers = {"x-request-id": "call-1", "traceparent": parent, **key(keyed)}
    call("ModelInfer", message, headers)
    line = keyed.request_line("call-1")
    assert (line["caller"], line["camera"], line["part"]) == ("recognize", "gate", "p7")
    assert line["trace_id"] == "a" * 32
    assert line["label"] == "green"


def test_deadline_of_the_call_counts(keyed: LiveServer, call: Caller) -> None:
    """A call whose deadline can't be met is refused, and its frame is not worked on for long."""
    huge = encode(np.zeros((5000, 5000, 3), np.uint8), "PNG")
    error = call.refusal("ModelInfer", image_request(huge), key(keyed), timeout=0.2)
    assert error.code().name == "DEADLINE_EXCEEDED"
    stale = image_request(captured_at="1000000000", deadline_ms="100")
    error = call.refusal("ModelInfer", stale, key(keyed))
    assert error.code().name == "DEADLINE_EXCEEDED"
    assert dict(error.trailing_metadata())["x-should-retry"] == "false"


def test_message_that_does_not_come(keyed: LiveServer) -> None:
    """Its call is ended after `body_timeout`, and no thread waits for it any longer."""
    never = threading.Event()

    def silent() -> Iterator[bytes]:
        never.wait(60)
        yield b""

    with grpc.insecure_channel(f"localhost:{keyed.grpc_port}") as channel:
        calls = [channel.stream_unary(f"{SERVICE}ModelInfer").future(silent()) for _ in range(3)]
        for each in calls:
            assert each.exception(timeout=60) is not None
            assert each.code().name == "CANCELLED"
        never.set()
        again = channel.unary_unary(f"{SERVICE}ServerLive")
        assert again(b"", timeout=60) == b"\x08\x01"


def test_calls_that_fail_are_let_go(keyed: LiveServer, call: Caller) -> None:
    """Streams of one connection are limited; those of calls that ended must not count."""
    for _ in range(200):
        error = call.refusal("ModelMetadata", b"\x0a\x04nuts", key(keyed))
        assert error.code().name == "NOT_FOUND"


def test_metrics_count_calls(keyed: LiveServer, call: Caller) -> None:
    call("ServerReady")
    headers = key(keyed, "metrics")
    text = requests.get(f"{keyed.url}/metrics", headers=headers, timeout=60).text
    assert 'lineside_grpc_calls_total{code="OK",method="ServerReady"}' in text
    assert 'lineside_grpc_calls_total{code="UNAUTHENTICATED",method="ModelInfer"}' in text
    assert 'lineside_requests_total{route="/v2/models/<model:name>/infer"' in text


class Waits:
    """A call that waits for its message."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def cancel(self) -> None:
        self.ended.set()


def test_messages_that_wait_make_room() -> None:
    """If there is none for a new one, the one that has been waited for longest is given up."""
    messages, first, begun = Messages(10, 6, 60), Waits(), threading.Event()

    def hold() -> None:
        with messages.coming(first):
            begun.set()
            assert first.ended.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(60)
    with messages.coming(Waits()) as second:
        thread.join(60)
        second.came(4)
        with messages.coming(Waits()) as third:
            third.came(6)
            with pytest.raises(OverloadedError), messages.coming(Waits()):
                pass


class TlsPair:
    """A certificate and its key in files, and as gRPC takes them."""

    def __init__(self, folder: Path, name: str) -> None:
        self.certificate, self.key = folder / f"{name}.pem", folder / f"{name}-key.pem"
        self.make()

    def make(self) -> None:
        certificate, private = make_certificate(["localhost", "127.0.0.1"], 2)
        self.certificate.write_bytes(certificate)
        self.key.write_bytes(private)

    def trusted(self, client: "TlsPair | None" = None) -> Any:
        chain = client.certificate.read_bytes() if client else None
        private = client.key.read_bytes() if client else None
        return grpc.ssl_channel_credentials(self.certificate.read_bytes(), private, chain)


def test_tls_with_client_certificates(colors: Path, tmp_path: Path) -> None:
    """The certificate of HTTPS, also after it was replaced; and clients must show theirs."""
    own, client, stranger = (TlsPair(tmp_path, name) for name in ("own", "client", "stranger"))
    server = LiveServer(
        models=colors,
        grpc_port=free_port(),
        tls_certificate=own.certificate,
        tls_key=own.key,
        tls_client_ca=client.certificate,
        traced=True,
    )
    try:
        server.await_event("listening")
        with connected(server.grpc_port, own.trusted(client)) as call:
            assert call("ServerLive") == b"\x08\x01"
        for credentials in (own.trusted(), own.trusted(stranger), None):
            with connected(server.grpc_port, credentials) as call:
                assert call.refusal("ServerLive").code().name == "UNAVAILABLE"
        own.make()
        with connected(server.grpc_port, own.trusted(client)) as call:
            assert call("ServerLive") == b"\x08\x01"
    finally:
        assert server.stop() == 0


def test_call_in_hand_is_answered_at_a_stop(colors: Path) -> None:
    huge = encode(np.zeros((4000, 4000, 3), np.uint8), "PNG")
    port = free_port()
    with (
        live_server(models=colors, grpc_port=port, traced=True) as server,
        grpc.insecure_channel(f"localhost:{port}") as channel,
    ):
        method = channel.unary_unary(f"{SERVICE}ModelInfer")
        assert method(image_request(), timeout=60)
        last = method.future(image_request(huge), timeout=60)
        await_that(lambda: server.sample("lineside_busy_interpreters") > 0, "a frame at work")
        assert server.stop() == 0
        assert last.result(60)


def test_example_of_the_guide(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (ROOT / "docs" / "guide.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(import numpy.*?)```", guide, re.DOTALL)
    port = free_port()
    with live_server(models=ROOT / "models", model="parts", grpc_port=port, traced=True):
        code = example.replace("127.0.0.1:8001", f"127.0.0.1:{port}").replace("0.2)", "60)")
        exec(code.replace("models/parts", f"{ROOT}/models/parts"), {})
    assert ":2:good" in capsys.readouterr().out


def test_port_that_is_taken_stops_the_start(colors_server: LiveServer, colors: Path) -> None:
    command = [sys.executable, "-m", "server", "--models", str(colors), "--port", str(free_port())]
    taken = ["--grpc-port", str(colors_server.port)]
    done = subprocess.run(
        [*command, *taken],
        cwd=ROOT,
        env=environ_without_coverage(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "(grpc_port): is it in use?" in done.stderr


def test_missing_package_is_said_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(
        SettingsError, match=r"grpc_port needs a package that is not installed: .*-r "
    ):
        check_values(Settings(grpc_port=8081))


def test_two_servers_need_two_ports() -> None:
    with pytest.raises(SettingsError, match="grpc_port can't be 8080, which is `port`"):
        Settings(grpc_port=8080)


def test_connections_leave_files_for_http(keyed: LiveServer) -> None:
    """A stranger's connections on which nobody calls take no more than their share of the files
    that the process may open."""
    from server.grpc.server import CONNECTIONS_MAX

    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_connection(("127.0.0.1", keyed.grpc_port), 60))
            for _ in range(CONNECTIONS_MAX + 20)
        ]
        while sockets[-1].recv(1000):
            pass
        assert keyed.descriptors() < CONNECTIONS_MAX + 100
        assert requests.get(keyed.url + "/livez", timeout=60).status_code == 200

    def is_taken() -> bool:
        with connected(keyed.grpc_port) as call:
            try:
                return bool(call("ServerLive"))
            except grpc.RpcError:
                return False

    await_that(is_taken, "a call after they have gone")


def test_damaged_message_of_a_stranger_is_no_frame(keyed: LiveServer, call: Caller) -> None:
    """Else whoever reaches the port could send errors to the outputs."""
    damaged = b"\x2a\x05"

    def counted() -> str:
        text = requests.get(keyed.url + "/metrics", headers=key(keyed, "metrics"), timeout=60).text
        found = re.search('frames_refused_total{reason="INVALID_FIELD"} (.+)', text)
        return found[1] if found else "0.0"

    before = counted()
    for metadata in (NONE, {"x-api-key": "ls_nobodys"}):
        assert call.refusal("ModelInfer", damaged, metadata).code().name == "UNAUTHENTICATED"
    assert call.refusal("ModelInfer", damaged, key(keyed, "metrics")).code().name == (
        "PERMISSION_DENIED"
    )
    assert counted() == before
    assert call.refusal("ModelInfer", damaged, key(keyed)).code().name == "INVALID_ARGUMENT"
    assert float(counted()) == float(before) + 1

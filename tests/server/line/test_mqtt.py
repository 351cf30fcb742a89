"""Verdicts to a real broker: every one, in order, whatever is away in between."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from images import encode, plain
from job_workers import await_that
from line_outputs import (
    cable,
    check_stream,
    kill_worker,
    mosquitto,
    need_mosquitto,
    subscriber,
    tables,
)
from server_process import LiveServer, free_port, live_server

GREEN = encode(plain((0, 255, 0)), "PNG")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with mosquitto(tmp_path_factory.mktemp("mosquitto")) as port:
        yield port


def mqtt(port: int, **keys: object) -> dict[str, object]:
    return {"name": "line", "kind": "mqtt", "host": "127.0.0.1", "port": port, **keys}


def state(server: LiveServer) -> dict[str, object]:
    (one,) = requests.get(server.url + "/v1/outputs", timeout=60).json()["outputs"]
    assert isinstance(one, dict)
    return one


def test_each_frame_is_published_and_counted(colors: Path, broker: int) -> None:
    table = mqtt(broker, topic="each/$camera/verdict", status_topic="each/status")
    with (
        subscriber(broker, "each/#") as reader,
        live_server(models=colors, output=tables(table), traced=True) as server,
    ):
        await_that(lambda: state(server)["connected"], "a connection")
        assert reader.next().payload in (b"online", b"offline")
        answer = server.recognize(GREEN, camera="st/4", part="A-1").json()
        message = reader.next()
        if message.topic == "each/status":
            message = reader.next()
        assert message.topic == "each/st_4/verdict"
        fields = json.loads(message.payload)
        best = answer["predictions"][0]
        assert fields["request_id"] == answer["request_id"]
        assert (fields["camera"], fields["part"], fields["seq"]) == ("st/4", "A-1", 1)
        assert (fields["label"], fields["probability"]) == (best["label"], best["probability"])
        assert (fields["verdict"], fields["error"]) == (answer["verdict"], None)
        assert server.recognize(GREEN[:50], camera="st/4").status_code == 422
        failed = json.loads(reader.next().payload)
        assert (failed["verdict"], failed["error"]) == (None, "UNDECODABLE_IMAGE")
        await_that(lambda: state(server)["waiting"] == 0, "the broker's answer")
        assert state(server)["last_delivered"] == 2
        assert state(server)["last_error"] is None
        counted = {"output": "line", "result": "delivered"}
        assert server.sample("lineside_output_messages_total", **counted) == 2
        assert server.sample("lineside_output_connected", output="line") == 1
        with subscriber(broker, "each/#") as late:
            kept = {message.topic: message for message in (late.next(), late.next())}
        # Brokers end the connection for a topic with such characters.
        assert server.recognize(GREEN, camera="a\uffffb\x85c").status_code == 200
        assert reader.next().topic == "each/a_b_c/verdict"
        assert kept["each/st_4/verdict"].retain
        server.stop()
        assert reader.next().payload == b"offline"


def test_nothing_is_missing_after_outage_and_kill(
    colors: Path, broker: int, tmp_path: Path
) -> None:
    """The broker is away, and the worker is killed in between."""
    parts = [f"P{number}" for number in range(12)]
    with cable(broker) as line, subscriber(broker, "kill/+/verdict") as reader:
        table = mqtt(line.port, topic="kill/$camera/verdict", status_topic="kill/status")
        with live_server(models=colors, data=tmp_path, output=tables(table), traced=True) as server:

            def send(some: list[str]) -> None:
                for part in some:
                    answer = server.recognize(GREEN, camera="st4", part=part)
                    assert answer.status_code == 200

            send(parts[:3])
            taken = reader.take(3)
            line.cut()
            send(parts[3:6])
            kill_worker(server)
            send(parts[6:9])
            assert state(server)["waiting"] in range(6, 10)
            assert "can't be reached" in str(state(server)["last_error"])
            line.mend()
            send(parts[9:])
            check_stream([*taken, *reader.take(len(parts))], parts)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "broker.pem").write_bytes(signed.public_bytes(pem))
    (folder / "broker.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "broker.pem", folder / "broker.key"


def test_tls_login_discovery_and_last_will(colors: Path, tmp_path: Path) -> None:
    """Over TLS with a password; Home Assistant learns of the camera, and of a server that died."""
    need_mosquitto()
    signed, key = certificate(tmp_path)
    users = tmp_path / "users"
    subprocess.run(["mosquitto_passwd", "-b", "-c", users, "line", "s3cret"], check=True)
    login = (f"password_file {users}", "allow_anonymous false")
    tls_port = free_port()
    tls = (f"listener {tls_port} 127.0.0.1", f"certfile {signed}", f"keyfile {key}")
    with mosquitto(tmp_path, *login, *tls) as plain_port:
        table = mqtt(tls_port, tls=True, tls_ca_file=str(signed), username="line")
        table |= {"password": "s3cret", "discovery_prefix": "homeassistant"}
        with (
            subscriber(plain_port, "#", username="line", password="s3cret") as reader,
            live_server(models=colors, output=tables(table), traced=True) as server,
        ):
            assert server.recognize(GREEN, camera="st4").status_code == 200
            seen: dict[str, bytes] = {}
            while "lineside/st4/verdict" not in seen or seen.get("lineside/status") != b"online":
                message = reader.next()
                seen[message.topic] = message.payload
            (config,) = [json.loads(seen[topic]) for topic in seen if topic.endswith("/config")]
            assert config["state_topic"] == "lineside/st4/verdict"
            assert config["availability_topic"] == "lineside/status"
            os.killpg(server.process.pid, signal.SIGKILL)
            assert reader.next().payload == b"offline"
            assert "s3cret" not in json.dumps(server.lines)
        wrong = dict(table, password="wr0ng")
        with live_server(models=colors, output=tables(wrong), traced=True) as server:
            await_that(lambda: state(server)["last_error"], "a refusal")
            assert "wr0ng" not in json.dumps([state(server), server.lines])
            assert "refuses" in str(state(server)["last_error"])

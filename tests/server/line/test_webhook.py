"""Verdicts posted to a receiver that refuses some and is away for a while."""

import hashlib
import hmac
import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from images import encode, plain
from job_workers import await_that
from line_outputs import cable, check_stream, tables
from server_process import live_server

from server.config.load import load
from server.errors import SettingsError

GREEN = encode(plain((0, 255, 0)), "PNG")
SECRET = "a secret of thirty-two characters"


class Receiver(ThreadingHTTPServer):
    """Refuses every third request, and keeps the others."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = 0
        self.taken: list[tuple[str, dict[str, str], bytes]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests += 1
        refused = self.server.requests % 3 == 0
        if not refused:
            self.server.taken.append((self.path, dict(self.headers), body))
        self.send_response(503 if refused else 204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def test_receiver_gets_each_verdict_signed_in_order(colors: Path) -> None:
    receiver = Receiver()
    parts = [f"P{number}" for number in range(6)]
    with cable(receiver.server_port) as line:
        url = f"http://127.0.0.1:{line.port}/line?token=t0ken"
        table: dict[str, object] = {"name": "mes", "kind": "webhook", "url": url}
        table["secret"] = SECRET
        with live_server(models=colors, output=tables(table), traced=True) as server:

            def last() -> Any:
                (state,) = requests.get(server.url + "/v1/outputs", timeout=60).json()["outputs"]
                return state

            assert server.recognize(GREEN, part=parts[0]).status_code == 200
            await_that(lambda: last()["last_delivered"] == 1, "the first delivery")
            line.cut()
            for part in parts[1:]:
                assert server.recognize(GREEN, part=part).status_code == 200
            await_that(lambda: last()["last_error"], "a failure")
            assert (last()["connected"], last()["waiting"]) == (False, 5)
            line.mend()
            await_that(lambda: last()["waiting"] == 0, "the last delivery")
            await_that(lambda: last()["last_error"] is None, "the end of the failure")
            shown = json.dumps([last(), server.lines])
            assert SECRET not in shown
            assert "t0ken" not in shown
    receiver.shutdown()
    receiver.server_close()
    check_stream([json.loads(body) for _, _, body in receiver.taken], parts)
    for _, headers, body in receiver.taken:
        signed = headers["X-Lineside-Timestamp"].encode() + b"." + body
        digest = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        assert headers["X-Lineside-Signature"] == f"sha256={digest}"


def test_trace_of_a_request_reaches_log_and_webhooks(colors: Path, tmp_path: Path) -> None:
    receiver = Receiver()
    host = f"127.0.0.1:{receiver.server_port}"
    trace_id, parent_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    trace = {"traceparent": f"00-{trace_id}-{parent_id}-01", "tracestate": "rojo=1"}
    payload = '{"part": $part, "trace": $trace_id}'
    outputs = tables(
        {"name": "mes", "kind": "webhook", "url": f"http://{host}/line"},
        {"name": "short", "kind": "webhook", "url": f"http://{host}/short", "payload": payload},
    )

    def taken(path: str, part: str, count: int = 1) -> list[tuple[dict[str, str], Any]]:
        """Return the messages to `path` about a part, once there are `count` of them."""

        def about() -> list[tuple[dict[str, str], Any]]:
            read = [(each, json.loads(body)) for at, each, body in receiver.taken if at == path]
            return [each for each in read if f'"{part}"' in json.dumps(each[1])]

        await_that(lambda: len(about()) >= count, f"{count} messages about {part}")
        return about()

    camera = tables({"name": "st5", "kind": "folder", "path": str(tmp_path), "trigger": "post"})
    settings = {"models": colors, "output": outputs, "camera": camera, "webhook_hosts": host}
    with live_server(**settings, traced=True) as server:
        post = partial(requests.post, data=GREEN, timeout=60)
        frames = f"{server.url}/v1/recognize?part="
        answer = post(frames + "P1", headers=trace)
        assert answer.status_code == 200
        assert post(frames + "P2", headers={"traceparent": trace["traceparent"] + "-"}).ok
        assert post(frames + "P3&model=none", headers=trace).status_code == 404
        job = f"{server.url}/v1/jobs?part=P4&webhook=http://{host}/job"
        assert post(job, headers=trace).status_code == 202

        trigger = f"{server.url}/v1/cameras/st5/trigger?part=P5"
        triggered = partial(requests.post, trigger, headers=trace, timeout=60)
        await_that(lambda: triggered().status_code == 202, "a trigger")
        (tmp_path / "frame.png").write_bytes(GREEN)

        line = server.request_line(answer.headers["X-Request-Id"])
        assert line["trace_id"] == trace_id
        ((headers, body),) = taken("/line", "P1")
        assert body["trace_id"] == trace_id
        assert headers["traceparent"] == f"00-{trace_id}-{line['span_id']}-01"
        assert headers["tracestate"] == "rojo=1"
        assert taken("/short", "P1")[0][1] == {"part": "P1", "trace": trace_id}
        ((headers, body),) = taken("/line", "P2")
        assert (body["trace_id"], "traceparent" in headers) == ("", False)
        assert taken("/line", "P3")[0][1]["trace_id"] == trace_id
        assert taken("/line", "P5")[0][1]["trace_id"] == trace_id
        of_job = [*taken("/line", "P4"), *taken("/job", "P4")]
        assert of_job[0][1]["trace_id"] == trace_id
        ((first, _), (second, _)) = of_job
        assert first["traceparent"] == second["traceparent"]
        assert first["traceparent"].startswith(f"00-{trace_id}-")
        assert parent_id not in first["traceparent"]
    receiver.shutdown()
    receiver.server_close()


@pytest.mark.parametrize(
    "keys",
    [
        '"url": "ftp://mes/"',
        '"url": "http://"',
        '"url": "http://user:pw@mes/"',
        '"url": "http://mes/", "payload": "$verdict"',
    ],
)
def test_receivers_that_can_not_be_stop_the_start(keys: str) -> None:
    with pytest.raises(SettingsError, match=r"\[\[output\]\] mes: (url|payload)"):
        load({"LINESIDE_OUTPUT": f'[{{"name": "mes", "kind": "webhook", {keys}}}]'})


def test_test_message_is_no_verdict(colors: Path) -> None:
    """It has the plain form, whatever the template is; outputs that it could mislead refuse it."""
    receiver = Receiver()
    url = f"http://127.0.0.1:{receiver.server_port}/line"
    every: dict[str, object] = {"name": "every", "kind": "webhook", "url": url}
    every["payload"] = '{"state": "pass"}'
    good: dict[str, object] = {"name": "good", "kind": "webhook", "url": url, "verdicts": ["pass"]}
    red: dict[str, object] = {"name": "red", "kind": "webhook", "url": url, "labels": ["red"]}
    away: dict[str, object] = {"name": "away", "kind": "mqtt", "host": "127.0.0.1", "port": 9}
    plc: dict[str, object] = {"name": "plc", "kind": "modbus-client", "host": "127.0.0.1"}
    with live_server(
        models=colors, output=tables(every, good, red, away, plc), traced=True
    ) as server:

        def test(name: str) -> tuple[int, dict[str, Any]]:
            answer = requests.post(f"{server.url}/v1/outputs/{name}/test", timeout=60)
            return answer.status_code, answer.json()

        for name in ("good", "red", "plc"):
            status, answer = test(name)
            assert (status, answer["error"]["code"]) == (409, "OUTPUT_UNTESTABLE"), name
        status, answer = test("away")
        assert (status, answer["error"]["code"]) == (503, "OUTPUT_UNAVAILABLE")
        status, answer = test("nobody")
        assert (status, answer["error"]["code"]) == (404, "OUTPUT_NOT_FOUND")
        assert receiver.taken == []
        status, sent = test("every")
        assert (status, sent["output"]) == (202, "every")
        await_that(lambda: receiver.taken, "the test")
        message = json.loads(receiver.taken[0][2])
        assert (message["test"], message["error"], message["verdict"]) == (True, "TEST", None)
        assert message["request_id"] == sent["request_id"]
        rows = requests.get(server.url + "/v1/journal", timeout=60).json()["rows"]
        assert rows == []
    receiver.shutdown()
    receiver.server_close()

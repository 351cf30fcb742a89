"""Verdicts posted to a receiver that refuses some and is away for a while."""

import hashlib
import hmac
import json
import threading
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
        self.taken: list[tuple[dict[str, str], bytes]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests += 1
        refused = self.server.requests % 3 == 0
        if not refused:
            self.server.taken.append((dict(self.headers), body))
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
        with live_server(models=colors, output=tables(table)) as server:

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
    check_stream([json.loads(body) for _, body in receiver.taken], parts)
    for headers, body in receiver.taken:
        signed = headers["X-Lineside-Timestamp"].encode() + b"." + body
        digest = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        assert headers["X-Lineside-Signature"] == f"sha256={digest}"


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

"""GET /livez, /readyz and /metrics."""

from pathlib import Path

import requests
from images import encode, plain
from prometheus_client.parser import text_string_to_metric_families
from server_process import LiveServer, live_server
from tiny_models import MakeModel, write_bundle

GREEN = encode(plain((0, 255, 0)), "PNG")


def test_a_server_that_serves_is_alive_and_ready(colors_server: LiveServer) -> None:
    for path in ("/livez", "/readyz"):
        answer = requests.get(colors_server.url + path, timeout=60)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_a_server_without_a_version_that_may_serve_says_why(
    tiny_model: MakeModel, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "colors" / "1", tiny_model("colors"), ("red", "green"))
    server = LiveServer(models=tmp_path)
    try:
        line = server.await_event("no version may serve")
        assert "labels.txt has 2 labels" in line["reason"]
        server.await_listening()
        assert requests.get(server.url + "/livez", timeout=60).status_code == 200
        for answer in (requests.get(server.url + "/readyz", timeout=60), server.recognize(GREEN)):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "NOT_READY"
            assert "labels.txt has 2 labels" in answer.json()["error"]["message"]
            assert int(answer.headers["Retry-After"]) >= 1
        model = requests.get(server.url + "/v1/models/colors", timeout=60).json()
        assert model["serving"] is None
        assert model["failures"][0]["version"] == 1
    finally:
        server.stop()


def test_metrics_parse_and_count_what_was_done(colors: Path) -> None:
    with live_server(models=colors, interpreters=2) as server:
        for color in [(255, 0, 0), (0, 255, 0), (0, 255, 0)]:
            assert server.recognize(encode(plain(color), "PNG")).status_code == 200
        server.recognize(b"text")
        requests.get(server.url + "/nowhere", timeout=60)
        requests.get(server.url + "/another", timeout=60)
        answer = requests.get(server.url + "/metrics", timeout=60)
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = {f.name: f for f in text_string_to_metric_families(answer.text)}
        ours = {name for name in families if name.startswith("lineside_")}
        assert all(families[name].documentation for name in ours)

        route = "/v1/recognize"
        assert server.sample("lineside_requests_total", route=route, status="200") == 3
        assert server.sample("lineside_requests_total", route=route, status="415") == 1
        assert server.sample("lineside_requests_total", route="unmatched", status="404") == 2
        assert server.sample("lineside_request_duration_seconds_count", route=route) == 4
        for stage in ("wait", "decode", "preprocess", "inference"):
            counted = server.sample("lineside_stage_duration_seconds_count", stage=stage)
            assert counted == (4 if stage in ("wait", "decode") else 3)
        assert server.sample("lineside_predictions_total", model="colors", label="green") == 2
        assert server.sample("lineside_predictions_total", model="colors", label="red") == 1
        assert server.sample("lineside_confidence_count", model="colors") == 3
        assert server.sample("lineside_frames_refused_total", reason="UNSUPPORTED_IMAGE") == 1
        assert server.sample("lineside_interpreters") == 2
        assert server.sample("lineside_waiting_frames") == 0
        assert server.sample("lineside_busy_interpreters") == 0
        assert server.sample("process_resident_memory_bytes") > 10_000_000
        (info,) = families["lineside_model_info"].samples
        assert (info.labels["model"], info.labels["version"]) == ("colors", "1")
        assert len(info.labels["sha256"]) == 64
        (load,) = families["lineside_model_load_seconds"].samples
        assert load.value > 0

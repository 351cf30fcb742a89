"""/openapi.json: it describes every route, and every answer is as it says."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from clients import SETOSA, frame
from routes import API
from server_process import LiveServer, environ_without_coverage, live_server

from server.app import create_app
from server.config.settings import Settings
from server.http.routes import foreign_pattern
from server.store.keys import add_key

# Routes whose answers are other than JSON, or of one sample; their own tests look at them.
OF_ONE = (
    "/metrics",
    "/v1/cameras/{name}/frame",
    "/v1/events",
    "/v1/models/{name}/samples/{file}",
    "/v1/now/picture",
    "/v1/samples.zip",
    "/v1/samples/{sample}",
    "/v1/samples/{sample}/image",
    "/recent",
)
FOREIGN = foreign_pattern(list(API))
# What people's browsers ask for; the rest is the API.
PAGES = {"/", "/docs", "/console/{file}", "/openapi.json"}
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,unsupported_method"
)


@pytest.fixture(scope="module")
def document(clients: LiveServer) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(clients.url + "/openapi.json", timeout=60).json()
    return found


def test_every_route_is_described(
    document: dict[str, Any], client_models: Path, tmp_path: Path
) -> None:
    settings = Settings(
        models=str(client_models),
        model="corners",
        data=str(tmp_path / "data"),
        keys_file=str(tmp_path / "keys.jsonl"),
    )
    app = create_app(settings)
    exist = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    described = {(path, method) for path, item in document["paths"].items() for method in item}
    assert {item for item in exist if item[0] not in PAGES} == described


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    refs = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert refs <= set(document["components"]["schemas"])
    ids = [o["operationId"] for item in document["paths"].values() for o in item.values()]
    assert len(ids) == len(set(ids))
    assert "://" not in json.dumps(document["components"])


def test_real_answers_match_their_schemas(clients: LiveServer, document: dict[str, Any]) -> None:
    validation = pytest.importorskip("jsonschema_rs", reason="schemathesis is not installed")
    files = {"file": frame("red")}
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("post", "/v1/recognize", {"files": files}),
        ("post", "/v1/recognize", {"json": {"input": SETOSA}}),
        ("post", "/v1/recognize/batch", {"files": files}),
        ("post", "/classify", {"files": {"image": frame("red")}}),
        ("post", "/api/recognize", {"files": files}),
        ("post", "/api/recognize_cached", {"files": files, "headers": {"X-Request-Id": "kept"}}),
        ("get", "/recent", {"params": {"id": "kept"}}),
        ("post", "/predict", {"files": files}),
        ("post", "/predict", {"json": {"features": SETOSA}}),
        ("post", "/predict", {"json": {"input": [SETOSA]}}),
        ("post", "/v1/models/{name}:predict", {"json": {"instances": [SETOSA]}}),
        ("post", "/v1/models/{name}:predict", {"json": {"inputs": [SETOSA]}}),
        ("post", "/v1/models/{name}:classify", {"json": {"examples": [{"features": SETOSA}]}}),
        *[
            ("get", path, {})
            for path, item in document["paths"].items()
            if "get" in item and path not in OF_ONE and "{job}" not in path
        ],
    ]
    for method, path, how in asked:
        url = path.format(name="iris", version=1, label="stable")
        answer = requests.request(method, clients.url + url, timeout=60, **how)
        assert answer.status_code == 200, (path, answer.text)
        content = document["paths"][path][method]["responses"]["200"]["content"]
        schema = {**content["application/json"]["schema"], "components": document["components"]}
        validation.Draft202012Validator(schema).validate(answer.json())


def operations_of(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every operation as (path, method, what is said of it)."""
    for path, item in document["paths"].items():
        for method, described in item.items():
            yield path, method, described


def test_every_operation_says_how_to_sign_in(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert schemes["key"].items() >= {"type": "apiKey", "in": "header", "name": "X-API-Key"}.items()
    assert schemes["bearer"].items() >= {"type": "http", "scheme": "bearer"}.items()
    is_open = {"/livez", "/readyz", "/v1/session", "/v2/health/live", "/v2/health/ready"}
    for path, method, described in operations_of(document):
        expected: list[Any] = [] if path in is_open else [{"key": []}, {"bearer": []}]
        assert described["security"] == expected, (method, path)


def test_every_error_that_can_be_is_described(document: dict[str, Any]) -> None:
    for path, method, described in operations_of(document):
        statuses = set(described["responses"])
        if path in ("/livez", "/readyz"):
            continue
        assert {"403", "429"} <= statuses, (method, path)
        takes_a_key = bool(described["security"]) or (method, path) == ("post", "/v1/session")
        assert ("401" in statuses) is takes_a_key, (method, path)
        if "requestBody" in described:
            assert {"408", "411", "413", "503"} <= statuses, (method, path)


def test_every_error_has_its_shape_and_headers(document: dict[str, Any]) -> None:
    headers = {"401": {"WWW-Authenticate"}, "503": {"Retry-After", "X-Should-Retry"}}
    headers["429"] = {"Retry-After", "RateLimit", "RateLimit-Policy"}
    for path, method, described in operations_of(document):
        for status, answer in described["responses"].items():
            expected = {"X-Request-Id"} | headers.get(status, set())
            if {"application/json", "image/jpeg"} <= set(answer.get("content", ())):
                expected |= {"X-Model", "X-Verdict", "X-Verdict-Reason"}
            assert set(answer["headers"]) == expected
            for header in answer["headers"].values():
                name = header["$ref"].removeprefix("#/components/headers/")
                assert "schema" in document["components"]["headers"][name]
            if int(status) >= 400:
                schema = answer["content"]["application/json"]["schema"]["$ref"]
                shape = "ForeignError" if FOREIGN.match(path) else "ErrorAnswer"
                assert schema == f"#/components/schemas/{shape}", (method, path, status)


@pytest.fixture(scope="module")
def generated(document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `lineside_client`, generated from the document."""
    pytest.importorskip("openapi_python_client", reason="openapi-python-client is not installed")
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(document), "utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"),
            *("--path", "openapi.json", "--output-path", "lineside_client"),
        ],
        cwd=folder,
        env=environ_without_coverage(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Of types that it does not know, of bodies and of files in answers, it says so.
    left_out = re.findall(r"(?:WARNING|Unable)[^\n]*\n\n([^\n]+)", done.stdout)
    assert [line for line in left_out if "nsupported content" not in line] == []
    return folder


SIGN_IN = """
import sys
from io import BytesIO
from pathlib import Path
from lineside_client import AuthenticatedClient
from lineside_client.api.lineside import get_v1_models, post_v1_recognize
from lineside_client.models import (
    ErrorAnswer, JsonFrame, PostV1RecognizeDataBody, PostV1RecognizeFilesBody, Recognition
)
from lineside_client.types import File
import base64

url, key, frame = sys.argv[1], sys.argv[2], Path(sys.argv[3])
text = base64.b64encode(frame.read_bytes()).decode()
signed = {"prefix": "", "auth_header_name": "X-API-Key"}
for how in ({}, signed):
    client = AuthenticatedClient(base_url=url, token=key, timeout=60, **how)
    bodies = [
        PostV1RecognizeFilesBody(file=File(BytesIO(frame.read_bytes()), "frame.png", "image/png")),
        JsonFrame(image_base64=text),
        PostV1RecognizeDataBody(image_base64=text),
    ]
    for body in bodies:
        found = post_v1_recognize.sync(client=client, body=body, camera="st4")
        assert isinstance(found, Recognition), found
        print(found.predictions[0].label, found.camera)
    print(get_v1_models.sync(client=client).models[0].name)
stranger = AuthenticatedClient(base_url=url, token="ls_wrong", timeout=60)
refused = post_v1_recognize.sync(client=stranger, body=bodies[0])
assert isinstance(refused, ErrorAnswer), refused
print(refused.error.code)
"""


def test_a_generated_client_signs_in_and_reads_a_label(
    generated: Path, client_models: Path, tmp_path: Path
) -> None:
    keys, image = tmp_path / "keys.jsonl", tmp_path / "frame.png"
    key = add_key(keys, "line", ["recognize"], now=datetime(2026, 1, 1, tzinfo=UTC))
    image.write_bytes(frame("red"))
    with live_server(models=client_models, model="corners", keys_file=keys) as server:
        done = subprocess.run(
            [sys.executable, "-c", SIGN_IN, server.url, key, str(image)],
            cwd=generated,
            env=environ_without_coverage(),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines == [*["red st4"] * 3, "corners"] * 2 + ["UNAUTHORIZED"]


# The routes answer 503 where a generated deadline can't be met, which is documented.
CONFIG = """
request-timeout = 60
[parameters]
"path.name" = "iris"
"path.version" = 1
"path.label" = "stable"
"path.sample" = "000000001-0123456789abcdef"
[checks]
not_a_server_error.expected-statuses = ["2xx", "4xx", 503]
"""
# Operations that read their requests as another one does, with the same code. Their values are not
# all tried again: the other phases do ask them, with right and with wrong requests.
SAME_REQUESTS = (
    "post_api_recognize_async",
    "post_api_recognize_cached",
    "post_v1_models_name_labels_label_classify",
    "post_v1_models_name_labels_label_predict",
    "post_v1_models_name_versions_version_classify",
    "post_v1_models_name_versions_version_predict",
    "post_v2_models_name_versions_version_infer",
)
NOT_ALL_VALUES = """
[[operations]]
include-operation-id = "{}"
phases.coverage.enabled = false
"""


def test_schemathesis_finds_nothing(clients: LiveServer, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    (tmp_path / "schemathesis.toml").write_text(
        CONFIG + "".join(map(NOT_ALL_VALUES.format, SAME_REQUESTS)), "utf-8"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{clients.url}/openapi.json"),
            *("--checks", CHECKS, "--max-examples", "5", "--seed", "1", "--no-color"),
            *("--phases", "examples,coverage,fuzzing"),
            *("--generation-database", "none"),
            # It ends only after a minute; test_now.py reads it.
            *("--exclude-path", "/v1/events"),
            # A key that is made closes the server to all who come after; test_keys.py makes some.
            *("--exclude-operation-id", "post_v1_keys"),
        ],
        cwd=tmp_path,
        # Else every request of thousands reads the whole environment for a proxy.
        env=environ_without_coverage() | {"NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    document = requests.get(clients.url + "/openapi.json", timeout=60).json()
    count = sum(len(item) for item in document["paths"].values()) - 2
    assert f"{count} selected" in done.stdout
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]

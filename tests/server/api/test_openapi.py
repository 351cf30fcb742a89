"""/openapi.json: it describes every route, and every answer is as it says."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from clients import SETOSA, frame
from live import LiveServer

from server.app import create_app
from server.config import Settings

# Routes whose answers are other than JSON, or of one sample; their own tests look at them.
OF_ONE = (
    "/metrics",
    "/v1/models/{name}/samples/{file}",
    "/v1/samples/{sample}",
    "/v1/samples/{sample}/image",
    "/recent",
)
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
    assert "http" not in json.dumps(document["components"])


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


def test_schemathesis_finds_nothing(clients: LiveServer, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    (tmp_path / "schemathesis.toml").write_text(CONFIG, "utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{clients.url}/openapi.json"),
            *("--checks", CHECKS, "--max-examples", "8", "--seed", "1", "--no-color"),
            *("--phases", "examples,coverage,fuzzing"),
            *("--generation-database", "none"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    document = requests.get(clients.url + "/openapi.json", timeout=60).json()
    count = sum(len(item) for item in document["paths"].values())
    assert f"{count} selected" in done.stdout
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]

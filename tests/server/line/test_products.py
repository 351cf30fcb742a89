"""Products: frames judged by model, version and policy of their product, or of the active one."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from images import encode, plain
from job_workers import await_that
from server_process import ROOT, LiveServer
from tiny_models import MakeModel, write_bundle
from werkzeug.test import TestResponse

from server.app import AT_END, create_app, shut_down
from server.config.load import load
from server.errors import SettingsError

GREEN = encode(plain((0, 255, 0)), "JPEG")
STRICT = {"accept": ["red"]}
LAX = {"accept": ["red", "green"]}
GUIDE = (ROOT / "docs" / "guide.md").read_text("utf-8")
PART = GUIDE.split("## Products")[1].split("\n## ")[0]


class Line:
    """An application over `models` in this process, with tables [[product]]."""

    def __init__(self, folder: Path, models: Path, products: list[dict[str, Any]]) -> None:
        environ = {
            "LINESIDE_MODELS": str(models),
            "LINESIDE_DATA": str(folder / "data"),
            "LINESIDE_KEYS_FILE": str(folder / "keys.jsonl"),
            "LINESIDE_MODEL": "colors",
            "LINESIDE_MAX_WAIT_MS": "60000",
            "LINESIDE_PRODUCT": json.dumps(products),
        }
        self.app: Flask = create_app(load(environ))
        self.client = self.app.test_client()

    def post(self, path: str, **options: Any) -> TestResponse:
        return self.client.post(path, **options)

    def frame(self, query: str = "") -> TestResponse:
        return self.post(f"/v1/recognize?{query}", data=GREEN, content_type="image/jpeg")

    def get(self, path: str) -> Any:
        return self.client.get(path).get_json()

    def ready(self) -> bool:
        return self.client.get("/readyz").status_code == 200

    def close(self) -> None:
        shut_down(self.app.extensions[AT_END])


MakeLine = Callable[..., Line]


@pytest.fixture
def models(tiny_model: MakeModel, tmp_path: Path) -> Path:
    """Bundles colors/1 and colors/2, by whose own policy green fails, and other/1 without one."""
    folder = tmp_path / "models"
    for version in "12":
        write_bundle(folder / "colors" / version, tiny_model("colors"), verdict=STRICT)
    write_bundle(folder / "other" / "1", tiny_model("colors"))
    return folder


def loaded(line: Line) -> bool:
    return all(each["fault"] is None for each in line.get("/v1/products")["products"])


def error_of(answer: TestResponse) -> tuple[int, str]:
    return answer.status_code, (answer.get_json() or {})["error"]["code"]


def test_frames_are_judged_by_their_product(models: Path, tmp_path: Path) -> None:
    products: list[dict[str, Any]] = [
        {"name": "strict", "model": "colors"},
        {"name": "lax", "model": "colors", "policy": LAX},
        {"name": "third", "model": "other", "policy": STRICT},
    ]
    with closing(Line(tmp_path, models, products)) as line:
        await_that(line.ready, "a loaded model")
        first = line.frame("part=A-1&batch=lot+7").get_json()
        assert (first["product"], first["batch"], first["verdict"]) == ("strict", "lot 7", "fail")
        assert line.frame("product=lax").get_json()["verdict"] == "pass"
        third = line.frame("product=third").get_json()
        assert (third["model"], third["verdict"]) == ("other", "fail")
        named = line.frame("model=colors").get_json()
        assert (named["product"], named["verdict"]) == (None, "fail")
        several = line.post(
            "/v1/recognize/batch?product=lax", data={"file": (io.BytesIO(GREEN), "a.jpg")}
        ).get_json()
        assert several["results"][0]["result"]["product"] == "lax"

        assert error_of(line.frame("product=none")) == (404, "PRODUCT_NOT_FOUND")
        assert error_of(line.frame("product=lax&model=colors")) == (400, "INVALID_FIELD")
        numbers = {"input": [[1.0]], "product": "lax"}
        assert error_of(line.post("/v1/recognize", json=numbers)) == (400, "INVALID_FIELD")
        serving = line.post("/v1/models/colors:predict?product=lax", json={"instances": [[1]]})
        assert serving.status_code == 400

        rows = line.get("/v1/journal?order=oldest")["rows"]
        assert [(r["product"], r["policy"]) for r in rows if r["verdict"]] == [
            ("strict", "bundle"),
            ("lax", "product"),
            ("third", "product"),
            (None, "bundle"),
            ("lax", "product"),
        ]
        found = line.get("/v1/journal?product=strict&batch=lot+7")["rows"]
        assert [row["part"] for row in found] == ["A-1"]
        assert line.get("/v1/journal?product=none")["rows"][0]["code"] == "PRODUCT_NOT_FOUND"


def test_activation_holds_after_a_restart(models: Path, tmp_path: Path) -> None:
    """A product with a version has it serve; one that can't leaves the one before active."""
    products: list[dict[str, Any]] = [
        {"name": "new", "model": "colors", "version": 2},
        {"name": "old", "model": "colors", "version": 1, "policy": LAX},
        {"name": "lost", "model": "colors", "version": 9},
    ]
    with closing(Line(tmp_path, models, products)) as line:
        await_that(line.ready, "a loaded model")
        assert line.frame().get_json()["model_version"] == 2
        assert error_of(line.post("/v1/products/lost/activate")) == (404, "MODEL_NOT_FOUND")
        assert error_of(line.post("/v1/products/none/activate")) == (404, "PRODUCT_NOT_FOUND")
        assert line.get("/v1/products")["active"] == "new"
        assert line.post("/v1/products/old/activate").get_json()["active"] == "old"
        answer = line.frame().get_json()
        assert (answer["model_version"], answer["verdict"]) == (1, "pass")
        # A version that the product does not name judges none of its frames.
        assert error_of(line.frame("product=new")) == (503, "NOT_READY")
        change = line.get("/v1/audit")["changes"][0]
        assert (change["product_before"], change["product_after"]) == ("new", "old")
        line.post("/v1/models/colors/activate", json={"version": 2})
        assert error_of(line.frame()) == (503, "NOT_READY")
        assert not line.ready()
        line.post("/v1/products/old/activate")
    with closing(Line(tmp_path, models, products)) as line:
        await_that(line.ready, "a loaded model")
        assert line.get("/v1/products")["active"] == "old"
        assert line.frame().get_json()["verdict"] == "pass"


@pytest.fixture
def odd(models: Path, tmp_path: Path) -> Iterator[Line]:
    """A line whose product `odd` has a policy that its version does not know, which can be checked
    only once that version is there."""
    products: list[dict[str, Any]] = [
        {"name": "new", "model": "colors"},
        {"name": "odd", "model": "colors", "version": 1, "policy": {"accept": ["violet"]}},
    ]
    shutil.move(models / "colors" / "1", tmp_path / "1")
    with closing(Line(tmp_path, models, products)) as line:
        await_that(line.ready, "a loaded model")
        shutil.move(tmp_path / "1", models / "colors" / "1")
        yield line


def test_failed_activation_takes_its_version_back(odd: Line) -> None:
    refused = odd.post("/v1/products/odd/activate")
    assert error_of(refused) == (422, "VERSION_REFUSED")
    assert "violet" in refused.get_json()["error"]["message"]
    assert odd.get("/v1/products")["active"] == "new"
    assert odd.frame().get_json()["model_version"] == 2


def test_activation_that_can_not_be_taken_back_says_so(models: Path, odd: Line) -> None:
    shutil.rmtree(models / "colors" / "2")
    message = odd.post("/v1/products/odd/activate").get_json()["error"]["message"]
    assert "version 1 of colors serves now, since" in message
    assert odd.frame().get_json()["model_version"] == 1


@pytest.mark.parametrize("content", [b'{"active": "gone"}', b"\xff", b"{}"])
def test_lost_choice_judges_no_frame(models: Path, tmp_path: Path, content: bytes) -> None:
    """Another product's policy may pass what this one's would not."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "product.json").write_bytes(content)
    with closing(Line(tmp_path, models, [{"name": "lax", "model": "colors"}])) as line:
        await_that(lambda: loaded(line), "a loaded model")
        assert line.get("/v1/products")["active"] is None
        assert error_of(line.frame()) == (503, "NOT_READY")
        assert not line.ready()
        assert line.frame("product=lax").status_code == 200
        line.post("/v1/products/lax/activate")
        assert line.ready()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"product": [{"name": "a", "model": "colors", "policy": {"accept": ["gren"]}}]}, "green"),
        ({"product": [{"name": "a", "model": "colors", "policy": {"acept": ["red"]}}]}, "acept"),
        ({"product": [{"name": "a"}]}, "model is missing"),
        ({"product": [{"name": "a", "model": "m", "policy": 3}]}, "policy"),
        ({"camera": [{"name": "c", "kind": "folder", "path": "x", "product": "a"}]}, "[[product]]"),
    ],
)
def test_wrong_table_stops_the_start(
    models: Path, tmp_path: Path, tables: dict[str, Any], message: str
) -> None:
    environ = {f"LINESIDE_{name.upper()}": json.dumps(each) for name, each in tables.items()}
    environ |= {"LINESIDE_MODELS": str(models), "LINESIDE_MODEL": "colors"}
    with pytest.raises(SettingsError, match=re.escape(message)):
        create_app(load(environ | {"LINESIDE_DATA": str(tmp_path)}))


def test_missing_model_stops_no_other_product(models: Path, tmp_path: Path) -> None:
    products: list[dict[str, Any]] = [
        {"name": "a", "model": "colors"},
        {"name": "b", "model": "gone", "policy": LAX},
    ]
    with closing(Line(tmp_path, models, products)) as line:
        await_that(line.ready, "a loaded model")
        assert error_of(line.frame("product=b")) == (404, "MODEL_NOT_FOUND")
        assert error_of(line.post("/v1/products/b/activate")) == (404, "MODEL_NOT_FOUND")
        assert line.frame().get_json()["product"] == "a"


def test_products_of_the_guide_work(tmp_path: Path) -> None:
    """Its settings, and its commands in their order."""
    shutil.copytree(ROOT / "models" / "parts" / "1", tmp_path / "models" / "parts" / "1")
    toml = re.findall(r"```toml\n(.*?)```", PART, re.DOTALL)
    commands = re.findall(r"```console\n(.*?)```", PART, re.DOTALL)
    config = tmp_path / "line.toml"
    config.write_text("\n".join(toml), "utf-8")
    command = ("-m", "server", "serve", "--config", str(config))
    server = LiveServer(*command, models=tmp_path / "models", traced=True)
    try:
        server.await_ready()
        outputs = []
        for line in "".join(commands).splitlines():
            text = line.removeprefix("$ ").replace("http://127.0.0.1:8080", server.url)
            text = text.replace("python -m", f"{sys.executable} -m")
            text = text.replace("curl ", "curl -sS --fail-with-body ")
            done = subprocess.run(
                ["bash", "-c", text],
                cwd=ROOT,
                env={"KEY": "x", "PATH": "/usr/bin:/bin", "LINESIDE_DATA": str(server.data)},
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert done.returncode == 0, (text, done.stdout, done.stderr)
            outputs.append(done.stdout)
    finally:
        server.stop()
    verdicts = [json.loads(each)["verdict"] for each in outputs[:3] if "predictions" in each]
    assert verdicts == ["fail", "pass"]
    assert "bracket-b" in outputs[-2]
    assert '"reason":"majority","frames":3,"of":3,"final":true' in outputs[-1]

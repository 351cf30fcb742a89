"""A route is declared at its handler, and everything that depends on it follows."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from flask import Flask, Response
from routes import ROUTES

from server.app import create_app
from server.config.settings import Settings
from server.errors import InvalidFieldError
from server.http.routes import (
    ADMIN,
    EXTENSION,
    FRAMES,
    KNOWN,
    Group,
    foreign_pattern,
    route,
)
from server.store.keys import add_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class ToyQuery(msgspec.Struct):
    """How many toys are asked for."""

    count: Annotated[int, msgspec.Meta(ge=1)] = 1


class Toy(msgspec.Struct):
    """A toy."""

    name: str


class ToyRoutes:
    """Routes that the server does not have."""

    @route("GET", "/v1/toys/<toy>", rights=KNOWN, query=ToyQuery)
    def toy(self, toy: str) -> Toy:
        """Return one toy."""
        return Toy(toy)

    @route("POST", "/v1/toys", rights=FRAMES, frame=True, body=Toy, answer=Toy)
    def frame(self) -> Response:
        """Refuse every frame."""
        raise InvalidFieldError("no frame is a toy")

    @route("DELETE", "/toys", rights=ADMIN, group=Group("Toys", "/toys"), errors=(400,))
    def foreign(self) -> Response:
        """Refuse to remove them."""
        raise InvalidFieldError("toys stay")


def toy_app(models: Path, folder: Path) -> tuple[Flask, dict[str, dict[str, str]]]:
    """The server's application with the toys' routes, and headers with a key of each right."""
    file = folder / "keys.jsonl"
    keys = {right: add_key(file, right, [right], now=NOW) for right in ("recognize", "admin")}
    settings = Settings(models=str(models), keys_file=str(file), data=str(folder / "data"))
    app = create_app(settings)
    app.extensions[EXTENSION].add(app, ToyRoutes())
    return app, {right: {"X-API-Key": key} for right, key in keys.items()}


def test_declared_route_is_described_and_guarded(colors: Path, tmp_path: Path) -> None:
    app, keys = toy_app(colors, tmp_path)
    client = app.test_client()
    paths = client.get("/openapi.json").get_json()["paths"]
    described = paths["/v1/toys/{toy}"]["get"]
    assert described["summary"] == "Return one toy"
    assert described["security"] == [{"key": []}, {"bearer": []}]
    assert [each["name"] for each in described["parameters"]] == ["toy", "count"]
    assert set(described["responses"]) == {"200", "401", "403", "429"}
    answer_schema = described["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer_schema == {"$ref": "#/components/schemas/Toy"}
    assert paths["/toys"]["delete"]["tags"] == ["Toys"]

    assert client.get("/v1/toys/ball").status_code == 401
    assert client.post("/v1/toys", headers=keys["admin"], data=b"x").status_code == 403
    answer = client.get("/v1/toys/ball", headers=keys["admin"])
    assert (answer.status_code, answer.get_json()) == (200, {"name": "ball"})
    misspelt = client.get("/v1/toys/ball?cuont=2", headers=keys["admin"])
    assert misspelt.get_json()["error"]["message"].startswith("cuont is not known here")


def test_declared_route_has_its_errors_and_frames(colors: Path, tmp_path: Path) -> None:
    app, keys = toy_app(colors, tmp_path)
    client = app.test_client()
    error = client.delete("/toys", headers=keys["admin"])
    assert (error.status_code, error.get_json()) == (400, {"error": "toys stay"})
    assert client.post("/v1/toys", headers=keys["recognize"]).status_code == 411
    refused = client.post("/v1/toys", headers=keys["recognize"], data=b"x")
    assert refused.get_json()["error"]["code"] == "INVALID_FIELD"
    metrics_key = add_key(tmp_path / "keys.jsonl", "watch", ["metrics"], now=NOW)
    metrics = client.get("/metrics", headers={"X-API-Key": metrics_key}).text
    assert re.search(r'lineside_frames_refused_total{.*"INVALID_FIELD".*} 1\.0', metrics)


def test_patterns_of_protocols_hold_their_routes_alone() -> None:
    pattern = foreign_pattern(list(ROUTES))
    assert [each.path for each in ROUTES if bool(pattern.match(each.path)) != each.foreign] == []

"""Applications over a models folder, with a key of each right, asked without a network."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from server.app import create_app
from server.config.settings import Settings
from server.store.keys import add_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)

# Its answer goes on for a minute: only its beginning is read.
STREAM = "/v1/events"


class Site:
    """An application over `models` with `settings`, and its keys by right."""

    def __init__(self, models: Path, folder: Path, **settings: Any) -> None:
        self.keys_file = folder / "keys.jsonl"
        self.keys: dict[str, str] = {}
        for right in ("recognize", "admin", "metrics"):
            self.keys[right] = add_key(self.keys_file, right, [right], now=NOW)
        self.app = make_app(models, self.keys_file, **settings)

    def get(self, path: str, method: str = "GET", **headers: str) -> TestResponse:
        client = self.app.test_client()
        if path == STREAM:
            answer = client.open(path, method=method, headers=headers)
            answer.close()
            return answer
        return client.open(path, method=method, headers=headers, buffered=True)

    def bearer(self, token: str, path: str, method: str = "GET") -> TestResponse:
        return self.get(path, method, Authorization=f"Bearer {token}")


def make_app(models: Path, keys_file: Path, **settings: Any) -> Flask:
    made = Settings(
        models=str(models),
        keys_file=str(keys_file),
        data=str(keys_file.parent / "data"),
        interpreters=1,
        wide_interpreter=False,
        **settings,
    )
    return create_app(made)


def error(answer: TestResponse) -> dict[str, str]:
    """What an answer says went wrong."""
    said: dict[str, str] = (answer.get_json() or {})["error"]
    return said


def paths(app: Flask) -> Iterator[tuple[str, str, str]]:
    """Every route of `app` as (rule, path, method)."""
    fillers = {"int:version": "1", "model:name": "colors", "model:label": "stable"}
    fillers |= {
        "name": "gate",
        "file": "x",
        "path:file": "x",
        "job": "x",
        "sample": "000000001-0123456789abcdef",
    }
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<([^>]+)>", lambda m: fillers[m[1]], rule.rule)
        for method in sorted((rule.methods or set()) - {"OPTIONS", "HEAD"}):
            yield rule.rule, path, method

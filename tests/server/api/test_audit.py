"""Who changed a model: kept in `data/audit.jsonl`, told by /v1/audit, and in the log."""

import io
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from job_workers import await_that
from server_process import LiveServer, live_server
from tiny_models import MakeModel, write_bundle

from server.store import audit
from server.store.audit import FILE, OLD_FILE, Audit, Change
from server.store.keys import add_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def models(tiny_model: MakeModel, tmp_path: Path) -> Path:
    for version in (1, 2):
        write_bundle(tmp_path / "models" / "colors" / str(version), tiny_model("colors"))
    return tmp_path / "models"


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "keys.jsonl"
    return {
        "mes": add_key(file, "mes", ["admin"], now=NOW),
        "st4": add_key(file, "st4", ["recognize"], now=NOW),
    }


@pytest.fixture
def server(models: Path, tmp_path: Path, keys: dict[str, str]) -> Iterator[LiveServer]:
    data = tmp_path / "data"
    with live_server(models=models, data=data, keys_file=tmp_path / "keys.jsonl") as running:
        yield running


def ask(server: LiveServer, key: str, method: str, path: str, **how: Any) -> requests.Response:
    headers = {"X-API-Key": key}
    return requests.request(method, server.url + path, headers=headers, timeout=60, **how)


def lines_of(server: LiveServer, event: str) -> list[dict[str, Any]]:
    return [line for line in server.lines if line["event"] == event]


def changes(server: LiveServer, key: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(server, key, "GET", "/v1/audit").json()["changes"]
    return found


def test_changes_are_kept_with_who_made_them(
    server: LiveServer, keys: dict[str, str], tmp_path: Path, models: Path
) -> None:
    def change(action: str, **body: object) -> int:
        path = f"/v1/models/colors/{action}"
        return ask(server, keys["mes"], "POST", path, json=body).status_code

    assert change("rollback") == 200
    assert change("activate", version=2) == 200
    assert change("rollback") == 200
    assert change("rollback") == 409
    assert change("load") == 200
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for file in (models / "colors" / "2").iterdir():
            tar.add(file, file.name)
    path = "/v1/models/colors/upload"
    assert ask(server, keys["mes"], "POST", path, data=archive.getvalue()).status_code == 200
    assert ask(server, keys["mes"], "POST", "/v1/models/none/load").status_code == 404
    assert ask(server, keys["st4"], "POST", "/v1/models/colors/load").status_code == 403

    found = changes(server, keys["mes"])
    assert [
        (each["action"], each["version"], each["before"], each["after"], each["code"])
        for each in reversed(found)
    ] == [
        ("rollback", None, 2, 1, ""),
        ("activate", 2, 1, 2, ""),
        ("rollback", None, 2, 1, ""),
        ("rollback", None, 1, 1, "NOTHING_TO_ROLL_BACK"),
        ("load", None, 1, 1, ""),
        ("upload", 2, 1, 1, ""),
    ]
    for each in found:
        assert (each["caller"], each["address"], each["model"]) == ("mes", "127.0.0.1", "colors")
        assert each["request_id"]
        assert datetime.fromisoformat(each["at"]).tzinfo is not None
    logged = await_that(lambda: lines_of(server, "model changed"), "its line")
    assert (logged[0]["action"], logged[0]["caller"]) == ("rollback", "mes")
    one = ask(server, keys["mes"], "GET", "/v1/audit?limit=1").json()["changes"]
    assert one == found[:1]
    assert ask(server, keys["mes"], "GET", "/v1/audit?limit=0").status_code == 400
    assert ask(server, keys["st4"], "GET", "/v1/audit").status_code == 403


def test_load_says_which_version_it_skips(server: LiveServer, keys: dict[str, str]) -> None:
    path = "/v1/models/colors/"
    loaded = ask(server, keys["mes"], "POST", path + "load").json()
    assert "note" not in loaded
    assert ask(server, keys["mes"], "POST", path + "rollback").json()["serving"] == 1
    loaded = ask(server, keys["mes"], "POST", path + "load").json()
    assert loaded["serving"] == 1
    assert "rolled back: 2" in loaded["note"]
    assert '{"version": 2}' in loaded["note"]
    (line,) = await_that(lambda: lines_of(server, "newer versions skipped"), "its line")
    assert line["versions"] == [2]
    assert "note" not in ask(server, keys["mes"], "GET", path).json()
    active = ask(server, keys["mes"], "POST", path + "activate", json={"version": 2}).json()
    assert (active["serving"], "note" in active) == (2, False)


def test_version_that_takes_over_by_itself_is_kept(
    models: Path, tiny_model: MakeModel, tmp_path: Path
) -> None:
    with live_server(models=models, data=tmp_path / "data", watch_models_s=0.05) as server:
        write_bundle(models / "colors" / "3", tiny_model("colors"))

        def taken() -> list[dict[str, Any]]:
            answer = requests.get(server.url + "/v1/audit", timeout=60).json()
            return list(answer["changes"])

        (change,) = await_that(taken, "the change")
        assert (change["action"], change["before"], change["after"]) == ("watch", 2, 3)
        assert change["caller"] == ""


def of(number: int) -> Change:
    return Change(at=audit.now(), action="load", model="m", before=number, after=number)


def test_audit_is_bounded_and_outlives_its_server(tmp_path: Path) -> None:
    written = Audit(tmp_path)
    size = 200
    for number in range(3 * audit.FILE_BYTES_MAX // size // 100):
        written.record(of(number))
        # As many more of the kind, without a sync each.
        with (tmp_path / FILE).open("ab") as file:
            file.write((b'{"at":"x","action":"load","model":"' + b"m" * 150 + b'"}\n') * 100)
    assert (tmp_path / FILE).stat().st_size <= 1.2 * audit.FILE_BYTES_MAX
    assert (tmp_path / OLD_FILE).stat().st_size <= 1.2 * audit.FILE_BYTES_MAX
    again = Audit(tmp_path)
    again.record(of(-1))
    assert again.newest(1)[0].before == -1


def test_half_a_line_spoils_no_other(tmp_path: Path) -> None:
    Audit(tmp_path).record(of(1))
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"at": "20')
    Audit(tmp_path).record(of(2))
    assert [change.before for change in Audit(tmp_path).newest(10)] == [2, 1]


def test_change_that_can_not_be_kept_is_made_all_the_same(models: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FILE).mkdir()
    with live_server(models=models, data=tmp_path / "data") as server:
        answer = requests.post(server.url + "/v1/models/colors/rollback", timeout=60)
        assert (answer.status_code, answer.json()["serving"]) == (200, 1)
        listed = requests.get(server.url + "/v1/audit", timeout=60)
        assert (listed.status_code, listed.json()["error"]["code"]) == (503, "STORAGE_FAILED")
    assert [line["event"] for line in server.lines].count("audit can't be written") == 1

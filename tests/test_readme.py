"""What the README claims, executed."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator

import pytest
import requests
from server_process import ROOT, free_port

from server.config import load as config_table

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
CURLS = [shlex.split(text) for kind, text in BLOCKS if kind == "sh" and text.startswith("curl")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server started by the README's first command, with data and keys of its own:
    another one may be running in this folder."""
    own = tmp_path_factory.mktemp("served")
    assert ("sh", "scripts/serve\n") in BLOCKS
    port = str(free_port())
    env = {k: v for k, v in os.environ.items() if not k.startswith("LINESIDE_")}
    process = subprocess.Popen(
        ["scripts/serve"],
        cwd=ROOT,
        env={
            **env,
            "LINESIDE_PORT": port,
            "LINESIDE_MAX_WAIT_MS": "60000",
            "LINESIDE_DATA": str(own / "data"),
            "LINESIDE_KEYS_FILE": str(own / "keys.jsonl"),
        },
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    said = []
    # The first start of a clean clone installs what the server needs.
    overdue = threading.Timer(600, os.killpg, (process.pid, signal.SIGKILL))
    overdue.start()
    try:
        for line in process.stderr:
            said.append(line)
            if "model loaded" in line:
                break
        else:
            pytest.fail(f"scripts/serve ended: {''.join(said)}")
        overdue.cancel()
        address = f"http://127.0.0.1:{port}"
        retried = "--retry-connrefused", "--retry", "60", "--retry-delay", "1"
        subprocess.run(["curl", "-fs", *retried, f"{address}/readyz"], check=True, timeout=60)
        yield address
    finally:
        overdue.cancel()
        os.killpg(process.pid, signal.SIGTERM)
        process.stderr.read()
        process.stderr.close()
        process.wait(60)


def curl(command: list[str], address: str) -> dict[str, object]:
    """The answer to one of the README's commands, for which a busy machine has time."""
    line = [word.replace("http://127.0.0.1:8080", address) for word in command]
    words = [re.sub(r"deadline_ms=\d+", "deadline_ms=60000", word) for word in line]
    done = subprocess.run(
        [*words, "--silent", "--show-error"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_the_first_curl_names_the_part_and_answers_as_shown(served: str) -> None:
    shown = json.loads(next(text for kind, text in BLOCKS if kind == "json"))
    answer = curl(CURLS[0], served)
    assert list(answer) == list(shown)
    assert answer["predictions"][0]["label"] == "scratched"  # type: ignore[index]
    assert shown["predictions"][0]["label"] == "scratched"
    assert answer["verdict"] == shown["verdict"] == "fail"


def test_every_other_curl_is_answered(served: str) -> None:
    assert len(CURLS) > 1
    for command in CURLS[1:]:
        assert "error" not in curl(command, served)


def test_the_page_has_its_sample_frames(served: str) -> None:
    samples = f"{served}/v1/models/parts/samples"
    names = requests.get(samples, timeout=60).json()["samples"]
    assert "scratched.jpg" in names
    for name in names:
        assert requests.get(f"{samples}/{name}", timeout=60).headers["Content-Type"] == "image/jpeg"


def test_prometheus_could_scrape_it(served: str) -> None:
    assert "lineside_requests_total" in requests.get(served + "/metrics", timeout=60).text


def test_the_settings_table_is_the_programs() -> None:
    table = subprocess.run(
        [sys.executable, "-m", "server", "settings"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert table in README
    assert all(f"| `{row.name}` |" in README for row in config_table.describe_settings())


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(name for extra in extras for name in extra)]
    table = README.split("## What is in it")[1]
    for requirement in wanted:
        name = re.split(r"[<>=\[]", requirement)[0]
        assert re.search(rf"\b{re.escape(name)}\b", table), f"the README does not say why {name}"


def test_every_file_it_names_exists() -> None:
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file(), path

"""The command line: check, settings, and a server that refuses to start in one clear sentence."""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from job_workers import tasks
from server_process import ROOT, LiveServer, environ_without_coverage, free_port, live_server
from tiny_models import MakeModel, change_manifest, write_bundle

from server import __version__
from server.config import load as config_table
from server.recognition.manifest import MODEL


def run(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("LINESIDE_")}
    return subprocess.run(
        [sys.executable, "-m", "server", *map(str, arguments)],
        cwd=ROOT,
        env=env | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_refused(ended: subprocess.CompletedProcess[str], *says: object) -> None:
    """Exit code 1, and one line that says all of `says`."""
    assert ended.returncode == 1, ended
    lines = [line for line in ended.stderr.splitlines() if "XNNPACK delegate" not in line]
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("lineside: ")
    for text in says:
        assert str(text) in lines[0]


# A server whose worker can't live.
DYING = """
import os, resource, sys
from server.process import supervisor

# The machine may take long to write a core file, or to start what takes it; 1 rules out both.
resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
supervisor.TOO_YOUNG_S = 600
sys.exit(supervisor.supervise(os.abort))
"""


@pytest.fixture
def models(tiny_model: MakeModel, tmp_path: Path) -> Path:
    """A models folder with colors/1, for the test to spoil."""
    write_bundle(tmp_path / "models" / "colors" / "1", tiny_model("colors"))
    return tmp_path / "models"


def test_check_says_what_would_be_served(models: Path, tiny_model: MakeModel) -> None:
    write_bundle(models / "colors" / "2", tiny_model("colors"), ("red", "green"))
    ended = run("check", "--models", models, "--port", "8123", "--interpreters", "3")
    assert ended.returncode == 0, ended.stderr
    assert "address 127.0.0.1:8123" in ended.stdout
    assert "3 interpreters of 1 thread, ai-edge-litert" in ended.stdout
    assert "colors/1 (default): float32, 3 labels" in ended.stdout
    assert "3 labels, no golden frames" in ended.stdout
    assert "colors/2 is refused: " in ended.stdout
    assert "labels.txt has 2 labels" in ended.stdout


def test_check_tells_what_is_named_in_vain(models: Path, tmp_path: Path) -> None:
    flags = ("--preload", "colors,nobody", "--samples-labels", "red,rusty")
    (tmp_path / "file").write_text("")
    ended = run("check", "--models", models, *flags, "--data", tmp_path / "file")
    assert ended.returncode == 0, ended.stderr
    told = ended.stdout.splitlines()
    assert f"data: {tmp_path / 'file'} is no folder" in told
    assert [line for line in told if "there is no" in line or "has the label" in line] == [
        "preload: there is no model nobody",
        "samples_labels: no model has the label rusty",
    ]


def test_check_goes_on_after_a_faulty_other_model(models: Path, tiny_model: MakeModel) -> None:
    """Check goes on after a faulty model that is not the default."""
    write_bundle(models / "bolts" / "1", tiny_model("colors"), ("red", "green"))
    ended = run("check", "--models", models, "--model", "colors")
    assert ended.returncode == 0, ended.stderr
    assert "bolts is refused: " in ended.stdout
    assert "colors/1 (default)" in ended.stdout


def test_check_refuses_what_would_not_serve(models: Path, tiny_model: MakeModel) -> None:
    change_manifest(models / "colors" / "1", recipe={"width": 48, "height": 48})
    assert_refused(run("check", "--models", models), "the recipe makes float32 [48, 48, 3]")


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_damaged_model_is_refused(models: Path, command: str) -> None:
    path = models / "colors" / "1" / MODEL
    path.write_bytes(path.read_bytes()[:-1])
    assert_refused(run(command, "--models", models), path, "sha256")


@pytest.mark.parametrize("command", ["check", "serve"])
def test_no_models_folder_is_refused(tmp_path: Path, command: str) -> None:
    assert_refused(run(command, "--models", tmp_path / "absent"), tmp_path / "absent", "not exist")
    assert_refused(run(command, "--models", tmp_path), tmp_path, "holds no bundle")


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_bare_model_needs_a_recipe(models: Path, command: str) -> None:
    (models / "colors" / "1" / "bundle.json").unlink()
    assert_refused(run(command, "--models", models), models / "colors" / "1", "set `recipe`")


def test_a_bare_model_with_a_recipe_is_checked(models: Path) -> None:
    (models / "colors" / "1" / "bundle.json").unlink()
    recipe = '{"width": 32, "height": 32, "scale": 0.00392}'
    ended = run("check", "--models", models, LINESIDE_RECIPE=recipe)
    assert ended.returncode == 0, ended.stderr
    assert "colors/1 (default)" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        (("--port", "70000"), {}, "--port can't be '70000'"),
        ((), {"LINESIDE_PORT": "http"}, "LINESIDE_PORT can't be 'http'"),
        ((), {"LINESIDE_PROT": "8080"}, "LINESIDE_PROT: there is no such setting"),
        (("--config", "absent.toml"), {}, "absent.toml does not exist"),
        (("--host", "no-such-host.invalid"), {}, "no-such-host.invalid"),
        (("--rate-per-key", "5"), {}, "rate_per_key can't be '5': say such as 100/second"),
        (("--broker-url", "redis://host/abc"), {}, "broker_url should be redis://HOST:PORT/NUMBER"),
        (("--rate-per-address", "many"), {}, "rate_per_address can't be 'many'"),
        (
            ("--cors-origins", "https://a.example,nonsense"),
            {},
            "cors_origins can't have 'nonsense'",
        ),
        (("--allowed-hosts", "a.example,http://a"), {}, "allowed_hosts can't hold 'http://a'"),
        (("--auth", "never"), {}, "--auth can't be 'never': it may be auto or required or off"),
        ((), {"LINESIDE_CACHE": "yes"}, "LINESIDE_CACHE can't be 'yes': it may be true or false"),
        (("--cache-url", "foo"), {}, "--cache-url can't be that: Redis that keeps the cache"),
        (("--host", "192.0.2.1", "--auth", "off"), {}, "can't listen on 192.0.2.1:8080"),
    ],
)
def test_unusable_settings_are_refused(
    models: Path, arguments: tuple[str, ...], environ: dict[str, str], says: str
) -> None:
    assert_refused(run("serve", "--models", models, *arguments, **environ), says)


@pytest.mark.parametrize("flags", [("--rate-per-key", "5"), ("--cors-origins", "nonsense")])
def test_what_serve_refuses_check_does_too(models: Path, flags: tuple[str, ...]) -> None:
    assert_refused(
        run("check", "--models", models, *flags), f"{flags[0][2:].replace('-', '_')} can't"
    )


def test_unwritable_folder_is_reported_at_the_start(models: Path, tmp_path: Path) -> None:
    """A folder that can't be written is reported at the start."""
    (tmp_path / "file").write_text("")
    server = LiveServer(models=models, data=tmp_path / "file", traced=True)
    server.await_ready()
    assert server.stop() == 0
    errors = [line["event"] for line in server.lines if line.get("level") == "error"]
    assert errors == [f"data: {tmp_path / 'file'} is no folder"]


def test_the_log_says_where_it_listens_and_that_it_stopped(models: Path) -> None:
    server = LiveServer(models=models, traced=True)
    server.await_ready()
    assert server.stop() == 0
    told = {line["event"]: line for line in server.lines}
    assert told["listening"]["url"] == server.url
    assert [line["event"] for line in server.lines[-2:]] == ["stopping", "stopped"]


def test_a_port_in_use_is_refused(models: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run("serve", "--models", models, "--port", port)
    assert_refused(ended, f"can't listen on 127.0.0.1:{port}", "in use")


def test_two_servers_do_not_share_a_port(models: Path, colors_server: LiveServer) -> None:
    ended = run("serve", "--models", models, "--port", colors_server.port)
    assert_refused(ended, f"can't listen on 127.0.0.1:{colors_server.port}")


@pytest.mark.skipif(
    socket.getaddrinfo("localhost", None)[0][0] != socket.AF_INET,
    reason="localhost is ::1 here, and what asks the server asks 127.0.0.1",
)
def test_a_host_may_be_a_name(models: Path) -> None:
    server = LiveServer(models=models, host="localhost", traced=True)
    try:
        server.await_ready()
    finally:
        assert server.stop() == 0


def test_the_table_of_settings_is_printed() -> None:
    ended = run("settings")
    assert ended.returncode == 0
    for row in config_table.describe_settings():
        assert f"| `{row.name}` | `{row.env}` | `{row.flag}` |" in ended.stdout


def test_help_and_version() -> None:
    assert __version__ in run("--version").stdout
    assert "--max-waiting" in run("serve", "--help").stdout
    assert run("bake").returncode == 2
    assert run("serve", "--prot", "1").returncode == 2


@pytest.mark.parametrize(
    "words",
    [
        ("health",),
        ("key", "list"),
        ("serve", "--cache-url", "foo"),
        ("serve", "--host", "0.0.0.0"),
        ("check", "--host", "0.0.0.0"),
    ],
)
def test_what_answers_nothing_imports_nothing_heavy(words: tuple[str, ...], models: Path) -> None:
    """Nor does a start that is refused. NumPy is not there before the server has set it up."""
    command = ("-X", "importtime", "-m", "server", *words)
    env = {"LINESIDE_MODELS": str(models), "LINESIDE_PORT": str(free_port())}
    env["LINESIDE_KEYS_FILE"] = str(models / "keys.jsonl")
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environ_without_coverage() | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    imported = [line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()]
    assert "server.config.settings" in imported
    assert not {"numpy", "cv2", "flask", "granian"} & set(imported)


@pytest.mark.parametrize("command", ["check", "serve"])
def test_nothing_of_tensorflow_is_imported(models: Path, command: str) -> None:
    if command == "check":
        env = {**os.environ, "LINESIDE_MODELS": str(models)}
        command_line = [sys.executable, "-X", "importtime", "-m", "server", "check"]
        text = subprocess.run(
            command_line, cwd=ROOT, env=env, capture_output=True, text=True, check=True
        ).stderr
    else:
        with pytest.MonkeyPatch.context() as environ:
            environ.setenv("PYTHONPROFILEIMPORTTIME", "1")
            server = LiveServer(models=models, traced=True)
        server.await_ready()
        assert server.stop() == 0
        text = "\n".join(line.get("text", "") for line in server.lines)
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in text.splitlines()
        if line.startswith("import time:")
    }
    assert "ai_edge_litert" in imported
    assert not imported & {"tensorflow", "keras", "jax", "torch", "matplotlib", "convert"}


def test_what_watches_the_worker_stays_light(models: Path) -> None:
    with live_server(models=models, traced=True) as server:
        mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert not [name for name in ("numpy", "cv2", "granian", "msgspec") if name in mapped]
        assert "granian" in Path(f"/proc/{server.worker_pid()}/maps").read_text()


def test_no_thread_of_the_server_interrupts_another(models: Path) -> None:
    with live_server(models=models, traced=True) as server:
        policies = {}
        for task in tasks(server.worker_pid()):
            with suppress(FileNotFoundError, ProcessLookupError):
                name = (task / "comm").read_text().strip()
                policies[name] = os.sched_getscheduler(int(task.name))
        assert policies["tokio-rt-worker"] == os.SCHED_BATCH
        assert os.sched_getscheduler(server.worker_pid()) == os.SCHED_BATCH


def test_a_worker_that_dies_is_replaced(models: Path) -> None:
    server = LiveServer(models=models, traced=True)
    try:
        server.await_event("model loaded")
        first = server.worker_pid()
        os.kill(first, 9)
        server.await_event("model loaded")
        assert server.worker_pid() != first
        told = [line["text"] for line in server.lines if "text" in line]
        assert "lineside: the worker was ended by SIGKILL; starting another" in told
    finally:
        server.stop()


def test_a_worker_that_dies_again_at_once_is_given_up() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", DYING], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "lineside: the worker was ended by SIGABRT; starting another",
        "lineside: the worker was ended by SIGABRT; giving up, since the one before it died too",
    ]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_worker_that_ends_by_itself_ends_the_server(code: int) -> None:
    program = (
        "import sys; from server.process.supervisor import supervise;"
        f" sys.exit(supervise(lambda: {code}))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == code

"""Who is measured, and how each is started and asked."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from bench.inputs import Model
from bench.servers.environments import PEERS
from bench.servers.service import Service, free_port

CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Peer:
    """Another server. `command` follows the environment's bin folder; {port} and {cores} in it and
    in `env` are filled in. `note` says in the table what runs."""

    name: str
    title: str
    note: str
    command: tuple[str, ...]
    path: str = "/predict"
    form: str = "multipart"
    file_field: str = "file"
    env: dict[str, str] = field(default_factory=dict)


PEER_LIST = (
    Peer(
        "tutorial",
        "tutorial-style program",
        "Flask's own threads, one unlocked interpreter, Pillow, tensorflow",
        ("python", "tutorial_app.py", "{port}"),
    ),
    Peer(
        "flask",
        "Flask + gunicorn",
        "a worker process a core",
        ("gunicorn", "-w", "{cores}", "-b", "127.0.0.1:{port}", "flask_app:app"),
    ),
    Peer(
        "fastapi",
        "FastAPI + uvicorn",
        "thread pool, one locked interpreter of a thread a core",
        ("uvicorn", "--port", "{port}", "--no-access-log", "fastapi_app:app"),
    ),
    Peer(
        "litserve",
        "LitServe",
        "a worker process a core",
        ("python", "litserve_app.py", "{port}"),
    ),
    Peer(
        "bentoml",
        "BentoML",
        "a worker process a core",
        ("bentoml", "serve", "--host", "127.0.0.1", "-p", "{port}", "bentoml_app:Classify"),
    ),
    Peer(
        "mosec",
        "mosec",
        "a worker process a core",
        ("python", "mosec_app.py", "--address", "127.0.0.1", "--port", "{port}"),
        "/inference",
        "raw",
    ),
    Peer(
        "mlserver",
        "MLServer",
        "a parallel worker a core",
        ("mlserver", "start", "mlserver"),
        "/v2/models/classify/infer",
        "v2json",
        "image",
        {
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_DEBUG": "false",
            "MLSERVER_PARALLEL_WORKERS": "{cores}",
            "MLSERVER_HTTP_PORT": "{port}",
            "MLSERVER_GRPC_PORT": "{port2}",
            "MLSERVER_METRICS_PORT": "{port3}",
        },
    ),
)
PEER_NAMES = tuple(peer.name for peer in PEER_LIST)
NAMES = ("bare", "ours", *PEER_NAMES)


def start_peer(peer: Peer, python: Path, model: Model, log: Path) -> Service:
    """Starts a peer in its environment over the same model."""
    port = free_port()
    values = {"port": port, "port2": free_port(), "port3": free_port(), "cores": CORES}
    program, *arguments = (word.format(**values) for word in peer.command)
    bundle = model.bundle
    env = {
        **os.environ,
        "PATH": f"{python.parent}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(PEERS),
        "MODEL": str(bundle / "model.tflite"),
        "LABELS": str(bundle / "labels.txt"),
        "RECIPE": json.dumps(model.recipe),
        "CORES": str(CORES),
        **{name: value.format(**values) for name, value in peer.env.items()},
    }
    # The program by its full path: the shell's hash of names and PATH stay out of it.
    command = [str(python.parent / program), *arguments]
    return Service(command, env, PEERS, f"http://127.0.0.1:{port}{peer.path}", log)

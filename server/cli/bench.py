"""python -m server bench: measures this device with its bundle, and proposes settings.

In process: each stage of a frame alone, then the frames a second of several interpreters and
threads. Then the whole path, through a server of its own on the loopback, as a camera meets it.
"""

import itertools
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import msgspec

from server.cli.engines import choose_engine
from server.cli.steps import Stage, Steps, Throughput, find_frames, stage_of
from server.config.load import PREFIX, to_environ, write_settings
from server.config.settings import Settings
from server.errors import StartError
from server.store.bundles.engine_choice import engine_options
from server.store.bundles.folder import models_folder
from server.system import process
from server.system.resources import available_cores

# A further thread or interpreter is worth it if it gives this factor of frames a second.
WORTHWHILE_GAIN = 1.03
# Frames that take their turn before one, times this, fit into the proposed deadline.
DEADLINE_SERVICES = 8
START_TIMEOUT_S = 60.0
# Of the time, added for each of the measures of engines if there are several.
ENGINES_SHARE = 0.3
# Settings that the measured server shares with the one that is to come.
SHARED_SETTINGS = (
    "models",
    "model",
    "version",
    "recipe",
    "max_pixels",
    "max_side",
    "wide_interpreter",
    "engine",
    "onnx_providers",
    "openvino_device",
    "delegate",
    "delegate_options",
)


class Served(msgspec.Struct, frozen=True):
    """Through a server with the proposed settings: frames a second of `clients` that wait for
    their answers, and the milliseconds that one client waits for its answer."""

    clients: int
    fps: float
    median: float
    p90: float


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(settings: Settings, proposed: dict[str, int | float]) -> Iterator[int]:
    """Run a server with the models of `settings` and the settings `proposed`, without keys and
    without a journal, for the length of the block. Yields its port.

    Raises StartError if it does not start.
    """
    port = free_port()
    environ = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
    own = to_environ(settings)
    environ |= {key: own[key] for name in SHARED_SETTINGS if (key := PREFIX + name.upper()) in own}
    with tempfile.TemporaryDirectory(prefix="lineside-bench-") as data:
        values = proposed | {"port": port, "host": "127.0.0.1", "data": data, "journal": "false"}
        values |= {"keys_file": f"{data}/keys.jsonl", "auth": "off", "log_level": "error"}
        # Neither a deadline nor a full queue is part of what is measured.
        values |= {"max_wait_ms": 60_000, "max_waiting": crowd(available_cores())}
        environ |= {PREFIX + name.upper(): str(value) for name, value in values.items()}
        child = subprocess.Popen([sys.executable, "-m", "server"], env=environ)
        try:
            _await_ready(child, port)
            yield port
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(settings.stop_timeout + 5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _await_ready(child: "subprocess.Popen[bytes]", port: int) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        if child.poll() is not None:
            raise StartError(f"the server to be measured ended with exit code {child.returncode}")
        # Not listening yet is no error.
        with (
            suppress(OSError, HTTPException),
            closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection,
        ):
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.02)
    raise StartError(f"the server to be measured was not ready in {START_TIMEOUT_S:g} s")


def crowd(cores: int) -> int:
    """Return how many clients at once keep every interpreter busy."""
    return 4 * cores


def through_server(port: int, data: bytes, clients: int, seconds: float) -> Served:
    """Measure `clients` that post `data` and wait for the answer, for `seconds`; then one alone.

    Raises StartError if an answer is an error.
    """

    def post(until: float, took: list[float]) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        # At least two, however slow, since a quantile needs them.
        while time.perf_counter() < until or len(took) < 2:
            start = time.perf_counter()
            connection.request("POST", "/v1/recognize", data, {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise StartError(f"the server to be measured answered {answer.status}")
            took.append(time.perf_counter() - start)
        connection.close()

    def together(count: int, seconds: float) -> tuple[list[float], float]:
        start, took = time.perf_counter(), list[float]()
        with ThreadPoolExecutor(count) as pool:
            posting = [pool.submit(post, start + seconds, took) for _ in range(count)]
        for each in posting:
            each.result()
        return took, time.perf_counter() - start

    together(1, seconds / 8)
    crowd, elapsed = together(clients, seconds / 2)
    alone = stage_of(together(1, seconds / 2)[0])
    return Served(clients, round(len(crowd) / elapsed, 1), alone.median, alone.p90)


class Figures(msgspec.Struct, frozen=True):
    """All figures. stages: by frame (`sample`, `720p`, `1080p`), then by stage.

    `python -m convert search --device` reads model, version, sha256, machine, runtime and the
    median inference of the sample from an exported file.
    """

    model: str
    version: int
    sha256: str
    measured_at: str
    machine: str
    runtime: str
    cores: int
    stages: dict[str, dict[str, Stage]]
    throughput: tuple[Throughput, ...]
    served: Served | None
    proposed: dict[str, int | float]


def best_of(measured: list[Throughput]) -> Throughput:
    """Return the fewest interpreters and threads that are within WORTHWHILE_GAIN of the fastest."""
    most = max(each.fps for each in measured)
    good = [each for each in measured if each.fps * WORTHWHILE_GAIN >= most]
    return min(good, key=lambda each: (each.interpreters * each.threads, each.threads))


def propose(best: Throughput) -> dict[str, int | float]:
    """Return settings by name for a device that is fastest as `best`.

    A frame takes interpreters / fps seconds of a slot; the deadline leaves it several times that,
    so that it may wait for others, and no longer, since a line wants the newest frame.
    """
    service_ms = best.interpreters / best.fps * 1000
    return {
        "interpreters": best.interpreters,
        "threads_per_interpreter": best.threads,
        "frames_at_once": best.interpreters,
        "max_wait_ms": float(max(50, round(DEADLINE_SERVICES * service_ms, -1))),
    }


def measure(settings: Settings, seconds: float, say: Callable[[str], object] = print) -> Figures:
    """Measure for about `seconds` in all, and `say` each figure as it comes.

    Raises StartError or BundleError if there is no bundle, no frame, or no server.
    """
    process.configure_process()
    bundle = models_folder(settings).verify_default()
    frames, cores = find_frames(bundle), available_cores()
    choose_engine(bundle, settings, frames["sample"], seconds * ENGINES_SHARE, say)
    options = engine_options(bundle, settings.engine_options)
    steps = Steps(bundle, settings.image_limits, options)
    name = f"{bundle.manifest.name}/{bundle.manifest.version}"
    say(f"{name} on {cores} cores of {_machine()}, {steps.pool.engine.runtime}")
    stages = {}
    for kind, data in frames.items():
        stages[kind] = steps.stages(data, seconds * 0.3 / len(frames))
        parts = ", ".join(f"{stage} {took.median:.2f}" for stage, took in stages[kind].items())
        say(f"{kind:>7} ({len(data) / 1000:.0f} kB), ms on one thread: {parts}")
    pairs = itertools.product(range(1, cores + 2), range(1, cores + 1))
    tried = [(size, threads) for size, threads in pairs if threads == 1 or size * threads <= cores]
    throughput = []
    for size, threads in tried:
        each = steps.throughput(frames["720p"], size, threads, seconds * 0.4 / len(tried))
        throughput.append(each)
        say(
            f"{size} interpreter{'s' * (size > 1)} of {threads} thread{'s' * (threads > 1)}:"
            f" {each.fps:.1f} frames/s of 720p"
        )
    best = best_of(throughput)
    proposed = propose(best)
    with served(settings, proposed) as port:
        whole = through_server(port, frames["720p"], crowd(cores), seconds * 0.3)
    say(
        f"through HTTP: {whole.fps:.1f} frames/s of {whole.clients} clients on this machine;"
        f" one alone waits {whole.median:.1f} ms"
    )
    return Figures(
        model=bundle.manifest.name,
        version=bundle.manifest.version,
        sha256=bundle.manifest.model_sha256,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=_machine(),
        runtime=steps.pool.engine.runtime,
        cores=cores,
        stages=stages,
        throughput=tuple(throughput),
        served=whole,
        proposed=proposed,
    )


def _machine() -> str:
    board = Path("/proc/device-tree/model")
    try:
        return board.read_text().strip("\0 \n")
    except OSError:
        return f"{platform.node()} ({platform.machine()})"


def run(
    settings: Settings,
    seconds: float,
    settings_file: Path | None = None,
    export: Path | None = None,
) -> int:
    """Measure and print; write the figures beside the bundle and to `export`, and the proposed
    settings into `settings_file`, if there are these. Return the exit code.

    Raises what `measure` raises, StartError if `export` can't be written, and SettingsError if the
    settings file can't be.
    """
    figures = measure(settings, seconds)
    folder = Path(settings.models) / figures.model
    file = folder / f"bench-{platform.node() or 'device'}.json"
    text = json.dumps(msgspec.to_builtins(figures), indent=1) + "\n"
    try:
        file.write_text(text)
        print(f"wrote {file}")
    except OSError as error:
        print(f"{file} can't be written ({error.strerror}), so the figures are only printed")
    if export is not None:
        try:
            export.write_text(text)
        except OSError as error:
            raise StartError(f"--export {export} can't be written: {error.strerror}") from None
        print(f"wrote {export}, which `convert search --device` reads")
    if settings_file is not None:
        write_settings(settings_file, figures.proposed)
        print(f"wrote the proposed settings into {settings_file}; they count from the next start:")
    else:
        print("proposed for the settings file (`bench --write` sets them there), from the fewest")
        print("interpreters that are as fast as any:")
    for name, value in figures.proposed.items():
        print(f"{name} = {value}")
    return 0

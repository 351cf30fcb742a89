"""python -m server bench: what this device does with its bundle, and the settings that suit it.

In process: each stage of a frame alone, then the frames a second of several interpreters and
threads. Then the whole path, through a server of its own on the loopback, as a camera meets it.
"""

import itertools
import json
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from server.cli.bench_server import Served, crowd, served, through_server
from server.cli.bench_steps import Stage, Steps, Throughput, find_frames
from server.config.load import write_settings
from server.config.settings import Settings
from server.recognition.interpreter import runtime
from server.store.bundles.folder import models_folder
from server.system import process
from server.system.resources import available_cores

# More than this share of frames a second more is worth a further thread or interpreter.
WORTH = 1.03
# Frames that take their turn before one, times this, fit into the proposed deadline.
DEADLINE_SERVICES = 8


class Figures(msgspec.Struct, frozen=True):
    """All that was measured. stages: by frame (`sample`, `720p`, `1080p`), then by stage."""

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
    """The fewest interpreters and threads that are within WORTH of the most frames a second."""
    most = max(each.fps for each in measured)
    good = [each for each in measured if each.fps * WORTH >= most]
    return min(good, key=lambda each: (each.interpreters * each.threads, each.threads))


def propose(best: Throughput) -> dict[str, int | float]:
    """Settings by name for a device that is fastest as `best`.

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
    """Measures for about `seconds` in all, and says each figure as it comes.

    Raises StartError where there is no bundle, no frame, or no server to be had.
    """
    process.configure_process()
    bundle = models_folder(settings).verify_default()
    steps = Steps(bundle, settings.image_limits)
    frames, cores = find_frames(bundle), available_cores()
    name = f"{bundle.manifest.name}/{bundle.manifest.version}"
    say(f"{name} on {cores} cores of {_machine()}, {runtime()}")
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
        sha256=bundle.manifest.sha256.get("model.tflite", ""),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=_machine(),
        runtime=runtime(),
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


def run(settings: Settings, seconds: float, settings_file: Path | None = None) -> int:
    """Measures, prints, and writes the figures beside the bundle, and the proposed settings into
    `settings_file` if one is given; returns the exit code.

    Raises what `measure` raises, and SettingsError if the settings file can't be written.
    """
    figures = measure(settings, seconds)
    folder = Path(settings.models) / figures.model
    file = folder / f"bench-{platform.node() or 'device'}.json"
    try:
        file.write_text(json.dumps(msgspec.to_builtins(figures), indent=1) + "\n")
        print(f"wrote {file}")
    except OSError as error:
        print(f"{file} can't be written ({error.strerror}), so the figures are only printed")
    if settings_file is not None:
        write_settings(settings_file, figures.proposed)
        print(f"wrote the proposed settings into {settings_file}; they count from the next start:")
    else:
        print("proposed for the settings file (`bench --write` sets them there), from the fewest")
        print("interpreters that are as fast as any:")
    for name, value in figures.proposed.items():
        print(f"{name} = {value}")
    return 0

"""The conditions of deploy/prometheus/rules/alerts.yml, on this server's own metrics.

Names, severities, bounds and times are those of the rules, which a test compares. Prometheus stays
the watcher that wakes people: it sees a server that is gone, and keeps its past over restarts.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec

from server.observe.series import History

Severity = Literal["critical", "warning"]
# The routes of single frames, in any protocol, as in recording.yml.
FRAME_ROUTES = (
    "/v1/recognize|/classify|/predict|/api/recognize(_cached)?|/v2/.+/infer"
    "|/v1/models/.+:(predict|classify)"
)
REFUSALS = (
    "OVERLOADED",
    "NOT_READY",
    "DEADLINE_EXCEEDED",
    "SUPERSEDED",
    "RATE_LIMITED",
    "STALE_FRAME",
)
# Frames of a camera in five minutes, and verdicts in fifteen, below which no share is taken.
FRAMES_MIN, VERDICTS_MIN = 3, 9
# Shares of memory used, and of a disk free, that are out of bounds beyond.
MEMORY_MAX, DISK_FREE_MIN = 0.8, 0.1
_FRAME = re.compile(FRAME_ROUTES)


class Found(msgspec.Struct, frozen=True):
    """One condition that holds now. subject: of what: a camera, a model, an output. value: the one
    that is out of bounds. text: a sentence. detail: tells several of one subject apart."""

    subject: str
    value: float
    text: str
    detail: str = ""


class Rule(msgspec.Struct, frozen=True):
    """One alert. for_s: seconds for which the condition holds before it fires. bound: beyond which
    a value is out of bounds. find: yields what is."""

    name: str
    severity: Severity
    for_s: float
    bound: float
    find: Callable[[History, float], Iterator[Found]]


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def _not_ready(history: History, bound: float) -> Iterator[Found]:
    for _, value in history.latest("ready"):
        if value == bound:
            yield Found("", value, "No model serves: every frame is refused.")


def _golden(history: History, bound: float) -> Iterator[Found]:
    for labels, value in history.latest("golden_misses"):
        if value > bound:
            yield Found(
                labels["model"], value, "Its golden frames get other labels: frames are refused."
            )


def _delegate(history: History, bound: float) -> Iterator[Found]:
    for labels, value in history.latest("delegate_failed"):
        if value > bound:
            yield Found(
                labels["model"], value, "Its delegate failed: it runs on the CPU, more slowly."
            )


def _is_frame(labels: dict[str, str]) -> bool:
    return bool(_FRAME.fullmatch(labels["route"]))


def _slow(history: History, bound: float) -> Iterator[Found]:
    seconds = history.quantile("request_duration_seconds_bucket", 0.99, 300, _is_frame)
    if seconds is not None and seconds > bound:
        yield Found("", seconds, f"1 in 100 frames takes {seconds:.2g} s or more.")


def _requests(history: History) -> float:
    return history.total("requests_total", 300, _is_frame)


def _errors(history: History, bound: float) -> Iterator[Found]:
    def failed(labels: dict[str, str]) -> bool:
        status = labels["status"]
        return _is_frame(labels) and status[0] in "45" and status not in ("429", "503")

    if every := _requests(history):
        share = history.total("requests_total", 300, failed) / every
        if share > bound:
            yield Found("", share, f"{_percent(share)} of the frames are answered with an error.")


def _refusing(history: History, bound: float) -> Iterator[Found]:
    every = _requests(history)
    for reason in REFUSALS if every else ():

        def refused(labels: dict[str, str], reason: str = reason) -> bool:
            return _is_frame(labels) and labels["reason"] == reason

        share = history.total("request_errors_total", 300, refused) / every
        if share > bound:
            yield Found(reason, share, f"{_percent(share)} of the frames are refused: {reason}.")


def _cameras(history: History, name: str, window_s: float) -> dict[str, list[tuple[str, float]]]:
    """Return, by camera, the increases of a counter by its other label."""
    by_camera: dict[str, list[tuple[str, float]]] = {}
    for labels, count in history.increases(name, window_s):
        camera = labels["camera"]
        other = next((value for key, value in labels.items() if key != "camera"), "")
        if camera != "other":
            by_camera.setdefault(camera, []).append((other, count))
    return by_camera


def _camera_failing(history: History, bound: float) -> Iterator[Found]:
    for camera, counts in _cameras(history, "camera_frames_total", 300).items():
        every = sum(count for _, count in counts)
        failed = sum(count for result, count in counts if result != "answered")
        if every >= FRAMES_MIN and failed / every > bound:
            yield Found(camera, failed / every, "None of its frames gets a label.")


def _fail_run(history: History, bound: float) -> Iterator[Found]:
    for labels, runs in history.increases("camera_fail_runs_total", 300):
        if runs > bound:
            yield Found(labels["camera"], runs, "One part after the other fails.")


def _unsure(history: History, bound: float) -> Iterator[Found]:
    for camera, counts in _cameras(history, "camera_verdicts_total", 900).items():
        every = sum(count for _, count in counts)
        share = dict(counts).get("unsure", 0.0) / every if every >= VERDICTS_MIN else 0.0
        if share > bound:
            yield Found(camera, share, f"{_percent(share)} of its frames are unsure.")


def _unhealthy(history: History, bound: float) -> Iterator[Found]:
    frames = _cameras(history, "camera_frames_total", 300)
    for camera, problems in _cameras(history, "camera_image_problems_total", 300).items():
        answered = dict(frames.get(camera, ())).get("answered", 0.0)
        problem, most = max(problems, key=lambda each: each[1])
        if answered and most / answered > bound:
            text = f"{_percent(most / answered)} of its frames are unhealthy: {problem}."
            yield Found(camera, most / answered, text)


def _silent(history: History, bound: float) -> Iterator[Found]:
    for labels, at in history.latest("camera_last_frame_timestamp_seconds"):
        silence = history.wall - at
        if labels["camera"] != "other" and bound < silence < 86_400:
            yield Found(labels["camera"], silence, f"No frame for {silence / 60:.0f} minutes.")


def _load_slow(history: History, bound: float) -> Iterator[Found]:
    serving = {(each["model"], each["version"]) for each, _ in history.latest("model_info")}
    for labels, seconds in history.latest("model_load_seconds"):
        if seconds > bound and (labels["model"], labels["version"]) in serving:
            name = f"{labels['model']}/{labels['version']}"
            yield Found(name, seconds, f"It took {seconds:.1f} s to load.")


def _drift(history: History, bound: float) -> Iterator[Found]:
    for labels, ratio in history.latest("drift_ratio"):
        if ratio > bound:
            text = f"Its {labels['signal']} is off its baseline by {ratio:.2f}."
            yield Found(labels["model"], ratio, text, labels["signal"])


def _throttled(history: History, bound: float) -> Iterator[Found]:
    for labels, value in history.latest("device_throttled"):
        if value > bound:
            yield Found(labels["reason"], value, "The device is slowed down.")
    for _, count in history.increases("device_thermal_throttles_total", 300):
        if count > bound:
            yield Found("core_heat", count, "The device is slowed down.")


def _memory(history: History, bound: float) -> Iterator[Found]:
    for scope, used in history.ratios("memory_used_bytes", "memory_limit_bytes", "scope"):
        if used > bound:
            yield Found(scope, used, f"{_percent(used)} of the memory is used.")


def _disk(history: History, bound: float) -> Iterator[Found]:
    for folder, free in history.ratios("disk_free_bytes", "disk_size_bytes", "folder"):
        if free < bound:
            yield Found(folder, free, f"{_percent(free)} of the disk of its folder is free.")


def _rising(
    name: str, window_s: float, text: str, label: str = "", results: Sequence[str] = ()
) -> Callable[[History, float], Iterator[Found]]:
    """Return what finds counters that rose. results: of the label `result`; empty: all."""

    def find(history: History, bound: float) -> Iterator[Found]:
        counts: dict[str, float] = {}
        for labels, count in history.increases(name, window_s):
            if not results or labels["result"] in results:
                subject = labels.get(label, "")
                counts[subject] = counts.get(subject, 0.0) + count
        for subject, count in counts.items():
            if count > bound:
                yield Found(subject, count, text.format(f"{count:.0f}"))

    return find


def _gone(name: str, label: str, text: str) -> Callable[[History, float], Iterator[Found]]:
    """Return what finds the other sides that are not connected."""

    def find(history: History, bound: float) -> Iterator[Found]:
        for labels, value in history.latest(name):
            if value == bound:
                yield Found(labels[label], value, text)

    return find


def _waiting(history: History, bound: float) -> Iterator[Found]:
    rises = {labels["output"]: rise for labels, rise in history.increases("output_waiting", 600)}
    for labels, count in history.latest("output_waiting"):
        if count > bound and rises.get(labels["output"], 0.0) > 0:
            yield Found(labels["output"], count, f"{count:.0f} messages wait, and more come.")


RULES = (
    Rule("LinesideNotReady", "critical", 60, 0, _not_ready),
    Rule("LinesideGoldenCheckMissed", "critical", 0, 2, _golden),
    Rule("LinesideDelegateFailed", "warning", 0, 0, _delegate),
    Rule("LinesideSlow", "warning", 300, 1.5, _slow),
    Rule("LinesideErrors", "critical", 300, 0.05, _errors),
    Rule("LinesideRefusingFrames", "warning", 300, 0.01, _refusing),
    Rule("LinesideCameraFailing", "critical", 120, 0.999, _camera_failing),
    Rule("LinesideCameraFailRun", "warning", 0, 0, _fail_run),
    Rule("LinesideCameraUnsure", "warning", 300, 0.2, _unsure),
    Rule("LinesideImageUnhealthy", "critical", 120, 0.5, _unhealthy),
    Rule("LinesideCameraSilent", "warning", 0, 600, _silent),
    Rule("LinesideModelLoadSlow", "warning", 0, 3, _load_slow),
    Rule("LinesideModelDrift", "warning", 900, 0.2, _drift),
    Rule("LinesideThrottled", "warning", 60, 0, _throttled),
    Rule("LinesideMemoryHigh", "warning", 300, MEMORY_MAX, _memory),
    Rule("LinesideDiskNearlyFull", "warning", 600, DISK_FREE_MIN, _disk),
    Rule(
        "LinesideWorkerCrashed",
        "critical",
        0,
        0,
        _rising("worker_crashes_total", 900, "Its worker was ended by a signal {} times."),
    ),
    Rule(
        "LinesideJournalLosing",
        "critical",
        0,
        0,
        _rising("journal_lost_total", 600, "{} rows of the journal were lost."),
    ),
    Rule(
        "LinesideCameraLost",
        "critical",
        60,
        0,
        _gone("camera_connected", "camera", "It gives no frames."),
    ),
    Rule(
        "LinesideTriggerDisconnected",
        "critical",
        60,
        0,
        _gone("trigger_connected", "trigger", "The server can't listen to it."),
    ),
    Rule(
        "LinesideOutputDisconnected",
        "critical",
        60,
        0,
        _gone("output_connected", "output", "It has no connection."),
    ),
    Rule("LinesideOutputWaiting", "warning", 300, 100, _waiting),
    Rule(
        "LinesideOutputLosing",
        "critical",
        0,
        0,
        _rising(
            "output_messages_total",
            600,
            "{} messages were dropped.",
            "output",
            ("dropped", "expired"),
        ),
    ),
)
# What a server can't say of itself.
UNSEEN = ("LinesideDown",)

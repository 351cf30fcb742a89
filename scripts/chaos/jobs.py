"""Clients of jobs and of triggers: what is acknowledged now, and ends later."""

import json
import random
import threading
import time
from typing import Any

from chaos.clients import PAUSE_S, NotAnsweredError, post
from chaos.frames import Frame, draw
from chaos.history import History
from chaos.plant import PULLED, Plant

ENDS = ("succeeded", "failed", "cancelled")
BOUNDARY = "chaos-frame-boundary"
POLL_INTERVAL_S = 0.5
# Seconds after the last fault in which every acknowledged job has to end.
END_TIMEOUT_S = 120.0


class Jobs(threading.Thread):
    """Sends a job of one or two frames every `interval_s` seconds until `stop`, and follows each
    that was acknowledged to its end."""

    def __init__(
        self,
        plant: Plant,
        history: History,
        frames: dict[str, Frame],
        interval_s: float,
        seed: int,
    ) -> None:
        super().__init__(name="jobs", daemon=True)
        self._plant, self._history, self._frames = plant, history, frames
        self._interval_s = interval_s
        self._rng = random.Random(seed)
        self._stopping = threading.Event()
        # The job's id and what is known of its end, by operation.
        self._open: dict[str, str] = {}
        self._ended: dict[str, str] = {}

    def run(self) -> None:
        number, due = 0, time.monotonic()
        while not self._stopping.is_set():
            if time.monotonic() >= due:
                number += 1
                due = time.monotonic() + self._interval_s
                self._submit(f"job-{number}")
            self._look()
            self._stopping.wait(min(self._interval_s, POLL_INTERVAL_S))

    def _submit(self, op: str) -> None:
        frames = [draw(self._frames, self._rng) for _ in range(self._rng.choice((1, 1, 2)))]
        names = [frame.name for frame in frames]
        headers = {
            "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
            "X-Request-Id": op,
        }
        self._history.record(op, "job", "invoke", frames=names)
        try:
            answer = post(self._plant, f"/v1/jobs?part={op}", _form(frames), headers)
        except NotAnsweredError as end:
            self._history.record(op, "job", end.event, frames=names, **end.fields)
            if end.event == "lost":
                self._stopping.wait(PAUSE_S)
        else:
            self._history.record(op, "job", "ok", frames=names, job=answer["job_id"])
            self._open[op] = answer["job_id"]

    def _look(self) -> None:
        """Ask for every job that has not ended."""
        for op, job in list(self._open.items()):
            status, body = self._plant.get(f"/v1/jobs/{job}")
            if status == 404:
                self._note(op, "gone", {})
            elif status == 200 and (found := json.loads(body))["status"] in ENDS:
                self._note(op, "ended", found)
            elif status == 0:
                return

    def _note(self, op: str, event: str, found: dict[str, Any]) -> None:
        self._history.record(op, "job", event, **_end_of(found))
        self._ended[op] = self._open.pop(op)

    def finish(self) -> None:
        """Wait for the jobs that have not ended, and look once more at all that have."""
        until = time.monotonic() + END_TIMEOUT_S
        while self._open and time.monotonic() < until:
            self._look()
            time.sleep(POLL_INTERVAL_S)
        for op in self._open:
            self._history.record(op, "job", "endless")
        for op, job in self._ended.items():
            status, body = self._plant.get(f"/v1/jobs/{job}")
            found = json.loads(body) if status == 200 else {}
            self._history.record(op, "job", "final", http=status, **_end_of(found))

    def stop(self) -> None:
        self._stopping.set()


def _form(frames: list[Frame]) -> bytes:
    head = (
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=file; filename=%d.jpg\r\n"
        "Content-Type: image/jpeg\r\n\r\n"
    )
    parts = [(head % index).encode() + frame.data + b"\r\n" for index, frame in enumerate(frames)]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def _end_of(found: dict[str, Any]) -> dict[str, Any]:
    """Return what the account needs of a job's JSON."""
    if not found:
        return {}
    results = []
    for frame in found.get("frames") or []:
        result, error = frame.get("result"), frame.get("error")
        best = result["predictions"][0]["label"] if result and result["predictions"] else None
        verdict = result["verdict"] if result else None
        code = error["code"] if error else None
        results.append({"label": best, "verdict": verdict, "code": code})
    error = found.get("error")
    return {
        "state": found["status"],
        "finished_at": found.get("finished_at"),
        "code": error["code"] if error else None,
        "results": results,
    }


class Triggers(threading.Thread):
    """Asks for a fresh frame of a pulled camera every `interval_s` seconds until `stop`."""

    def __init__(
        self, plant: Plant, history: History, names: list[str], interval_s: float, seed: int
    ) -> None:
        super().__init__(name="trigger", daemon=True)
        self._plant, self._history, self._names = plant, history, names
        self._interval_s = interval_s
        self._rng = random.Random(seed)
        self._stopping = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._stopping.wait(self._interval_s):
            number += 1
            op, name = f"trigger-{number}", self._rng.choice(self._names)
            self._history.record(op, "trigger", "invoke", frame=name)
            path = f"/v1/cameras/{PULLED}{name}/trigger?part={op}"
            try:
                post(self._plant, path, b"", {"X-Request-Id": op})
            except NotAnsweredError as end:
                self._history.record(op, "trigger", end.event, frame=name, **end.fields)
            else:
                self._history.record(op, "trigger", "ok", frame=name)

    def stop(self) -> None:
        self._stopping.set()

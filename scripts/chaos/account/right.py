"""Finds what is wrong with an answer, by the frame that was sent."""

from collections.abc import Sequence
from typing import Any

from chaos.frames import DAMAGED, expected


def answer_fault(
    frame: str, label: str | None, verdict: str | None, *, at_once: bool = False
) -> str:
    """Return what is wrong with an answer to the frame of that name; empty if nothing is. at_once:
    it came in time and has a verdict, so that only the right one will do."""
    right = expected(frame)
    if right.refused:
        return f"has the label {label}, of a frame that is damaged"
    if verdict == "pass" and right.verdict != "pass":
        return f"has the verdict pass, of a frame that is {frame}"
    if right.label and label != right.label:
        return f"has the label {label}, and {right.label} is right"
    # Triton's protocol has no verdict; that of an answer that comes late is unsure.
    allowed = (right.verdict,) if at_once else (None, right.verdict, "unsure")
    if right.verdict and verdict not in allowed:
        return f"has the verdict {verdict}, and {right.verdict} is right"
    return ""


def job_fault(frames: Sequence[str], end: dict[str, Any]) -> str:
    """Return what is wrong with the end of a job; empty if nothing is."""
    state, code, results = end["state"], end["code"], end["results"]
    if state == "succeeded" and len(results) != len(frames):
        return f"has {len(results)} results for {len(frames)} frames"
    for name, result in zip(frames, results, strict=False):
        if result["label"] is not None:
            if fault := answer_fault(name, result["label"], result["verdict"]):
                return fault
        elif state == "succeeded":
            return f"succeeded without a label for the frame {name}"
    if state == "failed" and (not code or code == "INTERNAL"):
        return f"failed by {code}"
    if state == "failed" and code == "UNDECODABLE_IMAGE" and DAMAGED not in frames:
        return f"failed by {code}, and no frame of it is damaged"
    return ""

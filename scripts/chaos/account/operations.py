"""Accounts for each operation by what its client saw."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from chaos.account.ledger import Ledger
from chaos.account.right import answer_fault, job_fault
from chaos.account.windows import Faults
from chaos.frames import DAMAGED
from chaos.history import Entry

# Kinds of operations whose answer is one frame's.
FRAMES = ("frame", "triton-http", "triton-grpc", "slow", "large")
# Of these, those whose answer has a verdict. A late frame of them is refused.
JUDGED = ("frame", "slow", "large")
ENDS = ("ok", "refused", "lost")
JOB_EVENTS = ("ended", "gone", "endless", "final")
# Statuses by which a frame that is not at fault may be refused; Triton's clients have texts.
REFUSALS = (
    *(408, 429, 503),
    *("408", "429", "503", "StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"),
    "StatusCode.RESOURCE_EXHAUSTED",
)
# Of a frame that is at fault.
REJECTIONS = (*REFUSALS, 400, 415, 422, "400", "415", "422", "StatusCode.INVALID_ARGUMENT")


class Operation(NamedTuple):
    """An operation with its end: `ok`, `refused`, `lost`, or `open` if it has none. frames: the
    names of its frames. later: what was seen of a job after its acknowledgement."""

    op: str
    kind: str
    began: float
    ended: float
    event: str
    frames: tuple[str, ...]
    fields: dict[str, Any]
    later: Mapping[str, Entry]

    def __str__(self) -> str:
        return f"{self.op} ({self.kind}: {', '.join(self.frames)})"


def read_operations(by_op: Mapping[str, Sequence[Entry]], ledger: Ledger) -> Iterator[Operation]:
    """Yield the operations of a history. An operation that begins or ends twice is a finding."""
    for op, entries in by_op.items():
        begins = [entry for entry in entries if entry.event == "invoke"]
        if not begins:
            continue
        begin, kind = begins[0], begins[0].kind
        mine = [entry for entry in entries if entry.kind == kind]
        ends = [entry for entry in mine if entry.event in ENDS]
        if len(begins) != 1 or len(ends) > 1:
            ledger.find(f"{op}: {len(begins)} beginnings and {len(ends)} ends in the history")
        end = ends[0] if ends else begin
        names = begin.fields.get("frames") or [begin.fields["frame"]]
        later = {entry.event: entry for entry in mine if entry.event in JOB_EVENTS}
        event = end.event if ends else "open"
        yield Operation(op, kind, begin.at, end.at, event, tuple(names), end.fields, later)


class OperationCheck:
    """Accounts for operations one by one."""

    def __init__(self, faults: Faults, ledger: Ledger) -> None:
        self._faults = faults
        self._ledger = ledger

    def check(self, operation: Operation) -> None:
        self._ledger.count(operation.kind, "sent")
        match operation.event:
            case "ok" if operation.kind == "job":
                self._check_job(operation)
            case "ok" if operation.kind == "trigger":
                pass  # by its row and its messages
            case "ok":
                self._check_answer(operation)
            case "refused":
                self._check_refusal(operation)
            case "lost" if operation.kind == "cut":
                self._ledger.count("cut", "lost while down")
            case "lost":
                self._check_lost(operation)
            case _:
                self._unaccounted(operation, "has no end")

    def _unaccounted(self, operation: Operation, why: str) -> None:
        self._ledger.unaccounted(operation.kind, f"{operation} {why}; {operation.fields}")

    def _check_answer(self, operation: Operation) -> None:
        fields = operation.fields
        at_once = operation.kind in JUDGED
        fault = answer_fault(
            operation.frames[0], fields["label"], fields["verdict"], at_once=at_once
        )
        if not fault and fields.get("version") not in (None, 1):
            fault = f"was answered by version {fields['version']}, which is broken"
        if fault:
            self._unaccounted(operation, fault)
        else:
            self._ledger.count(operation.kind, "right")

    def _check_refusal(self, operation: Operation) -> None:
        status, code = operation.fields.get("status"), operation.fields.get("code")
        # A large frame that ended the server is refused from then on.
        at_fault = DAMAGED in operation.frames or operation.kind == "large"
        if not code or status not in (REJECTIONS if at_fault else REFUSALS):
            self._unaccounted(operation, f"was refused by {status} {code}")
            return
        self._ledger.count(operation.kind, "refused")
        self._ledger.refusals[f"{status} {code}"] += 1

    def _check_lost(self, operation: Operation) -> None:
        if self._faults.was_down(operation.began, operation.ended):
            self._ledger.count(operation.kind, "lost while down")
        else:
            self._unaccounted(operation, "lost its connection while the server was up")

    def _check_job(self, operation: Operation) -> None:
        later = operation.later
        final = later.get("final")
        if "endless" in later:
            self._unaccounted(operation, "was acknowledged and never ended")
        elif "gone" in later:
            self._check_gone(operation)
        elif "ended" not in later:
            self._unaccounted(operation, "was acknowledged, and nobody looked at its end")
        elif fault := job_fault(operation.frames, end := later["ended"].fields):
            self._unaccounted(operation, f"{fault}; {end}")
        elif final is None or _is_same_end(final, end) or self._may_be_gone(operation, final):
            self._ledger.count("job", "right" if end["state"] == "succeeded" else "refused")
            if end["code"]:
                self._ledger.refusals[f"job {end['code']}"] += 1
        else:
            self._unaccounted(operation, f"ended twice: {end}, then {final.fields}")

    def _may_be_gone(self, operation: Operation, final: Entry) -> bool:
        """Return whether the results of a job that had ended are gone with its database."""
        gone = final.fields["http"] == 404 or final.fields.get("code") == "STORAGE_FAILED"
        return gone and self._faults.may_lose("jobs", operation.ended)

    def _check_gone(self, operation: Operation) -> None:
        if self._faults.may_lose("jobs", operation.ended):
            self._ledger.count("job", "lost with its database")
        else:
            self._unaccounted(operation, "was acknowledged and is not known any more")


def _is_same_end(final: Entry, end: dict[str, Any]) -> bool:
    return final.fields == end | {"http": 200}

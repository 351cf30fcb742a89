"""Reads a history and accounts for each operation, job, journal row and output message.

An operation may be answered right, refused with a reason, or lost while the server was down.
Whatever else happened is a finding.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from chaos.account.ledger import Account, Ledger
from chaos.account.messages import MessageCheck
from chaos.account.operations import FRAMES, Operation, OperationCheck, read_operations
from chaos.account.right import answer_fault
from chaos.account.windows import UNWRITTEN_S, Faults
from chaos.history import Entry

# The name of a pulled camera is this and the name of the frame that it shows.
PULLED = "pull-"


def account_for(entries: Sequence[Entry], outputs: Iterable[str]) -> Account:
    """Return the account of a history. outputs: the kinds of outputs that get every verdict, of
    `mqtt` and `plc`."""
    ledger, faults = Ledger(), Faults(entries)
    by_op: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_op[entry.op].append(entry)
    operations = list(read_operations(by_op, ledger))
    operation_check = OperationCheck(faults, ledger)
    for operation in operations:
        operation_check.check(operation)
    contents = ContentCheck(operations, ledger)
    _check_journal(entries, operations, faults, ledger, contents)
    for kind in outputs:
        MessageCheck(kind, entries, faults, ledger, contents).check(operations)
    for window in faults.windows:
        if window.failed:
            ledger.find(f"after {window.name} the plant did not come back: {window.failed}")
    for entry in entries:
        if entry.event == "finding":
            ledger.find(entry.fields["text"])
    return Account(
        dict(ledger.counts), ledger.refusals, faults.count(), faults.skipped, ledger.findings
    )


class ContentCheck:
    """Finds wrong labels and verdicts of rows and messages."""

    def __init__(self, operations: Sequence[Operation], ledger: Ledger) -> None:
        self._frames = {operation.op: operation.frames for operation in operations}
        self._ledger = ledger

    def __call__(self, what: str, op: str, camera: str | None, fields: dict[str, Any]) -> None:
        """Check a row or a message, which `what` names, by the frame that was sent as `op` or that
        the pulled camera shows."""
        label, verdict = fields["label"], fields["verdict"]
        if not label:
            if verdict not in (None, "error", "none"):
                self._ledger.find(f"{what} has the verdict {verdict} without a label")
            return
        names = self._frames.get(op)
        if names is None and camera and camera.startswith(PULLED):
            names = (camera.removeprefix(PULLED),)
        if names is None:
            self._ledger.find(f"{what} is of no frame that was sent: {fields}")
            return
        faults = [answer_fault(name, label, verdict) for name in names]
        if all(faults):
            self._ledger.find(f"{what} {faults[0]}")


def _check_journal(
    entries: Sequence[Entry],
    operations: Sequence[Operation],
    faults: Faults,
    ledger: Ledger,
    check_content: ContentCheck,
) -> None:
    """Check the content of each row, and that no answered frame lacks one."""
    labels: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if (entry.kind, entry.event) == ("journal", "row"):
            row = entry.fields["row"]
            labels[entry.op].add(row["label"])
            check_content(f"the journal's row of {entry.op}", entry.op, row["camera"], row)
    for operation in operations:
        if operation.event != "ok" or operation.kind not in FRAMES:
            continue
        ledger.count("journal", "sent")
        if operation.fields["label"] in labels[operation.op]:
            ledger.count("journal", "right")
        elif faults.may_lose("journal", operation.ended):
            ledger.count("journal", "lost with its database")
        elif faults.killed_within(operation.ended, UNWRITTEN_S):
            ledger.count("journal", "not yet written at a kill")
        else:
            ledger.unaccounted("journal", f"{operation} was answered and is not in the journal")

"""Accounts for the messages of one output: that each answer has one, its content, and the order."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from chaos.account.ledger import Ledger
from chaos.account.operations import FRAMES, Operation
from chaos.account.windows import AFTER_S, Faults
from chaos.history import Entry

# Errors with which no frame of a pulled camera, which is never damaged, may be refused.
AT_FAULT = frozenset({None, "", "INTERNAL", "UNDECODABLE_IMAGE"})
ContentCheck = Callable[[str, str, "str | None", dict[str, Any]], None]


class MessageCheck:
    """The messages to the output `kind`, `mqtt` or `plc`, of one history. check_content: finds
    what is wrong with a message by the frame that it is of."""

    def __init__(
        self,
        kind: str,
        entries: Sequence[Entry],
        faults: Faults,
        ledger: Ledger,
        check_content: ContentCheck,
    ) -> None:
        self._kind = kind
        self._faults = faults
        self._ledger = ledger
        self._check_content = check_content
        event = "taken" if kind == "plc" else "acknowledged"
        self._messages = [
            (entry, entry.fields.get("message") or entry.fields)
            for entry in entries
            if (entry.kind, entry.event) == (kind, event)
        ]
        self._twins = _results_by_number(entries) if kind == "plc" else {}
        self._column = f"messages to {kind}"

    def check(self, operations: Sequence[Operation]) -> None:
        self._check_contents()
        self._check_order()
        by_op: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry, message in self._messages:
            by_op[entry.op].append(message)
        for operation in operations:
            # A PLC is not told of which request a message is, if it has no part.
            without_part = self._kind == "plc" and operation.kind.startswith("triton")
            if operation.event == "ok" and not without_part:
                self._check_operation(operation, by_op[operation.op])

    def _check_contents(self) -> None:
        for entry, message in self._messages:
            what = f"the message {message['seq']} to {self._kind} of {entry.op or 'a client'}"
            if entry.op or not self._twins:
                self._check_content(what, entry.op, message["camera"], message)
            elif _result_of(message) not in self._twins[message["seq"]]:
                self._ledger.find(f"{what} is not the one to mqtt: {message}")

    def _check_operation(self, operation: Operation, messages: list[dict[str, Any]]) -> None:
        """Check that no answer lacks its message."""
        if operation.kind == "trigger":
            self._check_trigger(operation, messages)
            return
        for label, number in _expected_labels(operation).items():
            found = sum((message["label"] or "") == label for message in messages)
            self._ledger.count(self._column, "sent", number)
            self._ledger.count(self._column, "right", min(number, found))
            if found >= number:
                continue
            if self._faults.may_lose("outbox", operation.ended):
                self._ledger.count(self._column, "lost with its database", number - found)
            else:
                text = f"{operation} was answered, and its message to {self._kind} is lost"
                self._ledger.unaccounted(self._column, text, number - found)

    def _check_trigger(self, operation: Operation, messages: list[dict[str, Any]]) -> None:
        """Check that a trigger that was taken has a verdict or an error. Those to MQTT count."""
        if self._kind != "mqtt":
            return
        if messages:
            judged = any(message["label"] for message in messages)
            errors = {message["error"] for message in messages if not message["label"]}
            if not judged and errors & AT_FAULT:
                self._ledger.unaccounted("trigger", f"{operation} has the errors {errors}")
                return
            self._ledger.count("trigger", "right" if judged else "refused")
        elif self._faults.may_lose("outbox", operation.ended):
            self._ledger.count("trigger", "lost with its database")
        elif self._faults.was_down(operation.ended, operation.ended + AFTER_S):
            self._ledger.count("trigger", "lost while down")
        else:
            self._ledger.unaccounted("trigger", f"{operation} was taken and has no verdict")

    def _check_order(self) -> None:
        """Check that each stream has every number, in order, and that what came again is marked
        and unchanged."""
        numbering = Numbering()
        for entry, message in self._messages:
            renewed = self._faults.may_renew_outbox(entry.at)
            what = f"message {message['seq']} to {self._kind}"
            match numbering.place(message | {"op": entry.op}, renewed):
                case "again":
                    self._ledger.count(self._column, "again")
                    if not message["redelivered"]:
                        self._ledger.find(f"{what} came again and is not marked: {message}")
                case "changed":
                    self._ledger.find(f"{what} came again with another content: {message}")
                case "gap":
                    self._ledger.find(f"{what} is out of order: {message}")


class Numbering:
    """The numbers of the streams of one output. A PLC is not told the stream, which begins again
    with a new outbox, and may go on with an old one after another start: it is found by what
    follows."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._seen: dict[tuple[str, int], dict[str, Any]] = {}
        self._current = ""

    def place(self, message: dict[str, Any], renewed: bool) -> str:
        """Return what a message is: `next`, `again`, `changed` or `gap`. renewed: a new stream may
        have begun, or messages may be missing."""
        seq = message["seq"]
        same = {name: value for name, value in message.items() if name != "redelivered"}
        stream = message.get("stream")
        streams = [stream] if stream else self._nearest()
        for each in streams:
            # Without a mark it is one that looks the same, of a stream that begins again.
            marked = message["redelivered"] or not renewed
            if marked and self._seen.get((each, seq)) == same:
                self._current = each
                return "again"
            if self._last.get(each, 0) + 1 == seq:
                return self._take(each, seq, same)
        if not renewed:
            changed = any((each, seq) in self._seen for each in streams)
            return "changed" if changed else "gap"
        new = stream or f"stream {len(self._last)}"
        return self._take(new, seq, same)

    def _nearest(self) -> list[str]:
        """Return the streams, first the one of the message before."""
        others = [each for each in self._last if each != self._current]
        return [self._current, *others] if self._last else ["stream 0"]

    def _take(self, stream: str, seq: int, same: dict[str, Any]) -> str:
        self._seen[stream, seq] = same
        self._last[stream] = max(seq, self._last.get(stream, 0))
        self._current = stream
        return "next"


def _expected_labels(operation: Operation) -> Counter[str]:
    """Return how many messages of each label have to follow from an operation."""
    if operation.kind in FRAMES:
        return Counter([operation.fields["label"]])
    if operation.kind == "job" and "ended" in operation.later:
        results = operation.later["ended"].fields["results"]
        return Counter(each["label"] for each in results if each["label"])
    return Counter()


def _results_by_number(entries: Sequence[Entry]) -> dict[int, set[tuple[str, str]]]:
    """Return label and verdict of the messages to MQTT by number: a PLC gets the same ones under
    the same numbers."""
    results: dict[int, set[tuple[str, str]]] = defaultdict(set)
    for entry in entries:
        if (entry.kind, entry.event) == ("mqtt", "published"):
            message = entry.fields["message"]
            results[message["seq"]].add(_result_of(message))
    return results


def _result_of(message: dict[str, Any]) -> tuple[str, str]:
    """Return label and verdict of a message, as a PLC has them."""
    verdict = message["verdict"] or ("error" if message.get("error") else "none")
    return message["label"] or "", verdict

"""Accounts for the messages of one output: that each answer has one, its content, and the order."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from fault_run.account.ledger import Ledger
from fault_run.account.operations import FRAMES, Operation
from fault_run.account.windows import AFTER_S, Faults
from fault_run.history import Entry

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
        first: dict[tuple[str, int], dict[str, Any]] = {}
        last: dict[str, int] = defaultdict(int)
        epoch = 0
        for entry, message in self._messages:
            seq = message["seq"]
            renewed = self._faults.may_lose("outbox", entry.at - AFTER_S)
            if self._kind == "plc" and seq == 1 and last[str(epoch)] > 1 and renewed:
                # A PLC is not told the stream, which begins again with a new outbox.
                epoch += 1
            stream = message.get("stream") or str(epoch)
            same = {name: value for name, value in message.items() if name != "redelivered"}
            again = first.setdefault((stream, seq), same)
            if again is not same:
                self._check_again(again, message)
                continue
            if seq != last[stream] + 1 and not renewed:
                where = f"message {seq} to {self._kind}"
                self._ledger.find(f"{where} came after {last[stream]}, out of order")
            last[stream] = max(last[stream], seq)

    def _check_again(self, first: dict[str, Any], message: dict[str, Any]) -> None:
        self._ledger.count(self._column, "again")
        what = f"message {message['seq']} to {self._kind} came again"
        if any(message[name] != value for name, value in first.items()):
            self._ledger.find(f"{what} with another content: {first}, then {message}")
        if not message["redelivered"]:
            self._ledger.find(f"{what} and is not marked")


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

"""Keeps what the checks count and find."""

from collections import Counter, defaultdict
from typing import NamedTuple


class Account(NamedTuple):
    """counts: by kind and column. refusals: by status and code. faults: how often each was
    injected. skipped: the reason of each that was not. findings: sentences; empty if everything is
    accounted for."""

    counts: dict[str, Counter[str]]
    refusals: Counter[str]
    faults: Counter[str]
    skipped: dict[str, str]
    findings: list[str]


class Ledger:
    """Counts and findings, as the checks write them."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.refusals: Counter[str] = Counter()
        self.findings: list[str] = []

    def count(self, kind: str, column: str, number: int = 1) -> None:
        self.counts[kind][column] += number

    def find(self, text: str) -> None:
        """Note a finding that no operation counts."""
        self.findings.append(text)

    def unaccounted(self, kind: str, text: str, number: int = 1) -> None:
        """Count and note operations of `kind` that nothing accounts for."""
        self.counts[kind]["unaccounted"] += number
        self.findings.append(text)

"""Which metrics an expression of Prometheus's language names, and what an alert compares."""

import re

# What is no metric's name: texts, labels, ranges, groupings, words of the language; then, with the
# groupings gone, what stands before a parenthesis; then numbers.
_SKIPPED = (
    re.compile(
        r'"(?:\\.|[^"\\])*"|\{[^}]*\}|\[[^]]*\]|\b(?:and|or|unless|bool|offset)\b'
        r"|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"
    ),
    re.compile(r"\b[a-z_0-9]+\s*\("),
    re.compile(r"\b\d[\d.e]*\b"),
)
_NAME = re.compile(r"[A-Za-z_:][\w:]*")
_COMPARED = re.compile(r"(.*)\s(?:>|<|==)\s[\d.]+", re.DOTALL)
VARIABLES = {"$__rate_interval": "1m", "$__range": "5m"}


def metrics_of(expr: str) -> set[str]:
    """The metrics that `expr` reads."""
    for skipped in _SKIPPED:
        expr = skipped.sub(" ", expr)
    return set(_NAME.findall(expr))


def compared(expr: str) -> str:
    """What an alert's expression compares with its threshold, which has series even where the
    alert does not fire."""
    found = _COMPARED.fullmatch(expr.strip())
    assert found, f"the alert does not end with a comparison: {expr}"
    return found[1]


def filled(expr: str) -> str:
    """`expr` as Grafana sends it where all of every variable is chosen."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return re.sub(r"\$\w+", ".*", expr)

"""Shows an account as one table, and as JSON."""

from typing import Any

from chaos.account.ledger import Account

COLUMNS = (
    *("sent", "right", "refused", "lost while down", "lost with its database"),
    *("not yet written at a kill", "unaccounted"),
)
# Findings that are shown; JSON has all.
SHOWN_MAX = 20


def as_json(account: Account, seconds: float, seed: int) -> dict[str, Any]:
    """Return everything that is known of a run."""
    return {
        "seconds": seconds,
        "seed": seed,
        "counts": account.counts,
        "refusals": account.refusals,
        "faults": account.faults,
        "skipped": account.skipped,
        "unaccounted": len(account.findings),
        "findings": account.findings,
    }


def as_table(account: Account, seconds: float, seed: int) -> str:
    """Return the table in Markdown, with a line for each skipped fault and each finding."""
    lines = [
        f"{seconds:.0f} s, seed {seed}, {account.faults.total()} faults",
        "",
        "| | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for kind, counts in sorted(account.counts.items()):
        cells = [str(counts[column]) for column in COLUMNS]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    injected = (f"{name} {count}" for name, count in sorted(account.faults.items()))
    lines += ["", "Faults: " + ", ".join(injected)]
    refused = (f"{name} {count}" for name, count in account.refusals.most_common())
    lines += ["Refused by: " + ", ".join(refused)]
    lines += [f"Skipped: {name}: {reason}" for name, reason in sorted(account.skipped.items())]
    lines += [f"UNACCOUNTED: {text}" for text in account.findings[:SHOWN_MAX]]
    if len(account.findings) > SHOWN_MAX:
        lines.append(f"UNACCOUNTED: and {len(account.findings) - SHOWN_MAX} more")
    return "\n".join(lines)

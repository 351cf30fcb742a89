"""Fuzzes every parser of bytes from outside, each in processes of its own.

    nice python scripts/fuzz/fuzz_parsers.py --targets all --inputs 20000 --seed 1

By atheris if it is installed (pip install atheris), else, or with `--engine plain`, by a mutator
of ours. An input may be refused by an error that the target names, or that has a status 4xx. Each
other exception is a finding, and so is an input that takes more than 2 s of the processor, raises
the peak memory by more than the target's bound, or ends or hangs the process. The inputs of
findings are kept in `--keep`; `--again FILE` gives one to its target. Ends with 1 if there was any
finding.
"""

import argparse
import dataclasses
import importlib
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fuzz.runs import Outcome, has_atheris, run_target

GROUPS = tuple(
    f"fuzz.targets.{name}"
    for name in ("images", "messages", "streams", "requests", "settings", "models", "labels")
)
EVER = 10**12


def known_targets() -> dict[str, str]:
    """The targets' names, each with the module that makes it."""
    before = tempfile.tempdir
    # Targets make folders of their own.
    with tempfile.TemporaryDirectory() as tempfile.tempdir:
        names = {
            target.name: group
            for group in GROUPS
            for target in importlib.import_module(group).targets()
        }
    tempfile.tempdir = before
    return names


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as a table in Markdown."""
    rows = [
        "| target | engine | inputs | seconds | peak MB | findings |",
        "|---|---|--:|--:|--:|--:|",
    ]
    total = Outcome("all", "")
    for each in outcomes:
        total.inputs += each.inputs
        total.seconds += each.seconds
        total.findings += each.findings
        total.peak_mb = max(total.peak_mb, each.peak_mb)
    for each in (*outcomes, total):
        rows.append(
            f"| {each.target} | {each.engine} | {each.inputs:,} | {each.seconds:.0f} |"
            f" {each.peak_mb} | {len(each.findings)} |"
        )
    return "\n".join(rows)


def again(file: Path) -> int:
    """Give a kept input to its target, in this process."""
    from fuzz.child import load

    name = file.name.rpartition("-")[0]
    target = load(known_targets()[name], name)
    try:
        print("returned", repr(target.run(file.read_bytes()))[:500])
    except Exception as error:
        if not target.is_refusal(error):
            raise
        print(f"refused by {type(error).__name__}: {error}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--targets", nargs="+", default=["all"], help="names, or `all`")
    parser.add_argument("--inputs", type=int, default=0, help="inputs of each target")
    parser.add_argument("--seconds", type=float, default=0.0, help="seconds of each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("auto", "atheris", "plain"), default="auto")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="folder")
    parser.add_argument("--json", action="store_true", help="a line of JSON a target")
    parser.add_argument("--list", action="store_true", help="the names of the targets")
    parser.add_argument("--again", type=Path, metavar="FILE", help="give a kept input again")
    args = parser.parse_args(arguments)
    if args.again:
        return again(args.again)
    known = known_targets()
    if args.list:
        print(*known, sep="\n")
        return 0
    names = list(known) if args.targets == ["all"] else args.targets
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no target {unknown[0]}: --list shows them")
    engine = args.engine if args.engine != "auto" else "atheris" if has_atheris() else "plain"
    if not args.inputs and not args.seconds:
        args.inputs = 10_000
    outcomes = []
    for name in names:
        outcome = run_target(
            known[name],
            name,
            engine=engine,
            inputs=args.inputs or EVER,
            seconds=args.seconds or EVER,
            seed=args.seed,
            keep=args.keep,
        )
        outcomes.append(outcome)
        if args.json:
            print(json.dumps(dataclasses.asdict(outcome)), flush=True)
        else:
            for finding in outcome.findings:
                print(f"{name}: {json.dumps(finding)}", flush=True)
    if not args.json:
        print(table(outcomes), flush=True)
    return 1 if any(outcome.findings for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())

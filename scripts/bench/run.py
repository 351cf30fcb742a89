"""Lineside beside its own bare limit and beside other servers, on the same model and frames.

    python scripts/bench/run.py --quick --only bare,ours    a minute, for developers
    python scripts/bench/run.py                             all of it; writes docs/benchmark.*
    python scripts/bench/run.py --render docs/benchmark.json

Needs Linux, wrk (Debian: apt install wrk) and `pip install -r scripts/bench/requirements.txt`.
The other servers are installed when first needed, each into .venv-bench/NAME.
"""

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The script's own folder gives way to the two that its packages lie in.
sys.path[0:1] = [str(ROOT), str(ROOT / "scripts")]

from bench import inputs, quick, rounds  # noqa: E402
from bench.report import machine  # noqa: E402
from bench.servers import contestants, environments  # noqa: E402


def names(text: str) -> tuple[str, ...]:
    """Contestants from `a,b,c`. Raises argparse.ArgumentTypeError for an unknown one."""
    picked = tuple(text.split(","))
    for name in picked:
        if name not in contestants.NAMES:
            known = ", ".join(contestants.NAMES)
            raise argparse.ArgumentTypeError(f"there is no {name!r}; there are {known}")
    return picked


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="only bare and ours in close turns, printed")
    add("--only", type=names, default=contestants.NAMES, metavar="A,B", help="these alone")
    add("--bundle", type=Path, default=ROOT / "models" / "parts" / "1", help="models/NAME/VERSION")
    add("--size", choices=list(inputs.SIZES), default="720p", help="frame of --quick")
    add("--frame", type=Path, metavar="JPEG", help="frame of --quick in place of --size")
    add("--rounds", type=int, help="rounds (3; --quick 5)")
    add("--seconds", type=int, help="length of each measurement (4; --quick 2)")
    add("--pairs", type=int, default=300, help="frames each way for the added latency")
    add("--frames", type=int, default=20_000, help="frames over which memory may grow")
    add("--no-alone", action="store_true", help="leave out what only our server is asked")
    add("--json", type=Path, default=ROOT / "docs" / "benchmark.json", help="result file")
    add("--render", type=Path, metavar="JSON", help="only page and chart, beside a result file")
    return parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with a message where it is wrong."""
    parser = _parser()
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (5 if args.quick else 3)
    args.seconds = args.seconds or (2 if args.quick else 4)
    if args.render:
        return args
    if args.quick and not {"bare", "ours"} >= set(args.only) and args.only != contestants.NAMES:
        parser.error("--quick measures bare and ours; leave it out for the others")
    if args.frame and not args.quick:
        parser.error("--frame is for --quick")
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed (Debian: apt install wrk)")
    if not (args.bundle / "bundle.json").is_file():
        parser.error(f"{args.bundle} holds no bundle.json; --bundle names one models/NAME/VERSION")
    return args


def render(path: Path) -> None:
    """Page and chart beside the result file `path`, named after it."""
    from bench.report import chart
    from bench.report import markdown as report

    result = json.loads(path.read_text())
    picture = path.with_suffix(".png")
    if result.get("rows"):
        chart.draw(result, picture)
    report.write(result, path.with_suffix(".md"), picture)
    rounds.say(f"wrote {path.with_suffix('.md')}")


def measure_all(args: argparse.Namespace, folder: Path) -> None:
    """Rounds over all contestants, then what only ours is asked; saved as it goes."""
    pythons, failures = rounds.install(args.only)
    own = pythons["lineside"]
    model = inputs.lay_out(args.bundle, folder / "models", exact=False)
    frames = inputs.find_frames(folder, own)
    manifest = json.loads((model.bundle / "bundle.json").read_text())
    result = {
        "command": shlex.join(["python", "scripts/bench/run.py", *sys.argv[1:]]),
        "machine": machine.describe(own),
        "rounds": args.rounds,
        "seconds": args.seconds,
        "model": f"{manifest['name']}/{manifest['version']}, {manifest['quantization']},"
        f" {(model.bundle / 'model.tflite').stat().st_size / 1e6:.1f} MB",
        "frames": ", ".join(f"{p.name} ({p.stat().st_size} bytes)" for p in frames.values()),
        "installed_mb": {name: environments.installed_size(p) for name, p in pythons.items()},
        "failures": failures,
    }
    bench = rounds.Bench(
        model=model,
        exact=inputs.lay_out(args.bundle, folder / "exact", exact=True),
        frames=frames,
        labels=rounds.label_frames(own, model, frames),
        pythons=pythons,
        folder=folder,
        seconds=args.seconds,
    )
    rounds.run(bench, args.only, args.rounds, result, args.json)
    if "ours" in args.only and not args.no_alone:
        result["alone"] = rounds.ours_alone(bench, args.rounds, args.pairs, args.frames)
    args.json.write_text(json.dumps(result, indent=1) + "\n")


def measure_quickly(args: argparse.Namespace, folder: Path) -> None:
    """Bare limit and ours by this Python, printed."""
    python = Path(sys.executable)
    model = inputs.lay_out(args.bundle, folder / "models", exact=False)
    frame = args.frame or inputs.find_frames(folder, python)[args.size]
    print(
        quick.table(
            quick.compare(python, model, frame, folder, args.rounds, args.seconds, args.pairs)
        )
    )


def main(argv: list[str] | None = None) -> int:
    """Measures or renders what the command line asks for. Exit code 0."""
    args = parse(argv)
    if args.render:
        render(args.render)
        return 0
    with tempfile.TemporaryDirectory(prefix="lineside-bench.") as name:
        if args.quick:
            measure_quickly(args, Path(name))
            return 0
        measure_all(args, Path(name))
    render(args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

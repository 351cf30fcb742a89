"""`python -m convert federate`: several sites train one model; only weights travel."""

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from convert.cli.arguments import add_place_arguments, add_verdict_arguments
from convert.errors import ConvertError

if TYPE_CHECKING:
    from convert.federation.flower import Security
    from convert.federation.plans import Course, ServerPlan
    from convert.federation.site.take_part import SiteOptions

PORT = 8765
MIN_SITES = 2
_TERMINATED = 128 + signal.SIGTERM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three commands and their options."""
    commands = parser.add_subparsers(metavar="ROLE", required=True, dest="role")
    for role, add, text in (
        ("server", _add_server, "average what the sites train, and write the bundle"),
        ("site", _add_site, "train on this site's photographs for a server"),
        ("simulate", _add_simulate, "divide a folder into sites, and run all on this machine"),
    ):
        add(commands.add_parser(role, help=text, description=text))


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sites", type=int, required=True, help="that take part; all have to")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"to listen at ({PORT})")
    safe = parser.add_argument_group("TLS")
    safe.add_argument("--certificate", type=Path, metavar="PEM", help="of this server")
    safe.add_argument("--key", type=Path, metavar="PEM", help="of the certificate")
    safe.add_argument("--authority", type=Path, metavar="PEM", help="that signed the certificate")
    safe.add_argument(
        "--insecure", action="store_true", help="without TLS: weights can be read on their way"
    )
    _add_course(parser)
    _add_bundle(parser)


def _add_site(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="one sub-folder a class, or a CSV of path,label"
    )
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="where to take part")
    parser.add_argument("--site", metavar="NAME", help="of this site (that of FOLDER)")
    parser.add_argument(
        "--labelled",
        type=Path,
        metavar="DIR",
        help="train on the labelled samples in a server's DATA/samples too",
    )
    parser.add_argument("--labelled-of", metavar="MODEL", help="the model that answered them")
    parser.add_argument(
        "--hold-back",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="of each class, to judge by (0.2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is held back (0)")
    parser.add_argument(
        "--out", type=Path, help="write a bundle here too, checked on this site's frames"
    )
    parser.add_argument("--accept", metavar="LABEL", nargs="+", help="labels of a good part")
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="for decoded frames (FOLDER/../.federation)"
    )
    safe = parser.add_argument_group("TLS")
    safe.add_argument(
        "--authority", type=Path, metavar="PEM", help="that signed the server's certificate"
    )
    safe.add_argument(
        "--insecure", action="store_true", help="without TLS: weights can be read on their way"
    )


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="one sub-folder a class")
    parser.add_argument("--sites", type=int, default=4, help="to divide the folder into (4)")
    parser.add_argument(
        "--concentration",
        type=float,
        default=0.5,
        help="of the Dirichlet distribution of a class over the sites; smaller: less equal (0.5)",
    )
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="for the sites (OUT/.federation)"
    )
    _add_course(parser)
    _add_bundle(parser)


def _add_course(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("training")
    how.add_argument("--alpha", type=float, default=1.0, help="width of MobileNetV2 (1.0)")
    how.add_argument("--size", type=int, default=224, help="sides of its input in pixels (224)")
    how.add_argument(
        "--weights",
        choices=("imagenet", "imagenet-224", "slice", "none"),
        default="imagenet",
        help="to start from, as of `train` (imagenet)",
    )
    how.add_argument("--head-rounds", type=int, default=50, help="of the last layer alone (50)")
    how.add_argument("--head-epochs", type=int, default=5, help="at a site in such a round (5)")
    how.add_argument("--rounds", type=int, default=0, help="of all layers (0)")
    how.add_argument("--local-epochs", type=int, default=1, help="at a site in such a round (1)")
    how.add_argument("--batch", type=int, default=16, help="frames a step (16)")
    how.add_argument(
        "--rate", type=float, help="highest learning rate (5e-6; 1e-3 without ImageNet weights)"
    )
    how.add_argument("--no-flips", action="store_true", help="for parts whose sides differ")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument(
        "--allow-similar-classes",
        action="store_true",
        help="accept names such as good and Good as two classes",
    )


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    where = add_place_arguments(parser, "federated")
    add_verdict_arguments(where)
    checks = parser.add_argument_group("quantisation and validation")
    checks.add_argument("--mode", default="dynamic", help="dynamic, float16 or float32 (dynamic)")
    checks.add_argument(
        "--validate", type=Path, metavar="FOLDER", help="the server's own frames to judge on"
    )
    checks.add_argument(
        "--calibrate", type=Path, metavar="FOLDER", help="the server's own frames to correct biases"
    )
    checks.add_argument(
        "--max-accuracy-drop",
        type=float,
        metavar="POINTS",
        help="of top-1 that may be lost on the sites' frames (0.5)",
    )


def run(args: argparse.Namespace) -> int:
    """Run one side, or all of them, and return the exit code. Raises ConvertError and GateError."""
    from convert.federation import flower
    from convert.terminal import Terminal

    terminal = Terminal()
    # Flower's programs end with the command that started them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    if args.role == "site":
        from convert.federation.site.take_part import take_part

        options = _site_options(args)
        flower.require()
        return take_part(options, terminal)
    if args.role == "simulate":
        from convert.federation.simulation import simulate

        plan = _server_plan(args)
        _check_split(args)
        return simulate(
            args.folder,
            plan,
            args.concentration,
            # Emptied at the start, which a folder of the user's must not be.
            (args.work or args.out / ".federation") / "simulation",
            terminal,
        )
    from convert.federation.server.serve import serve

    plan, security = _server_plan(args), _server_security(args)
    flower.require()
    return serve(plan, args.host, args.port, security, terminal)


def _server_plan(args: argparse.Namespace) -> "ServerPlan":
    from convert.bundle_writer import check_free, next_version
    from convert.cli.arguments import DEFAULT_MIN_PROBABILITY
    from convert.federation.plans import ServerPlan

    if args.sites < MIN_SITES:
        raise ConvertError(f"--sites {args.sites} should be at least {MIN_SITES}")
    if args.mode not in ("dynamic", "float16", "float32"):
        raise ConvertError(f"--mode {args.mode} should be one of dynamic, float16, float32")
    if args.min_probability is not None and not args.accept:
        raise ConvertError("--min-probability does nothing without --accept LABEL")
    least = DEFAULT_MIN_PROBABILITY if args.min_probability is None else args.min_probability
    if not 0 <= least <= 1:
        raise ConvertError(f"--min-probability {least:g} should be in 0..1")
    drop = args.max_accuracy_drop
    if drop is not None and not drop >= 0:
        raise ConvertError(f"--max-accuracy-drop {drop:g} should be a number of points from 0 on")
    for option, folder in (("--validate", args.validate), ("--calibrate", args.calibrate)):
        if folder is not None and not folder.exists():
            raise ConvertError(f"{option} {folder} is not there")
    # Before the sites have worked for it.
    check_free(args.out, args.name, args.version or next_version(args.out, args.name))
    return ServerPlan(
        sites=args.sites,
        course=_course(args),
        name=args.name,
        out=args.out.resolve(),
        version=args.version,
        mode=args.mode,
        source=args.source,
        license=args.license,
        accept=tuple(args.accept or ()),
        min_probability=least,
        max_accuracy_drop=drop,
        validate=args.validate.resolve() if args.validate else None,
        calibrate=args.calibrate.resolve() if args.calibrate else None,
        allow_similar_classes=args.allow_similar_classes,
    )


def _course(args: argparse.Namespace) -> "Course":
    from convert.federation.plans import Course, check_course

    course = Course(
        alpha=args.alpha,
        size=args.size,
        weights=args.weights,
        head_rounds=args.head_rounds,
        head_epochs=args.head_epochs,
        rounds=args.rounds,
        epochs=args.local_epochs,
        batch=args.batch,
        rate=args.rate,
        flips=not args.no_flips,
        seed=args.seed,
    )
    check_course(course)
    return course


def _check_split(args: argparse.Namespace) -> None:
    if not args.concentration > 0:
        raise ConvertError(f"--concentration {args.concentration:g} should be a number above 0")


def _server_security(args: argparse.Namespace) -> "Security":
    from convert.federation.flower import Security

    files = (args.certificate, args.key, args.authority)
    if args.insecure and any(files):
        raise ConvertError("--insecure is without TLS: leave out --certificate, --key, --authority")
    if not args.insecure and not all(files):
        raise ConvertError(
            "TLS needs --certificate, --key and --authority; --insecure does without, for a network"
            " that you trust"
        )
    return Security(*_files(args.authority, args.certificate, args.key))


def _site_options(args: argparse.Namespace) -> "SiteOptions":
    from convert.federation.flower import Security
    from convert.federation.site.take_part import SiteOptions

    if args.insecure and args.authority:
        raise ConvertError("--insecure is without TLS: leave out --authority")
    if not args.insecure and not args.authority:
        raise ConvertError(
            "TLS needs --authority; --insecure does without, for a network that you trust"
        )
    if not 0 <= args.hold_back < 1:
        raise ConvertError(f"--hold-back {args.hold_back:g} should be from 0 to below 1")
    if args.labelled_of and not args.labelled:
        raise ConvertError("--labelled-of does nothing without --labelled")
    if args.labelled and not args.labelled_of:
        raise ConvertError("--labelled needs --labelled-of: the model that answered the samples")
    if args.accept and not args.out:
        raise ConvertError("--accept does nothing without --out")
    host, _, port = args.server.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConvertError(f"--server {args.server} should be HOST:PORT")
    name = args.site or args.folder.resolve().stem
    # It names a folder of work, whose files are removed at the start.
    if Path(name).name != name or name == "..":
        raise ConvertError(f"--site {name} should be a name: without a /, and not . or ..")
    [authority] = _files(args.authority)
    return SiteOptions(
        folder=args.folder,
        server=args.server,
        security=Security(authority),
        name=name,
        labelled=args.labelled,
        labelled_of=args.labelled_of,
        hold_back=args.hold_back,
        seed=args.seed,
        work=args.work or args.folder.resolve().parent / ".federation",
        out=args.out,
        accept=tuple(args.accept or ()),
    )


def _files(*paths: Path | None) -> list[Path | None]:
    for path in paths:
        if path is not None and not path.is_file():
            raise ConvertError(f"{path} is not a file")
    return [path.resolve() if path else None for path in paths]

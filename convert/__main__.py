"""`python -m convert COMMAND`: makes, judges and compares model bundles.

Exit codes: 0 done, 1 can't be done (one sentence on standard error), 2 wrong usage, 3 a gate was
not met and no bundle was written, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from convert.errors import ConvertError
from server.errors import StartError

# Each module has add_arguments(parser) and run(args) -> exit code, and is imported only when its
# command is called: the heavy ones take seconds.
COMMANDS = {
    "imagenet": ("convert.cli.models", "Keras's MobileNetV2 with its ImageNet weights"),
    "keras": ("convert.cli.models", "a .keras or .h5 file or a SavedModel"),
    "saved-model": ("convert.cli.models", "one signature of a SavedModel"),
    "tflite": ("convert.cli.models", "a float32 .tflite"),
    "detector": ("convert.cli.detector", "a .tflite that finds objects in a frame"),
    "pytorch": ("convert.cli.models", "a PyTorch module or exported program"),
    "onnx": ("convert.cli.onnx_models", "an ONNX model that classifies images"),
    "sklearn": ("convert.cli.onnx_models", "a scikit-learn model of plain numbers, by ONNX"),
    "iris": ("convert.cli.iris", "a small model of plain numbers, from scikit-learn's data"),
    "train": ("convert.cli.train", "a classifier trained on a folder of photographs"),
    "federate": ("convert.federation.command", "one model trained at several sites"),
    "search": (
        "convert.cli.search",
        "the best classifier within a latency, searched on a folder of photographs",
    ),
    "check": ("convert.cli.check", "photographs, looked at before a training"),
    "train-anomaly": (
        "convert.cli.train_anomaly",
        "a model that finds defects, learned from good frames alone",
    ),
    "evaluate": ("convert.cli.evaluation", "a bundle judged on labelled frames"),
    "sign": ("convert.cli.sign", "say whose a bundle is, by a private key"),
    "compare": ("convert.cli.evaluation", "several bundles on the same frames"),
}


def parser_for(command: str | None) -> argparse.ArgumentParser:
    """Return the parser, with the arguments of `command` alone filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m convert", description="Makes the bundles that the server serves."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, help_text) in COMMANDS.items():
        chosen = commands.add_parser(name, help=help_text, description=help_text)
        chosen.set_defaults(command=name)
        if name == command:
            import_module(module).add_arguments(chosen)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    command = next((word for word in argv if word in COMMANDS), None)
    # Read when TensorFlow is imported, wherever that happens first.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    args = parser_for(command).parse_args(argv)
    return run(args)


def run(args: argparse.Namespace) -> int:
    """Run the parsed command; an expected failure becomes its sentence and exit code."""
    try:
        code: int = import_module(COMMANDS[args.command][0]).run(args)
    except ConvertError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "convert", "server"):
            raise
        print(
            f"error: {package} is not installed in {sys.prefix}: pip install -r"
            " convert/requirements.txt, in an environment of its own",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        # Whoever read the output has seen enough; the interpreter must not flush it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())

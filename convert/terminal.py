"""The terminal: progress bars, and TensorFlow and native code run without their output on it."""

import gc
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from convert.errors import ConvertError

Advance = Callable[[], None]


class Terminal:
    """Writes to standard output: a moving bar on a terminal, in a log file a line at its start."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Print a line of text, above the bar if there is one."""
        self._console.print(line, markup=False)

    @contextmanager
    def bar(self, text: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Show a bar of `total` steps, `done` of them already; the result advances it by one."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        shown = self._console.is_terminal and total > 0
        if not shown and total > 0:
            self.say(text)
        with Progress(*columns, console=self._console, disable=not shown) as progress:
            task = progress.add_task(text, total=total, completed=done)
            yield lambda: progress.advance(task)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table's lines; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


@contextmanager
def suppress_native_output() -> Iterator[None]:
    """Hold back Python's warnings, and what is written to file descriptors 1 and 2.

    Native libraries log past `sys.stderr`. Where the block fails with anything but a
    ConvertError, what was held back is shown after all. For one thread at a time, since
    descriptors and warning filters belong to the whole process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile("w+b") as held:
        os.dup2(held.fileno(), 1)
        os.dup2(held.fileno(), 2)
        failed = True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
            failed = False
        except ConvertError:
            failed = False
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for target, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, target)
                os.close(copy)
            if failed:
                held.seek(0)
                with os.fdopen(os.dup(2), "wb") as stderr:
                    shutil.copyfileobj(held, stderr)


@contextmanager
def _imports_that_stay() -> Iterator[None]:
    """Keep the garbage collector off the modules of TensorFlow if the block imports them, then and
    later. They are most of all objects and stay to the end, and each of its conversions would walk
    them all."""
    if "tensorflow" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _without_scikit_learn() -> Iterator[None]:
    """Keep Keras from importing scikit-learn if the block imports Keras. It does so for wrappers
    that are not used here, and that is a fifth of TensorFlow's start. Whoever needs it imports it
    later."""
    if "sklearn" in sys.modules:
        yield
        return
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop("sklearn", None)


def tensorflow() -> Any:
    """Return the module `tensorflow`, imported without its log lines.

    Raises ConvertError if it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" not in sys.modules and sys.stdout.isatty():
        print("starting TensorFlow: some seconds, up to a minute the first time", flush=True)
    try:
        with suppress_native_output(), _imports_that_stay(), _without_scikit_learn():
            import tensorflow as tf
    except ImportError as error:
        raise ConvertError(
            f"{error.name} is not installed: pip install -r convert/requirements.txt"
        ) from None
    tf.get_logger().setLevel("ERROR")
    return tf

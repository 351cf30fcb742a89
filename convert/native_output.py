"""Imports TensorFlow and runs native code without their chatter on the terminal."""

import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from convert.errors import ConvertError


@contextmanager
def suppress_native_output() -> Iterator[None]:
    """Holds back Python's warnings, and what is written to file descriptors 1 and 2.

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


def tensorflow() -> Any:
    """The module `tensorflow`, imported without its log lines.

    Raises ConvertError where it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" not in sys.modules and sys.stdout.isatty():
        print("starting TensorFlow: some seconds, up to a minute the first time", flush=True)
    try:
        with suppress_native_output():
            import tensorflow as tf
    except ImportError as error:
        raise ConvertError(
            f"{error.name} is not installed: pip install -r convert/requirements.txt"
        ) from None
    tf.get_logger().setLevel("ERROR")
    return tf

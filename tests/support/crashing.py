"""Run as a program: `python -m server` whose readers of PNG and JPEG files have a fault in them, as
a native library may: a file with the text KILLER ends the process that decodes it by SIGSEGV.

The fault is in every Python process that the server starts: python tests/crashing.py
"""

import importlib.abc
import importlib.util
import io
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image, PngImagePlugin

KILLER = b"lineside-killer"
OF_SIZE = b" eighths of its size"
READERS = ("server.recognition.images.png", "server.recognition.images.jpeg")


def killer(seed: int = 0, kind: str = "PNG", side: int = 16, eighths: int = 0) -> bytes:
    """A picture that ends the process that decodes it; one of its own by `seed`. kind: PNG or
    JPEG. side: in pixels. eighths: of its size at which alone a JPEG does so; 0: at every size."""
    comment, file = f"{KILLER.decode()} {seed}", io.BytesIO()
    if eighths:
        comment += f" at {eighths}{OF_SIZE.decode()}"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", comment)
    how: dict[str, Any] = {"pnginfo": text} if kind == "PNG" else {"comment": comment}
    Image.new("RGB", (side, side), (seed % 256, 0, 255)).save(file, kind, **how)
    return file.getvalue()


class Faulty(importlib.abc.MetaPathFinder):
    """Puts the fault into each reader when it is imported."""

    def __init__(self) -> None:
        self._left = set(READERS)

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if name not in self._left:
            return None
        self._left.remove(name)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        loader: Any = spec.loader
        load = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            decode = module.decode

            def faulty(data: bytes, *args: Any) -> Any:
                this_size = b"%d" % args[-1] + OF_SIZE if OF_SIZE in data else KILLER
                if KILLER in data and this_size in data:
                    signal.raise_signal(signal.SIGSEGV)  # in this thread, as a fault is
                return decode(data, *args)

            module.decode = faulty  # type: ignore[attr-defined]

        loader.exec_module = exec_module
        return spec


def install() -> None:
    """Makes this process's reader faulty."""
    # The machine may take long to write a core file, or to start what takes it; 1 rules out both.
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    sys.meta_path.insert(0, Faulty())


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    tests = Path(__file__).parent
    code = f"import sys; sys.path.append({str(tests)!r})\nfrom crashing import install\ninstall()\n"
    (folder / "sitecustomize.py").write_text(code)
    os.environ["PYTHONPATH"] = str(folder)
    os.execv(sys.executable, [sys.executable, "-m", "server"])

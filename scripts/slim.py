"""slim.py SITE: takes out of an installed runtime what the server never loads, and weighs the rest.

Some wheels bring more than a device needs: accelerators of phones, converters, test suites. That
the server does without what is listed here is tested; after every real install its self-test shows
it again. Fails where the rest is larger than a device should have to store. Standard library only.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

LIMIT_MB = 330
# The packages that the table names one by one; the others are one line.
SHOWN_FROM_MB = 3.0

# Glob patterns below site-packages, each with the reason.
UNUSED = (
    ("ml_dtypes", "number types of LiteRT's converter; its interpreter does not import them"),
    ("ml_dtypes-*.dist-info", "the same"),
    ("ai_edge_litert/libLiteRtWebGpuAccelerator.so", "inference on a GPU, by another interface"),
    ("ai_edge_litert/vendors", "compilers for the NPUs of phones"),
    ("ai_edge_litert/aot", "the same"),
    ("ai_edge_litert/tools", "LiteRT's own benchmark, and editors of model files"),
    ("ai_edge_litert/schema_py_generated.py", "for those tools"),
    ("ai_edge_litert/__pycache__/schema_py_generated.*", "the same"),
    ("ai_edge_litert/*_pb2.py", "the same, by way of protobuf"),
    ("ai_edge_litert/__pycache__/*_pb2.*", "the same"),
    ("google", "protobuf, for those"),
    ("protobuf-*.dist-info", "the same"),
    ("prompt_toolkit", "Celery's interactive shell; its worker is started without"),
    ("wcwidth", "the same"),
    ("click_repl", "the same"),
    ("numpy/**/tests", "NumPy's test suite"),
    ("numpy/f2py", "a compiler of Fortran"),
    ("numpy/distutils", "the same"),
    ("numpy/_core/include", "for compiling against NumPy"),
    ("PIL/_avif*.so", "Pillow's plug-in for AVIF, which is not among the image types read"),
    ("pillow.libs/libavif-*", "the same"),
    ("PIL/_imagingft*.so", "text drawn into images"),
    ("pillow.libs/libfreetype-*", "the same"),
    ("pillow.libs/libharfbuzz-*", "the same"),
    ("bin", "programs to be called by name; the server calls none"),
)
# Wheels keep their shared libraries in a folder of this ending beside the package.
LIBRARIES = ".libs"
PACKAGE_OF = {"opencv_python_headless": "cv2", "pillow": "PIL"}


def unused(site: Path) -> list[Path]:
    """What of `UNUSED` there is below `site`."""
    return [path for pattern, _ in UNUSED for path in sorted(site.glob(pattern))]


def remove(paths: Iterable[Path]) -> None:
    """Removes files and folders."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def weigh(site: Path) -> dict[str, int]:
    """Bytes on disk, counted by allocated blocks as du does, of each package below `site`: the name
    of its folder or module, with its shared libraries, largest first."""
    sizes: dict[str, int] = {}
    for folder, _, files in os.walk(site):
        below = Path(folder).relative_to(site).parts
        for file in files:
            top = below[0] if below else file.partition(".")[0]
            name = top.removesuffix(LIBRARIES)
            name = PACKAGE_OF.get(name, name)
            sizes[name] = sizes.get(name, 0) + os.lstat(Path(folder, file)).st_blocks * 512
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def table(sizes: dict[str, int]) -> str:
    """One line a large package, one for all others, and the sum, in MB (10^6 bytes)."""
    large = {name: size for name, size in sizes.items() if size >= SHOWN_FROM_MB * 1e6}
    rows = [(f"{size / 1e6:6.1f}", name) for name, size in large.items()]
    rest = sum(sizes.values()) - sum(large.values())
    rows.append((f"{rest / 1e6:6.1f}", f"{len(sizes) - len(large)} others"))
    rows.append((f"{sum(sizes.values()) / 1e6:6.1f}", f"MB in all, of {LIMIT_MB} that it may be"))
    return "\n".join(f"{size} {name}" for size, name in rows)


def main() -> int:
    """Exit code: 0 where the runtime is small enough, 1 where not, 2 wrong use."""
    parser = argparse.ArgumentParser(description=__doc__, prog="slim.py")
    parser.add_argument("site", type=Path, help="the folder site-packages of the runtime")
    site = parser.parse_args().site
    if not (site / "ai_edge_litert").is_dir():
        parser.error(f"{site} holds no runtime: there is no ai_edge_litert in it")
    remove(unused(site))
    sizes = weigh(site)
    print(table(sizes))
    if sum(sizes.values()) > LIMIT_MB * 1e6:
        print(f"slim: {site} is larger than {LIMIT_MB} MB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

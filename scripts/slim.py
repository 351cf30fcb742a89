"""slim.py SITE: removes files that the server never loads from an installed runtime.

Some wheels contain more than a device needs: accelerators of phones, converters, test suites. A
test runs the server without the files listed here, and so does the self-test after every
installation. Prints the sizes of the packages, and fails if the runtime without the EXTRAS is
larger than LIMIT_MB. Standard library only.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

LIMIT_MB = 330
# Smaller packages share one line of the table.
SHOWN_FROM_MB = 3.0

# Glob patterns below site-packages, each with the reason.
UNUSED = (
    ("ml_dtypes", "number types of LiteRT's converter; its interpreter does not import them"),
    ("ml_dtypes-*.dist-info", "the same"),
    ("ai_edge_litert/libLiteRtWebGpuAccelerator.so", "inference on a GPU, by another interface"),
    ("ai_edge_litert/vendors", "compilers for the NPUs of phones"),
    ("ai_edge_litert/aot", "the same"),
    ("ai_edge_litert/tools", "LiteRT's own benchmark, and editors of model files"),
    ("ai_edge_litert/schema_py_generated.py", "used by those tools"),
    ("ai_edge_litert/__pycache__/schema_py_generated.*", "the same"),
    ("ai_edge_litert/*_pb2.py", "the same, through protobuf"),
    ("ai_edge_litert/__pycache__/*_pb2.*", "the same"),
    ("google", "protobuf, used by those files"),
    ("protobuf-*.dist-info", "the same"),
    ("prompt_toolkit", "Celery's interactive shell, which the server does not use"),
    ("wcwidth", "the same"),
    ("click_repl", "the same"),
    ("numpy/**/tests", "NumPy's test suite"),
    ("numpy/f2py", "a compiler of Fortran"),
    ("numpy/distutils", "the same"),
    ("numpy/_core/include", "for compiling against NumPy"),
    ("PIL/_avif*.so", "Pillow's plug-in for AVIF, which is no image type that the server reads"),
    ("pillow.libs/libavif-*", "the same"),
    ("PIL/_imagingft*.so", "text drawn into images"),
    ("pillow.libs/libfreetype-*", "the same"),
    ("pillow.libs/libharfbuzz-*", "the same"),
    ("onnxruntime/transformers", "converters of models for ONNX Runtime"),
    ("onnxruntime/quantization", "the same"),
    ("onnxruntime/tools", "the same"),
    ("onnxruntime/datasets", "its examples"),
    ("openvino/tools", "converters of models for OpenVINO; they report their use to Intel"),
    ("openvino_telemetry*", "the same"),
    ("openvino/torch", "a backend of PyTorch"),
    ("openvino/frontend/[jpt]*", "readers of other kinds of models: JAX, Paddle, PyTorch"),
    *(
        (f"openvino/libs/libopenvino_{kind}_frontend.*", "the same")
        for kind in ("gguf", "jax", "paddle", "pytorch", "tensorflow")
    ),
    ("bin", "commands; the server calls none"),
)
# Large packages of extras, which the limit does not count.
EXTRAS = ("grpc", "onnxruntime", "openvino")
# Wheels keep their shared libraries in a folder with this ending, beside the package.
LIBRARIES = ".libs"
PACKAGE_OF = {"opencv_python_headless": "cv2", "pillow": "PIL"}


def unused(site: Path) -> list[Path]:
    """Return the files and folders below `site` that match `UNUSED`."""
    return [path for pattern, _ in UNUSED for path in sorted(site.glob(pattern))]


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def weigh(site: Path) -> dict[str, int]:
    """Return the bytes on disk of each package below `site`, with its shared libraries.

    Counts allocated blocks, as du does. Packages are named by folder or module, largest first.
    """
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
    """Format the sizes in MB (10^6 bytes): a line for each large package, the others, the sum."""
    large = {name: size for name, size in sizes.items() if size >= SHOWN_FROM_MB * 1e6}
    rows = [(f"{size / 1e6:6.1f}", name) for name, size in large.items()]
    rest = sum(sizes.values()) - sum(large.values())
    rows.append((f"{rest / 1e6:6.1f}", f"{len(sizes) - len(large)} others"))
    rows.append((f"{sum(sizes.values()) / 1e6:6.1f}", f"MB in all; the limit is {LIMIT_MB}"))
    return "\n".join(f"{size} {name}" for size, name in rows)


def main() -> int:
    """Return the exit code: 0 if the runtime is small enough, 1 if not, 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, prog="slim.py")
    parser.add_argument("site", type=Path, help="the folder site-packages of the runtime")
    site = parser.parse_args().site
    if not (site / "ai_edge_litert").is_dir():
        parser.error(f"{site} is no runtime: it has no ai_edge_litert")
    remove(unused(site))
    sizes = weigh(site)
    print(table(sizes))
    if sum(size for name, size in sizes.items() if name not in EXTRAS) > LIMIT_MB * 1e6:
        print(f"slim: {site} is larger than {LIMIT_MB} MB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

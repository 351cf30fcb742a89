"""A simulated line camera: writes pictures of machined parts, or posts them at a steady rate.

    python scripts/camera.py write pictures --per-class 400 --seed 1
    python scripts/camera.py post http://127.0.0.1:8080/v1/recognize --rate 20 --count 200
    python scripts/camera.py post --cameras 20 --rate 1 --deadline-ms 200
    python scripts/camera.py surfaces pictures/val --per-class 40 --seed 2 --masks pictures/masks

Needs only numpy and OpenCV, not Lineside's server.
"""

import argparse
import ctypes
import sys
import time
from collections.abc import Sequence
from pathlib import Path

try:
    import cv2
    import numpy as np
except ModuleNotFoundError as missing:
    sys.exit(
        f"camera.py needs the Python module {missing.name}, and {sys.executable} does not have it."
        " Run it with .venv/bin/python, which scripts/serve makes, or install it with"
        " `pip install numpy opencv-python-headless`."
    )
from line_camera.parts import CLASSES, SMALLEST, Picture, render
from line_camera.posting import BURST, Frame, due_times, post, target
from line_camera.surface import KINDS, render_surface


def encode(picture: Picture, rng: np.random.Generator, quality: int) -> bytes:
    """Encode an RGB picture as JPEG, with a random quality near the given one, 1 to 100."""
    drawn = int(np.clip(round(rng.normal(quality, 4.0)), max(quality - 12, 1), 100))
    _, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, drawn]
    )
    return encoded.tobytes()


def write(folder: Path, per_class: int, seed: int, width: int, height: int, quality: int) -> int:
    """Write FOLDER/CLASS/CLASS_00001.jpg and so on; returns how many pictures were written.

    A picture depends on the seed, its class and its number only, not on how many are written.
    Raises OSError when the folder cannot be written.
    """
    for index, kind in enumerate(CLASSES):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(1, per_class + 1):
            rng = np.random.default_rng([seed, index, number])
            body = encode(render(kind, rng, width, height), rng, quality)
            (folder / kind / f"{kind}_{number:05d}.jpg").write_bytes(body)
    return per_class * len(CLASSES)


def write_surfaces(
    folder: Path, kinds: Sequence[str], per_class: int, seed: int, masks: Path | None
) -> int:
    """Write FOLDER/KIND/KIND_00001.jpg and so on, and MASKS/KIND/KIND_00001.png of defects, white
    on the defect; returns how many pictures were written. Raises OSError as `write` does."""
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(1, per_class + 1):
            rng = np.random.default_rng([seed, KINDS.index(kind), number])
            picture, mask = render_surface(kind, rng)
            name = f"{kind}_{number:05d}"
            (folder / kind / f"{name}.jpg").write_bytes(encode(picture, rng, 90))
            if masks is not None and kind != "good":
                (masks / kind).mkdir(parents=True, exist_ok=True)
                _, encoded = cv2.imencode(".png", mask.astype(np.uint8) * 255)
                (masks / kind / f"{name}.png").write_bytes(encoded.tobytes())
    return per_class * len(kinds)


def frames(count: int, seed: int, width: int, height: int, quality: int) -> list[Frame]:
    """Return `count` frames, their classes drawn with equal probability."""
    made = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        kind = CLASSES[int(rng.integers(len(CLASSES)))]
        body = encode(render(kind, rng, width, height), rng, quality)
        made.append(Frame(kind, f"{seed}-{number + 1:05d}", body))
    return made


def names(camera: str, cameras: int) -> list[str]:
    """Return the names of `cameras` cameras: `camera`, with a number if there are several."""
    if cameras == 1:
        return [camera]
    width = len(str(cameras))
    return [f"{camera}-{number:0{width}d}" for number in range(1, cameras + 1)]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _pixels(text: str) -> int:
    number = int(text)
    if number < SMALLEST:
        raise argparse.ArgumentTypeError(f"{text} is below the smallest picture, {SMALLEST}")
    return number


def _quality(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not within 1 to 100")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A simulated line camera.")
    shows = argparse.ArgumentDefaultsHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--seed", type=int, default=1, help="other pictures, the same each time")
    shared.add_argument("--width", type=_pixels, default=640, help="pixels")
    shared.add_argument("--height", type=_pixels, default=480, help="pixels")
    shared.add_argument("--quality", type=_quality, default=90, help="JPEG quality to vary around")
    writer = commands.add_parser(
        "write", parents=[shared], formatter_class=shows, help="write pictures into folders"
    )
    writer.add_argument("folder", type=Path, help="where a folder a class is written")
    writer.add_argument("--per-class", type=_positive, default=100, help="pictures of each class")
    surfaces = commands.add_parser(
        "surfaces", formatter_class=shows, help="write pictures of flat surfaces into folders"
    )
    surfaces.add_argument("folder", type=Path, help="where a folder a kind is written")
    surfaces.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of surfaces")
    surfaces.add_argument("--per-class", type=_positive, default=100, help="pictures of each kind")
    surfaces.add_argument("--seed", type=int, default=1, help="other pictures, the same each time")
    surfaces.add_argument("--masks", type=Path, help="where the masks of defects are written")
    poster = commands.add_parser(
        "post", parents=[shared], formatter_class=shows, help="post pictures to a server"
    )
    poster.add_argument(
        "url", nargs="?", default="http://127.0.0.1:8080/v1/recognize", help="of the server's route"
    )
    poster.add_argument(
        "--rate", type=_seconds, default=5.0, help="frames per second, of each camera"
    )
    poster.add_argument("--count", type=_positive, default=100, help="frames of each camera")
    poster.add_argument("--camera", default="simulated", help="name that the frames are sent under")
    poster.add_argument(
        "--cameras", type=_positive, default=1, help="cameras at once; each gets a number"
    )
    poster.add_argument(
        "--deadline-ms",
        type=_seconds,
        help="asks for each answer within these milliseconds, and counts those that take longer",
    )
    poster.add_argument(
        "--bursts", action="store_true", help=f"{BURST} frames at four times the rate, then a pause"
    )
    poster.add_argument(
        "--connections",
        type=_positive,
        help="frames of each camera in flight at once; 1, or 4 in bursts",
    )
    poster.add_argument("--timeout", type=_seconds, default=5.0, help="seconds to wait")
    poster.add_argument("--api-key", help="sent as Authorization: Bearer KEY")
    return parser


def _keep_memory() -> None:
    """Tell glibc to keep freed buffers: giving them back doubles the time of every picture."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(trim_threshold, 256 * 2**20)
    mallopt(mmap_threshold, 64 * 2**20)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, or 1 when nothing was written or no frame was answered."""
    parser = _parser()
    args = parser.parse_args(arguments)
    _keep_memory()
    started = time.monotonic()
    if args.command != "post":
        try:
            if args.command == "write":
                size = (args.width, args.height, args.quality)
                count = write(args.folder, args.per_class, args.seed, *size)
            else:
                kinds, masks = args.kinds, args.masks
                count = write_surfaces(args.folder, kinds, args.per_class, args.seed, masks)
        except OSError as error:
            print(f"cannot write the pictures: {error}", file=sys.stderr)
            return 1
        print(f"{count} pictures in {args.folder}, {time.monotonic() - started:.1f} s")
        return 0
    try:
        server = target(args.url, args.api_key, args.timeout, args.deadline_ms)
    except ValueError as error:
        parser.error(str(error))
    made = frames(args.count, args.seed, args.width, args.height, args.quality)
    connections = args.connections or (4 if args.bursts else 1)
    due = due_times(args.count, args.rate, args.bursts)
    tally = post(made, due, server, names(args.camera, args.cameras), connections, args.deadline_ms)
    print(tally.summary())
    return 0 if tally.right + tally.wrong else 1


if __name__ == "__main__":
    sys.exit(main())

"""The commands of the simulated line camera: write pictures, or post them at a steady rate."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from camera_client.command import above_zero, whole_above_zero
from camera_client.exchange import target

from line_camera.parts import SMALLEST
from line_camera.pictures import frames, keep_memory, write, write_surfaces
from line_camera.posting import BURST, due_times, post
from line_camera.surface import KINDS


def names(camera: str, cameras: int) -> list[str]:
    """Return the names of `cameras` cameras: `camera`, with a number if there are several."""
    if cameras == 1:
        return [camera]
    width = len(str(cameras))
    return [f"{camera}-{number:0{width}d}" for number in range(1, cameras + 1)]


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A simulated line camera.")
    shows = argparse.ArgumentDefaultsHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "send", add_help=False, help="send the frames of a folder, a video or a camera to a server"
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--seed", type=int, default=1, help="other pictures, the same each time")
    shared.add_argument("--width", type=_pixels, default=640, help="pixels")
    shared.add_argument("--height", type=_pixels, default=480, help="pixels")
    shared.add_argument("--quality", type=_quality, default=90, help="JPEG quality to vary around")
    writer = commands.add_parser(
        "write", parents=[shared], formatter_class=shows, help="write pictures into folders"
    )
    writer.add_argument("folder", type=Path, help="where a folder a class is written")
    writer.add_argument(
        "--per-class", type=whole_above_zero, default=100, help="pictures of each class"
    )
    surfaces = commands.add_parser(
        "surfaces", formatter_class=shows, help="write pictures of flat surfaces into folders"
    )
    surfaces.add_argument("folder", type=Path, help="where a folder a kind is written")
    surfaces.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of surfaces")
    surfaces.add_argument(
        "--per-class", type=whole_above_zero, default=100, help="pictures of each kind"
    )
    surfaces.add_argument("--seed", type=int, default=1, help="other pictures, the same each time")
    surfaces.add_argument("--masks", type=Path, help="where the masks of defects are written")
    poster = commands.add_parser(
        "post", parents=[shared], formatter_class=shows, help="post pictures to a server"
    )
    poster.add_argument(
        "url", nargs="?", default="http://127.0.0.1:8080/v1/recognize", help="of the server's route"
    )
    poster.add_argument(
        "--rate", type=above_zero, default=5.0, help="frames per second, of each camera"
    )
    poster.add_argument("--count", type=whole_above_zero, default=100, help="frames of each camera")
    poster.add_argument("--camera", default="simulated", help="name that the frames are sent under")
    poster.add_argument(
        "--cameras", type=whole_above_zero, default=1, help="cameras at once; each gets a number"
    )
    poster.add_argument(
        "--deadline-ms",
        type=above_zero,
        help="asks for each answer within these milliseconds, and counts those that take longer",
    )
    poster.add_argument(
        "--bursts", action="store_true", help=f"{BURST} frames at four times the rate, then a pause"
    )
    poster.add_argument(
        "--connections",
        type=whole_above_zero,
        help="frames of each camera in flight at once; 1, or 4 in bursts",
    )
    poster.add_argument("--timeout", type=above_zero, default=5.0, help="seconds to wait")
    poster.add_argument("--api-key", help="sent as Authorization: Bearer KEY")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, or 1 when nothing was written or no frame was answered."""
    parser = _parser()
    args = parser.parse_args(arguments)
    keep_memory()
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

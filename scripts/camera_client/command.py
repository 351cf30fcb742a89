"""The command `send`: the frames of a folder, a video or a camera go to a server."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from camera_client.exchange import target
from camera_client.frames import Spool
from camera_client.report import Tally
from camera_client.sending import CameraClient, SendOptions, stopping_by_signal
from camera_client.sources import Folder, Simulated, Source, Video

SIMULATED = "simulated"
# Without a spool; with one, frames are tried without end.
MAX_AGE_S = 10.0
# Different parts of the simulated line, which are drawn before the first is sent.
SIMULATED_PICTURES = 60
KEY_VARIABLE = "LINESIDE_KEY"


def above_zero(text: str) -> float:
    """Return the finite number above 0 that `text` is. Raises ArgumentTypeError."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return number


def whole_above_zero(text: str) -> int:
    """Return the whole number above 0 that `text` is. Raises ArgumentTypeError."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="camera.py send",
        description="Send frames to a server, the newest first, each until it has its answer.",
        epilog="The exit code is 1 if a frame got no answer and is not in the spool.",
    )
    made.add_argument(
        "source",
        help="a folder of images, a video file, a USB camera (0 or /dev/video0), a URL that FFmpeg"
        f" reads (rtsp://...), or `{SIMULATED}`",
    )
    made.add_argument("url", nargs="?", default="http://127.0.0.1:8080", help="of the server")
    made.add_argument("--camera", default="camera", help="name that the frames are sent under")
    made.add_argument(
        "--key",
        default=os.environ.get(KEY_VARIABLE),
        help=f"sent as Authorization: Bearer KEY; default: the variable {KEY_VARIABLE}, which other"
        " users of the machine can't read",
    )
    made.add_argument(
        "--rate",
        type=above_zero,
        help=f"frames a second of a camera, of a video's own time, or of `{SIMULATED}` (5)",
    )
    made.add_argument(
        "--count", type=whole_above_zero, help=f"frames of `{SIMULATED}`; default: no end"
    )
    made.add_argument("--seed", type=int, default=1, help=f"of `{SIMULATED}`: other parts")
    made.add_argument(
        "--watch", action="store_true", help="send also the images that come later into the folder"
    )
    made.add_argument(
        "--part", default="", help="name parts by this and a number (video and camera)"
    )
    made.add_argument(
        "--spool",
        type=Path,
        metavar="FOLDER",
        help="keep the frames that can't be sent in this folder, of this program alone; without it,"
        " a newer frame of a camera takes the place of one that waits",
    )
    made.add_argument(
        "--spool-mb", type=above_zero, default=1000.0, help="limit of the spool; the oldest go"
    )
    made.add_argument(
        "--max-age",
        type=above_zero,
        help=f"seconds after which a frame is given up; default {MAX_AGE_S:g}, with a spool no end",
    )
    made.add_argument("--deadline-ms", type=above_zero, help="sent along, in milliseconds")
    made.add_argument("--timeout", type=above_zero, default=5.0, help="seconds for an answer")
    return made


def make_source(args: argparse.Namespace, tally: Tally) -> Source:
    """Return what the argument `source` names. Raises OSError if it is neither a file nor a
    folder, nor the name of a camera."""
    if args.source == SIMULATED:
        from line_camera.pictures import frames, keep_memory

        keep_memory()
        number = min(args.count or SIMULATED_PICTURES, SIMULATED_PICTURES)
        return Simulated(frames(number, args.seed, 640, 480, 90), args.rate or 5.0, args.count)
    if Path(args.source).is_dir():
        return Folder(Path(args.source), tally.unreadable, watch=args.watch)
    video = Video(args.source, args.rate, args.part, tally.say)
    if not video.is_live and not Path(args.source).is_file():
        raise FileNotFoundError(f"there is no file or folder {args.source}")
    return video


def main(arguments: Sequence[str]) -> int:
    """Run the command line. Return 0 if each frame was answered or is in the spool, else 1."""
    made = parser()
    args = made.parse_args(arguments)
    try:
        server = target(args.url, args.key, args.timeout, args.deadline_ms)
    except ValueError as error:
        made.error(str(error))
    tally = Tally()
    try:
        spool = Spool(args.spool, int(args.spool_mb * 1e6)) if args.spool else None
        options = SendOptions(
            args.camera, spool, args.max_age or (math.inf if spool else MAX_AGE_S)
        )
        client = CameraClient(make_source(args, tally), server, options, tally)
        with stopping_by_signal(client.stop):
            client.run()
    except OSError as error:
        print(f"camera.py: {error}", file=sys.stderr)
        return 1
    print(client.table())
    return 0 if tally.is_complete() else 1

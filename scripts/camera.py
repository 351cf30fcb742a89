"""A camera that posts its frames to a server, or a simulated one.

    python scripts/camera.py send FOLDER http://DEVICE:8080 --camera st4
    python scripts/camera.py send rtsp://10.0.0.20/stream http://DEVICE:8080 --rate 5 --spool spool
    python scripts/camera.py send simulated --rate 20 --count 1200
    python scripts/camera.py write pictures --per-class 400 --seed 1
    python scripts/camera.py post http://127.0.0.1:8080/v1/recognize --rate 20 --count 200
    python scripts/camera.py post --cameras 20 --rate 1 --deadline-ms 200
    python scripts/camera.py surfaces pictures/val --per-class 40 --seed 2 --masks pictures/masks

`send` needs this file and the folder camera_client, and OpenCV for videos and cameras. The
simulation needs the folder line_camera, numpy and OpenCV. None needs Lineside's server.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return 0, or 1 if frames were lost, or nothing was written or
    answered."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["send"]:
            from camera_client import command as send

            return send.main(arguments[1:])
        from line_camera import command

        return command.main(arguments)
    except ModuleNotFoundError as missing:
        if missing.name not in ("cv2", "numpy"):
            raise
        sys.exit(
            f"camera.py needs the Python module {missing.name}, and {sys.executable} does not have"
            " it. Run it with .venv/bin/python, which scripts/serve makes, or install it with"
            " `pip install numpy opencv-python-headless`."
        )


if __name__ == "__main__":
    sys.exit(main())

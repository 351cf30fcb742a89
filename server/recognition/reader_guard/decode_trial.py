"""A frame that may have ended a process, decoded once more in a process of its own.

python -m server.recognition.reader_guard.decode_trial LIMITS < FRAME ends by a signal if the frame
kills its reader, else with exit code 0. LIMITS: a `Limits` as JSON.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from server.recognition.images.limits import Limits
from server.system.machine.parent import end_with_parent

# Seconds that a trial may take; one that takes longer kills nobody.
TRIAL_S = 60.0


class DecodeTrial:
    """The process that decodes `data`, an image file's bytes, within `limits`."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        """Starts it. Raises OSError."""
        self._until = time.monotonic() + TRIAL_S
        frame = os.memfd_create("lineside-trial")
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(frame, view) :]
            os.lseek(frame, 0, os.SEEK_SET)
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, msgspec.json.encode(limits).decode()],
                stdin=frame,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            os.close(frame)

    def poll(self) -> tuple[bool, str]:
        """Whether it has ended, and the name of the signal that ended it, empty if none did."""
        code = self._process.poll()
        if code is None and time.monotonic() > self._until:
            self._process.kill()
            self._process.wait()
            return True, ""
        return code is not None, _signal_of(code or 0)

    def wait(self) -> str:
        """The name of the signal that ended it, once it has ended; empty if none did."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, self._until - time.monotonic()))
        return self.poll()[1]


def _signal_of(code: int) -> str:
    if code >= 0:
        return ""
    known = {each.value: each.name for each in signal.Signals}
    return known.get(-code, f"signal {-code}")


def _confine() -> None:
    """Lets this process end before its parent does: with it, by a processor's time, or first of all
    if memory runs out. A sandbox may forbid each."""
    end_with_parent(signal.SIGKILL)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (int(TRIAL_S), int(TRIAL_S) + 1))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with suppress(OSError):
        os.nice(5)


def main() -> int:
    """Decodes standard input; 0 whether it is an image or not."""
    _confine()
    from server.errors import LinesideError
    from server.recognition import frame
    from server.recognition.manifest import Recipe
    from server.system.machine import process

    process.configure_process()
    limits = msgspec.json.decode(sys.argv[1], type=Limits)
    with suppress(LinesideError):
        frame.decode(sys.stdin.buffer.read(), Recipe(width=224, height=224), limits)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Commands on a device, by ssh or what stands in for it."""

import queue
import shlex
import subprocess
import threading
import time
from contextlib import suppress
from types import TracebackType

from server.cli.fleet.device import DeviceError

# Seconds that a command has to end once its input is closed, and the rest of its output to come
# once it ended: what it started may keep that open.
END_TIMEOUT_S, OUTPUT_TIMEOUT_S = 120.0, 5.0


class RemoteCommand:
    """A shell command on the device `target`, whose output is read line by line: both streams."""

    def __init__(self, reach: str, target: str, command: str) -> None:
        """reach: the local command that gets the target and `command` as its last two arguments.
        Raises DeviceError if it can't be run."""
        try:
            self._process = subprocess.Popen(
                [*shlex.split(reach), target, command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except (OSError, ValueError) as error:
            raise DeviceError(f"{reach!r} can't be run: {error}") from None
        self.lines: list[str] = []
        self._arrived: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "RemoteCommand":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._close_input()

    def _close_input(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it ended before it read all
            self._process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                text = line.decode("utf-8", "replace").rstrip()
                self.lines.append(text)
                self._arrived.put(text)
        self._arrived.put(None)

    def send(self, data: bytes) -> None:
        """Write to its input. Raises DeviceError if it ended before."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError:
            self.finish()
            raise DeviceError(f"its shell ended: {self.last_words()}") from None

    def await_line(self, start: str, timeout: float) -> bool:
        """Return whether a line begins with `start` within `timeout` seconds, before the end."""
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0:
            try:
                line = self._arrived.get(timeout=left)
            except queue.Empty:
                return False
            if line is None:
                return False
            if line.startswith(start):
                return True
        return False

    def finish(self) -> int | None:
        """Close its input, and wait for its end; return its exit code, None if it does not end."""
        self._close_input()
        try:
            code = self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(OUTPUT_TIMEOUT_S)
        return code

    def last_words(self) -> str:
        """Return the last line that it said."""
        return next((line for line in reversed(self.lines) if line), "it said nothing")


def run(reach: str, target: str, command: str, data: bytes = b"") -> str:
    """Run a command to its end with `data` as input; return its last line. Raises DeviceError if it
    fails, or does not end."""
    with RemoteCommand(reach, target, command) as remote:
        if data:
            remote.send(data)
        code = remote.finish()
        if code is None:
            raise DeviceError(f"its shell does not end: {remote.last_words()}")
        if code:
            raise DeviceError(f"its shell failed ({code}): {remote.last_words()}")
        return remote.last_words()

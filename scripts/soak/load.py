"""Good frames: as many as the server can answer, and then at a fixed rate."""

import http.client
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from soak import wire
from soak.score import TENTHS, Score, best_label

# That measure the capacity.
CLIENTS = 8
# Fewer than the frames that may wait in the server, so that a stall makes frames late and does not
# have them refused.
SENDERS = 16
LOST = (OSError, http.client.HTTPException, ValueError)


# Digits of the comment that makes each frame's bytes its own, as those of a camera's frames are.
NUMBER_DIGITS = 12
# Of the frames by which the capacity is found.
FIRST_NUMBER = 10**11


class Frame(NamedTuple):
    """A JPEG file as a request, in two halves with room for a comment between them, and the label
    of its first answer."""

    before: bytes
    after: bytes
    label: str

    def sent(self, number: int) -> bytes:
        """The request for the frame `number`."""
        return b"%s%0*d%s" % (self.before, NUMBER_DIGITS, number, self.after)


def with_comment(data: bytes) -> tuple[bytes, bytes]:
    """A JPEG file with a comment (T.81, B.2.4.5) of NUMBER_DIGITS bytes: what comes before and
    after these."""
    return data[:2] + b"\xff\xfe" + (2 + NUMBER_DIGITS).to_bytes(2, "big"), data[2:]


class GoodFrames:
    """The JPEG files of `folder` as requests. files: their bytes by name."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.files = {path.stem: path.read_bytes() for path in sorted(folder.glob("*.jpg"))}
        self.frames: list[Frame] = []
        connection = wire.Connection(port)
        for number, data in enumerate(self.files.values()):
            before, after = with_comment(data)
            whole = before + bytes(NUMBER_DIGITS) + after
            path = f"/v1/recognize?camera=line-{number % 3}"
            sent = wire.request(port, path, whole)
            head = sent[: len(sent) - len(whole)]
            reply = connection.exchange(sent)
            if reply.status != 200:
                raise RuntimeError(f"the first frame got {reply.status}: {reply.body[:500]!r}")
            self.frames.append(Frame(head + before, after, best_label(reply)))
        connection.close()

    def capacity(self, seconds: float, clients: int = CLIENTS) -> float:
        """Right answers a second to `clients` that send one frame after the other, in the second
        half of `seconds`. Raises RuntimeError if another answer comes."""
        begin = time.monotonic()
        counts, faults = [0] * clients, list[str]()

        def client(number: int) -> None:
            connection, turn = wire.Connection(self.port), number
            while (now := time.monotonic()) < begin + seconds and not faults:
                frame = self.frames[turn % len(self.frames)]
                try:
                    reply = connection.exchange(frame.sent(FIRST_NUMBER + turn))
                except LOST as error:
                    faults.append(repr(error))
                    break
                if reply.status != 200 or best_label(reply) != frame.label:
                    faults.append(f"{reply.status}: {reply.body[:200]!r}")
                counts[number] += now >= begin + seconds / 2
                turn += clients
            connection.close()

        run_together(client, clients)
        if faults:
            raise RuntimeError(f"a frame got no right answer: {faults[0]}")
        return sum(counts) / (seconds / 2)

    def send_steadily(self, rate: float, begin: float, seconds: float, score: Score) -> None:
        """Sends `rate` frames a second from `begin` (time.monotonic()) on, whatever the answers
        do. A frame's latency counts from when it was due, so that a stall counts for every frame
        that it held up."""
        count, turns, lock = int(rate * seconds), iter(range(int(rate * seconds))), threading.Lock()

        def sender(_: int) -> None:
            connection = wire.Connection(self.port)
            while True:
                with lock:
                    number = next(turns, None)
                if number is None:
                    break
                due = begin + number / rate
                if (early := due - time.monotonic()) > 0:
                    time.sleep(early)
                frame = self.frames[number % len(self.frames)]
                try:
                    reply = connection.exchange(frame.sent(number))
                except LOST as error:
                    score.lost(error)
                    continue
                late = 1000 * (time.monotonic() - due)
                score.frame(number * TENTHS // count, late, reply, frame.label)
            connection.close()

        run_together(sender, SENDERS)


def run_together(target: Callable[[int], None], count: int) -> None:
    """Runs `target(number)` in `count` threads until all have ended."""
    threads = [threading.Thread(target=target, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

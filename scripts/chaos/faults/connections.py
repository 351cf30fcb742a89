"""Clients that break off in a body, that send slowly, and that say nothing."""

import contextlib
import json
import socket
import struct
import threading
import time
from typing import Any

from chaos.clients import TIMEOUT_S
from chaos.faults.fault import Context, Fault
from chaos.frames import DAMAGED, GOOD_LABEL, Frame, read_frames
from chaos.plant import ROOT, Plant

CUT, SLOW, IDLE = 20, 20, 100
SLOW_PIECES, SLOW_INTERVAL_S = 10, 0.3
# So that close sends a reset, as a cable that is pulled and plugged in elsewhere.
RESET = struct.pack("ii", 1, 0)


def _head(op: str, size: int) -> bytes:
    return (
        f"POST /v1/recognize?camera=st9&part={op} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: image/jpeg\r\nX-Request-Id: {op}\r\nContent-Length: {size}\r\n"
        "Connection: close\r\n\r\n"
    ).encode()


def _connect(plant: Plant) -> socket.socket:
    return socket.create_connection(("127.0.0.1", plant.port), TIMEOUT_S)


def _cut_in_body(context: Context) -> dict[str, Any]:
    """Break off in the middle of a body. The frame is one that has no right answer."""
    data = read_frames(ROOT)[GOOD_LABEL].data
    for number in range(CUT):
        op = f"{context.op}-cut-{number}"
        context.history.record(op, "cut", "invoke", frame=DAMAGED)
        with _connect(context.plant) as client:
            client.sendall(_head(op, len(data)) + data[: context.rng.randrange(1, len(data))])
            if number % 2:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        context.history.record(op, "cut", "lost", frame=DAMAGED)
        time.sleep(0.05)
    return {"connections": CUT}


def _send_slowly(context: Context) -> dict[str, Any]:
    """Send frames in small pieces, which all come in the end, at the same time."""
    frame = read_frames(ROOT)[GOOD_LABEL]
    senders = [
        threading.Thread(
            target=_send_pieces, args=(context, f"{context.op}-slow-{number}", frame), daemon=True
        )
        for number in range(SLOW)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return {"connections": SLOW}


def _send_pieces(context: Context, op: str, frame: Frame) -> None:
    record = context.history.record
    record(op, "slow", "invoke", frame=frame.name)
    answer = b""
    try:
        with _connect(context.plant) as client:
            client.sendall(_head(op, len(frame.data)))
            size = -(-len(frame.data) // SLOW_PIECES)
            for start in range(0, len(frame.data), size):
                time.sleep(SLOW_INTERVAL_S)
                client.sendall(frame.data[start : start + size])
            while data := client.recv(65536):
                answer += data
    except OSError as error:
        if not answer:
            record(op, "slow", "lost", frame=frame.name, reason=repr(error))
            return
    head, _, body = answer.partition(b"\r\n\r\n")
    if not body:
        record(op, "slow", "lost", frame=frame.name, reason="no answer")
        return
    status, found = int(head.split()[1]), json.loads(body)
    if status != 200:
        code = found["error"]["code"]
        record(op, "slow", "refused", frame=frame.name, status=status, code=code)
        return
    label = found["predictions"][0]["label"]
    verdict, version = found["verdict"], found["model_version"]
    record(op, "slow", "ok", frame=frame.name, label=label, verdict=verdict, version=version)


def _stay_idle(context: Context) -> dict[str, Any]:
    """Open connections, and say nothing, or half of a request's headers."""
    with contextlib.ExitStack() as stack:
        for number in range(IDLE):
            client = stack.enter_context(_connect(context.plant))
            if number % 2:
                client.sendall(b"POST /v1/recognize HTTP/1.1\r\nHost: 127")
        time.sleep(context.hold_s())
    return {"connections": IDLE}


FAULTS = (
    Fault("cut clients in body", _cut_in_body),
    Fault("slow bodies", _send_slowly),
    Fault("idle connections", _stay_idle),
)

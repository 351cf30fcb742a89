"""This process's sockets as the kernel knows them; the HTTP server does not hand its own out."""

import math
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress

# Offsets in struct tcp_info of linux/tcp.h: u32 tcpi_notsent_bytes, u64 tcpi_bytes_sent, u64
# tcpi_bytes_retrans. The last two are there since Linux 4.19.
NOT_SENT, SENT, SENT_AGAIN = 144, 200, 208
# u8 tcpi_state, u32 tcpi_last_data_recv in milliseconds; TCP_ESTABLISHED of linux/tcp_states.h.
STATE, LAST_RECEIVED, ESTABLISHED = 0, 52, 1


def own_sockets() -> Iterator[tuple[int, socket.socket]]:
    """This process's sockets: the descriptor of each, and a duplicate that is closed when the next
    one is asked for."""
    for name in os.listdir("/proc/self/fd"):
        try:
            copy = os.dup(int(name))
        except OSError:
            continue  # closed since it was listed
        if not stat.S_ISSOCK(os.fstat(copy).st_mode):
            os.close(copy)
            continue
        with socket.socket(fileno=copy) as sock:
            yield int(name), sock


def shut_for_reading(number: int, written: int) -> None:
    """Ends the reads of the connection with the descriptor `number`, if that is still the one to
    which `written` bytes were written."""
    with suppress(OSError), socket.socket(fileno=os.dup(number)) as sock:
        if bytes_written(sock) == written:
            sock.shutdown(socket.SHUT_RD)


def seconds_silent(sock: socket.socket) -> float:
    """Seconds since anything came in on the open TCP connection `sock`, or since it was made;
    infinite for another socket, or where the kernel doesn't tell."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, LAST_RECEIVED + 4)
        milliseconds = struct.unpack_from("I", info, LAST_RECEIVED)[0]
    except (OSError, struct.error):
        return math.inf
    return milliseconds / 1000 if info[STATE] == ESTABLISHED else math.inf


def bytes_written(sock: socket.socket) -> int:
    """Bytes that were ever written to the connection `sock`, whether they have been sent or not;
    -1 for what is no TCP socket, or where the kernel doesn't tell."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SENT_AGAIN + 8)
        waiting = struct.unpack_from("I", info, NOT_SENT)[0]
        sent, again = struct.unpack_from("QQ", info, SENT)
    except (OSError, struct.error):
        return -1
    return int(sent - again + waiting)

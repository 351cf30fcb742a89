"""Run as a program: `python -m server` where setpriority(2) is forbidden, as by the systemd unit's
filter of system calls (seccomp(2), SECCOMP_SET_MODE_FILTER through prctl(2))."""

import ctypes
import errno
import os
import platform
import struct
import sys

# The call's number in the kernel's tables.
SETPRIORITY = {"x86_64": 141, "aarch64": 140}
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD_NUMBER, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ERRNO, ALLOW = 0x00050000, 0x7FFF0000


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def forbid(call: int) -> None:
    """Has the system call fail with EPERM in this process and all that it starts."""
    steps = (
        (LOAD_NUMBER, 0, 0, 0),
        (IF_EQUAL, 0, 1, call),
        (RETURN, 0, 0, ERRNO | errno.EPERM),
        (RETURN, 0, 0, ALLOW),
    )
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program, libc = Program(len(steps), ctypes.addressof(buffer)), ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    forbid(SETPRIORITY[platform.machine()])
    os.execv(sys.executable, [sys.executable, "-m", "server"])

"""Puts a program under a supervisor that decides about each of its system calls that matter (seccomp(2)).

    python -I -S listen.py SOCKET FILTER COMMAND…

Installs the filter (in hex), sends its listener through the socket, and becomes the command. Whatever the command
starts is under the supervisor, too. A program of its own, and a small one: it runs for every command that is tried.
"""

import ctypes
import os
import socket
import sys

SYS_SECCOMP = 317
SET_MODE_FILTER = 1
NEW_LISTENER = 1 << 3
WAIT_KILLABLE = 1 << 5  # but for SIGKILL, a call that waits for the supervisor is not begun anew


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def main() -> None:
    """See above."""
    supervisor, code, command = int(sys.argv[1]), bytes.fromhex(sys.argv[2]), sys.argv[3:]
    libc = ctypes.CDLL(None, use_errno=True)
    program = Program(len(code) // 8, code)
    for flags in (NEW_LISTENER | WAIT_KILLABLE, NEW_LISTENER):  # older kernels know only the one
        listener = libc.syscall(SYS_SECCOMP, SET_MODE_FILTER, flags, ctypes.byref(program))
        if listener >= 0:
            break
    else:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "seccomp")
    with socket.socket(fileno=supervisor) as channel:
        socket.send_fds(channel, [b"l"], [listener])
    os.close(listener)
    os.execv(command[0], command)


main()

"""A terminal for the command: a pty of the container's own."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import termios
import tty
from collections.abc import Callable

from pullpipe.errors import RunError

_TIOCSPTLCK, _TIOCGPTPEER = {  # <asm/ioctls.h>
    "ppc64le": (0x80045431, 0x20005441),
    "mips64": (0x80045431, 0x20005441),
}.get(os.uname().machine, (0x40045431, 0x5441))
_MULTIPLEXER = os.makedev(5, 2)


def open_pair() -> tuple[int, int]:
    """A new pty of the container's devpts: its outer side and its inner one. Whoever is root in the container may have
    changed what its names lead to, so none is followed, and what is open is looked at. Raises `RunError`, `OSError`."""
    try:
        master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        why = f"the container's /dev/pts/ptmx cannot be opened ({(error.strerror or 'refused').lower()})"
        raise RunError(f"{why}, so there is no terminal; leave -t away, or what is mounted over it") from error
    check(master)
    os.set_blocking(master, True)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    return master, fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def check(master: int) -> None:
    """Raises `RunError` unless it is the outer side of a pty."""
    status = os.fstat(master)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _MULTIPLEXER:
        raise RunError("the container's /dev/pts/ptmx is something else, so there is no terminal for the command")


def become_controlling(slave: int) -> None:
    """Makes the slave this session's terminal and its standard streams."""
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for stream in (0, 1, 2):
        os.dup2(slave, stream)


def our_size() -> tuple[int, int]:
    """The rows and columns of our terminal; zeros, if we have none."""
    rows, columns, _, _ = struct.unpack("4H", _our_size() or bytes(8))
    return rows, columns


def copy_size(master: int) -> None:
    """Gives the pty the size of our terminal, if we have one."""
    if size := _our_size():
        fcntl.ioctl(master, termios.TIOCSWINSZ, size)


def _our_size() -> bytes | None:
    for stream in (0, 1, 2):
        try:
            return fcntl.ioctl(stream, termios.TIOCGWINSZ, bytes(8))
        except OSError:
            continue
    return None


def set_raw(stream: int) -> Callable[[], None]:
    """Every key goes to the command, Ctrl-C too, and those typed ahead. Returns what undoes it. Neither waits for what
    is written, which nobody may be left to read."""
    before = termios.tcgetattr(stream)
    tty.setraw(stream, termios.TCSANOW)
    return lambda: termios.tcsetattr(stream, termios.TCSANOW, before)

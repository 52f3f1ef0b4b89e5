"""A terminal for the command: a pty of the container's own, relayed to ours."""

from __future__ import annotations

import fcntl
import os
import termios
import tty
from collections.abc import Callable

_PIECE = 64 << 10  # bytes


def become_controlling(slave: int) -> None:
    """Makes the slave this session's terminal and its standard streams."""
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for stream in (0, 1, 2):
        os.dup2(slave, stream)


def copy_size(master: int) -> None:
    """Gives the pty the size of our terminal, if we have one."""
    for stream in (0, 1, 2):
        try:
            size = fcntl.ioctl(stream, termios.TIOCGWINSZ, b"\0" * 8)
        except OSError:
            continue
        fcntl.ioctl(master, termios.TIOCSWINSZ, size)
        return


def relay(master: int, *, interactive: bool, wait: Callable[..., tuple[list[int], bool]]) -> None:
    """Copies between our standard streams and the pty until nobody in the container holds it any more.

    `wait` takes descriptors, and returns those that are readable and whether our terminal has another size.
    """
    before = termios.tcgetattr(0) if interactive else None
    try:
        if before is not None:
            tty.setraw(0, termios.TCSADRAIN)  # every key goes to the command, Ctrl-C too, and those typed ahead
        inputs = [0] if interactive else []
        while True:
            ready, resized = wait(master, *inputs)
            if resized:
                copy_size(master)
            if 0 in ready:
                data = os.read(0, _PIECE)
                if data:
                    _write(master, data)
                else:
                    inputs.clear()  # our terminal is gone
            if master in ready:
                try:
                    data = os.read(master, _PIECE)
                except OSError:  # EIO: the other side is closed
                    return
                _write(1, data)
    finally:
        if before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
        os.close(master)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]

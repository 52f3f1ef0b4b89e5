"""Terminals, as a user sits at them."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from contextlib import suppress

from tests.conftest import PROJECT
from tests.support.processes import PATIENCE


class Terminal:
    """A command behind a terminal that the test holds the other end of."""

    def __init__(self, command: Sequence[str], size: tuple[int, int] = (33, 77)) -> None:
        self.master, slave = pty.openpty()
        self.resize(*size)
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.seen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # a read may end within a character
        self.process = subprocess.Popen(
            command,
            cwd=PROJECT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def resize(self, rows: int, columns: int) -> None:
        """As a window manager does; the kernel sends SIGWINCH."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def expect(self, pattern: str) -> re.Match[str]:
        """Reads until the pattern has appeared; what stands up to its end is used up."""
        deadline = time.monotonic() + PATIENCE
        while not (match := re.search(pattern, self.seen)):
            ready = select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0]
            assert ready, f"no {pattern!r} in {self.seen!r}"
            self.seen += self._decoder.decode(os.read(self.master, 4096))
        self.seen = self.seen[match.end() :]
        return match

    def ended(self) -> int:
        """Reads until the command has ended; its exit status."""
        process = os.pidfd_open(self.process.pid)
        try:
            while process not in (ready := select.select([self.master, process], [], [], PATIENCE)[0]):
                assert ready, "it neither says anything nor ends"
                os.read(self.master, 4096)
        finally:
            os.close(process)
        return self.process.wait(PATIENCE)

    def type_until_full(self) -> None:
        """Until nobody has taken any more of it for a while."""
        os.set_blocking(self.master, False)
        while select.select([], [self.master], [], 0.5)[1]:
            with suppress(BlockingIOError):
                os.write(self.master, b"x" * 4096)

    def is_full(self) -> bool:
        """Whether who writes to it would have to wait, for nobody reads."""
        return not select.select([], [self._slave], [], 0)[1]

    def status(self) -> os.stat_result:
        """Of the terminal's node."""
        return os.fstat(self._slave)

    def modes(self) -> list[object]:
        return termios.tcgetattr(self._slave)

    def hang_up(self) -> None:
        """As when the window is closed; the kernel sends SIGHUP."""
        self._close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        for descriptor in (self.master, self._slave):
            if descriptor >= 0:
                os.close(descriptor)
        self.master = self._slave = -1

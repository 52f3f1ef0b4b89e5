"""Signals to us go to the command; and before it is one, those that Python ignores are set back."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from types import FrameType
from typing import Self

_FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGCONT,
)
_ENDING = {signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}  # not SIGINT: who types Ctrl-C can type another
# They do not end a process that does not handle them.
_HARMLESS = {signal.SIGCONT, signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH}
_HARMLESS |= {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


class Signals:
    """Signals to us go to the command, for as long as the block runs.

    `killed_by` is the one that ended the command because it did not handle it.

    Python runs a handler only when it comes back from a system call, and a signal that arrives just before one does not
    interrupt it. So signals arrive as bytes in a pipe, and nothing here waits without waiting for that, too.
    """

    def __init__(self, pid: int) -> None:
        self.killed_by = 0
        self._pid = pid
        self._told_to_end = False

    def __enter__(self) -> Self:
        self.process = os.pidfd_open(self._pid)  # readable when it has ended
        self._arrived, self._arriving = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = {number: signal.signal(number, _note) for number in (*_FORWARDED, signal.SIGWINCH)}
        signal.set_wakeup_fd(self._arriving, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for fd in (self.process, self._arrived, self._arriving):
            os.close(fd)

    def wait(self, *descriptors: int) -> tuple[list[int], bool]:
        """Waits until one of them is readable, or our terminal has another size; returns those, and whether it has."""
        while True:
            ready, _, _ = select.select([*descriptors, self._arrived], [], [])
            resized = False
            if self._arrived in ready:
                ready.remove(self._arrived)
                resized = signal.SIGWINCH in self._pass_on()
            if ready or resized:
                return ready, resized

    def told_to_end(self) -> bool:
        """Whether there has been a signal with which somebody wants us to end; they should not wait for others."""
        with contextlib.suppress(BlockingIOError):
            self._pass_on()
        return self._told_to_end

    def _pass_on(self) -> bytes:
        """Those that have arrived, by their numbers."""
        arrived = os.read(self._arrived, 4096)
        for number in arrived:
            self._told_to_end = self._told_to_end or number in _ENDING
            if number in _FORWARDED and send(self._pid, self.process, number):
                self.killed_by = self.killed_by or number
        return arrived

    def wait_for(self, descriptor: int) -> None:
        """Waits until it is readable."""
        while not self.wait(descriptor)[0]:
            pass


def _note(_number: int, _frame: FrameType | None) -> None:
    """Nothing to do: that a handler is there has Python write the number to the pipe."""


def send(pid: int, process: int, number: int) -> bool:
    """Sends a signal to a process, of which `process` is a pidfd. Says whether it has been killed instead.

    The first process of a PID namespace never feels a signal that it does not handle. Anywhere else such a signal would
    have ended it, and that is what the sender expects.
    """
    try:
        signal.pidfd_send_signal(process, number)
        if number in _HARMLESS or number == signal.SIGKILL or _feels(pid, number):
            return False
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except (ProcessLookupError, FileNotFoundError):  # it has ended
        return False
    return True


def _feels(pid: int, number: int) -> bool:
    """Whether the process handles or ignores the signal by its own will."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    mask = int(fields["SigCgt"], 16) | int(fields["SigIgn"], 16)
    return bool(mask >> (number - 1) & 1)


def reset() -> None:
    """Python ignores some signals, and what a process ignores its successor ignores too."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):  # those that the C library keeps for itself
            signal.signal(number, signal.SIG_DFL)

"""A first process for a container: it does nothing but reap, and pass signals on to the command, its child.

A command that is the first process itself gets only those signals that it handles, and the orphans of the container
whether it knows what to do with them or not. This one is pullpipe's own, so nobody in the container may look into it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType

from pullpipe import linux

_OUR_OWN = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}


def stay_behind(*, terminal: bool) -> None:
    """Forks. In the child, which is to be the command, it returns; the parent ends with the child's exit code, or with
    128+N when signal N has ended it.

    With `terminal`, the child is in its foreground, so that keys such as Ctrl-C signal the child and not both.
    """
    linux.call_this_process("init")  # before there is anybody who might look
    linux.hide_from_others()
    linux.adopt_orphans()  # where this is not the first of its PID namespace
    heard = [number for number in signal.valid_signals() if number not in _OUR_OWN]
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    for one in heard:  # blocked as they are, no handler runs; but whoever asks sees that none is ignored
        with contextlib.suppress(OSError, ValueError):  # those that the C library keeps for itself
            signal.signal(one, _pass_on)
    child = linux.fork()
    if child == 0:
        os.setpgid(0, 0)
        if terminal:
            os.tcsetpgrp(0, os.getpid())
        for one in heard:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(one, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return
    os.chdir("/")
    linux.close_range(0)  # the command's streams close when the command closes them
    while True:
        number = signal.sigwait(signal.valid_signals())
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, number)
            continue
        for pid, status in _reaped():
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                os._exit(128 - code if code < 0 else code)


def _pass_on(_number: int, _frame: FrameType | None) -> None:
    """Never runs."""


def _reaped() -> list[tuple[int, int]]:
    """All that have ended, and how."""
    found = []
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            found.append(ended)
    return found

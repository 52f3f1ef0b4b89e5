"""The standard streams of a command, as whoever oversees it has them.

Nothing that we have open is the command's too. Who has something open can open it again, by /proc/self/fd, in another
way, and change its mode and owner: a file that output goes to would become a setuid program of ours, and a log that is
appended to, or a file that is only read, would be rewritten. Nor is a pipe: its writer can read there what others have
written, its reader can write what the next one takes for somebody else's, and that it should not block is set for all
who share it. So a command has pipes of its own, a terminal of the container's, or the container's null device, and what
crosses is copied, as Docker does.

Each stream is copied by a thread, piece by piece. It waits for whoever does not read or write, and so, in turn, does
the other end; nobody else does. (A loop cannot write without ever waiting: our shell shares what we have open.)
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from pullpipe import linux
from pullpipe.errors import RunError

if TYPE_CHECKING:
    from pullpipe.runner.logs import Log

NULL = -1  # for a descriptor: the null device
_PIECE = 64 << 10  # bytes
_LEFT = 64  # pieces that are taken when the command has ended, if others can still write; as much as pipes hold
_PATIENCE = 1.0  # seconds; who takes nothing for so long may never do


class Streams:
    """None of ours: the null device, as a command has it that nobody hears.

    `given` become the command's 0, 1 and 2, unless it has a `terminal` of the container's own.
    """

    def __init__(self, *, terminal: bool = False) -> None:
        self.terminal = terminal
        self.given = (NULL, NULL, NULL)

    def begin(self, process: int) -> None:
        """To be told of the process that has been given them, by a pidfd."""

    def connect(self, master: int) -> None:
        """Takes the outer side of the command's terminal, which is open."""
        raise NotImplementedError

    def resized(self) -> None:
        """To be told that our terminal has another size."""

    def end(self, hurried: Callable[[], bool]) -> None:
        """To be told that the process has ended. Returns when all that it has written is delivered, or nobody takes it;
        what is left then is given up if we are `hurried`. Our terminal is as it was."""

    def deliver(self) -> None:
        """Waits until somebody has taken what is left. Raises `RunError` for what could not be read or written."""


class _Copied(Streams):
    """What the command writes goes where `_taker` says; `together` by one pipe, so that it stays in order."""

    def __init__(self, *, interactive: bool, terminal: bool, together: bool) -> None:
        super().__init__(terminal=terminal)
        self._process = NULL
        self._outputs: list[_Output] = []
        if not terminal:
            stdin, self._stdin = os.pipe() if interactive else (NULL, NULL)
            self._stdout, stdout = os.pipe()
            self._stderr, stderr = (NULL, stdout) if together else os.pipe()
            self.given = (stdin, stdout, stderr)

    def _taker(self, stream: int) -> Callable[[bytes], None]:
        """What takes the pieces of this one, 1 or 2."""
        raise NotImplementedError

    def begin(self, process: int) -> None:
        self._process = os.dup(process)  # for as long as there are threads
        for descriptor in set(self.given) - {NULL}:
            os.close(descriptor)
        if not self.terminal:
            self._copy(self._stdout, 1)
            if self._stderr != NULL:
                self._copy(self._stderr, 2)

    def connect(self, master: int) -> None:
        self._copy(master, 1)

    def _copy(self, source: int, stream: int) -> None:
        self._outputs.append(_Output(self._process, source, stream, self._taker(stream), pipe=not self.terminal))


class Ours(_Copied):
    """Ours, on the other side of pipes, or of a terminal."""

    def __init__(self, *, interactive: bool, terminal: bool) -> None:
        if terminal and interactive and not os.isatty(0):
            raise RunError("-t wants a terminal, and standard input is none; leave -t away")
        together = os.path.samestat(os.fstat(1), os.fstat(2))
        super().__init__(interactive=interactive, terminal=terminal, together=together)
        if terminal:  # while there is nothing but the host's to be imported
            from pullpipe.runner import terminal as relay

            self._relay = relay
        self._interactive = interactive
        self._input: _Input | None = None
        self._master = NULL
        self._restore: Callable[[], None] | None = None
        self._given_up = False

    def _taker(self, stream: int) -> Callable[[bytes], None]:
        return partial(_write, stream)

    def begin(self, process: int) -> None:
        super().begin(process)
        if self._interactive and not self.terminal:
            self._input = _Input(self._process, self._stdin, pipe=True)

    def connect(self, master: int) -> None:
        self._master = master
        self._relay.copy_size(master)
        super().connect(master)
        if self._interactive:
            self._restore = self._relay.set_raw(0)
            self._input = _Input(self._process, master, pipe=False)

    def resized(self) -> None:
        if self._master != NULL:
            self._relay.copy_size(self._master)

    def end(self, hurried: Callable[[], bool]) -> None:
        for output in self._outputs:
            output.wait_while_taken()
        self._given_up = hurried()
        if self._restore:
            self._restore()

    def deliver(self) -> None:
        for output in self._outputs:
            if not self._given_up:
                output.thread.join()
            output.check()
        if self._input:
            self._input.check()


class Logged(_Copied):
    """They go to a log; what is read, if anything, never comes."""

    def __init__(self, log: Log, *, interactive: bool, terminal: bool) -> None:
        super().__init__(interactive=interactive, terminal=terminal, together=False)
        self._log = log

    def _taker(self, stream: int) -> Callable[[bytes], None]:
        return partial(self._log.take, "stdout" if stream == 1 else "stderr")

    def end(self, hurried: Callable[[], bool]) -> None:
        for output in self._outputs:
            output.thread.join()
        self._log.close()


class _Copy:
    """A stream, copied by a thread."""

    def __init__(self, process: int) -> None:
        self._process = process
        self._failure: Exception | None = None
        self.thread = linux.start_thread(self._run)

    def _run(self) -> None:
        raise NotImplementedError

    def _fail(self, error: OSError, what: str) -> None:
        """Our side does not work, and the command cannot be told in any other way."""
        self._failure = error
        if not isinstance(error, BrokenPipeError):
            why = (error.strerror or str(error)).lower()
            self._failure = RunError(f"cannot {what}: {why}, so the command was killed; redirect it to another place")
            self._failure.__cause__ = error
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def check(self) -> None:
        """Raises what went wrong."""
        if self._failure:
            raise self._failure


class _Input(_Copy):
    """What we read, for as long as there is a command that does."""

    def __init__(self, process: int, target: int, *, pipe: bool) -> None:
        self._target, self._pipe = target, pipe
        super().__init__(process)

    def _run(self) -> None:
        try:
            for data in _pieces(0, self._process, left=0):
                try:
                    _write(self._target, data)
                except OSError:  # the command has closed it
                    break
        except OSError as error:
            if not os.isatty(0):  # EIO: it is no terminal of ours any more
                self._fail(error, "read standard input")
        if self._pipe:
            os.close(self._target)  # the command sees its end


class _Output(_Copy):
    """What the command writes, to the last byte."""

    def __init__(self, process: int, source: int, stream: int, take: Callable[[bytes], None], *, pipe: bool) -> None:
        self._source, self._stream, self._take, self._pipe = source, stream, take, pipe
        self._taken = 0  # pieces
        super().__init__(process)

    def _run(self) -> None:
        with suppress(OSError):  # EIO: the command's side of a terminal is closed
            for data in _pieces(self._source, self._process, left=_LEFT):
                try:
                    self._take(data)
                except OSError as error:
                    if not self._pipe or not isinstance(error, BrokenPipeError):
                        self._fail(error, f"write to standard {'output' if self._stream == 1 else 'error'}")
                    break
                self._taken += 1
        if self._pipe:
            os.close(self._source)  # who writes more gets SIGPIPE, as whoever reads ours has seen enough

    def wait_while_taken(self) -> None:
        """Waits until all is delivered, or nobody takes it."""
        before = -1
        while self.thread.is_alive() and self._taken > before:
            before = self._taken
            self.thread.join(_PATIENCE)


def _pieces(source: int, process: int, *, left: int) -> Iterator[bytes]:
    """What is read, until its end; from the process's end on, only what is there, and so many pieces at most."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    poll.register(process, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in poll.poll()]
        if process in ready:
            if not left or source not in ready:
                return
            left -= 1
        if source in ready:
            with suppress(BlockingIOError):  # somebody who shares it was quicker
                if not (data := os.read(source, _PIECE)):
                    return
                yield data


def _write(target: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(target, data) :]
        except BlockingIOError:  # somebody who shares it wants it so
            select.select([], [target], [])

"""The standard streams of a command, as whoever oversees it has them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from pullpipe.errors import RunError

if TYPE_CHECKING:
    from pullpipe.runner.logs import Log

# Descriptors, with what reads from each and tells whether there may be more.
Sources: TypeAlias = dict[int, Callable[[], bool]]

NULL = -1  # for a descriptor: the null device
_PIECE = 64 << 10  # bytes


class Streams:
    """None of ours: the null device, as a command has it that nobody hears.

    `given` become the command's 0, 1 and 2, unless it has a `terminal` of the container's own. What is to be read
    meanwhile is in `inputs` and `outputs`; of the latter all that has been written when the command ends.
    """

    def __init__(self, *, terminal: bool = False) -> None:
        self.terminal = terminal
        self.given = (NULL, NULL, NULL)
        self.inputs: Sources = {}
        self.outputs: Sources = {}

    def forked(self) -> None:
        """To be told when the process has what it was given."""

    def connect(self, master: int) -> None:
        """Takes the outer side of the command's terminal, which is open."""
        raise NotImplementedError

    def resized(self) -> None:
        """To be told that our terminal has another size."""

    def close(self) -> None:
        """Has our own streams as they were."""


class Ours(Streams):
    """Ours are the command's; or, with a terminal, they are relayed."""

    def __init__(self, *, interactive: bool, terminal: bool) -> None:
        super().__init__(terminal=terminal)
        if terminal and interactive and not os.isatty(0):
            raise RunError("-t wants a terminal, and standard input is none; leave -t away")
        if terminal:  # while there is nothing but the host's to be imported
            from pullpipe.runner import terminal as relay

            self._relay = relay
        self._interactive = interactive
        self._master = NULL
        self._restore: Callable[[], None] | None = None
        self.given = (0 if interactive else NULL, 1, 2)

    def connect(self, master: int) -> None:
        self._master = master
        self._relay.copy_size(master)
        self.outputs[master] = lambda: _copy(master, 1)
        if self._interactive:
            self._restore = self._relay.set_raw(0)
            self.inputs[0] = lambda: _copy(0, master)

    def resized(self) -> None:
        if self._master != NULL:
            self._relay.copy_size(self._master)

    def close(self) -> None:
        if self._restore:
            self._restore()
        if self._master != NULL:
            os.close(self._master)


class Logged(Streams):
    """They go to a log; what is read, if anything, never comes."""

    def __init__(self, log: Log, *, interactive: bool, terminal: bool) -> None:
        super().__init__(terminal=terminal)
        self._log = log
        self._kept: list[int] = []
        if not terminal:
            out, self_out = os.pipe()
            err, self_err = os.pipe()
            nothing = NULL
            if interactive:
                nothing, endless = os.pipe()
                self._kept.append(endless)
            self.given = (nothing, self_out, self_err)
            self._take(out, "stdout")
            self._take(err, "stderr")

    def _take(self, source: int, name: str) -> None:
        self._kept.append(source)
        self.outputs[source] = lambda: self._log.take(source, name)

    def forked(self) -> None:
        for descriptor in self.given:
            if descriptor != NULL:
                os.close(descriptor)

    def connect(self, master: int) -> None:
        self._take(master, "stdout")

    def close(self) -> None:
        self._log.close()
        for descriptor in self._kept:
            os.close(descriptor)


def _copy(source: int, target: int) -> bool:
    try:
        data = os.read(source, _PIECE)
    except OSError:  # EIO: the other side of a terminal is closed
        return False
    left = data
    while left:
        left = left[os.write(target, left) :]
    return bool(data)

"""A process that becomes a command in a container, from both sides.

Inside, `become` has it enter the container, gives up what it does not need, and replaces it by the command. Outside,
`oversee` hears over a socket what keeps it from that, serves its streams, and waits for its end. The socket closes by
itself when the command takes over.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from pullpipe import linux
from pullpipe.errors import CommandNotExecutable, CommandNotFound, PullpipeError, RunError
from pullpipe.runner import command, sandbox, signals
from pullpipe.runner.command import Command
from pullpipe.runner.signals import Signals
from pullpipe.runner.streams import NULL, Streams
from pullpipe.runner.walls import Rights
from store import StoreError

_MESSAGE_LIMIT = 64 << 10  # bytes
_WHY_LIMIT = 4096  # characters
_ERRORS = {error.__name__: error for error in (CommandNotFound, CommandNotExecutable)}


def open_channel() -> tuple[socket.socket, socket.socket]:
    """Ours and the process's end of it; what is sent at once comes at once."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def described(error: Exception) -> bytes:
    """An error, for another process."""
    why = str(error)
    if isinstance(error, OSError) and not isinstance(error, StoreError):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        why = f"the command cannot be started: {where}{(error.strerror or why).lower()}"
    return json.dumps({"error": type(error).__name__, "why": why[:_WHY_LIMIT]}).encode()


def failure(message: bytes) -> RunError | None:
    """The error that another process has described, if that is what it says."""
    try:
        said = json.loads(message)
        return _ERRORS.get(said["error"], RunError)(said["why"])
    except (ValueError, KeyError):
        return None


# Outside.


def oversee(pid: int, channel: socket.socket, streams: Streams, life: Life, *, tied_to: int | None = None) -> int:
    """Serves the process until it has ended, and reaps it. Returns its exit code; 128+N when signal N ended it. It is
    killed when the one ends whose pidfd is `tied_to`.

    Raises what kept it from becoming the command.
    """
    with channel, Signals(pid) as heard:
        told = _Told(channel, streams, life)
        try:
            streams.begin(heard.process)
            _serve(told, streams, heard, [] if tied_to is None else [tied_to])
        except BaseException:
            signal.pidfd_send_signal(heard.process, signal.SIGKILL)
            raise
        finally:
            heard.wait_for(heard.process)
            _, status = os.waitpid(pid, 0)
            life.ended()
            streams.end(heard.told_to_end)
    if told.failure:
        raise told.failure
    code = os.waitstatus_to_exitcode(status)
    return 128 + (heard.killed_by or -code) if code < 0 else code


def see_off(channel: socket.socket) -> None:
    """Waits until a process that nobody will oversee is the command. Raises what keeps it from that."""
    with channel:
        while message := channel.recv(_MESSAGE_LIMIT):
            if failed := failure(message):
                raise failed


class Life:
    """What is to be done at the turns of the process's life."""

    def begun(self, withheld: int) -> None:
        """It is the command now. `withheld`: what `Entrance.enter` returned."""

    def ended(self) -> None:
        """It has been reaped; what it has left behind may still run, if it was no PID namespace's first."""


class _Told:
    """What the process says, until it has become the command."""

    def __init__(self, channel: socket.socket, streams: Streams, life: Life) -> None:
        self.open = [channel.fileno()]
        self.failure: RunError | None = None
        self._channel, self._streams, self._life = channel, streams, life
        self._withheld = 0

    def hear(self) -> bool:
        """The next that it says, without waiting; whether there was something, and it may say more."""
        if not self.open:
            return False
        try:
            message, descriptors, _, _ = socket.recv_fds(self._channel, _MESSAGE_LIMIT, 1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        if descriptors:
            from pullpipe.runner import terminal

            terminal.check(descriptors[0])
            self._streams.connect(descriptors[0])
            self._channel.send(b"g")
        elif message:
            if (failed := failure(message)) is None:
                self._withheld = json.loads(message)["withheld"]
            self.failure = failed
        else:
            self.open.clear()
            if not self.failure:
                self._life.begun(self._withheld)
        return bool(self.open)


def _serve(told: _Told, streams: Streams, heard: Signals, tied_to: list[int]) -> None:
    while True:
        ready, resized = heard.wait(heard.process, *told.open, *tied_to)
        if resized:
            streams.resized()
        while told.hear():
            pass
        if heard.process in ready:
            return
        if any(process in ready for process in tied_to):
            signal.pidfd_send_signal(heard.process, signal.SIGKILL)
            return


# Inside.


class Entrance(NamedTuple):
    """How the process comes to be in the container, and what it may do there."""

    enter: Callable[[], int]  # returns the capabilities that not even root has there
    rights: Rights
    new: bool = True  # nothing else runs in it yet
    tied: bool = True  # it ends with whoever oversees it
    read_only: bool = False  # the root is, from when all is made in it
    init: bool = False  # the process stays, and the command is its child


def become(planned: Command, streams: Streams, channel: socket.socket, entrance: Entrance) -> NoReturn:
    """Enters the container, gives up what it does not need, becomes the command."""
    try:
        signals.reset()
        os.setsid()
        if streams.terminal:  # later it could be the container's
            from pullpipe.runner import terminal
        if entrance.init:
            from pullpipe.runner import init
        take(streams.given)
        close_all_but(channel.fileno())  # none of the host's may be open in the container (CVE-2024-21626)
        withheld = entrance.enter()
        if streams.terminal:
            master, slave = terminal.open_pair()
            socket.send_fds(channel, [b"t"], [master])
            os.close(master)
            channel.recv(1)  # until the terminal has its size
            terminal.become_controlling(slave)
            os.close(slave)
        identity = command.identify(planned.user, planned.groups)
        if streams.terminal:
            os.fchown(0, identity.uid, -1)
        else:
            sandbox.own_streams(identity.uid)
        command.enter_working_directory(planned.working_dir, make=entrance.new)
        if entrance.read_only:
            sandbox.close_root()
        sandbox.give_up_rights(identity, entrance.rights, withheld)
        if entrance.tied:
            linux.end_with_parent(signal.SIGKILL)  # again: the change of user took it back
            _check_runner(channel)
        channel.send(json.dumps({"withheld": withheld}).encode())
        if entrance.init:
            init.stay_behind(terminal=streams.terminal)
        command.execute(planned._replace(env={"HOME": identity.home, **planned.env}))
    except (PullpipeError, StoreError, OSError) as error:
        report(channel, error)
    except BaseException as error:
        report(channel, RunError(f"a bug of pullpipe's: {type(error).__name__}: {error}"))
    finally:
        os._exit(125)


def take(given: tuple[int, int, int]) -> None:
    """Has descriptors be 0, 1 and 2; none of them stands at another's place."""
    for stream, descriptor in enumerate(given):
        if descriptor == NULL:
            descriptor = os.open("/dev/null", os.O_RDONLY if stream == 0 else os.O_WRONLY)
        if descriptor != stream:
            os.dup2(descriptor, stream)


def _check_runner(channel: socket.socket) -> None:
    """Ends this process if the runner ended before we were tied to it."""
    with contextlib.suppress(BlockingIOError):
        if not channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            os._exit(125)


def report(channel: socket.socket, error: Exception) -> None:
    """Tells `oversee` what keeps this process from becoming the command."""
    with contextlib.suppress(OSError):
        channel.sendall(described(error))


def close_all_but(*kept: int) -> None:
    """Of all descriptors but the standard streams."""
    start = 3
    for fd in sorted(kept):
        linux.close_range(start, fd - 1)
        start = fd + 1
    linux.close_range(start)

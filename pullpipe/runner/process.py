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
from pullpipe.runner.walls import Rights
from store import StoreError

_ERRORS = {error.__name__: error for error in (CommandNotFound, CommandNotExecutable)}


class Streams(NamedTuple):
    """What the command's standard streams are."""

    interactive: bool = False  # standard input goes to the command
    terminal: bool = False  # the command gets a terminal


# Outside.


def oversee(pid: int, channel: socket.socket, streams: Streams) -> int:
    """Serves the process until it has ended, and reaps it. Returns its exit code; 128+N when signal N ended it.

    Raises what kept it from becoming the command.
    """
    with channel, Signals(pid) as heard:
        try:
            _relay_until_closed(channel, streams, heard)
        finally:
            heard.wait_for(heard.process)
            _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 + (heard.killed_by or -code) if code < 0 else code


def _relay_until_closed(channel: socket.socket, streams: Streams, heard: Signals) -> None:
    """Hears from the process until it has become the command, and serves its terminal."""
    heard.wait_for(channel.fileno())
    message, descriptors, _, _ = socket.recv_fds(channel, 64 << 10, 1)
    if descriptors:
        from pullpipe.runner import terminal

        terminal.copy_size(descriptors[0])
        channel.send(b"g")
        terminal.relay(descriptors[0], interactive=streams.interactive, wait=heard.wait)
        heard.wait_for(channel.fileno())
        message, _, _, _ = socket.recv_fds(channel, 64 << 10, 0)
    if message:
        failure = json.loads(message)
        raise _ERRORS.get(failure["error"], RunError)(failure["why"])


# Inside.


class Entrance(NamedTuple):
    """How the process comes to be in the container, and what it may do there."""

    enter: Callable[[], int]  # returns the capabilities that not even root has there
    rights: Rights
    read_only: bool = False  # the root is, from when all is made in it
    init: bool = False  # the process stays, and the command is its child


def become(planned: Command, streams: Streams, channel: socket.socket, entrance: Entrance) -> NoReturn:
    """Enters the container, gives up what it does not need, becomes the command."""
    try:
        signals.reset()
        os.setsid()
        if streams.terminal:
            from pullpipe.runner import terminal
        if entrance.init:
            from pullpipe.runner import init
        if not streams.interactive:
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
        _close_all_but(channel.fileno())
        withheld = entrance.enter()
        if streams.terminal:
            master, slave = os.openpty()  # of the container's devpts
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
        command.enter_working_directory(planned.working_dir)
        if entrance.read_only:
            sandbox.close_root()
        sandbox.give_up_rights(identity, entrance.rights, withheld)
        linux.end_with_parent(signal.SIGKILL)  # again: the change of user took it back
        _check_runner(channel)
        if entrance.init:
            init.stay_behind(terminal=streams.terminal)
        command.execute(planned._replace(env={"HOME": identity.home, **planned.env}))
    except (PullpipeError, StoreError, OSError) as error:
        _report(channel, type(error).__name__, str(error))
    except BaseException as error:
        _report(channel, "RunError", f"a bug of pullpipe's: {type(error).__name__}: {error}")
    finally:
        os._exit(125)


def _check_runner(channel: socket.socket) -> None:
    """Ends this process if the runner ended before we were tied to it."""
    with contextlib.suppress(BlockingIOError):
        if not channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            os._exit(125)


def _report(channel: socket.socket, error: str, why: str) -> None:
    with contextlib.suppress(OSError):
        channel.sendall(json.dumps({"error": error, "why": why}).encode())


def _close_all_but(kept: int) -> None:
    """No descriptor of the host may be open in the container (CVE-2024-21626), inherited or ours."""
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))

"""A container's life, seen from outside: its record, its first process, signals to it, its exit code, its end.

The mounts live in the container's own mount namespace, so the kernel takes them away with its last process: whatever
becomes of this one, nothing stays mounted. If it is killed, so is the container.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
from types import FrameType
from typing import NamedTuple, NoReturn, Self

from pullpipe import linux, stack
from pullpipe.errors import CommandNotExecutable, CommandNotFound, NeedsRoot, PullpipeError, RunError
from pullpipe.local import LocalImage
from pullpipe.runner import command, names, sandbox, seccomp
from pullpipe.runner.command import Command, Overrides
from pullpipe.runner.walls import Walls
from store import Container, Store, StoreError

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
_HARMLESS = frozenset({signal.SIGCONT})  # does not end a process that does not handle it
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # Docker's rule
_ERRORS = {error.__name__: error for error in (CommandNotFound, CommandNotExecutable)}


class Options(NamedTuple):
    """How to run."""

    overrides: Overrides = Overrides()
    name: str = ""
    hostname: str = ""
    interactive: bool = False  # standard input goes to the command
    terminal: bool = False  # the command gets a terminal
    remove: bool = False  # the container is removed when the command has ended
    walls: Walls = Walls()


def run(store: Store, image: LocalImage, options: Options) -> int:
    """Runs the image's command in a new container and returns its exit code; 128+N when signal N ended it.

    Raises `RunError` when the command cannot be started, `NeedsRoot`, `KernelRefused`, `StoreError`, `OSError`.
    """
    if os.geteuid() != 0:
        raise NeedsRoot("running a container takes root's rights; enter a user namespace first, or use sudo")
    if options.terminal and options.interactive and not os.isatty(0):
        raise RunError("-t wants a terminal, and standard input is none; leave -t away")
    if options.name and not _NAME.fullmatch(options.name):
        raise RunError(f"the name {options.name!r} is none: letters, digits, and then also _ . - are allowed")
    planned = command.plan(image.config, options.overrides, os.environ, terminal=options.terminal)
    rights = options.walls.rights
    program = seccomp.program(options.walls.seccomp, rights.capabilities, os.path.join(store.root, "cache"))
    options = options._replace(walls=options.walls._replace(rights=rights._replace(filter=program)))
    with store.shared():  # until the record stands, nothing else keeps the layers
        container = store.containers.create(
            image=image.record.reference,
            manifest=image.record.manifest,
            stack=image.chain_id,
            command=planned.argv,
            name=options.name,
        )
    lock = store.containers.lock(container)
    lock.acquire()
    try:
        exit_code = _start(store, container, planned, options)
        if not options.remove:
            store.containers.update(container._replace(exit_code=exit_code))
    except RunError as error:
        store.containers.update(container._replace(exit_code=error.exit_code))
        raise
    finally:
        lock.release()
        if options.remove:
            store.containers.remove(container)
    return exit_code


def _start(store: Store, container: Container, planned: Command, options: Options) -> int:
    hostname = options.hostname or container.short_id
    walls = options.walls
    plan = sandbox.Plan(
        stack=stack.build(store, container),
        rootfs=os.path.join(store.containers.path(container), "rootfs"),
        hostname=hostname,
        files=names.write_files(store.containers.path(container), hostname, walls.network),
        walls=walls,
    )
    ours, theirs = socket.socketpair()
    if walls.host_pids:
        linux.adopt_orphans()  # nothing but us ends them
        pid = linux.fork_tied()
    else:
        pid = linux.fork_first()
    if pid == 0:
        ours.close()
        _become(plan, planned, options, theirs)
    theirs.close()
    try:
        with ours, _Signals(pid) as signals:
            try:
                _relay_until_closed(ours, options, signals)
            finally:
                signals.wait_for(signals.process)
                _, status = os.waitpid(pid, 0)
    finally:
        if walls.host_pids:
            linux.end_children()
        if os.path.ismount(plan.rootfs):  # from within a chroot a shared mount cannot be made private: it came through
            linux.umount(plan.rootfs, linux.MNT_DETACH)
    code = os.waitstatus_to_exitcode(status)
    return 128 + (signals.killed_by or -code) if code < 0 else code


def _relay_until_closed(channel: socket.socket, options: Options, signals: _Signals) -> None:
    """Hears from the container's first process until it has become the command, and serves its terminal.

    Raises what kept it from becoming the command.
    """
    signals.wait_for(channel.fileno())
    message, descriptors, _, _ = socket.recv_fds(channel, 64 << 10, 1)
    if descriptors:
        from pullpipe.runner import terminal

        terminal.copy_size(descriptors[0])
        channel.send(b"g")
        terminal.relay(descriptors[0], interactive=options.interactive, wait=signals.wait)
        signals.wait_for(channel.fileno())
        message, _, _, _ = socket.recv_fds(channel, 64 << 10, 0)
    if message:
        failure = json.loads(message)
        raise _ERRORS.get(failure["error"], RunError)(failure["why"])


def _become(plan: sandbox.Plan, planned: Command, options: Options, channel: socket.socket) -> NoReturn:
    """The container's first process: builds the walls, gives up what it does not need, becomes the command."""
    try:
        _reset_signals()
        os.setsid()
        if options.terminal:
            from pullpipe.runner import terminal
        if plan.walls.init:
            from pullpipe.runner import init
        if not options.interactive:
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
        _close_all_but(channel.fileno())
        withheld = sandbox.enter(plan)
        if options.terminal:
            master, slave = os.openpty()  # of the devpts that has just been mounted
            socket.send_fds(channel, [b"t"], [master])
            os.close(master)
            channel.recv(1)  # until the terminal has its size
            terminal.become_controlling(slave)
            os.close(slave)
        identity = command.identify(planned.user, planned.groups)
        if options.terminal:
            os.fchown(0, identity.uid, -1)
        else:
            sandbox.own_streams(identity.uid)
        command.enter_working_directory(planned.working_dir)
        sandbox.close_root(plan.walls)
        sandbox.give_up_rights(identity, plan.walls.rights, withheld)
        linux.end_with_parent(signal.SIGKILL)  # again: the change of user took it back
        _check_runner(channel)
        if plan.walls.init:
            init.stay_behind(terminal=options.terminal)
        command.execute(planned._replace(env={"HOSTNAME": plan.hostname, "HOME": identity.home, **planned.env}))
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


def _reset_signals() -> None:
    """Python ignores some signals, and what a process ignores its successor ignores too."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):  # those that the C library keeps for itself
            signal.signal(number, signal.SIG_DFL)


def _close_all_but(kept: int) -> None:
    """No descriptor of the host may be open in the container (CVE-2024-21626), inherited or ours."""
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


class _Signals:
    """Signals to us go to the command, for as long as the block runs.

    The first process of a PID namespace never feels a signal that it does not handle. Anywhere else such a signal would
    have ended it, and that is what the sender expects: it is killed, and `killed_by` tells by which.

    Python runs a handler only when it comes back from a system call, and a signal that arrives just before one does not
    interrupt it. So signals arrive as bytes in a pipe, and nothing here waits without waiting for that, too.
    """

    def __init__(self, pid: int) -> None:
        self.killed_by = 0
        self._pid = pid

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
                for number in os.read(self._arrived, 4096):
                    resized = resized or number == signal.SIGWINCH
                    if number in _FORWARDED:
                        self._forward(number)
            if ready or resized:
                return ready, resized

    def wait_for(self, descriptor: int) -> None:
        """Waits until it is readable."""
        while not self.wait(descriptor)[0]:
            pass

    def _forward(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, number)
            if number not in _HARMLESS and not _feels(self._pid, number):
                self.killed_by = self.killed_by or number
                os.kill(self._pid, signal.SIGKILL)


def _note(_number: int, _frame: FrameType | None) -> None:
    """Nothing to do: that a handler is there has Python write the number to the pipe."""


def _feels(pid: int, number: int) -> bool:
    """Whether the process handles or ignores the signal by its own will."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    mask = int(fields["SigCgt"], 16) | int(fields["SigIgn"], 16)
    return bool(mask >> (number - 1) & 1)

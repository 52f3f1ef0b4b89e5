"""A further command in a running container: within the same walls, and with no right that they do not leave.

Whatever is in the container may be hostile by now, and sees the process as soon as it is in the PID namespace. So the
process is hidden before it goes there (CVE-2019-5736), holds nothing of the host but its ends of pipes, and loads and
believes nothing that it finds (CVE-2019-14271).
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pullpipe import interpreter, linux
from pullpipe.errors import KernelRefused, NotRunning, RunError
from pullpipe.runner import capabilities, command, ending, process, sandbox
from pullpipe.runner.command import Command
from pullpipe.runner.ending import First
from pullpipe.runner.process import Entrance, Life
from pullpipe.runner.settings import Settings
from pullpipe.runner.streams import Ours, Streams
from store import Container, Store, namespace

_KINDS = {
    "user": linux.CLONE_NEWUSER,
    "mnt": linux.CLONE_NEWNS,
    "pid": linux.CLONE_NEWPID,
    "uts": linux.CLONE_NEWUTS,
    "ipc": linux.CLONE_NEWIPC,
    "net": linux.CLONE_NEWNET,
    "cgroup": linux.CLONE_NEWCGROUP,
}


class Asked(NamedTuple):
    """What to run; None and empty are as for the container's own command."""

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()  # NAME=VALUE, or NAME to pass on our own
    working_dir: str = ""
    user: str = ""
    interactive: bool = False
    terminal: bool = False
    detached: bool = False  # nobody waits for its end


def execute(store: Store, container: Container, asked: Asked, ambient: Mapping[str, str]) -> int:
    """Runs it and returns its exit code, 128+N when signal N ended it; or 0 as soon as it has begun, if nobody waits.

    Raises `NotRunning`, `RunError`, `KernelRefused`, `OSError`.
    """
    if asked.detached and asked.terminal:
        raise RunError("with -d nobody would hold the terminal; leave -t away")
    process.close_all_but()  # what we were given is not for the container
    streams = Streams() if asked.detached else Ours(interactive=asked.interactive, terminal=asked.terminal)
    planned = _planned(container, Settings.of(container), asked, ambient)
    with ending.first_of(store, container) as first:
        if asked.detached and first.state.host_pids:
            raise RunError("with --pid host nothing would end what -d starts; leave -d away")
        return _join(planned, streams, first, tied=not asked.detached)


def _planned(container: Container, settings: Settings, asked: Asked, ambient: Mapping[str, str]) -> Command:
    env = {"HOSTNAME": settings.hostname or container.short_id} | ({"TERM": "xterm"} if asked.terminal else {})
    env = command.with_variables({**env, **settings.env}, asked.env, ambient)
    if any("\0" in text for text in (*asked.argv, *env, *env.values())):
        raise RunError("a command cannot hold a NUL character")
    directory = asked.working_dir or settings.working_dir
    return Command(asked.argv, env, directory, asked.user or settings.user, settings.groups)


def _join(planned: Command, streams: Streams, first: First, *, tied: bool) -> int:
    interpreter.check()
    inside = _someone_inside(first)
    if first.state.rights.capabilities & capabilities.SYS_PTRACE and not _differs(inside, "user"):
        raise RunError(
            "the container has CAP_SYS_PTRACE, and could take over what comes into it before that has given up its "
            "rights; start it without that capability, or without root"
        )
    ours, theirs = process.open_channel()
    try:
        pid = linux.fork_into(lambda: _enter(inside, first), tied=tied)
    except KernelRefused as error:
        if select.select([first.process], [], [], 0)[0]:
            raise NotRunning("the container's command has just ended") from error
        raise
    if pid == 0:
        ours.close()
        entrance = Entrance(lambda: _arrive(first), first.state.rights, new=False, tied=tied)
        process.become(planned, streams, theirs, entrance)
    theirs.close()
    if not tied:
        process.see_off(ours)
        return 0
    # With the machine's PIDs, nothing else would end it with the container.
    exit_code = process.oversee(pid, ours, streams, Life(), tied_to=first.process if first.state.host_pids else None)
    streams.deliver()
    return exit_code


def _someone_inside(first: First) -> int:
    """Whose namespaces to join. An init of ours cannot be looked into; its first child is the command."""
    if runtime := first.state.runtime:  # which is the first process, and sees the host
        raise RunError(f"the container was handed over to {runtime}, and cannot be joined; stop it first")
    pid = first.state.pid
    if not first.state.init:
        return pid
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        children = file.read().split()
    if not children:
        raise NotRunning("the container's command has just ended")
    return int(children[0])


def _enter(pid: int, first: First) -> None:
    """From the host into the container's namespaces, but for the PID namespace: that is for children."""
    if first.state.cgroups:
        from pullpipe.runner import cgroups

        try:
            cgroups.join(first.state.cgroups, 0)
        except PermissionError as error:
            raise KernelRefused(
                "the kernel lets nobody move from this session into the container's cgroup, which keeps its limits; "
                "use `systemd-run --user --scope pullpipe exec …`"
            ) from error
    _go(pid, first, _KINDS)


def enter_tree(first: First) -> None:
    """Has this process see the container's files, and no more of it: its root is the container's."""
    _go(_someone_inside(first), first, ("user", "mnt"))


def _go(pid: int, first: First, kinds: Iterable[str]) -> None:
    flags = 0
    try:
        target = os.pidfd_open(pid)
        for kind in kinds:
            flags |= _KINDS[kind] if _differs(pid, kind) else 0
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (ProcessLookupError, FileNotFoundError) as error:
        raise NotRunning("the container's command has just ended") from error
    except PermissionError as error:
        raise KernelRefused("the kernel lets only who has started the container join it; be that user") from error
    uid, outside = os.geteuid(), os.stat("/")
    linux.hide_from_others()
    linux.call_this_process("pullpipe")
    linux.import_nothing_more()
    linux.join(target, flags)
    if flags & linux.CLONE_NEWUSER:
        namespace.entered(uid)
    if first.state.withheld & capabilities.SYS_CHROOT:  # the root of its mount namespace is the host's
        os.fchdir(root)
        os.chroot(".")
    os.chdir("/")
    if os.path.samestat(os.stat("/"), outside):
        raise RunError("the way into the container has led to the machine's own root; report it as a bug")
    os.close(root)
    os.close(target)


def _differs(pid: int, kind: str) -> bool:
    """Whether the process has another namespace than ours."""
    return not os.path.samefile(f"/proc/{pid}/ns/{kind}", f"/proc/self/ns/{kind}")


def _arrive(first: First) -> int:
    os.umask(0o022)
    sandbox.exchange_streams()
    return first.state.withheld

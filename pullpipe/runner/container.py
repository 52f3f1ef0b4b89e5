"""A container's life, seen from outside: its record, its first process, its exit code, its end.

The mounts live in the container's own mount namespace, so the kernel takes them away with its last process: whatever
becomes of this one, nothing stays mounted. If it is killed, so is the container.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pullpipe import linux, stack
from pullpipe.errors import NeedsRoot, NotFound, RunError
from pullpipe.local import LocalImage
from pullpipe.runner import command, names, process, sandbox, seccomp
from pullpipe.runner.command import Command, Overrides
from pullpipe.runner.process import Entrance, Streams
from pullpipe.runner.walls import Walls
from store import Container, Store

if TYPE_CHECKING:
    from pullpipe.runner.cgroups import Group
    from pullpipe.runner.limits import Limits

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # Docker's rule


class Options(NamedTuple):
    """How to run."""

    overrides: Overrides = Overrides()
    name: str = ""
    hostname: str = ""
    interactive: bool = False  # standard input goes to the command
    terminal: bool = False  # the command gets a terminal
    remove: bool = False  # the container is removed when the command has ended
    walls: Walls = Walls()
    limits: Limits | None = None


class Ended(NamedTuple):
    """How it ended."""

    exit_code: int  # the command's; 128+N when signal N ended it
    out_of_memory: bool = False  # whether the kernel has killed a process in it for that


def run(store: Store, image: LocalImage, options: Options) -> Ended:
    """Runs the image's command in a new container.

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
    groups = _plan_limits(options.limits)
    with store.shared():  # until the record stands, nothing else keeps the layers
        if image.chain_id not in store.stacks:
            raise NotFound(f"{image.record.reference} is not in the store any more: somebody has just removed it")
        container, lock = store.containers.create(
            image=image.record.reference,
            manifest=image.record.manifest,
            stack=image.chain_id,
            command=planned.argv,
            name=options.name,
        )
    try:
        ended = _start(store, container, planned, options, groups)
        if not options.remove:
            store.containers.update(container._replace(**ended._asdict()))
    except RunError as error:
        store.containers.update(container._replace(exit_code=error.exit_code))
        raise
    finally:
        if options.remove:
            store.containers.remove(container, lock)
        lock.release()
    return ended


def _plan_limits(limits: Limits | None) -> list[Group]:
    if limits is None:
        return []
    from pullpipe.runner import cgroups

    return cgroups.plan(limits)


def _start(store: Store, container: Container, planned: Command, options: Options, groups: Sequence[Group]) -> Ended:
    hostname = options.hostname or container.short_id
    own = store.containers.path(container)
    walls = options.walls
    if groups:
        from pullpipe.runner import cgroups
    limited = [cgroups.directory(group, container.id) for group in groups]
    shown = cgroups.shown(groups, container.id, os.path.join(own, "cgroup")) if groups else []
    plan = sandbox.Plan(
        stack=stack.build(store, container),
        rootfs=os.path.join(own, "rootfs"),
        hostname=hostname,
        files=names.write_files(own, hostname, walls.network),
        walls=walls._replace(mounts=(*shown, *walls.mounts)),
    )

    def enter() -> int:
        if limited:
            cgroups.join(limited, 0)
        return sandbox.enter(plan)

    streams = Streams(options.interactive, options.terminal)
    entrance = Entrance(enter, walls.rights, walls.read_only, walls.init)
    planned = planned._replace(env={"HOSTNAME": hostname, **planned.env})
    try:
        if groups:
            cgroups.make(groups, container.id)
        exit_code = _run_to_its_end(planned, streams, entrance, host_pids=walls.host_pids)
        return Ended(exit_code, bool(limited) and cgroups.out_of_memory(limited))
    finally:
        if limited:
            cgroups.remove(limited)
        if os.path.ismount(plan.rootfs):  # from within a chroot a shared mount cannot be made private: it came through
            linux.umount(plan.rootfs, linux.MNT_DETACH)


def _run_to_its_end(planned: Command, streams: Streams, entrance: Entrance, *, host_pids: bool) -> int:
    ours, theirs = socket.socketpair()
    if host_pids:
        linux.adopt_orphans()  # nothing but us ends them
        pid = linux.fork_tied()
    else:
        pid = linux.fork_first()
    if pid == 0:
        ours.close()
        process.become(planned, streams, theirs, entrance)
    theirs.close()
    try:
        return process.oversee(pid, ours, streams)
    finally:
        if host_pids:
            linux.end_children()

"""What is true of a container only while it runs: containers/<id>/state.json, written by whoever holds its lock.

It is not flushed to disk: after a power cut nothing of it is true. Where it is there and nobody holds the lock, the
runner was killed, and `tidy` removes what the kernel has not.
"""

from __future__ import annotations

import binascii
import json
import os
from contextlib import suppress
from typing import NamedTuple

from pullpipe.errors import PullpipeError
from pullpipe.runner.walls import Rights
from store import Container, Store, StoreError, durable


class State(NamedTuple):
    """Of a container that is starting, running or ending."""

    pid: int = 0  # its first process, as its runner sees it; 0 until that is the command
    born: int = 0  # when that was, in the kernel's ticks: no other process has both numbers
    started: float = 0.0  # seconds since 1970
    cgroups: tuple[str, ...] = ()  # directories
    rights: Rights = Rights()  # of the first process, and of those that join it, from when it is the command
    withheld: int = 0  # capabilities that not even root has there
    init: bool = False  # the first process is ours, and the command its child
    host_pids: bool = False
    runtime: str = ""  # who runs it, if it was handed over; the first process is that one, then


def write(store: Store, container: Container, state: State) -> None:
    """Replaces what was written."""
    fields = state._asdict()
    program = binascii.b2a_base64(state.rights.filter, newline=False).decode()
    fields["rights"] = state.rights._asdict() | {"filter": program}
    durable.write_file(_path(store, container.id), json.dumps(fields).encode(), durable=False)


def read(store: Store, container: Container) -> State | None:
    """What its runner wrote last; None when there is no runner, or it has ended well."""
    try:
        with open(_path(store, container.id), "rb") as file:
            fields = json.loads(file.read())
        rights = fields["rights"] | {"filter": binascii.a2b_base64(fields["rights"]["filter"])}
        rights["limits"] = tuple((name, soft, hard) for name, soft, hard in rights["limits"])
        return State(**fields | {"rights": Rights(**rights), "cgroups": tuple(fields["cgroups"])})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def born(pid: int) -> int:
    """When the process was started, in ticks since the machine was. Raises `OSError` or `ValueError` if it is gone."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[22 - 3])


def forget(store: Store, container: Container, state: State) -> None:
    """At the container's end: removes what the kernel does not."""
    rootfs = os.path.join(store.containers.path(container), "rootfs")
    if os.path.ismount(rootfs):  # from within a chroot a shared mount cannot be made private: it came through
        from pullpipe import linux

        linux.umount(rootfs, linux.MNT_DETACH)
    if state.cgroups:
        from pullpipe.runner import cgroups

        if not cgroups.remove(state.cgroups):
            return  # `tidy` tries again
    with suppress(FileNotFoundError):
        os.unlink(_path(store, container.id))


def tidy(store: Store) -> None:
    """Cleans up after runners that were killed."""
    for container_id in store.containers.begun():
        with suppress(StoreError, PullpipeError, OSError):  # damaged, just removed, or not ours to remove
            _tidy(store, store.containers.get(container_id))


def _tidy(store: Store, container: Container) -> None:
    lock = store.containers.lock(container)
    if lock is None:
        return
    try:
        found = read(store, container) or State()
        forget(store, container, found)
        if json.loads(container.settings).get("remove"):
            store.containers.remove(container, lock)
        elif not container.started:
            store.containers.amend(container, started=found.started)
    finally:
        lock.release()


def _path(store: Store, container_id: str) -> str:
    return os.path.join(store.root, "containers", container_id, "state.json")

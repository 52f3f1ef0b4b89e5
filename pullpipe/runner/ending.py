"""Running containers from outside: signals to them, their end, and waiting for it."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from pullpipe.errors import KernelRefused, NotRunning
from pullpipe.runner import signals, state
from pullpipe.runner.settings import Settings, signal_number
from pullpipe.runner.state import State
from store import Container, NotInStore, Store

_STARTING = 10.0  # seconds; what takes longer until the command has begun does not start
_KILLED = 128 + signal.SIGKILL


class First(NamedTuple):
    """The first process of a running container."""

    state: State
    process: int  # a pidfd


@contextmanager
def first_of(store: Store, container: Container) -> Iterator[First]:
    """Holds on to it for a block of code: whatever becomes of it, it is not taken for another. Raises `NotRunning`."""
    deadline = time.monotonic() + _STARTING
    while not (found := state.read(store, container) or State()).pid:
        if not store.containers.is_running(container) or time.monotonic() > deadline:
            raise _not_running(container)
        time.sleep(0.005)  # it is only starting
    if not store.containers.is_running(container):
        raise _not_running(container)
    process = -1
    try:
        process = os.pidfd_open(found.pid)
        if state.born(found.pid) != found.born:
            raise ProcessLookupError
        yield First(found, process)
    except ProcessLookupError as error:
        raise _not_running(container) from error
    finally:
        if process >= 0:
            os.close(process)


def _not_running(container: Container) -> NotRunning:
    return NotRunning(f"container {container.name} is not running; `pullpipe ps` lists those that are")


def kill(store: Store, container: Container, number: int = signal.SIGKILL) -> None:
    """Sends its first process the signal; one that would end any other process ends this one.

    Raises `NotRunning`, `KernelRefused`.
    """
    with first_of(store, container) as first:
        try:
            signals.send(first.state.pid, first.process, number)
        except PermissionError as error:
            why = f"the kernel does not let us send {container.name} a signal"
            raise KernelRefused(f"{why}; do it where it was started, not in `pullpipe unshare`") from error


def ask_to_stop(store: Store, container: Container) -> None:
    """Sends it its stop signal, if it runs. Raises `KernelRefused`."""
    with suppress(NotRunning):
        kill(store, container, signal_number(Settings.of(container).stop_signal))


def stop(store: Store, container: Container, asked: float, timeout: int | None = None) -> None:
    """Waits for the end of one that has been asked to, at that moment of `time.monotonic`. So many seconds later it is
    sent SIGKILL; its own number of them, when that is None; -1 is never."""
    seconds = Settings.of(container).stop_timeout if timeout is None else timeout
    with suppress(NotRunning), first_of(store, container) as first:
        left = max(0, asked + seconds - time.monotonic()) if seconds >= 0 else None
        if not select.select([first.process], [], [], left)[0]:
            signal.pidfd_send_signal(first.process, signal.SIGKILL)
    wait(store, container)


def wait(store: Store, container: Container) -> int:
    """Waits for its end, and returns its exit code; that of SIGKILL when its runner was killed."""
    try:
        note = store.containers.wait(container)
        if not note:
            container = store.containers.get(container.id)
    except NotInStore:
        note = b""
    if note.isdigit():
        return int(note)
    return _KILLED if container.exit_code is None else container.exit_code


def end(store: Store, container: Container) -> bool:
    """Kills it, if it runs, and waits for its end; says whether it is still there to be removed."""
    with suppress(NotRunning):
        kill(store, container)
    wait(store, container)
    try:
        store.containers.get(container.id)
    except NotInStore:
        return False
    return True

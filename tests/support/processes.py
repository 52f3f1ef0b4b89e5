"""Watching processes, by what the kernel tells of them: no waiting without an event."""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PATIENCE = 20.0  # seconds; only a test that fails waits so long
# What a traceback tells of our own, but for the few lines that Python runs before the program's first.
_OURS = rf'"{Path(__file__).parents[2]}/(pullpipe|store)/(?!__(init|main)__\.py", line \d+, in <module>)'


def interrupted_at_start(said: str) -> bool:
    """Whether a command's standard error is Python's own, which Ctrl-C met before it had come to our program."""
    return "KeyboardInterrupt" in said and not re.search(_OURS, said)


def children(pid: int) -> list[int]:
    """The processes that this one has started, its threads' included."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass  # it, or that thread, has ended
    return found


def first_of_a_namespace(pid: int) -> int | None:
    """The descendant that is PID 1 of a PID namespace of its own, once there is one."""
    for one in descendants(pid):
        try:
            status = Path(f"/proc/{one}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if re.search(r"^NSpid:.*\t1$", status, re.MULTILINE):
            return one
    return None


def jobs_of(worker: int) -> list[int]:
    """Of a worker program: the children of the first process in its PID namespace, once that has its place."""
    first = first_of_a_namespace(worker)
    return children(first) if first is not None else []


def descendants(pid: int) -> list[int]:
    """These, and theirs."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


def is_waited_for(lock: Path) -> bool:
    """Whether somebody waits for the flock: /proc/locks marks those with an arrow."""
    inode = lock.stat().st_ino
    return any("->" in row and f":{inode} " in row for row in Path("/proc/locks").read_text().splitlines())


def until(what: Callable[[], bool], why: str) -> None:
    """Looks again and again, for what has no event to wait for."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, f"waited in vain: {why}"
        time.sleep(0.005)


class Watched:
    """A process that may be another's child. Made while it lives; `ended` waits for its end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def ended(self, timeout: float = PATIENCE) -> bool:
        """Whether it ends within so many seconds."""
        return bool(select.select([self._fd], [], [], timeout)[0])

    def close(self) -> None:
        """Forgets it."""
        os.close(self._fd)


def watched_descendants(pid: int) -> list[Watched]:
    """Those that do not end while they are listed."""
    found: list[Watched] = []
    for one in descendants(pid):
        with suppress(ProcessLookupError):
            found.append(Watched(one))
    return found

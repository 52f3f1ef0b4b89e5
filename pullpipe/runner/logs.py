"""What a container without a terminal of ours has printed: containers/<id>/log, a line for a line, in the form of
Kubernetes' container logs:

    2026-01-31T12:00:00.000000000Z stdout F a line
    2026-01-31T12:00:00.000000000Z stderr P the beginning of one

P is followed by more of the same line, or, at the end, by nothing.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from store import Container, Store, StoreError

_PIECE = 64 << 10  # bytes
_LINE = 16 << 10  # bytes; longer ones are split
_STAMP = 30  # characters


def path(store: Store, container: Container) -> str:
    """Where the log is, if there is one."""
    return os.path.join(store.containers.path(container), "log")


def stamp(nanoseconds: int) -> str:
    """The moment, in UTC; moments sort as these do."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09}Z"


class Log:
    """For who writes it. What does not get to the disk is lost, and the command goes on."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._begun: dict[str, bytes] = {}  # lines, by their streams

    def take(self, stream: str, data: bytes) -> None:
        """Keeps what comes next of a stream."""
        *lines, last = (self._begun.pop(stream, b"") + data).split(b"\n")
        prefix = f"{stamp(time.time_ns())} {stream} ".encode()
        found = [piece for line in lines for piece in _pieces(prefix, line, b"F")]
        if len(last) > _LINE:
            found += _pieces(prefix, last, b"P")
        elif last:
            self._begun[stream] = last
        self._write(b"".join(found))

    def close(self) -> None:
        """Writes the lines that have not ended, too."""
        for stream, line in self._begun.items():
            self._write(f"{stamp(time.time_ns())} {stream} P ".encode() + line + b"\n")
        os.close(self._fd)

    def _write(self, data: bytes) -> None:
        with suppress(OSError):
            while data:
                data = data[os.write(self._fd, data) :]


def _pieces(prefix: bytes, line: bytes, tag: bytes) -> Iterator[bytes]:
    """A line as the log has it; `tag` is that of its end."""
    while len(line) > _LINE:
        yield prefix + b"P " + line[:_LINE] + b"\n"
        line = line[_LINE:]
    yield prefix + tag + b" " + line + b"\n"


class Entry(NamedTuple):
    """A line, or a part of one."""

    moment: str
    stream: str
    text: bytes  # with the end of the line, where it has one


def read(
    store: Store, container: Container, *, tail: int | None = None, follow: Callable[[], None] | None = None
) -> Iterator[Entry]:
    """What the log holds, or its last lines; and with `follow` what comes to it, until the container's end. That is
    called whenever there is nothing more for now.

    Raises `OSError`, `KernelRefused`.
    """
    with open(path(store, container), "rb") as file:
        following = _Following(store, container) if follow else None
        if tail is not None:
            file.seek(_start_of_last(file.fileno(), tail))
        begun = b""
        while True:
            going_on = following is not None and store.containers.is_running(container)
            while data := file.read(_PIECE):
                *lines, begun = (begun + data).split(b"\n")
                yield from map(_entry, lines)
            if not follow or not following or not going_on:  # before the last look: so all has been read by now
                return
            follow()
            following.wait()


class _Following:
    """Waits for more to be written, or for the container's end."""

    def __init__(self, store: Store, container: Container) -> None:
        from pullpipe import linux

        self._written = linux.watch(path(store, container))
        self._ended, ends = os.pipe()

        def wait_for_end() -> None:
            with suppress(StoreError, OSError):
                store.containers.wait(container)
            os.close(ends)

        linux.start_thread(wait_for_end)

    def wait(self) -> None:
        if self._written in select.select([self._written, self._ended], [], [])[0]:
            os.read(self._written, _PIECE)


def _entry(line: bytes) -> Entry:
    moment, stream, tag, text = (line.split(b" ", 3) + [b""] * 3)[:4]
    return Entry(moment.decode(errors="replace"), stream.decode(errors="replace"), text + (b"\n" * (tag != b"P")))


def _start_of_last(fd: int, lines: int) -> int:
    """Where the last of them begin in the file."""
    size = os.fstat(fd).st_size
    length = _PIECE
    while True:
        start = max(0, size - length)
        data = os.pread(fd, size - start, start)
        skipped = data.find(b"\n") + 1 if start else 0
        at, found = len(data), 0
        while at > skipped:
            before = data.rfind(b"\n", skipped, at - 1) + 1 or skipped
            if data[before:at].split(b" ", 3)[2:3] != [b"P"] or at == len(data):
                found += 1  # it is the end of a line
                if found > lines:
                    return start + at
            at = before
        if not start:
            return 0
        length *= 4

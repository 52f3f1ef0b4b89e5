"""Advisory locks between processes, by flock(2): the kernel frees a dead owner's lock, so none is ever stale.

One rule keeps the store free of deadlocks: **nobody waits for a lock while holding one**, but for those of the store
as a whole, each held only for moments and taken in this order: `use.lock` (shared by whoever publishes an image or
stacks one, exclusive for whoever removes layers), then `containers.lock` or `index.lock` (one small read and write).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager


class Lock:
    """An flock on the file at `path`, which is created when it is not there."""

    _flags = os.O_RDWR | os.O_CREAT

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Takes the lock if that needs no waiting, and says whether it did."""
        return self._acquire(fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))

    def acquire(self, *, shared: bool = False) -> None:
        """Takes the lock, waiting for its holders as long as it needs."""
        self._acquire(fcntl.LOCK_SH if shared else fcntl.LOCK_EX)

    def _acquire(self, operation: int) -> bool:
        while True:
            fd = os.open(self.path, self._flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, operation)
                if is_at(fd, self.path):
                    self._fd = fd
                    return True
            except BlockingIOError:
                os.close(fd)
                return False
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # its last holder removed it while we waited: the file that counts is another one now

    def fileno(self) -> int:
        """The open file whose closing gives the lock back; negative when it is not held."""
        return self._fd

    def is_held(self) -> bool:
        """Whether somebody holds it exclusively. Whoever asks is not seen by others who ask."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_NB | fcntl.LOCK_SH)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def leave(self, note: bytes) -> None:
        """Writes a note for those who wait in `wait_for_note`, or who look; the holder does. Raises `OSError`."""
        os.ftruncate(self._fd, 0)
        written = 0
        while written < len(note):  # on a disk that is nearly full, less than it is given
            written += os.pwrite(self._fd, note[written:], written)

    def wait_for_note(self) -> bytes:
        """Waits until nobody holds the lock and returns the note that its last holder left, even if the file is removed
        by then. Raises `FileNotFoundError`."""
        fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            return os.read(fd, 4096)
        finally:
            os.close(fd)

    def release(self, *, remove: bool = False) -> None:
        """Gives the lock back, with `remove` its file too; does nothing when it is not held."""
        if self._fd >= 0:
            try:
                if remove:
                    os.unlink(self.path)
            finally:
                os.close(self._fd)
                self._fd = -1


class DirectoryLock(Lock):
    """An flock on the directory at `path` itself: it takes no new file, so it can be had on a full file system.

    The directory may be given another name meanwhile. Taking it raises `FileNotFoundError` when there is none.
    """

    _flags = os.O_RDONLY | os.O_DIRECTORY


def exists(path: str) -> bool:
    """Whether there is something at `path`. Raises `OSError` when that cannot be told, where `os.path.exists` says no:
    what cannot be seen would be swept, or made anew."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_at(fd: int, path: str) -> bool:
    """Whether the open file is still the one that `path` names."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


@contextmanager
def held(path: str, *, shared: bool = False) -> Iterator[None]:
    """Holds the lock at `path` for a block of code."""
    lock = Lock(path)
    lock.acquire(shared=shared)
    try:
        yield
    finally:
        lock.release()

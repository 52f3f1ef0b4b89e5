"""Removing directories, which may be large and deep: out of sight in one step, and then file by file.

What is out of sight in `staging/` is locked by whoever removes it; where nobody does, `store.trees.clean` goes on.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from store.locks import DirectoryLock

REMOVED = ".removed"  # the end of a name in `staging/`: what is being removed

_numbers = itertools.count()
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Doomed:
    """A directory that is out of sight, and whose files are still there: `path` is taken to `hidden`, in `staging/`.

    That makes no file, for it is what makes room on a full file system.
    """

    def __init__(self, path: str, hidden: str) -> None:
        self._path = hidden + REMOVED
        self._lock = DirectoryLock(path)
        self._lock.acquire()
        try:
            os.rename(path, self._path)
        except BaseException:
            self._lock.release()
            raise

    def remove(self) -> None:
        """Removes the files, which may take a while; `clean` does so after a crash, and tries again what cannot go."""
        try:
            remove_tree(self._path)
        except OSError:
            self._lock.release()
            raise
        self._lock.release()

    def fileno(self) -> int:
        """The open file that holds the lock; negative when nothing is left."""
        return self._lock.fileno()


@contextmanager
def removing() -> Iterator[list[Doomed]]:
    """A list for what the block takes away, whose files are removed at its end: all, whatever becomes of one.

    Whoever is asked to end meanwhile, by an exception, leaves the rest to a child, which nobody waits for.
    """
    doomed: list[Doomed] = []
    try:
        try:
            yield doomed
        except Exception:
            each_of(tree.remove for tree in doomed)  # they are out of sight, even if another could not be taken away
            raise
        each_of(tree.remove for tree in doomed)
    except (KeyboardInterrupt, SystemExit):
        if os.fork() == 0:
            _remove_alone(doomed)
        raise


def each_of(works: Iterable[Callable[[], object]]) -> None:
    """Does all of it, whatever becomes of one; then raises the first `OSError` that there was."""
    failures = []
    for work in works:
        try:
            work()
        except OSError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _remove_alone(doomed: Sequence[Doomed]) -> NoReturn:
    """In a child, whose terminal may go, and that keeps nobody waiting for a lock or the end of an output."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.setsid()
        kept = {tree.fileno() for tree in doomed}
        for fd in set(map(int, os.listdir("/proc/self/fd"))) - kept:
            with suppress(OSError):
                os.close(fd)
        for tree in doomed:
            with suppress(OSError):
                tree.remove()
    finally:
        os._exit(0)


def remove_tree(path: str) -> None:
    """Removes what is at `path`, a directory with all that is in it, following no symlink; nothing there is fine.

    However deep it is: a container may nest directories deeper than a path can name or a program recurse. So a
    directory's subdirectories are moved up to the top before it goes. Raises `OSError` about `path`.
    """
    try:
        _remove(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _remove(path: str) -> None:
    try:
        top = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        os.unlink(path)
        return
    try:
        while names := _remove_files(top):
            for name in names:
                below = os.open(name, _DIRECTORY, dir_fd=top)
                try:
                    for deeper in _remove_files(below):
                        _move_up(deeper, below, top)
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)


def _move_up(name: str, below: int, top: int) -> None:
    """Under another name, that is free: whoever began with this tree, and was killed, has used some."""
    while True:
        try:
            os.rename(name, f".moved.{next(_numbers)}", src_dir_fd=below, dst_dir_fd=top)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return


def _remove_files(directory: int) -> list[str]:
    """Removes all but directories from an open directory, and returns the names of those."""
    left = []
    anew = os.open(".", _DIRECTORY, dir_fd=directory)  # btrfs shows what was there when the directory was opened
    try:
        with os.scandir(anew) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.name)
                else:
                    os.unlink(entry.name, dir_fd=directory)
    finally:
        os.close(anew)
    return left

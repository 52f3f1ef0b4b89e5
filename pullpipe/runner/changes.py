"""What a container has added, changed and deleted: its upper directory beside the layers below."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from pullpipe import stack
from pullpipe.pipe.below import is_opaque, is_whiteout
from store import Container, Store
from store.compare import place_of

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NONE = -1  # for a descriptor
# What a runner mounts something on, in an image that has no such place.
_MOUNT_POINTS = ("dev", "proc", "sys", "etc/hosts", "etc/resolv.conf", "etc/hostname")


def changes(store: Store, container: Container) -> list[tuple[str, str]]:
    """(A, C or D; path) of all that was added, changed or deleted, by their paths, whether the container runs or not.

    A directory in which something has changed has changed, too. Raises `StoreError`, `KernelRefused`, `OSError`.
    """
    upper = os.path.join(store.containers.path(container), "upper")
    with stack.merged(store, stack.lower_of(store, container.stack), container.name) as (lower, check):
        survey = _Survey(upper, lower)
        try:
            survey.look()
        finally:
            survey.close()
        check()
    return [(kind, path) for path, kind in sorted(survey.found.items())]


def mount_points(upper: str) -> frozenset[str]:
    """Paths in an upper directory that are there only for a runner to mount something on: they are empty."""
    return frozenset(path for path in _MOUNT_POINTS if _is_empty(os.path.join(upper, path)))


def _is_empty(path: str) -> bool:
    try:
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            return not os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


class _Survey:
    """The container may change its tree meanwhile: every directory is opened name by name, and no symlink followed."""

    def __init__(self, upper: str, lower: str) -> None:
        self.found: dict[str, str] = {}
        self._upper, self._lower = os.open(upper, _DIRECTORY), os.open(lower, _DIRECTORY)
        self._hidden = mount_points(upper)

    def close(self) -> None:
        os.close(self._upper)
        os.close(self._lower)

    def look(self) -> None:
        todo: list[tuple[str, ...]] = [()]
        while todo:
            names = todo.pop()
            here = _open(self._upper, names)
            if here == _NONE:
                continue  # it has just been removed
            below = _open(self._lower, names)
            try:
                todo += [(*names, name) for name in self._look_at(here, below, names)]
            finally:
                for descriptor in (here, below):
                    if descriptor != _NONE:
                        os.close(descriptor)
        self._leave_out_mount_points()

    def _look_at(self, here: int, below: int, names: Sequence[str]) -> list[str]:
        """Returns the directories in it."""
        directories = []
        mine = os.listdir(here)
        for name in mine:
            path = "/".join((*names, name))
            status, other = _status(here, name), _status(below, name)
            if status is None or (other is None and (is_whiteout(status) or path in self._hidden)):
                continue
            self.found[f"/{path}"] = "D" if is_whiteout(status) else "A" if other is None else "C"
            if stat.S_ISDIR(status.st_mode):
                directories.append(name)
        if below != _NONE and is_opaque(os.fsdecode(place_of(here))):
            for name in set(os.listdir(below)) - set(mine):
                self.found["/" + "/".join((*names, name))] = "D"
        return directories

    def _leave_out_mount_points(self) -> None:
        """A directory that has changed only because something was made in it to be mounted on has not changed."""
        for directory in {os.path.dirname(path) for path in self._hidden} - {""}:
            mine, other = _status(self._upper, directory), _status(self._lower, directory)
            if mine is None or other is None or any(path.startswith(f"/{directory}/") for path in self.found):
                continue
            if (mine.st_mode, mine.st_uid, mine.st_gid) == (other.st_mode, other.st_uid, other.st_gid):
                self.found.pop(f"/{directory}", None)


def _open(top: int, names: Sequence[str]) -> int:
    """The directory there, if it is one."""
    directory = os.dup(top)
    for name in names:
        try:
            below = os.open(name, _DIRECTORY, dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError):
            return _NONE
        finally:
            os.close(directory)
        directory = below
    return directory


def _status(directory: int, name: str) -> os.stat_result | None:
    if directory == _NONE:
        return None
    try:
        return os.lstat(name, dir_fd=directory)
    except (FileNotFoundError, NotADirectoryError):
        return None

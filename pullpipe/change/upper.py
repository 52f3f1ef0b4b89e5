"""What a container has changed: the upper directory of its stack."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from pullpipe import stack
from store import Container, InUse, Store

# What a runner mounts something on, in an image that has no such place.
_MOUNT_POINTS = ("dev", "proc", "sys", "etc/hosts", "etc/resolv.conf", "etc/hostname")


@contextmanager
def ended(store: Store, container: Container) -> Iterator[str]:
    """The upper directory of a container that has ended, and that does not begin as long as the block runs.

    Raises `InUse`, `NotInStore`.
    """
    lock = store.containers.lock(container)
    if lock is None:
        raise InUse(f"container {container.name} is running, and may be changing its files; end its command first")
    try:
        if stack.is_mounted(container):
            raise InUse(f"{container.name} is mounted, and may be changed; `pullpipe umount {container.target}` first")
        yield os.path.join(store.containers.path(container), "upper")
    finally:
        lock.release()


def mount_points(directory: str) -> frozenset[str]:
    """Paths in an upper directory that are there only for a runner to mount something on: they are empty."""
    return frozenset(path for path in _MOUNT_POINTS if _is_empty(os.path.join(directory, path)))


def _is_empty(path: str) -> bool:
    try:
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            return not os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def root_has_changed(store: Store, container: Container) -> bool:
    """Whether the container's root has another mode or owner than its image's."""
    mine = os.stat(os.path.join(store.containers.path(container), "upper"))
    image = os.stat(store.stacks.files(container.stack))
    return (mine.st_mode, mine.st_uid, mine.st_gid) != (image.st_mode, image.st_uid, image.st_gid)

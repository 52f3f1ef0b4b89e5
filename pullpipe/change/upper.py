"""What a container has changed: the upper directory of its stack."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

from pullpipe import stack
from pullpipe.runner.changes import mount_points
from store import Container, InUse, Store


@contextmanager
def ended(store: Store, container: Container) -> Iterator[str]:
    """The upper directory of a container that has ended, and that does not begin as long as the block runs.

    Raises `InUse`, `NotInStore`.
    """
    lock = store.containers.lock(container)
    if lock is None:
        raise InUse(
            f"container {container.name} is running, and may be changing its files; end its command first, or take "
            f"what is there now by `pullpipe cp {container.name}:/ -`"
        )
    try:
        if stack.is_mounted(container):
            raise InUse(f"{container.name} is mounted, and may be changed; `pullpipe umount {container.target}` first")
        yield os.path.join(store.containers.path(container), "upper")
    finally:
        lock.release()


def left_out(store: Store, container: Container) -> frozenset[str]:
    """What of the upper directory is no change of the container's: places to mount something on, and directories that
    are there for those alone, and else as the image has them. Raises `NotInStore`, `Corrupt`, `OSError`."""
    upper = os.path.join(store.containers.path(container), "upper")
    hidden = mount_points(upper)
    parents = {os.path.dirname(path) for path in hidden} - {""}
    lower = stack.lower_of(store, container.stack)
    return hidden | {path for path in parents if _is_there_for(path, hidden, upper) and _is_as_in(path, upper, lower)}


def _is_there_for(directory: str, hidden: Collection[str], upper: str) -> bool:
    names = os.listdir(os.path.join(upper, directory))
    return all(f"{directory}/{name}" in hidden for name in names)


def _is_as_in(directory: str, upper: str, lower: Sequence[str]) -> bool:
    """Whether the directory has the mode and owner that the layers below give it; or they have none."""
    mine = os.lstat(os.path.join(upper, directory))
    for layer in lower:
        with suppress(FileNotFoundError, NotADirectoryError):
            other = os.lstat(os.path.join(layer, directory))
            return (mine.st_mode, mine.st_uid, mine.st_gid) == (other.st_mode, other.st_uid, other.st_gid)
    return True


def root_has_changed(store: Store, container: Container) -> bool:
    """Whether the container's root has another mode or owner than its image's."""
    mine = os.stat(os.path.join(store.containers.path(container), "upper"))
    image = os.stat(store.stacks.files(container.stack))
    return (mine.st_mode, mine.st_uid, mine.st_gid) != (image.st_mode, image.st_uid, image.st_gid)

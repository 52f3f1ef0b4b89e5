"""Overlay stacking: the mount of a settled stack (`pullpipe.pipe.settle` says what that is)."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from pullpipe import linux
from pullpipe.errors import KernelRefused, PullpipeError
from store import Container, Digest, NotInStore, Store, StoreError
from store.namespace import in_user_namespace
from store.trees import pinned

_LIMIT = 500  # lower directories of one mount: OVL_MAX_STACK in the kernel
SHOWN = linux.MS_NOSUID | linux.MS_NODEV  # of what everybody on the machine may see: they get no more rights by it


class Stack(NamedTuple):
    """What to mount."""

    lower: tuple[str, ...]  # directories, the topmost first; at least one
    upper: str
    work: str
    source: str  # what /proc/mounts calls it


def build(store: Store, container: Container) -> Stack:
    """The container's stack: its image's layers under directories of its own.

    The upper directory stands for the merged root, so it is given the root's attributes. Raises `NotInStore` for a
    stack that is missing, `OSError`.
    """
    own = store.containers.path(container)
    upper = os.path.join(own, "upper")
    lower = lower_of(store, container.stack)
    if not os.listdir(upper):
        root = os.stat(store.stacks.files(container.stack))
        os.chown(upper, root.st_uid, root.st_gid)
        os.chmod(upper, root.st_mode & 0o7777)
        os.utime(upper, ns=(root.st_mtime_ns, root.st_mtime_ns))
    return Stack(lower, upper, os.path.join(own, "work"), source(container))


def lower_of(store: Store, chain_id: Digest) -> tuple[str, ...]:
    """The directories of a settled stack, the topmost first; at least one. Raises `NotInStore`, `Corrupt`."""
    found = tuple(os.path.join(store.root, path) for path in store.stacks.info(chain_id).lower)
    return found or (store.stacks.files(chain_id),)


def source(container: Container) -> str:
    """What /proc/mounts calls the container's stack."""
    return f"pullpipe-{container.short_id}"


def is_mounted(container: Container) -> bool:
    """Whether the container's stack is what is seen at its target."""
    seen = ""
    with open("/proc/self/mounts", "rb") as file:
        for line in file:
            mount_source, place, _ = line.split(b" ", 2)
            if re.sub(rb"\\([0-7]{3})", lambda match: bytes((int(match[1], 8),)), place) == os.fsencode(
                container.target
            ):
                seen = mount_source.decode(errors="replace")  # the last one lies on top
    return bool(container.target) and seen == source(container)


def mount(stack: Stack, target: str, *, flags: int = 0) -> None:
    """Mounts the stack at `target`, writable through its upper directory. Raises `KernelRefused`."""
    options = f",upperdir={_escape(stack.upper)},workdir={_escape(stack.work)}"
    _mount(stack.lower, target, stack.source, flags, options)


def mount_read_only(stack: Stack, target: str) -> None:
    """Mounts the stack at `target`; the upper directory is its topmost lower one. Raises `KernelRefused`."""
    lower = stack.lower if len(stack.lower) >= _LIMIT else (stack.upper, *stack.lower)
    mount_layers(lower, target, stack.source)


@contextmanager
def merged(store: Store, lower: Sequence[str], name: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """A directory where these, the topmost first, are stacked, read-only; and what to call once it has been read.

    No lock keeps the layers in the store, and a tree that is being removed looks like one that has less. Then what is
    to be called raises `NotInStore` about `name`, and so does whatever fails meanwhile. Raises `KernelRefused`,
    `OSError`, too.

    From here on this process has a mount namespace of its own, so whatever becomes of it, nothing stays mounted.
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.keep_mounts_here()
    removed = NotInStore(f"{name} was removed, or repaired, while it was read; if it is still there, try again")
    with pinned(lower) as in_place:

        def check() -> None:
            if not in_place():
                raise removed

        try:
            with store.scratch() as target:
                mount_layers(lower, target)
                try:
                    yield target, check
                finally:
                    linux.umount(target, linux.MNT_DETACH)
        except (PullpipeError, StoreError, OSError) as error:
            if error is removed or in_place():
                raise
            raise removed from error


def mount_layers(lower: Sequence[str], target: str, source: str = "pullpipe") -> None:
    """Mounts directories, the topmost first, at `target`, read-only, and as `SHOWN` says. Raises `KernelRefused`."""
    if len(lower) == 1:  # overlayfs wants two; a directory stacked on an empty one of its own is itself
        linux.mount(lower[0], target, "", linux.MS_BIND)
        linux.remount(target, linux.MS_RDONLY | SHOWN)
    else:
        _mount(lower, target, source, linux.MS_RDONLY | SHOWN, "")


def _mount(lower: Sequence[str], target: str, source: str, flags: int, options: str) -> None:
    """One page of options holds about 40 absolute paths, and these 500: as numbers of open directories."""
    if len(lower) > _LIMIT:
        raise KernelRefused(
            f"{len(lower)} layers are to be stacked, and overlayfs takes {_LIMIT} at most; `pullpipe unpack` makes a "
            "plain tree of them, and `pullpipe import` an image of one layer of its tar archive"
        )
    descriptors: list[int] = []
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for directory in lower:
            descriptors.append(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        os.chdir("/proc/self/fd")
        names = ":".join(map(str, descriptors))
        options += ",userxattr" if in_user_namespace() else ""  # as `below.opaque_attribute` has it
        linux.mount(source, os.path.abspath(target), "overlay", flags, f"lowerdir={names}{options}")
    except KernelRefused as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.ENODEV:
            raise KernelRefused("this kernel has no overlayfs; load it with `modprobe overlay`") from cause
        raise KernelRefused(
            f"{error}; overlayfs may not work on this file system: name a store on another one with --root"
        ) from cause
    finally:
        os.fchdir(before)
        for descriptor in (before, *descriptors):
            os.close(descriptor)


def _escape(path: str) -> str:
    """Overlayfs splits its options at commas, and paths at colons."""
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")

"""Overlay stacking: which layers in which order, and the mount.

Layers were unpacked without knowing their parents. What that leaves open is settled here, once the whole stack is
known: the cut at an opaque root, a layer that occurs twice, and the attributes of the root directory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from pullpipe import linux
from pullpipe.errors import KernelRefused
from store import Container, Store

_LIMIT = 500  # lower directories of one mount: OVL_MAX_STACK in the kernel


class Stack(NamedTuple):
    """What to mount."""

    lower: tuple[str, ...]  # directories, the topmost first
    upper: str
    work: str


def build(store: Store, container: Container) -> Stack:
    """The container's stack: its image's layers under directories of its own.

    The upper directory stands for the merged root, so it is given the attributes that the layers give the root. Raises
    `NotInStore` for a layer that is missing, `KernelRefused` for more layers than overlayfs stacks, `OSError`.
    """
    own = store.containers.path(container)
    upper = os.path.join(own, "upper")
    lower: dict[str, None] = {}  # in order, each once: all that a lower copy of a layer says, the upper one says too
    root: os.stat_result | None = None
    for diff_id in reversed(container.layers):
        info = store.layers.info(diff_id)
        files = store.layers.files(diff_id)
        if root is None and "" not in info.implied:
            root = os.stat(files)
        if info.entries:
            lower.setdefault(files)
        if info.opaque_root:
            break
    if len(lower) > _LIMIT:
        raise KernelRefused(
            f"{container.image} has {len(lower)} layers that matter, and overlayfs stacks {_LIMIT} at most"
        )
    if not os.listdir(upper):
        if root is not None:
            os.chown(upper, root.st_uid, root.st_gid)
            os.chmod(upper, root.st_mode & 0o7777)
        time = 0 if root is None else root.st_mtime_ns
        os.utime(upper, ns=(time, time))
    return Stack(tuple(lower) or (os.path.join(own, "lower"),), upper, os.path.join(own, "work"))


def mount(stack: Stack, target: str, *, flags: int = 0) -> None:
    """Mounts the stack at `target`, writable through its upper directory. Raises `KernelRefused`."""
    _mount(stack.lower, target, flags, f",upperdir={_escape(stack.upper)},workdir={_escape(stack.work)}")


def mount_read_only(stack: Stack, target: str) -> None:
    """Mounts the stack at `target`; the upper directory is its topmost lower one. Raises `KernelRefused`."""
    bottom = os.path.join(os.path.dirname(stack.upper), "lower")
    lower = (stack.upper, *stack.lower)[-_LIMIT:]
    _mount(lower if len(lower) > 1 else (*lower, bottom), target, linux.MS_RDONLY, "")


def _mount(lower: Sequence[str], target: str, flags: int, options: str) -> None:
    """One page of options holds about 40 absolute paths, and these 500: as numbers of open directories."""
    descriptors: list[int] = []
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for directory in lower:
            descriptors.append(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        os.chdir("/proc/self/fd")
        names = ":".join(map(str, descriptors))
        linux.mount("overlay", os.path.abspath(target), "overlay", flags, f"lowerdir={names}{options}")
    except KernelRefused as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == 19:  # ENODEV
            raise KernelRefused("this kernel has no overlayfs; load it with `modprobe overlay`") from cause
        raise
    finally:
        os.fchdir(before)
        for descriptor in (before, *descriptors):
            os.close(descriptor)


def _escape(path: str) -> str:
    """Overlayfs splits its options at commas, and paths at colons."""
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")

"""The tree that layers come to, in a mount that only this process sees."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pullpipe import linux, stack


@contextmanager
def merged(lower: Sequence[str]) -> Iterator[str]:
    """A directory where these, the topmost first, are stacked, read-only. Raises `KernelRefused`, `OSError`.

    From here on this process has a mount namespace of its own, so whatever becomes of it, nothing stays mounted.
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.keep_mounts_here()
    with tempfile.TemporaryDirectory(prefix="pullpipe-") as target:
        stack.mount_layers(lower, target)
        try:
            yield target
        finally:
            linux.umount(target, linux.MNT_DETACH)

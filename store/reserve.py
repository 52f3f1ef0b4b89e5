"""Room to make room: on a full file system nothing can be written, and an image is removed by writing the others anew.

So the store keeps `ROOT/reserve`, one inode and a few blocks that nobody reads. A removal that finds no room gives it
up, and whoever publishes or sweeps next has it again, as far as there is room by then.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress

from store.locks import exists

_SIZE = 64 << 10  # bytes: an `index.json` of a hundred images


class Reserve:
    """That of the store at `root`."""

    def __init__(self, root: str) -> None:
        self._path = os.path.join(root, "reserve")

    def keep(self) -> None:
        """Has it there, if there is room; removals work without it, too, but not on a full file system."""
        with suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_size < _SIZE:  # also what was left by who was killed here
                    os.posix_fallocate(fd, 0, _SIZE)
            finally:
                os.close(fd)

    def removing(self, write: Callable[[], None]) -> None:
        """Has that written which takes something away; with the reserve's room, if there is no other."""
        try:
            write()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not exists(self._path):
                raise
            os.unlink(self._path)
            write()

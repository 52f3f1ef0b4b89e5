"""What survives a crash, and in which order it is made so. All of the store's durability lives here.

Guaranteed with `durable=True`, on file systems that honour fsync:

* `write_file`: after it returns, the new content is on disk; after a crash at any moment the file holds the old
  content or the new one, whole.
* `sync_tree`, then `rename` or `exchange`, then `sync_directory`: a name that is visible after a crash names content
  that was complete on disk before the name existed.

With `durable=False` the order in which a running system sees things is the same, and only the flushes are left out:
a killed process loses nothing, a power cut may.
"""

from __future__ import annotations

import os
from contextlib import suppress

from store.errors import StoreError

_AT_FDCWD = -100  # <fcntl.h>
_RENAME_EXCHANGE = 2  # <linux/fs.h>


def write_file(path: str, data: bytes, *, durable: bool = True) -> None:
    """Replaces the file at `path` by one that holds `data`, mode 0600, in one step.

    The caller has it to itself, by a lock. A crash leaves at most `PATH.tmp`, which the next one replaces. Raises
    `OSError`.
    """
    temporary = f"{path}.tmp"
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise
    if durable:
        sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """Flushes the names in the directory at `path` to disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def exchange(one: str, other: str) -> None:
    """Exchanges what stands at the two names, in one step. Raises `OSError`."""
    import ctypes  # Python has no renameat2; every file system that overlayfs can write to has this

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), other)


def sync_tree(path: str) -> None:
    """Flushes the whole file system that holds `path`: one call for a pull, instead of an fsync for each file.

    Raises `StoreError` where the kernel reports that writing back failed.
    """
    import ctypes  # Python has os.sync, which waits for every file system of the machine, but not syncfs

    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.syncfs(fd) != 0:
            error = ctypes.get_errno()
            raise StoreError(f"cannot flush {path} to disk: {os.strerror(error)}; check the disk's health")
    finally:
        os.close(fd)

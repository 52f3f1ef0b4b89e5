"""Where things are unpacked: a new file system for every run, for a used one makes files at another speed.

As root, an ext4 in a file in memory, mounted through a loop device. The file is written once and keeps its memory, so
that no run pays for getting that from the machine. Otherwise a new directory, which the report says.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_MEMORY = Path("/dev/shm")
_PATIENCE = 20.0  # seconds
_SIZE = 8 << 30  # bytes


def kind() -> str:
    """What `fresh` makes here, for the report."""
    if _can_mount():
        return "a new ext4, loop-mounted from memory, for every run"
    return f"a new directory below {tempfile.gettempdir()} for every run"


def _can_mount() -> bool:
    return os.geteuid() == 0 and _MEMORY.is_dir() and shutil.which("mkfs.ext4") is not None


@contextmanager
def fresh() -> Iterator[Path]:
    """An empty directory on a file system of its own, gone at the end."""
    if not _can_mount():
        with tempfile.TemporaryDirectory(prefix="pullpipe-bench-") as directory:
            yield Path(directory)
        return
    device, mount = _device()
    _wait_until_free(device)
    # Nothing is discarded, which would give the memory back, and nothing is left to be initialised behind our back.
    options = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", options, device], check=True)
    subprocess.run(["mount", device, str(mount)], check=True)
    try:
        (mount / "lost+found").rmdir()
        yield mount
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", str(mount)], check=True)


def _wait_until_free(device: str) -> None:
    """A mount namespace that somebody made meanwhile keeps what was mounted then, until it ends."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            os.close(os.open(device, os.O_RDWR | os.O_EXCL))
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@cache
def _device() -> tuple[str, Path]:
    """A loop device, and a directory to mount it at."""
    directory = Path(tempfile.mkdtemp(prefix="pullpipe-bench-", dir=_MEMORY))
    atexit.register(shutil.rmtree, directory)
    (directory / "mnt").mkdir()
    with (directory / "file").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, _SIZE)
    command = ["losetup", "--find", "--show", str(directory / "file")]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    atexit.register(subprocess.run, ["losetup", "--detach", device], check=True)
    return device, directory / "mnt"

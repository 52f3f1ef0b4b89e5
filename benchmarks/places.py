"""Where things are unpacked: a new file system for every run, for a used one makes files at another speed.

As root, an ext4 image in memory, mounted through a loop device; otherwise a new directory, which the report says.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = Path("/dev/shm")


def kind() -> str:
    """What `fresh` makes here, for the report."""
    if _can_mount():
        return "a new ext4, loop-mounted from memory, for every run"
    return f"a new directory below {tempfile.gettempdir()} for every run"


def _can_mount() -> bool:
    return os.geteuid() == 0 and _MEMORY.is_dir() and shutil.which("mkfs.ext4") is not None


@contextmanager
def fresh(gib: int = 8) -> Iterator[Path]:
    """An empty directory on a file system of its own, gone at the end."""
    if not _can_mount():
        with tempfile.TemporaryDirectory(prefix="pullpipe-bench-") as directory:
            yield Path(directory)
        return
    with tempfile.TemporaryDirectory(prefix="pullpipe-bench-", dir=_MEMORY) as directory:
        image, mount = Path(directory, "ext4"), Path(directory, "mnt")
        with image.open("wb") as file:
            file.truncate(gib << 30)
        mount.mkdir()
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
        try:
            (mount / "lost+found").rmdir()
            yield mount
        finally:
            subprocess.run(["umount", "--recursive", str(mount)], check=True)

"""What the tests with other programs share: what the pipe's tests have, too, and podman."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import require
from tests.pipe.conftest import jail, worker

__all__ = ["jail", "worker"]


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[str]]:
    """The command, with a storage of its own: plain directories, as no image of a user's machine is touched."""
    top = tmp_path_factory.mktemp("podman")
    run = tempfile.mkdtemp(prefix="podman-")  # its path may have 50 characters
    command = [require("podman"), "--root", str(top / "storage"), "--runroot", run]
    command += ["--storage-driver", "vfs", "--events-backend", "none", "--cgroup-manager", "cgroupfs"]
    yield command
    subprocess.run([*command, "rmi", "--all", "--force"], check=True, capture_output=True)
    _unmount_below(top)
    shutil.rmtree(run)


def _unmount_below(top: Path) -> None:
    """Podman keeps its storage mounted on itself."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if line.split()[4].startswith(os.fspath(top) + "/"):
            subprocess.run(["umount", line.split()[4]], check=True)

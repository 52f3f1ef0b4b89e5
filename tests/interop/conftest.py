"""What the tests with other programs share: what the pipe's tests have, too, and podman."""

from __future__ import annotations

import json
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


class Podman:
    """Its storage, with nothing in it before and after each test."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    def __call__(self, *arguments: str | Path, stdin: bytes = b"") -> bytes:
        done = subprocess.run([*self._command, *arguments], input=stdin, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def facts(self, name: str) -> tuple[str, list[str]]:
        """The id, and the diffIDs."""
        [found] = json.loads(self("image", "inspect", name))
        return f"sha256:{found['Id']}", found["RootFS"]["Layers"]


@pytest.fixture
def clean_podman(podman: Sequence[str]) -> Iterator[Podman]:
    yield Podman(podman)
    subprocess.run([*podman, "rmi", "--all", "--force"], check=True, capture_output=True)


def _unmount_below(top: Path) -> None:
    """Podman keeps its storage mounted on itself."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if line.split()[4].startswith(os.fspath(top) + "/"):
            subprocess.run(["umount", line.split()[4]], check=True)

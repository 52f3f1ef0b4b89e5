"""The bench that all of it happens on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.images import write_layout
from tests.support.registry import Registry
from tests.torture.cases import Case, all_cases
from tests.torture.rig import EXT4, NAMES, Bench, good, images, removed, snapshots


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A directory in memory, for the images of disks."""
    with tempfile.TemporaryDirectory(prefix="pullpipe-torture-", dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def bench(registry: Registry, memory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The images in a registry, and a disk for stores that flushes at once."""
    require("busybox")
    layout = tmp_path_factory.mktemp("torture") / "layout"
    write_layout(layout, images())
    for name in NAMES:
        registry.push(layout, name, to=f"torture/{name}:1")
    with EXT4.mounted(EXT4.make(memory / "stores", 1 << 30), memory / "mnt") as stores:
        bench = Bench(registry, layout, stores, {})
        for name in NAMES:
            good(stores / "fresh", *bench.pull(name))
        bench.trees.update(snapshots(stores / "fresh"))
        removed(stores / "fresh")
        yield bench


@pytest.fixture(scope="session")
def cases(bench: Bench) -> list[Case]:
    """Commands to be disturbed."""
    return all_cases(bench)

"""What a store's life needs of a file system, on each that people have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tree import difference
from tests.torture.rig import BTRFS, XFS, Bench, FileSystem, contents, good, removed

pytestmark = pytest.mark.needs_root


@pytest.mark.parametrize("system", [XFS, BTRFS], ids=lambda system: system.name)
def test_pull_run_remove(bench: Bench, memory: Path, system: FileSystem) -> None:
    """It comes to the same as on ext4, and nothing stays of what is removed."""
    one, two = bench.reference("one"), bench.reference("two")
    removed(bench.stores / "root")
    with system.mounted(system.make(memory / "other"), memory / "other-mnt") as place:
        for root in (bench.stores / "root", place / "root"):
            good(root, *bench.pull("one"))
            good(root, "run", "--rm", "--quiet", "--plain-http", two, "sh", "-c", "echo here >/data/here")
        assert difference(contents(place / "root"), contents(bench.stores / "root")) == []
        good(place / "root", "rmi", one, two)
        assert [path for path in contents(place / "root") if path.count(b"/") > 1] == []
    (memory / "other").unlink()

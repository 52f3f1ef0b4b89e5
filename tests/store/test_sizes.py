"""How much a tree comes to, whatever it is, and whoever changes it meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from store.removal import remove_tree
from store.sizes import content_size, disk_usage
from tests.conftest import PROJECT
from tests.support.tree import nest

# The size of the tree `a`; `{change}` happens when what is called `y` is about to be looked into.
_CHANGES = """
import os, sys
from store.sizes import content_size
def hook(event, arguments):
    global changed
    if event in ("open", "os.scandir") and os.path.basename(str(arguments[0])) == "y" and not changed:
        changed = True
        {change}
changed = False
sys.addaudithook(hook)
print(content_size("a"))
"""
# So many directories beside each, that some of them are still to be looked into by then, whatever their order.
_SIZES = {
    "a/1": 1,
    "a/b/2": 2,
    "a/b/x/4": 4,
    "a/b/x/y/8": 8,
    **{f"{path}/{number}/file": 16 for path in ("a", "a/b", "a/b/x") for number in range(100, 120)},
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`a`, beside `out`, which has more of the same names and must not be looked into."""
    for name, size in _SIZES.items():
        for path in (tmp_path / name, tmp_path / name.replace("a", "out", 1)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(size if path.is_relative_to(tmp_path / "a") else 1000))
    return tmp_path / "a"


def test_a_file_of_several_names_counts_once(tree: Path) -> None:
    before = disk_usage(str(tree))
    os.link(tree / "1", tree / "b" / "again")
    os.link(tree / "1", tree / "b" / "x" / "again")
    (tree / "symlink").symlink_to(tree.parent / "out" / "1")
    assert content_size(str(tree)) == sum(_SIZES.values())
    assert disk_usage(str(tree)) == before + (tree / "symlink").lstat().st_blocks * 512


@pytest.mark.parametrize("kind", ["file", "symlink", "nothing"])
def test_what_is_no_directory(tree: Path, kind: str) -> None:
    path = tree / kind
    if kind == "file":
        path.write_bytes(bytes(5000))
    elif kind == "symlink":
        path.symlink_to(tree.parent / "out")
    assert content_size(str(path)) == (5000 if kind == "file" else 0)
    assert disk_usage(str(path)) == (path.lstat().st_blocks * 512 if kind != "nothing" else 0)


@pytest.mark.parametrize(("name", "depth"), [("n" * 200, 30), ("n", 3000)], ids=["names", "depth"])
def test_deeper_than_a_path_can_name(tree: Path, name: str, depth: int) -> None:
    """Nor would descriptors last for one of each."""
    bottom = nest(tree, name, depth)
    with open(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=bottom), "wb") as file:
        file.write(bytes(5000))
    os.close(bottom)
    try:
        assert content_size(str(tree)) == sum(_SIZES.values()) + 5000
        assert disk_usage(str(tree)) >= 5000
    finally:
        remove_tree(str(tree / name))


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ('os.rename("a/b/x/y", "y")', -8),
        ('os.rename("a/b/x/y", "y"); open("a/b/x/y", "wb")', -8),
        ('os.rename("a/b/x/y", "y"); os.symlink("../../../out", "a/b/x/y")', -8),
        ('os.rename("a/b/x", "out/new")', 0),
        ('os.rename("a/b/x", "out/new"); os.rename("a/b", "b"); os.rename("out", "a/b")', None),
        ('os.rename("a", "out/a")', 0),
        ('os.rename("a/b/x", "out/new"); os.rename("a", "out/a")', None),
    ],
    ids=["gone", "file", "symlink", "moved", "another there", "all moved", "both moved"],
)
def test_changed_meanwhile(tree: Path, change: str, size: int | None) -> None:
    """Nothing outside of it is looked into, and nothing but what has been moved is left out."""
    done = subprocess.run(
        [sys.executable, "-c", _CHANGES.format(change=change)],
        cwd=tree.parent,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    if size is None:
        assert 0 < int(done.stdout) <= sum(_SIZES.values())
    else:
        assert int(done.stdout) == sum(_SIZES.values()) + size

"""Two trees compared: whatever a tar archive can say of a file makes a difference."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from store.compare import differences, tree_digest
from store.removal import remove_tree
from tests.support.tree import nest

pytestmark = pytest.mark.needs_root


def make(root: Path) -> None:
    """A tree with one of each kind."""
    (root / "dir" / "below").mkdir(parents=True)
    (root / "dir" / "below" / "file").write_bytes(b"x" * 1_100_000)
    (root / "file").write_bytes(b"content")
    (root / "alone").write_bytes(b"content")
    (root / "linked").write_bytes(b"linked")
    os.link(root / "linked", root / "dir" / "again")
    os.link(root / "linked", root / "dir" / "and again")
    (root / "symlink").symlink_to("file")
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", 0o20644, os.makedev(1, 3))
    os.mknod(root / "whiteout", 0o20000, os.makedev(0, 0))
    for path in [*root.rglob("*"), root]:
        if path.name != "whiteout":
            os.utime(path, (5, 5), follow_symlinks=False)


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """Two that are alike, though made at different times."""
    first, second = tmp_path / "first", tmp_path / "second"
    for tree in (first, second):
        tree.mkdir()
        make(tree)
    return first, second


def compared(trees: tuple[Path, Path]) -> list[str]:
    """By both ways."""
    lines = list(differences(str(trees[0]), str(trees[1])))
    assert (tree_digest(str(trees[0])) == tree_digest(str(trees[1]))) == (not lines)
    return lines


def keeping_times(tree: Path, change: Callable[[Path], object]) -> None:
    """Changes something, and leaves all times as they were: only the change itself is there to be seen."""
    change(tree)
    for path in [*tree.rglob("*"), tree]:
        if path.name != "whiteout":
            os.utime(path, (5, 5), follow_symlinks=False)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def unlink_from_others(path: Path) -> None:
    data = path.read_bytes()
    replace(path, lambda path: path.write_bytes(data))


def link_elsewhere(tree: Path) -> None:
    """Two files of the same content become one."""
    (tree / "alone").unlink()
    os.link(tree / "file", tree / "alone")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (lambda tree: flip(tree / "file"), "file: its content differs"),
    "content far down": (lambda tree: flip(tree / "dir/below/file"), "dir/below/file: its content differs"),
    "truncated": (lambda tree: os.truncate(tree / "file", 0), "file: it has 0 bytes instead of 7"),
    "longer": (lambda tree: os.truncate(tree / "file", 9), "file: it has 9 bytes instead of 7"),
    "gone": (lambda tree: (tree / "file").unlink(), "file: it is missing"),
    "directory gone": (lambda tree: shutil.rmtree(tree / "dir/below"), "dir/below: it is missing"),
    "more": (lambda tree: (tree / "dir/new").touch(), "dir/new: the layer does not have it"),
    "mode": (lambda tree: os.chmod(tree / "file", 0o4755), "file: its mode is 4755 instead of 0644"),
    "mode of the root": (lambda tree: os.chmod(tree, 0o700), "its root: its mode is 0700 instead of 0755"),
    "user": (lambda tree: os.lchown(tree / "symlink", 7, 0), "symlink: its owner is 7:0 instead of 0:0"),
    "group": (lambda tree: os.chown(tree / "dir", 0, 7), "dir: its owner is 0:7 instead of 0:0"),
    "attribute": (
        lambda tree: os.setxattr(tree / "dir", "trusted.overlay.opaque", b"y"),
        "dir: its extended attributes differ",
    ),
    "attribute of a symlink": (
        lambda tree: os.setxattr(tree / "symlink", "trusted.x", b"", follow_symlinks=False),
        "symlink: its extended attributes differ",
    ),
    "type": (lambda tree: replace(tree / "fifo", Path.mkdir), "fifo: it is something else"),
    "type of a device": (
        lambda tree: replace(tree / "device", lambda path: os.mknod(path, 0o60644, os.makedev(1, 3))),
        "device: it is something else",
    ),
    "device number": (
        lambda tree: replace(tree / "device", lambda path: os.mknod(path, 0o20644, os.makedev(1, 5))),
        "device: its device number differs",
    ),
    "target": (
        lambda tree: replace(tree / "symlink", lambda path: path.symlink_to("fill")),
        "symlink: it leads elsewhere",
    ),
    "a link less": (lambda tree: unlink_from_others(tree / "dir/again"), "dir/again: its hard links differ"),
    "a link more": (link_elsewhere, "file: its hard links differ"),
}


def test_alike(trees: tuple[Path, Path]) -> None:
    """But for the times at which their whiteouts were made, and what atime says."""
    os.utime(trees[0] / "whiteout", (1, 1))
    os.utime(trees[0] / "file", (1, 5))
    assert compared(trees) == []


@pytest.mark.parametrize("change", CHANGES)
def test_differs(trees: tuple[Path, Path], change: str) -> None:
    """One line, that names the place and what is wrong there; the other way round there is one, too."""
    make, line = CHANGES[change]
    keeping_times(trees[0], make)
    if change == "a link more":
        assert [found.partition(": ")[2] for found in compared(trees)] == ["its hard links differ"]
    else:
        assert compared(trees) == [line]
    assert len(compared((trees[1], trees[0]))) == 1


@pytest.mark.parametrize("path", ["file", "dir", "symlink", "fifo", "device", "dir/below/file"])
def test_time(trees: tuple[Path, Path], path: str) -> None:
    """To the nanosecond."""
    os.utime(trees[0] / path, ns=(5, 5_000_000_001), follow_symlinks=False)
    assert compared(trees) == [f"{path}: its time is 5.000000001 instead of 5"]


def test_of_several_things_each_is_told(trees: tuple[Path, Path]) -> None:
    os.truncate(trees[0] / "file", 0)
    os.chmod(trees[0] / "dir", 0o700)
    os.utime(trees[0] / "file", (6, 6))
    assert compared(trees) == [
        "dir: its mode is 0700 instead of 0755",
        "file: its time is 6 instead of 5, it has 0 bytes instead of 7",
    ]


def test_deeper_than_a_path_can_name(tmp_path: Path) -> None:
    """400 directories, each with a long name; the difference is at the bottom."""
    trees = tmp_path / "first", tmp_path / "second"
    for tree in trees:
        tree.mkdir()
        here = nest(tree, "d" * 200, 400)
        with open(os.open("file", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=here), "w") as file:
            file.write(tree.name[0])
            file.flush()
            os.utime(file.fileno(), (5, 5))
        os.close(here)
    bottom = "/".join(["d" * 200] * 400)
    assert f"{bottom}/file: its content differs" in compared(trees)
    for tree in trees:
        remove_tree(str(tree))

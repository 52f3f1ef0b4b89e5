"""Fixed generated images, mounted, against what umoci and podman make of them.

The layers are as builders write them: each is the record of some changes to the tree below it, so that all programs
have to agree. Where a layer's meaning depends on the order of its entries, they do not, and LAYERS.md decides
(`test_differential` is about those).
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pullpipe.cli import main
from tests.cli.rig import umoci_tree
from tests.conftest import require
from tests.support.images import (
    Device,
    Dir,
    Entry,
    Fifo,
    File,
    Hardlink,
    Image,
    Layer,
    Opaque,
    Symlink,
    Whiteout,
    write_layout,
)
from tests.support.tree import Node, Snapshot, difference, snapshot

pytestmark = pytest.mark.needs_root

SEEDS = range(12)
NAMES = ("a", "b", "c", "dd", "lib")
OWNERS = (0, 0, 1, 1000, 70_000)
TIMES = (1, 1_700_000_000_123_456_789, 1_600_000_000_000_000_000)
MODES = (0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0o000)
XATTRS: tuple[dict[str, bytes], ...] = ({}, {}, {"user.one": b"1"}, {"user.binary": b"\0\xff="})


class Builder:
    """Changes a tree at random, layer by layer, and writes each layer down."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._kinds: dict[str, str] = {}  # what stands at each path of the image so far
        self._linked: dict[str, dict[str, Any]] = {}  # what the files with several names have
        self._mine: set[str] = set()  # what the current layer says something about

    def layers(self) -> list[list[Entry]]:
        return [self._layer() for _ in range(self._random.randint(2, 5))]

    def _layer(self) -> list[Entry]:
        self._mine = set()
        return [entry for _ in range(self._random.randint(3, 9)) for entry in self._change()]

    def _change(self) -> list[Entry]:
        change = self._random.choice(
            (self._add, self._add, self._add, self._remove, self._describe, self._empty, self._link, self._through)
        )
        return change()

    def _attributes(self) -> dict[str, Any]:
        choose = self._random.choice
        return {"uid": choose(OWNERS), "gid": choose(OWNERS), "mtime_ns": choose(TIMES)}

    def _new_path(self) -> str | None:
        """One that this layer has not touched, below directories only."""
        path = "/".join(self._random.choices(NAMES, k=self._random.randint(1, 3)))
        return path if self._is_free(path) else None

    def _is_free(self, path: str) -> bool:
        parents = [path.rsplit("/", depth)[0] for depth in range(1, path.count("/") + 1)]
        touched = any(mine == path or mine.startswith(path + "/") for mine in self._mine)
        return not touched and all(self._kinds.get(parent, "directory") == "directory" for parent in parents)

    def _put(self, path: str, kind: str) -> None:
        self._forget(path, keep_children=kind == "directory" == self._kinds.get(path))
        for depth in range(1, path.count("/") + 1):
            parent = path.rsplit("/", depth)[0]
            if parent not in self._kinds:
                self._mine.add(parent)
            self._kinds[parent] = "directory"
        self._kinds[path] = kind
        self._mine.add(path)

    def _forget(self, path: str, *, keep_children: bool = False) -> None:
        for other in list(self._kinds):
            if other == path or (other.startswith(path + "/") and not keep_children):
                del self._kinds[other]

    def _add(self) -> list[Entry]:
        path = self._new_path()
        if path is None:
            return []
        entry = self._entry(path)
        described: list[Entry] = []
        parent = path.rpartition("/")[0]
        if parent and self._random.random() < 0.5 and parent not in self._mine:
            described = [Dir(parent, 0o755, **self._attributes())]
            self._mine.add(parent)
        self._put(path, "directory" if isinstance(entry, Dir) else "other")
        return [*described, entry]

    def _entry(self, path: str) -> Entry:
        choose, attributes = self._random.choice, self._attributes()
        kind = choose(("file", "file", "file", "directory", "directory", "symlink", "device", "fifo"))
        if kind == "file":
            data = self._random.randbytes(choose((0, 1, 511, 512, 5000)))
            return File(path, data, choose(MODES), xattrs=choose(XATTRS), **attributes)
        if kind == "directory":
            return Dir(path, choose(MODES), xattrs=choose(XATTRS), **attributes)
        if kind == "symlink":
            return Symlink(path, choose(("a", "../b", "/c/dd", "no/where", "..")), **attributes)
        if kind == "device":
            number = self._random.randint(1, 200)
            return Device(path, number, number, choose(("char", "block")), choose(MODES), **attributes)
        return Fifo(path, choose(MODES), **attributes)

    def _below(self, *kinds: str) -> str | None:
        """A path of the layers below that this one has not touched."""
        found = sorted(path for path, kind in self._kinds.items() if kind in kinds and self._is_free(path))
        return self._random.choice(found) if found else None

    def _remove(self) -> list[Entry]:
        path = self._below("directory", "other", "file", "link")
        if path is None:
            return []
        self._forget(path)
        self._mine.add(path)
        return [Whiteout(path)]

    def _describe(self) -> list[Entry]:
        path = self._below("directory")
        if path is None:
            return []
        self._mine.add(path)
        return [Dir(path, self._random.choice(MODES), **self._attributes())]

    def _empty(self) -> list[Entry]:
        path = self._below("directory")
        if path is None:
            return []
        self._forget(path)
        for name in ("new", "too"):
            self._put(f"{path}/{name}", "other")
        self._mine.add(path)
        return [
            Dir(path, 0o711, **self._attributes()),
            Opaque(path),
            *(File(f"{path}/{name}", name.encode(), **self._attributes()) for name in ("new", "too")),
        ]

    def _link(self) -> list[Entry]:
        """A file and a second name for it; sometimes a third one in a later layer.

        Every builder writes the file's attributes into the link's header, too: podman sets them from there, and
        line 7 ignores them.
        """
        path = self._below("file")
        if path is not None:
            new = f"{path}-again"
            if self._is_free(new):
                self._put(new, "other")
                self._mine.add(path)
                return [Hardlink(new, path, 0o640, **self._linked[path])]
        path = self._new_path()
        if path is None or not self._is_free(f"{path}-linked"):
            return []
        self._put(path, "file")
        self._put(f"{path}-linked", "other")
        self._linked[path] = attributes = self._attributes()
        return [File(path, b"linked", 0o640, **attributes), Hardlink(f"{path}-linked", path, 0o640, **attributes)]

    def _through(self) -> list[Entry]:
        """A directory with a link to it; in a later layer, a file by way of the link."""
        path = self._below("link")
        if path is not None and self._kinds.get("target") == "directory":
            name = f"via-{len(self._kinds)}"
            self._put(f"target/{name}", "other")
            self._mine.add(path)
            return [File(f"{path}/{name}", b"via", **self._attributes())]
        path = self._new_path()
        if path is None or not self._is_free("target"):
            return []
        self._put("target", "directory")
        self._put(path, "link")
        return [Dir("target", 0o750, **self._attributes()), Symlink(path, "/target", **self._attributes())]


def images() -> dict[str, Image]:
    found = {}
    for seed in SEEDS:
        layers = [Layer([Dir(".", 0o755, mtime_ns=10**18)]), *map(Layer, Builder(seed).layers())]
        found[f"seed-{seed}"] = Image(layers)
    return found


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a layout for each image, which is tagged as the layout is called."""
    directory = tmp_path_factory.mktemp("peers") / "layouts"
    for tag, image in images().items():
        write_layout(directory / tag, {tag: image})
    return directory


@pytest.fixture(scope="module")
def ours(layouts: Path) -> dict[str, Snapshot]:
    """What pullpipe shows of each."""
    root, target = layouts.parent / "store", layouts.parent / "mnt"
    target.mkdir()

    def run(*arguments: str) -> None:
        assert main(["--root", str(root), *arguments]) == 0

    trees = {}
    for tag in images():
        run("load", "--quiet", "--durability=none", "--tag", tag, str(layouts / tag))
        run("mount", tag, str(target))
        try:
            trees[tag] = snapshot(target)
        finally:
            run("umount", str(target))
    return trees


def comparable(tree: Snapshot, *, podman: bool = False) -> Snapshot:
    """Without what LAYERS.md decides, and what peers cannot keep.

    - Times of directories. Line 17: an implied parent takes its time from below, or the epoch; the peers leave the time
      of the unpacking in directories that they write to without an entry of the layer's.
    - Which names are one file. Line 20: a file that is brought up from a lower layer is parted from its names there, as
      by any write in a stack; the peers write to one directory, where it is not.
    - Podman gives its images' roots a mode of its own (0555), and where a layer describes a directory anew, it leaves
      the extended attributes of the layers below on it. Line 19: they are replaced, as umoci does, too.
    """

    def node(one: Node) -> Node:
        one = replace(one, links=frozenset())
        if one.type != "directory":
            return one
        return replace(one, mtime_ns=0, xattrs=() if podman else one.xattrs)

    return {path: node(one) for path, one in tree.items() if path != b"." or not podman}


@pytest.mark.parametrize("seed", SEEDS)
def test_umoci(seed: int, layouts: Path, ours: dict[str, Snapshot], tmp_path: Path) -> None:
    """The same tree, in every attribute but those of `comparable`."""
    require("umoci")
    theirs = umoci_tree(layouts / f"seed-{seed}", f"seed-{seed}", tmp_path / "bundle")
    assert difference(comparable(theirs), comparable(ours[f"seed-{seed}"])) == []


@contextmanager
def mounted_by(podman: Sequence[str], image: str) -> Iterator[Path]:
    def run(*arguments: str) -> str:
        done = subprocess.run([*podman, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    identifier = run("pull", "--quiet", image)
    yield Path(run("image", "mount", identifier))
    run("image", "unmount", identifier)


@pytest.mark.parametrize("seed", SEEDS)
def test_podman(seed: int, layouts: Path, ours: dict[str, Snapshot], podman: Sequence[str]) -> None:
    """The same tree, in every attribute but those of `comparable`: this is Docker's code, too."""
    with mounted_by(podman, f"oci:{layouts}/seed-{seed}:seed-{seed}") as target:
        theirs = snapshot(target)
    assert difference(comparable(theirs, podman=True), comparable(ours[f"seed-{seed}"], podman=True)) == []


def test_the_sample_is_worth_comparing(ours: dict[str, Snapshot]) -> None:
    """Every kind of change occurs, several times, and trees are not nearly empty."""
    entries = [entry for image in images().values() for layer in image.layers for entry in layer.entries]
    for kind in (File, Dir, Symlink, Hardlink, Device, Fifo, Whiteout, Opaque):
        assert sum(isinstance(entry, kind) for entry in entries) >= 3, kind
    assert sum(str(entry.path).count("via-") for entry in entries) >= 2
    assert sum(map(len, ours.values())) > 10 * len(ours)

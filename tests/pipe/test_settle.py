"""What layers come to together: LAYERS.md, lines 17, 18, 20 and 21, through `load` and `mount`.

The trees are compared with `umoci unpack` of the same layout, too: it applies the layers in order to one directory, and
that is how a stack has to look.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pullpipe.cli import main
from tests.cli.rig import answer, fails, mounted_tree, ok, umoci_tree, unpacked_tree
from tests.conftest import Cli, require
from tests.support.images import Device, Dir, Entry, File, Hardlink, Image, Layer, Opaque, Symlink, Whiteout
from tests.support.images import write_layout as write
from tests.support.tree import Snapshot, difference, snapshot

pytestmark = pytest.mark.needs_root

Layers = Sequence[Sequence[Entry]]
T0, T1, T2 = (number * 10**18 + 123_456_789 for number in (1, 2, 3))


class Rig:
    """Images in a store, by their tags, and what they look like."""

    def __init__(self, cli: Cli, tmp_path: Path, store_root: Path) -> None:
        self.cli = cli
        self.store = store_root
        self._top = tmp_path

    def load(self, *options: str, **images: Layers) -> None:
        """Loads each, in this order, from a layout of its own."""
        for tag, layers in images.items():
            write(self._top / tag, {tag: Image([Layer(entries, None) for entries in layers])})
            ok(self.cli, "load", "--quiet", "--durability=none", *options, "--tag", tag, self._top / tag)

    def tree(self, tag: str = "t") -> Snapshot:
        """The mounted stack's."""
        return mounted_tree(self.cli, tag, self._top / "mnt")

    def by_umoci(self, tag: str = "t") -> Snapshot:
        """What umoci makes of the same image."""
        require("umoci")
        return umoci_tree(self._top / tag, tag, self._top / f"bundle-{tag}")

    def flat(self, tag: str = "t") -> Snapshot:
        """What `pullpipe unpack` makes of it."""
        return unpacked_tree(self.cli, tag, self._top / f"flat-{tag}")

    def layers(self, tag: str = "t") -> list[Path]:
        """The layers' directories, the lowest first."""
        return [Path(layer["directory"]) for layer in answer(self.cli, "inspect", tag)["layers"]]

    def variants(self) -> set[str]:
        return set(os.listdir(self.store / "variants" / "sha256"))

    def stacks(self) -> set[str]:
        return set(os.listdir(self.store / "stacks" / "sha256"))

    def shows(self, layers: Layers, *, by_umoci: bool = True) -> Snapshot:
        """Loads these, and mounts them: as `pullpipe unpack` and umoci have them.

        In one directory a file keeps all its names, where a stack parts them. Umoci gives directories that it writes
        to by way of a symlink, or without an entry of their own, the time of the unpacking.
        """
        self.load(t=layers)
        tree = self.tree()
        assert difference(_without_links(tree), _without_links(self.flat())) == []
        if by_umoci:
            expected, found = (_without_times(_without_links(one)) for one in (self.by_umoci(), tree))
            assert difference(expected, found) == []
        return tree


def _without_links(tree: Snapshot) -> Snapshot:
    return {path: replace(node, links=frozenset()) for path, node in tree.items()}


def _without_times(tree: Snapshot) -> Snapshot:
    return {path: replace(node, mtime_ns=0) if node.type == "directory" else node for path, node in tree.items()}


@pytest.fixture
def rig(tmp_path: Path, store_root: Path, capfd: pytest.CaptureFixture[str]) -> Rig:
    """Its commands run in this process: starting a program for each would take most of the time."""

    def run(
        *args: str | Path, stdin: str = "", env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        assert not stdin
        assert not env
        command = ["--root", str(store_root), *map(str, args)]
        capfd.readouterr()
        code = main(command)
        return subprocess.CompletedProcess(command, code, *capfd.readouterr())

    return Rig(run, tmp_path, store_root)


def names(tree: Snapshot) -> dict[str, str]:
    return {path.decode(): node.type for path, node in tree.items() if path != b"."}


# Line 18.

BELOW: Mapping[str, list[Entry]] = {
    "relative": [Dir("usr/lib", mode=0o711, mtime_ns=T0), Symlink("lib", "usr/lib")],
    "absolute": [Dir("usr/lib", mode=0o711, mtime_ns=T0), Symlink("lib", "/usr/lib")],
    "upward": [Dir("usr/lib", mode=0o711, mtime_ns=T0), Symlink("lib", "../../usr/./lib/")],
    "chained": [
        Dir("usr/lib", mode=0o711, mtime_ns=T0),
        Symlink("lib", "one"),
        Symlink("one", "/two"),
        Symlink("two", "u/lib"),
        Symlink("u", "usr"),
    ],
}


@pytest.mark.parametrize("kind", BELOW)
def test_line_18_an_implied_parent_that_is_a_symlink_below(kind: str, rig: Rig) -> None:
    """Followed, as Docker does: the file is where the link leads, and the link stays."""
    tree = rig.shows([BELOW[kind], [File("lib/x", b"x", mtime_ns=T1), File("lib/deep/y", b"y")]])
    assert tree[b"lib"].type == "symlink"
    assert {b"usr/lib/x", b"usr/lib/deep/y"} <= tree.keys()
    assert (tree[b"usr/lib"].mode, tree[b"usr/lib/x"].mtime_ns) == (0o711, T1)
    assert len(rig.variants()) == 1


def test_line_18_into_a_directory_of_a_middle_layer(rig: Rig) -> None:
    """The link dangles in its own layer; the one between says what it leads to."""
    tree = rig.shows(
        [
            [Symlink("lib", "usr/lib")],
            [Dir("usr", mode=0o710), Dir("usr/lib", mode=0o711, uid=5, mtime_ns=T0), File("usr/lib/a")],
            [File("lib/b")],
        ]
    )
    assert names(tree).keys() == {"lib", "usr", "usr/lib", "usr/lib/a", "usr/lib/b"}
    assert (tree[b"usr"].mode, tree[b"usr/lib"].mode, tree[b"usr/lib"].uid) == (0o710, 0o711, 5)


def test_line_18_the_link_is_in_a_middle_layer(rig: Rig) -> None:
    """It replaced a directory of the lowest one, whose children are gone."""
    tree = rig.shows([[File("lib/old"), Dir("usr")], [Symlink("lib", "usr")], [File("lib/new")], [File("lib/newer")]])
    assert names(tree).keys() == {"lib", "usr", "usr/new", "usr/newer"}
    assert len(rig.variants()) == 2


def test_line_18_links_on_the_way_and_at_the_end(rig: Rig) -> None:
    """A link below a link, and whiteouts, hard links and directories by that way."""
    tree = rig.shows(
        [
            [Dir("a/b", mode=0o750), Symlink("a/c", "b"), Symlink("l", "a"), File("a/b/old"), File("a/b/kept", b"k")],
            [Whiteout("l/c/old"), File("l/c/f", b"f"), Dir("l/c/d", mode=0o700), Hardlink("l/c/g", "l/c/f")],
        ]
    )
    assert names(tree).keys() == {"a", "a/b", "a/c", "l", "a/b/kept", "a/b/f", "a/b/d", "a/b/g"}
    assert tree[b"a/b"].mode == 0o750


def test_line_18_a_dangling_link_makes_its_target(rig: Rig) -> None:
    """As it does within one layer."""
    rig.load(t=[[Symlink("lib", "usr/lib")], [File("lib/x")]])
    assert names(rig.tree()) == {"lib": "symlink", "usr": "directory", "usr/lib": "directory", "usr/lib/x": "file"}
    assert difference(rig.tree(), rig.flat()) == []


def test_line_18_a_loop_below_is_an_error(rig: Rig, tmp_path: Path) -> None:
    """One clear line, and no image."""
    write(tmp_path / "t", {"t": Image([Layer([Symlink("a", "b"), Symlink("b", "a")]), Layer([File("a/x")])])})
    assert "a/x" in fails(rig.cli, "load", "--quiet", "-t", "t", tmp_path / "t")
    assert answer(rig.cli, "images", "--format", "json") == []


def test_line_18_upward_links_stay_inside(rig: Rig) -> None:
    """A link below that leads out of the root: its target is inside all the same."""
    victim = rig.store.parent / "victim"
    victim.mkdir()
    rig.load(t=[[Symlink("l", f"../../../../../../../../../..{victim}")], [File("l/x")]])
    assert os.listdir(victim) == []
    assert (f"{victim}/x"[1:]).encode() in rig.tree()


def test_line_18_a_described_directory_replaces_the_link(rig: Rig) -> None:
    """An entry for the directory itself is no implied parent: it takes the link's place."""
    tree = rig.shows([[Dir("usr"), Symlink("lib", "usr")], [Dir("lib", mode=0o711), File("lib/x")]])
    assert names(tree) == {"usr": "directory", "lib": "directory", "lib/x": "file"}
    assert rig.variants() == set()


def test_line_18_a_link_whited_out_in_between_is_none(rig: Rig) -> None:
    """Then the parent is a new directory."""
    tree = rig.shows([[Dir("usr"), Symlink("lib", "usr")], [Whiteout("lib")], [File("lib/x")]])
    assert names(tree) == {"usr": "directory", "lib": "directory", "lib/x": "file"}
    assert rig.variants() == set()


# Variants are of an image's chain.

SHARED: list[Entry] = [File("lib/x", b"shared", mtime_ns=T1)]
WITH_LINK: Layers = [[Dir("usr"), Symlink("lib", "usr")], SHARED]
WITHOUT: Layers = [[Dir("lib", mode=0o700)], SHARED]
AT_LINK = {"usr": "directory", "lib": "symlink", "usr/x": "file"}
IN_PLACE = {"lib": "directory", "lib/x": "file"}


@pytest.mark.parametrize("first", ["link", "plain"])
def test_line_18_images_that_share_the_layer(first: str, rig: Rig) -> None:
    """By its diffID, one with a link below and one without: each is right, whichever comes first, and after the
    other one's end.
    """
    images = {"link": (WITH_LINK, AT_LINK), "plain": (WITHOUT, IN_PLACE)}
    order = [first, *(images.keys() - {first})]
    for tag in order:
        rig.load(**{tag: images[tag][0]})
    for tag in order:
        assert names(rig.tree(tag)) == images[tag][1]
    assert rig.layers("link")[1] == rig.layers("plain")[1]
    assert (len(rig.variants()), len(rig.stacks())) == (1, 2)
    ok(rig.cli, "rmi", order[0])
    assert len(rig.stacks()) == 1
    assert len(rig.variants()) == (1 if order[1] == "link" else 0)
    assert names(rig.tree(order[1])) == images[order[1]][1]


def test_line_18_a_variant_serves_every_image_of_its_chain(rig: Rig) -> None:
    """Another layer on top: the variant below is used again, and stays as long as one of them does."""
    rig.load(one=WITH_LINK, two=[*WITH_LINK, [File("top")]])
    variants = rig.variants()
    assert len(variants) == 1
    ok(rig.cli, "rmi", "one")
    assert rig.variants() == variants
    assert names(rig.tree("two")) == {**AT_LINK, "top": "file"}
    ok(rig.cli, "rmi", "two")
    assert (rig.variants(), rig.stacks()) == (set(), set())


def test_line_18_rmi_leaves_nothing(rig: Rig) -> None:
    """Variants, stacks, and whatever was staged for them."""
    rig.load(t=[[Dir("d"), Symlink("l", "d"), File("f")], [File("l/x"), Hardlink("h", "f")], [Whiteout("no/such")]])
    assert (len(rig.variants()), len(rig.stacks())) == (2, 1)
    ok(rig.cli, "rmi", "t")
    for directory in ("layers/sha256", "variants/sha256", "stacks/sha256", "blobs/sha256", "staging", "ingest"):
        assert os.listdir(rig.store / directory) == [], directory


def test_line_18_without_blobs(rig: Rig) -> None:
    """`--discard-blobs`: the blob is still at hand when its layer turns out to need its parents; so it is when the
    layer came with another image, and the blob is not in the store.
    """
    rig.load("--discard-blobs", plain=WITHOUT)
    rig.load("--discard-blobs", link=WITH_LINK)
    rig.load("--discard-blobs", other=[[Dir("else"), Symlink("lib", "else"), File("f")], SHARED, [Hardlink("h", "f")]])
    assert names(rig.tree("plain")) == IN_PLACE
    assert names(rig.tree("link")) == AT_LINK
    assert rig.tree("other").keys() >= {b"else/x", b"h", b"f"}


# Line 20.

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
TARGETS: Mapping[str, Entry] = {
    "file": File(
        "d/target",
        b"data" * 5000,
        0o4750,
        uid=1000,
        gid=70_000,
        mtime_ns=T1,
        xattrs={"user.a": b"\0\xff", "security.capability": CAPABILITY},
    ),
    "empty file": File("d/target", b"", 0o000, mtime_ns=-5),
    "symlink": Symlink("d/target", "no/where", uid=3, gid=4, mtime_ns=T1),
    "character device": Device("d/target", 1, 3, mode=0o666, uid=7, mtime_ns=T1),
    "block device": Device("d/target", 259, 65537, "block", mode=0o640, gid=6, mtime_ns=T1),
}


@pytest.mark.parametrize("between", [False, True], ids=["the layer below", "two below"])
@pytest.mark.parametrize("kind", TARGETS)
def test_line_20_a_hardlink_to_what_a_lower_layer_has(kind: str, between: bool, rig: Rig) -> None:
    """Both names have the same inode, and all attributes; the lower layer stays as it is."""
    lower: list[Entry] = [Dir("d", mode=0o711, uid=9, mtime_ns=T0), TARGETS[kind], File("d/other")]
    rig.load(below=[lower])
    [directory] = rig.layers("below")
    before, inode = snapshot(directory), (directory / "d" / "target").lstat().st_ino
    tree = rig.shows([lower, *([[File("between")]] if between else []), [Hardlink("e/link", "d/target")]])
    assert difference(before, snapshot(directory)) == []
    assert (directory / "d" / "target").lstat().st_ino == inode
    target = replace(before[b"d/target"], links=frozenset())
    assert tree[b"e/link"].links == {b"d/target"}
    assert tree[b"d/target"].links == {b"e/link"}
    assert replace(tree[b"e/link"], links=frozenset()) == replace(tree[b"d/target"], links=frozenset()) == target
    assert (tree[b"d"].mode, tree[b"d"].uid) == (0o711, 9)
    assert b"d/other" in tree


def test_line_20_through_symlinks_of_a_lower_layer(rig: Rig) -> None:
    """On the way to the target, and on the way to the link."""
    tree = rig.shows(
        [
            [Dir("usr/bin"), Symlink("bin", "usr/bin"), File("usr/bin/sh", b"sh", 0o755, mtime_ns=T1)],
            [Hardlink("bin/bash", "bin/sh"), Hardlink("ash", "/bin/sh")],
        ]
    )
    assert tree[b"usr/bin/sh"].links == {b"usr/bin/bash", b"ash"}
    assert tree[b"bin"].type == "symlink"
    assert tree[b"ash"].mtime_ns == T1


def test_line_20_a_link_to_a_link(rig: Rig) -> None:
    """A lower layer's own hard link, a link to the link of this layer, and one that replaces what was there."""
    tree = rig.shows(
        [
            [File("f", b"data", mtime_ns=T1), Hardlink("g", "f"), File("old", b"old"), Dir("gone")],
            [Hardlink("h", "g"), Hardlink("i", "h"), Hardlink("old", "f"), Hardlink("gone", "i")],
        ]
    )
    assert {tree[name].sha256 for name in (b"f", b"g", b"h", b"i", b"old", b"gone")} == {tree[b"f"].sha256}
    assert tree[b"i"].links >= {b"h", b"gone"}


def test_line_20_the_target_is_hidden_by_the_own_layer(rig: Rig) -> None:
    """A file of the link's own layer is the target, whichever comes first, and not the lower one."""
    rig.load(t=[[File("f", b"old")], [Hardlink("g", "f"), File("f", b"newer")]])
    tree = rig.tree()
    assert (set(tree[b"g"].links), tree[b"g"].size) == ({b"f"}, 5)


@pytest.mark.parametrize(
    "layers",
    [
        [[Hardlink("link", "no/target")]],
        [[File("a")], [Hardlink("link", "no/target")]],
        [[File("no/target")], [Whiteout("no/target")], [Hardlink("link", "no/target")]],
        [[File("no/target")], [Whiteout("no")], [Hardlink("link", "no/target")]],
        [[File("no/target")], [Opaque("")], [Hardlink("link", "no/target")]],
        [[File("no/target")], [Opaque("no")], [Hardlink("link", "no/target")]],
        [[Hardlink("link", "no/target")], [File("no/target")]],
    ],
    ids=["lowest", "upper", "hidden", "parent hidden", "opaque root", "opaque parent", "above"],
)
def test_line_20_a_target_in_no_layer(layers: Layers, rig: Rig, tmp_path: Path) -> None:
    """One clear line that names the link and its target; no image, and nothing staged."""
    write(tmp_path / "t", {"t": Image([Layer(entries) for entries in layers])})
    line = fails(rig.cli, "load", "--quiet", "-t", "t", tmp_path / "t")
    assert "'link'" in line
    assert "'no/target'" in line
    assert answer(rig.cli, "images", "--format", "json") == []
    assert (rig.variants(), rig.stacks(), os.listdir(rig.store / "staging")) == (set(), set(), [])


def test_line_20_images_that_share_the_layer(rig: Rig) -> None:
    """The same link over two different targets: each has its own."""
    link: list[Entry] = [Hardlink("link", "target")]
    rig.load(one=[[File("target", b"one")], link], two=[[File("target", b"two two")], link])
    assert [rig.tree(tag)[b"link"].size for tag in ("one", "two")] == [3, 7]
    ok(rig.cli, "rmi", "one")
    assert rig.tree("two")[b"link"].size == 7
    assert len(rig.variants()) == 1


def test_line_20_several_layers_of_links(rig: Rig) -> None:
    """A link to what a variant has brought up."""
    tree = rig.shows([[File("d/a", b"data", uid=5, mtime_ns=T1)], [Hardlink("b", "d/a")], [Hardlink("c", "b")]])
    assert {(tree[name].size, tree[name].uid, tree[name].mtime_ns) for name in (b"d/a", b"b", b"c")} == {(4, 5, T1)}
    assert len(rig.variants()) == 2


# Line 17.

PARENT = Dir("p", mode=0o1770, uid=10, gid=70_000, mtime_ns=T0, xattrs={"user.a": b"\0\xff", "user.b": b"b"})
INHERITED = (0o1770, 10, 70_000, T0, (("user.a", b"\0\xff"), ("user.b", b"b")))
NEW = (0o755, 0, 0, 0, ())


def attributes(tree: Snapshot, path: bytes = b"p") -> tuple[object, ...]:
    node = tree[path]
    return (node.mode, node.uid, node.gid, node.mtime_ns, node.xattrs)


@pytest.mark.parametrize(
    "above",
    [
        [[File("p/f")]],
        [[File("p/f")], [File("p/g")]],
        [[File("other")], [File("p/deep/f")], [File("third")]],
        [[Opaque("p"), File("p/f")]],
        [[File("p/f"), Opaque("p")]],
        [[Opaque("p")]],
        [[File("p/f")], [Opaque("p"), File("p/g")], [File("p/h")]],
        [[Whiteout("p/old")]],
        [[Whiteout("p/old"), Whiteout("p/never")]],
        [[Hardlink("p/link", "file")]],
        [[File("link/f")]],
    ],
    ids=[
        "one layer",
        "two layers",
        "layers between",
        "opaque",
        "opaque last",
        "opaque alone",
        "opaque in the middle",
        "whiteout",
        "whiteouts",
        "hard link to below",
        "through a symlink",
    ],
)
def test_line_17_implied_directories_inherit(above: Layers, rig: Rig) -> None:
    """Mode, owner, time and extended attributes, as they would have had if extracted in order."""
    tree = rig.shows([[PARENT, File("p/old"), File("file"), Symlink("link", "p")], *above])
    assert attributes(tree) == INHERITED


def test_line_17_trusted_attributes_are_inherited(rig: Rig) -> None:
    """Those that the worker cannot set itself; on a file, too, and by every way to unpack."""
    trusted = {"trusted.note": b"\0\xff"}
    rig.load(t=[[Dir("p", xattrs=trusted), File("p/g", xattrs=trusted)], [File("p/f")], [Hardlink("h", "p/g")]])
    tree = rig.tree()
    assert [tree[path].xattrs for path in (b"p", b"p/g", b"h")] == [(("trusted.note", b"\0\xff"),)] * 3
    assert difference(tree, rig.flat()) == []


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([[PARENT], [Whiteout("p")], [File("p/f")]], NEW),
        ([[PARENT], [Whiteout("p"), File("p/f")]], NEW),
        ([[PARENT], [File("p")], [File("p/f")]], NEW),
        ([[PARENT], [Opaque("")], [File("p/f")]], NEW),
        ([[PARENT], [Opaque(""), File("p/f")]], NEW),
        ([[PARENT], [Whiteout("p")], [Dir("p", mode=0o711, mtime_ns=T2)], [File("p/f")]], (0o711, 0, 0, T2, ())),
        ([[Dir("p", mode=0o700, mtime_ns=T2)], [PARENT], [File("p/f")]], INHERITED),
        ([[File("p/a")], [PARENT], [File("p/f")]], INHERITED),
        ([[PARENT], [Dir("p", mode=0o711, mtime_ns=T2)], [File("p/f")]], (0o711, 0, 0, T2, ())),
    ],
    ids=[
        "hidden in between",
        "hidden in the same layer",
        "a file in between",
        "opaque root in between",
        "opaque root in the same layer",
        "made anew in between",
        "described twice",
        "implied, described, implied",
        "described anew",
    ],
)
def test_line_17_from_the_right_layer(layers: Layers, expected: tuple[object, ...], rig: Rig) -> None:
    """From the topmost layer that describes it, but not from behind a whiteout."""
    rig.load(t=layers)
    tree = rig.tree()
    assert attributes(tree) == expected
    assert difference(tree, rig.flat()) == []


def test_line_17_only_the_stack_says_so(rig: Rig) -> None:
    """Two images with other directories below the same layer: each has its own attributes."""
    top: list[Entry] = [File("p/f")]
    rig.load(one=[[PARENT], top], two=[[Dir("p", mode=0o711, mtime_ns=T2)], top], three=[top])
    assert attributes(rig.tree("one")) == INHERITED
    assert attributes(rig.tree("two")) == (0o711, 0, 0, T2, ())
    assert attributes(rig.tree("three")) == NEW


# Whiteouts of nothing, and opaque roots.


@pytest.mark.parametrize(
    "layers",
    [
        [[File("f"), Whiteout("never"), Whiteout("d/never"), File("d/x")]],
        [[File("f")], [Whiteout("never"), File("d/x"), Whiteout("d/never")]],
        [[File("f"), Dir("d")], [Whiteout("d/never"), File("d/x")]],
        [[File("f"), File("d")], [Whiteout("d"), File("d/x"), Whiteout("d/never")]],
        [[File("f")], [Whiteout("f"), Whiteout("never")], [Whiteout("f"), File("d/x")], [File("f")]],
        [[File("f")], [Whiteout("d/a"), File("d/x")], [Whiteout("d/a"), Whiteout("d/b")]],
        [[File("f"), File("d/x"), File("e/x")], [Whiteout("e")], [Whiteout("e/x"), Whiteout("e/y")], [Whiteout("e")]],
    ],
    ids=[
        "lowest layer",
        "new directory",
        "old directory",
        "file becomes directory",
        "twice",
        "layer upon layer",
        "in what is hidden",
    ],
)
def test_line_15_whiteouts_of_nothing_are_not_listed(layers: Layers, rig: Rig) -> None:
    """No device shows up in any listing, and every name that is listed can be looked at."""
    tree = rig.shows(layers)
    assert all(node.device is None for node in tree.values())
    assert {b"f", b"d", b"d/x"} <= tree.keys() <= {b".", b"f", b"d", b"d/x", b"e"}


def test_line_15_parents_of_whiteouts_are_made(rig: Rig) -> None:
    """As line 10 has it, where umoci makes none: of what never existed, nothing else is seen."""
    tree = rig.shows([[File("f")], [Whiteout("no/such/thing")]], by_umoci=False)
    assert names(tree) == {"f": "file", "no": "directory", "no/such": "directory"}


@pytest.mark.parametrize("after", [[], [[File("f", b"again")]], [[Whiteout("old")], [File("d/new")]]])
def test_line_14_an_opaque_root_in_the_middle(after: Layers, rig: Rig) -> None:
    """Nothing from below shows, whatever lies above; the layers below are still kept for other images."""
    below: Layers = [[File("old"), File("d/old"), Dir(".", mode=0o700)], [File("older")]]
    tree = rig.shows([*below, [Opaque(""), File("mine"), File("d/mine")], *after], by_umoci=False)
    assert b"mine" in tree
    assert not {b"old", b"older", b"d/old"} & tree.keys()


# Line 21.


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([[File("p/f", b"1")], [PARENT, File("p/f", b"22")], [File("p/f", b"1")]], 1),
        ([[PARENT, File("p/f", b"1")], [Whiteout("p")], [PARENT, File("p/f", b"1")]], 1),
        ([[PARENT], [File("p/f", b"22")], [File("p/f", b"22")], [File("p/f", b"22")]], 2),
        ([[PARENT, File("f", b"333")], [Hardlink("p/f", "f")], [PARENT, File("f", b"333")], [Hardlink("p/f", "f")]], 3),
        ([[PARENT, Symlink("l", "p")], [File("l/f", b"1")], [File("p/f", b"22")], [File("l/f", b"1")]], 1),
    ],
    ids=["implied and described", "hidden and back", "three times", "with hard links", "through a symlink"],
)
def test_line_21_the_same_layer_twice(layers: Layers, expected: int, rig: Rig) -> None:
    """Also where it has to be settled, and in one place of the chain not as in the other."""
    tree = rig.shows(layers)
    assert tree[b"p/f"].size == expected
    assert attributes(tree) == INHERITED


def test_line_21_the_whole_image_twice(rig: Rig) -> None:
    """Every layer, and then every layer again: the same tree as once."""
    layers: Layers = [[PARENT, Symlink("l", "p"), File("f", b"f")], [File("l/x"), Hardlink("h", "f"), Whiteout("n")]]
    rig.load(once=layers, twice=[*layers, *layers])
    assert difference(rig.tree("once"), rig.tree("twice")) == []

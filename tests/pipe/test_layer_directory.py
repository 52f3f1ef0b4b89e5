"""What a layer's entries become on disk: LAYERS.md, lines 1 to 27, each test named after its line.

Most unpack one layer by the worker process that a pull uses; where layers have to be stacked, the whole way is gone:
an OCI layout, `load`, `mount`.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import zstandard

from pullpipe.errors import LayerError
from tests.conftest import PROJECT, Cli
from tests.pipe.blocks import GNU, base256, file, header, pax
from tests.pipe.unpacked import Jail, Way, tar
from tests.support.images import (
    Compression,
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
from tests.support.tree import Snapshot, snapshot

pytestmark = pytest.mark.needs_root

Mounted = Callable[..., AbstractContextManager[Path]]
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep, as setcap writes it


@pytest.fixture
def mounted(tmp_path: Path, cli: Cli) -> Mounted:
    """A function that loads an image of these layers and yields the stack's tree, through overlayfs."""

    @contextmanager
    def mount(*layers: Sequence[Entry] | Layer, options: Sequence[str] = ()) -> Iterator[Path]:
        made = [layer if isinstance(layer, Layer) else Layer(layer) for layer in layers]
        write_layout(tmp_path / "layout", {"t": Image(made)})
        ok(cli("load", "--quiet", "--durability=none", "-t", "test", tmp_path / "layout"))
        target = tmp_path / "mnt"
        target.mkdir()
        ok(cli("mount", *options, "test", target))
        try:
            yield target
        finally:
            ok(cli("umount", target))

    return mount


def ok(done: subprocess.CompletedProcess[str]) -> str:
    """What a command printed, when it went well."""
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(tree: Snapshot) -> dict[str, str]:
    """Names and types, for people."""
    return {path.decode(errors="backslashreplace"): node.type for path, node in tree.items() if path != b"."}


# Containment.


@pytest.mark.parametrize("name", ["../x", "/../x", "a/../../x", "../../../../../x", "./../x", "a/b/../../../x"])
def test_rule_01_upward_names_are_clamped(name: str, way: Way) -> None:
    """As containerd and umoci do it: what would lead out of the root leads to the root."""
    assert rows(way(File(name, b"data")).tree) == {"x": "file"}


@pytest.mark.parametrize("name", ["..", "../", "/..", "a/../.."])
def test_rule_01_the_parent_is_the_root(name: str, way: Way) -> None:
    """As a directory it sets the root's attributes."""
    done = way(Dir(name, mode=0o711, uid=5))
    assert rows(done.tree) == {}
    assert (done.tree[b"."].mode, done.tree[b"."].uid) == (0o711, 5)


def test_rule_01_an_absolute_path_of_the_host(way: Way, jail: Jail) -> None:
    """Written as the host knows the file: it is made inside."""
    done = way(File(f"{jail.victim}/file", b"evil"), File(f"..{jail.victim}/file2", b"evil"))
    assert done.content(f"{jail.victim}/file".lstrip("/")) == b"evil"


@pytest.mark.parametrize("name", ["/etc/x", "./etc/x", "//etc//x", ".//etc/./x", "etc/x", "/etc/y/../x"])
def test_rule_02_names_are_relative_to_the_root(name: str, way: Way) -> None:
    """However they are spelled."""
    assert rows(way(File(name, b"data")).tree) == {"etc": "directory", "etc/x": "file"}


@pytest.mark.parametrize("name", [".", "./", "/", "//", "a/.."])
def test_rule_02_the_root_has_attributes(name: str, jail: Jail) -> None:
    """Mode, owner, times and extended attributes of the root, by any of its names; first or last in the archive."""
    root = Dir(name, mode=0o1750, uid=7, gid=8, mtime_ns=10**18, xattrs={"user.r": b"1"})
    for entries in ((root, File("f")), (File("g"), root)):
        node = jail.unpack(*entries).tree[b"."]
        assert (node.mode, node.uid, node.gid, node.mtime_ns) == (0o1750, 7, 8, 10**18)
        assert node.xattrs == (("user.r", b"1"),)


@pytest.mark.parametrize("kind", [b"0", b"5", b"2"])
def test_rule_02_an_empty_name_is_an_error(kind: bytes, jail: Jail) -> None:
    """It names nothing, and is not the root."""
    assert "at byte 512 " in jail.fail(File("good"), header(b"", kind=kind, linkname=b"t"))


@pytest.mark.parametrize("entry", [File("."), Symlink("/", "x"), Fifo("./"), Device("..", 1, 3), Hardlink(".", "f")])
def test_rule_02_the_root_stays_a_directory(entry: Entry, jail: Jail) -> None:
    """Anything else with its name is an error."""
    assert "root" in jail.fail(File("f"), entry)


@pytest.mark.parametrize(
    "target", ["real", "/real", "./real", "../real", "../../../real", "/../real", "real/", "real/.", "missing/../real"]
)
def test_rule_03_a_parent_that_is_a_symlink(target: str, way: Way) -> None:
    """Absolute, relative or upward: resolved in the root."""
    done = way(Dir("real"), Symlink("link", target), File("link/f", b"data"))
    assert done.content("real/f") == b"data"
    assert done.tree[b"link"].target == target.encode()


def test_rule_03_a_parent_symlink_to_the_host(way: Way, jail: Jail) -> None:
    """Absolute or upward paths that exist outside: the file is made inside."""
    up = "../" * 30
    done = way(
        Symlink("absolute", str(jail.victim)),
        File("absolute/file", b"evil"),
        Symlink("upward", f"{up}{jail.victim}"),
        File("upward/file2", b"evil"),
        Symlink("near", "../victim"),
        File("near/file", b"evil"),
    )
    inside = str(jail.victim).lstrip("/")
    assert done.content(f"{inside}/file") == done.content(f"{inside}/file2") == b"evil"
    assert done.content("victim/file") == b"evil"


def test_rule_03_chained_symlinks(way: Way) -> None:
    """Through many of them, in the middle of a path too."""
    links = [Symlink(f"l{number}", f"l{number + 1}") for number in range(30)]
    done = way(Dir("l30"), *links, File("l0/sub/f", b"data"))
    assert done.content("l30/sub/f") == b"data"


def test_rule_03_dangling_symlinks(way: Way) -> None:
    """What the symlink names is made, inside."""
    done = way(Symlink("link", "/not/there"), File("link/f", b"data"))
    assert rows(done.tree) == {
        "link": "symlink",
        "not": "directory",
        "not/there": "directory",
        "not/there/f": "file",
    }


@pytest.mark.parametrize("links", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "a/x"}, {"a": "./b", "b": "c", "c": "/a"}])
def test_rule_03_parent_symlink_loop(links: dict[str, str], jail: Jail) -> None:
    """ELOOP, with the entry's name."""
    message = jail.fail(*(Symlink(name, target) for name, target in links.items()), File("a/f"))
    assert "'a/f'" in message
    assert "symbolic links" in message


def test_rule_04_two_hops(way: Way) -> None:
    """`a/up -> ..`, then a symlink written through it, then a file through that one."""
    done = way(
        Dir("a"),
        Symlink("a/up", ".."),
        Symlink("a/up/escape", "../victim"),
        File("escape/file", b"evil"),
        File("a/up/f"),
    )
    assert done.content("victim/file") == b"evil"
    assert done.tree[b"escape"].target == b"../victim"
    assert b"f" in done.tree


def test_rule_04_more_hops(way: Way, jail: Jail) -> None:
    """Up, up, absolute, and through a hardlink of a symlink."""
    done = way(
        Dir("a"),
        Dir("a/b"),
        Symlink("a/b/up", "../.."),
        Symlink("a/b/up/top", "../../../.."),
        Hardlink("link", "top"),
        File(f"link{jail.victim}/file", b"evil"),
        File(f"a/b/up/top{jail.victim}/file2", b"evil"),
    )
    assert done.content(f"{jail.victim}/file".lstrip("/")) == b"evil"


def test_rule_05_no_prefix_checks(way: Way) -> None:
    """`root-evil` beside `root` begins with the same letters, and is another place."""
    done = way(
        File("../root-evil/file", b"evil"),
        Symlink("l", "../root-evil"),
        File("l/file2"),
        Hardlink("h", "../root-evil/file"),
    )
    assert done.content("root-evil/file") == b"evil"


@pytest.mark.parametrize("target", ["../victim", "/", "..", "elsewhere"])
def test_rule_06_a_directory_replaced_by_a_symlink(target: str, way: Way) -> None:
    """What is written through it afterwards lands where the symlink leads inside the root; the host is untouched."""
    done = way(
        Dir("d"), File("d/old"), Symlink("d", target), File("d/file", b"new"), Dir("d/sub"), File("d/sub/f", b"f")
    )
    place = {"/": "", "..": "", "../victim": "victim/", "elsewhere": "elsewhere/"}[target]
    assert done.content(f"{place}file") == b"new"
    assert done.content(f"{place}sub/f") == b"f"
    assert done.tree[b"d"].type == "symlink"
    assert b"d/old" not in done.tree


def test_rule_06_a_symlink_replaced_by_a_symlink(way: Way) -> None:
    """The way through it is looked up anew: each file goes where the symlink led when the file came."""
    done = way(Dir("a"), Dir("b"), Symlink("l", "a"), File("l/1"), Symlink("l", "b"), File("l/2"), File("l/deep/3"))
    assert {path for path in rows(done.tree) if "/" in path} == {"a/1", "b/2", "b/deep", "b/deep/3"}


def test_rule_06_a_symlink_replaced_by_a_directory(way: Way) -> None:
    """It is a directory of its own from there on."""
    done = way(Dir("a"), Symlink("l", "a"), File("l/1"), Dir("l"), File("l/2"), File("l/deep/3"))
    assert {path for path in rows(done.tree) if "/" in path} == {"a/1", "l/2", "l/deep", "l/deep/3"}


def test_rule_06_a_directory_on_the_way_of_a_symlink_is_replaced(way: Way) -> None:
    """Deeper down: what is remembered of a way ends with any of its parts."""
    done = way(
        File("x/y/z/1"),
        Symlink("s", "x/y"),
        File("s/z/2"),
        File("x/y"),
        Dir("x/y"),
        File("s/z/3"),
    )
    assert {path for path, kind in rows(done.tree).items() if kind == "file"} == {"x/y/z/3"}


@pytest.mark.parametrize("target", ["f", "/f", "./f", "../f", "../../f", "d/../f", "s/f", "/d/s2/f"])
def test_rule_07_hardlink_targets(target: str, way: Way) -> None:
    """Absolute, relative, upward, through symlinks: all relative to the root, as other names are."""
    done = way(File("f", b"data"), Dir("d"), Symlink("s", "."), Symlink("d/s2", "/"), Hardlink("d/h", target))
    assert done.tree[b"d/h"].links == {b"f"}


@pytest.mark.parametrize("target", ["{victim}/file", "../victim/file", "l/file", "{up}{victim}/file"])
def test_rule_07_a_hardlink_to_a_file_of_the_host(target: str, jail: Jail) -> None:
    """There is no such file in the layer: an error, and no second name for the host's file."""
    named = target.format(victim=jail.victim, up="../" * 30)
    for unpack in (jail.unpack, jail.unpack_without_walls):
        with pytest.raises(LayerError):
            unpack(Symlink("l", str(jail.victim)), Hardlink("h", named, mode=0o777, uid=1000))
    assert (jail.victim / "file").stat().st_nlink == 1


def test_rule_07_a_link_to_a_symlink(way: Way) -> None:
    """It is the symlink that gets a second name, whatever it points to."""
    done = way(Symlink("s", "/etc/passwd"), Hardlink("h", "s"))
    assert (done.tree[b"h"].type, done.tree[b"h"].target, done.tree[b"h"].links) == (
        "symlink",
        b"/etc/passwd",
        frozenset({b"s"}),
    )


def test_rule_07_the_header_of_a_hardlink_does_not_count(way: Way) -> None:
    """Owner, mode, times and attributes in it would change the target; through a symlink even the host's."""
    target = File("f", b"data", 0o600, uid=1, gid=2, mtime_ns=10**18)
    done = way(
        target,
        Symlink("s", "../victim/file"),
        Hardlink("h", "f", mode=0o4777, uid=9, gid=9, mtime_ns=1, xattrs={"user.x": b"1"}),
        Hardlink("hs", "s", mode=0o4777, uid=9, gid=9, mtime_ns=1),
    )
    node = done.tree[b"f"]
    assert (node.mode, node.uid, node.gid, node.mtime_ns, node.xattrs) == (0o600, 1, 2, 10**18, ())
    assert done.tree[b"hs"].uid == 0


def test_rule_07_links_to_directories_are_errors(jail: Jail) -> None:
    """No file system can do that."""
    assert "'d'" in jail.fail(Dir("d"), Hardlink("h", "d"))


def test_rule_07_a_link_to_itself(way: Way) -> None:
    """Odd and harmless: the file stays."""
    assert way(File("f", b"data"), Hardlink("f", "./f")).content("f") == b"data"


@pytest.mark.parametrize("target", ["../victim/file", "{victim}/file", "other", "missing"])
def test_rule_08_a_file_over_a_symlink(target: str, way: Way, jail: Jail) -> None:
    """The symlink is replaced and not followed; the same goes for devices, FIFOs, links and directories."""
    to = target.format(victim=jail.victim)
    new: list[Entry] = [
        File("n", b"new"),
        Fifo("n"),
        Device("n", 1, 3),
        Hardlink("n", "other"),
        Symlink("n", "x"),
        Dir("n"),
    ]
    for entry in new:
        done = way(File("other", b"other"), Symlink("n", to), entry)
        assert done.content("other") == b"other"
        assert done.tree[b"n"].target != to.encode()
        assert rows(done.tree).keys() == {"other", "n"}
        (jail.root / "other").unlink()
        if (jail.root / "n").is_dir():
            (jail.root / "n").rmdir()
        else:
            (jail.root / "n").unlink()


def test_rule_08_attributes_do_not_go_through_a_symlink(way: Way) -> None:
    """chmod, chown, times and attributes of an entry are its own, even if a symlink stood there, or stands there."""
    done = way(
        File("f", mode=0o600),
        Symlink("s", "f", uid=5, gid=6, mtime_ns=10**18),
        Symlink("out", "../victim/file", uid=5, gid=6, mtime_ns=10**18),
    )
    assert (done.tree[b"f"].uid, done.tree[b"f"].mtime_ns, done.tree[b"f"].mode) == (0, 0, 0o600)
    assert (done.tree[b"s"].uid, done.tree[b"s"].gid, done.tree[b"s"].mtime_ns) == (5, 6, 10**18)


def test_rule_09_nothing_of_the_image_is_run_or_read(jail: Jail) -> None:
    """CVE-2019-14271 and its like: programs and Python modules where the host's interpreter looks for its own.

    Each would leave a mark in the root, and being read would change its access time, which `relatime` moves on when it
    is not younger than the modification time.
    """
    marker = b"import os\nos.close(os.open('/pwned', os.O_CREAT | os.O_WRONLY))\n"
    program = b"#!/bin/sh\n: > /pwned\n"
    modules = sorted(name for name in sys.stdlib_module_names if name.isidentifier())
    entries: list[Entry] = [File(f"{path}/{name}.py", marker) for path in sys.path if path for name in modules]
    entries += [File(f"{PROJECT}/{name}/__init__.py", marker) for name in ("pullpipe", "store")]
    entries += [
        File(f"{path}/{name}", program, 0o755) for path in ("bin", "usr/bin") for name in ("sh", "gzip", "zstd")
    ]
    entries += [File("etc/ld.so.preload", b"/pwned.so"), File("etc/passwd", b"root:x:0:0::/:/bin/sh")]
    more: list[Entry | bytes] = [
        Symlink("user-xattr", "x", xattrs={"user.a": b"1"}),
        Dir("replaced"),
        File("replaced/f"),
        File("replaced"),
        Opaque("replaced2"),
        pax({b"LIBARCHIVE.xattr.user.%61": b"AAE"}) + file(b"x\xff"),
        Hardlink("late", "later"),
        File("later"),
    ]
    done = jail.unpack(*entries, *more)
    assert b"pwned" not in done.tree
    files = [path for path, node in done.tree.items() if node.type == "file" and node.mtime_ns == 0]
    assert len(files) > len(modules)
    # Not of this tree, whose files the snapshot has read, but of a second one that nobody has looked at.
    again = jail.another()
    with pytest.raises(LayerError):
        again.unpack(*entries, *more, Hardlink("nowhere", "not-there"))
    assert not (again.root / "pwned").exists()
    read = [path for path in files if os.lstat(os.path.join(os.fsencode(again.root), path)).st_atime_ns]
    assert read == []


# Whiteouts.


def test_rule_10_a_whiteout_is_a_device(jail: Jail) -> None:
    """0:0, at the name that it hides; its own `.wh.` name is nowhere, and parents are made as needed."""
    done = jail.unpack(Whiteout("f"), Whiteout("a/b/c"), Dir("d"), Whiteout("d/x"))
    assert done.whiteouts() == {b"f", b"a/b/c", b"d/x"}
    assert done.names() == {b"a", b"a/b", b"d"}
    assert done.result.whiteouts == 3


def test_rule_10_a_whiteout_hides_in_the_stack(mounted: Mounted) -> None:
    """Files, directories with all that is in them, symlinks, and names that are not UTF-8."""
    below = [
        File("f"),
        File("d/x/y"),
        Symlink("s", "f"),
        File(b"\xff\xfe"),
        File("keep/f"),
        File("keep/g"),
    ]
    above = [Whiteout("f"), Whiteout("d"), Whiteout("s"), File(b".wh.\xff\xfe"), Whiteout("keep/f")]
    with mounted(below, above) as target:
        assert rows(snapshot(target)) == {"keep": "directory", "keep/g": "file"}


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..."])
def test_rule_11_whiteouts_of_nothing_are_errors(name: str, jail: Jail) -> None:
    """An empty name, `.` and `..` can hide nothing."""
    assert repr(name) in jail.fail(Dir("d"), File(name))


def test_rule_11_leftovers_of_aufs_are_skipped(jail: Jail) -> None:
    """`.wh..wh.plnk` and its kind, also as directories with content and as hardlinks."""
    done = jail.unpack(
        File(".wh..wh.aufs"),
        Dir(".wh..wh.plnk", mode=0o700),
        File(".wh..wh.plnk/1.2", b"x"),
        Dir(".wh..wh.orph"),
        Hardlink(".wh..wh.plnk/3.4", "f"),
        File("d/.wh..wh.aufs"),
        File("f"),
    )
    assert done.names() - {b"d"} == {b"f"}
    assert done.whiteouts() == set()


def test_rule_11_opaque_directories(jail: Jail) -> None:
    """The mark is an attribute of the directory, and no file; the directory is made where it is not there."""
    done = jail.unpack(Dir("d"), Opaque("d"), File("d/f"), Opaque("new/deep"))
    assert done.opaque() == {b"d", b"new/deep"}
    assert done.names() == {b"d", b"d/f", b"new", b"new/deep"}


ORDERS: list[list[Entry]] = [[Whiteout("f"), File("f", b"new")], [File("f", b"new"), Whiteout("f")]]


@pytest.mark.parametrize("order", ORDERS)
def test_rule_12_a_whiteout_spares_its_own_layer(order: list[Entry], mounted: Mounted) -> None:
    """It speaks of the layers below; whichever comes first, the layer's own entry survives."""
    with mounted([File("f", b"old"), File("g")], order) as target:
        assert (target / "f").read_bytes() == b"new"
        assert rows(snapshot(target)) == {"f": "file", "g": "file"}


@pytest.mark.parametrize(
    "entry", [Symlink("f", "t"), Fifo("f"), Device("f", 1, 3), Hardlink("f", "other")], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("first", [True, False])
def test_rule_12_for_every_type(entry: Entry, first: bool, jail: Jail) -> None:
    """Symlinks, FIFOs, devices and hardlinks survive it as files do."""
    pair: list[Entry] = [Whiteout("f"), entry] if first else [entry, Whiteout("f")]
    done = jail.unpack(File("other"), *pair)
    assert done.whiteouts() == set()
    assert b"f" in done.tree


@pytest.mark.parametrize(
    "order",
    [
        [Whiteout("d"), Dir("d"), File("d/new")],
        [Dir("d"), Whiteout("d"), File("d/new")],
        [Dir("d"), File("d/new"), Whiteout("d")],
        [Whiteout("d"), File("d/new")],
        [File("d/new"), Whiteout("d")],
    ],
)
def test_rule_13_a_whiteout_of_a_directory_that_is_made_anew(order: list[Entry], mounted: Mounted) -> None:
    """The old directory is gone with all that was in it, and the new one has what this layer gives it."""
    with mounted([File("d/old"), File("d/deep/old")], order) as target:
        assert rows(snapshot(target)) == {"d": "directory", "d/new": "file"}


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4])
def test_rule_13_opaque_anywhere_in_the_stream(place: int, mounted: Mounted) -> None:
    """First, in the middle or last: the layers' own children survive, all else is hidden."""
    above: list[Entry] = [Dir("d", mode=0o700), File("d/new"), File("d/deep/new"), File("e")]
    above.insert(place, Opaque("d"))
    with mounted([File("d/old"), File("d/deep/old"), File("d/gone/old")], above) as target:
        tree = snapshot(target)
    assert rows(tree) == {
        "d": "directory",
        "d/new": "file",
        "d/deep": "directory",
        "d/deep/new": "file",
        "e": "file",
    }
    assert tree[b"d"].mode == 0o700


@pytest.mark.parametrize("opaque_first", [True, False])
def test_rule_13_whiteouts_below_an_opaque_directory_are_dropped(opaque_first: bool, jail: Jail) -> None:
    """There is nothing left to hide, and a listing would show the device; also deeper down."""
    marks: list[Entry] = [Whiteout("d/x"), Whiteout("d/deep/y")]
    entries = [Opaque("d"), *marks] if opaque_first else [*marks, Opaque("d")]
    done = jail.unpack(*entries, Whiteout("other/z"))
    assert done.whiteouts() == {b"other/z"}


def test_rule_13_an_opaque_directory_replaced_by_a_symlink(jail: Jail) -> None:
    """Its end is the mark's end: whiteouts where the symlink leads have nothing to do with it."""
    done = jail.unpack(Opaque("a"), Dir("b"), Whiteout("b/x"), Symlink("a", "b"))
    assert done.whiteouts() == {b"b/x"}
    assert done.opaque() == set()


def test_rule_13_an_opaque_directory_replaced_by_a_file_and_back(jail: Jail) -> None:
    """The directory that comes last hides what is below: there was a file in between."""
    assert jail.unpack(File("a/x"), File("a"), File("a/y")).opaque() == {b"a"}


@pytest.mark.parametrize("own", [[], [File("new")], [File("new"), File("d/new"), Whiteout("f")]])
def test_rule_14_an_opaque_root(own: list[Entry], mounted: Mounted) -> None:
    """Nothing below is seen, and what is above is: overlayfs ignores the mark there, so the stack is cut."""
    with mounted([File("f"), File("d/old")], [Opaque(""), *own], [File("above")]) as target:
        names = rows(snapshot(target)).keys()
    assert names == {"above"} | ({"new"} if own else set()) | ({"d", "d/new"} if len(own) > 1 else set())


def test_rule_15_whiteouts_of_what_never_existed(mounted: Mounted) -> None:
    """No error, and nothing to be seen; also in the lowest layer."""
    with mounted([Whiteout("never"), File("f")], [Whiteout("a/b/never"), Whiteout("g"), Opaque("o")]) as target:
        assert set(rows(snapshot(target))) == {"f", "a", "a/b", "o"}


@pytest.mark.parametrize(
    "entry",
    [
        Dir(".wh.f"),
        Symlink(".wh.f", "x"),
        Fifo(".wh.f"),
        Device(".wh.f", 1, 3),
        Hardlink(".wh.f", "other"),
        File(".wh.f", b"data"),
    ],
    ids=lambda entry: type(entry).__name__,
)
def test_rule_15_the_name_decides(entry: Entry, jail: Jail) -> None:
    """A whiteout of another type than an empty file is one all the same."""
    done = jail.unpack(File("other"), entry)
    assert done.whiteouts() == {b"f"}
    assert done.names() == {b"other"}


def test_rule_15_a_whiteout_through_a_symlinked_parent(way: Way) -> None:
    """Resolved in the root, as for any entry; so is the mark of an opaque directory."""
    done = way(
        Dir("real"),
        Symlink("link", "/real"),
        Whiteout("link/f"),
        Symlink("out", "../victim"),
        Whiteout("out/file"),
        Symlink("out2", "../victim2"),
        Opaque("out2"),
    )
    assert done.whiteouts() == {b"real/f", b"victim/file"}
    assert done.opaque() == {b"victim2"}


def test_rule_16_attributes_of_overlayfs_do_not_act(mounted: Mounted) -> None:
    """An image that carries them steers nothing: not what is opaque, not what a file's data or name is."""
    steering = {
        f"{space}.overlay.{name}": value
        for space in ("trusted", "user")
        for name, value in (("opaque", b"y"), ("redirect", b"/other"), ("metacopy", b""), ("whiteout", b"y"))
    }
    above = [Dir("d", xattrs=steering), File("f", b"new", xattrs=steering), File("d/new", xattrs=steering)]
    with mounted([File("d/old"), File("f", b"old"), File("other/secret")], above) as target:
        assert (target / "f").read_bytes() == b"new"
        assert {path for path in rows(snapshot(target)) if path.startswith("d/")} == {"d/old", "d/new"}


def test_rule_16_with_a_warning(jail: Jail) -> None:
    """The user is told what was left out; also of the LIBARCHIVE form, the root's, a symlink's."""
    done = jail.unpack(
        Dir("d", xattrs={"trusted.overlay.opaque": b"y", "user.mine": b"1"}),
        Dir(".", xattrs={"user.overlay.opaque": b"y"}),
        Symlink("s", "x", xattrs={"trusted.overlay.origin": b"1"}),
        pax({b"LIBARCHIVE.xattr.trusted.overlay%2Eopaque": b"eQ"}) + header(b"e", kind=b"5"),
        Device("null", 0, 0),
    )
    assert done.opaque() == set()
    assert done.tree[b"d"].xattrs == (("user.mine", b"1"),)
    attributes, devices = done.result.warnings
    assert attributes.endswith("'d/' and 3 more")
    assert devices.endswith("'null'")


def test_rule_16_devices_of_the_image_do_not_hide(mounted: Mounted) -> None:
    """A 0:0 character device as an entry: left out, and the file below stays."""
    with mounted([File("f", b"data"), File("d/f")], [Device("f", 0, 0), Device("d", 0, 0)]) as target:
        assert rows(snapshot(target)) == {"f": "file", "d": "directory", "d/f": "file"}


# Tree.


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_rule_17_implied_parents(mask: int, tmp_path: Path, cli: Cli) -> None:
    """0755, root:root, whatever the umask of whoever pulls; the root too. All are recorded."""
    write_layout(tmp_path / "layout", {"t": Image([Layer([File("a/b/f", mode=0o666), Dir("a/c", mode=0o777)])])})
    before = os.umask(mask)
    try:
        ok(cli("load", "--quiet", "-t", "test", tmp_path / "layout"))
    finally:
        os.umask(before)
    (layer,) = json.loads(ok(cli("inspect", "test")))["layers"]
    tree = snapshot(Path(layer["directory"]))
    found = {path.decode(): (node.mode, node.uid, node.gid) for path, node in tree.items()}
    assert found == {
        ".": (0o755, 0, 0),
        "a": (0o755, 0, 0),
        "a/b": (0o755, 0, 0),
        "a/c": (0o777, 0, 0),
        "a/b/f": (0o666, 0, 0),
    }
    recorded = json.loads(Path(layer["directory"], "..", "layer.json").read_bytes())
    assert recorded["implied"] == ["", "a", "a/b"]


def test_rule_17_implied_parents_inherit_nothing(jail: Jail) -> None:
    """A setgid directory gives its group and its bit to what is made in it: an entry knows nothing of that."""
    done = jail.unpack(Dir("d", mode=0o2775, uid=10, gid=50), File("d/implied/f"), Dir("d/stated"), Symlink("d/s", "x"))
    for path in (b"d/implied", b"d/stated"):
        node = done.tree[path]
        assert (node.mode, node.uid, node.gid) == (0o755, 0, 0), path
    assert done.tree[b"d/s"].gid == 0


def test_rule_17_nor_do_files_of_a_directory_whose_group_is_told_late(jail: Jail) -> None:
    """The directory is in use, as an implied one, when its entry comes."""
    done = jail.unpack(File("d/before"), Dir("d", mode=0o2775, gid=50), File("d/after"), File("d/set", mode=0o6755))
    assert [done.tree[path].gid for path in (b"d", b"d/before", b"d/after", b"d/set")] == [50, 0, 0, 0]
    assert done.tree[b"d/set"].mode == 0o6755


def test_rule_17_implied_parents_take_the_attributes_below(mounted: Mounted) -> None:
    """A layer that only adds a file says nothing of its directories: they look as if extracted in order."""
    below: list[Entry] = [
        Dir("tmp", mode=0o1777, uid=1, gid=2, mtime_ns=10**18, xattrs={"user.a": b"1"}),
        Dir("home", mode=0o711),
        Dir("home/user", mode=0o700, uid=1000, gid=1000),
    ]
    with mounted(below, [File("tmp/f"), File("home/user/f")], [File("home/user/g")]) as target:
        tree = snapshot(target)
    assert (tree[b"tmp"].mode, tree[b"tmp"].uid, tree[b"tmp"].gid) == (0o1777, 1, 2)
    assert tree[b"tmp"].xattrs == (("user.a", b"1"),)
    assert tree[b"home"].mode == 0o711
    assert (tree[b"home/user"].mode, tree[b"home/user"].uid) == (0o700, 1000)


def test_rule_17_the_root_is_one_of_them(mounted: Mounted) -> None:
    """A layer without an entry for the root leaves it as it is."""
    with mounted([Dir(".", mode=0o711, uid=3, gid=4, mtime_ns=10**18), File("f")], [File("g")]) as target:
        root = snapshot(target)[b"."]
    assert (root.mode, root.uid, root.gid, root.mtime_ns) == (0o711, 3, 4, 10**18)


def test_rule_19_directory_over_directory(mounted: Mounted) -> None:
    """Attributes replaced, children kept: within a layer and between two."""
    twice = [Dir("d", mode=0o777, xattrs={"user.a": b"1"}), File("d/1"), Dir("d", mode=0o700, uid=5, mtime_ns=10**18)]
    with mounted(twice, [Dir("d", mode=0o711, gid=6, mtime_ns=2 * 10**18), File("d/2")]) as target:
        tree = snapshot(target)
    assert rows(tree) == {"d": "directory", "d/1": "file", "d/2": "file"}
    assert (tree[b"d"].mode, tree[b"d"].uid, tree[b"d"].gid, tree[b"d"].mtime_ns) == (0o711, 0, 6, 2 * 10**18)


SOME: dict[str, list[Entry]] = {
    "file": [File("n", b"file")],
    "directory": [Dir("n"), File("n/child", b"x"), Dir("n/deep"), File("n/deep/er")],
    "symlink": [Symlink("n", "other")],
    "fifo": [Fifo("n")],
    "character device": [Device("n", 1, 3)],
    "block device": [Device("n", 7, 0, "block")],
}


@pytest.mark.parametrize("new", SOME)
@pytest.mark.parametrize("old", SOME)
def test_rule_19_any_other_collision(old: str, new: str, jail: Jail) -> None:
    """The old goes with all that is in it, the new comes: in one layer every type can follow every other."""
    done = jail.unpack(File("other"), *SOME[old], *SOME[new])
    assert done.tree[b"n"].type == new
    children = {b"n/child", b"n/deep", b"n/deep/er"} if new == "directory" else set()
    assert done.names() == {b"other", b"n"} | children


def test_rule_19_between_two_layers(mounted: Mounted) -> None:
    """A file over a directory, and a directory over a file."""
    with mounted([File("a/old"), File("b", b"old")], [File("a", b"new"), File("b/new")]) as target:
        assert rows(snapshot(target)) == {"a": "file", "b": "directory", "b/new": "file"}


def test_rule_19_a_file_where_a_directory_is_needed(jail: Jail) -> None:
    """A later entry below it makes it a directory: the last wins."""
    assert rows(jail.unpack(File("a"), File("a/b/c"), File("a/b"), File("a/b/d")).tree) == {
        "a": "directory",
        "a/b": "directory",
        "a/b/d": "file",
    }


def test_rule_19_the_last_of_several_wins(jail: Jail) -> None:
    """Content and all attributes; a hardlink made in between keeps what it was linked to."""
    done = jail.unpack(
        File("f", b"first", 0o777, uid=1, xattrs={"user.a": b"1"}),
        Hardlink("h", "f"),
        File("f", b"2nd", 0o600, mtime_ns=5),
    )
    node = done.tree[b"f"]
    assert (done.content("f"), node.mode, node.uid, node.xattrs, node.mtime_ns, node.links) == (
        b"2nd",
        0o600,
        0,
        (),
        5,
        frozenset(),
    )
    assert done.content("h") == b"first"


def test_rule_20_a_hardlink_before_its_target(jail: Jail) -> None:
    """Deferred to the end of the archive."""
    done = jail.unpack(Hardlink("a/h", "b/f"), Dir("a", mode=0o700, mtime_ns=7), File("b/f", b"data"))
    assert done.tree[b"a/h"].links == {b"b/f"}
    assert done.tree[b"a"].mtime_ns == 7


def test_rule_20_links_to_links_before_their_target(jail: Jail) -> None:
    """A chain in any order, all of whose targets are in the layer."""
    done = jail.unpack(Hardlink("a", "b"), Hardlink("b", "c"), Hardlink("c", "d"), File("d", b"data"))
    assert done.tree[b"a"].links == {b"b", b"c", b"d"}


def test_rule_20_a_hardlink_without_target_is_an_error(jail: Jail) -> None:
    """It is named, with its target and offset."""
    message = jail.fail(File("f"), Hardlink("h", "not/there"))
    assert "'h'" in message
    assert "'not/there'" in message
    assert "at byte 512 " in message


@pytest.mark.parametrize(
    "after", [[File("d", b"new")], [Symlink("d", "other")]], ids=["parent replaced by a file", "by a symlink"]
)
def test_rule_20_a_deferred_link_whose_directory_is_gone(after: list[Entry], jail: Jail) -> None:
    """A later entry replaced the directory and all in it; the link that waited there went with it."""
    done = jail.unpack(Dir("other"), Dir("d"), Hardlink("d/h", "later"), *after, File("later"))
    assert done.names() == {b"other", b"d", b"later"}
    assert done.tree[b"d"].type != "directory"


def test_rule_20_a_deferred_link_whose_name_is_taken_later(jail: Jail) -> None:
    """The last wins: what came after the link stays, be it an entry or an implied directory."""
    done = jail.unpack(
        Hardlink("h", "later"), Hardlink("i", "later"), File("h", b"own"), File("i/f"), File("later", b"x")
    )
    assert done.content("h") == b"own"
    assert done.tree[b"i"].type == "directory"


def test_rule_21_the_same_layer_twice(mounted: Mounted) -> None:
    """Overlayfs takes no directory twice, and what counts is the upper one."""
    one, two = Layer([File("f", b"one")]), Layer([File("f", b"two"), File("g")])
    with mounted(one, two, one) as target:
        assert (target / "f").read_bytes() == b"one"
        assert rows(snapshot(target)) == {"f": "file", "g": "file"}


def test_rule_21_a_layer_twice_with_a_whiteout_between(mounted: Mounted) -> None:
    """The second time brings back what was hidden."""
    one = Layer([File("f", b"one"), File("d/f")])
    with mounted(one, [Whiteout("f"), Whiteout("d")], one) as target:
        assert rows(snapshot(target)) == {"f": "file", "d": "directory", "d/f": "file"}


def test_rule_21_one_diff_id_in_two_compressions(tmp_path: Path, cli: Cli) -> None:
    """One directory serves both; the blobs of both are there for whoever wants to push or unpack the image."""
    entries = [File("f", b"data" * 1000)]
    image = Image([Layer(entries, "gzip"), Layer([Whiteout("f")]), Layer(entries, "zstd")])
    write_layout(tmp_path / "layout", {"t": image})
    ok(cli("load", "--quiet", "-t", "test", tmp_path / "layout"))
    first, _, last = json.loads(ok(cli("inspect", "test")))["layers"]
    assert first["directory"] == last["directory"]
    assert first["digest"] != last["digest"]
    ok(cli("unpack", "--quiet", "test", tmp_path / "flat"))
    assert (tmp_path / "flat" / "f").read_bytes() == b"data" * 1000


@pytest.mark.parametrize("layers", [[], [Layer([])], [Layer([]), Layer([File("f")]), Layer([Dir(".")])]])
def test_rule_21_no_layers_and_empty_ones(layers: list[Layer], mounted: Mounted) -> None:
    """An image may have none, or ones without entries: an empty directory, or what the others have."""
    with mounted(*layers) as target:
        assert rows(snapshot(target)) == ({"f": "file"} if len(layers) == 3 else {})


@pytest.mark.parametrize(
    ("blob", "archive"),
    [
        (bytes(1024), bytes(1024)),
        (b"", b""),
        (gzip.compress(b""), b""),
        (gzip.compress(bytes(1024)), bytes(1024)),
        (zstandard.compress(b""), b""),
        (bytes(10240), bytes(10240)),
    ],
    ids=["zeros", "nothing", "gzip of nothing", "gzip of zeros", "zstd of nothing", "record of zeros"],
)
def test_rule_21_empty_layers(blob: bytes, archive: bytes, jail: Jail) -> None:
    """1024 zero bytes as `docker build` writes them, or no byte at all."""
    done = jail.unpack_blob(blob, archive)
    assert rows(done.tree) == {}
    assert done.result.entries == 0


def test_rule_21_many_layers(tmp_path: Path, cli: Cli) -> None:
    """More than a page of options holds as paths: up to the 500 that overlayfs stacks, read-only and writable.

    More that matter are a clear error; nothing is mounted then, and no container left.
    """
    layers = [Layer([File("top", b"%d" % number), File(f"f{number}")], None) for number in range(501)]
    (tmp_path / "mnt").mkdir()
    for count in (128, 500, 501):
        write_layout(tmp_path / f"layout{count}", {"t": Image(layers[:count])})
        load = cli("load", "--quiet", "--durability=none", "-t", f"test{count}", tmp_path / f"layout{count}")
        ok(load)
    for count in (128, 500):
        for options in ([], ["--rw"]):
            ok(cli("mount", *options, f"test{count}", tmp_path / "mnt"))
            assert (tmp_path / "mnt" / "top").read_bytes() == b"%d" % (count - 1)
            assert len(os.listdir(tmp_path / "mnt")) == count + 1
            ok(cli("umount", tmp_path / "mnt"))
    done = cli("mount", "test501", tmp_path / "mnt")
    assert done.returncode == 1
    assert "501 layers" in done.stderr
    assert json.loads(ok(cli("ps", "--format=json"))) == []


# Attributes.


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1755, 0o6711, 0o7777, 0o0, 0o4000, 0o2000])
def test_rule_22_modes_survive_owners(mode: int, jail: Jail) -> None:
    """chown takes setuid and setgid away, so the mode comes after it; for files, directories and what else has one."""
    entries: list[Entry] = [
        File("f", b"x", mode, uid=1000, gid=1000),
        Dir("d", mode, uid=1000, gid=1000),
        Fifo("p", mode, uid=1000, gid=1000),
        Device("c", 1, 3, "char", mode, uid=1000, gid=1000),
    ]
    tree = jail.unpack(*entries).tree
    assert {tree[path].mode for path in (b"f", b"d", b"p", b"c")} == {mode}
    assert {tree[path].uid for path in (b"f", b"d", b"p", b"c")} == {1000}


def test_rule_22_file_capabilities_survive(jail: Jail) -> None:
    """chown removes `security.capability`, so attributes come after it."""
    done = jail.unpack(File("ping", b"x", 0o4755, uid=1000, gid=1000, xattrs={"security.capability": CAPABILITY}))
    node = done.tree[b"ping"]
    assert node.xattrs == (("security.capability", CAPABILITY),)
    assert (node.mode, node.uid) == (0o4755, 1000)


def test_rule_22_directories_that_nobody_may_write(jail: Jail) -> None:
    """Mode 0 and read-only directories receive their children; their times come last of all."""
    done = jail.unpack(
        Dir("zero", mode=0, uid=1000, mtime_ns=5),
        Dir("read", mode=0o555, uid=1000, mtime_ns=6),
        File("zero/f", b"1"),
        File("read/f", b"2"),
        Dir("zero/sub", mode=0, mtime_ns=7),
        File("zero/sub/f", b"3"),
        Hardlink("read/h", "zero/sub/f"),
        Whiteout("read/gone"),
        File("read/twice"),
        File("read/twice"),
    )
    assert done.content("zero/sub/f") == b"3"
    times = {path: (done.tree[path].mode, done.tree[path].mtime_ns) for path in (b"zero", b"read", b"zero/sub")}
    assert times == {b"zero": (0, 5), b"read": (0o555, 6), b"zero/sub": (0, 7)}


def test_rule_22_times_of_directories_come_last(jail: Jail) -> None:
    """Also through symlinks, by late hardlinks, by dropped whiteouts, and when the directory's entry comes last."""
    done = jail.unpack(
        Dir("a", mtime_ns=5),
        Symlink("l", "a", mtime_ns=6),
        Hardlink("l/late", "f"),
        Opaque("a"),
        Whiteout("a/x"),
        File("l/sub/f"),
        File("b/f"),
        Dir("b", mtime_ns=7),
        File("f", mtime_ns=8),
        Dir(".", mtime_ns=9),
    )
    times = {path: done.tree[path].mtime_ns for path in (b"a", b"l", b"b", b"f", b".")}
    assert times == {b"a": 5, b"l": 6, b"b": 7, b"f": 8, b".": 9}
    assert done.tree[b"a/sub"].mtime_ns == 0  # implied: 1970, the same on every machine


@pytest.mark.parametrize("mtime", [0, 1, 123_456_789, 1_700_000_000_123_456_789, (1 << 33) * 10**9 + 1])
def test_rule_23_times_are_exact(mtime: int, jail: Jail) -> None:
    """To the nanosecond, beyond 2^33 seconds too, for all types."""
    entries: list[Entry] = [
        File("f", mtime_ns=mtime),
        Dir("d", mtime_ns=mtime),
        Symlink("s", "x", mtime_ns=mtime),
        Fifo("p", mtime_ns=mtime),
        Device("c", 1, 3, mtime_ns=mtime),
    ]
    tree = jail.unpack(*entries).tree
    assert {tree[path].mtime_ns for path in (b"f", b"d", b"s", b"p", b"c")} == {mtime}


def test_rule_23_times_before_1970(jail: Jail) -> None:
    """Negative, with nanoseconds."""
    tree = jail.unpack(
        File("f", mtime_ns=-1), Dir("d", mtime_ns=-1_500_000_000), Symlink("s", "x", mtime_ns=-(10**18))
    ).tree
    assert [tree[path].mtime_ns for path in (b"f", b"d", b"s")] == [-1, -1_500_000_000, -(10**18)]


@pytest.mark.parametrize(
    "extreme",
    [
        header(b"f", mtime=base256(1 << 90, 12), magic=GNU),
        header(b"f", mtime=base256(-(1 << 90), 12), magic=GNU),
        header(b"f", mtime=base256(1 << 62, 12), magic=GNU),
        header(b"f", mtime=base256(-(1 << 35), 12), magic=GNU),
        pax({b"mtime": b"9" * 60}) + header(b"f"),
        pax({b"mtime": b"-" + b"9" * 19}) + header(b"f"),
        pax({b"mtime": b"-" + b"9" * 60 + b"." + b"9" * 60}) + header(b"f"),
        pax({b"mtime": b"9" * 60}) + header(b"f", kind=b"5"),
        pax({b"mtime": b"9" * 60}) + header(b"f", kind=b"2", linkname=b"x"),
        pax({b"mtime": b"9" * 60}) + header(b".", kind=b"5"),
    ],
)
def test_rule_23_extreme_times_are_clamped(extreme: bytes, jail: Jail) -> None:
    """Whatever the file system makes of them: no crash, and the entry is there."""
    assert jail.unpack(extreme).result.entries == 1


def test_rule_24_xattrs_in_both_forms(jail: Jail) -> None:
    """SCHILY and LIBARCHIVE; values with NULs, newlines and equals signs; empty ones; on files and directories."""
    value = bytes(range(256)) + b"\n=\0"
    done = jail.unpack(
        File("f", xattrs={"user.binary": value}),
        Dir("d", xattrs={"user.empty": b"", "trusted.mine": b"t"}),
        pax({b"LIBARCHIVE.xattr.user.a%20b": b"AAEC"}) + header(b"l"),
    )
    assert done.tree[b"f"].xattrs == (("user.binary", value),)
    assert done.tree[b"d"].xattrs == (("trusted.mine", b"t"), ("user.empty", b""))
    assert done.tree[b"l"].xattrs == (("user.a b", b"\0\1\2"),)


def test_rule_24_xattrs_of_symlinks_go_to_the_symlink(way: Way) -> None:
    """trusted.* can be set there, and is not set on what the symlink names."""
    done = way(
        File("f"),
        Symlink("s", "f", xattrs={"trusted.a": b"1"}),
        Symlink("o", "../victim/file", xattrs={"trusted.a": b"1"}),
    )
    assert done.tree[b"s"].xattrs == (("trusted.a", b"1"),)
    assert done.tree[b"f"].xattrs == ()


def test_rule_24_what_cannot_be_set_is_one_warning(jail: Jail) -> None:
    """`user.*` on symlinks, FIFOs and devices, and attributes of no known kind: one warning, and the entry is there."""
    impossible = {"user.a": b"1", "user.b": b"2"}
    for entry in (
        Symlink("n", "x", xattrs=impossible),
        Fifo("n", xattrs=impossible),
        Device("n", 1, 3, xattrs=impossible),
    ):
        done = jail.unpack(entry)
        assert b"n" in done.tree
        assert len(done.result.warnings) == 1, done.result.warnings
        assert "'n'" in done.result.warnings[0]
        (jail.root / "n").unlink()


def test_rule_24_many_warnings_do_not_flood(jail: Jail) -> None:
    """An image with a thousand such links does not fill the screen."""
    done = jail.unpack(*(Symlink(f"s{number}", "x", xattrs={"user.a": b"1"}) for number in range(100)))
    assert len(done.tree) == 101
    assert 1 <= len(done.result.warnings) <= 20


@pytest.mark.parametrize("owner", [0, 65_535, 65_536, 1 << 21, (1 << 31) - 1, 1 << 31, (1 << 32) - 2])
def test_rule_25_owners_of_any_size(owner: int, jail: Jail) -> None:
    """Beyond 65535, and beyond what octal digits hold: by base-256 and by PAX."""
    base = header(b"b", uid=base256(owner, 8), gid=base256(owner, 8), magic=GNU)
    tree = jail.unpack(
        File("f", uid=owner, gid=owner), Dir("d", uid=owner, gid=owner), Symlink("s", "x", uid=owner), base
    ).tree
    assert [(tree[path].uid, tree[path].gid) for path in (b"f", b"d", b"b")] == [(owner, owner)] * 3
    assert tree[b"s"].uid == owner


@pytest.mark.parametrize("owner", [-1, -2, (1 << 32) - 1, 1 << 32, 1 << 50])
def test_rule_25_owners_that_are_none(owner: int, jail: Jail) -> None:
    """To chown(2), -1 means "leave it": such a file would silently be root's."""
    for fields in ({"uid": base256(owner, 8)}, {"gid": base256(owner, 8)}):
        message = jail.fail(header(b"odd", magic=GNU, **fields))  # type: ignore[arg-type]
        assert "odd" in message
        assert "bug" not in message


def test_rule_25_names_of_owners_are_ignored(jail: Jail) -> None:
    """The numbers count: the names are those of the machine that made the archive."""
    block = bytearray(header(b"f", uid=12, gid=34))
    block[265:271], block[297:303] = b"nobody", b"nobody"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    named = pax({b"uname": b"nobody", b"gname": b"nobody"}) + header(b"g", uid=12, gid=34)
    tree = jail.unpack(bytes(block), named).tree
    assert [(tree[path].uid, tree[path].gid) for path in (b"f", b"g")] == [(12, 34), (12, 34)]


def test_rule_26_devices_and_fifos(jail: Jail) -> None:
    """Character and block devices with their numbers up to the kernel's limits; FIFOs."""
    tree = jail.unpack(
        Device("null", 1, 3, mode=0o666),
        Device("disk", 259, 70_000, "block", gid=6),
        Fifo("pipe", 0o620),
        header(b"last", kind=b"3", major=base256(4095, 8), minor=base256((1 << 20) - 1, 8)),
    ).tree
    assert (tree[b"null"].type, tree[b"null"].device, tree[b"null"].mode) == ("character device", (1, 3), 0o666)
    assert (tree[b"disk"].type, tree[b"disk"].device, tree[b"disk"].gid) == ("block device", (259, 70_000), 6)
    assert (tree[b"pipe"].type, tree[b"pipe"].mode) == ("fifo", 0o620)
    assert tree[b"last"].device == (4095, (1 << 20) - 1)


@pytest.mark.parametrize(("major", "minor"), [(4096, 0), (0, 1 << 20), (-1, 3), (1, -3), (1 << 40, 0), (0, 1 << 50)])
@pytest.mark.parametrize("kind", [b"3", b"4"])
def test_rule_26_device_numbers_are_checked(kind: bytes, major: int, minor: int, jail: Jail) -> None:
    """Out of range they would wrap around to another device, or to a whiteout."""
    message = jail.fail(header(b"odd", kind=kind, major=base256(major, 8), minor=base256(minor, 8), magic=GNU))
    assert "'odd'" in message
    assert "range" in message


@pytest.mark.parametrize(
    "target", [b"", b"\xff\xfe", b"a/../b//c/./", b"/absolute", b" ", b"new\nline", b"x" * 4095, "ü".encode()]
)
def test_rule_27_symlink_targets_byte_for_byte(target: bytes, jail: Jail) -> None:
    """Nothing is tidied up. Only an empty one the kernel cannot make: an error that names it."""
    if not target:
        assert "'s'" in jail.fail(Symlink("s", target))
        return
    assert jail.unpack(Symlink("s", target)).tree[b"s"].target == target


@pytest.mark.parametrize("name", [b"\xff\xfe", b"new\nline", b"tab\t", b" ", b"\\", b"x" * 255, b"\x01", b"-rf", b"*"])
def test_rule_27_names_are_bytes(name: bytes, jail: Jail) -> None:
    """Not UTF-8, control characters, as long as the kernel takes; as files, implied directories, link targets."""
    done = jail.unpack(
        File(name, b"1"), File(b"d/" + name + b"/f"), Hardlink(b"h", name), Whiteout("w/" + os.fsdecode(name))
    )
    assert done.tree[b"h"].links == {name}
    assert b"d/" + name + b"/f" in done.tree
    assert done.whiteouts() == {b"w/" + name}
    assert os.fsdecode(b"d/" + name) in done.result.implied


def test_rule_27_names_that_are_too_long(jail: Jail) -> None:
    """256 bytes in one part: the kernel's word, and the entry's name in a message of bearable length."""
    message = jail.fail(File("x" * 256))
    assert "too long" in message
    assert len(message) < 500


def test_rule_27_paths_beyond_the_kernels_limit(jail: Jail) -> None:
    """40 parts of 250 bytes: no call ever sees the whole path."""
    path = b"/".join([b"p" * 250] * 40)
    done = jail.unpack(File(path + b"/f", b"deep", mtime_ns=5), Dir(path, mtime_ns=7), Hardlink(b"h", path + b"/f"))
    assert done.tree[path + b"/f"].links == {b"h"}
    assert done.tree[path].mtime_ns == 7


def test_rule_27_deep_trees_can_be_replaced_and_removed(jail: Jail, tmp_path: Path, cli: Cli) -> None:
    """As deep as is allowed, replaced by a file within the layer; and an image with such a layer can be removed."""
    deep = "d/" * 500
    assert rows(jail.unpack(File(f"{deep}f"), Whiteout(f"{deep}g"), Opaque("d"), File("d")).tree) == {"d": "file"}
    write_layout(tmp_path / "layout", {"t": Image([Layer([File(f"{deep}f")])])})
    ok(cli("load", "--quiet", "-t", "test", tmp_path / "layout"))
    ok(cli("rmi", "test"))
    assert list((tmp_path / "root" / "layers" / "sha256").iterdir()) == []


def test_rule_27_endless_depth_is_an_error(jail: Jail) -> None:
    """Deeper than any program could remove again: refused, also when symlinks lead there."""
    assert "deep" in jail.fail(File("d/" * 3000 + "f"))
    down = [Symlink("l0", "d/" * 400), Symlink(f"{'d/' * 400}l", "d/" * 400)]
    assert "'l0/l/f'" in jail.fail(Dir("d/" * 400), *down, File("l0/l/f"))


@pytest.mark.parametrize("compression", ["gzip", "zstd", None])
def test_the_whole_way(compression: Compression, mounted: Mounted) -> None:
    """From a layout to a mounted stack: what `docker` would show of two layers with a bit of everything."""
    below: list[Entry] = [
        Dir(".", mode=0o755, mtime_ns=10**18),
        Dir("etc", mtime_ns=10**18),
        File("etc/passwd", b"root", 0o644, mtime_ns=10**18 + 1),
        File("bin/su", b"su", 0o4755, mtime_ns=3),
        Hardlink("bin/su2", "bin/su"),
        Symlink("lib", "usr/lib"),
        File("var/old/f"),
        File("gone"),
    ]
    above: list[Entry] = [
        File("etc/passwd", b"new", 0o600, uid=5),
        Whiteout("gone"),
        Opaque("var"),
        File("var/new"),
        Fifo("pipe"),
    ]
    with mounted(Layer(below, compression), Layer(above, compression)) as target:
        tree = snapshot(target)
        assert (target / "etc/passwd").read_bytes() == b"new"
    assert rows(tree) == {
        "bin": "directory",
        "bin/su": "file",
        "bin/su2": "file",
        "etc": "directory",
        "etc/passwd": "file",
        "lib": "symlink",
        "pipe": "fifo",
        "var": "directory",
        "var/new": "file",
    }
    assert (tree[b"bin/su"].mode, tree[b"bin/su"].links) == (0o4755, frozenset({b"bin/su2"}))
    assert (tree[b"etc/passwd"].mode, tree[b"etc/passwd"].uid) == (0o600, 5)


def test_counts_are_recorded(jail: Jail) -> None:
    """Entries, whiteouts and bytes, for listings and checks."""
    done = jail.unpack(File("a", b"123"), Hardlink("b", "a"), Whiteout("c"), Opaque("d"), File("a", b"4567"))
    assert (done.result.entries, done.result.whiteouts) == (5, 1)


def test_data_behind_the_end_counts_for_the_digest(jail: Jail) -> None:
    """Line 30: bytes after the end are hashed into the diffID, and make no files."""
    archive = tar(File("f")) + tar(File("hidden")) + b"garbage"
    done = jail.unpack_blob(gzip.compress(archive), archive)
    assert rows(done.tree) == {"f": "file"}

"""`pullpipe mount` and `umount`: the tree that an image's layers make, and whose mounts are ended."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.cli.rig import (
    answer,
    fails,
    file_layer,
    layout_of,
    mounted,
    mounted_tree,
    ok,
    umoci_tree,
    unpacked_tree,
    without_times,
)
from tests.conftest import PROJECT, Cli, require
from tests.support.images import (
    Compression,
    Device,
    Dir,
    Fifo,
    File,
    Hardlink,
    Image,
    Layer,
    Opaque,
    Symlink,
    Whiteout,
)
from tests.support.tree import Snapshot, difference, snapshot

pytestmark = pytest.mark.needs_root

Show = Callable[[Cli, str, Path], Snapshot]

NOON = 1_700_000_000 * 10**9
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service+p

BASE = Layer(
    [
        Dir("./", mode=0o755, mtime_ns=NOON),
        Dir("bin", mtime_ns=NOON + 1),
        File("bin/su", b"su", 0o4755, mtime_ns=NOON + 123_456_789),
        File("bin/wall", b"wall", 0o2755, gid=5),
        File("bin/ping", b"ping", 0o755, xattrs={"security.capability": CAPABILITY}),
        File("owned", b"owned", 0o640, uid=1000, gid=70_000),
        File("attributed", b"", xattrs={"user.text": b"text", "user.binary": b"\x00\xff\n="}),
        Dir("tmp", mode=0o1777, mtime_ns=NOON),
        Dir("shared", mode=0o2775, uid=7, gid=8),
        Dir("secret", mode=0o000),
        File("secret/inside", b"inside", 0o000),
        Symlink("absolute", "/bin/su"),
        Symlink("relative", "bin/../owned", uid=3, gid=4, mtime_ns=NOON + 5),
        Symlink("dangling", "no/where"),
        File("linked", b"linked", mtime_ns=NOON),
        Hardlink("bin/link", "linked"),
        Device("tty", 5, 0, mode=0o666),
        Device("disk", 8, 1, "block", mode=0o660, gid=6),
        Fifo("pipe", mode=0o622),
        File("replaced", b"old, and longer than the new one", mtime_ns=NOON),
        Dir("was-dir"),
        File("was-dir/child", b"child"),
        File("was-file", b"file"),
        Symlink("was-link", "bin"),
        Dir("opaque", mtime_ns=NOON),
        File("opaque/hidden", b"hidden"),
        Dir("opaque/below"),
        File("opaque/below/hidden", b"hidden"),
        Dir("removed"),
        File("removed/inside", b""),
        Dir("kept", mode=0o700, mtime_ns=NOON),
        File("kept/removed", b""),
        File("kept/stays", b"stays", mtime_ns=NOON + 7),
        File("back", b"the first"),
        File("caf\udce9", b"a name that is not UTF-8"),
        File("new\nline", b"a name of two lines"),
    ]
)
CHANGES = Layer(
    [
        File("replaced", b"new", 0o600, uid=1, mtime_ns=NOON + 999_999_999),
        Whiteout("was-dir"),
        File("was-dir", b"a file now"),
        Dir("was-file"),
        File("was-file/child", b"child"),
        Dir("was-link"),
        File("was-link/child", b"child"),
        Dir("opaque", mode=0o750, mtime_ns=NOON + 11),
        Opaque("opaque"),
        File("opaque/own", b"own"),
        Whiteout("removed"),
        Dir("kept", mode=0o711, uid=9, mtime_ns=NOON + 12),
        Whiteout("kept/removed"),
        Whiteout("back"),
        Whiteout("never-was"),
        File("twin", b"twin"),
        Hardlink("twin-link", "twin"),
        Dir("./", mode=0o751, mtime_ns=NOON + 13),
    ]
)
TOP = Layer(
    [
        File("back", b"the second"),
        Dir("removed", mtime_ns=NOON + 14),
        File("removed/new", b"new"),
        Dir("kept", mode=0o711, uid=9, mtime_ns=NOON + 15),
        File("kept/new", b"new"),
        Whiteout("twin"),
        Dir("opaque", mode=0o750, mtime_ns=NOON + 16),
        Whiteout("opaque/own"),
        Dir("./", mode=0o751, uid=2, gid=3, mtime_ns=NOON + 17),
    ]
)


def loaded(cli: Cli, layout: Path) -> str:
    """The layout's image in the store; its reference."""
    reference = f"example.org/{layout.name}:1"
    assert ok(cli, "load", "--quiet", "--tag", reference, layout) == reference
    return reference


class TestTree:
    def test_is_what_umoci_unpacks(self, cli: Cli, tmp_path: Path) -> None:
        """Three layers with all that a layer can say, mounted and unpacked, to the last attribute."""
        require("umoci")
        layout = layout_of(tmp_path / "layout", BASE, CHANGES, TOP)
        reference = loaded(cli, layout)
        expected = umoci_tree(layout, "image", tmp_path / "umoci")
        assert difference(mounted_tree(cli, reference, tmp_path / "mounted"), expected) == []
        assert difference(unpacked_tree(cli, reference, tmp_path / "unpacked"), expected) == []

    def test_is_what_the_layers_say(self, cli: Cli, tmp_path: Path) -> None:
        """The same tree, checked against the entries: two programs might make one mistake."""
        reference = loaded(cli, layout_of(tmp_path / "layout", BASE, CHANGES, TOP))
        tree = mounted_tree(cli, reference, tmp_path / "mounted")
        root = tree[b"."]
        assert (root.mode, root.uid, root.gid, root.mtime_ns) == (0o751, 2, 3, NOON + 17)
        assert (tree[b"bin/su"].mode, tree[b"bin/su"].mtime_ns) == (0o4755, NOON + 123_456_789)
        assert dict(tree[b"bin/ping"].xattrs)["security.capability"] == CAPABILITY
        assert dict(tree[b"attributed"].xattrs) == {"user.text": b"text", "user.binary": b"\x00\xff\n="}
        assert (tree[b"owned"].uid, tree[b"owned"].gid, tree[b"owned"].mode) == (1000, 70_000, 0o640)
        assert tree[b"linked"].links == {b"bin/link"}
        assert (tree[b"tty"].device, tree[b"disk"].device, tree[b"pipe"].type) == ((5, 0), (8, 1), "fifo")
        assert (tree[b"replaced"].size, tree[b"replaced"].mtime_ns) == (3, NOON + 999_999_999)
        assert [tree[name].type for name in (b"was-dir", b"was-file", b"was-link")] == [
            "file",
            "directory",
            "directory",
        ]
        assert b"was-file/child" in tree
        assert {path for path in tree if path.startswith(b"opaque")} == {b"opaque"}
        assert {path for path in tree if path.startswith(b"removed")} == {b"removed", b"removed/new"}
        assert {path for path in tree if path.startswith(b"kept")} == {b"kept", b"kept/stays", b"kept/new"}
        assert (tree[b"kept"].mode, tree[b"kept"].uid, tree[b"kept"].mtime_ns) == (0o711, 9, NOON + 15)
        assert tree[b"back"].size == len(b"the second")
        assert tree[b"twin-link"].links == frozenset()
        assert b"twin" not in tree
        assert b"never-was" not in tree
        assert {b"caf\xe9", b"new\nline"} <= tree.keys()
        assert not [path for path in tree if b".wh." in path]

    @pytest.mark.parametrize("compression", ["zstd", None])
    def test_any_compression(self, cli: Cli, tmp_path: Path, compression: Compression) -> None:
        """The same tree from the same layers."""
        layers = [Layer(layer.entries, compression) for layer in (BASE, CHANGES, TOP)]
        reference = loaded(cli, layout_of(tmp_path / "layout", *layers))
        tree = mounted_tree(cli, reference, tmp_path / "mounted")
        assert difference(unpacked_tree(cli, reference, tmp_path / "unpacked"), tree) == []
        assert tree[b"bin/su"].mode == 0o4755

    def test_read_only(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """Nothing can be written, and looking changes nothing."""
        with mounted(cli, image, tmp_path / "m") as target:
            before = snapshot(target)
            with pytest.raises(OSError, match="Read-only"):
                (target / "new").touch()
            with pytest.raises(OSError, match="Read-only"):
                (target / "lower").unlink()
            assert (target / "lower").read_text() == "lower"
            assert snapshot(target) == before


class TestNeedsParents:
    """What a layer leaves open and the layers below it settle: as if they had been applied in order."""

    @pytest.fixture(params=[mounted_tree, unpacked_tree], ids=["mount", "unpack"])
    def show(self, request: pytest.FixtureRequest) -> Show:
        show: Show = request.param
        return show

    def same_as_umoci(self, cli: Cli, show: Show, tmp_path: Path, layers: Sequence[Layer], *times: bytes) -> Snapshot:
        """The tree; it is umoci's but for the times of these directories.

        Theirs is the moment at which umoci put something into them, or the lower layer's: no spec says which.
        """
        require("umoci")
        layout = layout_of(tmp_path / "layout", Layer([Dir("./", mtime_ns=NOON)]), *layers)
        expected = umoci_tree(layout, "image", tmp_path / "umoci")
        tree = show(cli, loaded(cli, layout), tmp_path / "shown")
        assert difference(without_times(tree, b".", *times), without_times(expected, b".", *times)) == []
        return tree

    def test_implied_directory(self, cli: Cli, show: Show, tmp_path: Path) -> None:
        """A parent that the upper layer does not describe keeps its mode, owner and attributes."""
        lower = Layer([Dir("etc", mode=0o2700, uid=5, gid=6, mtime_ns=NOON, xattrs={"user.a": b"b"})])
        upper = Layer([File("etc/file", b"x", mtime_ns=NOON)])
        tree = self.same_as_umoci(cli, show, tmp_path, [lower, upper], b"etc")
        assert (tree[b"etc"].mode, tree[b"etc"].uid) == (0o2700, 5)

    def test_parent_that_is_a_link_below(self, cli: Cli, show: Show, tmp_path: Path) -> None:
        """A layer made for a system where lib is lib, on one where it is usr/lib: followed, as Docker does."""
        lower = Layer([Dir("usr", mtime_ns=NOON), Dir("usr/lib", mtime_ns=NOON), Symlink("lib", "usr/lib")])
        upper = Layer([File("lib/new", b"x", mtime_ns=NOON)])
        tree = self.same_as_umoci(cli, show, tmp_path, [lower, upper], b"usr/lib")
        assert (tree[b"lib"].type, tree[b"usr/lib/new"].type) == ("symlink", "file")

    def test_hardlink_to_a_file_below(self, cli: Cli, show: Show, tmp_path: Path) -> None:
        """The upper layer has only the link: the file is brought up."""
        lower = Layer([File("file", b"content", 0o640, uid=3, mtime_ns=NOON)])
        upper = Layer([Hardlink("link", "file")])
        tree = self.same_as_umoci(cli, show, tmp_path, [lower, upper])
        assert tree[b"link"].links == {b"file"}


class TestLayers:
    @pytest.mark.parametrize("count", [1, 2, 128, 500])
    def test_so_many(self, cli: Cli, tmp_path: Path, count: int) -> None:
        """Each layer's file is there; overlayfs stacks 500."""
        layers = [file_layer(f"f{number}") for number in range(count)]
        reference = loaded(cli, layout_of(tmp_path / "layout", *layers))
        with mounted(cli, reference, tmp_path / "mounted") as target:
            assert sorted(os.listdir(target)) == sorted(f"f{number}" for number in range(count))
            assert (target / f"f{count - 1}").read_text() == f"f{count - 1}"
        if count in (2, 500):
            with mounted(cli, reference, tmp_path / "mounted", "--rw") as target:
                (target / "new").touch()
                assert len(os.listdir(target)) == count + 1

    def test_too_many(self, cli: Cli, tmp_path: Path) -> None:
        """An error that tells the limit, and no container is left behind."""
        layers = [file_layer(f"f{number}") for number in range(501)]
        reference = loaded(cli, layout_of(tmp_path / "layout", *layers))
        (tmp_path / "target").mkdir()
        for options in ([], ["--rw"]):
            try:
                assert "500" in fails(cli, "mount", *options, reference, tmp_path / "target")
                assert answer(cli, "ps", "--format", "json") == []
            finally:
                subprocess.run(["umount", "-q", tmp_path / "target"], check=False)

    def test_one_layer_twice(self, cli: Cli, tmp_path: Path) -> None:
        """It counts where it is the uppermost, also with another one between that hides it."""
        first, hides = file_layer("first"), Layer([Whiteout("first"), File("second")])
        reference = loaded(cli, layout_of(tmp_path / "twice", first, hides, first))
        assert mounted_tree(cli, reference, tmp_path / "m").keys() == {b".", b"first", b"second"}
        reference = loaded(cli, layout_of(tmp_path / "hidden", first, first, hides))
        assert mounted_tree(cli, reference, tmp_path / "m").keys() == {b".", b"second"}

    def test_one_layer_twice_with_a_whiteout(self, cli: Cli, tmp_path: Path) -> None:
        """A layer that hides something hides it again when it comes again."""
        file, hides = file_layer("file"), Layer([Whiteout("file"), File("other")])
        reference = loaded(cli, layout_of(tmp_path / "layout", hides, file, hides))
        assert mounted_tree(cli, reference, tmp_path / "m").keys() == {b".", b"other"}

    @pytest.mark.parametrize("where", ["below", "between", "above", "alone"])
    def test_empty_layer(self, cli: Cli, tmp_path: Path, where: str) -> None:
        """Changes nothing, wherever it is."""
        empty, full = Layer([]), file_layer("file")
        layers = {"below": [empty, full], "between": [full, empty, full], "above": [full, empty], "alone": [empty]}
        reference = loaded(cli, layout_of(tmp_path / "layout", *layers[where]))
        names = set() if where == "alone" else {b"file"}
        assert mounted_tree(cli, reference, tmp_path / "m").keys() == {b".", *names}
        assert unpacked_tree(cli, reference, tmp_path / "u").keys() == {b".", *names}

    def test_no_layers(self, cli: Cli, tmp_path: Path) -> None:
        """An empty root, which can be written to."""
        reference = loaded(cli, layout_of(tmp_path / "layout", image=Image([])))
        assert mounted_tree(cli, reference, tmp_path / "m").keys() == {b"."}
        with mounted(cli, reference, tmp_path / "m", "--rw") as target:
            (target / "new").touch()

    def test_opaque_root(self, cli: Cli, tmp_path: Path) -> None:
        """Hides all that is below the layer, and nothing of it or above."""
        layers = [file_layer("lowest"), file_layer("low"), Layer([Opaque(""), File("own")]), file_layer("above")]
        reference = loaded(cli, layout_of(tmp_path / "layout", *layers))
        assert mounted_tree(cli, reference, tmp_path / "m").keys() == {b".", b"own", b"above"}
        assert unpacked_tree(cli, reference, tmp_path / "u").keys() == {b".", b"own", b"above"}


@pytest.mark.parametrize("options", [[], ["--rw"]])
def test_gives_no_rights(cli: Cli, tmp_path: Path, options: list[str]) -> None:
    """Whoever may enter the directory may execute what is in it, as who they are; and its devices do not open."""
    require("id")
    program = Path(shutil.which("id") or "").read_bytes()
    layers = [Layer([File("id", program, 0o4755)]), Layer([Device("null", 1, 3, mode=0o666)])]
    reference = loaded(cli, layout_of(tmp_path / "layout", *layers))
    with mounted(cli, reference, tmp_path / "m", *options) as target:
        done = subprocess.run(["./id", "-u"], cwd=target, user=65534, group=65534, capture_output=True, check=True)
        assert done.stdout == b"65534\n"
        with pytest.raises(PermissionError):
            (target / "null").read_bytes()


class TestWritable:
    def test_keeps_what_was_written(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """Into an upper layer of its own, which umount keeps and ps lists; the image is as before."""
        with mounted(cli, image, tmp_path / "m", "--rw") as target:
            (target / "new").write_text("new")
            (target / "lower").write_text("changed")
            (target / "upper").unlink()
        [container] = answer(cli, "ps", "--format", "json")
        assert container["image"] == image
        upper = Path(answer(cli, "inspect", container["id"])["GraphDriver"]["Data"]["UpperDir"])
        assert ((upper / "new").read_text(), (upper / "lower").read_text()) == ("new", "changed")
        tree = mounted_tree(cli, image, tmp_path / "again")
        assert tree.keys() == {b".", b"lower", b"upper"}
        assert tree[b"lower"].size == len("lower")

    @pytest.mark.parametrize("options", [[], ["--rw"]])
    def test_leaves_nothing_when_nothing_was_written(
        self, cli: Cli, image: str, tmp_path: Path, options: list[str]
    ) -> None:
        with mounted(cli, image, tmp_path / "m", *options):
            [container] = answer(cli, "ps", "--format", "json")
            assert container["status"] == f"mounted at {tmp_path / 'm'}"
        assert answer(cli, "ps", "--format", "json") == []

    def test_two_at_once(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """Each has an upper layer of its own."""
        with (
            mounted(cli, image, tmp_path / "a", "--rw") as first,
            mounted(cli, image, tmp_path / "b", "--rw") as second,
        ):
            (first / "mine").touch()
            assert not (second / "mine").exists()
            assert len(answer(cli, "ps", "--format", "json")) == 2

    def test_removing_a_directory_of_the_image(self, cli: Cli, tmp_path: Path) -> None:
        """And making it anew: the old content stays hidden."""
        reference = loaded(cli, layout_of(tmp_path / "layout", Layer([Dir("d"), File("d/old", b"x")])))
        with mounted(cli, reference, tmp_path / "m", "--rw") as target:
            subprocess.run(["rm", "-r", target / "d"], check=True)
            (target / "d").mkdir()
            assert os.listdir(target / "d") == []


class TestRefused:
    def test_no_such_image(self, cli: Cli, store_root: Path, tmp_path: Path) -> None:
        """It is not pulled by the way; the error says how."""
        (tmp_path / "m").mkdir()
        assert "pullpipe pull example.org/a:1" in fails(cli, "mount", "example.org/a:1", tmp_path / "m")

    @pytest.mark.parametrize("make", [Path.touch, None])
    def test_not_a_directory(self, cli: Cli, image: str, tmp_path: Path, make: object) -> None:
        target = tmp_path / "target"
        if make is not None:
            target.touch()
        assert "not a directory" in fails(cli, "mount", image, target)
        assert answer(cli, "ps", "--format", "json") == []

    def test_twice_at_one_place(self, cli: Cli, image: str, tmp_path: Path) -> None:
        with mounted(cli, image, tmp_path / "m") as target:
            assert "mounted at" in fails(cli, "mount", image, target)
            assert len(answer(cli, "ps", "--format", "json")) == 1

    @pytest.mark.parametrize("where", ["", ".", "../root", "..", "../root/staging", "/"])
    def test_where_it_would_hide_the_store(self, cli: Cli, image: str, store_root: Path, where: str) -> None:
        """Nothing could end that: the store would not be found. An empty name is some variable's that is not set."""
        here = store_root.parent / "here"
        here.mkdir()
        (here / "link").symlink_to(store_root)
        words = ["--root", here / "link", "mount", image, where]
        command = ["unshare", "--mount", sys.executable, "-P", "-m", "pullpipe", *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert ("would hide the store" if where else "empty name") in done.stderr
        assert answer(cli, "ps", "--format", "json") == []

    def test_umount_of_what_is_not_ours(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """Another's mount stays mounted."""
        target = tmp_path / "theirs"
        target.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", target], check=True)
        try:
            (target / "file").touch()
            assert "no mount of this store" in fails(cli, "umount", target)
            assert (target / "file").exists()
        finally:
            subprocess.run(["umount", target], check=True)

    def test_umount_of_what_came_in_place_of_ours(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """Ours was ended by umount(8), and another's is there now: the record of ours does not make it ours."""
        target = tmp_path / "m"
        target.mkdir()
        ok(cli, "mount", image, target)
        subprocess.run(["umount", target], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", target], check=True)
        try:
            (target / "file").touch()
            fails(cli, "umount", target)
            assert (target / "file").exists()
        finally:
            subprocess.run(["umount", target], check=False)

    def test_umount_of_nothing(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """A directory, a file, a place that is not there, a place below a mount of ours."""
        (tmp_path / "file").touch()
        for place in (tmp_path, tmp_path / "file", tmp_path / "nowhere"):
            assert "no mount of this store" in fails(cli, "umount", place)
        with mounted(cli, image, tmp_path / "m") as target:
            fails(cli, "umount", target / "lower")

    def test_umount_of_a_busy_mount(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """Refused with the reason, and it is still there, listed, and can be ended later."""
        with mounted(cli, image, tmp_path / "m", "--rw") as target:
            with (target / "new").open("w"):
                assert "busy" in fails(cli, "umount", target)
                assert len(answer(cli, "ps", "--format", "json")) == 1
            assert (target / "new").exists()

    def test_umount_after_another_unmounted(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """With umount(8), say: what is not mounted cannot be unmounted, ps says so, and rm removes it."""
        (tmp_path / "m").mkdir()
        ok(cli, "mount", image, tmp_path / "m")
        subprocess.run(["umount", tmp_path / "m"], check=True)
        [container] = answer(cli, "ps", "--format", "json")
        assert container["status"] == "unmounted"
        fails(cli, "umount", tmp_path / "m")
        assert ok(cli, "rm", container["name"]) == container["name"]


class TestPlaces:
    @pytest.mark.parametrize("name", ["space, comma, colon: and \\", "new\nline"])
    def test_odd_names(self, cli: Cli, image: str, tmp_path: Path, name: str) -> None:
        """Of the directory to mount at."""
        target = tmp_path / name
        target.mkdir()
        assert cli("mount", "--rw", image, target).returncode == 0
        try:
            assert sorted(os.listdir(target)) == ["lower", "upper"]
        finally:
            assert cli("umount", target).returncode == 0
        assert os.listdir(target) == []

    def test_through_a_link(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """Mounted where the link leads, and unmounted by either name."""
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        assert ok(cli, "mount", image, tmp_path / "link") == str(tmp_path / "real")
        assert ok(cli, "umount", tmp_path / "link") == str(tmp_path / "real")


@pytest.mark.parametrize("name", ["with space", "comma,colon:and\\"])
def test_stores_of_odd_names(tmp_path: Path, name: str, layout: Path) -> None:
    """The store's own path is among overlayfs's options, which it splits at commas and colons."""
    root = tmp_path / name
    target = tmp_path / "target"
    target.mkdir()

    def run(*args: object) -> None:
        command = [sys.executable, "-m", "pullpipe", "--root", str(root), *map(str, args)]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run("load", "-q", "-t", "a:1", layout)
    run("mount", "--rw", "a:1", target)
    try:
        (target / "new").touch()
        assert sorted(os.listdir(target)) == ["lower", "new", "upper"]
    finally:
        run("umount", target)

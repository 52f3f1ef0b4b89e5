"""`pullpipe layer add` and `layer drop`: what the new images come to, for us and for others."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from store import Store
from tests.change.conftest import BASE, TOP
from tests.cli.rig import (
    answer,
    digest_of,
    document,
    fails,
    layers_of,
    layout_of,
    mounted_tree,
    ok,
    umoci_tree,
    unpacked_tree,
    without_times,
)
from tests.conftest import PROJECT, Cli, require
from tests.support.images import Dir, Fifo, File, Hardlink, Image, Layer, Whiteout
from tests.support.tree import difference, snapshot

pytestmark = pytest.mark.needs_root


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with something of all that a layer can hold."""
    top = tmp_path / "files"
    (top / "opt" / "tool").mkdir(parents=True)
    (top / "opt" / "tool" / "x").write_bytes(b"x" * 100_000)
    (top / "opt" / "tool" / "x").chmod(0o4755)
    os.chown(top / "opt" / "tool", 5, 6)
    os.link(top / "opt" / "tool" / "x", top / "opt" / "again")
    (top / "opt" / "link").symlink_to("/etc/passwd")
    os.mkfifo(top / "opt" / "fifo")
    os.mknod(top / "opt" / "null", 0o20666, os.makedev(1, 3))
    os.setxattr(top / "opt" / "again", "user.note", b"\xff\0\n=")
    (top / "opt" / ("n" * 200)).touch()
    Path(os.fsdecode(os.fsencode(top) + b"/opt/\xff name\n")).touch()
    os.utime(top / "opt" / "again", ns=(1, 123_456_789_123_456_789))
    os.utime(top / "opt", ns=(1, 1_000_000_000))
    return top


def test_a_directory(cli: Cli, base: str, files: Path, tmp_path: Path) -> None:
    """Its files lie on the image's, with every attribute; umoci sees the same."""
    require("umoci")
    before = mounted_tree(cli, base, tmp_path / "mnt")
    assert ok(cli, "layer", "add", "--quiet", "-t", "new:1", base, files) == "docker.io/library/new:1"
    tree = mounted_tree(cli, "new:1", tmp_path / "mnt")
    added = {path: node for path, node in tree.items() if path not in before}
    assert difference(added, {path: node for path, node in snapshot(files).items() if path != b"."}) == []
    assert difference({path: tree[path] for path in before}, before) == []
    assert mounted_tree(cli, base, tmp_path / "mnt") == before
    ok(cli, "save", "--quiet", "--format=oci-dir", "--output", tmp_path / "saved", "new:1")
    umocis = umoci_tree(tmp_path / "saved", "docker.io/library/new:1", tmp_path / "bundle")
    flat = unpacked_tree(cli, "new:1", tmp_path / "flat")
    nobodys = (b".", b"srv")  # no layer describes them
    assert difference(without_times(umocis, *nobodys), without_times(flat, *nobodys)) == []


def test_where_and_whose(cli: Cli, base: str, files: Path, tmp_path: Path) -> None:
    """Below another directory, which is as it was; owned by somebody else."""
    ok(cli, "layer", "add", "--quiet", "--at", "/srv/cache/", "--owner", "1234:5", "-t", "new:1", base, files)
    tree = mounted_tree(cli, "new:1", tmp_path / "mnt")
    assert (tree[b"srv/cache"].mode, tree[b"srv/cache"].uid) == (0o711, 0)
    added = {node.uid: node.gid for path, node in tree.items() if path.startswith(b"srv/cache/opt")}
    assert added == {1234: 5}
    ok(cli, "layer", "add", "--quiet", "--at", "/\udcff", "-t", "odd:1", base, files)
    assert b"\xff/opt" in mounted_tree(cli, "odd:1", tmp_path / "mnt")


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_the_same_files_make_the_same_image(cli: Cli, base: str, files: Path, compression: str) -> None:
    """With SOURCE_DATE_EPOCH, whenever, and in whatever order the directory lists them."""
    found = set()
    for name in ("a:1", "b:1"):
        options = ["--quiet", "--compression", compression, "-t", name]
        done = cli("layer", "add", *options, base, files, env={"SOURCE_DATE_EPOCH": "1000000000"})
        assert done.returncode == 0, done.stderr
        found.add(answer(cli, "inspect", name)["digest"])
        (files / "opt" / "fifo").unlink()
        os.mkfifo(files / "opt" / "fifo")
        os.utime(files / "opt", ns=(1, 1_000_000_000))
    assert len(found) == 1
    [image] = {answer(cli, "inspect", name)["config"]["created"] for name in ("a:1", "b:1")}
    assert image == "2001-09-09T01:46:40Z"


def test_removing_by_a_directory(cli: Cli, base: str, tmp_path: Path) -> None:
    """A file .wh.NAME in it is a whiteout."""
    (tmp_path / "files" / "etc").mkdir(parents=True)
    (tmp_path / "files" / "etc" / ".wh.motd").touch()
    ok(cli, "layer", "add", "--quiet", base, tmp_path / "files")
    assert b"etc/motd" not in mounted_tree(cli, base, tmp_path / "mnt")


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_a_compressed_archive_keeps_its_bytes(
    cli: Cli, base: str, tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    """So its digest is the layer's, by whatever program it was made."""
    archive = tmp_path / "layer.tar"
    archive.write_bytes(compress(Layer([File("added", b"added")]).tar))
    ok(cli, "layer", "add", "--quiet", base, archive)
    layer = answer(cli, "inspect", base)["manifest"]["layers"][-1]
    assert layer["digest"] == "sha256:" + hashlib.sha256(archive.read_bytes()).hexdigest()
    assert layer["mediaType"].endswith("+gzip" if compress is gzip.compress else "+zstd")


def test_a_plain_archive_and_standard_input(cli: Cli, base: str, tmp_path: Path) -> None:
    """They are compressed, unless that is not wanted; the diffID is the archive's digest."""
    tar = Layer([File("added", b"added"), Fifo("pipe"), Hardlink("more", "added")]).tar
    (tmp_path / "layer.tar").write_bytes(tar)
    ok(cli, "layer", "add", "--quiet", "-t", "a:1", base, tmp_path / "layer.tar")
    ok(cli, "layer", "add", "--quiet", "--compression=none", "-t", "b:1", base, tmp_path / "layer.tar")
    for name, kind in (("a:1", "tar+gzip"), ("b:1", "tar")):
        image = answer(cli, "inspect", name)
        assert image["config"]["rootfs"]["diff_ids"][-1] == "sha256:" + hashlib.sha256(tar).hexdigest()
        assert image["manifest"]["layers"][-1]["mediaType"].endswith(kind)
    tree = mounted_tree(cli, "a:1", tmp_path / "mnt")
    ok(cli, "layer", "add", "--quiet", "-t", "c:1", base, "-", stdin=tar.decode())
    assert mounted_tree(cli, "c:1", tmp_path / "mnt") == tree


def test_a_layer_that_is_here_by_another_blob(cli: Cli, base: str, files: Path, tmp_path: Path) -> None:
    """Each image keeps the blob that it names, and can be saved as it is whatever becomes of the others."""
    names = {"gzip": "a:1", "zstd": "b:1", "none": "c:1"}
    for compression, name in names.items():
        ok(cli, "layer", "add", "--quiet", "--compression", compression, "-t", name, base, files)
    ok(cli, "squash", "--quiet", "-t", "d:1", base)
    ok(cli, "squash", "--quiet", "--compression=zstd", "-t", "e:1", base)
    ok(cli, "rmi", "a:1")
    for name in ("b:1", "c:1", "e:1"):
        ok(cli, "save", "--quiet", "--format=oci-dir", "--output", tmp_path / "saved", name)
        ok(cli, "save", "--quiet", "--output", tmp_path / "saved.tar", name)


def test_history(cli: Cli, base: str, files: Path) -> None:
    ok(cli, "layer", "add", "--quiet", "-m", "some tools", "--author", "me", base, files)
    config = answer(cli, "inspect", base)["config"]
    entry = config["history"][-1]
    assert (entry["created_by"], entry["comment"], entry["author"]) == ("pullpipe layer add", "some tools", "me")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", entry["created"])
    assert config["created"] == entry["created"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_drop(cli: Cli, base: str, layout: Path, tmp_path: Path, number: int) -> None:
    """What is left is the image of the other layers: whatever the layer hid is there again."""
    layers = [BASE, TOP, Layer([Whiteout("etc/top"), Whiteout("etc/motd"), Dir("new")])]
    rest = [layer for place, layer in enumerate(layers, 1) if place != number]
    ok(cli, "load", "--quiet", "-t", "all:1", layout_of(tmp_path / "all", all=Image(layers)))
    ok(cli, "load", "--quiet", "-t", "rest:1", layout_of(tmp_path / "rest", rest=Image(rest)))
    assert ok(cli, "layer", "drop", "--quiet", "-t", "dropped:1", "all:1", str(number)).endswith("dropped:1")
    tree = mounted_tree(cli, "dropped:1", tmp_path / "mnt")
    assert difference(tree, mounted_tree(cli, "rest:1", tmp_path / "mnt")) == []
    history = answer(cli, "inspect", "dropped:1")["config"]["history"]
    assert [entry["created_by"] for entry in history] == [
        f"test layer {place - 1}" for place in (1, 2, 3) if place != number
    ]


@pytest.mark.parametrize("indent", [None, 3, "\t"])
def test_what_is_taken_away_again_leaves_nothing(
    cli: Cli, tmp_path: Path, files: Path, layout: Path, indent: int | str | None
) -> None:
    """The very manifest comes back, by its digest, in whatever form its JSON was written."""
    digest = rewritten(layout, indent)
    ok(cli, "load", "--quiet", "-t", "base:1", layout)
    ok(cli, "layer", "add", "--quiet", "-t", "new:1", "base:1", files)
    ok(cli, "layer", "drop", "--quiet", "new:1", "3")
    assert answer(cli, "inspect", "new:1")["digest"] == digest


def test_a_history_that_nobody_has_checked(cli: Cli, layout: Path) -> None:
    """Nonsense in it keeps no layer from being left out."""
    rewritten(layout, None, created=5)
    ok(cli, "load", "--quiet", "-t", "base:1", layout)
    ok(cli, "layer", "drop", "--quiet", "base:1", "2")
    assert "created" not in answer(cli, "inspect", "base:1")["config"]


def rewritten(layout: Path, indent: int | str | None, **noted: object) -> str:
    """The layout's image with its documents written in another form, and this in its history; its new digest."""

    def write(descriptor: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps(document, indent=indent, separators=(",", ": " if indent else ":"), ensure_ascii=False)
        data = text.replace("<", "\\u003c").replace(">", "\\u003e").encode()
        name = hashlib.sha256(data).hexdigest()
        (layout / "blobs" / "sha256" / name).write_bytes(data)
        return {**descriptor, "digest": f"sha256:{name}", "size": len(data)}

    index = json.loads((layout / "index.json").read_bytes())
    manifest = document(layout, index["manifests"][0]["digest"])
    config = document(layout, manifest["config"]["digest"])
    config["history"][0] |= {"comment": "<ä>", **noted}
    manifest["config"] = write(manifest["config"], config)
    index["manifests"][0] = write(index["manifests"][0], manifest)
    (layout / "index.json").write_text(json.dumps(index))
    return str(index["manifests"][0]["digest"])


@pytest.mark.parametrize("name", ["busybox", "alpine"])
def test_real_images(cli: Cli, shared_images: Path, files: Path, name: str) -> None:
    """The official ones, too; and what is saved is what skopeo has copied to."""
    ok(cli, "load", "--quiet", "-t", "real:1", shared_images / name)
    before = answer(cli, "inspect", "real:1")["digest"]
    ok(cli, "layer", "add", "--quiet", "-t", "new:1", "real:1", files)
    assert answer(cli, "inspect", "new:1")["digest"] != before
    ok(cli, "layer", "drop", "--quiet", "new:1", "2")
    assert answer(cli, "inspect", "new:1")["digest"] == before


def test_skopeo_copies_what_is_made(cli: Cli, base: str, files: Path, tmp_path: Path) -> None:
    """Into Docker's archive and back: it checks every digest."""
    require("skopeo")
    ok(cli, "layer", "add", "--quiet", "-t", "new:1", base, files)
    ok(cli, "save", "--quiet", "--format=oci-dir", "--output", tmp_path / "saved", "new:1")
    target = f"oci:{tmp_path / 'copied'}:copied"
    command = ["skopeo", "copy", "--quiet", f"oci:{tmp_path / 'saved'}:docker.io/library/new:1", target]
    subprocess.run(command, check=True, capture_output=True)
    assert digest_of(tmp_path / "copied", "copied") == answer(cli, "inspect", "new:1")["digest"]
    assert len(layers_of(tmp_path / "copied", "copied")) == 3


def test_the_store_is_named_behind_the_command(cli: Cli, base: str, store_root: Path, files: Path) -> None:
    done = cli("--root", "/no/such", "layer", "add", "--root", store_root, "--quiet", "-t", "new:1", base, files)
    assert done.returncode == 0, done.stderr
    assert cli("layer", "drop", "--log-level", "debug", "--quiet", "new:1", "3").returncode == 0


# What cannot be done.


@pytest.fixture
def unchanged(cli: Cli, base: str, store_root: Path) -> Path:
    """The store's records; every refusal leaves them as they are."""
    return store_root / "index.json"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["layer", "add", "base:1", "/no/such"], "/no/such is not there"),
        (["layer", "add", "missing:1", "/etc"], "missing:1 is not in the store"),
        (["layer", "add", "--owner", "root", "base:1", "/etc/ssl"], "--owner root"),
        (["layer", "add", "--at", "/x", "base:1", "/etc/hostname"], "--at and --owner are for directories"),
        (["layer", "add", "--quiet", "base:1", "/etc/passwd"], "/etc/passwd cannot be a layer: at byte 0"),
        (["layer", "add", "base:1", "/dev/null"], "/dev/null is empty"),
        (["layer", "add", "--max-size", "1", "base:1", "/dev/zero"], "--max-size allows more"),
        (["layer", "add", "--owner", "4294967295", "base:1", "/etc/ssl"], "--owner 4294967295"),
        (["layer", "add", "--at", "/etc/motd", "base:1", "/etc/ssl"], "/etc/motd is no directory"),
        (["layer", "add", "--at", "etc/motd/x", "base:1", "/etc/ssl"], "/etc/motd is no directory"),
        (
            ["layer", "add", "--at", "/srv/.wh.x/y", "base:1", "/etc/ssl"],
            "such a name means that another file is removed",
        ),
        (["layer", "add", "base:1#1", "/etc/ssl"], "leave #1 away"),
        (["layer", "drop", "base:1"], "base:1#N, or base:1 N"),
        (["layer", "drop", "base:1#1", "1"], "base:1#N, or base:1 N"),
        (["layer", "drop", "base:1#3"], "no layer 3: the image has 2"),
        (["layer", "add", "-t", f"a@sha256:{'0' * 64}", "base:1", "/etc/ssl"], "by digest"),
        (["layer", "drop", "base:1", "3"], "no layer 3: the image has 2"),
        (["layer", "drop", "base:1", "0"], "no layer 0"),
        (["layer", "drop", "base:1", "-1"], "no layer -1"),
        (["layer", "drop", "missing:1", "1"], "missing:1 is not in the store"),
    ],
)
def test_refused(cli: Cli, unchanged: Path, words: list[str], why: str) -> None:
    before = unchanged.read_bytes()
    assert why in fails(cli, *words)
    assert unchanged.read_bytes() == before


def test_a_blob_that_was_not_kept(cli: Cli, tmp_path: Path) -> None:
    """A layer that stands on others is unpacked anew when they change; how to have its blob is said, and helps."""
    layers = [Layer([File("a", b"a")]), Layer([File("b", b"b")]), Layer([Hardlink("c", "a")])]
    layout = layout_of(tmp_path / "linked", linked=Image(layers))
    ok(cli, "load", "--quiet", "--discard-blobs", "-t", "linked:1", layout)
    line = fails(cli, "layer", "drop", "--quiet", "-t", "new:1", "linked:1", "2")
    assert "`pullpipe pull --all-platforms docker.io/library/linked:1`, load that image again, and then" in line
    ok(cli, "load", "--quiet", "-t", "linked:1", layout)
    ok(cli, "layer", "drop", "--quiet", "-t", "new:1", "linked:1", "2")
    assert mounted_tree(cli, "new:1", tmp_path / "mnt").keys() == {b".", b"a", b"c"}


def test_the_only_layer(cli: Cli, base: str) -> None:
    ok(cli, "layer", "drop", "--quiet", base, "1")
    assert "only layer" in fails(cli, "layer", "drop", base, "1")


def test_a_truncated_archive(cli: Cli, base: str, tmp_path: Path) -> None:
    """Whether it ends in the compression, or in the archive."""
    tar = Layer([File("a", os.urandom(100_000))]).tar
    (tmp_path / "layer").write_bytes(gzip.compress(tar)[:-20])
    assert "truncated" in fails(cli, "layer", "add", "--quiet", base, tmp_path / "layer")
    (tmp_path / "layer").write_bytes(tar[:50_000])
    assert "truncated" in fails(cli, "layer", "add", "--quiet", base, tmp_path / "layer")


def test_a_file_that_is_no_archive_is_not_quoted(cli: Cli, base: str, tmp_path: Path) -> None:
    """It may be one that is nobody else's to read."""
    (tmp_path / "secrets").write_text("0123456789abcdef" * 100)
    assert "789ab" not in fails(cli, "layer", "add", "--quiet", base, tmp_path / "secrets")


@pytest.mark.parametrize("program", ["xz", "bzip2"])
def test_another_compression(cli: Cli, base: str, tmp_path: Path, program: str) -> None:
    """The line says what decompresses it, and that helps."""
    (tmp_path / "layer.tar").write_bytes(Layer([File("added", b"added")]).tar)
    subprocess.run([require(program), "--keep", tmp_path / "layer.tar"], check=True)
    [path] = tmp_path.glob("layer.tar.*")
    for words in (["layer", "add", base], ["load"]):
        assert f"`{program} -dc {path} | pullpipe … -`" in fails(cli, *words, path)
    plain = subprocess.run([program, "-dc", path], check=True, capture_output=True).stdout
    ok(cli, "layer", "add", "--quiet", base, "-", stdin=plain.decode())


def test_a_layer_that_another_one_needs(cli: Cli, tmp_path: Path) -> None:
    """It is not left out before that one is, which is named; whatever lies below both."""
    layers = [Layer([File("a", b"a")]), Layer([File("b", b"b")]), Layer([Hardlink("c", "a")])]
    ok(cli, "load", "--quiet", "-t", "linked:1", layout_of(tmp_path / "linked", linked=Image(layers)))
    ok(cli, "layer", "drop", "--quiet", "-t", "two:1", "linked:1#2")
    for name in ("linked:1", "two:1"):
        line = fails(cli, "layer", "drop", "--quiet", f"{name}#1")
        assert f"layer 1 cannot be left out: layer {3 if name == 'linked:1' else 2} needs it" in line
        assert "a hard link to 'a'" in line
    ok(cli, "layer", "drop", "--quiet", "linked:1#3")
    ok(cli, "layer", "drop", "--quiet", "linked:1#1")
    assert mounted_tree(cli, "linked:1", tmp_path / "mnt").keys() == {b".", b"b"}


@pytest.mark.parametrize("kind", ["directory", "file", "symlink"])
def test_a_whiteout_that_is_none(cli: Cli, base: str, tmp_path: Path, kind: str) -> None:
    """Nobody who has such a name by chance loses what it would take away."""
    mark = tmp_path / "files" / ".wh.etc"
    mark.parent.mkdir()
    if kind == "directory":
        mark.mkdir()
    elif kind == "file":
        mark.write_text("full")
    else:
        mark.symlink_to("x")
    assert "/.wh.etc cannot be in a layer" in fails(cli, "layer", "add", base, tmp_path / "files")


def test_the_name_that_is_changed_without_another(cli: Cli, base: str, files: Path) -> None:
    """It is said, for a pull would change it back."""
    told = f"docker.io/library/{base} is the changed image from now on; to pull it would bring the registry's back"
    assert told not in cli("layer", "add", "-t", "new:1", base, files).stderr
    assert told in cli("layer", "add", base, files).stderr
    assert told in cli("layer", "drop", base, "1").stderr
    assert told not in cli("config", base).stderr


def test_two_changes_at_once(cli: Cli, base: str, store_root: Path, tmp_path: Path) -> None:
    """None is lost: who comes second is told, and nothing of theirs stays."""
    (tmp_path / "a.tar").write_bytes(Layer([File("first", b"first")]).tar)
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "pullpipe", "--root", str(store_root), "layer", "add", "--quiet"]
    for options, name in (([], base), (["-t", "new:1"], "new:1")):
        slow = [*command, *options, base, str(tmp_path / "pipe")]
        with subprocess.Popen(slow, cwd=PROJECT, stdout=-1, stderr=-1, text=True) as process:
            with (tmp_path / "pipe").open("wb") as pipe:  # which it has opened: so it knows what it changes
                ok(cli, "layer", "add", "--quiet", "-t", name, "--replace", base, tmp_path / "a.tar")
                pipe.write(Layer([File("second", b"second")]).tar)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (1, "")
        assert f"docker.io/library/{name} has become another image meanwhile" in err
        assert b"second" not in mounted_tree(cli, name, tmp_path / "mnt")
        assert b"first" in mounted_tree(cli, name, tmp_path / "mnt")
        assert cli("verify").stderr == "whole\n"


def test_nothing_stays_of_a_layer_that_cannot_be_settled(cli: Cli, base: str, store_root: Path, tmp_path: Path) -> None:
    """It is whole by itself, and has no place on the image. What a pull left for the next one to use stays."""
    ok(cli, "load", "--quiet", "-t", "other:1", layout_of(tmp_path / "other", Layer([File("other")])))
    Store(str(store_root)).images.remove("docker.io/library/other:1")
    before = files_of(store_root)
    (tmp_path / "a.tar").write_bytes(Layer([File("large", bytes(100_000)), Hardlink("link", "nothing")]).tar)
    line = fails(cli, "layer", "add", "--quiet", base, tmp_path / "a.tar")
    assert f"{tmp_path}/a.tar cannot be a layer: entry 'link'" in line
    assert files_of(store_root) == before


def files_of(store_root: Path) -> list[Path]:
    """All that is in the store."""
    return sorted(path for path in store_root.rglob("*") if "fs" not in path.parts)


def test_bad_time(cli: Cli, base: str, files: Path) -> None:
    done = cli("layer", "add", base, files, env={"SOURCE_DATE_EPOCH": "yesterday"})
    assert (done.returncode, "SOURCE_DATE_EPOCH is 'yesterday'" in done.stderr) == (1, True)


def test_nothing_stays_of_what_failed(cli: Cli, base: str, store_root: Path) -> None:
    """No blob, no layer, no file."""
    blobs = set(Store(str(store_root)).blobs)
    fails(cli, "layer", "add", "--quiet", base, "/etc/passwd")
    assert set(Store(str(store_root)).blobs) == blobs
    assert list((store_root / "ingest").iterdir()) == list((store_root / "staging").iterdir()) == []

"""`pullpipe save`: what is in the archive or the directory, and that it is there whole or not at all.

That other programs read it, `tests/interop/test_round_trips` proves.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.cli.rig import answer, digest_of, document, fails, file_layer, layers_of, layout_of, ok
from tests.conftest import PROJECT, Cli, require
from tests.support.images import (
    CONFIG,
    HOST_PLATFORM,
    INDEX,
    MANIFEST,
    REF_NAME,
    Compression,
    File,
    Image,
    Layer,
    write_layout,
)
from tests.support.mounts import tmpfs
from tests.support.registry import Registry
from tests.torture.calls import Call, supervised
from tests.torture.rig import command

pytestmark = pytest.mark.needs_root

CONTAINERD_NAME = "io.containerd.image.name"
FORMATS = ("docker-archive", "oci-archive", "oci-dir")
LOWER, UPPER = file_layer("lower"), file_layer("upper")


class Claimed(Layer):
    """A layer of which the config says that it is another one."""

    @property
    def diff_id(self) -> str:
        return UPPER.diff_id


def members(archive: Path | bytes) -> dict[str, bytes]:
    """The files of a tar archive."""
    data = archive if isinstance(archive, bytes) else archive.read_bytes()
    with tarfile.open(fileobj=BytesIO(data)) as opened:
        return {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]


def files(directory: Path) -> dict[str, bytes]:
    """The files below a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def saved(path: Path) -> dict[str, bytes]:
    return files(path) if path.is_dir() else members(path)


def entries(layout: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """The entries of a layout's index, by their names."""
    return {entry["annotations"][REF_NAME]: entry for entry in json.loads(layout["index.json"])["manifests"]}


def hex_of(data: bytes) -> str:
    return sha256(data).hexdigest()


def blob_path(root: Path, digest: str) -> Path:
    return root / "blobs" / digest.replace(":", "/")


def save_to_stdout(root: Path, *args: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "pullpipe", "--root", str(root), "save", *args]
    return subprocess.run(command, cwd=PROJECT, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, **options)


class TestDockerArchive:
    @pytest.mark.parametrize("compression", ["gzip", "zstd", None])
    def test_content(self, cli: Cli, tmp_path: Path, compression: Compression) -> None:
        """Config and layers under the names that manifest.json gives them, each of them what its digest says."""
        one = Image([Layer(layer.entries, compression) for layer in (LOWER, UPPER)], {"Cmd": ["/bin/sh"]})
        ok(cli, "load", "-q", "-t", "a.b/c:1", layout_of(tmp_path / "layout", one=one))
        assert ok(cli, "save", "-o", tmp_path / "saved.tar", "a.b/c:1") == "a.b/c:1"
        found = members(tmp_path / "saved.tar")
        [entry] = json.loads(found.pop("manifest.json"))
        assert entry["RepoTags"] == ["a.b/c:1"]
        assert found.pop(entry["Config"]) == one.config_blob
        assert entry["Config"] == f"{hex_of(one.config_blob)}.json"
        assert [found.pop(name) for name in entry["Layers"]] == [LOWER.tar, UPPER.tar]
        assert found == {}

    def test_shared_layers(self, cli: Cli, tmp_path: Path) -> None:
        """In the archive once, for several images and for one that has it twice."""
        images = {"one": Image([LOWER, UPPER]), "two": Image([LOWER, UPPER, LOWER]), "none": Image([])}
        ok(cli, "load", "-q", layout_of(tmp_path / "layout", **images))
        ok(cli, "save", "-o", tmp_path / "saved.tar", "layout:one", "layout:two", "layout:none")
        found = members(tmp_path / "saved.tar")
        manifest = {entry["RepoTags"][0]: entry["Layers"] for entry in json.loads(found["manifest.json"])}
        lower, upper = manifest["docker.io/library/layout:one"]
        assert manifest["docker.io/library/layout:two"] == [lower, upper, lower]
        assert manifest["docker.io/library/layout:none"] == []
        assert len(found) == 1 + 3 + 2

    def test_two_tags(self, cli: Cli, image: str, layout: Path, tmp_path: Path) -> None:
        """Of one image, which is there once, whatever the compression that it came with."""
        other = Image([Layer(layer.entries, "zstd") for layer in (LOWER, UPPER)], {"Cmd": ["/bin/sh"]})
        ok(cli, "load", "-q", "-t", "localhost:5000/b:2", layout_of(tmp_path / "zstd", one=other))
        names = ok(cli, "save", "-o", tmp_path / "saved.tar", "localhost:5000/b:2", image)
        assert names.splitlines() == [image, "localhost:5000/b:2"]
        [entry] = json.loads(members(tmp_path / "saved.tar")["manifest.json"])
        assert entry["RepoTags"] == names.splitlines()

    def test_no_tag(self, cli: Cli, layout: Path, tmp_path: Path) -> None:
        """The form has no names with digests: the image goes by its id."""
        reference = f"a.b/c@{digest_of(layout)}"
        ok(cli, "load", "-q", "-t", reference, layout)
        config = document(layout, digest_of(layout))["config"]["digest"]
        assert ok(cli, "save", "-o", tmp_path / "saved.tar", reference) == config
        [entry] = json.loads(members(tmp_path / "saved.tar")["manifest.json"])
        assert entry["RepoTags"] is None

    def test_tag_and_digest(self, cli: Cli, layout: Path, tmp_path: Path) -> None:
        """The tag stays; one tag cannot be two images'."""
        reference = f"a.b/c:1@{digest_of(layout)}"
        ok(cli, "load", "-q", "-t", reference, layout)
        ok(cli, "load", "-q", "-t", "a.b/c:1", layout)
        assert ok(cli, "save", "-o", tmp_path / "saved.tar", reference) == "a.b/c:1"
        assert ok(cli, "save", "-o", tmp_path / "saved.tar", reference, "a.b/c:1") == "a.b/c:1"
        ok(cli, "load", "-q", "-t", "a.b/c:1", layout_of(tmp_path / "other", UPPER))
        assert "a.b/c:1" in fails(cli, "save", "-q", "-o", tmp_path / "two.tar", reference, "a.b/c:1")
        assert not (tmp_path / "two.tar").exists()

    @pytest.mark.usefixtures("image")
    def test_a_layer_whose_blob_is_another_images(self, cli: Cli, registry: Registry, tmp_path: Path) -> None:
        """Of another compression: it is the same layer. As a layout, where blobs stay as they are, it will not do."""
        other = Image([Layer(LOWER.entries, "zstd")])
        there = registry.push(layout_of(tmp_path / "zstd", one=other), "one", to="save/other:1")
        ok(cli, "pull", "-q", there)
        ok(cli, "tag", there, "other:1")
        ok(cli, "save", "-o", tmp_path / "saved.tar", "other:1")
        found = members(tmp_path / "saved.tar")
        [entry] = json.loads(found["manifest.json"])
        assert [found[name] for name in entry["Layers"]] == [LOWER.tar]
        line = fails(cli, "save", "-q", "--format", "oci-archive", "-o", tmp_path / "saved.oci", "other:1")
        assert f"has not kept blob sha256:{hex_of(other.layers[0].blob)} of docker.io/library/other:1" in line
        assert f"`pullpipe pull --all-platforms {there}`" in line
        # What it says helps.
        ok(cli, "pull", "-q", "--all-platforms", there)
        ok(cli, "save", "--format", "oci-archive", "-o", tmp_path / "saved.oci", "other:1")


class TestLayout:
    @pytest.mark.parametrize("form", ["oci-archive", "oci-dir"])
    def test_content(self, cli: Cli, tmp_path: Path, form: str) -> None:
        """Every blob of every image as it came, once; each image by its whole name, for whoever looks at which."""
        images = {
            "a.b/c:1": Image([LOWER, Layer(UPPER.entries, "zstd")]),
            "localhost:5000/d:2": Image([LOWER, Layer(file_layer("plain").entries, None), LOWER]),
            "none": Image([]),
        }
        layout = layout_of(tmp_path / "layout", **images)
        names = ok(cli, "load", "-q", layout).splitlines()
        assert ok(cli, "save", "--format", form, "-o", tmp_path / "saved", *names).splitlines() == sorted(names)
        found, expected = saved(tmp_path / "saved"), files(layout)
        listed = entries(found)
        assert {name: entry["digest"] for name, entry in listed.items()} == {
            name: digest_of(layout, tag) for name, tag in zip(names, images, strict=True)
        }
        for name, entry in listed.items():
            assert entry["annotations"] == {REF_NAME: name, CONTAINERD_NAME: name}
            assert (entry["mediaType"], entry["size"]) == (MANIFEST, len(found[f"blobs/sha256/{entry['digest'][7:]}"]))
            assert entry["platform"] == images["none"].platform_fields
        assert json.loads(found.pop("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
        del found["index.json"], expected["index.json"], expected["oci-layout"]
        assert found == expected

    def test_index_of_which_all_is_here(self, cli: Cli, tmp_path: Path) -> None:
        """It is saved itself, with the images of all platforms and what else it lists; else this platform's image."""
        platforms = [HOST_PLATFORM, "linux/s390x"]
        layout = layout_of(tmp_path / "many")
        images = [Image([file_layer(name.replace("/", "-"))], platform=name) for name in platforms]
        write_layout(layout, {"many": images})
        index_digest = self.attest(layout)
        ok(cli, "load", "-q", "-t", "many:1", layout)
        ok(cli, "save", "-q", "--format", "oci-archive", "-o", tmp_path / "one.tar", "many:1")
        [entry] = entries(members(tmp_path / "one.tar")).values()
        manifest = answer(cli, "inspect", "many:1")["digest"]
        assert (entry["digest"], entry["mediaType"]) == (manifest, MANIFEST)
        assert len(members(tmp_path / "one.tar")) == 2 + 3

        ok(cli, "load", "-q", "-t", "other:1", "--platform", "linux/s390x", layout)
        last = document(layout, index_digest)["manifests"][-1]["digest"]
        statement = document(layout, last)
        blobs = tmp_path / "root" / "blobs" / "sha256"
        for digest in (last, statement["config"]["digest"], statement["layers"][0]["digest"]):
            ok(cli, "save", "-q", "--format", "oci-archive", "-o", tmp_path / "one.tar", "many:1")
            [entry] = entries(members(tmp_path / "one.tar")).values()
            assert entry["digest"] == manifest
            shutil.copy(blob_path(layout, digest), blobs)
        ok(cli, "save", "-q", "--format", "oci-archive", "-o", tmp_path / "all.tar", "many:1", "other:1")
        found = members(tmp_path / "all.tar")
        assert {(entry["digest"], entry["mediaType"]) for entry in entries(found).values()} == {(index_digest, INDEX)}
        del found["index.json"], found["oci-layout"]
        assert found.items() <= files(layout).items()
        assert len(found) == 1 + 2 * 3 + 3

        # Whatever the name: a Docker archive has one platform's image.
        ok(cli, "save", "-q", "-o", tmp_path / "docker.tar", "many:1")
        [entry] = json.loads(members(tmp_path / "docker.tar")["manifest.json"])
        assert entry["Config"] == f"{hex_of(images[0].config_blob)}.json"

    @staticmethod
    def attest(layout: Path) -> str:
        """Adds a statement about the image to its index, as buildkit does; the new index's digest."""

        def blob(data: bytes, media_type: str) -> dict[str, Any]:
            digest = f"sha256:{hex_of(data)}"
            blob_path(layout, digest).write_bytes(data)
            return {"mediaType": media_type, "digest": digest, "size": len(data)}

        statement = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blob(b'{"of":"nothing"}', CONFIG),
            "layers": [blob(b'{"_type":"statement"}', "application/vnd.in-toto+json")],
        }
        entry = blob(json.dumps(statement).encode(), MANIFEST)
        index = document(layout, digest_of(layout, "many"))
        index["manifests"].append({**entry, "platform": {"os": "unknown", "architecture": "unknown"}})
        top = json.loads((layout / "index.json").read_bytes())
        found = blob(json.dumps(index).encode(), INDEX)
        top["manifests"] = [{**found, "annotations": {REF_NAME: "many"}}]
        (layout / "index.json").write_text(json.dumps(top))
        return str(found["digest"])

    def test_a_name_with_a_digest_is_true(self, cli: Cli, tmp_path: Path) -> None:
        """Pinned to an index, and only one platform is here: the name has that manifest's digest, as it must be."""
        images = [Image([LOWER], platform=name) for name in ("linux/s390x", HOST_PLATFORM)]
        write_layout(tmp_path / "many", {"many": images})
        index = digest_of(tmp_path / "many", "many")
        ok(cli, "load", "-q", "-t", f"a.b/c@{index}", tmp_path / "many")
        manifest = answer(cli, "inspect", f"a.b/c@{index}")["digest"]
        name = ok(cli, "save", "--format", "oci-archive", "-o", tmp_path / "saved.tar", f"a.b/c@{index}")
        assert name == f"a.b/c@{manifest}"
        assert ok(cli, "load", "-q", tmp_path / "saved.tar") == name


class TestDirectory:
    def test_new_directories(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """With their parents; an empty one will do, too."""
        target = tmp_path / "a" / "b"
        assert ok(cli, "save", "--format", "oci-dir", "-o", target, image) == image
        (tmp_path / "empty").mkdir()
        ok(cli, "save", "--format", "oci-dir", "-o", tmp_path / "empty", image)
        assert files(target) == files(tmp_path / "empty")

    def test_images_are_added(self, cli: Cli, image: str, layout: Path, tmp_path: Path) -> None:
        """To a layout that is there: what it has stays, but for an image of the same name, which is replaced."""
        other = layout_of(tmp_path / "other", file_layer("other"), **{image: Image([file_layer("old")])})
        before = files(other)
        ok(cli, "save", "--format", "oci-dir", "-o", other, image)
        found = files(other)
        assert {name: entry["digest"] for name, entry in entries(found).items()} == {
            "image": entries(before)["image"]["digest"],
            image: digest_of(layout),
        }
        del before["index.json"]
        assert before.items() <= found.items()
        ok(cli, "save", "--format", "oci-dir", "-o", other, image)
        assert files(other) == found

    def test_a_damaged_blob_there_is_mended(self, cli: Cli, image: str, layout: Path, tmp_path: Path) -> None:
        target = tmp_path / "saved"
        ok(cli, "save", "--format", "oci-dir", "-o", target, image)
        whole = files(target)
        path = blob_path(target, layers_of(layout)[0]["digest"])
        path.write_bytes(b"?" * path.stat().st_size)
        ok(cli, "save", "--format", "oci-dir", "-o", target, image)
        assert files(target) == whole

    def test_something_else_is_there(self, cli: Cli, image: str, store_root: Path, tmp_path: Path) -> None:
        """Refused, and not touched: somebody's files, a file, a damaged layout, the store itself."""
        target = tmp_path / "target"
        target.mkdir()
        (target / "mine").write_text("mine")
        assert "not empty" in fails(cli, "save", "-q", "--format", "oci-dir", "-o", target, image)
        assert files(target) == {"mine": b"mine"}
        fails(cli, "save", "-q", "--format", "oci-dir", "-o", target / "mine", image)
        fails(cli, "save", "-q", "--format", "oci-dir", "-o", target / "mine" / "below", image)
        assert files(target) == {"mine": b"mine"}
        damaged = layout_of(tmp_path / "damaged", LOWER)
        (damaged / "index.json").write_text('{"manifests": 1}')
        before = files(damaged)
        assert "damaged" in fails(cli, "save", "-q", "--format", "oci-dir", "-o", damaged, image)
        assert files(damaged) == before
        index = (store_root / "index.json").read_bytes()
        assert "store" in fails(cli, "save", "-q", "--format", "oci-dir", "-o", store_root, image)
        assert (store_root / "index.json").read_bytes() == index

    def test_two_at_the_same_time(self, cli: Cli, image: str, layout: Path, store_root: Path, tmp_path: Path) -> None:
        """None of them loses what the other adds."""
        names = [f"a.b/c:{number}" for number in range(4)]
        for name in names:
            ok(cli, "load", "-q", "-t", name, layout)
        target = tmp_path / "saved"
        target.mkdir()
        command = [sys.executable, "-m", "pullpipe", "--root", str(store_root), "save", "-q", "--format", "oci-dir"]
        running = [subprocess.Popen([*command, "-o", target, name], cwd=PROJECT) for name in names]
        assert [process.wait(60) for process in running] == [0] * len(names)
        assert sorted(entries(files(target))) == names


class TestOutput:
    @pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
    def test_stdout(self, image: str, store_root: Path, cli: Cli, tmp_path: Path, form: str) -> None:
        """The same bytes as in a file, and nothing else; what it tells goes to standard error."""
        ok(cli, "save", "--format", form, "-o", tmp_path / "saved", image)
        done = save_to_stdout(store_root, "--format", form, image)
        assert (done.returncode, done.stdout) == (0, (tmp_path / "saved").read_bytes())
        assert image.encode() in done.stderr
        done = save_to_stdout(store_root, "-q", "--format", form, image)
        assert (done.returncode, done.stdout, done.stderr) == (0, (tmp_path / "saved").read_bytes(), b"")

    @pytest.mark.parametrize("form", FORMATS)
    def test_not_to_a_terminal(self, image: str, store_root: Path, form: str) -> None:
        ours, theirs = pty.openpty()
        try:
            command = [sys.executable, "-m", "pullpipe", "--root", str(store_root), "save", "--format", form, image]
            done = subprocess.run(command, cwd=PROJECT, stdout=theirs, stderr=subprocess.PIPE, timeout=60)
        finally:
            os.close(theirs)
            os.close(ours)
        assert done.returncode == 1
        assert b"--output" in done.stderr

    def test_a_directory_needs_a_name(self, cli: Cli, image: str) -> None:
        assert "--output" in fails(cli, "save", "--format", "oci-dir", image)

    @pytest.mark.parametrize("form", FORMATS)
    def test_the_same_again(self, cli: Cli, store_root: Path, tmp_path: Path, form: str) -> None:
        """The same images make the same bytes: whatever their order, the store, the time, the umask."""
        layout = layout_of(tmp_path / "layout", LOWER, UPPER, other=Image([UPPER]))
        ok(cli, "load", "-q", layout)
        names = ["layout:image", "layout:other"]
        ok(cli, "save", "--format", form, "-o", tmp_path / "one", *names)
        other = tmp_path / "store"
        os.utime(layout / "index.json", (1, 1))
        ok(cli, "--root", other, "load", "-q", layout)
        command = [sys.executable, "-m", "pullpipe", "--root", str(other), "save", "--format", form]
        command += ["-o", str(tmp_path / "two"), *reversed(names), names[0]]
        subprocess.run(command, cwd=PROJECT, check=True, umask=0o077, capture_output=True)
        if form == "oci-dir":
            assert files(tmp_path / "one") == files(tmp_path / "two")
        else:
            assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()

    def test_a_file_is_replaced(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """Also by way of a link, which stays one."""
        (tmp_path / "file").write_text("old")
        (tmp_path / "link").symlink_to("file")
        ok(cli, "save", "-o", tmp_path / "link", image)
        assert (tmp_path / "link").is_symlink()
        assert "manifest.json" in members(tmp_path / "file")

    def test_a_pipe(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """What is no file is written to: `-o >(gzip > saved.gz)`, `-o /dev/stdout`; and a device stays one."""
        os.mkfifo(tmp_path / "pipe")
        reader = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
        ok(cli, "save", "-o", tmp_path / "pipe", image)
        assert "manifest.json" in members(os.read(reader, 1 << 20))
        os.close(reader)
        assert (tmp_path / "pipe").is_fifo()
        null = tmp_path / "null"
        os.mknod(null, 0o20666, os.makedev(1, 3))
        ok(cli, "save", "-o", null, image)
        assert null.is_char_device()

    def test_a_reader_that_has_seen_enough(self, image: str, store_root: Path) -> None:
        """Ends it as it ends `cat`: no message."""
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "pullpipe", "--root", str(store_root), "save", "-q", image]
        done = subprocess.run(command, cwd=PROJECT, stdout=writer, stderr=subprocess.PIPE, timeout=60)
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, b"")

    @pytest.mark.parametrize("where", ["nowhere/file", "file/below", "directory", "/proc/file"])
    def test_where_none_can_be(self, cli: Cli, image: str, tmp_path: Path, where: str) -> None:
        """The line names it, and the option that names another one."""
        (tmp_path / "file").touch()
        (tmp_path / "directory").mkdir()
        line = fails(cli, "save", "-q", "-o", tmp_path / where, image)
        assert str(tmp_path / where) in line
        assert "--output" in line or "--format oci-dir" in line


class TestFailures:
    """One line, exit code 1, and what was there before."""

    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("what", ["layer", "config"])
    def test_a_damaged_blob(
        self, cli: Cli, image: str, layout: Path, store_root: Path, tmp_path: Path, form: str, what: str
    ) -> None:
        """Every byte is proven before anything of it is called whole."""
        if what == "layer":
            digest = layers_of(layout)[1]["digest"]
        else:
            digest = document(layout, digest_of(layout))["config"]["digest"]
        path = blob_path(store_root, digest)
        data = bytearray(path.read_bytes())
        data[5] ^= 1  # in the gzip header's time: what it inflates to stays the same
        path.write_bytes(data)
        target = self.target(tmp_path, form)
        before = saved(target) if form == "oci-dir" else target.read_bytes()
        line = fails(cli, "save", "-q", "--format", form, "-o", target, image)
        assert digest in line
        assert "damaged" in line
        assert (saved(target) if form == "oci-dir" else target.read_bytes()) == before
        assert os.listdir(target.parent) == [target.name]
        assert "damaged" in fails(cli, "save", "-q", "--format", form, "-o", tmp_path / "new", image)
        assert not (tmp_path / "new").exists()
        if form != "oci-dir":
            done = save_to_stdout(store_root, "-q", "--format", form, image)
            assert done.returncode == 1
            assert digest.encode() in done.stderr

    @staticmethod
    def target(tmp_path: Path, form: str) -> Path:
        """An old file, or a layout with another image, in a directory of its own."""
        (tmp_path / "place").mkdir()
        target = tmp_path / "place" / "target"
        if form == "oci-dir":
            return layout_of(target, file_layer("other"))
        target.write_text("old")
        return target

    @pytest.mark.parametrize("form", FORMATS)
    def test_a_layer_that_inflates_to_something_else(
        self, cli: Cli, image: str, layout: Path, store_root: Path, tmp_path: Path, form: str
    ) -> None:
        """Or not at all."""
        digest = layers_of(layout)[0]["digest"]
        for data in (UPPER.blob, LOWER.blob[:-9], LOWER.blob[:10] + b"\xff" * 99, b"", LOWER.blob + b"\0"):
            blob_path(store_root, digest).write_bytes(data)
            assert digest in fails(cli, "save", "-q", "--format", form, "-o", tmp_path / "saved", image)
            assert not (tmp_path / "saved").exists()

    def test_an_image_that_is_not_what_it_says(self, cli: Cli, store_root: Path, tmp_path: Path) -> None:
        """All its digests are right, but for a layer's diffID: whoever made that store, no such archive is written."""
        ok(cli, "images")
        wrong = Image([Claimed(LOWER.entries)])
        [descriptor] = write_layout(tmp_path / "layout", {"a.b/c:1": wrong}).values()
        shutil.copytree(tmp_path / "layout" / "blobs", store_root / "blobs", dirs_exist_ok=True)
        record = {**descriptor, "platform": wrong.platform_fields}
        record["annotations"] = {REF_NAME: "a.b/c:1", "dev.pullpipe.resolved": descriptor["digest"]}
        (store_root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [record]}))
        assert hex_of(LOWER.blob) in fails(cli, "save", "-q", "-o", tmp_path / "saved", "a.b/c:1")
        assert not (tmp_path / "saved").exists()

    @pytest.mark.parametrize("form", FORMATS)
    def test_blobs_that_were_not_kept(self, cli: Cli, layout: Path, tmp_path: Path, form: str) -> None:
        """The line says which, and how to get it: from where it came, or by an image that does without."""
        ok(cli, "load", "-q", "--discard-blobs", "-t", "a.b/c:1", layout)
        ok(cli, "load", "-q", "--discard-blobs", "-t", "a.b/d:1", layout_of(tmp_path / "upper", UPPER))
        line = fails(cli, "save", "-q", "--format", form, "-o", tmp_path / "saved", "a.b/d:1")
        assert f"not kept blob sha256:{hex_of(UPPER.blob)} of a.b/d:1" in line
        assert (
            "load that image again, or make an image that does without it by `pullpipe squash -t NEW a.b/d:1`" in line
        )
        assert not (tmp_path / "saved").exists()
        ok(cli, "squash", "-q", "-t", "a.b/e:1", "a.b/d:1")
        ok(cli, "save", "-q", "--format", form, "-o", tmp_path / "squashed", "a.b/e:1")
        ok(cli, "load", "-q", "-t", "a.b/d:1", tmp_path / "upper")
        ok(cli, "save", "-q", "--format", form, "-o", tmp_path / "saved", "a.b/d:1")

    def test_no_such_image(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """Nothing of the others is written."""
        assert "pullpipe pull" in fails(cli, "save", "-q", "-o", tmp_path / "saved", image, "other")
        assert "lower case" in fails(cli, "save", "-q", "-o", tmp_path / "saved", image, "Other")
        assert not (tmp_path / "saved").exists()

    @pytest.mark.parametrize("form", FORMATS)
    def test_a_full_disk(self, cli: Cli, tmp_path: Path, form: str) -> None:
        """What was there stays, and there is as much room as before."""
        large = Layer([File("large", os.urandom(3 << 20))], None)
        ok(cli, "load", "-q", "-t", "large:1", layout_of(tmp_path / "layout", LOWER, large))
        with tmpfs(tmp_path / "small", "size=2m") as small:
            target = self.target(small, form)
            before = files(small)
            free = os.statvfs(small).f_bfree
            line = fails(cli, "save", "-q", "--format", form, "-o", target, "large:1")
            assert "no space left" in line
            assert "--output" in line
            assert files(small) == before
            assert os.statvfs(small).f_bfree == free
            fails(cli, "save", "-q", "--format", form, "-o", small / "new", "large:1")
            assert os.listdir(small) == ["place"]

    def test_a_full_disk_below_the_store(self, cli: Cli, store_root: Path, tmp_path: Path) -> None:
        """Where layers for a Docker archive are inflated: the line says that it is the store's."""
        with tmpfs(store_root, "size=5m"):
            zeros = Layer([File("zeros", bytes(3 << 20))])
            ok(cli, "load", "-q", "-t", "large:1", layout_of(tmp_path / "layout", zeros))
            line = fails(cli, "save", "-q", "-o", tmp_path / "saved", "large:1")
            assert "no space left" in line
            assert "--root" in line
            assert not (tmp_path / "saved").exists()
            ok(cli, "save", "-q", "--format", "oci-archive", "-o", tmp_path / "saved", "large:1")

    def test_a_full_device(self, image: str, store_root: Path) -> None:
        with open("/dev/full", "wb") as full:
            command = [sys.executable, "-m", "pullpipe", "--root", str(store_root), "save", "-q", image]
            done = subprocess.run(command, cwd=PROJECT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert "standard output: no space left" in line

    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_a_signal(self, image: str, store_root: Path, tmp_path: Path, form: str, number: signal.Signals) -> None:
        """Nothing half written stays."""
        target = self.target(tmp_path, form)
        before = files(target.parent)
        written: list[Call] = []

        def signalling(call: Call, main: int) -> int:
            if call.name in ("write", "writev", "sendfile", "copy_file_range") and not written:
                written.append(call)
                os.kill(main, number)
            return 0

        words = command(store_root, "save", "-q", "--format", form, "-o", str(target), image)
        done = supervised(words, [target.parent], signalling)
        assert written
        assert (done.code, done.said) == (-number if number == signal.SIGKILL else 128 + number, "")
        if number == signal.SIGKILL and form == "oci-dir":  # blobs that nothing names yet, each of them whole
            assert not [name for _, _, names in os.walk(target) for name in names if name.startswith(".")]
        else:
            assert files(target.parent) == before

    @pytest.mark.parametrize("form", FORMATS)
    def test_where_files_must_have_names(
        self, cli: Cli, image: str, layout: Path, store_root: Path, tmp_path: Path, form: str
    ) -> None:
        """As with many a file system in user space: what fails leaves nothing, and what goes well is whole."""
        require("fuse-overlayfs")
        if not os.access("/dev/fuse", os.W_OK):
            pytest.skip("the kernel has no FUSE here")
        for name in ("lower", "upper", "work", "mount"):
            (tmp_path / name).mkdir()
        places = ",".join(f"{name}dir={tmp_path / name}" for name in ("lower", "upper", "work"))
        subprocess.run(["fuse-overlayfs", "-o", places, tmp_path / "mount"], check=True)
        try:
            with pytest.raises(OSError, match="not supported"):
                os.open(tmp_path / "mount", os.O_TMPFILE | os.O_WRONLY)
            target = tmp_path / "mount" / "saved"
            blob = blob_path(store_root, layers_of(layout)[0]["digest"])
            data = blob.read_bytes()
            blob.write_bytes(bytes(len(data)))
            assert "damaged" in fails(cli, "save", "-q", "--format", form, "-o", target, image)
            assert os.listdir(target.parent) == []
            blob.write_bytes(data)
            ok(cli, "save", "-q", "--format", form, "-o", target, image)
            ok(cli, "save", "-q", "--format", form, "-o", tmp_path / "elsewhere", image)
            assert os.listdir(target.parent) == ["saved"]
            assert saved(target) == saved(tmp_path / "elsewhere")
        finally:
            subprocess.run(["umount", tmp_path / "mount"], check=True)


@pytest.mark.parametrize("form", FORMATS)
def test_imports(cli: Cli, image: str, tmp_path: Path, form: str) -> None:
    """Nothing heavy that it has no use for."""
    done = cli("save", "--format", form, "-o", tmp_path / "saved", image, env={"PYTHONPROFILEIMPORTTIME": "1"})
    imported = {row.rpartition("|")[2].strip() for row in done.stderr.split("\n") if row.startswith("import time:")}
    assert "pullpipe.transports.outputs" in imported
    assert not {"aiohttp", "aiofiles", "asyncio", "tqdm", "ssl"} & imported

"""`pullpipe load`: images from layouts and archives, however they are wrapped and named."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from store import Store
from tests.cli.rig import answer, digest_of, fails, file_layer, layers_of, layout_of, mounted_tree, ok
from tests.conftest import PROJECT, Cli, require
from tests.support.documents import Layout
from tests.support.images import HOST_PLATFORM, Compression, File, Image, Layer, write_docker_archive, write_layout

pytestmark = pytest.mark.needs_root

Refused = Callable[[Path], str]
TREE = {b".", b"lower", b"upper"}


def tar_of(directory: Path) -> Path:
    """An archive of what is in the directory."""
    path = directory.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        archive.add(directory, ".")
    return path


def docker_archive(path: Path, tag: str = "a/b:1", compression: Compression = None) -> Path:
    layers = [Layer(file_layer(name).entries, compression) for name in ("lower", "upper")]
    write_docker_archive(path, Image(layers, {"Cmd": ["/bin/sh"]}), tag)
    return path


def load_from_stdin(root: Path, data: bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "pullpipe", "--root", str(root), "load", "-q", *options, "-"]
    return subprocess.run(command, cwd=PROJECT, input=data, capture_output=True, timeout=60)


class TestLayout:
    def test_directory(self, cli: Cli, layout: Path, tmp_path: Path) -> None:
        """Digests stay as they are; a bare tag goes with the directory's name."""
        assert ok(cli, "load", layout) == "docker.io/library/layout:image"
        [image] = answer(cli, "images", "--format", "json")
        assert image["digest"] == digest_of(layout)
        assert mounted_tree(cli, "layout:image", tmp_path / "m").keys() == TREE

    @pytest.mark.parametrize("name", ["name:2", "localhost:5000/a/b:c"])
    def test_tag(self, cli: Cli, layout: Path, name: str) -> None:
        """-t names it, as a reference in full."""
        whole = name if "/" in name else f"docker.io/library/{name}"
        assert ok(cli, "load", "-t", name, layout) == whole
        assert [image["reference"] for image in answer(cli, "images", "--format", "json")] == [whole]

    def test_again(self, cli: Cli, image: str, layout: Path) -> None:
        """Nothing changes."""
        before = answer(cli, "inspect", image)
        ok(cli, "load", "-t", image, layout)
        assert answer(cli, "inspect", image) == before

    @pytest.mark.parametrize("wrapping", ["plain", "gzip", "zstd"])
    def test_archive(self, cli: Cli, layout: Path, tmp_path: Path, wrapping: str) -> None:
        path = tar_of(layout)
        if wrapping == "gzip":
            path.write_bytes(gzip.compress(path.read_bytes()))
        elif wrapping == "zstd":
            path.write_bytes(zstandard.compress(path.read_bytes()))
        assert ok(cli, "load", path) == "docker.io/library/layout:image"
        assert mounted_tree(cli, "layout:image", tmp_path / "m").keys() == TREE

    def test_archive_that_skopeo_wrote(self, cli: Cli, layout: Path, tmp_path: Path) -> None:
        path = tmp_path / "skopeo.tar"
        copy = [require("skopeo"), "copy", "-q", "--insecure-policy", f"oci:{layout}:image"]
        subprocess.run([*copy, f"oci-archive:{path}:a.b/c:1"], check=True)
        assert ok(cli, "load", path) == "a.b/c:1"
        assert mounted_tree(cli, "a.b/c:1", tmp_path / "m").keys() == TREE

    def test_several_images(self, cli: Cli, tmp_path: Path) -> None:
        """All of them, each under its name; one name cannot serve two."""
        images = {"a.b/one:1": Image([file_layer("one")]), "two": Image([file_layer("two")])}
        write_layout(tmp_path / "both", images)
        assert "2 images" in fails(cli, "load", "-t", "name", tmp_path / "both")
        assert answer(cli, "images", "--format", "json") == []
        assert ok(cli, "load", tmp_path / "both").split() == ["a.b/one:1", "docker.io/library/both:two"]
        assert mounted_tree(cli, "both:two", tmp_path / "m").keys() == {b".", b"two"}

    def test_platforms(self, cli: Cli, tmp_path: Path) -> None:
        """An index in the layout: this machine's image, or the one that is asked for."""
        images = [Image([file_layer(name.replace("/", "-"))], platform=name) for name in ("linux/s390x", HOST_PLATFORM)]
        write_layout(tmp_path / "many", {"many": images})
        ok(cli, "load", "-t", "many:1", tmp_path / "many")
        assert answer(cli, "inspect", "many:1")["config"]["architecture"] == HOST_PLATFORM.split("/")[1]
        ok(cli, "load", "-t", "many:1", "--platform", "linux/s390x", tmp_path / "many")
        assert answer(cli, "inspect", "many:1")["config"]["architecture"] == "s390x"
        assert mounted_tree(cli, "many:1", tmp_path / "m").keys() == {b".", b"linux-s390x"}
        assert "linux/s390x" in fails(cli, "load", "-q", "-t", "x", "--platform", "linux/386", tmp_path / "many")

    def test_shared_image(self, cli: Cli, shared_images: Path) -> None:
        assert ok(cli, "load", shared_images / "busybox") == "docker.io/library/busybox:busybox"

    @pytest.mark.parametrize("options", [["--discard-blobs"], ["--durability", "none"], ["--jobs", "1"]])
    def test_options(self, cli: Cli, layout: Path, store_root: Path, tmp_path: Path, options: list[str]) -> None:
        """The same as pull's."""
        ok(cli, "load", "-q", *options, "-t", "a:1", layout)
        assert mounted_tree(cli, "a:1", tmp_path / "m").keys() == TREE
        layer = layers_of(layout)[0]["digest"].replace(":", "/")
        assert (store_root / "blobs" / layer).exists() == ("--discard-blobs" not in options)


class TestDockerArchive:
    @pytest.mark.parametrize("compression", [None, "gzip"])
    @pytest.mark.parametrize("wrapping", ["plain", "gzip"])
    def test_file(self, cli: Cli, tmp_path: Path, compression: Compression, wrapping: str) -> None:
        """In the form of `docker save` and of download-frozen-image.sh, written by us; compressed as a whole or not."""
        path = docker_archive(tmp_path / "saved.tar", compression=compression)
        if wrapping == "gzip":
            path.write_bytes(gzip.compress(path.read_bytes()))
        assert ok(cli, "load", path) == "docker.io/a/b:1"
        assert mounted_tree(cli, "a/b:1", tmp_path / "m").keys() == TREE
        assert answer(cli, "inspect", "a/b:1")["config"]["config"]["Cmd"] == ["/bin/sh"]

    @pytest.mark.parametrize("wrapping", ["plain", "gzip"])
    def test_stdin(self, cli: Cli, store_root: Path, tmp_path: Path, wrapping: str) -> None:
        """`docker save a/b:1 | pullpipe load -`"""
        data = docker_archive(tmp_path / "saved.tar").read_bytes()
        done = load_from_stdin(store_root, gzip.compress(data) if wrapping == "gzip" else data)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"docker.io/a/b:1\n", b"")
        assert mounted_tree(cli, "a/b:1", tmp_path / "m").keys() == TREE

    def test_stdin_with_a_name(self, store_root: Path, layout: Path) -> None:
        """A stream has no file name that a bare tag could go with: -t gives it one."""
        data = tar_of(layout).read_bytes()
        done = load_from_stdin(store_root, data, "-t", "named:1")
        assert (done.returncode, done.stdout) == (0, b"docker.io/library/named:1\n"), done.stderr

    def test_the_same_layer_twice(self, cli: Cli, tmp_path: Path) -> None:
        """Written by Docker as a link to its first copy."""
        layers = [Layer(file_layer(name).entries, None) for name in ("a", "b", "a")]
        write_docker_archive(tmp_path / "twice.tar", Image(layers), "twice:1")
        ok(cli, "load", tmp_path / "twice.tar")
        assert mounted_tree(cli, "twice:1", tmp_path / "m").keys() == {b".", b"a", b"b"}

    @pytest.mark.parametrize("options", [[], ["--discard-blobs"]])
    def test_of_layers_that_are_here(self, cli: Cli, image: str, tmp_path: Path, options: list[str]) -> None:
        """Its blobs are others, and kept, unless that is not wanted: so what is loaded can be handed on as it is."""
        ok(cli, "save", "-q", "-o", tmp_path / "saved.tar", image)
        for _ in range(2):
            ok(cli, "load", "-q", *options, "-t", "again:1", tmp_path / "saved.tar")
        blobs = [layer["digest"] for layer in answer(cli, "inspect", "again:1")["manifest"]["layers"]]
        assert blobs == answer(cli, "inspect", "again:1")["config"]["rootfs"]["diff_ids"]
        save = ["save", "-q", "--format", "oci-dir", "-o", str(tmp_path / "out"), "again:1"]
        if options:
            assert f"has not kept blob {min(blobs)}" in fails(cli, *save)
            ok(cli, "load", "-q", "-t", "again:1", tmp_path / "saved.tar")
        ok(cli, *save)
        assert mounted_tree(cli, "again:1", tmp_path / "m").keys() == TREE

    def test_that_skopeo_wrote(self, cli: Cli, layout: Path, tmp_path: Path) -> None:
        path = tmp_path / "skopeo.tar"
        copy = [require("skopeo"), "copy", "-q", "--insecure-policy", f"oci:{layout}:image"]
        subprocess.run([*copy, f"docker-archive:{path}:a.b/c:1"], check=True)
        assert ok(cli, "load", path) == "a.b/c:1"
        assert mounted_tree(cli, "a.b/c:1", tmp_path / "m").keys() == TREE

    def test_shares_layers_with_a_layout(self, cli: Cli, image: str, tmp_path: Path, store_root: Path) -> None:
        """The same layers uncompressed: nothing is unpacked again."""
        ok(cli, "load", docker_archive(tmp_path / "saved.tar"))
        assert len(list((store_root / "layers" / "sha256").iterdir())) == 2


class TestBad:
    """One line on stderr, exit code 1, and nothing in the store."""

    @pytest.fixture
    def refused(self, cli: Cli, store_root: Path) -> Refused:
        def refused(path: Path) -> str:
            line = fails(cli, "load", "-q", "-t", "bad:1", path)
            assert list(Store(str(store_root)).images) == []
            return line

        return refused

    @pytest.mark.parametrize("content", [b"", b"text", b"\0" * 10_240, b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd\x00"])
    def test_no_archive(self, refused: Refused, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "file").write_bytes(content)
        refused(tmp_path / "file")

    def test_nowhere(self, refused: Refused, tmp_path: Path) -> None:
        """The error names the file."""
        assert "nowhere" in refused(tmp_path / "nowhere")

    def test_some_other_archive(self, refused: Refused, tmp_path: Path) -> None:
        """Neither layout nor Docker's."""
        (tmp_path / "other.tar").write_bytes(file_layer("file").tar)
        assert "index.json" in refused(tmp_path / "other.tar")
        (tmp_path / "empty").mkdir()
        assert "index.json" in refused(tmp_path / "empty")

    @pytest.mark.parametrize("wrapping", ["plain", "gzip"])
    def test_cut_short(self, refused: Refused, layout: Path, wrapping: str) -> None:
        path = tar_of(layout)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if wrapping == "plain" else gzip.compress(data)[:-20])
        refused(path)

    @pytest.mark.parametrize(("length", "why"), [(700, ""), (5000, "archive is truncated: 5512 more bytes")])
    def test_a_docker_archive_with_a_layer_cut_short(
        self, refused: Refused, tmp_path: Path, length: int, why: str
    ) -> None:
        """By whoever made the archive, which is whole; nobody is lying, nor can push it anew."""
        image = Image([Layer([File("file", b"x"), File("large", bytes(8976))], None)])
        manifest = json.dumps([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l"]}])
        layer = image.layers[0].blob[:length]
        files = [File("manifest.json", manifest.encode()), File("c.json", image.config_blob), File("l", layer)]
        (tmp_path / "bad.tar").write_bytes(Layer(files, None).tar)
        line = refused(tmp_path / "bad.tar")
        assert "ends too early, where it is loaded from" in line
        assert why in line

    def test_a_missing_blob(self, refused: Refused, layout: Path) -> None:
        """The error names it."""
        digest = layers_of(layout)[1]["digest"]
        (layout / "blobs" / digest.replace(":", "/")).unlink()
        assert digest in refused(layout)

    def test_a_damaged_blob(self, refused: Refused, layout: Path, store_root: Path) -> None:
        """Layers are proven from wherever they come, and nothing wrong is kept."""
        digest = layers_of(layout)[1]["digest"]
        path = layout / "blobs" / digest.replace(":", "/")
        data = path.read_bytes()
        path.write_bytes(data[:4] + b"\1" + data[5:])
        line = refused(layout)
        assert digest in line
        assert "damaged, or ends too early, where it is loaded from" in line
        assert not (store_root / "blobs" / digest.replace(":", "/")).exists()
        assert not list((store_root / "ingest").glob(f"*{digest[7:]}*"))

    @pytest.mark.parametrize("blob", [file_layer("upper").blob[:-12], file_layer("other").blob], ids=["cut", "other"])
    def test_a_blob_that_is_not_the_layer_that_is_here(
        self, cli: Cli, image: str, store_root: Path, tmp_path: Path, blob: bytes
    ) -> None:
        """It would be taken for the layer by whoever checks or mends that. All its bytes are as the manifest says."""
        layout = Layout(tmp_path / "mistaken")
        upper = file_layer("upper")
        mistaken = layout.blob(blob, upper.media_type)
        layout.tag(layout.document(layout.manifest(Image([upper]), layers=[mistaken])))
        assert mistaken["digest"] in fails(cli, "load", "-q", layout.path)
        assert not (store_root / "blobs" / mistaken["digest"].replace(":", "/")).exists()
        assert [one["reference"] for one in answer(cli, "images", "--format", "json")] == [image]

    def test_a_blob_that_is_one_layer_and_not_another(self, cli: Cli, image: str, tmp_path: Path) -> None:
        """One of the two is new, the other one is here."""
        layout = Layout(tmp_path / "mistaken")
        new, upper = file_layer("new"), file_layer("upper")
        blob = layout.blob(new.blob, new.media_type)
        layout.tag(layout.document(layout.manifest(Image([new, upper]), layers=[blob, blob])))
        assert f"unpacks to diffID {new.diff_id}" in fails(cli, "load", "-q", layout.path)
        assert [one["reference"] for one in answer(cli, "images", "--format", "json")] == [image]

    def test_a_damaged_manifest(self, refused: Refused, layout: Path) -> None:
        path = layout / "blobs" / digest_of(layout).replace(":", "/")
        path.write_bytes(path.read_bytes() + b"\n")
        assert "damaged" in refused(layout)

    @pytest.mark.parametrize("wrong", [-1, 1])
    @pytest.mark.parametrize("here", [False, True])
    def test_a_manifest_of_another_size(self, cli: Cli, layout: Path, wrong: int, here: bool) -> None:
        """Than the layout's index says; also where the store has it, and need not read it."""
        if here:
            ok(cli, "load", "-q", "-t", "image:1", layout)
        path = layout / "index.json"
        index = json.loads(path.read_text())
        size = index["manifests"][0]["size"]
        index["manifests"][0]["size"] += wrong
        path.write_text(json.dumps(index))
        line = fails(cli, "load", "-q", "-t", "bad:1", layout)
        assert f"{digest_of(layout)} has {size} bytes, and its index.json says {size + wrong}" in line

    @pytest.mark.parametrize("index", ["", "{", "[]", "{}", '{"schemaVersion": 2, "manifests": [{}]}'])
    def test_a_damaged_index(self, refused: Refused, layout: Path, index: str) -> None:
        (layout / "index.json").write_text(index)
        refused(layout)

    def test_an_empty_index(self, cli: Cli, refused: Refused, layout: Path) -> None:
        (layout / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
        refused(layout)
        assert "no image" in fails(cli, "load", layout)

    @pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "config/../../outside"])
    def test_a_docker_archive_that_reaches_out(self, refused: Refused, tmp_path: Path, name: str) -> None:
        """Names lead into the archive, never to the machine's own files."""
        (tmp_path / "outside").write_text("{}")
        (tmp_path / "saved").mkdir()
        (tmp_path / "saved" / "manifest.json").write_text(json.dumps([{"Config": name, "Layers": [], "RepoTags": []}]))
        assert "no file" in refused(tmp_path / "saved")
        assert "no file" in refused(tar_of(tmp_path / "saved"))

    def test_a_layout_whose_blob_is_a_link_out(self, refused: Refused, layout: Path, tmp_path: Path) -> None:
        """A directory that somebody else made must not show the machine's files."""
        path = layout / "blobs" / layers_of(layout)[0]["digest"].replace(":", "/")
        path.rename(tmp_path / "outside")
        path.symlink_to(tmp_path / "outside")
        refused(layout)

    @pytest.mark.parametrize(
        "manifest",
        ["", "{}", "[1]", "[{}]", '[{"Config": "c"}]', '[{"Config": "c", "Layers": 1}]', "null", '[{"RepoTags": 1}]'],
    )
    def test_a_damaged_docker_archive(self, refused: Refused, tmp_path: Path, manifest: str) -> None:
        path = tmp_path / "bad.tar"
        path.write_bytes(Layer([File("manifest.json", manifest.encode())], None).tar)
        refused(path)

    @pytest.mark.parametrize("tags", [[5], "ab", {"a": 1}])
    def test_names_that_are_none(self, cli: Cli, tmp_path: Path, tags: object) -> None:
        manifest = json.dumps([{"Config": "c.json", "RepoTags": tags, "Layers": []}])
        (tmp_path / "bad.tar").write_bytes(Layer([File("manifest.json", manifest.encode())], None).tar)
        assert "manifest.json is not a Docker archive's" in fails(cli, "load", "-q", tmp_path / "bad.tar")

    def test_another_number_of_layers_than_the_config_has(self, refused: Refused, tmp_path: Path) -> None:
        image = Image([file_layer("a"), file_layer("b")])
        manifest = json.dumps([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l"]}])
        files = [File("manifest.json", manifest.encode()), File("c.json", image.config_blob), File("l", b"")]
        (tmp_path / "bad.tar").write_bytes(Layer(files, None).tar)
        assert "1 layers" in refused(tmp_path / "bad.tar")

    def test_a_name_whose_digest_is_another(self, cli: Cli, layout: Path, tmp_path: Path) -> None:
        """Whoever runs it by such a name relies on it: the line tells the option that gives it another one."""
        mine, claimed = digest_of(layout), "sha256:" + 64 * "0"
        line = fails(cli, "load", "-q", "-t", f"a.b/c:1@{claimed}", layout)
        assert claimed in line
        assert mine in line
        assert "--tag" in line
        path = layout / "index.json"
        index = json.loads(path.read_text())
        index["manifests"][0]["annotations"] = {"io.containerd.image.name": f"a.b/c@{claimed}"}
        path.write_text(json.dumps(index))
        assert claimed in fails(cli, "load", "-q", layout)
        archive = docker_archive(tmp_path / "saved.tar")
        assert "--tag" in fails(cli, "load", "-q", "-t", f"a.b/c@{mine}", archive)
        assert answer(cli, "images", "--format", "json") == []
        assert ok(cli, "load", "-q", "-t", f"a.b/c@{mine}", layout) == f"a.b/c@{mine}"

    def test_a_stream_without_a_name(self, store_root: Path, layout: Path) -> None:
        """The error tells the option that gives it one."""
        path = layout / "index.json"
        index = json.loads(path.read_text())
        del index["manifests"][0]["annotations"]
        path.write_text(json.dumps(index))
        done = load_from_stdin(store_root, tar_of(layout).read_bytes())
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"--tag" in done.stderr


@pytest.mark.needs_root
def test_where_the_root_is_a_mount_below_another(tmp_path: Path, store_root: Path) -> None:
    """In a chroot that is a mount point, as some build machines have it: paths are meant as they are seen there."""
    layout = layout_of(tmp_path / "layout", file_layer("a"))
    (tmp_path / "root").mkdir()
    script = 'mount --rbind / "$1"; cd "$1"; shift; exec chroot . sh -c \'cd "$1"; shift; exec "$@"\' sh "$@"'
    load = [sys.executable, "-m", "pullpipe", "--root", store_root, "load", "--quiet", "-t", "a:1", layout]
    private = ["unshare", "--mount", "--propagation=private"]
    command = [*private, "sh", "-c", script, "sh", tmp_path / "root", PROJECT, *load]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "docker.io/library/a:1\n"

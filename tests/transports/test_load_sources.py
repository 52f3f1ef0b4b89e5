"""Images on disk: what they are called, and that nothing but the layout's or the archive's own files is read."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from pullpipe.errors import BadArgument, InvalidDocument, InvalidReference, NotFound, PullpipeError, VerificationError
from pullpipe.oci import Descriptor, Manifest, parse_document
from pullpipe.transports import Source
from pullpipe.transports.docker_archive import DockerArchiveSource
from pullpipe.transports.files import Archive, Directory
from pullpipe.transports.layout import LayoutSource
from pullpipe.transports.load import opened
from store import Digest
from tests.conftest import PROJECT, Cli
from tests.pipe.blocks import base256, file, gnu_long, header, joined, octal, pax
from tests.support.images import (
    MANIFEST,
    REF_NAME,
    Compression,
    Entry,
    File,
    Hardlink,
    Image,
    Layer,
    Symlink,
    write_docker_archive,
    write_layout,
)

CONTAINERD_NAME = "io.containerd.image.name"
IMAGE = Image([Layer([File("one", os.urandom(3000))]), Layer([File("two", os.urandom(3000))])], {"Cmd": ["/x"]})


def names(path: Path | str, tmp_path: Path, name: str | None = None) -> list[list[str]]:
    """Under what references each image there would be kept."""
    with opened(str(path), name, spool=str(tmp_path)) as images:
        return [[str(reference) for reference in image.references] for image in images]


def written(path: Path, entries: Sequence[Entry]) -> Path:
    """An uncompressed tar archive."""
    path.write_bytes(Layer(entries, compression=None).tar)
    return path


def archive_of(layout: Path, path: Path) -> Path:
    """The layout as a tar archive."""
    with tarfile.open(path, "w") as archive:
        archive.add(layout, ".")
    return path


def annotate(layout: Path, annotations: Sequence[Mapping[str, str]]) -> None:
    """Gives the entries of the layout's index other annotations."""
    index = json.loads((layout / "index.json").read_bytes())
    for entry, found in zip(index["manifests"], annotations, strict=True):
        entry["annotations"] = found
    (layout / "index.json").write_text(json.dumps(index))


async def everything(source: Source, wanted: str) -> tuple[Manifest, list[bytes]]:
    """An image's manifest, its digest proven, and the bytes of its config and layers as the source gives them."""
    digest = await source.resolve(wanted)
    document = await source.document(wanted)
    assert document.digest == digest
    assert digest.matches(document.data)
    manifest = parse_document(document.data, document.media_type)
    assert isinstance(manifest, Manifest)
    return manifest, [await read(source, one) for one in (manifest.config, *manifest.layers)]


async def read(source: Source, descriptor: Descriptor, offset: int = 0) -> bytes:
    async with source.blob(descriptor, offset) as pieces:
        return b"".join([piece async for piece in pieces])


def loaded(path: Path, tmp_path: Path) -> tuple[Manifest, list[bytes]]:
    """The only image there, with every blob proven by its descriptor."""
    with opened(str(path), None, spool=str(tmp_path)) as images:
        [image] = images
        manifest, blobs = asyncio.run(everything(image.source, image.wanted))
    for descriptor, data in zip((manifest.config, *manifest.layers), blobs, strict=True):
        assert len(data) == descriptor.size
        assert descriptor.digest.matches(data)
    return manifest, blobs


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout in a directory called `name`, with one image tagged `1.0`."""
    write_layout(tmp_path / "name", {"1.0": IMAGE})
    return tmp_path / "name"


class TestNames:
    def test_tag_of_a_layout(self, layout: Path, tmp_path: Path) -> None:
        """The spec's ref.name is a tag; the directory's name, or the archive's, goes before it."""
        expected = [["docker.io/library/name:1.0"]]
        assert names(layout, tmp_path) == expected
        assert names(f"{layout}/", tmp_path) == expected
        assert names(f"{layout}/blobs/..", tmp_path) == expected
        assert names(archive_of(layout, tmp_path / "name.tar"), tmp_path) == expected
        shutil.copy(tmp_path / "name.tar", tmp_path / "other.oci.tar")
        assert names(tmp_path / "other.oci.tar", tmp_path) == [["docker.io/library/other:1.0"]]

    def test_compressed_archive(self, layout: Path, tmp_path: Path) -> None:
        """It is called as it would be uncompressed, and nothing stays in the directory it goes through."""
        plain = archive_of(layout, tmp_path / "plain")
        (tmp_path / "name.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
        (tmp_path / "spool").mkdir()
        with opened(str(tmp_path / "name.tar.gz"), None, spool=str(tmp_path / "spool")) as [image]:
            assert [str(reference) for reference in image.references] == ["docker.io/library/name:1.0"]
            assert len(asyncio.run(everything(image.source, image.wanted))[1]) == 3
            assert os.listdir(tmp_path / "spool") == []
        assert os.listdir(tmp_path / "spool") == []

    @pytest.mark.parametrize(
        ("annotations", "expected"),
        [
            ({REF_NAME: "example.org/team/app:2"}, "example.org/team/app:2"),
            ({REF_NAME: "team/app"}, "docker.io/team/app:latest"),
            ({REF_NAME: "app:2"}, "docker.io/library/app:2"),
            ({REF_NAME: "2", CONTAINERD_NAME: "docker.io/library/app:2"}, "docker.io/library/app:2"),
            ({REF_NAME: "latest"}, "docker.io/library/name:latest"),
            ({REF_NAME: ""}, "docker.io/library/name:latest"),
            ({}, "docker.io/library/name:latest"),
        ],
    )
    def test_annotations(self, layout: Path, tmp_path: Path, annotations: Mapping[str, str], expected: str) -> None:
        """A whole reference counts as it is, containerd's before the spec's; without any the place gives the name."""
        annotate(layout, [annotations])
        assert names(layout, tmp_path) == [[expected]]

    def test_several_images(self, tmp_path: Path) -> None:
        """Each by its own name; one name given by the user cannot serve them all."""
        write_layout(tmp_path / "name", {"1": IMAGE, "2": IMAGE})
        assert names(tmp_path / "name", tmp_path) == [["docker.io/library/name:1"], ["docker.io/library/name:2"]]
        with pytest.raises(BadArgument, match=r"2 images .* leave --tag away"):
            names(tmp_path / "name", tmp_path, "mine:1")

    def test_name_given(self, layout: Path, tmp_path: Path) -> None:
        """The user's word is the last."""
        assert names(layout, tmp_path, "mine:1") == [["docker.io/library/mine:1"]]
        with pytest.raises(InvalidReference):
            names(layout, tmp_path, "Mine")

    def test_docker_archive(self, tmp_path: Path) -> None:
        """Its tags, all of them; without one, the file's name."""
        write_docker_archive(tmp_path / "file.tar", IMAGE, "example.org/app:1")
        assert names(tmp_path / "file.tar", tmp_path) == [["example.org/app:1"]]
        entries = [File("c", b"{}")]
        for tags, expected in (
            (["a:1", "b:2"], ["docker.io/library/a:1", "docker.io/library/b:2"]),
            ([], ["docker.io/library/file:latest"]),
            (None, ["docker.io/library/file:latest"]),
        ):
            text = json.dumps([{"Config": "c", "RepoTags": tags, "Layers": []}])
            written(tmp_path / "file.tar", [*entries, File("manifest.json", text.encode())])
            assert names(tmp_path / "file.tar", tmp_path) == [expected]

    def test_layout_and_docker_archive_at_once(self, layout: Path, tmp_path: Path) -> None:
        """What `docker save` writes today is both; the layout says more."""
        (layout / "manifest.json").write_text(json.dumps([{"Config": "c", "RepoTags": ["other:1"], "Layers": []}]))
        assert names(layout, tmp_path) == [["docker.io/library/name:1.0"]]

    def test_place_that_cannot_be_a_name(self, layout: Path, tmp_path: Path) -> None:
        """The line says what to do about it: the user never typed that name."""
        for bad in ("Upper", "a b", "_"):
            layout.rename(tmp_path / bad)
            with pytest.raises(PullpipeError, match="--tag"):
                names(tmp_path / bad, tmp_path)
            assert names(tmp_path / bad, tmp_path, "mine") == [["docker.io/library/mine:latest"]]
            (tmp_path / bad).rename(layout)

    @pytest.mark.needs_root
    def test_printed(self, cli: Cli, layout: Path) -> None:
        """`load` prints the names that it gave, and `images` knows the images by them."""
        done = cli("load", "-q", layout)
        assert (done.returncode, done.stdout) == (0, "docker.io/library/name:1.0\n"), done.stderr
        [image] = json.loads(cli("images", "--format", "json").stdout)
        assert image["reference"] == "docker.io/library/name:1.0"
        assert cli("inspect", "name:1.0").returncode == 0


class TestContents:
    def test_layout(self, layout: Path, tmp_path: Path) -> None:
        """Every byte as it lies there, from a directory and from an archive of it."""
        [entry] = json.loads((layout / "index.json").read_bytes())["manifests"]
        for path in (layout, archive_of(layout, tmp_path / "name.tar")):
            manifest, blobs = loaded(path, tmp_path)
            assert blobs == [IMAGE.config_blob, *(layer.blob for layer in IMAGE.layers)]
            with opened(str(path), None, spool=str(tmp_path)) as [image]:
                assert image.wanted == entry["digest"]
            assert manifest.media_type == MANIFEST

    @pytest.mark.parametrize("compression", ["gzip", None])
    def test_docker_archive(self, tmp_path: Path, compression: Compression) -> None:
        """A plain layer's digest is its diffID; a compressed one's is that of its own bytes, and is calculated."""
        layers = [Layer(layer.entries, compression) for layer in IMAGE.layers]
        write_docker_archive(tmp_path / "a.tar", Image(layers), "a:1")
        manifest, blobs = loaded(tmp_path / "a.tar", tmp_path)
        assert blobs[1:] == [layer.blob for layer in layers]
        assert [one.digest.hex for one in manifest.layers] == [sha256(layer.blob).hexdigest() for layer in layers]
        assert {one.media_type for one in manifest.layers} == {layers[0].media_type}

    def test_the_same_image_has_the_same_digest(self, tmp_path: Path) -> None:
        """The manifest that is made for a Docker archive does not depend on when or where it is made."""
        for name in ("a.tar", "b.tar"):
            write_docker_archive(tmp_path / name, IMAGE, "a:1")
        assert loaded(tmp_path / "a.tar", tmp_path) == loaded(tmp_path / "b.tar", tmp_path)

    def test_docker_archive_as_directory(self, tmp_path: Path) -> None:
        """An archive that was unpacked; what moby's download-frozen-image-v2.sh leaves has the same form."""
        write_docker_archive(tmp_path / "a.tar", IMAGE, "a:1")
        (tmp_path / "a").mkdir()
        subprocess.run(["tar", "-xf", tmp_path / "a.tar", "-C", tmp_path / "a"], check=True)
        assert loaded(tmp_path / "a", tmp_path) == loaded(tmp_path / "a.tar", tmp_path)

    def test_from_the_middle(self, layout: Path, tmp_path: Path) -> None:
        """A blob can be had from any byte on, as a pull that continues wants it."""
        write_docker_archive(tmp_path / "docker.tar", IMAGE, "a:1")
        for path in (layout, archive_of(layout, tmp_path / "name.tar"), tmp_path / "docker.tar"):
            with opened(str(path), None, spool=str(tmp_path)) as [image]:
                manifest, [_, whole, _] = asyncio.run(everything(image.source, image.wanted))
                for offset in (0, 1, 1000, len(whole) - 1, len(whole)):
                    assert asyncio.run(read(image.source, manifest.layers[0], offset)) == whole[offset:]

    def test_layer_that_comes_twice(self, tmp_path: Path) -> None:
        """`docker save` writes the second as a symlink to the first."""
        layer = Layer([File("x", b"data")], compression=None)
        write_docker_archive(tmp_path / "a.tar", Image([layer, layer]), "a:1")
        manifest, blobs = loaded(tmp_path / "a.tar", tmp_path)
        assert blobs[1:] == [layer.blob, layer.blob]
        assert manifest.layers[0] == manifest.layers[1]

    @pytest.mark.parametrize(
        "link",
        [
            Symlink("deep/layer.tar", "../store/data"),
            Symlink("deep/layer.tar", "./../deep/../store/data"),
            Hardlink("deep/layer.tar", "store/data"),
            Hardlink("deep/layer.tar", "./store/data"),
        ],
        ids=["symlink", "untidy symlink", "hard link", "untidy hard link"],
    )
    def test_links_in_an_archive(self, tmp_path: Path, link: Entry) -> None:
        """A symlink's target is relative to its own place, a hard link's to the archive's root."""
        layer = Layer([File("x", b"data")])
        image = Image([layer])
        manifest = [{"Config": "./config", "RepoTags": ["a:1"], "Layers": ["deep/layer.tar"]}]
        entries = [File("./config", image.config_blob), File("store/data", layer.blob), link]
        path = written(tmp_path / "a.tar", [*entries, File("manifest.json", json.dumps(manifest).encode())])
        assert loaded(path, tmp_path)[1] == [image.config_blob, layer.blob]

    @pytest.mark.needs_root
    @pytest.mark.parametrize("compression", ["gzip", None])
    def test_whole_way(self, cli: Cli, tmp_path: Path, compression: Compression) -> None:
        """A Docker archive, loaded and unpacked, has the files of its layers."""
        write_docker_archive(tmp_path / "a.tar", Image([Layer([File("x", b"data")], compression)]), "app:1")
        done = cli("load", "-q", tmp_path / "a.tar")
        assert (done.returncode, done.stdout) == (0, "docker.io/library/app:1\n"), done.stderr
        assert cli("unpack", "-q", "app:1", tmp_path / "out").returncode == 0
        assert (tmp_path / "out" / "x").read_bytes() == b"data"

    @pytest.mark.needs_root
    @pytest.mark.parametrize("compressed", [False, True])
    def test_stream(self, store_root: Path, tmp_path: Path, compressed: bool) -> None:
        """From standard input, which has no name: the image has to have one, or to be given one."""
        write_docker_archive(tmp_path / "a.tar", IMAGE, "app:1")
        data = (tmp_path / "a.tar").read_bytes()
        command = [sys.executable, "-m", "pullpipe", "--root", str(store_root), "load", "-q", "-"]
        stream = gzip.compress(data) if compressed else data
        done = subprocess.run(command, input=stream, cwd=PROJECT, capture_output=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, b"docker.io/library/app:1\n"), done.stderr
        assert not [name for name in os.listdir(store_root) if name.startswith("tmp")]

        text = json.dumps([{"Config": "c", "RepoTags": [], "Layers": []}]).encode()
        stream = written(
            tmp_path / "b.tar", [File("c", Image([]).config_blob), File("manifest.json", text)]
        ).read_bytes()
        done = subprocess.run(command, input=stream, cwd=PROJECT, capture_output=True, timeout=60)
        assert done.returncode == 1
        assert b"--tag" in done.stderr
        named = [*command, "--tag", "mine"]
        done = subprocess.run(named, input=stream, cwd=PROJECT, capture_output=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, b"docker.io/library/mine:latest\n"), done.stderr


class TestEscapes:
    """What lies outside of the layout or the archive is not read, whatever the names in it say."""

    @pytest.fixture
    def secret(self, tmp_path: Path) -> Path:
        (tmp_path / "secret").write_bytes(b"{}")
        return tmp_path / "secret"

    @pytest.mark.parametrize(
        "target", ["../secret", "inside/../../secret", "up/secret", "/etc/hostname"], ids=lambda value: str(value)
    )
    def test_symlink_out_of_a_directory(self, tmp_path: Path, secret: Path, target: str) -> None:
        """Straight, through another symlink, or absolute: it does not exist. One that stays inside does."""
        directory = tmp_path / "layout"
        (directory / "inside").mkdir(parents=True)
        (directory / "up").symlink_to("..")
        (directory / "file").write_text("mine")
        (directory / "link").symlink_to(target)
        (directory / "good").symlink_to("inside/../file")
        files = Directory(str(directory))
        assert files.find("link") is None
        assert files.find(target) is None
        good = files.find("good")
        assert good is not None
        assert good.document() == b"mine"
        assert secret.exists()

    def test_neighbour_with_the_same_beginning(self, tmp_path: Path) -> None:
        """`layout` and `layout-evil` are two places."""
        (tmp_path / "layout").mkdir()
        (tmp_path / "layout-evil").mkdir()
        (tmp_path / "layout-evil" / "file").touch()
        assert Directory(str(tmp_path / "layout")).find("../layout-evil/file") is None

    def test_layout_that_is_reached_by_a_symlink(self, layout: Path, tmp_path: Path) -> None:
        """The user may name it so; it is what the layout itself has inside that may not lead out."""
        (tmp_path / "link").symlink_to(layout)
        assert len(loaded(tmp_path / "link", tmp_path)[1]) == 3

    @pytest.mark.parametrize("what", ["index.json", "blobs", "config"])
    def test_layout_made_of_symlinks(self, layout: Path, tmp_path: Path, what: str) -> None:
        """Not even a good layout elsewhere is read through them."""
        shutil.copytree(layout, tmp_path / "elsewhere")
        name = f"blobs/sha256/{sha256(IMAGE.config_blob).hexdigest()}" if what == "config" else what
        if what == "blobs":
            shutil.rmtree(layout / name)
        else:
            (layout / name).unlink()
        (layout / name).symlink_to(tmp_path / "elsewhere" / name)
        with pytest.raises((NotFound, BadArgument)):
            loaded(layout, tmp_path)

    @pytest.mark.parametrize(
        "name",
        ["../secret", "/secret", "a/../../secret", "..", "/", "", ".", "a\0b", "\ud800", "x" * 5000],
    )
    def test_names_in_a_docker_archive(self, tmp_path: Path, secret: Path, name: str) -> None:
        """Of an archive and of a directory: a config by such a name, or by one that no file can have, does not exist,
        even where one does."""
        text = json.dumps([{"Config": name, "RepoTags": ["a:1"], "Layers": []}]).encode()
        (tmp_path / "directory").mkdir()
        (tmp_path / "directory" / "manifest.json").write_bytes(text)
        path = written(tmp_path / "a.tar", [File("manifest.json", text)])
        for place in (path, tmp_path / "directory"):
            with pytest.raises(NotFound, match=r"manifest\.json names"):
                loaded(place, tmp_path)

    @pytest.mark.parametrize(
        "entries",
        [
            [Symlink("link", "../secret")],
            [Symlink("link", "/etc/hostname")],
            [Hardlink("link", "../secret")],
            [Symlink("link", "link")],
            [Symlink("link", "other"), Symlink("other", "link")],
            [Symlink("link", "nothing")],
            [*(Symlink(f"link{n}", f"link{n + 1}") for n in range(100)), Symlink("link", "link0")],
        ],
        ids=["upward", "absolute", "hard link", "itself", "circle", "dangling", "long"],
    )
    def test_links_of_an_archive(self, tmp_path: Path, secret: Path, entries: Sequence[Entry]) -> None:
        """Out of it, into a circle or into nothing: there is no such file."""
        files = Archive(str(written(tmp_path / "a.tar", [*entries, File("file")])))
        assert files.find("link") is None
        assert files.find("file") is not None
        assert secret.exists()


class TestDamage:
    def test_missing_blob(self, layout: Path, tmp_path: Path) -> None:
        layer = sha256(IMAGE.layers[0].blob).hexdigest()
        (layout / "blobs" / "sha256" / layer).unlink()
        with pytest.raises(NotFound, match=f"{layer}.*incomplete"):
            loaded(layout, tmp_path)

    def test_damaged_manifest(self, layout: Path, tmp_path: Path) -> None:
        [entry] = json.loads((layout / "index.json").read_bytes())["manifests"]
        path = layout / "blobs" / entry["digest"].replace(":", "/")
        path.write_bytes(path.read_bytes() + b"\n")
        with pytest.raises(VerificationError, match=f"{entry['digest']}.*damaged"):
            loaded(layout, tmp_path)

    def test_manifest_of_any_size(self, layout: Path, tmp_path: Path) -> None:
        """A sparse file of a terabyte costs no memory."""
        index = json.loads((layout / "index.json").read_bytes())
        [entry] = index["manifests"]
        os.truncate(layout / "blobs" / entry["digest"].replace(":", "/"), 1 << 40)
        entry["size"] = 1 << 40
        (layout / "index.json").write_text(json.dumps(index))
        with pytest.raises(InvalidDocument, match="limit"):
            loaded(layout, tmp_path)

    @pytest.mark.parametrize(
        "member",
        [
            header(b"a") + header(b"b", size=base256(-512, 12)),
            header(b"a") + header(b"b", size=base256(-1536, 12)),
            pax({b"size": b"-1024"}) + header(),
            pax(b"0" * (1 << 20)) + header(),
            pax({b"comment": b"x"}) * 3000 + header(),
            gnu_long(b"name") * 3000 + header(),
            pax({b"GNU.sparse.map": b"a,b", b"GNU.sparse.size": b"1"}) + header(),
            pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0"}) + file(data=b"zz\nqq\n"),
            header(kind=b"L", size=octal(8 << 30, 12)),
        ],
        ids=["back", "to the start", "back by pax", "zeros", "nested", "long names", "map", "map in data", "huge"],
    )
    def test_hostile_archive(self, tmp_path: Path, member: bytes) -> None:
        """It costs neither time nor memory; the archive is called as the user does."""
        (tmp_path / "a.tar").write_bytes(joined(member))
        with pytest.raises(BadArgument, match=r"a\.tar is not a tar archive, or damaged: at byte \d+ of the archive: "):
            names(tmp_path / "a.tar", tmp_path)

    def test_many_long_names(self, tmp_path: Path) -> None:
        """What is kept in memory has a limit."""
        member = pax({b"path": b"x" * (1000 << 10)}) + header()
        with (tmp_path / "a.tar").open("wb") as archive:
            for _ in range(70):
                archive.write(member)
        with pytest.raises(BadArgument, match="the names in it come to more than"):
            names(tmp_path / "a.tar", tmp_path)

    def test_sparse_file_in_an_archive(self, layout: Path, tmp_path: Path) -> None:
        """Its bytes do not lie in the archive as they are; the line says what made it so."""
        index = layout / "index.json"
        with index.open("ab") as file:
            file.truncate(1 << 20)
        subprocess.run(["tar", "--sparse", "-cf", tmp_path / "a.tar", "-C", layout, "."], check=True)
        with pytest.raises(BadArgument, match=r"a\.tar leaves out holes of '\./index\.json'; make it without --sparse"):
            names(tmp_path / "a.tar", tmp_path)

    @pytest.mark.parametrize("missing", ["config", "layer.tar"])
    def test_missing_member(self, tmp_path: Path, missing: str) -> None:
        """The line says which one, and what wants it."""
        layer = Layer([File("x")])
        image = Image([layer])
        manifest = json.dumps([{"Config": "config", "RepoTags": ["a:1"], "Layers": ["layer.tar"]}]).encode()
        entries = {"config": image.config_blob, "layer.tar": layer.blob, "manifest.json": manifest}
        path = written(tmp_path / "a.tar", [File(name, data) for name, data in entries.items() if name != missing])
        with pytest.raises(NotFound, match=f"no file '{missing}', which its manifest.json names"):
            loaded(path, tmp_path)

    def test_config_of_another_image(self, tmp_path: Path) -> None:
        """It has a diffID too few."""
        manifest = json.dumps([{"Config": "config", "RepoTags": ["a:1"], "Layers": ["x", "x"]}]).encode()
        entries = [File("config", Image([Layer([])]).config_blob), File("x"), File("manifest.json", manifest)]
        with pytest.raises(InvalidDocument, match="2 layers and its config 1"):
            loaded(written(tmp_path / "a.tar", entries), tmp_path)

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"{",
            b"7",
            b"null",
            b"[7]",
            b"[{}]",
            b'[{"Config": "c"}]',
            b'[{"Config": "c", "Layers": 7}]',
            b'[{"Config": "c", "RepoTags": 7, "Layers": []}]',
            b"\xff",
            b"[" * 100_000,
        ],
        ids=lambda text: text[:30].decode(errors="replace") or "empty",
    )
    def test_manifest_json_that_is_none(self, tmp_path: Path, text: bytes) -> None:
        with pytest.raises(InvalidDocument, match=r"manifest\.json is not a Docker archive's"):
            DockerArchiveSource.images(Archive(str(written(tmp_path / "a.tar", [File("manifest.json", text)]))))

    @pytest.mark.parametrize("text", [b"", b"7", b"[]", b"{}", b'{"schemaVersion": 2}', b"\xff", b"[" * 100_000])
    def test_index_json_that_is_none(self, tmp_path: Path, text: bytes) -> None:
        (tmp_path / "index.json").write_bytes(text)
        with pytest.raises(InvalidDocument):
            LayoutSource(Directory(str(tmp_path))).images()

    def test_archive_that_ends_early(self, layout: Path, tmp_path: Path) -> None:
        """At any of its parts: an error, and never a shorter image."""
        (layout / "large").write_bytes(os.urandom(1 << 20))  # more than is read at a time
        whole = archive_of(layout, tmp_path / "whole.tar").read_bytes()
        end = len(whole.rstrip(b"\0"))
        for length in (1, 511, 512, 513, end // 4, end // 2, end - 1):
            (tmp_path / "name.tar").write_bytes(whole[:length])
            with pytest.raises(PullpipeError):
                loaded(tmp_path / "name.tar", tmp_path)

    def test_no_files_but_directories(self, tmp_path: Path) -> None:
        """A directory or a FIFO of the right name is no file, and nobody waits for one."""
        (tmp_path / "index.json").mkdir()
        os.mkfifo(tmp_path / "manifest.json")
        with pytest.raises(BadArgument, match=r"no index\.json, no manifest\.json"):
            names(tmp_path, tmp_path)

    def test_digest_in_place_of_a_path(self, layout: Path) -> None:
        """What a digest looks like is settled before it becomes a path."""
        source = LayoutSource(Directory(str(layout)))
        with pytest.raises(ValueError, match="invalid digest"):
            asyncio.run(source.document("sha256:../../index.json"))
        with pytest.raises(NotFound):
            asyncio.run(source.document(str(Digest("sha256", 64 * "0"))))

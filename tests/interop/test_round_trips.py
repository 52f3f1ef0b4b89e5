"""Registry → pull → save → another program, or another store → back: nothing that an image is made of changes.

A layout keeps every digest; a Docker archive keeps the config's, which is the image's id, and the diffIDs.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zstandard

from pullpipe.cli import main
from tests.cli.rig import digest_of, document, umoci_tree
from tests.conftest import PROJECT, require
from tests.interop.conftest import Podman
from tests.support.images import (
    HOST_PLATFORM,
    INDEX,
    REF_NAME,
    Compression,
    Dir,
    Entry,
    File,
    Hardlink,
    Image,
    Layer,
    Symlink,
    Whiteout,
    write_layout,
)
from tests.support.registry import Registry
from tests.support.tree import Snapshot, difference, snapshot

pytestmark = pytest.mark.needs_root

LAYOUTS = ("oci-archive", "oci-dir")
FORMATS = ("docker-archive", *LAYOUTS)
TIME = 1_700_000_000 * 10**9


def layers(compression: Compression) -> list[Layer]:
    """Two, which no other compression has: the store keeps a layer's blob as it came first."""
    which = str(compression).encode()
    base: list[Entry] = [
        Dir(".", mtime_ns=TIME),
        Dir("etc", mtime_ns=TIME),
        File("etc/large", which + bytes(range(256)) * 3000, 0o640, uid=1, gid=70_000, mtime_ns=TIME),
        Hardlink("etc/hard", "etc/large"),
        Symlink("link", "etc/large", mtime_ns=TIME),
        File("gone", b"gone", mtime_ns=TIME),
        File("attributes", b"x", 0o4755, mtime_ns=TIME, xattrs={"user.one": b"\0\xff"}),
    ]
    change: list[Entry] = [Whiteout("gone"), Dir("etc", 0o750, mtime_ns=TIME), File("etc/new", which, mtime_ns=TIME)]
    return [Layer(base, compression), Layer(change, compression)]


def images() -> dict[str, Image]:
    """By their tags in a layout: `NAME-TAG`."""
    lower, upper = layers("gzip")
    return {
        "gzip-1": Image([lower, upper], {"Cmd": ["/bin/sh"], "Env": ["A=ü"]}),
        "gzip-2": Image([lower, upper], {"Cmd": ["/bin/sh"], "Env": ["A=ü"]}),
        "zstd-1": Image(layers("zstd")),
        "plain-1": Image(layers(None)),
        "twice-1": Image([lower, upper, lower]),
        "none-1": Image([]),
    }


class Facts(NamedTuple):
    """What an image is made of."""

    manifest: str
    blobs: list[str]
    config: str
    diff_ids: list[str]

    def kept_by(self, form: str) -> tuple[object, ...]:
        return (self.config, self.diff_ids) if form == "docker-archive" else tuple(self)


@dataclass(frozen=True)
class Store:
    """A store, and the command line on it, in this process."""

    root: Path

    def __call__(self, *arguments: str | Path) -> str:
        """The command succeeds; what it prints."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(["--root", str(self.root), *map(str, arguments)])
        assert code == 0, err.getvalue()
        return out.getvalue().strip()

    def load(self, path: Path) -> list[str]:
        return self("load", "-q", "--durability=none", path).splitlines()

    def load_stream(self, data: bytes, *options: str) -> list[str]:
        """`… | pullpipe load -`"""
        command = [sys.executable, "-m", "pullpipe", "--root", str(self.root), "load", "-q", *options, "-"]
        done = subprocess.run(command, cwd=PROJECT, input=data, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().splitlines()

    def save(self, form: str, path: Path, *references: str) -> list[str]:
        return self("save", "-q", "--format", form, "-o", path, *references).splitlines()

    def facts(self, reference: str) -> Facts:
        found = json.loads(self("inspect", reference))
        blobs = [layer["digest"] for layer in found["layers"]]
        diff_ids = found["config"]["rootfs"]["diff_ids"]
        return Facts(found["digest"], blobs, found["manifest"]["config"]["digest"], diff_ids)

    def tree(self, reference: str, target: Path) -> Snapshot:
        self("unpack", "-q", reference, target)
        return snapshot(target)


class Pulled(NamedTuple):
    """A store with images from a registry."""

    store: Store
    names: list[str]
    facts: Mapping[str, Facts]
    trees: Mapping[str, Snapshot]


@pytest.fixture(scope="module")
def pulled(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Pulled:
    """All images: two tags of one, one by its digest alone, one with Docker's media types, one out of an index."""
    top = tmp_path_factory.mktemp("trips")
    store = Store(top / "store")
    layout = top / "layout"
    write_layout(layout, images())
    names = [registry.push(layout, tag, to=f"trip/{tag.replace('-', ':')}") for tag in images()]
    names.append(registry.push(layout, "gzip-1", to="trip/docker:1", format="v2s2"))
    names.append(f"{registry.host}/trip/zstd@{digest_of(layout, 'zstd-1')}")
    platforms = [Image(layers("gzip"), platform=name) for name in (HOST_PLATFORM, "linux/s390x")]
    write_layout(top / "index", {"index": platforms})
    names.append(registry.push(top / "index", "index", to="trip/index:1"))
    for name in names:
        store("pull", "-q", "--durability=none", name)
    trees = {name: store.tree(name, top / f"tree-{number}") for number, name in enumerate(names)}
    return Pulled(store, names, {name: store.facts(name) for name in names}, trees)


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """Another store, empty."""
    return Store(tmp_path / "other")


def same(pulled: Pulled, other: Store, name: str, form: str, target: Path) -> None:
    """The image is in the other store what it is in the first."""
    assert other.facts(name).kept_by(form) == pulled.facts[name].kept_by(form)
    assert difference(other.tree(name, target), pulled.trees[name]) == []


def content(path: Path) -> dict[str, bytes]:
    """The files of what was saved."""
    if path.is_dir():
        return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return {"": path.read_bytes()}


def skopeo(*arguments: str) -> None:
    done = subprocess.run(
        [require("skopeo"), "copy", "-q", "--insecure-policy", *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("form", FORMATS)
def test_another_store(pulled: Pulled, other: Store, tmp_path: Path, form: str) -> None:
    """All images in one; and what they are saved as there is the same, byte by byte."""
    names = pulled.store.save(form, tmp_path / "saved", *pulled.names)
    tagged = sorted(name for name in pulled.names if "@" not in name)
    assert sorted(names) == (tagged if form == "docker-archive" else sorted(pulled.names))
    assert sorted(other.load(tmp_path / "saved")) == sorted(names)
    for number, name in enumerate(names):
        same(pulled, other, name, form, tmp_path / f"tree-{number}")
    other.save(form, tmp_path / "again", *names)
    assert content(tmp_path / "again") == content(tmp_path / "saved")


@pytest.mark.parametrize("form", LAYOUTS)
def test_skopeo(pulled: Pulled, other: Store, tmp_path: Path, form: str) -> None:
    """Finds each image of a layout by the name that `save` prints, and copies it as it is; so it comes back."""
    names = pulled.store.save(form, tmp_path / "saved", *pulled.names)
    kind = form.replace("oci-dir", "oci")
    for number, name in enumerate(names):
        copy, back = tmp_path / f"copy-{number}", tmp_path / f"back-{number}"
        if "/docker:" in name:  # one with Docker's media types has to be alone: skopeo does not see its name
            pulled.store.save(form, tmp_path / "alone", name)
            skopeo("--preserve-digests", f"{kind}:{tmp_path / 'alone'}", f"dir:{copy}")
        else:
            skopeo("--preserve-digests", f"{kind}:{tmp_path / 'saved'}:{name}", f"dir:{copy}")
        facts = pulled.facts[name]
        manifest = (copy / "manifest.json").read_bytes()
        assert f"sha256:{sha256(manifest).hexdigest()}" == facts.manifest
        for digest in (facts.config, *facts.blobs):
            assert sha256((copy / digest[7:]).read_bytes()).hexdigest() == digest[7:]
        if "/docker:" in name:
            continue  # skopeo makes an OCI manifest of it when it writes a layout
        skopeo("--preserve-digests", f"dir:{copy}", f"{kind}:{back}:{name}")
        assert other.load(back) == [name]
        same(pulled, other, name, form, tmp_path / f"tree-{number}")


def test_skopeo_and_docker_archives(pulled: Pulled, other: Store, tmp_path: Path) -> None:
    """By its tag, and without one, by its place."""
    for number, name in enumerate(pulled.names):
        saved, back = tmp_path / f"saved-{number}", tmp_path / f"back-{number}"
        [printed] = pulled.store.save("docker-archive", saved, name)
        facts = pulled.facts[name]
        assert printed == (facts.config if "@" in name else name)
        source = "@0" if "@" in name else name
        tag = name.replace("@sha256:", ":")
        skopeo(f"docker-archive:{saved}:{source}", f"docker-archive:{back}:{tag}")
        assert other.load(back) == [tag]
        assert other.facts(tag).kept_by("docker-archive") == facts.kept_by("docker-archive")
        assert difference(other.tree(tag, tmp_path / f"tree-{number}"), pulled.trees[name]) == []


@pytest.mark.parametrize("form", LAYOUTS)
def test_a_registry(pulled: Pulled, other: Store, registry: Registry, tmp_path: Path, form: str) -> None:
    """What skopeo pushes from a layout is what was pulled, to the last digest."""
    names = [name for name in pulled.names if "/docker:" not in name]
    pulled.store.save(form, tmp_path / "saved", *names)
    kind = form.replace("oci-dir", "oci")
    for number, name in enumerate(names):
        target = f"{registry.host}/back/{form}-{number}:1"
        source = f"{kind}:{tmp_path / 'saved'}:{name}"
        skopeo("--preserve-digests", "--dest-tls-verify=false", source, f"docker://{target}")
        other("pull", "-q", "--durability=none", target)
        assert other.facts(target) == pulled.facts[name]


def test_umoci(pulled: Pulled, tmp_path: Path) -> None:
    """Unpacks each image of a layout, by the name that `save` prints, to the tree that it is here."""
    require("umoci")
    layout = tmp_path / "saved"
    names = pulled.store.save("oci-dir", layout, *pulled.names)
    assert subprocess.check_output(["umoci", "ls", "--layout", layout], text=True).split() == names
    for number, name in enumerate(names):
        if any(what in name for what in ("/docker:", "/zstd")):
            continue  # umoci wants OCI's media types, and no zstd
        theirs = umoci_tree(layout, name, tmp_path / f"bundle-{number}")
        assert difference(comparable(theirs), comparable(pulled.trees[name])) == []


def comparable(tree: Snapshot) -> Snapshot:
    """Without the times of directories, which unpacking a whiteout changes."""
    return {path: replace(node, mtime_ns=0) if node.type == "directory" else node for path, node in tree.items()}


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_podman(pulled: Pulled, other: Store, clean_podman: Podman, tmp_path: Path, form: str) -> None:
    """Loads it under the same name, with the same id; and what it saves, as either form, is loaded here."""
    for number, name in enumerate(pulled.names):
        pulled.store.save(form, tmp_path / "saved", name)
        loaded = clean_podman("load", "-q", "-i", tmp_path / "saved").decode().split()[-1]
        facts = pulled.facts[name]
        assert loaded == (facts.config if (form, "@" in name) == ("docker-archive", True) else name)
        assert clean_podman.facts(loaded) == (facts.config, facts.diff_ids)
        again = clean_podman("save", "-q", "--format", form, loaded)
        # Podman compresses the layers of a layout anew, so a name with a digest is not the right one any more.
        here = f"a.b/c:{number}"
        assert other.load_stream(again, "-t", here) == [here]
        assert other.facts(here).diff_ids == facts.diff_ids
        if (form, "/docker:" in name) != ("oci-archive", True):  # podman makes an OCI config of Docker's
            assert other.facts(here).config == facts.config
        assert difference(other.tree(here, tmp_path / f"tree-{number}"), pulled.trees[name]) == []


@pytest.mark.parametrize("wrapping", ["plain", "gzip", "zstd"])
def test_podman_with_several_images(
    pulled: Pulled, other: Store, clean_podman: Podman, tmp_path: Path, wrapping: str
) -> None:
    """In one Docker archive there and back: `podman save -m … | zstd | pullpipe load -`."""
    names = [name for name in pulled.names if "@" not in name]
    pulled.store.save("docker-archive", tmp_path / "saved", *names)
    clean_podman("load", "-q", stdin=(tmp_path / "saved").read_bytes())
    data = clean_podman("save", "-q", "-m", *names)
    if wrapping != "plain":
        data = gzip.compress(data) if wrapping == "gzip" else zstandard.compress(data)
    assert sorted(other.load_stream(data)) == sorted(names)
    for name in names:
        assert other.facts(name).kept_by("docker-archive") == pulled.facts[name].kept_by("docker-archive")


def test_podman_changes_what_a_digest_names(pulled: Pulled, other: Store, clean_podman: Podman, tmp_path: Path) -> None:
    """It compresses anew and keeps the name: here such a name is not believed."""
    [name] = [name for name in pulled.names if "@" in name]
    pulled.store.save("oci-archive", tmp_path / "saved", name)
    clean_podman("load", "-q", "-i", tmp_path / "saved")
    clean_podman("save", "-q", "--format", "oci-archive", "-o", tmp_path / "again", name)
    err = io.StringIO()
    with redirect_stderr(err):
        assert main(["--root", str(other.root), "load", "-q", str(tmp_path / "again")]) == 1
    assert name in err.getvalue()
    assert "--tag" in err.getvalue()
    assert other("images", "--format", "json") == "[]"


class TestPlatforms:
    """Indexes that list indexes, as builders of several platforms' images write them."""

    PLATFORMS = (HOST_PLATFORM, "linux/s390x")

    @pytest.fixture
    def layout(self, tmp_path: Path) -> Path:
        """index.json → an index → an index → two manifests."""
        layout = tmp_path / "many"
        write_layout(layout, {"1": [Image(layers("gzip")[:1], platform=name) for name in self.PLATFORMS]})
        inner = digest_of(layout, "1")
        size = (layout / "blobs" / "sha256" / inner[7:]).stat().st_size
        entry: dict[str, Any] = {"mediaType": INDEX, "digest": inner, "size": size}
        outer = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
        entry = {"mediaType": INDEX, "digest": f"sha256:{sha256(outer).hexdigest()}", "size": len(outer)}
        (layout / "blobs" / "sha256" / entry["digest"][7:]).write_bytes(outer)
        top = {"schemaVersion": 2, "manifests": [{**entry, "annotations": {REF_NAME: "a.b/many:1"}}]}
        (layout / "index.json").write_text(json.dumps(top))
        return layout

    def test_all_of_them(self, other: Store, layout: Path, tmp_path: Path) -> None:
        """Loaded one by one, by a stream, too; when all are here, the index is saved as it came."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(layout, ".")
        assert other.load_stream(archive.getvalue()) == ["a.b/many:1"]
        assert other.load_stream(archive.getvalue(), "--platform", "linux/s390x", "-t", "a.b/s390x:1") == [
            "a.b/s390x:1"
        ]
        found = {json.loads(other("inspect", f"a.b/{name}:1"))["config"]["architecture"] for name in ("many", "s390x")}
        assert found == {name.split("/")[1] for name in self.PLATFORMS}
        other.save("oci-dir", tmp_path / "saved", "a.b/many:1")
        assert digest_of(tmp_path / "saved", "a.b/many:1") == digest_of(layout, "a.b/many:1")
        blobs = {name: data for name, data in content(layout).items() if name.startswith("blobs/")}
        assert {name: data for name, data in content(tmp_path / "saved").items() if name in blobs} == blobs

        again = Store(tmp_path / "again")
        again("load", "-q", "--platform", "linux/s390x", tmp_path / "saved")
        assert again.facts("a.b/many:1") == other.facts("a.b/s390x:1")

    def test_skopeo(self, other: Store, layout: Path, tmp_path: Path) -> None:
        """Copies an index with all that it lists, there and back."""
        inner = document(layout, digest_of(layout, "a.b/many:1"))["manifests"][0]
        top = {"schemaVersion": 2, "manifests": [{**inner, "annotations": {REF_NAME: "a.b/two:1"}}]}
        (layout / "index.json").write_text(json.dumps(top))
        other.load(layout)
        other("load", "-q", "--platform", "linux/s390x", "-t", "a.b/s390x:1", layout)
        other.save("oci-archive", tmp_path / "saved", "a.b/two:1")
        back = tmp_path / "back"
        skopeo("--all", "--preserve-digests", f"oci-archive:{tmp_path / 'saved'}:a.b/two:1", f"oci:{back}:a.b/two:1")
        assert digest_of(back, "a.b/two:1") == inner["digest"]
        again = Store(tmp_path / "again")
        assert again.load(back) == ["a.b/two:1"]
        assert again.facts("a.b/two:1") == other.facts("a.b/two:1")
        assert os.listdir(back / "blobs") == ["sha256"]

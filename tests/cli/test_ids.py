"""Images that are called by an id, or by NAME@DIGEST: what every command takes that takes an image that is here."""

from __future__ import annotations

import json
from hashlib import sha256
from itertools import count
from pathlib import Path

import pytest

from tests.cli.rig import answer, digest_of, document, fails, file_layer, layout_of, mounted, ok
from tests.conftest import Cli, require
from tests.runner.rig import BASE
from tests.support.images import Image, write_layout
from tests.support.registry import Registry

pytestmark = pytest.mark.needs_root

NOBODY = "0" * 64  # nobody's digest


@pytest.fixture
def digest(layout: Path, image: str) -> str:
    """The image's, without the algorithm; the image is in the store."""
    return digest_of(layout).removeprefix("sha256:")


def test_both_ids_in_every_length(cli: Cli, digest: str, layout: Path, image: str) -> None:
    """The manifest's digest, and the config's, which Docker takes for the id; with the algorithm or without."""
    config = document(layout, f"sha256:{digest}")["config"]["digest"].removeprefix("sha256:")
    for identifier in (digest, config):
        for name in (identifier[:4], identifier[:12], identifier, f"sha256:{identifier[:12]}", f"sha256:{identifier}"):
            assert answer(cli, "inspect", name)["reference"] == image


def test_what_looks_at_images(cli: Cli, digest: str, image: str, tmp_path: Path) -> None:
    """All of it, of a layer, too."""
    short = digest[:12]
    for words in (["history"], ["layers"], ["ls"], ["tree"], ["explain"], ["verify", "--quiet"]):
        assert ok(cli, *words, short) == ok(cli, *words, image), words
    assert ok(cli, "cat", f"{short}#2", "upper") == "upper"
    assert "no layer 3" in fails(cli, "ls", f"{short}#3")
    assert ok(cli, "diff", f"{short}#2") == ok(cli, "diff", f"{image}#2")
    assert ok(cli, "diff", short, image) == ""
    with mounted(cli, short, tmp_path / "m") as target:
        assert (target / "upper").read_text() == "upper"
    ok(cli, "unpack", "--quiet", short, tmp_path / "unpacked")
    ok(cli, "export", "--output", tmp_path / "tar", short)
    assert ok(cli, "save", "--quiet", "--output", tmp_path / "saved", short, image) == image


def test_what_makes_images(cli: Cli, digest: str, image: str, tmp_path: Path) -> None:
    """The new one has the old one's name, as if that had been said."""
    (tmp_path / "file").mkdir()
    assert ok(cli, "tag", digest[:12], "new:1") == "docker.io/library/new:1"
    assert ok(cli, "squash", "--quiet", "-t", "squashed:1", digest[:12]) == "docker.io/library/squashed:1"
    for words in (["layer", "add", digest[:12], tmp_path / "file"], ["config", "--env=A=1", digest[:12]]):
        assert "docker.io/library/new:1; say which name" in fails(cli, *words, "--quiet")
    ok(cli, "rmi", "new:1")
    assert ok(cli, "config", "--quiet", "--env=A=1", digest[:12]) == image


def test_removed_by_an_id(cli: Cli, digest: str, image: str) -> None:
    """Unless it has several names, of which one is to be said."""
    ok(cli, "tag", image, "new:1")
    assert f"{image}, docker.io/library/new:1; say which name" in fails(cli, "rmi", digest[:12])
    ok(cli, "rmi", "new:1")
    assert ok(cli, "rmi", digest[:12]) == image
    assert answer(cli, "images", "--format", "json") == []
    assert "is not in the store" in fails(cli, "rmi", image)


def test_an_id_is_never_asked_for(cli: Cli, digest: str, layout: Path, image: str) -> None:
    """Of no registry, by nobody; what can be nothing but an id is not taken for a name when it is not here."""
    assert f"`pullpipe pull {image}`" in fails(cli, "pull", digest[:12])
    assert "names no command" not in fails(cli, "run", digest[:12], "nothing", code=127)
    for name in (NOBODY, f"sha256:{NOBODY}", "sha256:0000"):
        for command, code in (("inspect", 1), ("pull", 1), ("run", 125), ("rmi", 1)):
            assert f"no image here has the id {name}" in fails(cli, command, name, code=code)


def test_run(cli: Cli, tmp_path: Path) -> None:
    require("busybox")
    layout = layout_of(tmp_path / "shell", shell=Image(BASE))
    ok(cli, "load", "--quiet", "-t", "shell:1", layout)
    assert ok(cli, "run", "--rm", digest_of(layout, "shell")[7:19], "echo", "said") == "said"


def test_a_name_comes_first(cli: Cli, digest: str, image: str, tmp_path: Path) -> None:
    """An image may be called as another one's id begins."""
    ok(cli, "load", "--quiet", "-t", digest[:6], layout_of(tmp_path / "other", file_layer("other")))
    assert answer(cli, "inspect", digest[:6])["reference"] == f"docker.io/library/{digest[:6]}:latest"
    assert answer(cli, "inspect", digest[:7])["reference"] == image


def test_several_that_begin_so(cli: Cli, tmp_path: Path) -> None:
    """Images are made until two ids have the same first digits."""
    layer, seen = file_layer("f"), dict[str, Image]()
    for number in count():
        image = Image([layer], {"Env": [f"N={number}"]})
        begin = sha256(image.config_blob).hexdigest()[:4]
        if begin in seen:
            break
        seen[begin] = image
    for name, one in (("twin:1", seen[begin]), ("twin:2", image)):
        ok(cli, "load", "--quiet", "--durability=none", "-t", name, layout_of(tmp_path / name, t=one))
    names = "docker.io/library/twin:1, docker.io/library/twin:2"
    assert f"begin with {begin}: of {names}; give more of it" in fails(cli, "inspect", begin)


def test_a_name_with_the_digest_that_it_has(cli: Cli, digest: str, image: str, tmp_path: Path) -> None:
    """With the tag or without; not another name's, and not another digest."""
    for name in (f"image@sha256:{digest}", f"image:1@sha256:{digest}"):
        assert answer(cli, "inspect", name)["reference"] == image
        assert "nothing" in fails(cli, "run", name, "nothing", code=127)
    for name in (f"image:2@sha256:{digest}", f"other@sha256:{digest}", f"image@sha256:{NOBODY}"):
        assert "is not in the store" in fails(cli, "inspect", name)


def test_an_index_is_a_names_digest_too(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    """As registries show it; and a pull by digest is a name of its own, as ever."""
    layout = tmp_path / "layout"
    write_layout(layout, {"image": [Image([file_layer("a")]), Image([file_layer("b")], platform="linux/s390x")]})
    index = json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"]
    reference = registry.push(layout, "image", to="ids/index:1")
    ok(cli, "pull", "--quiet", reference)
    by_digest = f"{reference.removesuffix(':1')}@{index}"
    assert answer(cli, "inspect", by_digest)["reference"] == reference
    ok(cli, "pull", "--quiet", by_digest)
    assert answer(cli, "inspect", by_digest)["reference"] == by_digest

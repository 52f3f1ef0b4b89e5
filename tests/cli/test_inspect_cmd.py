"""`pullpipe inspect`: an image's documents as they came, a container's record."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.rig import answer, digest_of, document, fails, layers_of, mounted, ok
from tests.conftest import Cli
from tests.support.images import File, Image, Layer, write_layout

pytestmark = pytest.mark.needs_root


def test_image(cli: Cli, image: str, layout: Path, store_root: Path) -> None:
    """The manifest and the config word for word, and each layer by both its digests, with its directory."""
    found = answer(cli, "inspect", image)
    assert (found["reference"], found["digest"], found["resolved"]) == (image, digest_of(layout), digest_of(layout))
    manifest = document(layout, digest_of(layout))
    assert found["manifest"] == manifest
    assert found["config"] == document(layout, manifest["config"]["digest"])
    diff_ids = found["config"]["rootfs"]["diff_ids"]
    for name, layer, blob, diff_id in zip(
        ("lower", "upper"), found["layers"], layers_of(layout), diff_ids, strict=True
    ):
        directory = Path(layer.pop("directory"))
        assert store_root in directory.parents
        assert (directory / name).read_text() == name
        assert layer == {
            "digest": blob["digest"],
            "diff_id": diff_id,
            "media_type": blob["mediaType"],
            "size": blob["size"],
            "unpacked_size": len(name),
            "entries": 1,
        }


def test_by_a_short_name(cli: Cli, image: str) -> None:
    """As a user would call it."""
    assert image == "docker.io/library/image:1"
    assert answer(cli, "inspect", "image:1")["reference"] == image


def test_container(cli: Cli, image: str, layout: Path, tmp_path: Path) -> None:
    """By its name, its id, and the start of that."""
    with mounted(cli, image, tmp_path / "m") as target:
        [listed] = answer(cli, "ps", "--format", "json")
        found = answer(cli, "inspect", listed["name"])
        assert answer(cli, "inspect", listed["id"]) == answer(cli, "inspect", listed["id"][:12]) == found
        assert (found["Id"], found["Config"]["Image"], found["Image"]) == (listed["id"], image, digest_of(layout))
        assert (found["MountedAt"], found["State"]["Status"], found["Config"]["Cmd"]) == (str(target), "mounted", [])
        assert Path(found["GraphDriver"]["Data"]["UpperDir"]).is_dir()


def test_nothing_of_that_name(cli: Cli, image: str) -> None:
    assert "pullpipe pull docker.io/library/other:latest" in fails(cli, "inspect", "other")
    assert "Not/A/Name" in fails(cli, "inspect", "Not/A/Name:")


def test_a_damaged_manifest_is_told(cli: Cli, image: str, layout: Path, store_root: Path) -> None:
    """One line, with what to do."""
    path = store_root / "blobs" / digest_of(layout).replace(":", "/")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"2", b"3", 1))
    assert "damaged" in fails(cli, "inspect", image)


def test_a_damaged_container_hides_no_image(cli: Cli, image: str, store_root: Path, tmp_path: Path) -> None:
    """Of what is called otherwise it may be the name; that is told."""
    damaged = store_root / "containers" / ("d" * 64)
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    assert answer(cli, "inspect", image)["reference"] == image
    ok(cli, "export", "-o", tmp_path / "tree.tar", image)
    for command in ("inspect", "export"):
        for wanted in ("other", damaged.name):
            assert f"pullpipe rm {damaged.name}" in fails(cli, command, wanted)


def test_odd_strings_stay_json(cli: Cli, tmp_path: Path) -> None:
    """Whatever an image's owner wrote into its config."""
    env = ["A=\x1b[31mred", "B=ü\n\u2028", 'C="quoted"']
    write_layout(tmp_path / "odd", {"odd": Image([Layer([File("f")])], {"Env": env})})
    ok(cli, "load", "-q", "-t", "odd:1", tmp_path / "odd")
    done = cli("inspect", "odd:1")
    assert "\x1b" not in done.stdout
    assert answer(cli, "inspect", "odd:1")["config"]["config"]["Env"] == env

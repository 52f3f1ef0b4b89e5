"""`pullpipe export` of containers, and of names that mean a container or an image."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from store import Store
from tests.cli.rig import answer, fails, mounted, ok
from tests.conftest import Cli, require
from tests.runner.rig import BASE, started
from tests.support.images import Dir, Image, Layer, write_layout

pytestmark = pytest.mark.needs_root


@pytest.fixture
def shell(cli: Cli, tmp_path: Path) -> str:
    """An image with a shell, and of the places that a runner mounts on with `/dev` alone."""
    require("busybox")
    write_layout(tmp_path / "shell", {"t": Image([*BASE, Layer([Dir("dev")])])})
    ok(cli, "load", "--quiet", "--durability=none", "-t", "shell:1", tmp_path / "shell")
    return "shell:1"


def test_export_without_what_was_mounted_on(cli: Cli, shell: str, tmp_path: Path) -> None:
    """What a runner had to make is no file of the container's, as `commit` has it; what the image has is."""
    ok(cli, "run", "--name=c", shell, "sh", "-c", "echo >/written")
    ok(cli, "export", "--output", tmp_path / "c.tar", "c")
    ok(cli, "export", "--output", tmp_path / "i.tar", shell)
    of_container, of_image = (names_in(tmp_path / name) for name in ("c.tar", "i.tar"))
    assert "dev/" in of_image
    assert of_container == {*of_image, "written"}


def test_export_of_a_container_in_use(cli: Cli, shell: str, store_root: Path, tmp_path: Path) -> None:
    """Its upper directory is never stacked twice, and its files do not change while they are read."""
    with started(store_root, "--name=c", "-i", shell, "sh", "-c", "echo; read x", stdin=-1) as process:
        assert process.stdout
        process.stdout.readline()
        assert "is running" in fails(cli, "export", "--output", tmp_path / "c.tar", "c")
        process.communicate(timeout=30)
    with mounted(cli, shell, tmp_path / "mnt", "--rw"):
        name = next(one.name for one in Store(str(store_root)).containers if one.target)
        assert "is mounted" in fails(cli, "export", "--output", tmp_path / "c.tar", name)
    assert not (tmp_path / "c.tar").exists()


def test_export_of_a_name_with_two_meanings(cli: Cli, image: str, tmp_path: Path) -> None:
    """The container, as with Docker; but not by the beginning of its id, where an image is called so."""
    with mounted(cli, image, tmp_path / "mnt", "--rw"):
        (tmp_path / "mnt" / "written").touch()
    [container] = answer(cli, "ps", "--format=json")
    ok(cli, "rename", container["name"], "image")
    ok(cli, "tag", image, "image:latest")
    ok(cli, "tag", image, container["id"][:6])
    for name, of_container in (("image", True), ("image:1", False), (container["id"][:6], False)):
        ok(cli, "export", "--output", tmp_path / "tar", name)
        assert ("written" in names_in(tmp_path / "tar")) == of_container
        assert ("Id" in answer(cli, "inspect", name)) == of_container


def names_in(archive: Path) -> set[str]:
    """What GNU tar lists."""
    return set(subprocess.run(["tar", "-tf", archive], check=True, capture_output=True, text=True).stdout.split())

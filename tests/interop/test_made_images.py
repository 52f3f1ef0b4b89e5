"""Images that `layer add`, `commit` and `squash` make, as podman has them."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.rig import answer, mounted, mounted_tree, ok
from tests.conftest import Cli
from tests.interop.conftest import Podman
from tests.support.images import Dir, File, Image, Layer, Symlink, write_layout
from tests.support.tree import Snapshot, difference, snapshot

pytestmark = pytest.mark.needs_root

BASE = [
    Layer([Dir("etc"), File("etc/motd", b"hello"), File("etc/old"), Dir("srv/cache"), File("srv/cache/a")]),
    Layer([File("bin/tool", b"#!", 0o4755), Symlink("tool", "bin/tool")], "zstd"),
]


@pytest.fixture
def made(cli: Cli, tmp_path: Path) -> list[str]:
    """One image by each command, on top of the one before."""
    write_layout(tmp_path / "layout", {"t": Image(BASE, {"Cmd": ["/bin/tool"]})})
    ok(cli, "load", "--quiet", "-t", "base:1", tmp_path / "layout")
    files = tmp_path / "files"
    (files / "opt").mkdir(parents=True)
    (files / "opt" / "new").write_bytes(os.urandom(70_000))
    os.link(files / "opt" / "new", files / "opt" / "same")
    (files / "etc").mkdir()
    (files / "etc" / ".wh.old").touch()
    ok(cli, "layer", "add", "--quiet", "-t", "added:1", "base:1", files)
    with mounted(cli, "added:1", tmp_path / "rw", "--rw") as top:
        (top / "etc" / "motd").unlink()
        shutil.rmtree(top / "srv" / "cache")
        (top / "srv" / "cache" / "b").mkdir(parents=True)
        (top / "opt" / "new").chmod(0o600)
    [container] = answer(cli, "ps", "--format", "json")
    ok(cli, "commit", "--quiet", "--compression", "zstd", container["name"], "committed:1")
    ok(cli, "squash", "--quiet", "-t", "squashed:1", "committed:1")
    return ["added:1", "committed:1", "squashed:1"]


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_podman_loads_them(cli: Cli, made: list[str], clean_podman: Podman, tmp_path: Path, form: str) -> None:
    """Under their names, with their ids and diffIDs, and with the same files in them."""
    for name in made:
        ok(cli, "save", "--quiet", "--format", form, "--output", tmp_path / "saved", name)
        loaded = clean_podman("load", "--quiet", "--input", tmp_path / "saved").decode().split()[-1]
        image = answer(cli, "inspect", name)
        diff_ids = image["config"]["rootfs"]["diff_ids"]
        assert clean_podman.facts(loaded) == (image["manifest"]["config"]["digest"], diff_ids)
        names = clean_podman("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").decode().split()
        assert f"docker.io/library/{name}" in names
        theirs = snapshot(Path(clean_podman("image", "mount", loaded).decode().strip()))
        clean_podman("image", "unmount", loaded)
        assert difference(comparable(theirs), comparable(mounted_tree(cli, name, tmp_path / "m"))) == []


def comparable(tree: Snapshot) -> Snapshot:
    """Without what podman cannot keep: its images' roots have a mode of its own, and its directories other times."""
    return {
        path: replace(node, mtime_ns=0) if node.type == "directory" else node
        for path, node in tree.items()
        if path != b"."
    }

"""`pullpipe commit`: what a container changed becomes a layer, and the new image is the container's tree."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from store import Store
from tests.cli.rig import answer, fails, mounted, mounted_tree, ok, umoci_tree, unpacked_tree, without_times
from tests.conftest import Cli, require
from tests.runner.rig import BASE, started
from tests.support.images import Image, write_layout
from tests.support.tree import Snapshot, difference, snapshot

pytestmark = pytest.mark.needs_root


def change_everything(top: Path) -> None:
    """Something of all that can be done to a tree."""
    (top / "etc" / "motd").unlink()
    (top / "etc" / "old").rename(top / "etc" / "renamed")
    (top / "etc" / "top").chmod(0o4711)
    shutil.rmtree(top / "srv" / "gone")
    (top / "srv" / "gone").write_bytes(b"a file now")
    shutil.rmtree(top / "srv" / "cache")
    (top / "srv" / "cache" / "new").mkdir(parents=True)
    os.chown(top / "srv" / "cache", 12, 13)
    (top / "srv" / "link").unlink()
    (top / "srv" / "link").symlink_to("gone")
    os.link(top / "srv" / "link", top / "srv" / "same", follow_symlinks=False)
    (top / "many").mkdir(mode=0o1777)
    (top / "many" / "x").write_bytes(os.urandom(70_000))
    os.link(top / "many" / "x", top / "many" / "y")
    os.mkfifo(top / "many" / "fifo")
    os.mknod(top / "many" / "null", 0o20666, os.makedev(1, 3))
    os.setxattr(top / "many" / "x", "user.note", b"\0\xff")
    os.utime(top / "many" / "x", ns=(1, 1_500_000_000_123_456_789))
    top.chmod(0o700)


@pytest.fixture
def changed(cli: Cli, base: str, tmp_path: Path) -> tuple[str, Snapshot]:
    """A container that has ended, and its tree."""
    target = tmp_path / "mnt"
    with mounted(cli, base, target, "--rw"):
        change_everything(target)
        tree = snapshot(target)
    [container] = answer(cli, "ps", "--format=json")
    return str(container["name"]), tree


def test_the_image_is_the_containers_tree(cli: Cli, changed: tuple[str, Snapshot], tmp_path: Path) -> None:
    """Mounted, and unpacked by us and by umoci: every name and attribute."""
    require("umoci")
    container, tree = changed
    assert ok(cli, "commit", "--quiet", container, "new:1") == "docker.io/library/new:1"
    assert difference(mounted_tree(cli, "new:1", tmp_path / "mnt"), tree) == []
    flat = unpacked_tree(cli, "new:1", tmp_path / "flat")
    assert difference(flat, tree) == []
    ok(cli, "save", "--quiet", "--format=oci-dir", "--output", tmp_path / "saved", "new:1")
    umocis = umoci_tree(tmp_path / "saved", "docker.io/library/new:1", tmp_path / "bundle")
    nobodys = (b".", b"srv")
    assert difference(without_times(umocis, *nobodys), without_times(flat, *nobodys)) == []


def test_commit_again(cli: Cli, changed: tuple[str, Snapshot], tmp_path: Path) -> None:
    """The container is as it was, and the same layer comes of it; the image that it came from may have gone."""
    container, _ = changed
    ok(cli, "commit", "--quiet", container, "new:1")
    ok(cli, "tag", "--replace", "new:1", "base:1")
    ok(cli, "prune")
    ok(cli, "commit", "--quiet", container, "again:1")
    first, again = (answer(cli, "inspect", name)["manifest"]["layers"] for name in ("new:1", "again:1"))
    assert first == again
    assert len(first) == 3


def test_config_and_history(cli: Cli, changed: tuple[str, Snapshot]) -> None:
    container, _ = changed
    options = ["--cmd", '["/bin/x", "a b"]', "--env", "A=2", "--label", "l=1", "-m", "why"]
    ok(cli, "commit", "--quiet", *options, container, "new:1")
    config = answer(cli, "inspect", "new:1")["config"]
    assert config["config"]["Cmd"] == ["/bin/x", "a b"]
    assert config["config"]["Env"] == ["A=2", "B=2"]
    assert config["config"]["Labels"] == {"l": "1"}
    assert len(config["history"]) == 3
    assert config["history"][-1]["comment"] == "why"


@pytest.fixture
def shell(cli: Cli, tmp_path: Path) -> str:
    """An image with a shell, and nothing else."""
    require("busybox")
    write_layout(tmp_path / "shell", {"t": Image(BASE)})
    ok(cli, "load", "--quiet", "--durability=none", "-t", "shell:1", tmp_path / "shell")
    return "shell:1"


def test_a_command_that_changes_nothing(cli: Cli, shell: str, tmp_path: Path) -> None:
    """What the runner needed to mount something on does not count."""
    ok(cli, "run", "--name=c", shell, "true")
    ok(cli, "commit", "--quiet", "c", "new:1")
    image = answer(cli, "inspect", "new:1")
    assert image["config"]["history"][-1]["created_by"] == "true"
    assert mounted_tree(cli, "new:1", tmp_path / "mnt") == mounted_tree(cli, shell, tmp_path / "mnt")
    ok(cli, "run", "--name=d", shell, "chmod", "711", "/etc")
    ok(cli, "commit", "--quiet", "d", "new:2")
    assert mounted_tree(cli, "new:2", tmp_path / "mnt")[b"etc"].mode == 0o711


def test_a_command_that_is_no_text(cli: Cli, shell: str) -> None:
    """A config is UTF-8, whatever a container was told."""
    ok(cli, "run", "--name=c", shell, "true", "\udcff")
    ok(cli, "commit", "--quiet", "c", "new:1")
    assert answer(cli, "inspect", "new:1")["config"]["history"][-1]["created_by"] == r"true '\xff'"


def test_run_commit_run(cli: Cli, shell: str) -> None:
    ok(cli, "run", "--name=c", shell, "sh", "-c", "echo from the first >/file; rm /bin/cat")
    ok(cli, "commit", "--quiet", "--cmd", "sh -c 'read line </file; echo $line'", "c", "new:1")
    assert ok(cli, "run", "--rm", "new:1") == "from the first"
    assert "not found" in cli("run", "--rm", "new:1", "cat", "/file").stderr


def test_in_use(cli: Cli, shell: str, store_root: Path, tmp_path: Path) -> None:
    """What still runs, or is mounted, is refused: its files may change while they are read."""
    with started(store_root, "--name=c", "-i", shell, "cat", stdin=-1) as process:
        while not [one for one in Store(str(store_root)).containers if one.name == "c"]:
            pass
        assert "is running" in fails(cli, "commit", "c", "new:1")
        process.communicate(timeout=30)
    with mounted(cli, shell, tmp_path / "mnt", "--rw"):
        name = next(one.name for one in Store(str(store_root)).containers if one.target)
        assert "is mounted" in fails(cli, "commit", name, "new:1")


def test_a_name_that_would_remove_another(cli: Cli, shell: str) -> None:
    """A layer cannot hold a file called .wh.cat: to all others it would mean that cat is gone."""
    for name, command in {"c": "echo >/bin/.wh.cat", "d": "mkdir /bin/.wh.cat"}.items():
        ok(cli, "run", f"--name={name}", shell, "sh", "-c", command)
        assert "/bin/.wh.cat cannot be in a layer" in fails(cli, "commit", "--quiet", name, "new:1")


def test_no_such_container(cli: Cli, base: str) -> None:
    assert "no container 'nothing'" in fails(cli, "commit", "nothing", "new:1")

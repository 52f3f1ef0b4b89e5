"""`pullpipe unshare`, and whose stores are whose."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from store import Store
from tests.cli.rig import fails
from tests.conftest import Cli
from tests.rootless.conftest import Give
from tests.support.images import File
from tests.support.users import User

pytestmark = pytest.mark.needs_root


def test_a_command(alice: User) -> None:
    """Its exit code, its input, its arguments; it is root there, and its own mounts are its own."""
    done = alice.pullpipe(
        "unshare", "sh", "-c", 'id -u; cat; mount -t tmpfs t /mnt; echo "$@"; exit 9', "-", "-a", "b c"
    )
    assert (done.returncode, done.stdout) == (9, "0\n-a b c\n"), done.stderr
    assert alice.run("mountpoint", "/mnt").returncode != 0
    done = alice.pullpipe("unshare", "nope")
    assert (done.returncode, done.stderr) == (127, "pullpipe: error: command not found: there is no 'nope'\n")
    done = alice.pullpipe("unshare", "/etc/passwd")
    assert (done.returncode, done.stderr) == (126, "pullpipe: error: cannot run '/etc/passwd': permission denied\n")


def test_a_shell(alice: User) -> None:
    """Without a command."""
    done = alice.run("env", "SHELL=/bin/sh", sys.executable, "-m", "pullpipe", "unshare", stdin="id -u; echo $0")
    assert (done.returncode, done.stdout) == (0, "0\n/bin/sh\n"), done.stderr


def test_it_works_on_the_same_store(alice: User, give: Give) -> None:
    """Although who is root has another by default."""
    give(alice, [File("f", uid=5)])
    pullpipe = f"{sys.executable} -m pullpipe"
    done = alice.pullpipe("unshare", "sh", "-c", f"{pullpipe} images -q; {pullpipe} run --rm test stat -c %u /f")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("5\n")
    done = alice.pullpipe("--root", "other", "unshare", "sh", "-c", f"{pullpipe} images --format json")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert (alice.home / "other/version").exists()


def test_root_needs_none(cli: Cli, store_root: Path) -> None:
    assert "root needs no user namespace" in fails(cli, "unshare", "true")


def test_roots_store(alice: User, tmp_path: Path) -> None:
    """A store is of one kind, or layers would be stacked wrongly: root's is not the user's, even as a present."""
    root = alice.home / "roots"
    shutil.move(Store(str(tmp_path / "store")).root, root)
    assert "belongs to user 0" in alice.pullpipe("--root", root, "images").stderr
    for directory, _, names in os.walk(root):
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            os.chown(path, alice.uid, alice.uid)
    done = alice.pullpipe("--root", root, "images")
    assert done.returncode == 1
    assert "was made by the machine's root, and its layers cannot be stacked without the machine's root" in done.stderr


def test_the_users_store_is_not_roots(alice: User, cli: Cli, store_root: Path) -> None:
    assert alice.pullpipe("images").returncode == 0
    shutil.move(alice.store, store_root)
    assert "belongs to user 30001" in fails(cli, "images")
    for directory, _, names in os.walk(store_root):
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            os.chown(path, 0, 0)
    assert "was made without the machine's root, in a user namespace" in fails(cli, "images")


def test_a_way_that_another_user_may_change(alice: User, bob: User) -> None:
    """In the namespace bob and root look alike; so it is found out before."""
    theirs = alice.home / "bobs"
    theirs.mkdir(mode=0o755)
    (theirs / "store").mkdir(mode=0o700)
    os.chown(theirs / "store", alice.uid, alice.uid)
    done = alice.pullpipe("--root", theirs / "store", "prune")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr  # the machine's root may do everything anyway
    os.chown(theirs, bob.uid, bob.uid)
    done = alice.pullpipe("--root", theirs / "store", "prune")
    assert done.returncode == 1
    assert f"others may change {theirs}" in done.stderr

"""Pull, run, push, save, and what removes and checks it all, by a user who is not root and has ids in /etc/subuid."""

from __future__ import annotations

import json
import os
import pickle
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.rig import digest_of, ok, unpacked_tree
from tests.conftest import Cli
from tests.rootless.conftest import Give, readable_layout
from tests.support.images import (
    Device,
    Dir,
    Entry,
    Fifo,
    File,
    Hardlink,
    Image,
    Layer,
    Opaque,
    Symlink,
    Whiteout,
)
from tests.support.registry import Registry
from tests.support.tree import Snapshot, difference, snapshot
from tests.support.users import User

pytestmark = pytest.mark.needs_root

# A capability that the file's program gets, as the kernel keeps it: version 2, CAP_NET_RAW permitted.
_CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")

LAYERS: list[list[Entry]] = [
    [
        File("etc/shadow", b"secret", mode=0o640, gid=42),
        Dir("home/u", uid=1000, gid=1000, mode=0o700),
        File("home/u/f", b"u's", uid=1000, gid=1000, mode=0o600, mtime_ns=1_500_000_000_123_456_789),
        Hardlink("home/u/g", "home/u/f"),
        File("bin/su", b"s", mode=0o4755),
        File("bin/ping", b"p", mode=0o755, xattrs={"security.capability": _CAPABILITY, "user.mine": b"\0\1"}),
        File("srv/cache/old", uid=33, gid=33),
        File("srv/gone", uid=65534, gid=65534),
        Dir("closed", mode=0),
        File("closed/in", uid=7),
        Symlink("lib", "usr/lib", uid=5, gid=6),
        File("usr/lib/a", uid=65535, gid=65535),
    ],
    [
        Whiteout("srv/gone"),
        Opaque("srv/cache"),
        File("srv/cache/new", uid=34),
        File("lib/b", uid=8),  # through a symlink of the layer below
        Hardlink("lib/c", "usr/lib/a"),
        Fifo("pipe", uid=9, mode=0o622),
        Dir("home/u", uid=1001, gid=1001, mode=0o2750),
    ],
]


def done(user: User, *words: str | Path) -> str:
    """What the command prints, when it goes well."""
    finished = user.pullpipe(*words)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.removesuffix("\n")


def as_outside(tree: Snapshot, user: User) -> Snapshot:
    """The tree with its owners as they are called outside of the user's namespace."""
    return {path: replace(node, uid=user.owner(node.uid), gid=user.owner(node.gid)) for path, node in tree.items()}


def without_capabilities(tree: Snapshot) -> Snapshot:
    """Outside, the kernel shows for which user namespace a file has them."""
    return {
        path: replace(node, xattrs=tuple((name, value) for name, value in node.xattrs if name != "security.capability"))
        for path, node in tree.items()
    }


def test_the_main_job(alice: User, registry: Registry, shell: Image) -> None:
    """Over a registry and back, and nothing of root's in any of it."""
    layout = readable_layout(alice, Image([*shell.layers, *map(Layer, LAYERS)], {"Cmd": ["sh", "-c", "exit 7"]}))
    reference = registry.push(layout, "t", to="rootless/main:1")
    digest = digest_of(layout, "t")

    assert done(alice, "pull", "--quiet", reference) == digest
    assert done(alice, "pull", "--quiet", reference) == digest
    assert alice.pullpipe("run", "--rm", reference).returncode == 7
    assert done(alice, "run", "--rm", reference, "sh", "-c", "id -u; stat -c %u:%g /home/u /etc/shadow") == (
        "0\n1001:1001\n0:42"
    )
    assert done(alice, "push", "--quiet", reference, f"{registry.host}/rootless/pushed:1") == digest
    assert done(alice, "save", "--quiet", "-o", "saved.tar", reference) == reference
    assert done(alice, "verify", "--deep", "--quiet", "--format=json") == "[]"

    assert done(alice, "rmi", reference) == reference
    assert os.listdir(alice.store / "layers/sha256") == os.listdir(alice.store / "variants/sha256") == []
    assert done(alice, "load", "--quiet", "saved.tar") == reference
    assert alice.pullpipe("run", "--rm", reference).returncode == 7
    done(alice, "prune", "--all")
    assert os.listdir(alice.store / "layers/sha256") == os.listdir(alice.store / "blobs/sha256") == []


def test_credentials(alice: User, tmp_path: Path) -> None:
    """The user's are found, where they may be found: root's containers may have made /run/containers root's alone."""
    with Registry(tmp_path / "registry", users={"u": "p"}) as registry:
        reference = registry.push(readable_layout(alice, Image([Layer([File("f")])])), "t", to="rootless/private:1")
        script = 'mount -t tmpfs -o mode=755 tmpfs /run && mkdir -m 700 /run/containers && exec "$@"'
        before = ("unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh")
        refused = alice.pullpipe("pull", "--quiet", reference, before=before)
        assert (refused.returncode, "needs authentication" in refused.stderr) == (1, True), refused.stderr
        login = ("login", "-u", "u", "--password-stdin", registry.host)
        assert alice.pullpipe(*login, before=before, stdin="p").returncode == 0
        assert stat.S_IMODE((alice.home / ".config/containers/auth.json").stat().st_mode) == 0o600
        pulled = alice.pullpipe("pull", "--quiet", reference, before=before)
        assert pulled.returncode == 0, pulled.stderr


def test_the_tree_is_as_roots(alice: User, cli: Cli, give: Give, tmp_path: Path) -> None:
    """Unpacked to one directory, and stacked: every owner, mode, time, attribute and byte."""
    layout = give(alice, *LAYERS)
    ok(cli, "load", "--quiet", "-t", "test", layout)
    expected = unpacked_tree(cli, "test", tmp_path / "flat")

    done(alice, "unpack", "--quiet", "test", "flat")
    seen = without_capabilities(snapshot(alice.home / "flat"))
    assert difference(seen, as_outside(without_capabilities(expected), alice)) == []

    program = "import pickle, sys, pathlib, tests.support.tree as t; m = pathlib.Path('m'); "
    program += "sys.stdout.flush(); open('found', 'wb').write(pickle.dumps(t.snapshot(m)))"
    pullpipe = f"{sys.executable} -m pullpipe"
    commands = f'mkdir m && {pullpipe} mount test m && {sys.executable} -c "{program}" && {pullpipe} umount m'
    done(alice, "unshare", "sh", "-c", commands)
    stacked: Snapshot = pickle.loads((alice.home / "found").read_bytes())
    assert difference(stacked, expected) == []
    assert dict(stacked[b"bin/ping"].xattrs)["security.capability"] == _CAPABILITY

    # What was made belongs to the user, and goes.
    assert os.stat(alice.home / "flat/home/u").st_uid == 3_001_000
    assert alice.run("rm", "-r", "flat").returncode != 0
    done(alice, "unshare", "rm", "-r", "flat")


def test_devices_are_left_out(alice: User, shell: Image) -> None:
    """As without root nobody can make them. Said once, and such a layer is whole."""
    entries: list[Entry] = [Device("dev/null", 1, 3), Device("dev/disk", 8, 0, "block"), File("f", uid=3)]
    layout = readable_layout(alice, Image([Layer(entries)]))
    loaded = alice.pullpipe("load", "--progress=plain", "-t", "test", layout)
    assert loaded.returncode == 0, loaded.stderr
    [warning] = [line for line in loaded.stderr.splitlines() if "devices" in line]
    assert warning.endswith("are left out: 'dev/null' and 1 more")
    assert done(alice, "verify", "--deep", "--quiet", "--format=json") == "[]"


def test_what_others_own_is_counted_and_removed(alice: User, give: Give) -> None:
    """A container's own files may be anybody's, and in directories that only those may enter."""
    give(alice)
    script = "mkdir -m 700 /tmp/d && dd if=/dev/zero of=/tmp/d/f bs=1024 count=64 2>/dev/null"
    done(alice, "run", "--name", "c", "-u", "1000", "test", "sh", "-c", script)
    [upper] = alice.store.glob("containers/*/upper")
    assert os.stat(upper / "tmp/d").st_uid == 3_000_999
    assert stat.S_IMODE(os.stat(upper / "tmp/d").st_mode) == 0o700
    assert json.loads(done(alice, "df", "--format=json"))["containers"]["size"] >= 64 << 10
    done(alice, "rm", "c")
    assert os.listdir(alice.store / "containers") == []


def test_a_layer_that_is_damaged(alice: User, give: Give) -> None:
    """The files of others are compared, too, and mended."""
    give(alice, *LAYERS)
    [shadow] = alice.store.glob("layers/sha256/*/fs/etc/shadow")
    shadow.write_bytes(b"Secret")
    found = alice.pullpipe("verify", "--deep", "--quiet")
    assert found.returncode == 1
    assert "etc/shadow" in found.stdout
    repaired = alice.pullpipe("repair", "--no-fetch", "--quiet")
    assert repaired.returncode == 0, repaired.stderr
    assert done(alice, "verify", "--deep", "--quiet", "--format=json") == "[]"


def test_it_is_the_users_alone(alice: User, give: Give) -> None:
    """The store, with the setuid programs in it; and nobody who is not in the namespace owns anything there."""
    give(alice, *LAYERS)
    assert stat.S_IMODE(alice.store.stat().st_mode) == 0o700
    owners = {os.lstat(os.path.join(top, name)).st_uid for top, _, names in os.walk(alice.store) for name in names}
    assert owners <= {alice.owner(number) for number in (0, 1000, 33, 65534, 65535, 34, 5, 7, 8, 9)}
    assert (alice.store / "version").read_text() == "1 user\n"


def test_the_demo(alice: User) -> None:
    """To its end, and it leaves nothing."""
    (alice.home / "scratch").mkdir()
    os.chown(alice.home / "scratch", alice.uid, alice.uid)
    finished = alice.run("env", f"TMPDIR={alice.home}/scratch", sys.executable, "-m", "pullpipe", "demo")
    assert finished.returncode == 0, finished.stderr
    assert "== 6. Nothing is left but the image" in finished.stdout
    assert os.listdir(alice.home / "scratch") == []

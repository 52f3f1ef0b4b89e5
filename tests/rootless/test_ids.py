"""Who has no ids in /etc/subuid, or not enough, or wrong ones."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import require
from tests.rootless.conftest import Give, readable_layout
from tests.support.images import Dir, File, Hardlink, Image, Layer, Symlink
from tests.support.users import User

pytestmark = pytest.mark.needs_root

SHADOW = Layer([File("etc/shadow", gid=42), Dir("home/u", uid=1000, gid=1000), File("home/u/f", uid=1000, mode=0o4755)])


def error(user: User, *words: str, code: int = 1) -> str:
    """What the command says went wrong, in its last line."""
    done = user.pullpipe(*words)
    assert done.returncode == code, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("pullpipe: error: ")
    return line


def test_an_image_with_others_files(bob: User) -> None:
    """It is refused, with the file, its owner, and both ways out; nothing is kept."""
    layout = str(readable_layout(bob, Image([SHADOW])))
    line = error(bob, "load", "--quiet", "-t", "test", layout)
    assert "entry 'etc/shadow'" in line
    assert "the user namespace does not have its owner, 0:42" in line
    assert line.endswith("/etc/subuid and /etc/subgid, or ignore such owners with --ignore-owners")
    assert bob.pullpipe("images", "--format=json").stdout == "[]\n"


def test_an_image_of_roots_files_alone(bob: User, give: Give) -> None:
    """It runs."""
    give(bob, [File("a"), Symlink("b", "a"), Hardlink("c", "a")])
    done = bob.pullpipe("run", "--rm", "test", "sh", "-c", "cat /proc/self/uid_map; stat -c %u:%g a; ls -n /dev/pts")
    assert done.returncode == 0, done.stderr
    first, second, *_ = done.stdout.splitlines()
    assert first.split() == ["0", str(bob.uid), "1"]
    assert second == "0:0"


@pytest.mark.parametrize("handed", [(), ("--runtime=runc",)], ids=["ours", "runc"])
def test_groups_that_only_the_image_knows(bob: User, give: Give, handed: tuple[str, ...]) -> None:
    """Alpine's root is a member of some; without ids for them it is of none. What the user asks for is an error."""
    if handed:
        require("runc")
    group = b"root:x:0:root\nbin:x:1:root,bin,daemon\nwheel:x:10:root\n"
    give(bob, [File("etc/group", group)])
    run = ("run", "--rm", "--network=none", *handed)
    for options in ((), ("-u", "root"), ("-u", "0:root")):
        done = bob.pullpipe(*run, *options, "test", "id", "-G")
        assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    for options, what in (
        (("--group-add", "wheel"), "group 10"),
        (("-u", "0:1"), "group 1"),
        (("-u", "65534"), "user 65534"),
    ):
        assert f"does not have {what};" in error(bob, *run, *options, "test", "true", code=125)


def test_ignored_owners(bob: User, give: Give) -> None:
    """All files are the user's; said once, the layer is whole, and a command can be root only."""
    layout = readable_layout(bob, Image([SHADOW]))
    loaded = bob.pullpipe("load", "--ignore-owners", "--progress=plain", "-t", "plain", layout)
    assert loaded.returncode == 0, loaded.stderr
    [warning] = [line for line in loaded.stderr.splitlines() if "owners" in line]
    assert warning.endswith("owners that the user namespace does not have are ignored: 'etc/shadow' and 2 more")
    give(bob, list(SHADOW.entries), options=("--ignore-owners",))
    done = bob.pullpipe("run", "--rm", "test", "stat", "-c", "%u:%g %a", "/etc/shadow", "/home/u", "/home/u/f")
    assert done.stdout.split("\n")[:3] == ["0:0 644", "0:0 755", "0:0 4755"]
    assert bob.pullpipe("verify", "--deep", "--quiet", "--format=json").stdout == "[]\n"
    assert "does not have user 1000" in error(bob, "run", "--rm", "-u", "1000", "test", "true", code=125)

    assert "0:42" in error(bob, "unpack", "--quiet", "test", "flat")
    done = bob.pullpipe("unpack", "--quiet", "--ignore-owners", "test", "flat2")
    assert done.returncode == 0, done.stderr
    assert (bob.home / "flat2/home/u/f").stat().st_uid == bob.uid


def test_a_layer_that_is_not_as_it_was_when_owners_were_ignored(bob: User) -> None:
    layout = readable_layout(bob, Image([SHADOW]))
    assert bob.pullpipe("load", "-q", "--ignore-owners", "-t", "test", layout).returncode == 0
    [file] = bob.store.glob("layers/sha256/*/fs/home/u/f")
    file.chmod(0o755)
    found = bob.pullpipe("verify", "--deep", "--quiet")
    assert found.returncode == 1
    assert "home/u/f" in found.stdout
    assert bob.pullpipe("repair", "--no-fetch", "--quiet").returncode == 0
    assert file.stat().st_mode & 0o7777 == 0o4755
    assert file.stat().st_uid == bob.uid


def test_ids_in_two_lots(carol: User) -> None:
    """One behind the other, and not one more."""
    for number, code in ((110, 0), (111, 1)):
        layout = readable_layout(carol, Image([Layer([File("f", uid=number, gid=11)])]))
        done = carol.pullpipe("load", "--quiet", "-t", "test", layout)
        assert done.returncode == code, done.stderr
    assert "does not have its owner, 111:11;" in done.stderr
    [file] = carol.store.glob("layers/sha256/*/fs/f")
    assert (file.stat().st_uid, file.stat().st_gid) == (4_100_099, 4_100_000)
    done = carol.pullpipe("unshare", "cat", "/proc/self/gid_map")
    assert [row.split() for row in done.stdout.splitlines()] == [
        ["0", str(carol.uid), "1"],
        ["1", "4000000", "10"],
        ["11", "4100000", "100"],
    ]


def test_ids_that_cannot_be_mapped(dave: User) -> None:
    """What newuidmap says is told, and where to look."""
    line = error(dave, "prune")
    assert "newuidmap cannot map the ids of /etc/subuid and /etc/subgid (" in line
    assert "newuidmap: write to uid_map failed: Invalid argument" in line
    assert "check both files" in line


def test_without_the_programs(alice: User) -> None:
    done = alice.run("env", "PATH=/nowhere", sys.executable, "-m", "pullpipe", "prune")
    assert done.returncode == 1
    assert "newuidmap, which maps the ids" in done.stderr
    assert "install the package uidmap" in done.stderr


def test_without_new_privileges(alice: User) -> None:
    """Then these programs are as little as anybody is."""
    done = alice.pullpipe("prune", before=("setpriv", "--no-new-privs"))
    assert done.returncode == 1
    assert "leave away the no_new_privs that this was started with" in done.stderr
    assert done.stderr.count("\n") == 1

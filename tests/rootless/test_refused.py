"""Where there are no user namespaces: what works all the same, and what is said of the rest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.rootless.conftest import Give
from tests.support.users import User

pytestmark = pytest.mark.needs_root

# In a user namespace with all of the machine's ids, whose limit of further ones is 0.
_NONE_ALLOWED = """
import ctypes, os, sys
ours, theirs = os.pipe()
parent = os.getpid()
if os.fork() == 0:
    os.read(ours, 1)
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{parent}/{name}", "w") as file:
            file.write("0 0 4294967295")
    os._exit(0)
assert ctypes.CDLL(None).unshare(0x10000000) == 0
os.write(theirs, b"s")
os.wait()
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
os.execvp(sys.argv[1], sys.argv[1:])
"""
NONE_ALLOWED = (sys.executable, "-c", _NONE_ALLOWED)


def in_chroot(*, sysctl: str = "", value: str = "") -> tuple[str, ...]:
    """Where the kernel makes no user namespace; with a setting of the kernel's that another kernel has."""
    script = "mount --rbind / /mnt && "
    if sysctl:
        script += f"mount -t tmpfs tmpfs /mnt/proc/sys/kernel && echo {value} > /mnt/proc/sys/kernel/{sysctl} && "
    return ("unshare", "--mount", "--propagation=private", "sh", "-c", f'{script} exec chroot /mnt "$@"', "sh")


REFUSALS = {
    "none allowed": (NONE_ALLOWED, "no more than 0 user namespaces are allowed", "sysctl user.max_user_namespaces="),
    "chroot": (in_chroot(), "the kernel refuses it here (Operation not permitted), as in a chroot", "leave that"),
    "Debian": (
        in_chroot(sysctl="unprivileged_userns_clone", value="0"),
        "the kernel gives user namespaces to root only",
        "`sysctl kernel.unprivileged_userns_clone=1`",
    ),
    "Ubuntu": (
        in_chroot(sysctl="apparmor_restrict_unprivileged_userns", value="1"),
        "AppArmor allows user namespaces only to programs that it knows",
        "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`",
    ),
}


@pytest.mark.parametrize("where", REFUSALS)
def test_what_is_said(alice: User, where: str) -> None:
    """One line with the cause and the remedy."""
    before, cause, remedy = REFUSALS[where]
    done = alice.pullpipe("prune", before=before)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("pullpipe: error: without root this takes a user namespace, and ")
    assert cause in line
    assert remedy in line
    assert line.endswith("or use sudo")


def test_every_command_that_takes_one(alice: User) -> None:
    (alice.home / "layout").mkdir()
    for words, code in (
        (("pull", "localhost:1/a"), 1),
        (("run", "localhost:1/a"), 125),
        (("load", "layout"), 1),
        (("unpack", "a", "new"), 1),
        (("umount", "layout"), 1),
        (("rmi", "a"), 1),
        (("rm", "a"), 1),
        (("df",), 1),
        (("verify",), 1),
        (("repair",), 1),
        (("unshare", "true"), 1),
    ):
        done = alice.pullpipe(*words, before=NONE_ALLOWED)
        assert (done.returncode, done.stdout) == (code, ""), words
        assert "no more than 0 user namespaces are allowed" in done.stderr, words


def test_what_takes_none(alice: User, give: Give) -> None:
    """Reading the records and blobs, which are the user's own."""
    give(alice)
    for words in (
        ("images",),
        ("ps",),
        ("inspect", "test"),
        ("save", "-o", "saved.tar", "test"),
        ("save", "--format=oci-archive", "-o", "saved2.tar", "test"),
        ("save", "--format=oci-dir", "-o", "saved", "test"),
    ):
        done = alice.pullpipe(*words, before=NONE_ALLOWED)
        assert done.returncode == 0, done.stderr


def test_mount(alice: User, give: Give, tmp_path: Path) -> None:
    """It could be seen in the namespace only; the line names what can be done instead."""
    give(alice)
    (alice.home / "m").mkdir()
    done = alice.pullpipe("mount", "test", "m")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert "in its own namespace only" in line
    assert "`pullpipe unpack`" in line
    assert "`pullpipe unshare`" in line

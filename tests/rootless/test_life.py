"""Containers that go on, and further commands in them, of a user who is not root."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.rootless.conftest import Give
from tests.rootless.test_run import DOCKERS_CAPABILITIES, error, out
from tests.runner.test_exec import WATCH
from tests.support.processes import PATIENCE, Watched, until
from tests.support.users import User

pytestmark = pytest.mark.needs_root

FOREVER = "trap 'echo ended; exit 3' TERM; echo up; while :; do sleep 0.02; done"


@pytest.fixture(params=["alice", "bob"])
def user(request: pytest.FixtureRequest, users: Mapping[str, User], give: Give) -> Iterator[User]:
    """With ids of their own, and without; what they have started is ended."""
    with users[request.param].at_a_new_home() as user:
        give(user)
        yield user
        if names := out(user.pullpipe("ps", "-q")).split():
            out(user.pullpipe("rm", "-f", *names))


def start(user: User, script: str, *options: str) -> None:
    out(user.pullpipe("run", "-d", "--name", "c", *options, "test", "sh", "-c", script))


def first_process(user: User) -> Watched:
    found = re.search(r'"Pid": (\d+)', out(user.pullpipe("inspect", "c")))
    assert found
    return Watched(int(found[1]))


def test_a_life(user: User) -> None:
    """Started, looked at, stopped, removed."""
    start(user, FOREVER, "--label=a")
    until(lambda: user.pullpipe("logs", "c").stdout == "up\n", "it says nothing")
    assert "up " in out(user.pullpipe("ps", "-f", "label=a"))
    assert "is running" in error(user.pullpipe("rm", "c"), 1)
    out(user.pullpipe("stop", "c"))
    assert user.pullpipe("logs", "-f", "c").stdout == "up\nended\n"
    assert out(user.pullpipe("wait", "c")) == "3"
    assert out(user.pullpipe("restart", "c")) == "c"
    until(lambda: user.pullpipe("logs", "c").stdout == "up\nended\nup\n", "it does not begin again")
    out(user.pullpipe("exec", "c", "touch", "/new"))
    assert out(user.pullpipe("diff", "c")) == "A /new"
    for which in ("running", "ended"):
        (user.home / which).write_text(which)
        os.chown(user.home / which, user.uid, user.uid)
        out(user.pullpipe("cp", which, "c:/"))
        out(user.pullpipe("cp", f"c:/{which}", "copy"))
        assert ((user.home / "copy").read_text(), (user.home / "copy").stat().st_uid) == (which, user.uid)
        out(user.pullpipe("stop", "c"))
    assert out(user.pullpipe("rm", "c")) == "c"
    assert os.listdir(user.store / "containers") == []


def test_a_further_command(user: User) -> None:
    """In the same user namespace, with the same rights, and another user of it where there is one."""
    start(user, "sleep 1000", "--init" if user.name == "bob" else "--rm")
    script = "for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done; cat /proc/self/uid_map"
    inside = out(user.pullpipe("exec", "c", "sh", "-c", script)).split("\n")
    outside = {os.readlink(f"/proc/self/ns/{kind}") for kind in ("cgroup", "ipc", "mnt", "pid", "user", "uts")}
    assert not outside & set(inside)
    assert inside[7].split() == ["0", str(user.uid), "1"]
    fields = dict(
        row.split(":\t", 1)
        for row in out(user.pullpipe("exec", "c", "cat", "/proc/self/status")).split("\n")
        if ":\t" in row
    )
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == DOCKERS_CAPABILITIES
    assert (fields["Seccomp"], fields["Seccomp_filters"]) == ("2", "1")
    assert out(user.pullpipe("exec", "-i", "c", "cat", stdin="words")) == "words"
    assert user.pullpipe("exec", "c", "sh", "-c", "exit 7").returncode == 7
    assert "nope" in error(user.pullpipe("exec", "c", "nope"), 127)
    if user.ids:
        assert out(user.pullpipe("exec", "-u", "1000:5", "c", "id")).startswith("uid=1000 gid=5")
    else:
        assert "does not have user 1000" in error(user.pullpipe("exec", "-u", "1000", "c", "id"), 125)


def test_by_somebody_else(alice: User, bob: User, give: Give) -> None:
    """Another user's containers are another's: not even their store can be looked into."""
    give(alice)
    start(alice, "sleep 1000")
    done = bob.pullpipe("--root", alice.store, "exec", "c", "true")
    assert "pullpipe: error: " in done.stderr
    assert done.returncode == 125
    out(alice.pullpipe("rm", "-f", "c"))


def test_a_group_that_cannot_be_entered(alice: User, give: Give) -> None:
    """With cgroup v2, a session may not move its processes into the group of a container with limits."""
    give(alice)
    start(alice, FOREVER)
    [state] = alice.store.glob("containers/*/state.json")
    (alice.home / "group").mkdir()
    (alice.home / "group/cgroup.procs").touch(0o644)  # root's
    kept = state.read_bytes()
    state.write_text(json.dumps(json.loads(kept) | {"cgroups": [str(alice.home / "group")]}))
    assert "systemd-run --user --scope" in error(alice.pullpipe("exec", "c", "true"), 125)
    state.write_bytes(kept)
    out(alice.pullpipe("rm", "-f", "c"))


def test_a_command_of_another_user(alice: User, give: Give) -> None:
    """The first process is not the user's own; it can be joined and ended all the same. A capability to trace does not
    reach what was started outside of the user namespace."""
    give(alice)
    start(alice, FOREVER, "-u", "1000", "--cap-add=SYS_PTRACE")
    process = first_process(alice)
    assert os.stat(f"/proc/{process.pid}").st_uid == alice.owner(1000)
    assert out(alice.pullpipe("exec", "-u", "0", "c", "id", "-u")) == "0"
    assert out(alice.pullpipe("exec", "c", "id", "-u")) == "1000"
    out(alice.pullpipe("kill", "c"))
    assert process.ended()
    assert out(alice.pullpipe("wait", "c")) == "137"
    assert out(alice.pullpipe("rm", "c")) == "c"


def test_a_terminal(alice: User, give: Give) -> None:
    give(alice)
    start(alice, "sleep 1000", "--init")
    master, slave = pty.openpty()
    os.fchown(slave, alice.uid, -1)
    command = alice.command(
        sys.executable, "-m", "pullpipe", "exec", "-it", "c", "sh", "-c", "read x; echo got $x; tty"
    )
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
        os.close(slave)
        os.write(master, b"word\n")
        assert process.wait(PATIENCE) == 0
    seen = b""
    while select.select([master], [], [], 0)[0]:
        try:
            seen += os.read(master, 4096)
        except OSError:
            break
    os.close(master)
    assert b"got word\r\n/dev/pts/" in seen
    out(alice.pullpipe("rm", "-f", "c"))


def test_the_monitor_is_killed(alice: User, give: Give) -> None:
    """Nothing is left but the record; of what was to be removed, not even that."""
    give(alice)
    for options, left in (((), ["c"]), (("--rm",), [])):
        start(alice, "sleep 1000", *options)
        process = first_process(alice)
        monitor = re.search(r"^PPid:\t(\d+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        assert monitor
        os.kill(int(monitor[1]), signal.SIGKILL)
        assert process.ended()
        assert out(alice.pullpipe("run", "--rm", "--name=d", "test", "echo", "ran")) == "ran"  # the next command
        assert [row.split()[1] for row in out(alice.pullpipe("ps")).split("\n")[1:]] == left
        alice.pullpipe("rm", "c")
    assert os.listdir(alice.store / "containers") == []


def test_nobody_sees_our_program(alice: User, give: Give) -> None:
    """Not even who may trace in the user namespace: `tests/runner/test_exec.py` has the control for these eyes."""
    give(alice)
    start(alice, WATCH, "--cap-add=SYS_PTRACE")
    for _ in range(8):
        out(alice.pullpipe("exec", "c", "true"))
    seen = alice.pullpipe("logs", "c").stdout
    assert "/proc/1/exe" in seen
    assert os.path.realpath(sys.executable) not in seen
    out(alice.pullpipe("rm", "-f", "c"))

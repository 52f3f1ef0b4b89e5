"""Containers that nobody waits for, of a user who is not root, who also runs as an id that is not the user's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.rootless.conftest import Give
from tests.support.processes import until
from tests.support.users import User

pytestmark = pytest.mark.needs_root


def done(user: User, *words: str | Path, code: int = 0) -> str:
    """What the command prints; on its standard error, if it is to fail."""
    finished = user.pullpipe(*words)
    assert finished.returncode == code, (finished.stdout, finished.stderr)
    return (finished.stderr if code else finished.stdout).removesuffix("\n")


@pytest.fixture(params=["alice-1000", "bob-0"])
def whose(request: pytest.FixtureRequest, give: Give) -> Iterator[tuple[User, tuple[str, ...]]]:
    """A user with an image, and the option that says as whom to run."""
    name, _, uid = request.param.partition("-")
    user: User = request.getfixturevalue(name)
    give(user)
    yield user, ("-u", uid)
    if names := done(user, "ps", "-q").split():
        done(user, "rm", "-f", *names)


SCRIPT = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.02; done"


@pytest.mark.parametrize("more", [(), ("--init", "--pid=host")])
def test_a_life(more: tuple[str, ...], whose: tuple[User, tuple[str, ...]]) -> None:
    """It is joined, heard, stopped and removed, each by a command that is in no user namespace yet, or in another."""
    user, as_whom = whose
    done(user, "run", "-d", "--name", "c", *as_whom, *more, "test", "sh", "-c", SCRIPT)
    assert done(user, "exec", "c", "id", "-u") == as_whom[1]
    assert done(user, "exec", "-u", "0", "c", "id", "-u") == "0"
    assert [row["name"] for row in json.loads(done(user, "ps", "--format=json"))] == ["c"]
    assert "is running" in done(user, "rm", "c", code=1)
    assert done(user, "stop", "c") == "c"
    assert done(user, "wait", "c") == "3"
    assert done(user, "logs", "c") == "up\nbye"
    assert done(user, "rm", "c") == "c"
    assert os.listdir(user.store / "containers") == []


@pytest.mark.parametrize("more", [("--rm",), ("--init", "--pid=host")])
def test_removing_what_runs(more: tuple[str, ...], whose: tuple[User, tuple[str, ...]]) -> None:
    """And, with it, what does not."""
    user, as_whom = whose
    done(user, "run", "--name", "ended", *as_whom, "test", "true")
    done(user, "run", "-d", "--name", "c", *as_whom, *more, "test", "sleep", "1000")
    assert done(user, "rm", "-f", "c", "ended") == "c\nended"
    assert os.listdir(user.store / "containers") == []
    assert "no container 'c'" in done(user, "rm", "-f", "c", code=1)


def test_from_another_namespace(alice: User, give: Give) -> None:
    """Root of one is nobody in another: what cannot be done there is said, and where it can; the rest is done."""
    give(alice)
    done(alice, "run", "--name", "ended", "test", "true")
    done(alice, "run", "-d", "--name", "c", "-u", "1000", "test", "sleep", "1000")
    try:
        pullpipe = (sys.executable, "-m", "pullpipe")
        said = done(alice, "unshare", *pullpipe, "kill", "c", code=1)
        assert said.endswith("do it where it was started, not in `pullpipe unshare`")
        stopped = alice.pullpipe("unshare", *pullpipe, "stop", "c", "ended")
        assert (stopped.returncode, stopped.stdout, stopped.stderr.count("\n")) == (1, "ended\n", 1)
        assert "be that user" in done(alice, "unshare", *pullpipe, "exec", "c", "true", code=125)
    finally:
        done(alice, "rm", "-f", "c", "ended")


@pytest.mark.parametrize("running", [True, False])
def test_copies(running: bool, alice: User, give: Give) -> None:
    """With -a, the owners in the container are those that they are outside; without, all is the user's, or root's."""
    give(alice)
    script = "mkdir -m 700 /tmp/d; echo in > /tmp/d/f; chmod 600 /tmp/d/f; echo up; sleep 1000"
    done(alice, "run", "-d", "--name", "c", "-u", "1000", "test", "sh", "-c", script)
    until(lambda: done(alice, "logs", "c") == "up", "it does not begin")
    if not running:
        done(alice, "stop", "-t", "0", "c")
    for options, name, outside, inside in ((["-a"], "kept", alice.owner(1000), "1000"), ([], "mine", alice.uid, "0")):
        done(alice, "cp", *options, "c:/tmp/d", name)
        assert {path.stat().st_uid for path in (alice.home / name, alice.home / name / "f")} == {outside}
        assert (alice.home / name / "f").read_text() == "in\n"
        done(alice, "cp", *options, name, f"c:/{name}")
        if running:
            assert done(alice, "exec", "-u", "0", "c", "stat", "-c", "%u", f"/{name}/f") == inside
    done(alice, "rm", "-f", "c")
    done(alice, "unshare", "rm", "-r", "kept")


def test_copies_without_ids(bob: User, give: Give) -> None:
    """What is root's there is the user's, and back."""
    give(bob)
    done(bob, "run", "--name", "c", "test", "sh", "-c", "echo in > /f")
    done(bob, "cp", "-a", "c:/f", "f")
    assert (bob.home / "f").stat().st_uid == bob.uid
    done(bob, "cp", "-a", "f", "c:/g")
    assert " 0/0 " in bob.run("sh", "-c", f"{sys.executable} -m pullpipe cp c:/g - | tar --numeric-owner -tv").stdout


def test_a_runtime(bob: User, give: Give) -> None:
    """It gets along with one id, too: terminals have no group of their own then."""
    require("runc")
    give(bob)
    assert done(bob, "run", "--rm", "--runtime=runc", "test", "stat", "-c", "%u", "/dev/pts/ptmx") == "0"
    look = "test -w /dev/shm && ls /dev"
    for options in ((), ("--runtime=runc",)):  # only the machine's root may show the machine's message queues
        shown = done(bob, "run", "--rm", "--ipc=host", *options, "test", "sh", "-c", look)
        assert "mqueue" not in shown.split()


def test_whose_groups(alice: User, bob: User, give: Give) -> None:
    """With ids, those of the user stay outside. Without, nobody can give them up, and docs/rootless.md says so."""
    for user, expected in ((alice, "0"), (bob, "65534")):
        give(user)
        command = user.command(
            sys.executable, "-m", "pullpipe", "run", "--rm", "test", "grep", "Groups", "/proc/self/status"
        )
        command[command.index("--clear-groups")] = "--groups=4242"
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert shown.stdout.split() == ["Groups:", expected], shown.stderr

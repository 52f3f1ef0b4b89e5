"""Containers that nobody waits for, of a user who is not root, who also runs as an id that is not the user's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rootless.conftest import Give
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
    """Root of one is nobody in another: what cannot be done there is said, and where it can."""
    give(alice)
    done(alice, "run", "-d", "--name", "c", "-u", "1000", "test", "sleep", "1000")
    try:
        pullpipe = (sys.executable, "-m", "pullpipe")
        said = done(alice, "unshare", *pullpipe, "kill", "c", code=1)
        assert said.endswith("do it where it was started, not in `pullpipe unshare`")
        assert "be that user" in done(alice, "unshare", *pullpipe, "exec", "c", "true", code=125)
    finally:
        done(alice, "rm", "-f", "c")


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

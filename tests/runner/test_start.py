"""`pullpipe start`, `restart` and `rename`: containers that have ended, once more."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Cli, require
from tests.runner.rig import containers, emptied, error, out
from tests.support.processes import until

pytestmark = pytest.mark.needs_root

# Counts how often it has been run, and tells how it is walled in.
COUNT = """
    echo >> /count; wc -l < /count; echo $A $(id -u) $(pwd) $(hostname) $(ulimit -n) $0
    grep -c . /given; grep CapBnd /proc/self/status; df /t | tail -1; touch /given 2> /dev/null || echo read-only
"""
WALLS = ("-e", "A=b", "-u", "0:0", "-w", "/srv", "--hostname=h", "--ulimit=nofile=77", "--cap-drop=CHOWN", "--tmpfs=/t")


@pytest.fixture
def store_root(shared: Path) -> Iterator[Path]:
    yield shared
    emptied(shared)


@pytest.fixture
def ended(cli: Cli) -> None:
    """`c`, which has been run once, behind walls of its own."""
    out(cli("run", "--name", "c", *WALLS, "-v", "/etc/hostname:/given:ro", "test", "sh", "-c", COUNT, "word"))


def test_once_more(cli: Cli, ended: None) -> None:
    """Detached or not: in the tree that it has left, with all that `run` was told."""
    shown = out(cli("start", "-a", "c"))
    assert shown.split("\n")[:3] == ["2", "b 0 /srv h 77 word", "1"]
    assert int(shown.split("\n")[3].split()[1], 16) & 1 == 0
    assert shown.split("\n")[4].startswith("tmpfs")
    assert shown.endswith("read-only")
    assert out(cli("start", "c")) == "c"
    assert out(cli("wait", "c")) == "0"
    assert cli("logs", "c").stdout == shown.replace("2", "3", 1) + "\n"
    [found] = containers(cli)
    assert (found["status"], found["exit_code"]) == ("exited (0)", 0)


def test_exit_codes_and_streams(cli: Cli) -> None:
    """With -a and -i as in the foreground; a failure is told as `run` tells it."""
    out(cli("run", "--name", "c", "-i", "test", "sh", "-c", "read x; echo got $x; exit ${x:-0}"))
    done = cli("start", "-ai", "c", stdin="7\n")
    assert (done.returncode, done.stdout) == (7, "got 7\n")
    assert cli("start", "-a", "c").stdout == "got\n"
    error(cli("run", "--name", "d", "test", "nope"), 127)
    assert "nope" in error(cli("start", "d"), 127)
    assert "nope" in error(cli("start", "-a", "d"), 127)
    assert "one container at a time" in error(cli("start", "-a", "c", "d"), 125)


def test_what_runs(cli: Cli) -> None:
    """It is left alone; `restart` stops it first. Its end is waited for, not that of the time before."""
    script = "trap 'exit 3' TERM; echo >> /count; wc -l < /count; while :; do sleep 0.02; done"
    out(cli("run", "-d", "--name", "c", "test", "sh", "-c", script))
    until(lambda: cli("logs", "c").stdout == "1\n", "it does not begin")
    first = json.loads(out(cli("inspect", "c")))["State"]["Pid"]
    assert out(cli("start", "c")) == "c"
    assert json.loads(out(cli("inspect", "c")))["State"]["Pid"] == first
    assert out(cli("restart", "c")) == "c"
    until(lambda: cli("logs", "c").stdout == "1\n2\n", "it does not begin again")
    [found] = containers(cli)
    assert (found["status"], found["exit_code"]) == ("running", None)
    os.kill(int(Path(f"/proc/{json.loads(out(cli('inspect', 'c')))['State']['Pid']}/stat").read_text().split()[3]), 9)
    assert out(cli("wait", "c")) == "137"
    assert out(cli("restart", "c")) == "c"
    out(cli("rm", "-f", "c"))


def test_one_by_one(cli: Cli) -> None:
    """With a name that nobody has among them: it is told, the others are done all the same, and the exit code tells."""
    for name in ("a", "b"):
        script = "trap 'exit 3' TERM; echo up; while :; do sleep 0.02; done"
        out(cli("run", "-d", "--name", name, "test", "sh", "-c", script))
    until(lambda: all(cli("logs", name).stdout == "up\n" for name in ("a", "b")), "they do not begin")
    for command, shown, code in (
        (("stop",), "a\nb\n", 1),
        (("wait",), "3\n3\n", 1),
        (("start",), "a\nb\n", 125),
        (("restart",), "a\nb\n", 125),
        (("kill",), "a\nb\n", 1),
        (("rm", "-f"), "a\nb\n", 1),
    ):
        done = cli(*command, "a", "nope", "b")
        assert "no container 'nope'" in error(done, code)
        assert done.stdout == shown, command
    assert containers(cli) == []


def test_limits(cli: Cli) -> None:
    """In cgroups that are made anew."""
    script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2> /dev/null || cat /sys/fs/cgroup/memory.max"
    done = cli("run", "--name", "c", "--memory", "64m", "test", "sh", "-c", script)
    if done.returncode == 125:
        pytest.skip(f"there are no cgroups to be had here: {done.stderr}")
    assert out(cli("start", "-a", "c")) == out(done) == "67108864"


def test_refused(cli: Cli) -> None:
    """What never had a command of ours, and what a runtime ran."""
    assert "no container" in error(cli("start", "nope"), 125)
    runc = require("runc")
    out(cli("run", "--name", "c", "--runtime", runc, "test", "true"))
    assert "handed over to" in error(cli("start", "c"), 125)


def test_a_source_that_is_gone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    out(cli("run", "--name", "c", "-v", f"{tmp_path}/source:/x", "test", "true"))
    (tmp_path / "source").rmdir()
    assert "see that it is there" in error(cli("start", "c"), 125)


def test_rename(cli: Cli, ended: None) -> None:
    """Also while it runs; two never have one name."""
    out(cli("run", "-d", "--name", "d", "test", "sleep", "1000"))
    assert cli("rename", "d", "e").returncode == 0
    assert sorted(str(one["name"]) for one in containers(cli)) == ["c", "e"]
    assert "taken" in error(cli("rename", "e", "c"), 1)
    assert "is none" in error(cli("rename", "e", "a/b"), 1)
    out(cli("rm", "-f", "e"))
    assert [str(one["name"]) for one in containers(cli)] == ["c"]

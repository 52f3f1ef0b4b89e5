"""`pullpipe diff`: what a container has added, changed and deleted."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.runner.rig import out
from tests.support.images import Dir, File, Symlink

pytestmark = pytest.mark.needs_root

TREE = [
    Dir("etc"),
    File("etc/kept"),
    File("etc/gone"),
    Dir("old"),
    File("old/a"),
    File("old/b"),
    Symlink("link", "etc"),
]


def diff(cli: Cli, name: str = "c") -> set[str]:
    return set(filter(None, out(cli("diff", name)).split("\n")))


def test_what_has_changed(load: Callable[..., None], cli: Cli, busybox: None) -> None:
    """By A, C and D, the directories on the way among them; of a container that runs, and of one that has ended."""
    load(*TREE)
    script = """
        echo x > /new; echo x >> /etc/kept; rm /etc/gone; mkdir -p /d/e; rm /link; ln -s / /link
        rm -r /old; mkdir /old; touch /old/b /old/c; touch /x; rm /x; test $0 = once || sleep 1000
    """
    expected = {
        *("A /new", "C /etc", "C /etc/kept", "D /etc/gone", "A /d", "A /d/e", "C /link"),
        *("C /old", "D /old/a", "C /old/b", "A /old/c"),
    }
    out(cli("run", "--name", "c", "test", "sh", "-c", script, "once"))
    assert diff(cli) == expected
    shown = json.loads(out(cli("diff", "--format=json", "c")))
    assert {f"{one['kind']} {one['path']}" for one in shown} == expected
    assert [one["path"] for one in shown] == sorted(one["path"] for one in shown)
    out(cli("run", "-d", "--name", "d", "test", "sh", "-c", script))
    out(cli("exec", "d", "sh", "-c", "until test -e /old/c && ! test -e /x; do sleep 0.02; done"))
    assert diff(cli, "d") == expected
    out(cli("rm", "-f", "d"))


def test_nothing(load: Callable[..., None], cli: Cli, busybox: None) -> None:
    """What a runner needs to mount something on does not count, also where the image has no such place."""
    load()
    out(cli("run", "--name", "c", "test", "true"))
    assert diff(cli) == set()
    load(Dir("etc", mode=0o700))
    out(cli("run", "--name", "d", "test", "chmod", "711", "/etc"))
    assert diff(cli, "d") == {"C /etc"}
    assert "no container" in cli("diff", "nope").stderr


def test_odd_names(load: Callable[..., None], cli: Cli, busybox: None) -> None:
    """Nothing of them reaches a terminal; JSON has them whole."""
    load()
    out(cli("run", "--name", "c", "test", "sh", "-c", "touch \"$(printf '/a\\033[31m\\nC b')\""))
    assert diff(cli) == {"A /a\\x1b[31m\\nC b"}
    assert json.loads(out(cli("diff", "--format=json", "c")))[0]["path"] == "/a\x1b[31m\nC b"


def test_a_tree_that_changes_meanwhile(load: Callable[..., None], cli: Cli, busybox: None, tmp_path: Path) -> None:
    """A directory that becomes a symlink to one of the host, and back: of the host nothing is ever told."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "secret").touch()
    load()
    script = f"""
        mkdir -p /t/real/below; ln -s {victim} /t/link
        while :; do mv /t/real /t/x; mv /t/link /t/real; mv /t/real /t/link; mv /t/x /t/real; done
    """
    out(cli("run", "-d", "--name", "c", "test", "sh", "-c", script))
    failed: list[str] = []

    def look() -> None:
        for _ in range(4):
            done = cli("diff", "c")
            if done.returncode or "secret" in done.stdout:
                failed.append(done.stdout + done.stderr)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for one in lookers:
        one.start()
    for one in lookers:
        one.join()
    out(cli("rm", "-f", "c"))
    assert failed == []

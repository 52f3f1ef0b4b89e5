"""The Python API of a user who is not root; what differs from root's (tests/test_api.py)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.rootless.conftest import Give
from tests.support.images import File
from tests.support.users import User

pytestmark = pytest.mark.needs_root


def program(user: User, *lines: str) -> subprocess.CompletedProcess[str]:
    """Has the user run a program that has imported the API."""
    return user.run(sys.executable, "-c", "\n".join(["import asyncio, os, threading, pullpipe", *lines]))


def test_run_is_cancelled(alice: User, give: Give) -> None:
    """The container is gone, with its files of all owners, whoever is root of them."""
    give(alice)
    script = "mkdir -m 700 d; touch d/f; chown -R 5:5 d; echo > /shown/begun; exec sleep 1000"
    done = program(
        alice,
        "async def main():",
        "    store = pullpipe.open_store()",
        "    os.mkfifo('begun')",
        f"    command, options = ['sh', '-c', {script!r}], ['-v', os.getcwd() + ':/shown']",
        "    running = asyncio.create_task(pullpipe.run('test', *command, store=store, options=options))",
        "    await asyncio.to_thread(lambda: open('begun').read())",
        "    print(len(list(store.containers)))",
        "    running.cancel()",
        "    await asyncio.wait([running])",
        "    print(len(list(store.containers)))",
        "asyncio.run(main())",
    )
    assert (done.returncode, done.stdout) == (0, "1\n0\n"), done.stderr


@pytest.mark.parametrize("first", ["store = pullpipe.open_store()", ""], ids=["opened before", "only after"])
def test_the_store_of_who_has_become_root(alice: User, first: str) -> None:
    """It is the user's own, and so is the home directory that settings are looked for in."""
    done = program(alice, first, "pullpipe.become_root()", "print(pullpipe.open_store().root)")
    assert (done.returncode, done.stdout) == (0, f"{alice.store}\n"), done.stderr
    look = "print(os.path.expanduser('~'))"
    done = program(alice, "del os.environ['HOME']", look, "pullpipe.become_root()", look)
    before, after = done.stdout.splitlines()
    assert before == after


def test_mounted(alice: User, give: Give) -> None:
    """By root only, and seen in this process and those that it starts."""
    give(alice, [File("f", b"of the image")])
    (alice.home / "m").mkdir(mode=0o777)
    done = program(
        alice,
        "store = pullpipe.open_store()",
        "try:",
        "    with pullpipe.mounted('test', 'm', store): pass",
        "except pullpipe.PullpipeError as error:",
        "    print(type(error).__name__, error)",
        "pullpipe.become_root()",
        "with pullpipe.mounted('test', 'm', store):",
        "    print(open('m/f').read())",
    )
    assert done.returncode == 0, done.stderr
    refused, read = done.stdout.splitlines()
    assert refused == "NeedsRoot to mount an image takes root's rights; call pullpipe.become_root() first"
    assert read == "of the image"
    assert list((alice.home / "m").iterdir()) == []


def test_threads(alice: User) -> None:
    """With others in the process the kernel makes no user namespace, and that is what is said."""
    done = program(
        alice,
        "end = threading.Event()",
        "threading.Thread(target=end.wait).start()",
        "try:",
        "    pullpipe.become_root()",
        "except pullpipe.PullpipeError as error:",
        "    print(error)",
        "end.set()",
    )
    assert "a process with 2 threads cannot enter one; do it before there are others" in done.stdout, done.stderr

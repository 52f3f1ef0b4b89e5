"""Terminals, signals and the ends of processes, for a user who is not root."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.rootless.conftest import Give
from tests.support.processes import PATIENCE, Watched, descendants
from tests.support.terminals import Terminal
from tests.support.users import User

pytestmark = pytest.mark.needs_root

Start = Callable[..., Terminal]


@pytest.fixture(scope="module", params=["alice", "bob"])
def resident(request: pytest.FixtureRequest, users: Mapping[str, User]) -> Iterator[User]:
    """With ids in /etc/subuid, and without."""
    with users[request.param].at_a_new_home() as user:
        yield user


@pytest.fixture
def command(resident: User, give: Give) -> Callable[..., list[str]]:
    """The command line of `pullpipe run --rm OPTIONS test WORDS`."""
    if not resident.store.exists():
        give(resident)

    def command(*words: str, options: tuple[str, ...] = ()) -> list[str]:
        return resident.command(sys.executable, "-m", "pullpipe", "run", "--rm", *options, "test", *words)

    return command


@pytest.fixture
def terminal(command: Callable[..., list[str]]) -> Iterator[Start]:
    """A function that starts that behind a terminal."""
    open_ones: list[Terminal] = []

    def start(*words: str, options: tuple[str, ...] = ("-it",)) -> Terminal:
        open_ones.append(Terminal(command(*words, options=options)))
        return open_ones[-1]

    yield start
    for one in open_ones:
        one.close()


def test_a_terminal(terminal: Start, resident: User) -> None:
    """A pty of the container's, which belongs to whoever runs there, as large as ours."""
    script = "test -t 0 && stat -c %u $(tty) && stty size && echo up > /dev/tty && read line && echo got $line; exit 3"
    for user in ("0", "1000") if resident.ids else ("0",):
        shown = terminal("sh", "-c", script, options=("-it", "-u", user))
        shown.expect(rf"{user}\r\n33 77\r\nup\r\n")
        shown.type("word\n")
        shown.expect("got word")
        assert shown.process.wait(PATIENCE) == 3
        assert shown.modes() == shown.before


def test_its_size(terminal: Start) -> None:
    """Whenever ours changes; the command is told."""
    shown = terminal("sh", "-c", "trap 'stty size' WINCH; echo up; while :; do sleep 0.05; done")
    shown.expect("up\r\n")
    shown.resize(40, 100)
    shown.expect("40 100\r\n")


@pytest.mark.parametrize("init", [(), ("--init",)])
def test_control_c(init: tuple[str, ...], terminal: Start) -> None:
    """It interrupts what runs inside, and not pullpipe; also where another id than the caller's runs there."""
    shown = terminal("sh", options=("-it", *init))
    shown.expect("# ")
    shown.type('sh -c \'trap "exit 7" INT; echo re""ady; while :; do sleep 0.05; done\'\n')
    shown.expect("ready\r\n")
    shown.type("\x03")
    shown.expect("# ")
    shown.type("echo code=$?\n")
    shown.expect("code=7")
    shown.type("exit 5\n")
    assert shown.process.wait(PATIENCE) == 5


def test_control_c_without_a_terminal_of_its_own(terminal: Start, resident: User) -> None:
    """Then it comes to pullpipe, which passes it on, once; also to an id that is not the user's own."""
    script = "trap 'echo heard; exit 9' INT; echo up; while :; do sleep 0.05; done"
    for user in ("0", "1000") if resident.ids else ("0",):
        shown = terminal("sh", "-c", script, options=("-u", user))
        shown.expect("up\r\n")
        shown.type("\x03")
        shown.expect("heard\r\n")
        assert shown.process.wait(PATIENCE) == 9


def test_a_terminal_of_exec(resident: User, command: Callable[..., list[str]]) -> None:
    """The same for a further command in a container, also of another id."""
    del command  # it has made the image
    user = "1000" if resident.ids else "0"
    started = resident.pullpipe("run", "-d", "--name", "c", "-u", user, "test", "sleep", "1000")
    assert started.returncode == 0, started.stderr
    script = "stat -c %u $(tty); stty size; trap 'echo heard; exit 9' INT; trap 'stty size' WINCH; echo up; "
    script += "while :; do sleep 0.05; done"
    shown = Terminal(resident.command(sys.executable, "-m", "pullpipe", "exec", "-it", "c", "sh", "-c", script))
    try:
        shown.expect(rf"{user}\r\n33 77\r\nup\r\n")
        shown.resize(40, 100)
        shown.expect("40 100\r\n")
        shown.type("\x03")
        shown.expect("heard\r\n")
        assert shown.process.wait(PATIENCE) == 9
        assert shown.modes() == shown.before
    finally:
        shown.close()
        assert resident.pullpipe("rm", "-f", "c").returncode == 0


def test_the_terminal_goes_away(terminal: Start) -> None:
    """As when its window is closed: the container hears SIGHUP, and ends."""
    shown = terminal("sh", "-c", "echo up; exec sleep 1000")
    shown.expect("up\r\n")
    watched = [Watched(pid) for pid in descendants(shown.process.pid)]
    assert watched
    shown.hang_up()
    assert all(process.ended() for process in watched)
    for process in watched:
        process.close()


def test_standard_input_that_ends(command: Callable[..., list[str]]) -> None:
    """The command sees its end; without -i there is nothing in it from the start."""
    done = subprocess.run(
        command("sh", "-c", "cat; echo end", options=("-i",)), input=b"in\n", capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, b"in\nend\n"), done.stderr
    with subprocess.Popen(command("cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b""
        assert process.wait(PATIENCE) == 0


def test_orphans(command: Callable[..., list[str]]) -> None:
    """What the command leaves behind ends with it, whoever it runs as; and with --init it is reaped meanwhile."""
    script = "(setsid sleep 1000 &); sleep 1000 & echo up; read x"
    with subprocess.Popen(command("sh", "-c", script, options=("-i",)), stdin=-1, stdout=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        watched = [Watched(pid) for pid in descendants(process.pid)]
        assert len(watched) == 3
        process.stdin.close()
        process.wait(PATIENCE)
        assert all(one.ended() for one in watched)
        for one in watched:
            one.close()
    script = """
        for i in 1 2 3 4; do sh -c 'sleep 0 & exit 0'; done
        i=0
        while grep -q '^State:.Z' /proc/[0-9]*/status; do i=$((i+1)); test $i -lt 200 || exit 1; sleep 0.02; done
        cat /proc/1/comm
    """
    done = subprocess.run(command("sh", "-c", script, options=("--init",)), capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"init\n"), done.stderr

"""The standard streams of `run`, `exec` and `start -a`: what the command has of ours, and who waits for whom."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT, Cli, require
from tests.runner.rig import containers, emptied, error, host_python, line, out, pullpipe, started, terminal_of
from tests.support.processes import PATIENCE, until
from tests.support.terminals import Terminal

pytestmark = pytest.mark.needs_root

# Does what whoever is root may do with what is open, and by its name.
CHANGE = (
    "for s in 0 1 2; do chmod 4755 /proc/self/fd/$s; chown 1234 /proc/self/fd/$s; echo new > /proc/self/fd/$s; done"
)
NONBLOCKING = "import os\nfor stream in (0, 1, 2): os.set_blocking(stream, False)"
EARLIER = "what was there\n"


@pytest.fixture
def store_root(shared: Path) -> Iterator[Path]:
    yield shared
    emptied(shared)


@pytest.fixture
def terminal(store_root: Path) -> Iterator[Callable[..., Terminal]]:
    """A function that starts a container `c` behind a `Terminal`."""
    open_ones: list[Terminal] = []

    def start(*arguments: str, options: tuple[str, ...] = ("-it",)) -> Terminal:
        open_ones.append(terminal_of(store_root, "--name=c", *options, "test", *arguments))
        return open_ones[-1]

    yield start
    for one in open_ones:
        one.close()


def command(root: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pullpipe", "--root", str(root), *arguments]


WAYS = ("run", "run --runtime", "exec", "start -a")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, store_root: Path) -> Callable[..., list[str]]:
    """A function that gives the command line that has something run, with all three streams, in one of these ways."""
    return _way(request.param, store_root)


def _way(name: str, store_root: Path) -> Callable[..., list[str]]:
    def way(*words: str, options: tuple[str, ...] = ()) -> list[str]:
        if name == "exec":
            out(pullpipe(store_root, "run", "-d", "--name=e", *options, "test", "sleep", "1000"))
            return command(store_root, "exec", "-i", "e", *words)
        if name == "start -a":
            pullpipe(store_root, "run", "-i", "--name=s", *options, "test", *words)
            return command(store_root, "start", "-ai", "s")
        runtime = ("--runtime", require("runc")) if "runtime" in name else ()
        return command(store_root, "run", "--rm", "-i", *runtime, *options, "test", *words)

    return way


# What the command has.


def test_files(way: Callable[..., list[str]], tmp_path: Path) -> None:
    """They do not become setuid programs, nor somebody else's; what was in them stays, and what is only read, too."""
    files = {name: tmp_path / name for name in ("in", "out", "err")}
    for file in files.values():
        file.write_text(EARLIER)
        file.chmod(0o640)
    call = way("sh", "-c", CHANGE)
    with files["in"].open() as stdin, files["out"].open("a") as stdout, files["err"].open("a") as stderr:
        subprocess.run(call, cwd=PROJECT, stdin=stdin, stdout=stdout, stderr=stderr, timeout=60)
    assert {(oct(status.st_mode), status.st_uid) for status in map(os.stat, files.values())} == {("0o100640", 0)}
    assert files["in"].read_text() == EARLIER
    assert files["out"].read_text() == EARLIER + "new\n"
    assert files["err"].read_text().startswith(EARLIER)
    assert files["err"].read_text().endswith("new\n")


def test_pipes(way: Callable[..., list[str]]) -> None:
    """Who shares ours finds them as they were: none is the command's, which may want its own not to block."""
    call = way("python", "-S", "-c", NONBLOCKING, options=host_python())
    pipes = [os.pipe() for _ in range(3)]
    given = pipes[0][0], pipes[1][1], pipes[2][1]
    subprocess.run(call, cwd=PROJECT, stdin=given[0], stdout=given[1], stderr=given[2], timeout=60, check=True)
    assert [os.get_blocking(one) for one in given] == [True, True, True]
    assert {os.fstat(one).st_uid for one in given} == {0}
    for descriptor in (one for pipe in pipes for one in pipe):
        os.close(descriptor)


def test_a_terminal_of_ours(terminal: Callable[..., Terminal]) -> None:
    """Without -t it is on the other side of pipes; with -t, of the container's own."""
    for options in (("--rm", "-i"), ("--rm", "-it")):
        shown = terminal("sh", "-c", f"{CHANGE}; echo done", options=options)
        before = shown.status()
        shown.expect("done")
        assert shown.process.wait(PATIENCE) == 0
        after = shown.status()
        assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_ones(closed: str, way: Callable[..., list[str]], tmp_path: Path) -> None:
    """As the null device: the command has three, and nothing else of ours is taken for one."""
    said = tmp_path / "said"
    script = "for s in 0 1 2; do test -p /proc/self/fd/$s || exit 9; done; cat; echo out; echo err >&2; exit 7"
    call = way("sh", "-c", script)
    with said.open("w") as file:
        shell = subprocess.run(
            ["sh", "-c", f'"$@" {closed}', "sh", *call], cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    assert shell.returncode == 7, said.read_text()
    expected = {"err": ("<&-", ">&-"), "out": ("<&-", "2>&-")}
    assert sorted(said.read_text().split()) == [name for name, others in expected.items() if closed in others]


def test_closed_ones_of_other_commands(store_root: Path) -> None:
    """What prints to nobody is no failure."""
    shell = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command(store_root, "images")], cwd=PROJECT, capture_output=True, text=True
    )
    assert (shell.returncode, shell.stderr) == (0, "")


# What crosses.


def test_all_of_it(way: Callable[..., list[str]]) -> None:
    """Both ways, more than anything holds on the way, byte for byte."""
    data = os.urandom(3 << 20)
    done = subprocess.run(way("cat"), cwd=PROJECT, input=data, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"")


@pytest.mark.parametrize("name", ["run", "exec", "start -a"])
def test_its_order(name: str, store_root: Path) -> None:
    """Where output and errors go to one place, they come as they were written. (runc has pipes of its own, two.)"""
    call = _way(name, store_root)("sh", "-c", "for i in $(seq 500); do echo out $i; echo err $i >&2; done")
    done = subprocess.run(
        call,
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.stdout.split("\n")[:-1] == [f"{name} {number}" for number in range(1, 501) for name in ("out", "err")]


def test_a_reader_that_has_seen_enough(store_root: Path) -> None:
    """What writes more gets SIGPIPE, as it would without us; what does not goes on."""
    with started(store_root, "--rm", "--init", "test", "yes") as run:
        assert line(run) == "y"
        assert run.stdout is not None
        run.stdout.close()
        assert run.wait(PATIENCE) == 128 + 13
    with started(store_root, "--rm", "test", "sh", "-c", "yes; echo on >&2; exit 3") as run:
        assert line(run) == "y"
        assert run.stdout is not None
        run.stdout.close()
        assert run.wait(PATIENCE) == 3
        assert run.stderr is not None
        assert run.stderr.read().endswith(b"on\n")


def test_an_end_before_that_of_the_input(way: Callable[..., list[str]]) -> None:
    """Nobody waits for who could still write to a command that has ended."""
    with subprocess.Popen(
        way("sh", "-c", "echo up; exit 4"), cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        assert run.stdout.read() == b"up\n"
        assert run.wait(PATIENCE) == 4


def test_who_could_still_write(store_root: Path) -> None:
    """What a command of `exec` leaves behind holds its output open, and is not waited for."""
    out(pullpipe(store_root, "run", "-d", "--name=e", "test", "sleep", "1000"))
    assert out(pullpipe(store_root, "exec", "e", "sh", "-c", "sleep 1000 & yes >&2 & echo up")) == "up"


def test_streams_that_do_not_block(store_root: Path) -> None:
    """As other programs may have set what they share with us."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    call = command(store_root, "run", "--rm", "test", "head", "-c", "300000", "/dev/zero")
    with subprocess.Popen(call, cwd=PROJECT, stdout=writing) as run:
        filled_up(writing)
        with open(reading, "rb") as file:
            assert len(file.read()) == 300000
        assert run.wait(PATIENCE) == 0


def filled_up(writing: int) -> None:
    """Waits until nothing more goes into a pipe, and leaves it to the others who write to it."""
    until(lambda: not select.select([], [writing], [], 0)[1], "it does not write")
    os.close(writing)


@pytest.mark.parametrize("options", [(), ("-t",)])
def test_output_that_cannot_be_written(options: tuple[str, ...], store_root: Path) -> None:
    """It is said what could not, and the command does not go on for nothing."""
    call = command(store_root, "run", "--rm", *options, "test", "sh", "-c", "echo x; exec sleep 1000")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            call, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    done.stdout = ""
    assert "cannot write to standard output: no space left" in error(done, 125)


# Who waits.


def test_output_that_nobody_reads_yet(store_root: Path, cli: Cli) -> None:
    """As behind `less`: the container ends, which others see, and all of its output comes when it is read."""
    reading, writing = os.pipe()
    call = command(store_root, "run", "--name=c", "test", "head", "-c", "100000", "/dev/zero")
    with subprocess.Popen(call, cwd=PROJECT, stdout=writing) as run:
        filled_up(writing)
        assert out(cli("wait", "c")) == "0"
        assert out(cli("rm", "c")) == "c"
        with open(reading, "rb") as file:
            assert len(file.read()) == 100000
        assert run.wait(PATIENCE) == 0


def test_one_stream_does_not_hold_up_another(store_root: Path) -> None:
    reading, writing = os.pipe()
    call = command(store_root, "run", "--rm", "-i", "test", "sh", "-c")
    script = "head -c 1000000 /dev/zero & read x; echo got $x >&2; wait"
    with subprocess.Popen(
        [*call, script], cwd=PROJECT, stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE, bufsize=0
    ) as run:
        assert run.stdin is not None
        assert run.stderr is not None
        filled_up(writing)
        run.stdin.write(b"word\n")
        assert select.select([run.stderr], [], [], PATIENCE)[0]
        assert run.stderr.readline() == b"got word\n"
        with open(reading, "rb") as file:
            assert len(file.read()) == 1000000
        assert run.wait(PATIENCE) == 0


def blocked(terminal: Callable[..., Terminal], *options: str) -> Terminal:
    """One to which the command would write more, and nobody looks at it."""
    shown = terminal("yes", options=("-t", *options))
    until(shown.is_full, "it does not write")
    return shown


def test_a_terminal_that_nobody_reads(terminal: Callable[..., Terminal], cli: Cli) -> None:
    """As after Ctrl-S: the container can be stopped, and what is left to be shown is shown when somebody looks."""
    shown = blocked(terminal)
    assert out(cli("stop", "-t", "1", "c")) == "c"
    [found] = containers(cli)
    assert found["exit_code"] == 137
    assert out(cli("rm", "c")) == "c"
    shown.expect("y\r")
    assert shown.ended() == 137


def test_removing_what_nobody_reads(terminal: Callable[..., Terminal], cli: Cli) -> None:
    blocked(terminal)
    assert out(cli("rm", "-f", "c")) == "c"


def test_ending_a_runner_that_nobody_reads(terminal: Callable[..., Terminal]) -> None:
    """It passes the signal on, and does not wait for a reader, when somebody wants it to end."""
    shown = blocked(terminal, "--rm")
    shown.process.terminate()
    assert shown.process.wait(PATIENCE) == 143


def test_keys_that_nobody_reads(terminal: Callable[..., Terminal]) -> None:
    """They do not keep a signal from the command, nor our terminal from being as it was."""
    shown = terminal("sh", "-c", "stty raw -echo; echo up; exec sleep 1000", options=("--rm", "-it"))
    shown.expect("up")
    shown.type_until_full()
    shown.process.terminate()
    assert shown.process.wait(PATIENCE) == 143
    assert shown.modes() == shown.before


@pytest.mark.parametrize("options", [("--rm", "-it"), ("--rm", "-i")])
def test_control_d(options: tuple[str, ...], terminal: Callable[..., Terminal]) -> None:
    """The end of what is typed is the end of what the command reads, in a terminal of its own and without."""
    shown = terminal("sh", "-c", "cat; echo end", options=options)
    shown.type("word\n")
    shown.expect("word\r\n(?s:.*)word\r\n")
    shown.type("\x04")
    shown.expect("end\r\n")
    assert shown.process.wait(PATIENCE) == 0
    assert shown.modes() == shown.before

"""Containers that nobody waits for: `run -d`, and `logs`, `wait`, `kill`, `stop`, `rm -f`, `ps`, `inspect` of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT, Cli
from tests.runner.rig import BASE, containers, emptied, error, line, out, started
from tests.support.images import Image, write_layout
from tests.support.processes import PATIENCE, Watched, is_waited_for, until

pytestmark = pytest.mark.needs_root

# Says when it is told to end, and how: a command that does so has its trap set by then.
FOREVER = "trap 'echo ended; exit 3' TERM; echo up; while :; do sleep 0.02; done"

Start = Callable[..., str]


@pytest.fixture
def store_root(shared: Path) -> Iterator[Path]:
    yield shared
    emptied(shared)


@pytest.fixture
def start(cli: Cli) -> Start:
    """A function that runs `sh -c SCRIPT` as the container `c`, detached; returns the id."""

    def start(script: str, *options: str, name: str = "c") -> str:
        return out(cli("run", "-d", "--name", name, *options, "test", "sh", "-c", script))

    return start


@pytest.fixture
def follow(store_root: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """A function that starts `logs -f c`."""

    def follow(*options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pullpipe", "--root", str(store_root), "logs", "-f", *options, "c"]
        return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)

    return follow


def inspected(cli: Cli, name: str = "c") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out(cli("inspect", name)))
    return found


def first_process(cli: Cli) -> Watched:
    pid = inspected(cli)["State"]["Pid"]
    assert isinstance(pid, int)
    return Watched(pid)


def monitor_of(process: Watched) -> Watched:
    """The process that stays with a container."""
    found = re.search(r"^PPid:\t(\d+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    assert found
    return Watched(int(found[1]))


def test_it_goes_on(cli: Cli, start: Start) -> None:
    """The id is all that is printed; what the command prints is kept, and its exit code."""
    container_id = start("echo out; echo err >&2; read x && echo not reached")
    assert re.fullmatch("[0-9a-f]{64}", container_id)
    assert out(cli("wait", "c")) == "1"
    done = cli("logs", "c")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")
    [shown] = containers(cli)
    assert (shown["id"], shown["status"], shown["exit_code"]) == (container_id, "exited (1)", 1)


def test_nobody_keeps_what_we_were_given(store_root: Path, start: Start, cli: Cli) -> None:
    """`run -d` in a pipe ends the pipe, whatever descriptors it had; the monitor is of no session of ours."""
    ours, theirs = os.pipe()
    command = [sys.executable, "-m", "pullpipe", "--root", str(store_root), "run", "-d", "--name", "c", "test"]
    done = subprocess.run(
        [*command, "sleep", "1000"], cwd=PROJECT, stdout=theirs, stderr=theirs, pass_fds=(theirs,), timeout=PATIENCE
    )
    os.close(theirs)
    assert done.returncode == 0
    with open(ours, "rb") as file:
        assert len(file.read()) == 65
    monitor = monitor_of(first_process(cli))
    assert os.getsid(monitor.pid) == monitor.pid
    assert os.readlink(f"/proc/{monitor.pid}/cwd") == "/"
    assert b"pullpipe: monitor of c" in Path(f"/proc/{monitor.pid}/cmdline").read_bytes()


@pytest.mark.parametrize(("command", "code"), [("missing", 127), ("/etc/passwd", 126), ("/etc", 126)])
def test_what_cannot_be_started(command: str, code: int, cli: Cli) -> None:
    """As in the foreground: one line, and the code; with --rm nothing is left."""
    assert command in error(cli("run", "-d", "--rm", "test", command), code)
    assert containers(cli) == []
    assert "no user" in error(cli("run", "-d", "-u", "nobody-like-that", "test", "true"), 125)
    assert [container["exit_code"] for container in containers(cli)] == [125]


def test_removed_by_itself(cli: Cli, start: Start, store_root: Path) -> None:
    """--rm: whoever waits still hears how it ended."""
    start(FOREVER, "--rm")
    assert out(cli("stop", "c")) == "c"
    assert containers(cli) == []
    assert os.listdir(store_root / "containers") == []


def test_wait_for_what_is_removed(cli: Cli, start: Start, store_root: Path, tmp_path: Path) -> None:
    start("read x < /f; exit 5", "--rm", f"-v={fifo(tmp_path)}:/f")
    command = [sys.executable, "-m", "pullpipe", "--root", str(store_root), "wait", "c"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, bufsize=0) as waiting:
        lock = next((store_root / "containers").iterdir()) / "lock"
        until(lambda: is_waited_for(lock), "nobody waits")
        (tmp_path / "fifo").write_text("go\n")
        assert line(waiting) == "5"
    assert containers(cli) == []


def fifo(directory: Path) -> str:
    os.mkfifo(directory / "fifo")
    return str(directory / "fifo")


def test_standard_input(cli: Cli, start: Start) -> None:
    """Without -i there is nothing to read; with it, nothing comes, and the command waits."""
    start("cat; echo end")
    assert out(cli("wait", "c")) == "0"
    assert cli("logs", "c").stdout == "end\n"
    start("read x || exit 4; exit 5", "-i", name="d")
    assert out(cli("kill", "d")) == "d"
    assert out(cli("wait", "d")) == "137"


def test_a_terminal(cli: Cli, start: Start) -> None:
    """One of the container's own, that nobody looks at: a shell waits there."""
    start("test -t 0 && test -t 2 && tty; read x", "-t")
    until(lambda: "/dev/pts/0\n" in cli("logs", "c").stdout, "it says nothing")
    assert [container["status"] for container in containers(cli)] == ["running"]


# Logs.


def test_following(cli: Cli, start: Start, follow: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """Each line as it comes; at the container's end the rest, a line without end among it, and it is over."""
    start("echo one; read x < /f; echo two; read x < /f; printf three; exit 2", f"-v={fifo(tmp_path)}:/f")
    # Open all the time: the end of what one writer has written must not reach the next reader.
    with follow() as shown, (tmp_path / "fifo").open("w") as gate:
        assert line(shown) == "one"
        print("go", file=gate, flush=True)
        assert line(shown) == "two"
        print("go", file=gate, flush=True)
        assert shown.stdout is not None
        assert shown.stdout.read() == b"three"
        assert shown.wait(PATIENCE) == 0
    assert cli("logs", "c").stdout == "one\ntwo\nthree"


def test_following_what_is_removed(start: Start, follow: Callable[..., subprocess.Popen[bytes]], cli: Cli) -> None:
    start(FOREVER, "--rm")
    with follow() as shown:
        assert line(shown) == "up"
        out(cli("stop", "c"))
        assert line(shown) == "ended"
        assert shown.wait(PATIENCE) == 0


def test_much_output(cli: Cli, start: Start) -> None:
    """More than any buffer holds, long lines and no text among it: to the last byte."""
    start("seq 1 30000; head -c 100000 /dev/zero | tr '\\0' x; echo; printf 'a\\0\\377b\\n'")
    out(cli("wait", "c"))
    done = cli("logs", "c").stdout
    assert done == "".join(f"{number}\n" for number in range(1, 30001)) + "x" * 100000 + "\na\0\\xffb\n"
    assert cli("logs", "-n", "2", "c").stdout == "x" * 100000 + "\na\0\\xffb\n"
    assert cli("logs", "-n", "25000", "c").stdout.startswith("5003\n")
    assert cli("logs", "-n", "0", "c").stdout == ""


def test_times(cli: Cli, start: Start) -> None:
    """-t shows when a line was printed; --since leaves out what is older."""
    start("echo one; echo two")
    out(cli("wait", "c"))
    [first, _] = cli("logs", "-t", "c").stdout.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z one", first)
    assert cli("logs", "--since", "10m", "c").stdout == "one\ntwo\n"
    assert cli("logs", "--since", "2100-01-01T00:00:00Z", "c").stdout == ""
    assert "--since" in error(cli("logs", "--since", "soon", "c"), 1)
    assert "--tail" in error(cli("logs", "-n", "many", "c"), 1)


def test_no_log(cli: Cli) -> None:
    """What ran in the foreground has told its output already."""
    out(cli("run", "--name", "c", "test", "true"))
    assert "run -d" in error(cli("logs", "c"), 1)


# Signals and ends.


def test_kill(cli: Cli, start: Start) -> None:
    """SIGKILL, or what -s says, by name or number; a handler hears it."""
    start("trap 'echo usr1' USR1; trap 'exit 9' INT; echo up; while :; do sleep 0.02; done")
    until(lambda: "up" in cli("logs", "c").stdout, "it does not begin")
    for name in ("USR1", "SIGUSR1", "sigusr1", str(signal.SIGUSR1.value)):
        before = cli("logs", "c").stdout
        assert out(cli("kill", "-s", name, "c")) == "c"
        until(lambda before=before: cli("logs", "c").stdout == before + "usr1\n", "it does not hear")  # type: ignore[misc]
    for name in ("NOPE", "0", "99999", "", "RTMAX+1"):
        assert "no signal" in error(cli("kill", "-s", name, "c"), 125)
    out(cli("kill", "-s", "INT", "c"))
    assert out(cli("wait", "c")) == "9"
    assert "not running" in error(cli("kill", "c"), 1)


def test_kill_without_a_handler(cli: Cli, start: Start) -> None:
    """What would end any other process ends the first one of a namespace, too; what would not does not."""
    start("echo up; exec sleep 1000")
    process = first_process(cli)
    for harmless in ("WINCH", "CONT", "CHLD"):
        out(cli("kill", "-s", harmless, "c"))
    assert not process.ended(0)
    out(cli("kill", "-s", "HUP", "c"))
    assert process.ended()
    assert out(cli("wait", "c")) == "137"


def test_stop(cli: Cli, start: Start) -> None:
    """SIGTERM; the command ends as it likes."""
    start(FOREVER)
    until(lambda: "up" in cli("logs", "c").stdout, "it does not begin")
    assert out(cli("stop", "c")) == "c"
    assert cli("logs", "c").stdout == "up\nended\n"
    assert out(cli("wait", "c")) == "3"
    assert out(cli("stop", "c")) == "c"  # again: nothing happens


def test_stop_what_does_not_listen(cli: Cli, start: Start) -> None:
    """SIGKILL after so many seconds: those of --stop-timeout, or of -t."""
    for options, how in (((), ("-t", "0")), (("--stop-timeout", "0"), ())):
        start("trap '' TERM; echo up; while :; do sleep 0.02; done", *options)
        until(lambda: "up" in cli("logs", "c").stdout, "it does not begin")
        out(cli("stop", *how, "c"))
        assert out(cli("wait", "c")) == "137"
        out(cli("rm", "c"))


@pytest.mark.parametrize("where", ["image", "option"])
def test_the_stop_signal(where: str, cli: Cli, tmp_path: Path) -> None:
    """The image's, or --stop-signal."""
    image = with_stop_signal(cli, tmp_path, "SIGQUIT") if where == "image" else "test"
    options = ["--stop-signal", "quit"] if where == "option" else []
    script = "trap 'exit 8' QUIT; echo up; while :; do sleep 0.02; done"
    out(cli("run", "-d", "--name", "c", *options, image, "sh", "-c", script))
    until(lambda: "up" in cli("logs", "c").stdout, "it does not begin")
    assert inspected(cli)["Config"]["StopSignal"] == "SIGQUIT"
    out(cli("stop", "c"))
    assert out(cli("wait", "c")) == "8"


def with_stop_signal(cli: Cli, directory: Path, name: str) -> str:
    write_layout(directory / "layout", {"t": Image(BASE, {"StopSignal": name})})
    out(cli("load", "-q", "--durability=none", "-t", "stopped", directory / "layout"))
    return "stopped"


def test_a_stop_signal_that_is_none(cli: Cli, tmp_path: Path) -> None:
    image = with_stop_signal(cli, tmp_path, "\x1b[31mBOOM")
    line = error(cli("run", "--rm", image, "true"), 125)
    assert "--stop-signal" in line
    assert "\x1b" not in line
    assert cli("run", "--rm", "--stop-signal=9", image, "true").returncode == 0
    assert "no signal" in error(cli("run", "--rm", "--stop-signal=nope", image, "true"), 125)


def test_seconds_that_are_too_many(cli: Cli, start: Start) -> None:
    """They are refused before anything runs, or is signalled."""
    for command in (("run", "-d", "--stop-timeout", str(1 << 31), "test", "true"), ("stop", "-t", str(1 << 70), "c")):
        done = cli(*command)
        assert (done.returncode, "-1 is never" in done.stderr) == (2, True)
    start(FOREVER, "--stop-timeout", str((1 << 31) - 1))
    until(lambda: "up" in cli("logs", "c").stdout, "it does not begin")
    assert out(cli("stop", "c")) == "c"


def test_remove_by_force(cli: Cli, start: Start, store_root: Path) -> None:
    """What runs is refused, unless it may be killed; with --rm it removes itself meanwhile."""
    start("sleep 1000")
    start("sleep 1000", "--rm", name="d")
    process = first_process(cli)
    assert "pullpipe stop c" in error(cli("rm", "c"), 1)
    assert sorted(out(cli("rm", "-f", "c", "d")).split()) == ["c", "d"]
    assert process.ended(0)
    assert os.listdir(store_root / "containers") == []


def test_the_monitor_is_killed(cli: Cli, start: Start, store_root: Path) -> None:
    """SIGKILL: the container dies with it; ps says so, what should have been removed is, the rest can be."""
    start("sleep 1000 & echo up; sleep 1000")
    process = first_process(cli)
    monitor = monitor_of(process)
    monitor_id = monitor.pid
    os.kill(monitor_id, signal.SIGKILL)
    assert process.ended()
    assert monitor.ended()
    [shown] = containers(cli)
    assert (shown["status"], shown["exit_code"]) == ("killed", None)
    assert out(cli("wait", "c")) == "137"
    assert inspected(cli)["State"]["StartedAt"]
    assert str(store_root) not in Path("/proc/self/mountinfo").read_text()
    out(cli("rm", "c"))
    start("sleep 1000", "--rm")
    process = first_process(cli)
    os.kill(monitor_of(process).pid, signal.SIGKILL)
    assert process.ended()
    until(lambda: not containers(cli), "it is not removed")
    assert os.listdir(store_root / "containers") == []


def test_the_runner_of_a_container_to_be_removed_is_killed(cli: Cli, store_root: Path) -> None:
    """In the foreground it is the same."""
    with started(store_root, "--rm", "--name", "c", "test", "sh", "-c", "echo up; sleep 1000") as run:
        assert line(run) == "up"
        process = first_process(cli)
        run.kill()
        run.wait()
        assert process.ended()
    out(cli("run", "--rm", "--name", "c", "test", "true"))  # the name is free
    assert os.listdir(store_root / "containers") == []


# What is told of them.


def test_labels(cli: Cli, start: Start) -> None:
    start("sleep 1000", "-l", "a=1", "--label", "b=x=y", "-l", "c")
    start("sleep 1000", "-l", "a=2", name="d")
    assert inspected(cli)["Config"]["Labels"] == {"a": "1", "b": "x=y", "c": ""}
    ids = {str(one["name"]): str(one["id"]) for one in containers(cli)}
    for text, names in (("label=a", "cd"), ("label=a=1", "c"), ("label=c", "c"), ("name=^d", "d"), ("label=x", "")):
        found = out(cli("ps", "-q", "--no-trunc", "-f", text)).split()
        assert sorted(found) == sorted(ids[name] for name in names), text
    out(cli("kill", "d"))
    out(cli("wait", "d"))
    assert out(cli("ps", "-q", "--no-trunc", "-f", "status=running")) == ids["c"]
    assert out(cli("ps", "-q", "--no-trunc", "-f", "status=exited")) == ids["d"]
    assert "--filter" in error(cli("ps", "-f", "nope=1"), 1)
    table = out(cli("ps"))
    assert re.search(r"up \d+ seconds?$", table, re.MULTILINE)
    assert re.search(r"exited \(137\) \d+ seconds? ago$", table, re.MULTILINE)


def test_inspect(cli: Cli, start: Start, tmp_path: Path) -> None:
    """By Docker's names."""
    container_id = start("sleep 1000", "--read-only", "-e", "A=b", "-u", "1000", "-w=/tmp", f"-v={tmp_path}:/v:ro")
    found = inspected(cli)
    assert (found["Id"], found["Name"]) == (container_id, "c")
    assert found["Config"]["Cmd"] == ["sh", "-c", "sleep 1000"]
    assert found["Config"]["User"] == "1000"
    assert found["Config"]["WorkingDir"] == "/tmp"
    assert "A=b" in found["Config"]["Env"]
    assert found["Config"]["Image"] == "docker.io/library/test:latest"
    assert found["HostConfig"]["ReadonlyRootfs"] is True
    assert found["Mounts"] == [{"Type": "bind", "Source": str(tmp_path), "Destination": "/v", "RW": False}]
    state = found["State"]
    assert (state["Status"], state["Running"], state["ExitCode"]) == ("running", True, None)
    assert Path(f"/proc/{state['Pid']}/cmdline").read_bytes().rstrip(b"\0").endswith(b"1000")
    out(cli("kill", "c"))
    out(cli("wait", "c"))
    state = inspected(cli)["State"]
    assert (state["Status"], state["Running"], state["ExitCode"], state["Pid"]) == ("exited", False, 137, 0)
    assert str(state["StartedAt"]) < str(state["FinishedAt"])


def test_with_the_machines_processes(cli: Cli, start: Start) -> None:
    """--pid host: what the command has left behind ends with it, and what it printed is kept."""
    start("sleep 1000 & echo $!; exit 3", "--pid", "host")
    assert out(cli("wait", "c")) == "3"
    left = int(cli("logs", "c").stdout)
    assert not Path(f"/proc/{left}").exists()

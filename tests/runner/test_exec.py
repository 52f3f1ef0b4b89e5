"""`pullpipe exec`: a further command in a running container, within its walls."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT, Cli
from tests.runner.rig import BASE, Run, emptied, error, line, out, pullpipe, status, terminal_of
from tests.support.images import File, Image, Layer, write_layout
from tests.support.processes import PATIENCE, Watched, children, until

pytestmark = pytest.mark.needs_root

ACCOUNTS = [
    File("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001:Alice:/home/alice:/bin/sh\n"),
    File("etc/group", b"root:x:0:\nalice:x:1001:\nwheel:x:10:alice\n"),
]


@pytest.fixture
def store_root(shared: Path) -> Iterator[Path]:
    yield shared
    emptied(shared)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, busybox: None) -> Iterator[Path]:
    """A store in which the container `c` runs, for the tests that change nothing of it."""
    top = tmp_path_factory.mktemp("exec")
    write_layout(top / "layout", {"t": Image([*BASE, Layer(ACCOUNTS)], {"Env": ["A=image", "B=image"]})})
    out(pullpipe(top / "root", "load", "--quiet", "--durability=none", "-t", "test", str(top / "layout")))
    options = ["-e", "B=run", "-w", "/srv/work", "--hostname", "inside", "--cap-drop=CHOWN", "--ulimit=nofile=500:500"]
    out(pullpipe(top / "root", "run", "-d", "--name", "c", *options, "test", "sleep", "10000"))
    yield top / "root"
    out(pullpipe(top / "root", "rm", "-f", "c"))


@pytest.fixture
def do(root: Path) -> Run:
    """`pullpipe exec OPTIONS c ARGUMENTS`."""

    def do(*arguments: str, options: tuple[str, ...] = (), stdin: str = "") -> subprocess.CompletedProcess[str]:
        return pullpipe(root, "exec", *options, "c", *arguments, stdin=stdin)

    return do


@pytest.fixture
def another(cli: Cli) -> Callable[..., None]:
    """A function that runs `sh -c SCRIPT` as the container `c` of a store of its own."""

    def another(script: str, *options: str) -> None:
        out(cli("run", "-d", "--name", "c", *options, "test", "sh", "-c", script))

    return another


def test_output_and_exit_codes(do: Run) -> None:
    done = do("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert do("sh", "-c", "kill -9 $$").returncode == 137
    assert "nothing-like-it" in error(do("nothing-like-it"), 127)
    assert "/etc/passwd" in error(do("/etc/passwd"), 126)


def test_standard_input(do: Run) -> None:
    """With -i the command reads ours; without, there is nothing to read."""
    assert out(do("cat", options=("-i",), stdin="line 1\nline 2")) == "line 1\nline 2"
    assert out(do("cat", stdin="not for it")) == ""


def links(pid: str = "1") -> str:
    """A script that shows our namespaces, each beside that of a process."""
    kinds = "cgroup ipc mnt net pid user uts"
    return f"for n in {kinds}; do readlink /proc/self/ns/$n; readlink /proc/{pid}/ns/$n; done"


def test_it_is_in_there(do: Run) -> None:
    """Of all its namespaces, with its files, and not the first process."""
    shown = out(do("sh", "-c", links())).split("\n")
    assert len(shown) == 14
    assert shown[::2] == shown[1::2]
    assert out(do("hostname")) == out(do("cat", "/etc/hostname")) == "inside"
    assert out(do("sh", "-c", "echo $$")) != "1"
    out(do("sh", "-c", "echo kept > /srv/work/file"))
    assert out(do("cat", "file")) == "kept"


def test_the_same_walls(do: Run) -> None:
    """Capabilities, the filter, limits: what the first process has, and nothing of ours besides."""
    for options in ((), ("-u", "1000")):
        found = status(out(do("cat", "/proc/self/status", options=options)))
        first = status(out(do("cat", "/proc/1/status")))
        for name in ("CapInh", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "SigIgn", "SigBlk"):
            assert found[name] == first[name], name
        assert int(found["CapEff"], 16) == int(found["CapPrm"], 16) == (0 if options else int(first["CapEff"], 16))
        assert int(first["CapEff"], 16) & 1 == 0
    assert out(do("sh", "-c", "ulimit -n; ulimit -Hn; umask")) == "500\n500\n0022"
    assert out(do("sh", "-c", "mount -t tmpfs t /tmp 2> /dev/null || echo refused")) == "refused"


def test_no_new_privileges(another: Callable[..., None], cli: Cli) -> None:
    another("sleep 1000", "--security-opt", "no-new-privileges", "--read-only")
    found = status(out(cli("exec", "c", "cat", "/proc/self/status")))
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert "Read-only" in cli("exec", "c", "touch", "/x").stderr


def test_no_descriptor_of_ours(root: Path) -> None:
    """Neither inherited ones nor the store's (CVE-2024-21626)."""
    command = [sys.executable, "-m", "pullpipe", "--root", str(root), "exec", "c", "sh", "-c", "echo /proc/self/fd/*"]
    directory = os.open("/", os.O_RDONLY)
    os.set_inheritable(directory, True)
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, pass_fds=(directory,))
    assert out(done).split() == [f"/proc/self/fd/{number}" for number in (0, 1, 2, 3)]  # 3 is the listing's own
    for place in (f"/proc/self/fd/{directory}", "/proc/self/cwd", "/proc/1/root/../.."):
        done = subprocess.run(
            [*command[:-4], "-w", place, *command[-4:-1], "pwd; ls"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            pass_fds=(directory,),
        )
        assert done.returncode == 125 or "srv" in done.stdout.split("\n"), done.stdout
        assert str(PROJECT.name) not in done.stdout
    os.close(directory)


def test_the_null_device(do: Run, root: Path) -> None:
    """What is the host's /dev/null as a standard stream is exchanged for the container's, whose mode cannot change."""
    command = [sys.executable, "-m", "pullpipe", "--root", str(root), "exec", "c", "chmod", "0600", "/dev/stdin"]
    mode = os.stat("/dev/null").st_mode
    done = subprocess.run(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert done.returncode != 0
    assert os.stat("/dev/null").st_mode == mode


def test_the_environment(do: Run) -> None:
    """The container's, and what -e says; of ours nothing unless named."""
    shown = dict(row.split("=", 1) for row in out(do("env", options=("-e", "C=exec"))).split("\n"))
    assert shown == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "HOSTNAME": "inside",
        "A": "image",
        "B": "run",
        "C": "exec",
    }


def test_users_and_directories(do: Run) -> None:
    """The container's own, unless -u and -w say otherwise; a directory is not made."""
    assert out(do("sh", "-c", "id -u; pwd")) == "0\n/srv/work"
    script = "echo $(id -u) $(id -g) $(id -G) $HOME; pwd"
    assert out(do("sh", "-c", script, options=("-u", "alice", "-w", "/etc"))) == "1000 1001 1001 10 /home/alice\n/etc"
    assert "no user 'nope'" in error(do("true", options=("-u", "nope")), 125)
    assert "/nowhere" in error(do("true", options=("-w", "/nowhere")), 125)


def test_a_terminal(root: Path) -> None:
    """Another one of the container's devpts, of our terminal's size; keys and Ctrl-C are the command's."""
    script = "tty; stty size; read x; echo got $x; trap 'stty size; exit 5' INT; echo up; while :; do sleep 0.02; done"
    shown = terminal_of(root, "-it", "c", "sh", "-c", script, command="exec")
    try:
        shown.expect("/dev/pts/\\d+\r\n33 77\r\n")
        shown.type("word\n")
        shown.expect("got word\r\nup\r\n")
        shown.resize(40, 100)
        shown.type("\x03")
        shown.expect("40 100\r\n")
        assert shown.process.wait(PATIENCE) == 5
        assert shown.modes() == shown.before
    finally:
        shown.close()


def test_a_terminal_that_is_something_else(another: Callable[..., None], cli: Cli, store_root: Path) -> None:
    """Root in the container has put something in place of /dev/ptmx: it is not asked."""
    another("rm /dev/ptmx; mkfifo /dev/ptmx; echo up; sleep 1000")
    until(lambda: "up" in cli("logs", "c").stdout, "it does not begin")
    shown = terminal_of(store_root, "-it", "c", "sh", "-c", "tty", command="exec")
    try:
        shown.expect("/dev/pts/0\r\n")
    finally:
        shown.close()


def test_detached(do: Run, root: Path) -> None:
    """It goes on, and ends with the container; errors are told all the same."""
    before = out(do("ps", "-o", "args")).split("\n")
    assert out(do("sleep", "5000", options=("-d",))) == ""
    assert "sleep 5000" in set(out(do("ps", "-o", "args")).split("\n")) - set(before)
    assert "nope" in error(do("nope", options=("-d",)), 127)
    assert "-t" in error(do("true", options=("-dt",)), 125)


def test_signals(root: Path) -> None:
    """They reach the command; one without a handler ends it. And it ends with whoever has started it."""
    command = [sys.executable, "-m", "pullpipe", "--root", str(root), "exec", "c", "sh", "-c"]
    script = "trap 'echo heard; exit 9' TERM; echo up; while :; do sleep 0.02; done"
    with subprocess.Popen([*command, script], cwd=PROJECT, stdout=subprocess.PIPE, bufsize=0) as run:
        assert line(run) == "up"
        run.terminate()
        assert line(run) == "heard"
        assert run.wait(PATIENCE) == 9
    for end, code in ((subprocess.Popen.terminate, 143), (subprocess.Popen.kill, -9)):
        with subprocess.Popen(
            [*command, "echo up; exec sleep 1000"], cwd=PROJECT, stdout=subprocess.PIPE, bufsize=0
        ) as run:
            assert line(run) == "up"
            process = Watched(*children(run.pid))
            end(run)
            assert run.wait(PATIENCE) == code
            assert process.ended()
            process.close()


def test_the_end_of_the_container(another: Callable[..., None], cli: Cli, store_root: Path) -> None:
    """All that has joined it ends with it; also where only we could do that."""
    for options in ((), ("--pid", "host")):
        another("sleep 1000", *options)
        command = [
            sys.executable,
            "-m",
            "pullpipe",
            "--root",
            str(store_root),
            "exec",
            "c",
            "sh",
            "-c",
            "echo up; sleep 1000",
        ]
        with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, bufsize=0) as run:
            assert line(run) == "up"
            out(cli("rm", "-f", "c"))
            assert run.wait(PATIENCE) == 137
    another("sleep 1000", "--pid", "host")
    assert "--pid host" in error(cli("exec", "-d", "c", "true"), 125)


@pytest.mark.parametrize("options", [("--init",), ("--pid=host",), ("--network=none", "--ipc=host"), ("-m=64m",)])
def test_other_walls(options: tuple[str, ...], another: Callable[..., None], cli: Cli) -> None:
    """An init that cannot be looked into, namespaces that are the machine's, a cgroup: it is where the command is."""
    another("echo $$; exec sleep 1000", *options)
    until(lambda: bool(cli("logs", "c").stdout), "it does not begin")
    pid = cli("logs", "c").stdout.strip()
    shown = out(cli("exec", "c", "sh", "-c", links(pid))).split("\n")
    assert len(shown) == 14
    assert shown[::2] == shown[1::2]
    groups = out(cli("exec", "c", "sh", "-c", f"cat /proc/self/cgroup; echo; cat /proc/{pid}/cgroup")).split("\n\n")
    assert groups[0] == groups[1]


def test_not_running(cli: Cli) -> None:
    out(cli("run", "--name", "c", "test", "true"))
    assert "not running" in error(cli("exec", "c", "true"), 125)
    assert "no container" in error(cli("exec", "nope", "true"), 125)


def test_where_it_could_be_traced(another: Callable[..., None], cli: Cli) -> None:
    """CAP_SYS_PTRACE opens what is hidden from all others, and that still has this machine's rights."""
    another("sleep 1000", "--cap-add=SYS_PTRACE")
    assert "CAP_SYS_PTRACE" in error(cli("exec", "c", "true"), 125)


WATCH = "while :; do ls -l /proc/[0-9]*/exe /proc/[0-9]*/fd /proc/[0-9]*/cwd /proc/[0-9]*/root 2> /dev/null; done"
NOT_HIDDEN = """
import os
from pullpipe import interpreter, linux
from pullpipe.cli import program
from pullpipe.runner import command
interpreter.check = linux.hide_from_others = lambda: None
become = command.execute
def execute(planned):
    with open("/exposed", "rb"):  # a FIFO: until the watcher has seen enough, and somebody opens it to write
        become(planned)
command.execute = execute
program()
"""


def test_nobody_sees_our_program(another: Callable[..., None], cli: Cli, store_root: Path) -> None:
    """CVE-2019-5736: what watches for new processes in the container never finds the host's program in one. The same
    eyes see it where it is not hidden."""
    another(WATCH)
    ours = os.path.realpath(sys.executable)
    for _ in range(8):
        out(cli("exec", "c", "true"))
    seen = cli("logs", "c").stdout
    assert ours not in seen
    assert "memfd:pullpipe" not in seen
    out(cli("exec", "c", "mkfifo", "/exposed"))
    command = [sys.executable, "-c", NOT_HIDDEN, "--root", str(store_root), "exec", "c", "true"]
    with subprocess.Popen(command, cwd=PROJECT) as exposed:
        until(lambda: ours in cli("logs", "-n", "2000", "c").stdout, "it cannot be seen at all")
        out(cli("exec", "c", "sh", "-c", ": >/exposed"))
    assert exposed.returncode == 0


IN_CHROOT = """
mount -t tmpfs t "$1"; mkdir "$1/r"; cd "$1/r"
for one in /*; do
    if [ -L "$one" ]; then cp -P "$one" ".$one"
    elif [ -d "$one" ]; then mkdir ".$one"; mount --rbind "$one" ".$one"; fi
done
shift; exec chroot . "$@"
"""


def test_in_a_chroot(cli: Cli, store_root: Path, tmp_path: Path) -> None:
    """Where the kernel pivots no root, the container's is a chroot's; a further command sees no other root either."""
    (tmp_path / "jail").mkdir()
    script = """
        cd "$2"; pullpipe="$1 -m pullpipe --root $3"
        $pullpipe run -d --name c test sleep 1000 > /dev/null
        $pullpipe exec c sh -c 'ls /; grep CapEff /proc/self/status; cd ..; pwd'
        $pullpipe rm -f c > /dev/null
    """
    inside = ["sh", "-ec", script, "sh", sys.executable, str(PROJECT), str(store_root)]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-ec", IN_CHROOT, "sh", str(tmp_path / "jail"), *inside],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    *names, rights, where = out(done).split("\n")
    assert set(names) == set(out(cli("run", "--rm", "test", "ls", "/")).split("\n"))
    assert int(rights.split()[1], 16) & 1 << 18 == 0
    assert where == "/"

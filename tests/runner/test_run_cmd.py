"""`pullpipe run`: what a command in a container sees, may do, gets told and leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pullpipe import local
from pullpipe.errors import NotFound
from pullpipe.runner import container
from pullpipe.runner.command import Overrides
from store import Store
from tests.conftest import PROJECT, Cli, require
from tests.runner.rig import Run, containers, error, line, out, started, status, terminal_of
from tests.support.images import Dir, Entry, File
from tests.support.processes import PATIENCE, Watched, children, descendants, first_of_a_namespace, until
from tests.support.terminals import Terminal
from tests.support.tree import difference, snapshot

pytestmark = pytest.mark.needs_root

DOCKERS_CAPABILITIES = 0xA80425FB
# Output and exit codes.


def test_output_and_errors_go_where_they_belong(run: Run) -> None:
    """Both streams are the command's own, byte for byte, and nothing is added."""
    done = run("sh", "-c", "echo out; echo err >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


@pytest.mark.parametrize("code", [0, 1, 42, 125, 126, 127, 255])
def test_exit_codes_are_the_commands(code: int, run: Run) -> None:
    """Also those that have a meaning of their own for pullpipe: then nothing is said."""
    done = run("sh", "-c", f"exit {code}")
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_command_ended_by_a_signal(number: int, run: Run) -> None:
    """128+N: a child's by its shell, and the first process's own by pullpipe."""
    assert run("sh", "-c", f"sh -c 'kill -{number} $$'; exit $?").returncode == 128 + number


def test_a_missing_command(run: Run) -> None:
    """127, as from a shell; with a slash or without."""
    assert "nothing-like-it" in error(run("nothing-like-it"), 127)
    assert "/bin/nothing" in error(run("/bin/nothing"), 127)


@pytest.mark.parametrize("what", ["/etc", "/etc/passwd", "/noexec", "/garbage"])
def test_a_command_that_cannot_be_executed(what: str, load: Callable[..., None], cli: Cli, busybox: None) -> None:
    """126: a directory, a file without the right, a file that is no program."""
    load(File("noexec", b"#!/bin/sh\n", 0o644), File("garbage", b"\1\2\3garbage", 0o755))
    assert what in error(cli("run", "--rm", "test", what), 126)


def test_a_missing_interpreter(load: Callable[..., None], cli: Cli, busybox: None) -> None:
    """The file is there, what it needs is not: 127, and the message says which of the two."""
    load(File("script", b"#!/no/such/interpreter\n", 0o755))
    assert "interpreter" in error(cli("run", "--rm", "test", "/script"), 127)


def test_no_command_at_all(load: Callable[..., None], cli: Cli) -> None:
    """125: pullpipe's own failure."""
    load()
    assert "command" in error(cli("run", "--rm", "test"), 125)


def test_an_image_that_is_not_there(cli: Cli, store_root: Path) -> None:
    """125 too, and no container."""
    assert "missing" in error(cli("run", "--pull=never", "missing", "true"), 125)
    assert containers(cli) == []


# What it sees.


def test_it_is_process_one(run: Run) -> None:
    """Of a PID namespace of its own, of which alone /proc tells."""
    shown = out(run("sh", "-c", "echo $$; for p in /proc/[0-9]*; do echo ${p#/proc/}; done")).split("\n")
    assert shown[0] == "1"
    assert set(shown[1:]) == {"1"}


def test_namespaces(run: Run) -> None:
    """PID, mounts, UTS and IPC are the container's own; the network is the host's."""
    names = ("pid", "mnt", "uts", "ipc", "net")
    script = "".join(f"readlink /proc/self/ns/{name};" for name in names)
    inside = dict(zip(names, out(run("sh", "-c", script)).split("\n"), strict=True))
    host = {name: os.readlink(f"/proc/self/ns/{name}") for name in names}
    assert {name for name in names if inside[name] != host[name]} == {"pid", "mnt", "uts", "ipc"}


def test_the_hostname(run: Run) -> None:
    """The container's short id, or what --hostname says; the host's stays what it was."""
    before = socket.gethostname()
    assert re.fullmatch("[0-9a-f]{12}", out(run("hostname")))
    done = run("sh", "-c", "hostname; echo $HOSTNAME; cat /etc/hostname", options=("--hostname", "some-name"))
    assert out(done) == "some-name\nsome-name\nsome-name"
    assert socket.gethostname() == before


def test_devices(run: Run) -> None:
    """The usual nodes, and they do what they are for, for a user who is not root too."""
    script = """
        set -e
        for d in null zero full random urandom tty; do test -c /dev/$d; done
        for d in fd stdin stdout stderr ptmx; do test -L /dev/$d; done
        test -d /dev/pts; test -d /dev/shm; test -d /dev/mqueue
        echo x > /dev/null
        test "$(head -c 3 /dev/zero | od -An -tx1 | tr -d ' ')" = 000000
        test "$(head -c 8 /dev/urandom | wc -c)" = 8
        if echo x > /dev/full; then exit 1; fi 2> /dev/null
        echo x > /dev/shm/f
        ls /dev | sort | tr '\\n' ' '
    """
    expected = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero "
    for options in ((), ("-u", "65534")):
        assert out(run("sh", "-c", script, options=options)) == expected


def test_standard_output_by_its_name(run: Run) -> None:
    """Images log to /dev/stdout, by a symlink and as a user who is not root: it opens, as with Docker."""
    for options in ((), ("-u", "65534")):
        assert out(run("sh", "-c", "echo fine > /dev/stdout", options=options)) == "fine"


@pytest.mark.parametrize("place", ["/dev", "/dev/shm", "/tmp", "/"])
def test_other_devices_cannot_be_made_to_work(place: str, run: Run) -> None:
    """Docker's rule: root may make nodes, and only the usual ones open. The host's disks are not for the container."""
    disk = next(Path("/sys/dev/block").iterdir()).name
    major, minor = disk.split(":")
    done = run("sh", "-c", f"mknod {place}/disk b {major} {minor}; head -c 0 < {place}/disk && echo open")
    assert "open" not in done.stdout, f"the container has opened the host's block device {disk}"


def test_devices_of_the_image_do_not_work(load: Callable[..., None], cli: Cli, busybox: None) -> None:
    """A node that a layer brings along is there and does not open."""
    from tests.support.images import Device

    load(Device("kmsg", 1, 11, mode=0o666), Device("zero", 1, 5, mode=0o666))
    done = cli("run", "--rm", "test", "sh", "-c", "test -c /zero && ! head -c 1 /zero && ! head -c 1 /kmsg")
    assert done.returncode == 0, done.stderr


def test_sys_is_read_only(run: Run) -> None:
    """And of /proc what would change the host; both are the kernel's own file systems."""
    script = """
        touch /sys/x && exit 1
        echo 1 > /sys/kernel/profiling && exit 2
        echo x > /proc/sys/kernel/hostname && exit 3
        echo b > /proc/sysrq-trigger && exit 4
        mount -o remount,rw /sys && exit 5
        umount /proc && exit 6
        grep -q '^sysfs /sys sysfs ro' /proc/mounts && grep -q '^proc /proc proc rw' /proc/mounts
    """
    assert run("sh", "-c", script).returncode == 0


def test_what_tells_of_the_host_is_masked(run: Run) -> None:
    """/proc/kcore, keys, timer_list and the rest are empty, not the host's."""
    script = """
        for f in kcore keys timer_list latency_stats sched_debug interrupts; do
            test ! -e /proc/$f || test -z "$(head -c 1 /proc/$f | tr '\\0' x)" || echo $f
        done
        for d in /proc/acpi /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do
            test ! -e $d || ls -A $d
        done
    """
    assert out(run("sh", "-c", script)) == ""


def test_name_resolution(run: Run) -> None:
    """The host's resolv.conf and hosts, and the container's own name."""
    assert out(run("cat", "/etc/resolv.conf")) == Path("/etc/resolv.conf").read_text().removesuffix("\n")
    hosts = out(run("cat", "/etc/hosts", options=("--hostname", "some-name"))).split("\n")
    assert hosts[: len(Path("/etc/hosts").read_text().splitlines())] == Path("/etc/hosts").read_text().splitlines()
    assert hosts[-1].split() == ["127.0.0.1", "some-name"]


def test_a_hosts_file_without_a_last_newline(shell_root: Path, tmp_path: Path) -> None:
    """The container's own name does not become a part of the host's last line."""
    (tmp_path / "hosts").write_bytes(b"127.0.0.1\tlocalhost")
    script = 'mount --make-rprivate / && mount --bind "$0" /etc/hosts && exec "$@"'
    pullpipe = [sys.executable, "-m", "pullpipe", "--root", str(shell_root), "run", "--rm", "--hostname=own", "test"]
    done = subprocess.run(
        [require("unshare"), "-m", "sh", "-c", script, str(tmp_path / "hosts"), *pullpipe, "cat", "/etc/hosts"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert [row.split() for row in out(done).split("\n")] == [["127.0.0.1", "localhost"], ["127.0.0.1", "own"]]


def test_the_environment(load: Callable[..., None], cli: Cli, busybox: None) -> None:
    """PATH, HOME, HOSTNAME, what the image says, what -e says; of ours nothing unless named."""
    load(config={"Env": ["A=image", "B=with = sign", "EMPTY=", "no-equals-sign"], "Cmd": ["env"]})
    mine = {"MINE": "mine", "SECRET": "secret"}
    done = cli("run", "--rm", "-e", "A=user", "-e", "MINE", "-e", "UNSET_HERE", "--hostname=h", "test", env=mine)
    shown = dict(row.split("=", 1) for row in out(done).split("\n"))
    assert shown == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "HOSTNAME": "h",
        "A": "user",
        "B": "with = sign",
        "EMPTY": "",
        "MINE": "mine",
    }


def test_the_images_path_finds_the_command(load: Callable[..., None], cli: Cli, busybox: None) -> None:
    """PATH of the image, not of the host; TERM comes with a terminal only, HOME from the image's passwd."""
    load(File("opt/tools/hello", b"#!/bin/sh\necho hello\n", 0o755), config={"Env": ["PATH=/opt/tools:/bin"]})
    assert out(cli("run", "--rm", "test", "hello")) == "hello"
    assert error(cli("run", "--rm", "-e", "PATH=/nowhere", "test", "hello"), 127)


@pytest.mark.parametrize("variable", ["=value", "A=b\nc", "ü=ö", "A" * 5000 + "=x"])
def test_odd_variables(variable: str, load: Callable[..., None], cli: Cli, busybox: None) -> None:
    """They are the image author's to choose: passed on or left out, but the command runs."""
    load(config={"Env": [variable]})
    assert out(cli("run", "--rm", "test", "echo", "ran")) == "ran"


@pytest.mark.parametrize(
    ("config", "options", "arguments", "expected"),
    [
        ({"Cmd": ["echo", "cmd"]}, [], [], "cmd"),
        ({"Cmd": ["echo", "cmd"]}, [], ["echo", "mine"], "mine"),
        ({"Entrypoint": ["echo", "entry"]}, [], [], "entry"),
        ({"Entrypoint": ["echo", "entry"], "Cmd": ["cmd"]}, [], [], "entry cmd"),
        ({"Entrypoint": ["echo", "entry"], "Cmd": ["cmd"]}, [], ["mine"], "entry mine"),
        ({"Entrypoint": ["false"], "Cmd": ["cmd"]}, ["--entrypoint", "echo"], [], ""),
        ({"Entrypoint": ["false"], "Cmd": ["cmd"]}, ["--entrypoint", "echo"], ["mine"], "mine"),
        ({"Entrypoint": ["false"], "Cmd": ["cmd"]}, ["--entrypoint", ""], ["echo", "mine"], "mine"),
        ({"Cmd": ["echo", "-n", "--rm", "-it"]}, [], [], "--rm -it"),
        ({}, [], ["echo", "--rm", "-e", "x"], "--rm -e x"),
    ],
)
def test_entrypoint_and_cmd(
    config: Mapping[str, object],
    options: list[str],
    arguments: list[str],
    expected: str,
    load: Callable[..., None],
    cli: Cli,
    busybox: None,
) -> None:
    """Docker's rules: arguments replace Cmd, --entrypoint replaces both; what follows the image is the command's."""
    load(config=config)
    assert out(cli("run", "--rm", *options, "test", *arguments)) == expected


def test_the_working_directory(load: Callable[..., None], cli: Cli, busybox: None) -> None:
    """The image's, or -w's; it is made when it is missing."""
    load(Dir("there"), config={"WorkingDir": "/made/for/this"})
    assert out(cli("run", "--rm", "test", "pwd")) == "/made/for/this"
    assert out(cli("run", "--rm", "-w", "/there", "test", "pwd")) == "/there"
    assert (
        out(cli("run", "--rm", "-w", "/x/y", "test", "stat", "-c", "%a %u %g %n", "/x", ".")) == "755 0 0 /x\n755 0 0 ."
    )
    assert "/etc/passwd" in error(cli("run", "--rm", "-w", "/etc/passwd", "test", "pwd"), 125)


USERS: list[Entry] = [
    File("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001:Alice:/home/alice:/bin/sh\nbad:x:y:z:::\n"),
    File("etc/group", b"root:x:0:\nalice:x:1001:\nwheel:x:10:root,alice\nvideo:x:44:alice\n"),
]


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "0 0 0,10 /root"),
        ("alice", "1000 1001 10,44,1001 /home/alice"),
        ("1000", "1000 1001 10,44,1001 /home/alice"),
        ("1000:44", "1000 44 44 /home/alice"),
        ("alice:wheel", "1000 10 10 /home/alice"),
        ("4711", "4711 0 0 /"),
        ("4711:4712", "4711 4712 4712 /"),
        ("root", "0 0 0,10 /root"),
    ],
)
@pytest.mark.parametrize("where", ["image", "option"])
def test_users(user: str, expected: str, where: str, load: Callable[..., None], cli: Cli, busybox: None) -> None:
    """By name or number, with a group or without; supplementary groups and HOME as the image's files say."""
    load(*USERS, config={"User": user} if where == "image" else {"User": "bad"})
    options = ["-u", user or "0"] if where == "option" else []
    script = "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n | tr '\\n' ',' | sed s/,$//) $HOME"
    assert out(cli("run", "--rm", *options, "test", "sh", "-c", script)) == expected


@pytest.mark.parametrize(
    "user", ["nobody-like-that", "alice:nogroup", "bad", "4294967295", "99999999999", "-1", "²", ":5"]
)
def test_users_that_do_not_exist(user: str, load: Callable[..., None], cli: Cli, busybox: None) -> None:
    """125 with the name, whatever a name may look like; never root instead."""
    load(*USERS)
    error(cli("run", "--rm", f"--user={user}", "test", "true"), 125)
    assert containers(cli) == []


def test_files_of_root_are_safe_from_a_user(run: Run) -> None:
    """A user who is not root can neither write the image's files nor become root again."""
    script = "touch /etc/x || rm /etc/passwd || echo x > /etc/passwd || echo safe"
    assert out(run("sh", "-c", script, options=("-u", "nobody"))).endswith("safe")


@pytest.mark.parametrize("mask", [0o077, 0o000])
def test_the_umask_of_the_caller_does_not_matter(mask: int, load: Callable[..., None], cli: Cli, busybox: None) -> None:
    """A user can enter the root of the container whatever the host's root uses; inside it is 022."""
    before = os.umask(mask)
    try:
        load(Dir("made"))
        done = cli(
            "run", "--rm", "-u", "65534", "-w", "/new", "test", "sh", "-c", "umask; stat -c %a / /new /etc/hosts"
        )
    finally:
        os.umask(before)
    assert out(done) == "0022\n755\n755\n644"


# What it may do.


def test_capabilities_of_root(run: Run) -> None:
    """Docker's default set, and no way to more. Where the root is a chroot's, CAP_SYS_CHROOT is not among them."""
    found = status(out(run("cat", "/proc/self/status")))
    sets = {name: int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert sets["CapInh"] == sets["CapAmb"] == 0
    assert sets["CapPrm"] == sets["CapEff"] == sets["CapBnd"]
    assert sets["CapBnd"] | 1 << 18 == DOCKERS_CAPABILITIES


def test_capabilities_of_a_user(run: Run) -> None:
    """None, and the same bound."""
    found = status(out(run("cat", "/proc/self/status", options=("-u", "65534"))))
    assert {int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert int(found["CapBnd"], 16) | 1 << 18 == DOCKERS_CAPABILITIES


@pytest.mark.parametrize("command", ["mount -t tmpfs t /tmp", "dmesg", "hostname x", "nice -n -5 true"])
def test_what_root_may_not_do(command: str, run: Run) -> None:
    """Mounting, reading the kernel's log, renaming the host, and the rest that Docker takes away."""
    assert run("sh", "-c", f"{command} > /dev/null 2>&1").returncode != 0


# Standard input.


def test_standard_input(run: Run) -> None:
    """With -i the command reads ours; without, there is nothing to read, and ours stays."""
    assert out(run("cat", options=("-i",), stdin="line 1\nline 2")) == "line 1\nline 2"
    assert out(run("cat", stdin="not for it")) == ""


def test_standard_input_is_left_for_others(shell_root: Path) -> None:
    """Without -i not a byte is taken: `while read image; do pullpipe run …; done` goes on."""
    pullpipe = f"{sys.executable} -m pullpipe --root {shell_root} run --rm test true"
    done = subprocess.run(
        ["sh", "-c", f"{pullpipe}; cat"], cwd=PROJECT, input="for cat", capture_output=True, text=True
    )
    assert done.stdout == "for cat"


# What it leaves behind.


def layers_of(cli: Cli) -> list[Path]:
    return [Path(layer["directory"]) for layer in json.loads(out(cli("inspect", "test")))["layers"]]


def test_writes_land_in_the_container(cli: Cli, image: None) -> None:
    """New, changed and removed files: the layers stay as they are, and the next container sees none of it."""
    before = [snapshot(directory) for directory in layers_of(cli)]
    script = (
        "echo x > /new; echo x >> /etc/passwd; rm /etc/group; rm -r /root; mkdir /root; chmod 700 /etc; ls / | wc -l"
    )
    out(cli("run", "--name", "writer", "test", "sh", "-c", script))
    assert [difference(*pair) for pair in zip(before, map(snapshot, layers_of(cli)), strict=True)] == [[]] * len(before)
    upper = Path(json.loads(out(cli("inspect", "writer")))["GraphDriver"]["Data"]["UpperDir"])
    assert (upper / "new").read_text() == "x\n"
    assert stat.S_ISCHR((upper / "etc/group").stat().st_mode)
    script = "test ! -e /new && test -e /etc/group && test $(stat -c %a /etc) = 755"
    assert cli("run", "--rm", "test", "sh", "-c", script).returncode == 0


def test_containers_are_kept_or_removed(cli: Cli, image: None, store_root: Path) -> None:
    """By default it stays in ps with its exit code and can be removed; --rm leaves nothing, whatever the end."""
    assert cli("run", "--name", "kept", "test", "sh", "-c", "exit 7").returncode == 7
    (shown,) = containers(cli)
    assert (shown["name"], shown["exit_code"], shown["status"]) == ("kept", 7, "exited (7)")
    assert shown["command"] == ["sh", "-c", "exit 7"]
    assert cli("run", "--rm", "test", "sh", "-c", "exit 7").returncode == 7
    error(cli("run", "--rm", "test", "missing"), 127)
    assert len(containers(cli)) == 1
    out(cli("rm", "kept"))
    assert containers(cli) == []
    assert os.listdir(store_root / "containers") == []


def test_a_name_is_taken_once(cli: Cli, image: None) -> None:
    """125, and the first container is as it was."""
    out(cli("run", "--name", "mine", "test", "true"))
    assert "mine" in error(cli("run", "--name", "mine", "test", "false"), 125)
    assert [container["exit_code"] for container in containers(cli)] == [0]


@pytest.mark.parametrize("way", ["-i", "-d"])
def test_a_file_with_the_id(way: str, cli: Cli, image: None, tmp_path: Path) -> None:
    """It is new, and there before the command is; without a container there is none."""
    path = tmp_path / "id"
    out(cli("run", way, "--name", "c", "--cidfile", path, f"-v={tmp_path}:/x", "test", "cat", "/x/id"))
    written = path.read_text()
    assert json.loads(out(cli("inspect", "c")))["Id"] == written
    out(cli("wait", "c"))
    assert (cli("logs", "c").stdout if way == "-d" else written) == written
    assert "remove it" in error(cli("run", way, "--cidfile", path, "test", "true"), 125)
    assert "taken" in error(cli("run", way, "--name", "c", "--cidfile", tmp_path / "other", "test", "true"), 125)
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == ["id"]
    assert len(containers(cli)) == 1


def mounts_of(root: Path) -> list[str]:
    """The host's mounts that have anything to do with the store."""
    return [row for row in Path("/proc/self/mountinfo").read_text().split("\n") if str(root) in row]


def test_a_running_container_is_listed(cli: Cli, image: None, store_root: Path) -> None:
    """It cannot be removed, nor can its image; afterwards nothing of it is mounted on the host."""
    mounts = mounts_of(store_root)
    with started(
        store_root, "--name", "busy", "-i", "test", "sh", "-c", "echo up; read x", stdin=subprocess.PIPE
    ) as run:
        assert line(run) == "up"
        assert [container["status"] for container in containers(cli)] == ["running"]
        assert mounts_of(store_root) == mounts == []
        assert cli("rm", "busy").returncode == 1
        assert cli("rmi", "test").returncode == 1
        assert run.stdin is not None
        run.stdin.write(b"x\n")
        run.stdin.flush()
        assert run.wait(PATIENCE) == 0
    assert mounts_of(store_root) == mounts == []
    assert [container["status"] for container in containers(cli)] == ["exited (0)"]


def test_children_end_with_the_command(shell_root: Path) -> None:
    """The first process's end is the end of all: nobody outlives the container."""
    with started(shell_root, "--rm", "test", "sh", "-c", "sleep 1000 & sleep 1000 & echo up; exec sleep 1000") as run:
        assert line(run) == "up"
        watched = [Watched(pid) for pid in descendants(run.pid)]
        assert len(watched) == 3
        run.terminate()
        assert run.wait(PATIENCE) == 143
        assert all(process.ended() for process in watched)
        for process in watched:
            process.close()


def test_killing_the_runner(image: None, store_root: Path, cli: Cli) -> None:
    """SIGKILL: the container dies with it, nothing stays mounted, ps says so, and it can be removed."""
    mounts = mounts_of(store_root)
    with started(store_root, "--name", "orphan", "test", "sh", "-c", "sleep 1000 & echo up; sleep 1000") as run:
        assert line(run) == "up"
        watched = [Watched(pid) for pid in descendants(run.pid)]
        run.kill()
        assert all(process.ended() for process in watched)
        for process in watched:
            process.close()
        assert run.stdout is not None
        assert run.stdout.read() == b""  # nobody holds the pipe any more
    assert mounts_of(store_root) == mounts == []
    assert [container["status"] for container in containers(cli)] == ["killed"]
    out(cli("rm", "orphan"))


def test_killing_the_runner_while_it_starts(shell_root: Path) -> None:
    """The container is not tied to it yet at that moment; it has to notice, and must not run on alone."""
    for _ in range(3):
        with started(shell_root, "test", "sleep", "1000") as run:
            while not (found := first_of_a_namespace(run.pid)):
                assert run.poll() is None
            process = Watched(found)
            run.kill()
            try:
                assert process.ended(), "the container runs on without its runner"
            finally:
                if not process.ended(0):
                    os.kill(process.pid, signal.SIGKILL)
                process.close()


def test_two_containers_at_once(image: None, store_root: Path, cli: Cli) -> None:
    """One image, two containers: each has its own files."""
    script = "echo $0 > /file; echo up; read x; cat /file"
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(
                started(store_root, "--rm", "-i", "test", "sh", "-c", script, name, stdin=subprocess.PIPE)
            )
            for name in ("one", "two")
        ]
        for run in runs:
            assert line(run) == "up"
        assert [run.communicate(b"x\n", PATIENCE)[0] for run in runs] == [b"one\n", b"two\n"]
    assert containers(cli) == []


# Signals.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT])
def test_signals_reach_the_command(number: signal.Signals, shell_root: Path) -> None:
    """A handler in the container hears what is sent to the runner, and decides."""
    script = f"trap 'echo heard; exit 9' {number.value}; echo up; while :; do sleep 0.05; done"
    with started(shell_root, "--rm", "test", "sh", "-c", script) as run:
        assert line(run) == "up"
        run.send_signal(number)
        assert run.communicate(timeout=PATIENCE) == (b"heard\n", b"")
        assert run.returncode == 9


def test_no_signal_is_late(shell_root: Path) -> None:
    """A signal may come at any moment, also when the runner goes to sleep: it is passed on at once."""
    with started(shell_root, "--rm", "test", "sh", "-c", "trap 'echo heard' USR1; echo up; while :; do :; done") as run:
        assert line(run) == "up"
        for _ in range(1000):
            run.send_signal(signal.SIGUSR1)
            assert line(run) == "heard"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_command_without_handler_ends(number: signal.Signals, image: None, store_root: Path, cli: Cli) -> None:
    """Though the kernel spares the first process of a namespace: 128+N, at once, and without a container left."""
    with started(store_root, "--rm", "test", "sh", "-c", "echo up; exec sleep 1000") as run:
        assert line(run) == "up"
        process = Watched(*children(run.pid))
        until(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"sleep"), "the shell to be sleep")
        begun = time.monotonic()
        run.send_signal(number)
        assert run.wait(PATIENCE) == 128 + number
        assert time.monotonic() - begun < 5
        assert process.ended(0)
        process.close()
    assert containers(cli) == []


def test_an_ignored_signal_is_ignored(shell_root: Path) -> None:
    """`nohup`'s way: the command goes on."""
    script = "trap '' TERM; echo up; read x; echo done"
    with started(shell_root, "--rm", "-i", "test", "sh", "-c", script, stdin=subprocess.PIPE) as run:
        assert line(run) == "up"
        run.terminate()
        assert run.communicate(b"x\n", PATIENCE)[0] == b"done\n"
        assert run.returncode == 0


def test_signals_the_command_starts_with(run: Run) -> None:
    """Nothing that Python ignores or blocks is handed on: `yes | head` ends by SIGPIPE as it should."""
    found = status(out(run("cat", "/proc/self/status")))
    # 32 and 33 are the C library's own, and cannot be set by anybody.
    assert int(found["SigIgn"], 16) & ~(1 << 31 | 1 << 32) == 0
    assert int(found["SigBlk"], 16) == 0


# Terminals.


@pytest.fixture
def terminal(shell_root: Path) -> Iterator[Callable[..., Terminal]]:
    """A function that starts a `Terminal`."""
    open_ones: list[Terminal] = []

    def start(*arguments: str, options: tuple[str, ...] = ("-it",)) -> Terminal:
        open_ones.append(terminal_of(shell_root, "--rm", *options, "test", *arguments))
        return open_ones[-1]

    yield start
    for one in open_ones:
        one.close()


def test_a_terminal(terminal: Callable[..., Terminal]) -> None:
    """Of the container's own devpts; all three streams and /dev/tty are it; TERM says what it is."""
    shown = terminal(
        "sh", "-c", "tty; test -t 0 && test -t 1 && test -t 2 && echo x > /dev/tty && echo $TERM; ls /dev/pts; exit 3"
    )
    shown.expect(r"/dev/pts/0\r\nx\r\nxterm\r\n0 +ptmx\r\n")
    assert shown.process.wait(PATIENCE) == 3


def test_the_size_of_the_terminal(terminal: Callable[..., Terminal]) -> None:
    """Ours at the start, and whenever it changes; the command is told by SIGWINCH."""
    shown = terminal("sh", "-c", "stty size; trap 'stty size' WINCH; echo up; while :; do sleep 0.05; done")
    shown.expect("33 77\r\nup")
    shown.resize(40, 100)
    shown.expect("40 100\r\n")
    shown.resize(20, 60)
    shown.expect("20 60\r\n")


def test_keys_and_control_c(terminal: Callable[..., Terminal]) -> None:
    """Keys are the command's; Ctrl-C interrupts what runs inside, and neither the shell nor pullpipe."""
    shown = terminal("sh")
    shown.expect("# ")
    shown.type('sh -c \'trap "exit 7" INT; echo re""ady; while :; do sleep 0.05; done\'\n')
    shown.expect("ready\r\n")
    shown.type("\x03")
    shown.expect("# ")
    shown.type("echo code=$?\n")
    shown.expect("code=7")
    shown.type("exit 5\n")
    assert shown.process.wait(PATIENCE) == 5


def test_a_terminal_with_init(terminal: Callable[..., Terminal]) -> None:
    """The command is in its foreground, and alone: init, which would pass it on, does not hear Ctrl-C itself."""
    shown = terminal("sh", "-c", "echo $$; cut -d ' ' -f 5,8 /proc/self/stat", options=("-it", "--init"))
    shown.expect("2\r\n2 2\r\n")
    assert shown.process.wait(PATIENCE) == 0
    shown = terminal("sh", "-c", "trap 'echo heard; exit 7' INT; echo up; read x", options=("-it", "--init"))
    shown.expect("up\r\n")
    shown.type("\x03")
    shown.expect("heard\r\n")
    assert shown.process.wait(PATIENCE) == 7


def test_keys_typed_ahead(terminal: Callable[..., Terminal]) -> None:
    """What is typed, or sent by a script, while the container starts is not lost."""
    shown = terminal("sh", "-c", "echo up; read x; echo $x")
    shown.type("early\n")
    shown.expect("up\r\n")
    shown.expect("early\r\n")
    assert shown.process.wait(PATIENCE) == 0


def test_terminal_modes_are_restored(terminal: Callable[..., Terminal]) -> None:
    """Raw while it runs, as before when it has ended, be it well or by a signal."""
    for code in (0, 143):
        shown = terminal("sh", "-c", "echo up; read x; test -z $x || exec sleep 1000; exit")
        shown.expect("up")
        lflag = shown.modes()[3]
        assert isinstance(lflag, int)
        assert not lflag & (termios.ICANON | termios.ECHO | termios.ISIG)
        if code:
            shown.process.terminate()
        else:
            shown.type("\r")
        assert shown.process.wait(PATIENCE) == code
        assert shown.modes() == shown.before


def test_terminal_modes_are_restored_when_it_cannot_start(terminal: Callable[..., Terminal]) -> None:
    """The error is printed as a line, on a terminal that works."""
    shown = terminal("missing")
    shown.expect("pullpipe: error: .*missing.*\r\n")
    assert shown.process.wait(PATIENCE) == 127
    assert shown.modes() == shown.before


def test_a_terminal_without_input(terminal: Callable[..., Terminal]) -> None:
    """-t without -i: output through a terminal, our keys stay ours."""
    shown = terminal("sh", "-c", "tty; stty size", options=("-t",))
    shown.expect("/dev/pts/0\r+\n33 77\r+\n")
    assert shown.process.wait(PATIENCE) == 0


def test_a_terminal_for_a_user(terminal: Callable[..., Terminal]) -> None:
    """Who is not root can open the terminal as well: `/dev/stdout`, `/dev/pts/0`, as programs do."""
    shown = terminal(
        "sh", "-c", "echo o > /dev/tty; echo p > /dev/stdout; echo q > $(tty)", options=("-it", "-u", "65534")
    )
    shown.expect("o\r\np\r\nq\r\n")
    assert shown.process.wait(PATIENCE) == 0


def test_much_output_through_a_terminal(terminal: Callable[..., Terminal]) -> None:
    """More than any buffer holds: all of it comes, to the last byte."""
    shown = terminal("sh", "-c", "seq 1 20000; echo the end")
    text = shown.expect("the end\r\n").string
    assert text.replace("\r\n", " ").split()[:20000] == [str(number) for number in range(1, 20001)]
    assert shown.process.wait(PATIENCE) == 0


def test_no_terminal_to_give(run: Run) -> None:
    """-it with a pipe for standard input: refused with what to do, as Docker does."""
    assert "-t" in error(run("true", options=("-it",)), 125)


def test_control_c_without_a_terminal_of_its_own(shell_root: Path) -> None:
    """Without -t, Ctrl-C comes to the runner alone (the container has a session of its own), and is passed on once."""
    script = "n=0; trap 'n=$((n+1))' INT; echo up; read x; while [ $n = 0 ]; do :; done; sleep 0.1; echo $n"
    shown = terminal_of(shell_root, "--rm", "-i", "test", "sh", "-c", script)
    try:
        shown.expect("up")
        shown.type("\x03")
        shown.expect(r"\^C")
        shown.type("\n")
        shown.expect("1\r\n")
        assert shown.process.wait(PATIENCE) == 0
    finally:
        shown.close()


# No network, and real images.


AUDIT = """
import sys
def hook(event, arguments):
    if event == "socket.__new__" and arguments[1] in (2, 10):
        print("INET SOCKET", file=sys.stderr)
sys.addaudithook(hook)
"""


def test_no_network_for_a_local_image(image: None, cli: Cli, tmp_path: Path) -> None:
    """No inet socket is opened, aiohttp and asyncio are never imported."""
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    env = {"PYTHONPATH": str(tmp_path), "PYTHONPROFILEIMPORTTIME": "1"}
    done = cli("run", "--rm", "test", "echo", "ran", env=env)
    assert out(done) == "ran"
    imported = {row.rpartition("|")[2].strip() for row in done.stderr.split("\n") if row.startswith("import time:")}
    assert "pullpipe.runner.container" in imported
    assert not {"aiohttp", "asyncio", "tqdm", "ssl"} & imported
    assert "INET SOCKET" not in done.stderr
    # The same eyes see it where there is one.
    assert "INET SOCKET" in cli("pull", "--plain-http", "127.0.0.1:1/nothing", env=env).stderr


def test_it_runs_without_any_network(shell_root: Path) -> None:
    """In a network namespace where not even loopback is up."""
    command = [sys.executable, "-m", "pullpipe", "--root", str(shell_root), "run", "--rm", "test", "echo", "ran"]
    done = subprocess.run([require("unshare"), "-n", *command], cwd=PROJECT, capture_output=True, text=True)
    assert out(done) == "ran"


@pytest.mark.parametrize(("name", "shell"), [("busybox", "BusyBox"), ("alpine", "Alpine Linux")])
def test_real_images(name: str, shell: str, shared_images: Path, cli: Cli, store_root: Path) -> None:
    """Images that others have made: their shell, their users, their package database."""
    reference = out(cli("load", "--quiet", shared_images / name)).split("\n")[0]
    about = "cat /etc/os-release" if name == "alpine" else "busybox | head -1"
    assert shell in out(cli("run", "--rm", reference, "sh", "-c", about))
    assert out(cli("run", "--rm", "-u", "nobody", reference, "id", "-un")) == "nobody"
    assert cli("run", "--rm", reference, "sh", "-c", "exit 42").returncode == 42
    assert containers(cli) == []


@pytest.mark.usefixtures("image")
def test_an_image_that_is_removed_before_its_container_is_there(cli: Cli, store_root: Path) -> None:
    """Somebody else was quicker: it is said, and nothing stays."""
    store = Store(str(store_root))
    [record] = store.images
    found = local.load(store, record)
    out(cli("rmi", "test"))
    with pytest.raises(NotFound, match="is not in the store any more"):
        container.create(store, found, container.Options(Overrides(("true",))))
    assert list(store.containers) == []

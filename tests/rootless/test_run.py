"""`pullpipe run` by a user who is not root: the same container, in a user namespace."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.rootless.conftest import Give
from tests.support.images import Dir, File
from tests.support.processes import PATIENCE, Watched, first_of_a_namespace
from tests.support.users import User

pytestmark = pytest.mark.needs_root

DOCKERS_CAPABILITIES = 0xA80425FB

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def resident(users: Mapping[str, User]) -> Iterator[User]:
    """Alice, for the tests that change nothing of hers."""
    with users["alice"].at_a_new_home() as user:
        yield user


@pytest.fixture
def run(resident: User, give: Give) -> Run:
    """`pullpipe run --rm OPTIONS test WORDS`."""
    if not resident.store.exists():
        give(resident, [Dir("home/u", uid=1000, gid=1000), File("home/u/f", uid=1000, gid=1000, mode=0o600)])

    def run(*words: str, options: tuple[str, ...] = (), before: tuple[str, ...] = (), stdin: str = "") -> object:
        return resident.pullpipe("run", "--rm", *options, "test", *words, before=before, stdin=stdin)

    return run  # type: ignore[return-value]


def out(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def error(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line that says what went wrong."""
    assert done.returncode == code, (done.stdout, done.stderr)
    [line] = done.stderr.splitlines()
    assert line.startswith("pullpipe: error: ")
    return line


@contextmanager
def started(user: User, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`pullpipe run`, until the end of the block."""
    command = user.command(sys.executable, "-m", "pullpipe", "run", *words)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("words", "code"), [(("true",), 0), (("sh", "-c", "exit 3"), 3), (("sh", "-c", "kill $$"), 0)])
def test_exit_codes(run: Run, words: tuple[str, ...], code: int) -> None:
    assert run(*words).returncode == code


def test_settings_of_its_own(run: Run) -> None:
    """Where the kernel lets root of the container's namespaces set them: those of a network it always does."""
    options = ("--network=none", "--sysctl=net.ipv4.ip_forward=1")
    assert out(run("cat", "/proc/sys/net/ipv4/ip_forward", options=options)) == "1"


def test_commands_that_cannot_be(run: Run) -> None:
    assert "no 'nope' in the image's PATH" in error(run("nope"), 127)
    assert "permission denied" in error(run("/etc/passwd"), 126)
    assert "no user 'nope'" in error(run("true", options=("-u", "nope")), 125)


def test_who_is_who(run: Run, resident: User) -> None:
    """Root is the user, and others are the ids that the user was given; files have the owners that the image says."""
    assert [row.split() for row in out(run("cat", "/proc/self/uid_map")).split("\n")] == [
        ["0", str(resident.uid), "1"],
        ["1", "3000000", "65536"],
    ]
    assert out(run("id")) == "uid=0(root) gid=0(root) groups=0(root)"
    assert out(run("sh", "-c", "id -u; cat f && echo > g && stat -c %u g", options=("-u1000", "-w/home/u"))) == (
        "1000\n1000"
    )
    assert "cat: can't open 'home/u/f'" in run("cat", "home/u/f", options=("-u", "1001")).stderr
    assert out(run("id", "-G", options=("-u", "65534:5", "--group-add", "7"))) == "5 7"


def test_an_id_that_is_not_there(run: Run) -> None:
    line = error(run("true", options=("-u", "65537")), 125)
    assert "does not have user 65537" in line
    assert "/etc/subuid" in line
    assert "does not have group 70000" in error(run("true", options=("-u", "1:70000")), 125)


def test_rights(run: Run) -> None:
    """Docker's capabilities in a namespace where they mean little, Docker's filter, and no new ones for others."""
    fields = dict(row.split(":\t", 1) for row in out(run("cat", "/proc/self/status")).split("\n") if ":\t" in row)
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == DOCKERS_CAPABILITIES
    assert fields["Seccomp"] == "2"
    fields = dict(
        row.split(":\t", 1)
        for row in out(run("cat", "/proc/self/status", options=("-u", "9"))).split("\n")
        if ":\t" in row
    )
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0


def test_what_is_mounted(run: Run) -> None:
    """No directory of the machine's is there but /sys, with all that is below it to be read only."""
    mounts = [row.split() for row in out(run("cat", "/proc/self/mounts")).split("\n")]
    assert [row[2] for row in mounts if row[1] == "/"] == ["overlay"]
    assert "userxattr" in next(row[3] for row in mounts if row[1] == "/")
    below = {row[1]: row[3].split(",") for row in mounts if re.match(r"/sys(/|$)|/proc/sys$", row[1])}
    assert {"/sys", "/proc/sys"} <= below.keys()
    assert all("ro" in options for options in below.values()), below
    places = {row[1] for row in mounts if not row[1].startswith(("/sys", "/proc", "/dev"))}
    assert places == {"/", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname"}


def test_devices(run: Run) -> None:
    script = "echo x > /dev/null && head -c 3 /dev/zero | wc -c && test -w /dev/shm && cat /dev/mqueue/* ; ls /dev/pts"
    assert out(run("sh", "-c", script)).split() == ["3", "ptmx"]


def test_processes(run: Run) -> None:
    """None of the machine's can be seen."""
    assert out(run("sh", "-c", "ls /proc | grep -c '^[0-9]'; ps -o pid,args | grep -c pullpipe")).split()[0] in (
        "3",
        "4",
    )
    assert out(run("sh", "-c", "echo $$")) == "1"


def test_no_network(run: Run) -> None:
    """With a network namespace of its own, it has a /sys of its own."""
    assert out(run("ls", "/sys/class/net", options=("--network", "none"))) == "lo"
    with open("/proc/net/dev", encoding="ascii") as file:
        devices = {row.split(":")[0].strip() for row in file.readlines()[2:]}
    assert set(out(run("ls", "/sys/class/net")).split()) - {"bonding_masters"} == devices


def test_the_machines_namespaces(run: Run) -> None:
    """What is shared on request: /proc shows the machine's processes, and /dev/shm is the machine's."""
    assert out(run("cat", "/proc/1/comm", options=("--pid", "host"))) == Path("/proc/1/comm").read_text().strip()
    assert out(run("stat", "-c", "%d", "/dev/shm", options=("--ipc", "host"))) == str(os.stat("/dev/shm").st_dev)


def test_where_proc_is_covered(run: Run) -> None:
    """As in a container: the kernel makes no /proc that would show more, so the machine's is shown as far as it is."""
    cover = 'mount -t tmpfs -o ro tmpfs /proc/fs && exec "$@"'
    before = ("unshare", "--mount", "--propagation=private", "sh", "-c", cover, "sh")
    assert out(run("sh", "-c", "ls /proc/fs; test -e /proc/self/status && echo ran", before=before)) == "ran"
    assert run("sh", "-c", "echo 1 > /proc/sys/kernel/panic", before=before).returncode != 0


def test_pipes_of_another_user(run: Run) -> None:
    """The standard streams of these tests are root's pipes, whom the namespace does not have."""
    assert out(run("sh", "-c", "cat; echo there", options=("-i",), stdin="here\n")) == "here\nthere"


def test_signals(resident: User, run: Run) -> None:
    """They reach the command; one that it does not handle ends it, with the code that says so."""
    out(run("true"))
    script = 'trap "echo caught; exit 5" TERM; echo ready; while :; do sleep 0.01; done'
    with started(resident, "--rm", "test", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "caught\n"
        assert process.wait(PATIENCE) == 5
    with started(resident, "--rm", "test", "sh", "-c", "echo ready; sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_killed(alice: User, give: Give) -> None:
    """The container ends with its runner, and leaves no mount; `rm` removes what it wrote as somebody else."""
    give(alice)
    before = alice.run("cat", "/proc/self/mountinfo").stdout
    script = "mkdir -m 700 /tmp/mine; echo ready; sleep 60"
    with started(alice, "--name", "c", "-u", "1000", "test", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        first = first_of_a_namespace(process.pid)
        assert first is not None
        watched = Watched(first)
        assert "is running" in error(alice.pullpipe("rm", "c"), 1)
        process.kill()
        assert watched.ended()
        watched.close()
    assert alice.run("cat", "/proc/self/mountinfo").stdout == before
    assert out(alice.pullpipe("rm", "c")) == "c"
    assert os.listdir(alice.store / "containers") == []


def test_from_a_registry_at_once(alice: User, give: Give) -> None:
    """`--pull never`, and an image that is not there."""
    give(alice)
    assert "is not in the store" in error(alice.pullpipe("run", "--rm", "--pull=never", "nope", "true"), 125)


def test_limits(run: Run) -> None:
    """What the kernel lets a user lower; raising takes root's rights."""
    assert out(run("sh", "-c", "ulimit -n", options=("--ulimit", "nofile=100"))) == "100"
    line = error(run("true", options=("--ulimit", "nofile=2000000")), 125)
    assert "limit nofile to 2000000:2000000" in line
    assert line.endswith("ask for no more than the hard limit that pullpipe has, or use sudo")


def test_volumes(run: Run, resident: User) -> None:
    """A directory of the user's is root's in there."""
    shared = resident.home / "shared"
    shared.mkdir(exist_ok=True)
    os.chown(shared, resident.uid, resident.uid)
    out(run("sh", "-c", "echo new > /v/f && chown 1000 /v/f", options=("-v", f"{shared}:/v")))
    assert (shared / "f").read_text() == "new\n"
    assert (shared / "f").stat().st_uid == 3_000_999
    assert "Read-only" in run("touch", "/v/g", options=("-v", f"{shared}:/v:ro")).stderr

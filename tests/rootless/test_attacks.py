"""Attempts to get out of a container of a user who is not root: to what is theirs, and root's, outside.

Who is root inside is that user outside, so it is the namespaces that keep the two apart, not the ids. The attempts are
those of tests/runner/test_attacks.py, against processes and files of the user's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.rootless.conftest import Give
from tests.runner import test_attacks as attempts
from tests.runner.rig import host_python
from tests.support.users import User

pytestmark = pytest.mark.needs_root

UNCONFINED = "--security-opt=seccomp=unconfined"
_COVER = 'mount -t tmpfs -o ro t /proc/fs && exec "$@"'  # so that no new /proc can be mounted
COVERED = ("unshare", "--mount", "--propagation=private", "sh", "-c", _COVER, "sh")

Inside = Callable[..., str]


@pytest.fixture(scope="module", params=["alice", "bob"])
def resident(request: pytest.FixtureRequest, users: Mapping[str, User]) -> Iterator[User]:
    """With ids in /etc/subuid, and without."""
    with users[request.param].at_a_new_home() as user:
        yield user


@pytest.fixture
def inside(resident: User, give: Give) -> Inside:
    """A function that runs Python in a container, and returns what it prints."""
    if not resident.store.exists():
        give(resident)

    def inside(code: str, *words: str, options: tuple[str, ...] = (), before: tuple[str, ...] = ()) -> str:
        run = ("run", "--rm", *host_python(), *options, "test", "python", "-S", "-c", attempts.LIBC + code, *words)
        done = resident.pullpipe(*run, before=before)
        assert "pullpipe: error" not in done.stderr, done.stderr
        return done.stdout.strip()

    return inside


@pytest.fixture
def neighbour(resident: User) -> Iterator[subprocess.Popen[str]]:
    """A process of the user's own."""
    command = resident.command("env", "SECRET=secret", "sh", "-c", "echo up; exec sleep 1000")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()


ESCAPES = {
    "release_agent": attempts.RELEASE_AGENT,
    "new_root": attempts.NEW_ROOT,
    "remount": attempts.REMOUNT,
    "unmask": attempts.UNMASK,
    "kernel_log": attempts.KERNEL_LOG,
    "trace": attempts.TRACE,
    "signal": attempts.SIGNAL,
    "read_process": attempts.READ_PROCESS,
    "join": attempts.JOIN,
    "raw_memory": attempts.RAW_MEMORY,
}


@pytest.mark.parametrize("where", ["", "covered"])
def test_escapes(where: str, inside: Inside, resident: User, neighbour: subprocess.Popen[str]) -> None:
    """None of them works, as root and as another; also where the container sees the machine's /proc."""
    code = "".join(
        f"""
child = os.fork()
if child == 0:
    sys.stdout.write({name!r} + ":")
    try: exec({attempt!r})
    finally: sys.stdout.flush(); os._exit(0)
os.waitpid(child, 0)
"""
        for name, attempt in ESCAPES.items()
    )
    before = COVERED if where else ()
    for user in ("0", "1000") if resident.ids else ("0",):
        said = inside(code, str(neighbour.pid), options=("-u", user), before=before)
        assert said == "".join(f"{name}:" for name in ESCAPES)


def test_the_attempts_themselves(inside: Inside, neighbour: subprocess.Popen[str]) -> None:
    """The control: with the machine's processes they see that one, and may signal it when they are the same user."""
    assert inside(attempts.SIGNAL, str(neighbour.pid), options=("--pid=host",)) == "out"
    assert inside(attempts.UNMASK, options=("--cap-add=SYS_ADMIN",)) == "out"
    assert inside(attempts.NEW_ROOT, options=(UNCONFINED,)) == "out"


OPEN_PROCESSES = """
for name in os.listdir("/proc"):
    if not name.isdigit() or name == os.readlink("/proc/self"): continue
    for file in "root", "cwd", "environ", "mem", "fd/0", "exe":
        try: os.close(os.open(f"/proc/{name}/{file}", os.O_RDONLY)); print("out", name, file)
        except OSError: pass
"""


def test_the_runner_where_proc_is_the_machines(inside: Inside, resident: User) -> None:
    """It is in the same user namespace, and can be seen there; but it has rights that the container has not."""
    for user in ("0", "1000") if resident.ids else ("0",):
        assert inside(OPEN_PROCESSES, options=("-u", user), before=COVERED) == ""
        assert inside(OPEN_PROCESSES, options=("-u", user, "--pid=host")) == ""
    done = resident.pullpipe("run", "--rm", "--cap-add=SYS_PTRACE", "test", "true", before=COVERED)
    assert done.returncode == 125
    assert "where CAP_SYS_PTRACE opens what else you run; leave that capability away" in done.stderr


def test_what_there_is_to_see(inside: Inside, resident: User) -> None:
    """With the machine's network its /sys is shown; its cgroups are not."""
    code = """
import json
walked = [os.path.join(top, name) for top, names, files in os.walk("/sys/fs/cgroup") for name in names + files]
pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
keys = open("/proc/keys").read() if os.path.exists("/proc/keys") else ""
print(json.dumps([walked, pids, keys]))
"""
    assert os.listdir("/sys/fs/cgroup")
    assert json.loads(inside(code)) == [[], [1], ""]


def test_switches_of_the_machine(inside: Inside) -> None:
    """What of /proc and /sys would change it opens for no writer; /dev/null does, and shows that the attempts are made.

    Nor can modes be changed, that one's included.
    """
    code = """
for path in sys.argv[1:]:
    try: os.close(os.open(path, os.O_WRONLY)); print("out", path)
    except OSError: pass
    try: os.chmod(path, 0o777); print("changed", path)
    except OSError: pass
"""
    there = [path for path in attempts.SWITCHES if os.path.exists(path)]
    for before in ((), COVERED):
        assert inside(code, *there, "/proc/version", "/dev/null", before=before) == "out /dev/null"


KEEP_A_KEY = """
import ctypes, platform, subprocess, sys
libc = ctypes.CDLL(None)
add, control = {"x86_64": (248, 250)}.get(platform.machine(), (217, 219))
libc.syscall(control, 1, None)
for ring in -3, -4, -5:
    assert libc.syscall(add, b"user", b"pullpipe-test", b"secret", 6, ring) > 0
sys.exit(subprocess.run(sys.argv[1:]).returncode)
"""

FIND_THE_KEY = """
control = {"x86_64": 250}.get(sys.argv[1], 219)
for ring in -3, -4, -5:
    if libc.syscall(control, 10, ring, b"user", b"pullpipe-test", 0) > 0: print("out", ring)
"""


def test_keys_of_the_user(resident: User, inside: Inside) -> None:
    """Neither those of the session, nor those of the user, who is root inside; also without a filter."""
    inside("")
    words = ("-S", "-c", attempts.LIBC + FIND_THE_KEY, os.uname().machine)
    pullpipe = (sys.executable, "-m", "pullpipe", "run", "--rm", UNCONFINED, *host_python(), "test", "python")
    for finder, expected in ((pullpipe, ""), ((sys.executable,), "out -3\nout -4\nout -5\n")):
        done = resident.run(sys.executable, "-c", KEEP_A_KEY, *finder, *words)
        assert (done.returncode, done.stdout) == (0, expected), done.stderr


def test_files_that_are_not_the_users(inside: Inside, resident: User, tmp_path: Path) -> None:
    """What is root's outside stays so for root inside, however it is brought in."""
    os.chmod(tmp_path, 0o755)
    (tmp_path / "secret").write_text("secret")
    os.chmod(tmp_path / "secret", 0o600)
    code = """
for change in (lambda: open("/v/secret").read(), lambda: os.chown("/v/secret", 0, 0), lambda: os.unlink("/v/secret")):
    try: change(); print("out")
    except OSError: pass
"""
    (resident.home / "mine").mkdir(exist_ok=True)
    os.link(tmp_path / "secret", resident.home / "mine/secret")
    try:
        assert inside(code, options=(f"-v={resident.home}/mine:/v",)) == ""
    finally:
        os.unlink(resident.home / "mine/secret")


@pytest.mark.parametrize("way", ["run", "exec"])
def test_the_users_files_as_streams(way: str, resident: User, give: Give) -> None:
    """Who is root inside is their owner outside; what is open there is not theirs all the same."""
    if not resident.store.exists():
        give(resident)
    change = "for s in 0 1 2; do chmod 4755 /proc/self/fd/$s; echo new > /proc/self/fd/$s; done"
    if way == "exec":
        started = resident.pullpipe("run", "-d", "--rm", "--name", "streams", "test", "sleep", "1000")
        assert started.returncode == 0, started.stderr
    call = ["exec", "-i", "streams"] if way == "exec" else ["run", "--rm", "-i", "test"]
    command = [sys.executable, "-m", "pullpipe", *call, "sh", "-c", change]
    place = "umask 027; cd; for f in in out err; do echo earlier > $f; done"
    script = '"$@" < in >> out 2>> err; stat -c %a in out err; cat in out; rm -f in out err'
    shown = resident.run("sh", "-c", f"{place}; {script}", "sh", *command)
    assert shown.stdout.split() == [*["640"] * 3, "earlier", "earlier", "new"], shown.stderr
    if way == "exec":
        assert resident.pullpipe("rm", "-f", "streams").returncode == 0

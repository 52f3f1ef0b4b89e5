"""Attempts to get out of a container, or to have its runner do something for the image's author.

The weaknesses that runners had are here by their CVE numbers. Where it can be done without harm, the same attempt is
made once more without the wall, and succeeds: so it is the wall that stops it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import platform
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT, Cli, require
from tests.runner.rig import Run, containers, error, host_python, out, pullpipe, started, status
from tests.support.images import Dir, Entry, Fifo, File, Symlink
from tests.support.processes import PATIENCE

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("busybox")]

UNCONFINED = "--security-opt=seccomp=unconfined"


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host that nothing may happen to; the test fails if something did."""
    directory = tmp_path / "victim"
    directory.mkdir()
    (directory / "file").write_text("precious")
    yield directory
    assert str(directory) not in Path("/proc/self/mountinfo").read_text(), "something is mounted there"
    assert {path.name: path.read_text() for path in directory.iterdir()} == {"file": "precious"}


@pytest.fixture
def bait(tmp_path: Path) -> Path:
    """A directory to be mounted into containers."""
    (tmp_path / "bait").mkdir()
    (tmp_path / "bait" / "bait").write_text("bait\n")
    return tmp_path / "bait"


# Where things are mounted.


def ways_to(place: Path) -> list[str]:
    """Targets of symlinks that lead out to a place of the host for whoever follows them outside of the container, or
    while something of the host is still open or mounted."""
    return [
        str(place),
        f"{'../' * 20}{place}",
        f"/..{place}",
        *(f"/proc/self/fd/{number}{place}" for number in range(3, 9)),
        f"/proc/self/cwd{place}",
        f"/proc/self/root/..{place}",
        f"/proc/1/root{place}",
        f"/proc/{os.getpid()}/root{place}",
        f"/proc/thread-self/cwd/..{place}",
        f"/dev/fd/5{place}",
    ]


@pytest.mark.parametrize("option", ["-v={bait}:{target}", "--tmpfs={target}", "--device=/dev/zero:{target}/zero"])
def test_a_mount_target_that_is_a_symlink(
    option: str, load: Callable[..., None], cli: Cli, victim: Path, bait: Path
) -> None:
    """CVE-2021-30465: wherever it points, the mount is inside of the container, or there is no container."""
    ways = ways_to(victim)
    load(*(Symlink(f"way{number}", way) for number, way in enumerate(ways)))
    for number in range(len(ways)):
        asked = option.format(bait=bait, target=f"/way{number}")
        done = cli("run", "--rm", asked, "test", "sh", "-c", f"echo evil > /way{number}/file; ls /way{number}/")
        if done.returncode == 125:
            error(done, 125)
            continue
        assert "precious" not in done.stdout
        (bait / "file").unlink(missing_ok=True)


def test_a_mount_target_in_what_is_still_to_be_mounted(
    load: Callable[..., None], cli: Cli, victim: Path, bait: Path
) -> None:
    """CVE-2024-21626's way: the runner itself holds a directory of the host, as one of its descriptors."""
    load(*(Symlink(f"way{number}", f"/proc/self/fd/{number}") for number in range(3, 24)))
    for number in range(3, 24):
        options = (f"-v={bait}:/way{number}/new", f"-v={victim}:/z/z/z")
        assert cli("run", "--rm", *options, "test", "true").returncode in (0, 125)


def test_the_same_for_a_runner_that_believes_paths(victim: Path, bait: Path, tmp_path: Path) -> None:
    """The control: `mount` to the path of the root file system and the target, as one would think."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "way").symlink_to(victim)
    script = f"mount --bind {bait} {tmp_path}/root/way && ls {victim}"
    done = subprocess.run([require("unshare"), "-m", "sh", "-c", script], capture_output=True, text=True)
    assert done.stdout == "bait\n"


EXCHANGER = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
os.chdir(sys.argv[1])
print("up", flush=True)
while True:
    libc.renameat2(-100, b"a", -100, b"b", 2)
"""


def test_a_mount_target_that_becomes_a_symlink(shell_root: Path, victim: Path, bait: Path, tmp_path: Path) -> None:
    """CVE-2021-30465 as it was found: another container swaps a directory of a shared volume for a symlink, and back.

    The place that has been looked up is the place that is mounted on: the mount is there, or in the container's own
    directory of the victim's name, or is refused. It goes on until a swap has come between two mounts of one
    container: one is in the directory, and the other where the symlink leads.
    """
    volume = tmp_path / "volume"
    (volume / "a").mkdir(parents=True)
    (volume / "b").symlink_to(victim)
    command = [sys.executable, "-c", EXCHANGER, str(volume)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as exchanger:
        assert exchanger.stdout is not None
        assert exchanger.stdout.readline() == "up\n"
        try:
            for _ in range(100):
                mounts = [f"--tmpfs=/vol/a/tmpfs{number}" for number in range(40)]
                options = (f"-v={volume}:/vol", f"-v={bait}:/vol/a/deep/er", *mounts)
                done = pullpipe(shell_root, "run", "--rm", *options, "test", "cat", "/proc/self/mountinfo")
                assert done.returncode in (0, 125), done.stderr
                places = [row.split()[4] for row in done.stdout.splitlines()]
                if len({place.startswith("/vol/") for place in places if "/tmpfs" in place}) == 2:
                    break
            else:
                pytest.fail("no swap was hit")
        finally:
            exchanger.kill()


@pytest.mark.parametrize("option", ["-v={}:/way", "--tmpfs=/way", "--device=/dev/zero:/way/zero"])
@pytest.mark.parametrize("way", ["/proc", "/proc/self/attr", "/proc/acpi", "proc/sys/kernel", "/dev/fd"])
def test_a_mount_target_in_proc(
    way: str, option: str, load: Callable[..., None], cli: Cli, bait: Path, tmp_path: Path
) -> None:
    """CVE-2019-16884, CVE-2019-19921, CVE-2025-52881: what lies over /proc hides masks, and takes what is written."""
    load(Symlink("way", way))
    said = error(cli("run", "--rm", option.format(bait), "test", "true"), 125)
    assert "/proc" in said or "/way" in said


@pytest.mark.parametrize("name", ["null", "zero", "tty", "ptmx", "pts", "shm", "mqueue", "fd"])
def test_an_image_with_devices_of_its_own(name: str, load: Callable[..., None], cli: Cli) -> None:
    """CVE-2025-31133, CVE-2025-52565: a symlink where the runner would look for /dev/null, or put a device."""
    load(Dir("dev"), Symlink(f"dev/{name}", "/proc/sys/kernel/core_pattern"))
    script = """
        test "$(stat -c %t:%T /dev/null)" = 1:3 || echo null
        for f in kcore keys timer_list; do test ! -e /proc/$f || test -c /proc/$f || echo $f; done
        echo x 2> /dev/null > /proc/sys/kernel/core_pattern && echo open
        true
    """
    assert out(cli("run", "--rm", "test", "sh", "-c", script)) == ""


def test_a_volume_with_devices_of_its_own(run: Run, tmp_path: Path) -> None:
    """CVE-2025-31133: the same by a directory that lies over /dev, which another container may change at any time."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_bytes()
    evil = tmp_path / "dev"
    evil.mkdir()
    (evil / "null").symlink_to("/proc/sys/kernel/core_pattern")
    (evil / "ptmx").symlink_to("/proc/sysrq-trigger")
    script = """
        for f in kcore keys timer_list; do test ! -e /proc/$f || test "$(stat -c %t:%T /proc/$f)" = 1:3 || echo $f; done
        grep -c '/proc/sys proc ro' /proc/mounts
    """
    assert out(run("sh", "-c", script, options=(f"-v={evil}:/dev",))) == "1"
    assert Path("/proc/sys/kernel/core_pattern").read_bytes() == pattern


def test_the_same_for_a_runner_that_believes_names(tmp_path: Path) -> None:
    """The control: what is bound by the name of /dev/null is what the symlink there points to."""
    (tmp_path / "null").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "masked").write_text("")
    script = f"mount --bind {tmp_path}/null {tmp_path}/masked && cat {tmp_path}/masked"
    done = subprocess.run([require("unshare"), "-m", "sh", "-c", script], capture_output=True, text=True)
    assert done.stdout == "secret\n"


def test_a_terminal_where_the_image_says(shell_root: Path, tmp_path: Path) -> None:
    """CVE-2025-52565: a directory over /dev whose ptmx is something else gives no terminal, and nothing is opened."""
    evil = tmp_path / "dev"
    evil.mkdir()
    os.mkfifo(evil / "ptmx")
    command = ("run", "--rm", "-t", f"-v={evil}:/dev", "test", "true")
    error(pullpipe(shell_root, *command), 125)


# What the host gave.


def test_no_descriptor_of_the_host_is_open(shell_root: Path, tmp_path: Path) -> None:
    """CVE-2024-21626: neither pullpipe's nor inherited ones."""
    with open(tmp_path / "file", "w") as file, contextlib.ExitStack() as stack:
        directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, directory)
        script = "ls /proc/1/fd; readlink /proc/1/fd/0"
        fds = (file.fileno(), directory)
        with started(shell_root, "--rm", "test", "sh", "-c", script, pass_fds=fds) as process:
            shown, err = process.communicate(timeout=PATIENCE)
    assert (shown.decode().split(), err) == (["0", "1", "2", "/dev/null"], b"")


@pytest.mark.parametrize("way", ["run", "--init", "exec"])
def test_no_descriptor_beyond_the_limit_is_open(way: str, shell_root: Path) -> None:
    """One that was inherited from before the limit on how many there may be was lowered."""
    high = 900
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    directory = fcntl.fcntl(os.open("/", os.O_RDONLY | os.O_DIRECTORY), fcntl.F_DUPFD, high)
    os.set_inheritable(directory, True)
    limited = ["prlimit", f"--nofile=300:{hard}", sys.executable, "-m", "pullpipe", "--root", str(shell_root)]
    command = ["run", "--rm", *(["--init"] if way == "--init" else []), "test"]
    if way == "exec":
        out(pullpipe(shell_root, "run", "-d", "--name", "c", "test", "sleep", "1000"))
        command = ["exec", "c"]
    try:
        done = subprocess.run(
            [*limited, *command, "sh", "-c", "echo /proc/[0-9]*/fd/*"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            pass_fds=(directory,),
        )
    finally:
        os.close(directory)
        pullpipe(shell_root, "rm", "-f", "c")
    assert "/fd/2" in out(done)
    assert not [path for path in done.stdout.split() if path.endswith(f"/fd/{directory}")]


def test_a_working_directory_in_a_descriptor(image: None, store_root: Path, cli: Cli) -> None:
    """CVE-2024-21626: `/proc/self/fd/N` leads out where N is a directory of the host: refused, or no N."""
    host = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number in (*range(12), host):
            options = ("--rm", "-w", f"/proc/self/fd/{number}", "test", "ls")
            with started(store_root, *options, pass_fds=(host,)) as process:
                shown, err = process.communicate(timeout=PATIENCE)
            assert (process.returncode, shown) == (125, b""), (number, err)
            assert b"working directory" in err
    finally:
        os.close(host)
    assert containers(cli) == []


@pytest.mark.parametrize("where", ["proc", "dev", "sys"])
@pytest.mark.parametrize("target", ["/etc", "../etc", "/nowhere", "."])
def test_a_symlink_where_a_file_system_goes(where: str, target: str, load: Callable[..., None], cli: Cli) -> None:
    """An image that has one wants the mount elsewhere: refused."""
    load(Symlink(where, target))
    assert f"/{where}" in error(cli("run", "--rm", "test", "true"), 125)
    assert containers(cli) == []


def test_a_resolv_conf_that_points_to_the_host(load: Callable[..., None], cli: Cli, tmp_path: Path) -> None:
    """Absolute or upward, the symlink is resolved in the container: the host's file of that name is untouched."""
    victims = [tmp_path / name for name in ("resolv.conf", "hosts", "hostname")]
    for victim in victims:
        victim.write_text("precious")
    up = "../" * 30
    load(
        Symlink("etc/resolv.conf", str(victims[0])),
        Symlink("etc/hosts", f"{up}{victims[1]}"),
        Symlink("etc/hostname", f"/proc/1/root{victims[2]}"),
        Dir("proc"),
    )
    done = cli("run", "test", "sh", "-c", "cat /etc/resolv.conf; echo evil > /etc/resolv.conf; echo evil > /etc/hosts")
    assert Path("/etc/resolv.conf").read_text() in done.stdout or done.returncode == 125
    assert [victim.read_text() for victim in victims] == ["precious"] * 3


@pytest.mark.parametrize("name", ["etc/passwd", "etc/group", "etc/resolv.conf", "etc/hosts"])
@pytest.mark.parametrize("entry", ["fifo", "loop", "dangling", "endless"])
def test_account_files_that_are_none(name: str, entry: str, load: Callable[..., None], cli: Cli) -> None:
    """A FIFO does not hang it, a symlink loop does not end it with a traceback, an endless file is not read."""
    made: dict[str, Entry] = {
        "fifo": Fifo(name),
        "loop": Symlink(name, Path(name).name),
        "dangling": Symlink(name, "/run/not/there"),
        "endless": Symlink(name, "/dev/zero"),
    }
    load(made[entry])
    done = cli("run", "--rm", "-u", "0:0", "test", "echo", "ran", timeout=20)
    if done.returncode:
        error(done, 125)
    else:
        assert out(done) == "ran"


def test_python_modules_of_the_image_are_not_imported(load: Callable[..., None], cli: Cli) -> None:
    """CVE-2019-14271: where the host's interpreter looks for its modules, the image has its own."""
    marker = b"import os\nos.close(os.open('/pwned', os.O_CREAT | os.O_WRONLY))\n"
    modules = sorted(sys.stdlib_module_names | {"pullpipe", "store", "sitecustomize"})
    paths = [path for path in (*sys.path, str(PROJECT)) if path]
    load(
        *(File(f"{path}/{name}.py", marker) for path in paths for name in modules),
        File("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
    )
    for options in (
        ["test", "true"],
        ["-u", "missing", "test", "true"],
        ["test", "missing"],
        ["-w", "/bin/sh", "test", "true"],
    ):
        cli("run", *options)
    found = json.loads(out(cli("ps", "--format=json")))
    assert len(found) >= 1
    for container in found:
        upper = json.loads(out(cli("inspect", container["id"])))["GraphDriver"]["Data"]["UpperDir"]
        assert not Path(upper, "pwned").exists()


# The program that runs, and its rights.


CHANGES = """
import os
ours = "/proc/self/exe"
for change in (
    lambda: os.setxattr(ours, b"user.evil", b"x"),
    lambda: os.utime(ours, (1, 1)),
    lambda: os.chown(ours, 1234, 1234),
    lambda: os.chmod(ours, 0o4755),
    lambda: open(ours, "r+b"),
):
    try:
        change()
        print("changed")
    except OSError as error:
        print(error.strerror)
"""
OFF_GUARD = """
from pullpipe import interpreter
from pullpipe.cli import program
interpreter.check = lambda: None
program()
"""


@pytest.fixture(params=["small", "large"])
def interpreter(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A Python of its own for pullpipe; a large one is not copied into memory, but mounted."""
    path = tmp_path / "python"
    shutil.copyfile(os.path.realpath(sys.executable), path)
    path.chmod(0o755)
    if request.param == "large":
        os.truncate(path, max(path.stat().st_size, 2 << 20))
    elif path.stat().st_size >= 1 << 20:
        pytest.skip("this machine's Python is no small one")
    return path


def by(interpreter: Path, words: tuple[str, ...], *arguments: str) -> str:
    """What a command prints that this interpreter runs by these words."""
    env = {**os.environ, "PYTHONHOME": sys.base_prefix, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [interpreter, *words, *arguments], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60
    )
    return done.stdout + done.stderr


def state(path: Path) -> tuple[object, ...]:
    status = path.stat()
    return oct(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, os.listxattr(path), path.read_bytes()


@pytest.mark.parametrize("way", ["command", "script", "--init", "exec"])
def test_the_runners_program(way: str, interpreter: Path, load: Callable[..., None], store_root: Path) -> None:
    """CVE-2019-5736: a command that is /proc/self/exe, or a script for it, is the host's Python, run in the container,
    by a root who may change modes, owners and attributes. The host's file is out of its reach."""
    load(File("script", b"#!/proc/self/exe\n" + CHANGES.encode(), 0o755), File("changes", CHANGES.encode()))
    before = state(interpreter)
    pullpipe_ = ("-m", "pullpipe", "--root", str(store_root))
    evil = ("/script",) if way == "script" else ("/proc/self/exe", "/changes")
    if way == "exec":
        by(interpreter, pullpipe_, "run", "-d", "--name", "c", *host_python(), "test", "sleep", "1000")
        shown = by(interpreter, pullpipe_, "exec", "c", *evil)
        by(interpreter, pullpipe_, "rm", "-f", "c")
    else:
        options = ("--init",) if way == "--init" else ()
        shown = by(interpreter, pullpipe_, "run", "--rm", *options, *host_python(), "test", *evil)
    assert len(shown.splitlines()) == 5, shown  # it did run
    assert state(interpreter) == before


def test_the_runners_program_off_guard(interpreter: Path, load: Callable[..., None], store_root: Path) -> None:
    """The control: where the program has not executed itself again, there is nothing between; so it refuses to run."""
    load(File("changes", CHANGES.encode()))
    words = ("--root", str(store_root), "run", "--rm", *host_python(), "test", "/proc/self/exe", "/changes")
    before = state(interpreter)
    assert "could change the machine's Python" in by(
        interpreter, ("-c", OFF_GUARD.replace("interpreter.check", "_")), *words
    )
    assert state(interpreter) == before
    shown = by(interpreter, ("-c", OFF_GUARD), *words)
    assert shown.splitlines() == [*["changed"] * 4, "Text file busy"]
    assert state(interpreter)[:4] == ("0o104755", 1234, 1234, 10**9)


def file_capabilities(*numbers: int) -> bytes:
    """The attribute security.capability, version 2: permitted, and effective."""
    mask = sum(1 << number for number in numbers)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    return b"".join(word.to_bytes(4, "little") for word in (0x02000001, low, 0, high, 0))


SYS_ADMIN, SYS_PTRACE, NET_BIND_SERVICE = 21, 19, 10


def program(name: str, target: str, **attributes: object) -> list[Entry]:
    """A program of the host, and what it needs, as entries of a layer."""
    path = shutil.which(name) or ""
    listing = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    libraries = [word for word in listing.split() if word.startswith("/")]
    entries: list[Entry] = [File(one.lstrip("/"), Path(one).read_bytes(), 0o755) for one in libraries]
    return [*entries, File(target, Path(path).read_bytes(), **attributes)]  # type: ignore[arg-type]


@pytest.mark.parametrize("user", ["0", "65534"])
def test_rights_that_a_file_brings_along(user: str, load: Callable[..., None], cli: Cli) -> None:
    """Setuid and capabilities of files end at what the container may have; those within, a user gets, as in Docker."""
    everything = {"security.capability": file_capabilities(*range(38))}
    bind = {"security.capability": file_capabilities(NET_BIND_SERVICE)}
    load(
        *program("cat", "bin/setuid", mode=0o4755),
        *program("cat", "bin/everything", mode=0o755, xattrs=everything),
        *program("cat", "bin/bind", mode=0o755, xattrs=bind),
    )
    for name in ("setuid", "everything", "bind"):
        done = cli("run", "--rm", "-u", user, "test", f"/bin/{name}", "/proc/self/status")
        if done.returncode == 126 and name == "everything":
            continue  # the kernel refuses to run with less than the file says
        found = status(out(done))
        assert not int(found["CapEff"], 16) & ~0xA80425FB
        if name == "bind" and user != "0":
            assert int(found["CapEff"], 16) == 1 << NET_BIND_SERVICE
    nothing = cli(
        "run", "--rm", "-u", "65534", "--security-opt=no-new-privileges", "test", "/bin/bind", "/proc/self/status"
    )
    assert int(status(out(nothing))["CapEff"], 16) == 0


# What the container's root tries. Each is a piece of Python that prints `out` when it has got where it should not.

LIBC = "import ctypes, os, struct, sys, fcntl, socket; libc = ctypes.CDLL(None, use_errno=True)\n"

BREAK_CHROOT = """
os.makedirs("/tmp/inner", exist_ok=True)
top = os.open("/", os.O_RDONLY)
os.chroot("/tmp/inner")
os.fchdir(top)
for _ in range(50): os.chdir("..")
os.chroot(".")
if os.path.exists(sys.argv[1]): print("out")
"""


def in_container(run: Run, code: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
    done = run("python", "-S", "-c", LIBC + code, *arguments, options=(*host_python(), *options))
    assert "Traceback" not in done.stderr or "OSError" in done.stderr or "PermissionError" in done.stderr, done.stderr
    return done.stdout.strip()


def test_a_root_in_a_root(run: Run, victim: Path, tmp_path: Path) -> None:
    """Out of a chroot root gets easily; a container's root is no chroot, but the only one there is."""
    assert in_container(run, BREAK_CHROOT, str(victim)) == ""
    (tmp_path / "jail" / "tmp").mkdir(parents=True)
    chrooted = LIBC + f"os.chroot({str(tmp_path / 'jail')!r})\n" + BREAK_CHROOT
    done = subprocess.run([sys.executable, "-S", "-c", chrooted, str(victim)], capture_output=True, text=True)
    assert done.stdout == "out\n", done.stderr


HANDLE = """
import json
kind, data = json.loads(sys.argv[1])
class Handle(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]
handle = Handle(len(data), kind, (ctypes.c_ubyte * 128)(*data))
place = os.open("/etc/hosts", os.O_RDONLY)
found = libc.open_by_handle_at(place, ctypes.byref(handle), os.O_RDONLY)
if found >= 0 and os.read(found, 100) == b"precious": print("out")
"""


class _Handle(ctypes.Structure):
    _fields_ = (("size", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_ubyte * 128))


def test_a_file_by_its_number(shell_root: Path, run: Run) -> None:
    """The exploit called shocker: any file of the file system that /etc/hosts is on opens by its inode's number."""
    victim = shell_root.parent / "victim"  # on the same file system as the store
    victim.write_text("precious")
    handle, mount = _Handle(128), ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.name_to_handle_at(-100, os.fsencode(victim), ctypes.byref(handle), ctypes.byref(mount), 0) != 0:
        pytest.skip(f"this file system has no file handles: {os.strerror(ctypes.get_errno())}")
    text = json.dumps([handle.kind, list(handle.data[: handle.size])])
    assert in_container(run, HANDLE, text) == ""
    assert in_container(run, HANDLE, text, options=("--cap-add=DAC_READ_SEARCH",)) == "out"


RELEASE_AGENT = """
os.makedirs("/tmp/cg", exist_ok=True)
for kind, options in ((b"cgroup2", None), (b"cgroup", b"memory"), (b"cgroup", b"none,name=pullpipe-test")):
    if libc.mount(b"x", b"/tmp/cg", kind, 0, options) == 0: print("out"); libc.umount2(b"/tmp/cg", 2); break
"""

NEW_ROOT = """
if libc.unshare(0x10000000) == 0 and "CapEff:\\t00000000" not in open("/proc/self/status").read(): print("out")
"""

REMOUNT = """
if libc.mount(None, b"/sys", None, 0x20 | 0x1000, None) == 0: print("out")
"""

UNMASK = """
if libc.umount2(b"/proc/keys", 2) == 0: print("out")
"""

KERNEL_LOG = """
if libc.klogctl(3, ctypes.create_string_buffer(16), 16) >= 0: print("out")
"""

RAW_MEMORY = """
for name in "mem", "kmem", "port", "kmsg":
    for place in "/dev", "/dev/shm", "/tmp", "/":
        try:
            os.mknod(f"{place}/n", 0o20600, os.makedev(1, {"mem": 1, "kmem": 2, "port": 4, "kmsg": 11}[name]))
        except OSError: pass
        try: os.open(f"{place}/n", os.O_RDONLY | os.O_NONBLOCK); print("out"); sys.exit()
        except OSError: pass
        try: os.unlink(f"{place}/n")
        except OSError: pass
"""

TRACE = """
pid = int(sys.argv[1])
if libc.ptrace(0x4206, pid, 0, 0) == 0: print("out"); libc.ptrace(17, pid, 0, 0)
"""

SIGNAL = """
try: os.kill(int(sys.argv[1]), 0); print("out")
except ProcessLookupError: pass
"""

READ_PROCESS = """
try: print("out" if open(f"/proc/{sys.argv[1]}/environ").read() else "")
except OSError: pass
"""

JOIN = """
try: fd = os.open(f"/proc/{sys.argv[1]}/ns/mnt", os.O_RDONLY)
except OSError: sys.exit()
if libc.setns(fd, 0x20000) == 0: print("out")
"""


@pytest.mark.parametrize(
    ("attempt", "opened_by"),
    [
        (RELEASE_AGENT, ["--cap-add=SYS_ADMIN"]),
        (NEW_ROOT, [UNCONFINED]),
        (REMOUNT, ["--cap-add=SYS_ADMIN"]),
        (UNMASK, ["--cap-add=SYS_ADMIN"]),
        (KERNEL_LOG, ["--cap-add=SYSLOG"]),
        (TRACE, ["--pid=host", "--cap-add=SYS_PTRACE"]),
        (SIGNAL, ["--pid=host"]),
        (READ_PROCESS, ["--pid=host", "--cap-add=SYS_PTRACE"]),
        (JOIN, ["--pid=host", "--cap-add=SYS_PTRACE", "--cap-add=SYS_ADMIN"]),
    ],
    ids=["release_agent", "new_root", "remount", "unmask", "kernel_log", "trace", "signal", "read_process", "join"],
)
def test_escapes(attempt: str, opened_by: list[str], run: Run) -> None:
    """Nothing of it works, as root and as another; and each does once the wall is taken away by its option."""
    with subprocess.Popen(["sleep", "1000"], env={"SECRET": "secret"}) as process:
        try:
            for user in ("0", "65534"):
                assert in_container(run, attempt, str(process.pid), options=("-u", user)) == ""
            assert in_container(run, attempt, str(process.pid), options=tuple(opened_by)) == "out"
        finally:
            process.kill()


def test_raw_devices(run: Run, tmp_path: Path) -> None:
    """The machine's memory and its log: nodes can be made, and do not open. On the host they do."""
    assert in_container(run, RAW_MEMORY) == ""
    os.mknod(tmp_path / "kmsg", stat.S_IFCHR | 0o600, os.makedev(1, 11))
    os.close(os.open(tmp_path / "kmsg", os.O_RDONLY | os.O_NONBLOCK))


def test_the_hosts_nodes(run: Run) -> None:
    """Root in the container is root outside, and the usual devices are the host's own: it may not change them."""
    names = ("null", "zero", "full", "random", "urandom", "tty")
    before = {name: os.stat(f"/dev/{name}") for name in names}
    change = """
for path in sys.argv[1:]:
    for change in (lambda: os.chmod(path, 0), lambda: os.chown(path, 1, 1), lambda: os.truncate(path, 0)):
        try: change(); print("out", path)
        except OSError: pass
"""
    try:
        assert in_container(run, change, *(f"/dev/{name}" for name in names), "/proc/keys") == ""
        after = {name: os.stat(f"/dev/{name}") for name in names}
        assert {name: (one.st_mode, one.st_uid) for name, one in before.items()} == (
            {name: (one.st_mode, one.st_uid) for name, one in after.items()}
        )
    finally:
        for name, one in before.items():  # the machine must not suffer from a test that fails
            os.chown(f"/dev/{name}", one.st_uid, one.st_gid)
            os.chmod(f"/dev/{name}", stat.S_IMODE(one.st_mode))
    node = "os.mknod('/dev/shm/n', 0o20666, os.makedev(1, 3))\n"
    assert in_container(run, node + change, "/dev/shm/n").split("\n")[0] == "out /dev/shm/n"


def test_the_hosts_nodes_as_streams(shell_root: Path, tmp_path: Path) -> None:
    """What is open can be changed, too: a stream that is /dev/null, ours or the caller's, is the container's own."""
    null = tmp_path / "null"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.chmod(null, 0o666)
    change = "import os\nfor stream in 0, 1, 2:\n  try: os.fchmod(stream, 0)\n  except OSError: pass"
    run = [sys.executable, "-m", "pullpipe", "--root", str(shell_root), "run", "--rm", "-i", *host_python(), "test"]
    for command, expected in (([*run, "python"], 0o666), ([sys.executable], 0)):
        with null.open("r+b", buffering=0) as stream:
            call = [*command, "-S", "-c", change]
            subprocess.run(call, cwd=PROJECT, stdin=stream, stdout=stream, stderr=stream, check=True)
        assert stat.S_IMODE(null.stat().st_mode) == expected
    before = os.stat("/dev/null")
    try:
        for way in ("/proc/self/fd/0", "/dev/stdin"):
            assert pullpipe(shell_root, "run", "--rm", "test", "chmod", "0", way).returncode != 0
        assert os.stat("/dev/null").st_mode == before.st_mode
    finally:
        os.chmod("/dev/null", stat.S_IMODE(before.st_mode))


def test_proc_but_for_processes(run: Run) -> None:
    """The modes and owners of /proc's files are the machine's, in every container. What belongs to processes is rw."""
    code = """
for name in os.listdir("/proc"):
    path = f"/proc/{name}"
    if name.isdigit() or os.path.islink(path): continue
    try: os.chmod(path, os.stat(path).st_mode & 0o7777); print("out", path)
    except OSError: pass
open("/proc/self/oom_score_adj", "w").write("500")
open("/proc/self/comm", "w").write("new")
"""
    assert in_container(run, code) == ""
    mode = "import os; os.chmod('/proc/version', os.stat('/proc/version').st_mode & 0o7777)"
    subprocess.run([sys.executable, "-c", mode], check=True)


def test_streams_that_are_devices_work(shell_root: Path) -> None:
    """They are read, written and appended to."""
    command = f"{sys.executable} -m pullpipe --root {shell_root} run --rm -i test"
    script = f"{command} sh -c 'head -c 4 | od -An -tx1' < /dev/zero; {command} echo x >> /dev/null"
    done = subprocess.run(["sh", "-c", script], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["00"] * 4, "")


KEEP_A_KEY = """
import ctypes, subprocess, sys
libc = ctypes.CDLL(None)
numbers = {"x86_64": (248, 250)}.get(sys.argv[1], (217, 219))
libc.syscall(numbers[1], 1, None)
assert libc.syscall(numbers[0], b"user", b"pullpipe-test", b"secret", 6, -3) > 0
sys.exit(subprocess.run(sys.argv[2:]).returncode)
"""

FIND_THE_KEY = """
numbers = {"x86_64": 250}.get(sys.argv[1], 219)
if libc.syscall(numbers, 10, -3, b"user", b"pullpipe-test", 0) > 0: print("out")
"""


def test_keys_of_the_caller(shell_root: Path) -> None:
    """The session's keyring of whoever calls is not the container's, also where no filter refuses to ask for it."""
    run = [
        sys.executable,
        "-m",
        "pullpipe",
        "--root",
        str(shell_root),
        "run",
        "--rm",
        UNCONFINED,
        *host_python(),
        "test",
    ]
    for command, expected in (([*run, "python"], ""), ([sys.executable], "out\n")):
        find = [*command, "-S", "-c", LIBC + FIND_THE_KEY, platform.machine()]
        keep = [sys.executable, "-c", KEEP_A_KEY, platform.machine(), *find]
        done = subprocess.run(keep, cwd=PROJECT, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, expected), done.stderr


SWITCHES = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/proc/bus/pci/00/00.0",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/power/state",
    "/sys/class/net/lo/mtu",
]


def test_switches_of_the_host(run: Run) -> None:
    """What of /proc and /sys would change the host opens for no writer; on the host it does."""
    code = """
for path in sys.argv[1:]:
    try: os.close(os.open(path, os.O_WRONLY)); print("out", path)
    except OSError: pass
"""
    there = [path for path in SWITCHES if os.path.exists(path)]
    assert len(there) >= 5
    assert in_container(run, code, *there) == ""
    for path in there:
        if "sysrq" not in path:
            os.close(os.open(path, os.O_WRONLY))


def test_what_there_is_to_see(run: Run) -> None:
    """The whole of the container's view: its own processes, the usual devices, no disk, no mount of the host."""
    code = """
import json
devices = []
for top, names, files in os.walk("/dev"):
    for name in files:
        mode = os.lstat(os.path.join(top, name)).st_mode
        if mode & 0o170000 in (0o20000, 0o60000): devices.append(os.path.join(top, name))
mounts = [row.split()[4] for row in open("/proc/self/mountinfo")]
pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
keys = open("/proc/keys").read() if os.path.exists("/proc/keys") else ""
print(json.dumps([sorted(devices), sorted(mounts), pids, keys]))
"""
    devices, mounts, pids, keys = json.loads(in_container(run, code))
    usual = ["full", "null", "random", "tty", "urandom", "zero"]
    assert devices == [f"/dev/{name}" for name in sorted([*usual, "pts/ptmx"])]
    assert (pids, keys) == ([1], "")
    files = [f"/etc/{name}" for name in ("hosts", "resolv.conf", "hostname")]
    known = {"/", "/dev", *(f"/dev/{name}" for name in (*usual, "pts", "shm", "mqueue")), *files}
    known |= {option.rsplit(":", 2)[1] for option in host_python() if option.startswith("-v")}
    assert {path for path in mounts if not path.startswith(("/proc", "/sys"))} == known


def test_the_terminal_of_the_caller(shell_root: Path) -> None:
    """CVE-2017-5226: what the container types into our terminal would be read by our shell when it has ended."""
    require("script")
    code = "import fcntl; fcntl.ioctl(0, 0x5412, b'x'); print('out')"  # TIOCSTI
    options = " ".join(host_python())
    command = f'{sys.executable} -m pullpipe --root {shell_root} run --rm -i {options} test python -S -c "{code}"'
    done = subprocess.run(["script", "-qec", command, "/dev/null"], cwd=PROJECT, capture_output=True, text=True)
    assert "out" not in done.stdout.split()
    assert "Inappropriate ioctl" in done.stdout, done.stdout  # it is a pipe

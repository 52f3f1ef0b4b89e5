"""Code that runs inside the unpack worker cannot get out of it: every way that we know of, tried (`worker.lock_in`).

Each way is tried twice: by a process locked in as a job is, where it must fail, and by one that is not, where it must
work; so that no attempt fails for a reason of its own.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import importlib
import io
import os
import resource
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from pullpipe import linux
from pullpipe.errors import KernelRefused
from pullpipe.pipe.unpack import Worker, channel
from pullpipe.pipe.worker import Job, lock_in
from tests.support.processes import children

pytestmark = pytest.mark.needs_root

PATIENCE = 20.0  # seconds; only a test that fails waits so long
SECRET = b"secret"
CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD, SETFCAP = 0, 1, 3, 4, 27, 31  # <linux/capability.h>
GRANTED = sum(1 << number for number in (CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD, SETFCAP))

CLONE_NEWUSER = 0x10000000
AT_EMPTY_PATH, AT_FDCWD = 0x1000, -100
PR_CAPBSET_READ, PR_GET_NO_NEW_PRIVS = 23, 39
PTRACE_SEIZE, PTRACE_DETACH = 0x4206, 17
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass
class World:
    """What is around the directory, and what a job is born with."""

    top: Path
    root: Path
    secret: Path
    handle: bytes  # of the secret, for open_by_handle_at; empty where the file system has none
    mount_id_fd: int
    blob: int  # open: a file outside
    namespaces: list[int]  # open: of this process. A job has none; with them the test is the harder
    server: tuple[str, int]
    abstract: str
    bystander: int  # a process of the same user
    disk: int  # a block device's number; 0 where there is none

    @property
    def up(self) -> str:
        """More than enough, and then back down."""
        return "../" * 40 + str(self.secret)[1:]


Attempt = Callable[[World], None]


def checked(result: int) -> int:
    """A system call's result, its error raised."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def expect_secret(fd: int) -> None:
    """It is the one outside that has been opened."""
    assert os.read(fd, 100) == SECRET


def open_at(path: str) -> Attempt:
    def attempt(world: World) -> None:
        places = {"top": world.top, "secret": world.secret, "up": world.up, "bystander": world.bystander}
        expect_secret(os.open(path.format(**places), os.O_RDONLY))

    return attempt


def write_at(path: str) -> Attempt:
    def attempt(world: World) -> None:
        os.close(os.open(path.format(top=world.top), os.O_WRONLY | os.O_CREAT))
        if os.path.exists("created"):
            raise PermissionError("no further than the root")

    return attempt


def openat_from_every_directory(world: World) -> None:
    for fd in filter(_is_directory, range(3, 256)):
        with suppress(OSError):
            return expect_secret(os.open(f"../{world.secret.name}", os.O_RDONLY, dir_fd=fd))
    raise PermissionError("no open directory leads there")


def dotdot_from_every_directory(world: World) -> None:
    for fd in filter(_is_directory, range(3, 256)):
        with suppress(OSError):
            os.fchdir(fd)
            return expect_secret(os.open(world.up, os.O_RDONLY))
    raise PermissionError("no open directory leads there")


def _is_directory(fd: int) -> bool:
    try:
        return stat.S_ISDIR(os.fstat(fd).st_mode)
    except OSError:
        return False


def link_the_blob_in(world: World) -> None:
    directories = [fd for fd in range(3, 256) if _is_directory(fd)]
    assert directories
    for fd in directories:
        checked(LIBC.linkat(world.blob, b"", fd, b"linked", AT_EMPTY_PATH))


def link_by_name(world: World) -> None:
    os.link(world.secret, "linked")


def rename_out(world: World) -> None:
    os.rename("sub", f"{world.top}/renamed")


def chroot_again(world: World) -> None:
    os.chroot("sub")
    expect_secret(os.open(world.up, os.O_RDONLY))


def chroot_by_descriptor(world: World) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chroot("sub")
    os.fchdir(here)
    os.chdir("../" * 40)
    os.chroot(".")
    expect_secret(os.open(world.secret, os.O_RDONLY))


def mount_proc(world: World) -> None:
    linux.mount("proc", "sub", "proc")


def mount_tmpfs(world: World) -> None:
    linux.mount("none", "sub", "tmpfs")


def mount_by_binding(world: World) -> None:
    linux.mount(".", "sub", "", linux.MS_BIND)


def mount_without_nodev(world: World) -> None:
    linux.mount("none", "sub", "tmpfs")
    linux.mount("", "sub", "", linux.MS_BIND | linux.MS_REMOUNT)


def move_the_root(world: World) -> None:
    linux.mount("none", "sub", "tmpfs")
    os.mkdir("sub/old")
    linux.pivot_root("sub", "sub/old")


def open_tree(world: World) -> None:
    checked(LIBC.syscall(428, AT_FDCWD, b".", 1))  # OPEN_TREE_CLONE; the number is the same everywhere


def make_and_open(kind: int, device: Callable[[World], int]) -> Attempt:
    def attempt(world: World) -> None:
        number = device(world)
        os.mknod("node", kind | 0o666, number)
        assert os.lstat("node").st_rdev == number
        os.close(os.open("node", os.O_RDONLY | os.O_NONBLOCK))

    return attempt


def open_by_handle(world: World) -> None:
    buffer = ctypes.create_string_buffer(world.handle)
    expect_secret(checked(LIBC.open_by_handle_at(world.mount_id_fd, buffer, os.O_RDONLY)))


def enter_mounts(world: World) -> None:
    checked(LIBC.setns(world.namespaces[0], 0))


def enter_network(world: World) -> None:
    checked(LIBC.setns(world.namespaces[1], 0))


def enter_by_process(world: World) -> None:
    checked(LIBC.setns(os.pidfd_open(world.bystander), linux.CLONE_NEWNS | linux.CLONE_NEWNET))


def trace(world: World) -> None:
    checked(LIBC.ptrace(PTRACE_SEIZE, world.bystander, None, None))


def steal_descriptor(world: World) -> None:
    checked(LIBC.syscall(438, os.pidfd_open(world.bystander), 0, 0))  # pidfd_getfd; the number is the same everywhere


def kill_bystander(world: World) -> None:
    os.kill(world.bystander, signal.SIGCONT)  # which a running process does not notice


def limit_bystander(world: World) -> None:
    limits = resource.prlimit(world.bystander, resource.RLIMIT_CORE)
    resource.prlimit(world.bystander, resource.RLIMIT_CORE, limits)


def new_user_namespace(world: World) -> None:
    linux.unshare(CLONE_NEWUSER | linux.CLONE_NEWNS)
    linux.mount("none", "sub", "tmpfs")


def new_mount_namespace(world: World) -> None:
    linux.unshare(linux.CLONE_NEWNS)


def run_a_program(world: World) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.execv("setuid-program", ["setuid-program"])
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


def gain_by_execution(world: World) -> None:
    if LIBC.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1:
        raise PermissionError("no new privileges")


def connect(world: World) -> None:
    with socket.socket() as one:
        one.settimeout(PATIENCE)
        one.connect(world.server)


def connect_abstract(world: World) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(world.abstract)


def connect_by_path(world: World) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(f"{world.top}/listening")


def become_another(world: World) -> None:
    os.setuid(12345)


def import_planted(world: World) -> None:
    for path in ("/", str(world.root), "."):
        sys.path.insert(0, path)
    importlib.invalidate_caches()
    importlib.import_module("planted_in_the_layer")


def import_late(world: World) -> None:
    """A module of the standard library, where the image could have put its own."""
    sys.modules.pop("colorsys", None)
    sys.path.insert(0, "/")
    importlib.invalidate_caches()
    importlib.import_module("colorsys")


NAKED, CHROOT, NONE = "naked", "chroot", "none"

# By name: the attempt, and the control in which it must work: a process that is not locked in, standing in the
# directory; one in a chroot and nothing more; or none, where there is no such machine.
ATTEMPTS: dict[str, tuple[Attempt, str]] = {
    "absolute path": (open_at("{secret}"), NAKED),
    "dotdot": (open_at("../secret"), NAKED),
    "dotdot chain": (open_at("{up}"), NAKED),
    "dotdot from a directory": (open_at("sub/../../secret"), NAKED),
    "create outside": (write_at("{top}/created"), NAKED),
    "create above": (write_at("../created"), NAKED),
    "proc self root": (open_at("/proc/self/root/{secret}"), NAKED),
    "proc self cwd": (open_at("/proc/self/cwd/../secret"), NAKED),
    "proc 1 root": (open_at("/proc/1/root/{secret}"), NONE),  # in a container it may have more rights than we
    "proc pid root": (open_at("/proc/{bystander}/root/{secret}"), NAKED),
    "proc self fd": (open_at("/proc/self/fd/0/../../secret"), NONE),
    "absolute symlink": (open_at("absolute-link"), NAKED),
    "relative symlink": (open_at("relative-link"), NAKED),
    "symlink to a directory": (open_at("directory-link/secret"), NAKED),
    "symlink to proc": (open_at("proc-link/{secret}"), NAKED),
    "openat": (openat_from_every_directory, NAKED),
    "fchdir": (dotdot_from_every_directory, NAKED),
    "link by descriptor": (link_the_blob_in, NAKED),
    "link by name": (link_by_name, NAKED),
    "rename out": (rename_out, NAKED),
    "chroot again": (chroot_again, CHROOT),
    "chroot by descriptor": (chroot_by_descriptor, CHROOT),
    "mount proc": (mount_proc, NAKED),
    "mount tmpfs": (mount_tmpfs, NAKED),
    "bind": (mount_by_binding, NAKED),
    "mount without nodev": (mount_without_nodev, NAKED),
    "pivot root": (move_the_root, NAKED),
    "open tree": (open_tree, NAKED),
    "block device": (make_and_open(stat.S_IFBLK, lambda world: world.disk), NAKED),
    "character device": (make_and_open(stat.S_IFCHR, lambda _: os.makedev(1, 5)), NAKED),
    "open by handle": (open_by_handle, NAKED),
    "setns mounts": (enter_mounts, NAKED),
    "setns network": (enter_network, NAKED),
    "setns by process": (enter_by_process, NAKED),
    "ptrace": (trace, NAKED),
    "pidfd_getfd": (steal_descriptor, NAKED),
    "signal": (kill_bystander, NAKED),
    "prlimit": (limit_bystander, NAKED),
    "user namespace": (new_user_namespace, NAKED),
    "mount namespace": (new_mount_namespace, NAKED),
    "run a program": (run_a_program, NAKED),
    "gain by execution": (gain_by_execution, NAKED),
    "connect": (connect, NAKED),
    "connect abstract": (connect_abstract, NAKED),
    "connect by path": (connect_by_path, NAKED),
    "become another": (become_another, NAKED),
    "import planted": (import_planted, CHROOT),
    "import late": (import_late, NAKED),
}
NEEDS = {
    "open by handle": lambda world: world.handle,
    "block device": lambda world: world.disk,
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    top = tmp_path / "top"
    root = top / "root"
    (root / "sub").mkdir(parents=True)
    secret = top / "secret"
    secret.write_bytes(SECRET)
    (top / "blob").write_bytes(b"blob")
    for name, target in (
        ("absolute-link", secret),
        ("relative-link", "../secret"),
        ("directory-link", ".."),
        ("proc-link", "/proc/self/root"),
    ):
        (root / name).symlink_to(target)
    for name in ("planted_in_the_layer", "colorsys"):
        (root / f"{name}.py").write_text("PLANTED = True\n")
    shutil.copy("/bin/true", root / "setuid-program")
    (root / "setuid-program").chmod(0o4755)
    handle = _handle(secret)
    descriptors = [
        os.open(path, os.O_RDONLY) for path in (top / "blob", "/proc/self/ns/mnt", "/proc/self/ns/net", secret)
    ]
    abstract = f"\0pullpipe-test-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as nameless,
        subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL) as bystander,
    ):
        named.bind(f"{top}/listening")
        nameless.bind(abstract)
        for one in (named, nameless):
            one.listen()
        blob, *namespaces, mount_id_fd = descriptors
        host, port = server.getsockname()
        try:
            yield World(
                top, root, secret, handle, mount_id_fd, blob, namespaces, (host, port), abstract, bystander.pid, _disk()
            )
        finally:
            bystander.kill()
            for fd in descriptors:
                os.close(fd)


def _handle(path: Path) -> bytes:
    """A struct file_handle, filled in; empty where the file system gives none."""
    buffer = ctypes.create_string_buffer((128).to_bytes(4, sys.byteorder) + bytes(132))
    mount = ctypes.c_int()
    if LIBC.name_to_handle_at(AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(mount), 0) != 0:
        return b""
    return buffer.raw


def _disk() -> int:
    for device in sorted(Path("/sys/block").glob("*/dev")):
        major, minor = map(int, device.read_text().split(":"))
        if int((device.parent / "size").read_text()):
            return os.makedev(major, minor)
    return 0


def outcome(world: World, attempt: Attempt, how: str) -> str:
    """What becomes of the attempt, in a process of its own: "worked", or why not."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _close_others({world.blob, world.mount_id_fd, *world.namespaces, writing})
            warnings.simplefilter("ignore")  # Python says something of an empty sys.meta_path
            text = "worked"
            if how == "locked in":  # the worker is started in a PID namespace
                linux.unshare(linux.CLONE_NEWPID)
                if inner := os.fork():
                    os.waitpid(inner, 0)
                    os._exit(0)
            directory = os.open(world.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            _prepare(directory, how)
            try:
                attempt(world)
            except KernelRefused as error:
                cause = error.__cause__
                text = errno.errorcode.get(getattr(cause, "errno", None) or 0, "?")
            except OSError as error:
                text = errno.errorcode.get(error.errno or 0, str(error))
            except ImportError:
                text = "no import"
        except BaseException as error:
            text = f"broken: {type(error).__name__}: {error}"
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    try:
        if not select.select([reading], [], [], PATIENCE)[0]:
            os.kill(child, signal.SIGKILL)
        return os.read(reading, 4000).decode()
    finally:
        os.close(reading)
        os.waitpid(child, 0)


def _close_others(kept: set[int]) -> None:
    """A job is born with its three descriptors and the standard ones; the tests' own would be more than it has."""
    for fd in range(3, 1024):
        if fd not in kept:
            try:
                fcntl.fcntl(fd, fcntl.F_GETFD)
            except OSError:
                continue
            os.close(fd)


def _prepare(directory: int, how: str) -> None:
    """As `serve` and `_run_job` do, or a part of it."""
    if how == "locked in":
        linux.unshare(linux.CLONE_NEWNET | linux.CLONE_NEWIPC)
    path = os.readlink(f"/proc/self/fd/{directory}")  # for the descriptor's mount is about to be another namespace's
    linux.unshare(linux.CLONE_NEWNS)
    private = linux.keep_mounts_here()
    if how == "locked in":
        os.close(directory)
        lock_in(path, private=private)
        return
    os.chdir(path)
    if how == CHROOT:
        os.chroot(".")


REFUSALS = {
    "EPERM",
    "EACCES",
    "ENOENT",
    "ENOTDIR",
    "EXDEV",
    "ENETUNREACH",
    "ECONNREFUSED",
    "ESRCH",
    "EINVAL",
    "no import",
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_no_way_out(world: World, name: str) -> None:
    """Locked in, the attempt fails, and by the kernel's refusal."""
    result = outcome(world, ATTEMPTS[name][0], "locked in")
    assert result in REFUSALS or result.startswith("no "), result
    assert not (world.top / "created").exists()
    assert (world.root / "sub").is_dir()


@pytest.mark.parametrize("name", [name for name, (_, control) in ATTEMPTS.items() if control != NONE])
def test_there_is_a_way_without_the_lock(world: World, name: str) -> None:
    """The control: the same attempt, by a process that is not locked in."""
    if name in NEEDS and not NEEDS[name](world):
        pytest.skip("this machine has not got what it takes")
    attempt, control = ATTEMPTS[name]
    result = outcome(world, attempt, control)
    if result == "EPERM" and name == "block device":
        pytest.skip("a device cgroup forbids what the lock would have to")
    assert result == "worked"


def _capabilities() -> tuple[int, int, int]:
    """Effective, permitted, inheritable."""
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    checked(LIBC.capget(head, data))
    return data[0] | data[3] << 32, data[1] | data[4] << 32, data[2] | data[5] << 32


def _exactly_the_granted(_: World) -> None:
    bounding = sum(1 << number for number in range(64) if LIBC.prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1)
    found = (*_capabilities(), bounding)
    assert found == (GRANTED, GRANTED, 0, GRANTED), [f"{mask:x}" for mask in found]
    raise PermissionError(errno.EPERM, "and no more")


def test_capabilities(world: World) -> None:
    """What it takes to make entries; in the bounding set, too, so that no program brings more."""
    assert outcome(world, _exactly_the_granted, "locked in") == "EPERM"
    assert outcome(world, _exactly_the_granted, NAKED).startswith("broken: AssertionError")


def _write_inside(_: World) -> None:
    with open("/sub/made", "wb") as file:
        file.write(b"made")
    os.mknod("/sub/node", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.chown("/sub/made", 1000, 1000)
    os.chmod("/sub/made", 0o4755)


def test_the_work_can_be_done(world: World) -> None:
    """The lock leaves what the job is for."""
    assert outcome(world, _write_inside, "locked in") == "worked"
    status = os.stat(world.root / "sub/made")
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (1000, 0o4755)
    assert stat.S_ISCHR(os.stat(world.root / "sub/node").st_mode)


# A real job, seen from outside.


@dataclass(frozen=True)
class Seen:
    """What /proc says of a job, and of its worker, while the job waits for bytes."""

    statuses: list[dict[str, str]]  # of each thread
    root: os.stat_result
    cwd: os.stat_result
    mounts: list[str]
    namespaces: dict[str, str]
    descriptors: dict[int, os.stat_result]
    directory: os.stat_result
    blob: os.stat_result
    worker_namespaces: dict[str, str]


NAMESPACES = ("mnt", "net", "ipc", "user", "pid", "uts")


def _namespaces(pid: int | str) -> dict[str, str]:
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES}


def _look(pid: int, worker: int, directory: Path, blob: int) -> Seen:
    proc = Path(f"/proc/{pid}")
    statuses = [
        dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        for status in proc.glob("task/*/status")
    ]
    return Seen(
        statuses=statuses,
        root=os.stat(proc / "root"),
        cwd=os.stat(proc / "cwd"),
        mounts=(proc / "mountinfo").read_text().splitlines(),
        namespaces=_namespaces(pid),
        descriptors={int(name): os.stat(proc / "fd" / name) for name in os.listdir(proc / "fd")},
        directory=os.stat(directory),
        blob=os.fstat(blob),
        worker_namespaces=_namespaces(worker),
    )


def archive() -> bytes:
    """A file that arrives, and one that is on its way."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, size in (("arrived", 100), ("coming", 200_000)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    top = tmp_path_factory.mktemp("job")
    directory = top / "root"
    directory.mkdir()
    data = archive()

    async def work(worker: Worker) -> Seen:
        with tempfile.TemporaryFile(dir=top) as file:
            file.write(data)
            file.flush()
            async with channel() as words:
                job = Job("overlay", len(data), "sha256", "sha256")
                task = asyncio.create_task(worker.unpack(job, file.fileno(), str(directory), words, lambda _: None))
                await words.available(4096)
                deadline = time.monotonic() + PATIENCE
                while not (directory / "coming").exists():  # from now on it only waits
                    assert time.monotonic() < deadline, "the job does nothing"
                    await asyncio.sleep(0.01)
                assert worker._process is not None
                (first,) = children(worker._process.pid)
                (job_pid,) = children(first)
                found = _look(job_pid, first, directory, file.fileno())
                await words.available(len(data))
                await task
                return found

    with Worker() as worker:
        return asyncio.run(work(worker))


def test_a_job_has_the_directory_for_its_root(seen: Seen) -> None:
    """And stands in it."""
    for place in (seen.root, seen.cwd):
        assert os.path.samestat(place, seen.directory)


def test_a_job_has_namespaces_of_its_own(seen: Seen) -> None:
    """Its mounts are its own; the network, IPC and processes that it sees are the worker's, which are not ours."""
    ours = _namespaces("self")
    assert seen.namespaces["mnt"] not in (ours["mnt"], seen.worker_namespaces["mnt"])
    for name in ("net", "ipc", "pid"):
        assert seen.namespaces[name] == seen.worker_namespaces[name] != ours[name]


def test_every_thread_of_a_job_has_only_what_it_needs(seen: Seen) -> None:
    """Capabilities and no_new_privs belong to threads; all three were made by the one that gave things up."""
    assert len(seen.statuses) >= 3
    for status in seen.statuses:
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == GRANTED
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert status["NoNewPrivs"] == "1"


def test_a_jobs_root_is_mounted_without_devices(seen: Seen) -> None:
    """It makes nodes that it cannot open, and files that it cannot run."""
    roots = [line.split() for line in seen.mounts if line.split()[4] == "/"]
    options = set(roots[-1][5].split(","))
    assert options >= {"nodev", "nosuid", "noexec"}


def test_a_job_has_no_descriptor_to_spare(seen: Seen) -> None:
    """The standard three, its socket, the blob, and directories that are its own."""
    for fd, status in seen.descriptors.items():
        if fd < 3:
            continue
        if stat.S_ISDIR(status.st_mode):
            assert os.path.samestat(status, seen.directory), fd
        elif stat.S_ISREG(status.st_mode):
            # The blob, or the layer's file that is being written.
            assert os.path.samestat(status, seen.blob) or status.st_size <= 200_000, fd
            assert status.st_dev in (seen.blob.st_dev, seen.directory.st_dev), fd
        else:
            assert stat.S_ISSOCK(status.st_mode), fd
    assert sum(stat.S_ISSOCK(status.st_mode) for status in seen.descriptors.values()) == 1
    assert stat.S_ISCHR(seen.descriptors[0].st_mode)  # /dev/null: a job reads nobody's input

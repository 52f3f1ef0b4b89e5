"""The container's walls, built from inside: namespaces, the root, /proc, /dev, /sys, and what may be done there.

`enter` runs in the first process of a new PID namespace, which becomes the command. Until the root is ours everything
named is the host's, and afterwards everything is the image's; so all that is needed of the host is opened or imported
before, and the image's symlinks can lead nowhere but into the image. What the host gives is held as mounts that are
attached nowhere yet, so that the host's root is gone before the first name in the container is looked up.

The rules for /proc, /dev, /sys and the capabilities are Docker's defaults, and more of /proc is read-only.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from typing import NamedTuple, TypeAlias

from pullpipe import linux, stack
from pullpipe.errors import KernelRefused, RunError
from pullpipe.runner import capabilities, places
from pullpipe.runner.command import Identity
from pullpipe.runner.walls import Bind, Rights, Tmpfs, Walls
from pullpipe.stack import Stack
from store import namespace

_NUMBERS = {os.makedev(1, 3): "null", os.makedev(1, 5): "zero", os.makedev(1, 7): "full"}
_NUMBERS |= {os.makedev(1, 8): "random", os.makedev(1, 9): "urandom"}
_DEVICES = tuple(f"/dev/{name}" for name in (*_NUMBERS.values(), "tty"))
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
# What of /proc and /sys tells of the host. There are no symlinks in these paths.
_MASKED_PROC = (
    *("acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug", "scsi"),
    *("timer_list", "timer_stats"),
)
_MASKED_SYS = ("devices/virtual/powercap", "firmware")
_PROCESSORS = "devices/system/cpu"
_MASKED_PROCESSOR = "thermal_throttle"

_SIOCSIFFLAGS = 0x8914  # <linux/sockios.h>
_IFF_UP = 0x1  # <linux/if.h>

# Mounts that are attached nowhere yet, and where they go, in this order.
_Trees: TypeAlias = list[tuple[int, str]]

_GUARD = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
_GUARDED = linux.ATTR_NOSUID | linux.ATTR_NODEV | linux.ATTR_NOEXEC


class Plan(NamedTuple):
    """What the container is made of."""

    stack: Stack
    rootfs: str  # the mount point, an empty directory of the host
    hostname: str
    files: tuple[tuple[str, str], ...]  # (path on the host, path in the container): hosts, resolv.conf, hostname
    walls: Walls = Walls()


class _Given(NamedTuple):
    """What the host gives."""

    proc: int
    sys: int
    usual: _Trees
    asked_for: _Trees


def enter(plan: Plan) -> int:
    """Makes this process's world the container, and returns the capabilities that its root cannot have in it.

    Raises `KernelRefused`, `RunError` or `OSError`.
    """
    os.umask(0)
    _unshare(plan.walls)
    in_chroot = not linux.keep_mounts_here()
    socket.sethostname(plan.hostname)
    given = _give(plan)
    # Devices that an image brings along do not work; the usual ones are made below, on a mount of their own.
    stack.mount(plan.stack, plan.rootfs, flags=linux.MS_NODEV)
    change_root(plan.rootfs, in_chroot=in_chroot)
    os.umask(0o022)
    _build(plan.walls, given)
    # The kernel pivots no chroot, and a root that may chroot can leave one.
    return capabilities.SYS_CHROOT if in_chroot else 0


def change_root(rootfs: str, *, in_chroot: bool) -> None:
    """Makes a mounted directory the root of this process, which has a mount namespace of its own."""
    os.chdir(rootfs)
    linux.import_nothing_more()
    if in_chroot:
        os.chroot(".")
    else:
        linux.pivot_root(".", ".")  # the old root now lies over the new one, where "." still finds it
        linux.umount(".", linux.MNT_DETACH)
    os.chdir("/")


def _unshare(walls: Walls) -> None:
    flags = linux.CLONE_NEWNS | linux.CLONE_NEWUTS | linux.CLONE_NEWCGROUP
    flags |= 0 if walls.host_ipc else linux.CLONE_NEWIPC
    flags |= linux.CLONE_NEWNET if walls.network.kind == "none" else 0
    linux.unshare(flags)
    if walls.network.kind == "none":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


# What the host gives, while it can still be seen.


def _give(plan: Plan) -> _Given:
    """What every container gets, and what the user asks for."""
    walls = plan.walls
    usual = [(_device(path), path) for path in _DEVICES]
    if walls.host_ipc:
        whole = namespace.in_user_namespace()  # where nothing is shown without what lies on it
        usual.append((_bind("/dev/shm", linux.ATTR_NOSUID | linux.ATTR_NOEXEC, recursive=whole), "/dev/shm"))
    usual += [(_bind(source, linux.ATTR_NOSUID | linux.ATTR_NOEXEC), target) for source, target in plan.files]
    # What lies deeper comes later, and so lies on top.
    mounts = sorted(walls.mounts, key=lambda one: one.target.rstrip("/").count("/"))
    asked_for = [(_user_mount(one), one.target) for one in mounts]
    asked_for += [(_device(source), target) for source, target in walls.devices]
    return _Given(_proc(walls), _sys(), usual, asked_for)


def _proc(walls: Walls) -> int:
    """A new /proc, of our PID namespace; or the machine's. In a user namespace the kernel gives no new one that would
    show more than the machine's does, parts of which may be covered, as in a container, nor one of the machine's PIDs.
    """
    try:
        return linux.make_mount("proc", {}, _GUARDED)
    except KernelRefused as error:
        if not namespace.in_user_namespace():
            raise
        if walls.rights.capabilities & capabilities.SYS_PTRACE and not walls.host_pids:
            why = "a container can only have this machine's /proc here, where CAP_SYS_PTRACE opens what else you run"
            raise RunError(f"{why}; leave that capability away, or say --pid host if that is meant") from error
    tree = linux.clone_tree("/proc", recursive=True)
    linux.set_attributes(tree, _GUARDED, recursive=True)
    return tree


def _sys() -> int:
    """A new /sys, of our network namespace; if that is the machine's, a user namespace only gets the machine's."""
    try:
        return linux.make_mount("sysfs", {}, _GUARDED | linux.ATTR_RDONLY)
    except KernelRefused:
        if not namespace.in_user_namespace():
            raise
    return _bind("/sys", _GUARDED | linux.ATTR_RDONLY, recursive=True)


def _user_mount(asked: Bind | Tmpfs) -> int:
    try:
        if isinstance(asked, Tmpfs):
            return linux.make_mount("tmpfs", dict(asked.options), asked.attributes | linux.ATTR_NODEV)
        return _bind(asked.source, linux.ATTR_RDONLY if asked.read_only else 0, recursive=asked.recursive)
    except KernelRefused as error:
        remedy = "tmpfs(5) tells what it can have" if isinstance(asked, Tmpfs) else "see that it is there, and yours"
        raise RunError(f"{error}, which was to be at {asked.target} in the container; {remedy}") from error


def _bind(source: str, attributes: int, *, recursive: bool = False) -> int:
    """A directory or file of the host. Nodes that root makes in it do not open: they could be the host's disks."""
    tree = linux.clone_tree(source, recursive=recursive)
    linux.set_attributes(tree, attributes | linux.ATTR_NODEV, recursive=recursive)
    return tree


def _device(source: str) -> int:
    """A node of the host. To be read and written, but root in the container may not change the node's mode or owner."""
    tree = linux.clone_tree(source)
    if not stat.S_ISCHR(mode := os.fstat(tree).st_mode) and not stat.S_ISBLK(mode):
        raise RunError(f"{source} is no device")
    linux.set_attributes(tree, linux.ATTR_RDONLY | linux.ATTR_NOSUID | linux.ATTR_NOEXEC)
    return tree


# From here on: inside the container.


def _build(walls: Walls, given: _Given) -> None:
    forbidden = os.fstat(given.proc).st_dev
    _attach(given.proc, "/proc")
    _mount_dev(walls)
    _attach(given.sys, "/sys")
    if namespace.in_user_namespace():  # where it may be the machine's, with all its groups
        _attach(blank := _blank(), "/sys/fs/cgroup")
        os.close(blank)
    for tree, target in given.usual:
        places.mount(tree, target, forbidden=forbidden)
    exchange_streams()
    null = os.open("/dev/null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    for tree, target in given.asked_for:
        places.mount(tree, target, forbidden=forbidden)
    for name, value in walls.sysctls:
        _set(given.proc, name, value)
    _mask(given.proc, null)
    for descriptor in (null, given.proc, given.sys):
        os.close(descriptor)


def _attach(tree: int, path: str) -> None:
    """Mounts on a directory of the root. An image that has a symlink there wants the mount elsewhere."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise RunError(f"the image's {path} is not a directory, so nothing can be mounted there") from None
    place = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    linux.attach(tree, place, path)
    os.close(place)


def _mount_dev(walls: Walls) -> None:
    """Nodes that root makes here do not open, the host's disks among them: those that do are the host's own, bound."""
    attributes = linux.ATTR_NOSUID | linux.ATTR_NODEV | linux.ATTR_NOEXEC | linux.ATTR_STRICTATIME
    tree = linux.make_mount("tmpfs", {"mode": "755", "size": "65536k"}, attributes)
    _attach(tree, "/dev")
    os.close(tree)
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, f"/dev/{name}")
    terminals = {"mode": "0620", "ptmxmode": "0666"} | ({"gid": "5"} if namespace.has("group", 5) else {})
    shm = {"source": "shm", "mode": "1777", "size": str(walls.shm_size)}
    made = [("/dev/pts", linux.make_mount("devpts", terminals, linux.ATTR_NOSUID | linux.ATTR_NOEXEC))]
    if not (walls.host_ipc and namespace.in_user_namespace()):  # whose root may not show the machine's
        made.append(("/dev/mqueue", linux.make_mount("mqueue", {}, _GUARDED)))  # shows those of the IPC namespace
    if not walls.host_ipc:
        made.append(("/dev/shm", linux.make_mount("tmpfs", shm, _GUARDED)))
    for path, tree in made:
        _attach(tree, path)
        os.close(tree)


def _set(proc: int, name: str, value: str) -> None:
    """A setting of one of our namespaces."""
    path = f"sys/{name.replace('.', '/')}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(fd, os.fsencode(value))
        finally:
            os.close(fd)
    except OSError as error:
        reason = (error.strerror or "refused").lower()
        raise RunError(f"{name} cannot be {value!r} in this container: {reason}; change that --sysctl") from error


def _mask(proc: int, null: int) -> None:
    """Hides what tells of the host, and keeps what would change it from being written to.

    Every place is reached from the open root of /proc or /sys, and what comes to lie on it is known by what it is, not
    by a name (CVE-2025-31133).
    """
    status = os.fstat(null)
    if not stat.S_ISCHR(status.st_mode) or _NUMBERS.get(status.st_rdev) != "null":
        raise RunError("this machine's /dev/null is something else, so nothing can be hidden behind it; mend it")
    blank = -1
    sys = os.open("/sys", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    masked = [(proc, path) for path in _MASKED_PROC] + [(sys, path) for path in (*_MASKED_SYS, *_processors(sys))]
    for top, path in masked:
        if (place := _below(top, path)) is None:
            continue
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            tree = linux.clone_tree(null)
        elif blank < 0:
            tree = blank = _blank()
        else:
            tree = linux.clone_tree(blank)
        linux.attach(tree, place, path)
        os.close(place)
        if tree != blank:
            os.close(tree)
    # All but what belongs to processes: who is root here could change the modes of the others, which are the machine's.
    os.fchdir(proc)
    for name in _names(proc):
        if _is_the_machines(name) and not stat.S_ISLNK(os.lstat(name).st_mode):
            linux.mount(name, name, "", linux.MS_BIND | linux.MS_REC)
            linux.mount("", name, "", linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | _GUARD)
    os.chdir("/")
    for descriptor in (sys, *(() if blank < 0 else (blank,))):
        os.close(descriptor)


def _blank() -> int:
    """An empty directory to lie over another."""
    return linux.make_mount("tmpfs", {"size": "0"}, _GUARDED | linux.ATTR_RDONLY)


def masked_paths() -> list[str]:
    """All that is hidden, for whoever builds walls of their own."""
    processors = [f"{_PROCESSORS}/cpu{number}/{_MASKED_PROCESSOR}" for number in range(os.cpu_count() or 1)]
    return [f"/proc/{path}" for path in _MASKED_PROC] + [f"/sys/{path}" for path in (*_MASKED_SYS, *processors)]


def readonly_paths() -> list[str]:
    """All that cannot be written to, likewise: what there is in this machine's /proc."""
    with os.scandir("/proc") as entries:
        return sorted(entry.path for entry in entries if _is_the_machines(entry.name) and not entry.is_symlink())


def _is_the_machines(name: str) -> bool:
    return not name.isdigit() and name not in _MASKED_PROC


def _processors(sys: int) -> list[str]:
    """Where it stands how often each processor was too hot: what the host does can be read from it."""
    if (place := _below(sys, _PROCESSORS)) is None:
        return []
    names = [name for name in _names(place) if name[3:].isdigit()]
    os.close(place)
    return [f"{_PROCESSORS}/{name}/{_MASKED_PROCESSOR}" for name in names]


def _names(place: int) -> list[str]:
    """What is in a directory that is open as a place only."""
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
    names = os.listdir(directory)
    os.close(directory)
    return names


def _below(top: int, path: str) -> int | None:
    """What is there, if it is and no symlink leads to it."""
    found = os.dup(top)
    try:
        for name in path.split("/"):
            inner = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=found)
            os.close(found)
            found = inner
    except OSError:
        os.close(found)
        return None
    if stat.S_ISLNK(os.fstat(found).st_mode):
        os.close(found)
        return None
    return found


def close_root() -> None:
    """Makes the root read-only, after the last thing that has to be made in it."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    linux.set_attributes(root, linux.ATTR_RDONLY)
    os.close(root)


def give_up_rights(identity: Identity, rights: Rights, withheld: int = 0) -> None:
    """Becomes the user, with these rights and no more. `withheld`: capabilities that not even root has here.

    Raises `RunError`, `KernelRefused`.
    """
    held = linux.capabilities()
    if lacking := rights.demanded & ~(held & ~withheld):
        names = ", ".join(capabilities.names_of(lacking))
        raise RunError(f"pullpipe has not the capability {names} itself here, so it cannot give it to the container")
    kept = rights.capabilities & held & ~withheld
    linux.forget_keys()
    for name, soft, hard in rights.limits:
        try:
            linux.set_limit(name, soft, hard)
        except KernelRefused as error:
            raise RunError(f"{error}; ask for no more than the hard limit that pullpipe has, or use sudo") from error
    if rights.filter and not rights.no_new_privileges:
        linux.load_filter(rights.filter)  # while we may
    linux.drop_bounding_capabilities(kept)
    try:
        os.setgroups(identity.groups)
    except PermissionError:
        if not namespace.in_user_namespace():  # one with a single group: whatever else we are a member of, we stay
            raise
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)  # the kernel takes the capabilities of a root that was
    linux.set_capabilities(kept if identity.uid == 0 else 0)
    if rights.no_new_privileges:
        linux.no_new_privileges()
        if rights.filter:
            linux.load_filter(rights.filter)


def exchange_streams() -> None:
    """Has standard streams that are the host's null device be the container's: who is root there might change the mode
    and owner of what is open, and the container's nodes are mounted read-only. Raises `RunError`."""
    for stream in (0, 1, 2):
        status = os.fstat(stream)
        if not stat.S_ISCHR(status.st_mode) or _NUMBERS.get(status.st_rdev) != "null":
            continue
        mode = fcntl.fcntl(stream, fcntl.F_GETFL)
        # Without waiting: where this is not the first process, there may be anything by now.
        own = os.open("/dev/null", mode & os.O_ACCMODE | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if os.fstat(own).st_rdev != status.st_rdev:
            raise RunError("the container's /dev/null is something else, so it cannot be a standard stream")
        fcntl.fcntl(own, fcntl.F_SETFL, mode)
        os.dup2(own, stream)
        os.close(own)


def own_streams(uid: int) -> None:
    """Gives the user the pipes that are the standard streams, so that they can open /dev/stdout, as with Docker."""
    for stream in (0, 1, 2):
        if stat.S_ISFIFO(os.fstat(stream).st_mode):
            os.fchown(stream, uid, -1)

"""The container's walls, built from inside: namespaces, the root, /proc, /dev, /sys, and what root may do there.

`enter` runs in the first process of a new PID namespace, which becomes the command. Until the root is ours everything
named is the host's, and afterwards everything is the image's; so all that is needed of the host is opened or imported
before, and the image's symlinks can lead nowhere but into the image.

The rules for /proc, /dev, /sys and the capabilities are Docker's defaults.
"""

from __future__ import annotations

import os
import socket
import stat
from typing import NamedTuple

from pullpipe import linux, stack
from pullpipe.errors import RunError
from pullpipe.stack import Stack

# capabilities(7), the numbers of <linux/capability.h>: what a container's root may do, as in Docker.
_CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "NET_BIND_SERVICE": 10,
    "NET_RAW": 13,
    "SYS_CHROOT": 18,
    "MKNOD": 27,
    "AUDIT_WRITE": 29,
    "SETFCAP": 31,
}
CAPABILITIES = sum(1 << number for number in _CAPABILITIES.values())

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
# What of /proc and /sys tells of the host, or changes it.
_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_GUARDED = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC


class Plan(NamedTuple):
    """What the container is made of."""

    stack: Stack
    rootfs: str  # the mount point, an empty directory of the host
    hostname: str
    files: tuple[tuple[str, str], ...]  # (path on the host, path in the container): hosts, resolv.conf, hostname


def enter(plan: Plan) -> int:
    """Makes this process's world the container, and returns the capabilities that its root may have in it.

    Raises `KernelRefused`, `RunError` or `OSError`.
    """
    os.umask(0)
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC)
    in_chroot = not linux.keep_mounts_here()
    socket.sethostname(plan.hostname)
    # Devices that an image brings along do not work; the usual ones are made below, on a mount of their own.
    stack.mount(plan.stack, plan.rootfs, flags=linux.MS_NODEV)
    files = [(os.open(source, os.O_PATH | os.O_CLOEXEC), target) for source, target in plan.files]
    devices = [(os.open(f"/dev/{name}", os.O_PATH | os.O_CLOEXEC), f"/dev/{name}") for name in _DEVICES]
    os.chdir(plan.rootfs)
    linux.import_nothing_more()
    if in_chroot:
        os.chroot(".")
    else:
        linux.pivot_root(".", ".")  # the old root now lies over the new one, where "." still finds it
    _mount_proc()
    _mount_dev()
    _mount_sys()
    for source, target in (*devices, *files):
        _bind_file(source, target)
        os.close(source)
    if not in_chroot:
        linux.umount(".", linux.MNT_DETACH)
    os.chdir("/")
    _mask()
    os.umask(0o022)
    # The kernel pivots no chroot, and a root that may chroot can leave one.
    return CAPABILITIES & ~(1 << _CAPABILITIES["SYS_CHROOT"]) if in_chroot else CAPABILITIES


def _mount_point(path: str) -> str:
    """A directory of the image's root to mount on. An image that has a symlink there wants the mount elsewhere."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise RunError(f"the image's {path} is not a directory, so nothing can be mounted there") from None
    return path


def _mount_proc() -> None:
    linux.mount("proc", _mount_point("/proc"), "proc", _GUARDED)


def _mount_dev() -> None:
    """Nodes that root makes here do not open, the host's disks among them: those that do are the host's own, bound."""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC | linux.MS_STRICTATIME
    linux.mount("tmpfs", _mount_point("/dev"), "tmpfs", flags, "mode=755,size=65536k")
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, f"/dev/{name}")
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(f"/dev/{name}", 0o755)
    terminals = linux.MS_NOSUID | linux.MS_NOEXEC
    linux.mount("devpts", "/dev/pts", "devpts", terminals, "newinstance,ptmxmode=0666,mode=0620,gid=5")
    linux.mount("shm", "/dev/shm", "tmpfs", _GUARDED, "mode=1777,size=65536k")
    linux.mount("mqueue", "/dev/mqueue", "mqueue", _GUARDED)


def _mount_sys() -> None:
    linux.mount("sysfs", _mount_point("/sys"), "sysfs", _GUARDED | linux.MS_RDONLY)


def _bind_file(source: int, target: str) -> None:
    """Shows an open file of the host at a path of the container, which the kernel resolves inside the container."""
    target = os.path.realpath(target)  # systemd distributions have a symlink to what only systemd makes
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if not os.path.exists(target):
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    linux.mount(f"/proc/self/fd/{source}", target, "", linux.MS_BIND)


def _mask() -> None:
    for path in _MASKED:
        if os.path.isdir(path):
            linux.mount("tmpfs", path, "tmpfs", _GUARDED | linux.MS_RDONLY, "size=0")
        elif os.path.exists(path):
            linux.mount("/dev/null", path, "", linux.MS_BIND)
    for path in _READ_ONLY:
        if os.path.exists(path):
            linux.mount(path, path, "", linux.MS_BIND | linux.MS_REC)
            linux.mount("", path, "", linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | _GUARDED)


def give_up_rights(uid: int, gid: int, groups: tuple[int, ...], capabilities: int) -> None:
    """Becomes the user, with no more than these capabilities, which root keeps. Raises `KernelRefused`."""
    linux.drop_bounding_capabilities(capabilities)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)  # the kernel takes the capabilities of whoever stops being root
    linux.set_capabilities(capabilities if uid == 0 else 0)


def own_streams(uid: int) -> None:
    """Gives the user the pipes that are the standard streams, so that they can open /dev/stdout, as with Docker."""
    for stream in (0, 1, 2):
        if stat.S_ISFIFO(os.fstat(stream).st_mode):
            os.fchown(stream, uid, -1)

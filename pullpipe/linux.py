"""The system calls that Python lacks, by ctypes.

Each raises `KernelRefused` with what it was asked and the kernel's reason, and the `OSError` as its cause.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NoReturn

from pullpipe.errors import KernelRefused

if TYPE_CHECKING:
    from threading import Thread

_libc = ctypes.CDLL(None, use_errno=True)

# glibc has no wrapper for these; their numbers differ from machine to machine: <asm/unistd.h>.
_PIVOT_ROOT = {"x86_64": 155, "i686": 217, "armv7l": 218, "ppc64le": 203, "s390x": 217}.get(os.uname().machine, 41)

_KEYCTL = {"x86_64": 250, "i686": 288, "armv7l": 311, "ppc64le": 271, "s390x": 280}.get(os.uname().machine, 219)
_KEYCTL_JOIN_SESSION_KEYRING = 1

# <linux/mount.h>
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

# The new mount calls, whose numbers are the same on all machines but alpha; and <linux/mount.h>, <linux/fcntl.h>
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
ATTR_RDONLY = 0x1
ATTR_NOSUID = 0x2
ATTR_NODEV = 0x4
ATTR_NOEXEC = 0x8
ATTR_STRICTATIME = 0x20
_OPEN_TREE_CLONE = 1
_CLOEXEC = 1  # of fsopen(2) and fsmount(2)
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
_MOVE_BOTH_OPEN = 0x04 | 0x40  # MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000

_CLOSE_RANGE, _PIDFD_GETFD = 436, 438  # the same on all machines but alpha

# <linux/if_tun.h>; _IOW of struct sock_fprog
_TUNATTACHFILTER = (0x80 if os.uname().machine.startswith("ppc") else 0x40) << 24 | struct.calcsize("HP") << 16 | 0x54D5

# <linux/sched.h>
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_IN_MODIFY, _IN_CLOEXEC, _IN_NONBLOCK = 0x2, os.O_CLOEXEC, os.O_NONBLOCK  # <sys/inotify.h>

# <asm-generic/resource.h>, in the order of their numbers
LIMITS = (
    *("cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile"),
    *("memlock", "as", "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime"),
)

# <linux/prctl.h>, <linux/seccomp.h>, <linux/capability.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522


def import_nothing_more() -> None:
    """For a process whose root is an image's tree: a later import would run the image's code (CVE-2019-14271)."""
    sys.meta_path.clear()
    sys.path_hooks.clear()


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2); `kind` is the file system's type."""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode() or None, flags, os.fsencode(options) or None)
    if _libc.mount(*arguments) != 0:
        _refused(f"mount {kind or source} on {target}")


def remount(target: str, flags: int) -> None:
    """Adds flags to those of a bind mount. In a user namespace none may be taken away."""
    kept = os.statvfs(target).f_flag & (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)  # statvfs(3) has the same numbers
    mount("", target, "", MS_BIND | MS_REMOUNT | kept | flags)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(os.fsencode(target), flags) != 0:
        _refused(f"unmount {target}")


def clone_tree(source: str | int, *, recursive: bool = False) -> int:
    """A bind mount that is mounted nowhere yet (open_tree(2)) of a path, or of what a descriptor is open at: its
    descriptor. With what is mounted below it, when `recursive`; closed unattached, it is gone.
    """
    if isinstance(source, int):
        where, path, flags = source, b"", _AT_EMPTY_PATH
    else:
        where, path, flags = _AT_FDCWD, os.fsencode(source), 0
    flags |= _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _descriptor(f"bind {source}", _OPEN_TREE, where, path, flags)


def make_mount(kind: str, options: Mapping[str, str], attributes: int) -> int:
    """A new mount of a file system that is mounted nowhere yet: its descriptor. `attributes` are `ATTR_…` flags."""
    context = _descriptor(f"mount {kind}", _FSOPEN, kind.encode(), _CLOEXEC)
    try:
        for name, value in {"source": kind, **options}.items():
            what = f"mount {kind} with {name}={value}"
            _descriptor(what, _FSCONFIG, context, _FSCONFIG_SET_STRING, name.encode(), os.fsencode(value), 0)
        _descriptor(f"mount {kind}", _FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _descriptor(f"mount {kind}", _FSMOUNT, context, _CLOEXEC, attributes)
    finally:
        os.close(context)


def attach(tree: int, place: int, name: str) -> None:
    """Mounts what `clone_tree` or `make_mount` gave at an open directory or file, called `name` if that is refused."""
    _descriptor(f"mount something on {name}", _MOVE_MOUNT, tree, b"", place, b"", _MOVE_BOTH_OPEN)


def set_attributes(tree: int, attributes: int, *, recursive: bool = False) -> None:
    """Adds `ATTR_…` flags to those of an open mount, and of all below it when `recursive` (mount_setattr(2))."""
    added = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _descriptor("guard a mount", _MOUNT_SETATTR, tree, b"", flags, added, ctypes.sizeof(added))


def keep_mounts_here() -> bool:
    """In a new mount namespace: nothing that is mounted from here on reaches the old one. False in a chroot.

    There the root is no mount point, so its propagation cannot be changed; it is private unless systemd has changed it.
    """
    try:
        mount("", "/", "", MS_REC | MS_PRIVATE)
    except KernelRefused as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EINVAL:
            return False
        raise
    return True


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    if _libc.syscall(_PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old)) != 0:
        _refused(f"make {new_root} the root")


def unshare(flags: int) -> None:
    """unshare(2), by `CLONE_NEW…` flags."""
    if _libc.unshare(flags) != 0:
        _refused("make new namespaces")


def join(process: int, flags: int) -> None:
    """setns(2): the namespaces of a process, by its pidfd and `CLONE_NEW…` flags."""
    if _libc.setns(process, flags) != 0:
        _refused("join the container's namespaces")


def fork() -> int:
    """os.fork(2)."""
    try:
        return os.fork()
    except OSError as error:
        raise _too_many(error) from error


def start_thread(work: Callable[[], None]) -> Thread:
    """A thread that does this, and keeps nobody from ending. Raises `KernelRefused`."""
    from threading import Thread  # which takes a while, and most commands need none

    thread = Thread(target=work, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise _too_many(error) from error
    return thread


def _too_many(error: OSError | RuntimeError) -> KernelRefused:
    why = f"the kernel refused to make another process: {getattr(error, 'strerror', error)}"
    return KernelRefused(f"{why}; allow more (--pids-limit, `ulimit -u`), or end some")


def fork_first() -> int:
    """os.fork(2), but the child is PID 1 of a new PID namespace: nothing in it can name, signal or trace a process
    outside, and all of it ends with that one, which in turn is killed when its parent ends. Raises `KernelRefused`.
    """
    return fork_into(lambda: unshare(CLONE_NEWPID))


def fork_into(enter: Callable[[], None], *, tied: bool = True) -> int:
    """os.fork(2), but the child is where `enter` goes; killed when its parent ends, if it is `tied` to it.

    A process in between calls `enter`: there may be no way back from there, and a PID namespace is for children only.
    That one ends, and hands its child on to us. Raises `KernelRefused`.
    """
    us = os.pidfd_open(os.getpid())
    numbers, number = os.pipe()
    starts, start = os.pipe()
    adopt_orphans()
    between = fork()
    if between == 0:
        try:
            enter()
            child = fork()
        except BaseException as error:
            os.write(number, b"!" + str(error).encode())
            os._exit(1)
        if child:
            os.write(number, str(child).encode())
            os._exit(0)
        os.close(start)
        started = os.read(starts, 1)  # when it is adopted; nothing, if we ended
        if tied:
            end_with_parent(signal.SIGKILL)
        if not started or (tied and select.select([us], [], [], 0)[0]):
            os._exit(1)  # we ended before it was tied to us
        for fd in (us, numbers, number, starts):
            os.close(fd)
        return 0
    os.waitpid(between, 0)
    os.write(start, b"s")
    for fd in (us, number, starts, start):
        os.close(fd)
    _prctl("adopt no more", _PR_SET_CHILD_SUBREAPER, 0)
    with open(numbers, "rb") as file:
        answer = file.read().decode()
    if answer.startswith("!") or not answer:
        raise KernelRefused(answer[1:] or "the kernel refused to make a process in another PID namespace")
    return int(answer)


def fork_tied() -> int:
    """os.fork(2), but the child is killed when its parent ends."""
    us = os.pidfd_open(os.getpid())
    child = fork()
    if child == 0:
        end_with_parent(signal.SIGKILL)
        if select.select([us], [], [], 0)[0]:
            os._exit(1)  # we ended before it was tied to us
    os.close(us)
    return child


def adopt_orphans() -> None:
    """From here on, what this process's descendants leave behind become its children (PR_SET_CHILD_SUBREAPER)."""
    _prctl("adopt processes", _PR_SET_CHILD_SUBREAPER, 1)


def end_children() -> None:
    """Kills all children, and theirs as far as they are adopted, and reaps them."""
    with contextlib.suppress(ChildProcessError):
        while True:
            with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
                for child in file.read().split():
                    os.kill(int(child), signal.SIGKILL)
            os.waitpid(-1, 0)


def end_with_parent(number: int) -> None:
    """Has the kernel send this process the signal when its parent ends (PR_SET_PDEATHSIG)."""
    _prctl("tie this process to its parent", _PR_SET_PDEATHSIG, number)


def no_new_privileges() -> None:
    """From here on no execve gains rights by setuid bits or file capabilities (PR_SET_NO_NEW_PRIVS)."""
    _prctl("give up new privileges", _PR_SET_NO_NEW_PRIVS, 1)


def forget_keys() -> None:
    """Has this process and its children a new, empty session keyring. Does nothing where the kernel keeps no keys."""
    _libc.syscall(_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None)


def hide_from_others() -> None:
    """Nobody without CAP_SYS_PTRACE can trace this process, or open what its /proc/PID leads to: its program among
    them, which is the host's (CVE-2019-5736). Until its next execve."""
    _prctl("hide this process", _PR_SET_DUMPABLE, 0)


def load_filter(program: bytes) -> None:
    """From here on, the BPF program decides which system calls this process and its children may make (seccomp(2)).
    It takes CAP_SYS_ADMIN, or `no_new_privileges`."""

    code = ctypes.create_string_buffer(program, len(program))
    filters = struct.pack("HP", len(program) // 8, ctypes.addressof(code))  # struct sock_fprog
    if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filters, 0, 0) != 0:
        _refused("load a seccomp filter")


def filter_tap(descriptor: int, program: bytes) -> None:
    """From here on, the BPF program decides how much of each frame that is sent through an open tap device the process
    that holds it can read; 0 is nothing (TUNATTACHFILTER)."""
    code = ctypes.create_string_buffer(program, len(program))
    filters = ctypes.create_string_buffer(struct.pack("HP", len(program) // 8, ctypes.addressof(code)))
    if _libc.ioctl(descriptor, ctypes.c_ulong(_TUNATTACHFILTER), filters) != 0:
        _refused("filter what a container sends")


def descriptor_of(pid: int, number: int) -> int:
    """One of our own for what another process, whom we may trace, has open as that (pidfd_getfd(2))."""
    process = os.pidfd_open(pid)
    try:
        return _descriptor(f"share a descriptor of process {pid}", _PIDFD_GETFD, process, number, 0)
    finally:
        os.close(process)


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """Closes descriptors: unlike os.closerange(3), all that there are, also those beyond what we may open ourselves."""
    if first <= last:
        _descriptor("close descriptors", _CLOSE_RANGE, first, last, 0)


def set_limit(name: str, soft: int, hard: int) -> None:
    """One of `LIMITS` for this process and its children (setrlimit(2)); -1 is no limit."""
    values = (ctypes.c_ulong * 2)(soft, hard)
    if _libc.setrlimit(LIMITS.index(name), values) != 0:
        _refused(f"limit {name} to {soft}:{hard}")


def capabilities() -> int:
    """This process's effective capabilities, as a bit mask."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    if _libc.capget(header, data) != 0:
        _refused("tell the capabilities")
    return int(data[0] | data[3] << 32)


def drop_bounding_capabilities(keep: int) -> None:
    """Takes every capability that is not in the bit mask `keep` out of the bounding set."""
    for capability in range(64):
        if not keep >> capability & 1 and _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            if ctypes.get_errno() == errno.EINVAL:
                return  # the first number that this kernel does not know
            _refused("drop capabilities")


def set_capabilities(mask: int) -> None:
    """Makes the bit mask this process's effective and permitted capabilities, and empties the inheritable ones."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    if _libc.capset(header, data) != 0:
        _refused("set capabilities")


def watch(path: str) -> int:
    """A descriptor that is readable when something has been written to the file since it was read last (inotify(7))."""
    fd = _libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
    if fd < 0 or _libc.inotify_add_watch(fd, os.fsencode(path), _IN_MODIFY) < 0:
        _refused(f"watch {path}")
    return int(fd)


def hide_argument(argument: str, *, shown: int) -> None:
    """Writes asterisks over all but the first characters of this word of our command line, or of what stands behind an
    option's `=`: from here on, `ps` does not show it. Does nothing where the memory is not as proc(5) says."""
    word, kept = os.fsencode(argument), len(os.fsencode(argument[:shown]))
    at, line = _command_line()
    for one in line.split(b"\0")[:-1]:
        option = one.startswith(b"--") and one.endswith(b"=" + word)
        if (one == word or option) and ctypes.string_at(at, len(one) + 1) == one + b"\0":
            hidden = len(word) - kept
            ctypes.memmove(at + len(one) - hidden, b"*" * hidden, hidden)
        at += len(one) + 1


def call_this_process(name: str) -> None:
    """Has `ps` show this instead of our command line, as far as the memory is as proc(5) says."""
    at, line = _command_line()
    ctypes.memmove(at, name.encode().ljust(len(line), b"\0"), len(line))
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def _command_line() -> tuple[int, bytes]:
    """Where the kernel reads it, and what it is; of no length where the memory is not as proc(5) says."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # those from the third one on
        start, end = int(fields[48 - 3]), int(fields[49 - 3])  # arg_start, arg_end
        with open("/proc/self/cmdline", "rb") as file:
            line = file.read()
    except (OSError, ValueError, IndexError):
        return 0, b""
    known = start != 0 and len(line) == end - start and line.endswith(b"\0")
    return (start, line) if known else (0, b"")


def _descriptor(what: str, number: int, *arguments: object) -> int:
    """What the system call returns."""
    converted = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = int(_libc.syscall(number, *converted))
    if result < 0:
        _refused(what)
    return result


def _prctl(what: str, option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        _refused(what)


def _refused(what: str) -> NoReturn:
    error = ctypes.get_errno()
    cause = OSError(error, os.strerror(error))
    raise KernelRefused(f"the kernel refused to {what}: {os.strerror(error)}") from cause

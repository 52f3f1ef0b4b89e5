"""Root without root: a user namespace that this process enters, for what takes root's rights over the store's files.

There the user is root, and the ids that /etc/subuid and /etc/subgid give the user are everybody else. What writes that
map are the programs newuidmap and newgidmap, which may, and look the user up in these files themselves. Who has no ids
there is root and nobody else.
"""

from __future__ import annotations

import errno
import os
import pwd
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from pullpipe import linux
from pullpipe.errors import KernelRefused, NeedsRoot
from store import namespace

_SUBUID, _SUBGID = "/etc/subuid", "/etc/subgid"
_SYSCTLS = "/proc/sys"
_NOT_THERE = 127  # a mapper's exit code, as a shell has it


def enter() -> None:
    """Makes this process, which must have no threads yet, root of a new user namespace. It stays the same process.

    Raises `NeedsRoot`, with what keeps it from that.
    """
    if (threads := len(os.listdir("/proc/self/task"))) > 1:  # the kernel would say EINVAL
        why = f"a process with {threads} threads cannot enter one"
        raise NeedsRoot(
            f"without root this takes a user namespace, and {why}; do it before there are others, or use sudo"
        )
    uid, gid = os.geteuid(), os.getegid()
    uids, gids = _ranges(_SUBUID, uid), _ranges(_SUBGID, uid)
    if uids and gids:
        mappers = _Mappers([("newuidmap", uid, uids), ("newgidmap", gid, gids)])
        _unshare()
        mappers.work()
    else:
        _unshare()
        _write("setgroups", "deny")
        _write("uid_map", f"0 {uid} 1")
        _write("gid_map", f"0 {gid} 1")
    namespace.entered(uid)


class _Mappers:
    """The programs that write the maps: processes that stay outside, and begin when this one is in the namespace."""

    def __init__(self, programs: Sequence[tuple[str, int, Sequence[tuple[int, int]]]]) -> None:
        pid = os.getpid()
        starts, self._start = os.pipe()
        self._said, says = os.pipe()
        self._children = []
        for program, own, ranges in programs:
            child = os.fork()
            if child == 0:
                os.close(self._start)
                _become_mapper([program, str(pid), *map(str, _map(own, ranges))], starts, says)
            self._children.append((program, child))
        os.close(starts)
        os.close(says)

    def work(self) -> None:
        """Has them write. Raises `NeedsRoot`."""
        os.write(self._start, b"s" * len(self._children))
        with open(self._said, encoding="utf-8", errors="replace") as file:
            said = " ".join(file.read().split())
        os.close(self._start)
        codes = [(program, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for program, child in self._children]
        for program, code in codes:
            if code == _NOT_THERE:
                what = f"{program}, which maps the ids of {_SUBUID} and {_SUBGID}, is not installed"
                raise NeedsRoot(f"{what}; install the package uidmap, or use sudo")
            if code:
                what = f"{program} cannot map the ids of {_SUBUID} and {_SUBGID}" + (f" ({said})" if said else "")
                if "\nNoNewPrivs:\t1" in _read("/proc/self/status"):
                    raise NeedsRoot(f"{what}; leave away the no_new_privs that this was started with, or use sudo")
                raise NeedsRoot(f"{what}; check both files, and that {program} is setuid root, or use sudo")


def _become_mapper(command: list[str], starts: int, says: int) -> NoReturn:
    code = 1
    try:
        if os.read(starts, 1):
            os.dup2(says, 1)
            os.dup2(says, 2)
            os.execvp(command[0], command)
    except FileNotFoundError:
        code = _NOT_THERE
    except OSError as error:
        os.write(says, f"{command[0]}: {error.strerror}".encode())
    finally:
        os._exit(code)


def _map(own: int, ranges: Sequence[tuple[int, int]]) -> list[int]:
    """Numbers by threes: the first id inside, the first outside, how many."""
    numbers, inside = [0, own, 1], 1
    for start, count in ranges:
        numbers += [inside, start, count]
        inside += count
    return numbers


def _ranges(path: str, uid: int) -> list[tuple[int, int]]:
    """(first, how many) of the ids that the file gives the user, by name or number (subuid(5))."""
    names = {str(uid)}
    with suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip().split(":") for line in file]
    except OSError:
        return []
    return [
        (int(fields[1]), int(fields[2]))
        for fields in lines
        if len(fields) == 3 and fields[0] in names and all(map(_is_number, fields[1:]))
    ]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _unshare() -> None:
    try:
        linux.unshare(linux.CLONE_NEWUSER)
    except KernelRefused as error:
        cause = error.__cause__
        code = cause.errno if isinstance(cause, OSError) else None
        raise _refused(code) from error
    # Ubuntu lets everybody make one, and takes all rights away in it.
    if _read("/proc/self/attr/current").startswith("unprivileged_userns"):
        raise _refused(errno.EACCES)


def _write(name: str, text: str) -> None:
    try:
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise _refused(error.errno) from error


def _read(path: str) -> str:
    """The file's text, or nothing."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n")
    except OSError:
        return ""


def _refused(code: int | None) -> NeedsRoot:
    """Why there is no user namespace, and what to do; `code` is the kernel's."""
    if code == errno.ENOSPC:
        most = _read(f"{_SYSCTLS}/user/max_user_namespaces")
        why = f"no more than {most} user namespaces are allowed"
        remedy = "as root, `sysctl user.max_user_namespaces=15000`"
    elif _read(f"{_SYSCTLS}/kernel/unprivileged_userns_clone") == "0":
        why = "the kernel gives user namespaces to root only"
        remedy = "as root, `sysctl kernel.unprivileged_userns_clone=1`"
    elif _read(f"{_SYSCTLS}/kernel/apparmor_restrict_unprivileged_userns") == "1":
        why = "AppArmor allows user namespaces only to programs that it knows"
        remedy = "as root, `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or give pullpipe a profile"
    elif code == errno.EINVAL:
        why, remedy = "the kernel has none", "use one with CONFIG_USER_NS"
    else:
        why = f"the kernel refuses it here ({os.strerror(code or errno.EPERM)}), as in a chroot, or in a container"
        remedy = "leave that"
    return NeedsRoot(f"without root this takes a user namespace, and {why}; {remedy}, or use sudo")

"""Control groups of a container's own, that keep its limits: on cgroup v2, on v1, or on both where a machine has some
controllers here and some there.

They lie below the groups that we are in, so what limits us limits the container, too. Under v2 a group with processes
of its own hands no controllers on: there the group lies below the nearest one above us that does, or else the nearest
that can. Those that do come first, for systemd takes back what it has not handed on itself.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from pullpipe.errors import RunError
from pullpipe.runner.limits import Limits, Setting, settings
from pullpipe.runner.walls import Bind
from store import namespace

_SHOWN = "/sys/fs/cgroup"  # where programs in a container look what they may take
_REMOVAL = 2.0  # seconds; the kernel may take a moment to let go of a group whose processes have ended


class Hierarchy(NamedTuple):
    """A tree of groups, as it is mounted here."""

    controllers: tuple[str, ...]  # none for v2, where each group names its own
    top: str  # directory of the topmost group that we see
    here: str  # directory of our own group


class Group(NamedTuple):
    """A group that is to be made in one hierarchy."""

    hierarchy: Hierarchy
    parent: str  # a directory
    settings: tuple[Setting, ...]


def plan(limits: Limits) -> list[Group]:
    """The groups that the limits take here. None is made yet, but v2 may be told to hand controllers on.

    Raises `RunError` for what this machine cannot limit.
    """
    return planned(limits, _of_this_machine())


def places(name: str) -> list[str]:
    """Where a runtime makes groups of this name: below ours, beside it, or at the top."""
    found = {place for one in _of_this_machine() for place in (one.here, os.path.dirname(one.here), one.top)}
    return [os.path.join(place, name) for place in sorted(found)]


def _of_this_machine() -> list[Hierarchy]:
    return hierarchies(_read("/proc/self", "mountinfo"), _read("/proc/self", "cgroup"))


def hierarchies(mounts: str, groups: str) -> list[Hierarchy]:
    """Those that are mounted here, by /proc/self/mountinfo and /proc/self/cgroup (proc(5), cgroups(7))."""
    ours = {}
    for line in groups.splitlines():
        _, names, path = line.split(":", 2)
        ours[tuple(filter(None, names.split(",")))] = path
    found: dict[tuple[str, ...], Hierarchy] = {}
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        root, top = (_unescaped(field) for field in before.split()[3:5])
        kind, _, options = after.split()[:3]
        for controllers, path in ours.items():
            if kind == ("cgroup" if controllers else "cgroup2") and set(controllers) <= set(options.split(",")):
                inside = os.path.relpath(path, root)  # in a container, what is mounted may be its own part alone
                here = top if inside.startswith("..") else os.path.normpath(os.path.join(top, inside))
                found.setdefault(controllers, Hierarchy(controllers, top, here))
    return list(found.values())


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def planned(limits: Limits, machine: Sequence[Hierarchy]) -> list[Group]:
    """`plan`, on a machine with these hierarchies."""
    unified = next((one for one in machine if not one.controllers), None)
    wanted: dict[Hierarchy, list[Setting]] = {}
    for setting in settings(limits):
        old = next((one for one in machine if setting.controller in one.controllers), None)
        if old is None and unified and setting.controller in _words(unified.top, "cgroup.controllers"):
            old = unified
        if old is not None:
            wanted.setdefault(old, []).append(setting)
        elif not setting.optional:
            raise RunError(
                f"{setting.option} cannot be kept: the cgroup controller {setting.controller!r} is not mounted here; "
                "mount /sys/fs/cgroup, or boot a kernel that has it and is not told to disable it, or leave it away"
            )
    return [
        Group(hierarchy, hierarchy.here if hierarchy.controllers else _parent(hierarchy, found), tuple(found))
        for hierarchy, found in wanted.items()
    ]


def _parent(unified: Hierarchy, wanted: Iterable[Setting]) -> str:
    """The nearest group, from ours upward, that hands these controllers on, or else the nearest that can."""
    needed = {setting.controller for setting in wanted}
    above = [unified.here]
    while above[-1] != unified.top:
        above.append(os.path.dirname(above[-1]))
    ours = [group for group in above if _may_have_children(group)]
    for group in ours:
        if needed <= _words(group, "cgroup.subtree_control"):
            return group
    for group in ours:
        if needed <= _words(group, "cgroup.controllers"):
            with suppress(OSError):
                _write(group, "cgroup.subtree_control", " ".join(f"+{controller}" for controller in sorted(needed)))
                return group
    options = ", ".join(dict.fromkeys(setting.option for setting in wanted if not setting.optional))
    remedy = _OUTER if namespace.is_machines_root() else _MORE if ours else _DELEGATE
    raise RunError(
        f"{options} cannot be kept: no cgroup from {unified.here} upward that is ours can hand {', '.join(needed)} on; "
        + remedy
    )


def _may_have_children(group: str) -> bool:
    """Whether we may make groups there and move processes into them. Only the machine's topmost group, which has no
    type, can have processes of its own besides."""
    allowed = os.access(group, os.W_OK) and os.access(f"{group}/cgroup.procs", os.W_OK)
    return allowed and (not os.path.exists(f"{group}/cgroup.type") or not _words(group, "cgroup.procs"))


_OUTER = "where pullpipe runs in a container itself, give that one cgroups of its own, to be written to"
_DELEGATE = "use sudo, or `systemd-run --user --scope --property Delegate=yes pullpipe run …`"
_MORE = "use sudo, or have systemd hand that to users, with Delegate= of user@.service (docs/limits.md)"


def directory(group: Group, name: str) -> str:
    """Where the group is when it is made for the container with this id."""
    return os.path.join(group.parent, f"pullpipe-{name}")


def path(group: Group, name: str) -> str:
    """The same from the hierarchy's top, as a runtime wants it."""
    return "/" + os.path.relpath(directory(group, name), group.hierarchy.top)


def make(groups: Iterable[Group], name: str) -> None:
    """Makes them, with their limits. Raises `RunError`; what has been made by then is for `remove`."""
    for group in groups:
        made = directory(group, name)
        try:
            os.mkdir(made, 0o755)
        except OSError as error:
            remedy = _OUTER if namespace.is_machines_root() else "use sudo"
            reason = (error.strerror or "").lower()
            raise RunError(
                f"a limit takes a cgroup, and none can be made in {group.parent}: {reason}; {remedy}"
            ) from error
        for setting in group.settings:
            if setting.controller == "cpuset":
                _prepare_cpuset(group, made, setting)
            for file, value in setting.v1 if group.hierarchy.controllers else setting.v2:
                _set(made, file, value, setting)


def _set(made: str, file: str, value: str, setting: Setting) -> None:
    try:
        _write(made, file, value)
    except FileNotFoundError as error:
        if not setting.optional:
            remedy = "boot with swapaccount=1" if "sw" in file else "leave it away"
            raise RunError(
                f"{setting.option} cannot be kept: this kernel's cgroups have no {file}; {remedy}"
            ) from error
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise RunError(
            f"{setting.option} cannot be kept: the kernel refuses {value} as {file}: {reason}; choose another"
        ) from error


def _prepare_cpuset(group: Group, made: str, setting: Setting) -> None:
    """What the kernel would take without a word, it has to be asked for; and v1 wants to know nodes of memory."""
    old = bool(group.hierarchy.controllers)
    has = _read(group.parent, "cpuset.effective_cpus" if old else "cpuset.cpus.effective").strip()
    [(_, wanted)] = setting.v2
    if not _numbers(wanted) <= _numbers(has):
        raise RunError(f"--cpuset-cpus is {wanted}, and the processors that we may use are {has}; choose of those")
    if old:
        _set(made, "cpuset.mems", _read(group.parent, "cpuset.effective_mems").strip(), setting)


def _numbers(text: str) -> set[int]:
    """Of a list like 0-2,4; anything that is none gives a number that no processor has."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part)
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1) if match else (-1,))
    return found


def shown(groups: Iterable[Group], name: str, skeleton: str) -> list[Bind]:
    """Mounts that show a container its own groups, and no others, where programs look for them.

    For v1, where each hierarchy has its place, `skeleton` is made: a directory with those places.
    """
    found = []
    for group in groups:
        target = _SHOWN
        if group.hierarchy.controllers:
            place = os.path.basename(group.hierarchy.top)
            os.makedirs(os.path.join(skeleton, place), mode=0o755)
            for controller in set(group.hierarchy.controllers) - {place}:
                os.symlink(place, os.path.join(skeleton, controller))
            target = f"{_SHOWN}/{place}"
        found.append(Bind(directory(group, name), target, read_only=True))
    old = any(group.hierarchy.controllers for group in groups)
    return [*([Bind(skeleton, _SHOWN, read_only=True)] if old else []), *found]


def join(directories: Iterable[str], pid: int) -> None:
    """Puts a process into the groups, or this one if it is 0. Raises `OSError`."""
    for group in directories:
        _write(group, "cgroup.procs", str(pid))


def out_of_memory(directories: Iterable[str]) -> bool:
    """Whether the kernel has killed a process in them because there was no memory left for it."""
    for group in directories:
        for file in ("memory.oom_control", "memory.events"):
            with suppress(OSError):
                if re.search(r"^oom_kill [1-9]", _read(group, file), re.MULTILINE):
                    return True
    return False


def remove(directories: Iterable[str]) -> bool:
    """Kills what is left in the groups, and removes them; says whether all are gone. It may be repeated."""
    deadline = time.monotonic() + _REMOVAL
    gone = [_remove(group, deadline) for group in directories]
    return all(gone)


def _remove(group: str, deadline: float) -> bool:
    while True:
        try:
            os.rmdir(group)
            return True
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                return False
            for pid in _words(group, "cgroup.procs") - {"0"}:  # which are those that we cannot see
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.005)


def _words(group: str, file: str) -> set[str]:
    return set(_read(group, file).split())


def _read(group: str, file: str) -> str:
    with open(os.path.join(group, file), encoding="utf-8", errors="surrogateescape") as opened:
        return opened.read()


def _write(group: str, file: str, value: str) -> None:
    fd = os.open(os.path.join(group, file), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)

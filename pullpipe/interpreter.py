"""The interpreter that runs us, out of the reach of containers.

A process that becomes a container's command executes the interpreter until it does, and an image can have the kernel
take up just that file: by a command, a first line of a script, or a program's loader that is `/proc/self/exe`
(CVE-2019-5736). Nobody may write to a file that is being executed; but who is root there may change the mode, the owner
and the attributes of it, which is the machine's. So what runs containers executes itself once more: from a copy in
memory, or from a read-only mount of the file that no container can see.
"""

from __future__ import annotations

import fcntl
import os
import sys

_NAME = "pullpipe"
_SMALL = 1 << 20  # bytes, of an interpreter that is quicker copied than mounted: one whose code is in libpython
_MFD_EXEC = 0x10  # <linux/memfd.h>; since Linux 6.3


def put_out_of_reach() -> None:
    """Executes the program from its beginning, with the same arguments; returns when that has been done.

    It returns, too, where the kernel refuses: then `check` does not let a container begin.
    """
    if _is_out_of_reach():
        with open("/proc/self/comm", "w", encoding="ascii") as file:  # which was the number of a descriptor
            file.write(_NAME)
        return
    ours = os.path.dirname(os.path.abspath(__file__))
    modules = os.pathsep.join([os.path.dirname(ours), *filter(None, sys.path)])
    # Without the site module: it would take as long as the interpreter itself, to find what is found.
    flags = ["-P", "-S", *(["-E"] if sys.flags.ignore_environment else [])]
    words = [sys.executable, *flags, os.path.join(ours, "__main__.py"), *sys.argv[1:]]
    small = os.stat("/proc/self/exe").st_size < _SMALL
    for program in (_copied, _mounted) if small else (_mounted, _copied):
        try:
            os.execve(program(), words, {**os.environ, "PULLPIPE_MODULES": modules})
        except OSError:
            continue


def check() -> None:
    """Raises `RunError` when a container that got at our `/proc/self/exe` could change something."""
    if not _is_out_of_reach():
        from pullpipe.errors import RunError

        raise RunError(
            "a container could change the machine's Python here, for the kernel executes neither a copy in memory nor "
            "a mount of it; allow the one by `sysctl vm.memfd_noexec=0`, or use sudo"
        )


def _is_out_of_reach() -> bool:
    read_only = os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY
    return bool(read_only) or os.readlink("/proc/self/exe").startswith(f"/memfd:{_NAME} ")


def _mounted() -> int:
    from pullpipe import linux
    from pullpipe.errors import KernelRefused

    try:
        tree = linux.clone_tree("/proc/self/exe")
        linux.set_attributes(tree, linux.ATTR_RDONLY)
    except KernelRefused as error:
        raise PermissionError("that takes root's rights") from error
    return tree


def _copied() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        copy = os.memfd_create(_NAME, flags | _MFD_EXEC)
    except OSError:
        copy = os.memfd_create(_NAME, flags)
    with open("/proc/self/exe", "rb", buffering=0) as program:
        while os.sendfile(copy, program.fileno(), None, 1 << 30):
            pass
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
    return copy

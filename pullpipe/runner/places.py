"""Places in the container to mount on: found without believing the image, or whoever else writes to what is mounted.

A path is walked name by name, each opened from the directory before it with `O_NOFOLLOW`; symlinks are read, and
followed here, inside of the container's root. What is mounted is mounted on the open place, not on a path that may lead
elsewhere by then (CVE-2021-30465), and no magic link of /proc is ever followed (CVE-2024-21626).
"""

from __future__ import annotations

import errno
import os
import stat

from pullpipe import linux
from pullpipe.errors import RunError

_SYMLINKS_LIMIT = 40  # the kernel's own
_ENTER = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def mount(tree: int, target: str, *, forbidden: int) -> None:
    """Mounts an open, unattached mount at a path in our root. What is missing of the path is made: directories, and at
    its end what the mount is, a directory or a file. Closes the mount.

    Nothing is mounted in the file system with the device number `forbidden`. Raises `RunError`, `KernelRefused`.
    """
    is_directory = stat.S_ISDIR(os.fstat(tree).st_mode)
    try:
        place = find(target, directory=is_directory)
    except OSError as error:
        raise RunError(f"nothing can be mounted at {target} in the container: {error.strerror}") from error
    try:
        status = os.fstat(place)
        if status.st_dev == forbidden:
            raise RunError(f"{target} leads into the container's /proc, and nothing may be mounted there")
        if stat.S_ISDIR(status.st_mode) != is_directory:
            kinds = ("a directory", "a file") if is_directory else ("a file", "a directory")
            raise RunError(f"{kinds[0]} cannot be mounted at {target}, which is {kinds[1]} in the container")
        linux.attach(tree, place, target)
    finally:
        os.close(place)
        os.close(tree)


def find(path: str, *, directory: bool, make: bool = True) -> int:
    """An `O_PATH` descriptor of where the path leads in our root; what is missing is made, its end a directory or a
    file, if it is to be. Raises `OSError`.
    """
    names = path.split("/")[::-1]  # those still to be walked, the next one last
    entered = [os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
    symlinks = 0
    try:
        while names:
            name = names.pop()
            if name == "..":
                if len(entered) > 1:
                    os.close(entered.pop())
            elif name not in ("", "."):
                found = _enter(name, entered[-1], directory=directory or any(names), make=make)
                if not stat.S_ISLNK(os.fstat(found).st_mode):
                    entered.append(found)
                    continue
                target = os.readlink("", dir_fd=found)
                os.close(found)
                symlinks += 1
                if symlinks > _SYMLINKS_LIMIT:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                if target.startswith("/"):
                    while len(entered) > 1:
                        os.close(entered.pop())
                names += target.split("/")[::-1]
        return entered.pop()
    finally:
        for descriptor in entered:
            os.close(descriptor)


def _enter(name: str, parent: int, *, directory: bool, make: bool) -> int:
    """What has the name there, a symlink itself if it is one; made if there is nothing."""
    try:
        return os.open(name, _ENTER, dir_fd=parent)
    except FileNotFoundError:
        if not make:
            raise
        if directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=parent))
        return os.open(name, _ENTER, dir_fd=parent)

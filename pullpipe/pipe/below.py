"""The stacked layers below, as a layer sees them that cannot be unpacked without its parents."""

from __future__ import annotations

import errno
import os
import stat
from typing import TypeAlias

from store.namespace import in_user_namespace

ENTER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
NOTHING = -1  # for a descriptor
TRUSTED_OPAQUE = "trusted.overlay.opaque"

Path: TypeAlias = tuple[bytes, ...]  # names from the root down; no `.`, no `..`, nothing empty


class OpenDirectory:
    """A directory of the tree, open; it closes itself when nobody uses it any more."""

    __slots__ = ("below", "fd", "gid", "path")

    def __init__(self, fd: int, path: Path, below: int = NOTHING) -> None:
        self.fd = fd
        self.path = path  # where it really is, symlinks followed
        self.below = below  # the same directory in the stack of the layers below, open, where that is known
        self.gid = os.fstat(fd).st_gid  # which new files get where the directory or the file system says so

    def hide_below(self) -> None:
        """What the layers below have here does not count any more."""
        if self.below != NOTHING:
            os.close(self.below)
            self.below = NOTHING

    def __del__(self) -> None:
        os.close(self.fd)
        self.hide_below()


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this is overlayfs's whiteout; an image's own 0:0 devices are never made, so it is one of ours."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def opaque_attribute() -> str:
    """The attribute by which overlayfs knows an opaque directory here."""
    return "user.overlay.opaque" if in_user_namespace() else TRUSTED_OPAQUE


def is_opaque(directory: str) -> bool:
    """Whether the directory of a layer's tree hides what the layers below have there."""
    try:
        return os.getxattr(directory, opaque_attribute(), follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP):
            raise
        return False


def exists_below(parent: OpenDirectory, name: bytes) -> bool:
    """Whether the stacked layers below have the name in this directory."""
    if parent.below == NOTHING:
        return False
    try:
        return not is_whiteout(os.lstat(name, dir_fd=parent.below))
    except FileNotFoundError:
        return False


def enter_below(parent: OpenDirectory, name: bytes) -> int:
    """The directory of this name there, open; `NOTHING` when there is none."""
    if parent.below == NOTHING:
        return NOTHING
    try:
        return os.open(name, ENTER, dir_fd=parent.below)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return NOTHING


def symlink_below(parent: OpenDirectory, name: bytes) -> bytes | None:
    """The target of the symlink of this name there, if it is one."""
    if parent.below == NOTHING:
        return None
    try:
        return os.readlink(name, dir_fd=parent.below)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):
            raise
        return None


def bring_up(directory: OpenDirectory, name: bytes, status: os.stat_result) -> None:
    """Copies what is no directory from the layers below, with all its attributes, as overlayfs's copy-up does."""
    if stat.S_ISREG(status.st_mode):
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.below)
        target = os.open(name, NEW_FILE, 0, dir_fd=directory.fd)
        try:
            while os.sendfile(target, source, None, 1 << 30):
                pass
            os.fchown(target, status.st_uid, status.st_gid)
            os.fchmod(target, stat.S_IMODE(status.st_mode))
            for attribute in os.listxattr(source):
                os.setxattr(target, attribute, os.getxattr(source, attribute))
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(source)
            os.close(target)
        return
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=directory.below), name, dir_fd=directory.fd)
    else:
        os.mknod(name, status.st_mode, status.st_rdev, dir_fd=directory.fd)
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=directory.fd)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=directory.fd, follow_symlinks=False)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=directory.fd, follow_symlinks=False)

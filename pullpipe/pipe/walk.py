"""Directories of a tree in the making: entered, made and removed, and every one of them inside the root.

How nothing can get out: a directory is entered one name at a time, from the directory before it, with `O_NOFOLLOW`, and
stays open; a symlink on the way is read and followed here, inside the root, where `/` is the tree's own root and `..`
stops there. No string is ever compared to decide what lies inside. (In a worker the process is in a chroot besides.)
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from typing import Literal, TypeAlias

from pullpipe.pipe.below import ENTER, NOTHING, OpenDirectory, Path, enter_below, symlink_below

DEPTH_LIMIT = 512  # directories in directories; removing a tree recurses, and the kernel's longest path has 2048
_SYMLINKS_LIMIT = 40  # on the way to one directory; the kernel's own limit
_NAMES_LIMIT = 4_000_000  # they are held in memory; 300,000 directories nine deep have fewer
_OPEN_LIMIT = 256  # directories held open; the usual limit of a process is 1024 files


Make: TypeAlias = Literal["all", "below", "none"]


class Walk:
    """The directories below the open directory `root`.

    `below` is the open root of the stacked layers below, for a layer that cannot be unpacked without them: a directory
    that is not here may be a symlink there.
    """

    def __init__(self, root: int, below: int) -> None:
        self._root = OpenDirectory(os.dup(root), (), below if below == NOTHING else os.dup(below))
        self._has_below = below != NOTHING
        self._open: dict[Path, OpenDirectory] = {}
        self._times: dict[Path, int] = {}  # to be set at the end: every new child changes them
        self._names = 0  # in the paths of all directories that are known
        self._cleared = False  # whether some of them may be gone
        self.implied: set[Path] = {()}  # directories, the root among them, that no entry has described
        self.presumed: set[Path] = set()  # those that were, until an entry described or replaced them

    # What whoever walks may want to know of.

    def _is_opaque(self, path: Path) -> bool:
        """Whether the directory hides what is below it."""
        return False

    def _implied(self, path: Path) -> None:
        """Told of a directory that has been made on the way to another."""

    def _replaced(self, directory: Path) -> None:
        """Told of a directory that has been made where this layer had put something else, or a whiteout."""

    def _removed(self, directory: Path) -> None:
        """Told of a directory that is gone with all that was in it."""

    def _directory(self, path: Path, make: Make = "all") -> OpenDirectory:
        """The directory, entered name by name. What is missing on the way is made: all of it, or what is a directory
        in the layers below, or nothing.

        Raises `FileNotFoundError` for what is not made.
        """
        found = self._open.get(path)
        if found is not None or not path:
            return found or self._root
        known = len(path) - 1
        while known and path[:known] not in self._open:
            known -= 1
        directory = self._open[path[:known]] if known else self._root
        symlinks = [_SYMLINKS_LIMIT]
        for depth in range(known, len(path)):
            directory = self._enter(directory, path[depth], symlinks, make)
            if len(self._open) >= _OPEN_LIMIT:
                self._open.clear()
            self._open[path[: depth + 1]] = directory
        return directory

    def _enter(self, parent: OpenDirectory, name: bytes, symlinks: list[int], make: Make) -> OpenDirectory:
        path = (*parent.path, name)
        if len(path) > DEPTH_LIMIT:  # by symlinks that lead ever deeper
            raise OSError(errno.ENAMETOOLONG, f"nested more than {DEPTH_LIMIT} directories deep")
        hides = True  # whether what is here hides what is below
        try:
            fd = os.open(name, ENTER, dir_fd=parent.fd)
        except FileNotFoundError:
            hides = False
        except NotADirectoryError:
            if stat.S_ISLNK(os.lstat(name, dir_fd=parent.fd).st_mode):
                return self._follow(parent, os.readlink(name, dir_fd=parent.fd), symlinks, make)
        else:
            if path not in self._times:  # a directory that was there before us keeps its time
                self._know(path, os.fstat(fd).st_mtime_ns)
            return OpenDirectory(fd, path, NOTHING if self._is_opaque(path) else enter_below(parent, name))
        below = NOTHING if hides else enter_below(parent, name)
        if below == NOTHING and not hides and (target := symlink_below(parent, name)) is not None:
            return self._follow(parent, target, symlinks, make)
        if make == "none" or (make == "below" and below == NOTHING):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._make_directory(parent, name, 0o755)
        # In a setgid directory it would be setgid, too, and of that group.
        os.chown(name, 0, 0, dir_fd=parent.fd, follow_symlinks=False)
        os.chmod(name, 0o755, dir_fd=parent.fd)
        self.implied.add(path)
        self._know(path, 0)
        self._implied(path)
        return OpenDirectory(os.open(name, ENTER, dir_fd=parent.fd), path, below)

    def _follow(self, parent: OpenDirectory, target: bytes, symlinks: list[int], make: Make) -> OpenDirectory:
        symlinks[0] -= 1
        if symlinks[0] < 0:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        directory = self._root if target.startswith(b"/") else parent
        for name in target.split(b"/"):
            if name == b"..":
                directory = self._directory(directory.path[:-1])
            elif name not in (b"", b"."):
                directory = self._enter(directory, name, symlinks, make)
        return directory

    def _make_directory(self, parent: OpenDirectory, name: bytes, mode: int) -> None:
        """A directory where nothing is, or no directory."""
        try:
            os.mkdir(name, mode, dir_fd=parent.fd)
        except FileExistsError:
            self._clear(parent, name)
            os.mkdir(name, mode, dir_fd=parent.fd)
            self._replaced((*parent.path, name))

    def _clear(self, parent: OpenDirectory, name: bytes) -> None:
        """Removes whatever stands at the name, a directory with all that is in it."""
        mode = os.lstat(name, dir_fd=parent.fd).st_mode
        if not stat.S_ISDIR(mode):
            os.unlink(name, dir_fd=parent.fd)
            if stat.S_ISLNK(mode):
                self._open.clear()  # directories may be open by the way that led through it
            return
        shutil.rmtree(name, dir_fd=parent.fd)
        self._open.clear()
        self._cleared = True
        self._removed((*parent.path, name))

    def _know(self, path: Path, mtime_ns: int) -> None:
        """Remembers a directory, and the time that it is to have."""
        self._names += 0 if path in self._times else len(path)
        if self._names > _NAMES_LIMIT:
            raise OSError(errno.E2BIG, "its directories have too many names in all")
        self._times[path] = mtime_ns

    def _not_implied(self, path: Path) -> None:
        if path in self.implied:
            self.implied.remove(path)
            self.presumed.add(path)

    def _set_times(self) -> None:
        """Gives the directories their times, and forgets those that are gone."""
        for path, mtime_ns in self._times.items():
            if not path:
                os.utime(self._root.fd, ns=(mtime_ns, mtime_ns))
            elif (parent := self._parent_of(path)) is not None:
                os.utime(path[-1], ns=(mtime_ns, mtime_ns), dir_fd=parent.fd, follow_symlinks=False)
            else:
                self._not_implied(path)

    def _parent_of(self, path: Path) -> OpenDirectory | None:
        """The directory that this one is in, if both still are what stands there, and no symlink or file is."""
        try:
            parent = self._directory(path[:-1], "none")
            if not self._cleared:
                return parent
            is_directory = stat.S_ISDIR(os.lstat(path[-1], dir_fd=parent.fd).st_mode)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG):
                raise
            return None
        return parent if is_directory and parent.path == path[:-1] else None

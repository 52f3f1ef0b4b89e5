"""What a whiteout becomes on disk (image-spec, layer.md, "Whiteouts"): two forms, each a type.

`OverlayTree` is a layer alone, to be stacked: a whiteout is a 0:0 character device, an opaque directory has the
attribute `trusted.overlay.opaque` or, in a user namespace, `user.overlay.opaque` (kernel documentation,
filesystems/overlayfs.rst, "whiteouts and opaque directories"). `FlatTree` is one directory that layers are applied to
in order: a whiteout removes.

Either way a whiteout speaks of the layers below and never of its own, so the order of a layer's entries does not
matter.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from pullpipe.pipe.below import (
    NOTHING,
    TRUSTED_OPAQUE,
    OpenDirectory,
    Path,
    exists_below,
    is_whiteout,
    opaque_attribute,
)
from pullpipe.pipe.directory import Tree, describe
from pullpipe.pipe.tarstream import Entry, TarStream
from store.namespace import in_user_namespace

_OPAQUE = TRUSTED_OPAQUE.encode()
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class OverlayTree(Tree):
    """One layer as a lower directory of overlayfs."""

    def __init__(self, root: int, below: int = NOTHING) -> None:
        super().__init__(root, below)
        os.fchmod(root, 0o755)  # whatever the umask was when it was made
        self._opaque: set[Path] = set()
        self._emptied: set[Path] = set()  # opaque because an entry says so
        self._hiding: set[Path] = set()  # directories with whiteouts
        self._times[()] = 0  # unless an entry says otherwise, as for any directory that none describes

    def finish(self) -> None:
        for path in self._opaque:
            if not path or self._parent_of(path) is not None:  # and has not been replaced by a later entry
                self._drop_whiteouts(path)
                if path:  # overlayfs ignores the attribute on a layer's root: the stack is cut there instead
                    self.trusted.append((path, _OPAQUE, b"y"))
        super().finish()

    @property
    def hiding(self) -> set[Path]:
        """Directories with whiteouts. Where no layer below has such a directory, a listing would show the devices."""
        return {
            path for path in self._hiding if not any(path[:depth] in self._opaque for depth in range(len(path) + 1))
        }

    def _hide(self, parent: OpenDirectory, name: bytes) -> None:
        if self._has_below and not exists_below(parent, name):
            return
        self._hiding.add(parent.path)
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent.fd)
        except FileExistsError:
            # The layer's own file hides what is below by itself; its own directory must not let it through.
            if stat.S_ISDIR(os.lstat(name, dir_fd=parent.fd).st_mode):
                self._make_opaque((*parent.path, name))

    @property
    def emptied(self) -> set[Path]:
        """Directories of which an entry says that they are opaque, and none what they are: they stay what they were."""
        return self._emptied & self.implied

    def _hide_below(self, directory: OpenDirectory) -> None:
        self._emptied.add(directory.path)
        self._make_opaque(directory.path)

    def _is_opaque(self, path: Path) -> bool:
        return path in self._opaque

    def _cannot_link(self, entry: Entry, why: str) -> None:
        if not self._has_below:
            if not self.unresolved:  # one is enough to unpack it again, where a layer below may have the target
                self.unresolved.append(describe(entry, why))
        else:
            super()._cannot_link(entry, why)

    def _replaced(self, directory: Path) -> None:
        self._make_opaque(directory)

    def _make_opaque(self, path: Path) -> None:
        self._opaque.add(path)
        if not path:
            self.opaque_root = True
            self._root.hide_below()
        self._open.clear()  # what is open still knows what is below

    def _drop_whiteouts(self, path: Path) -> None:
        """Below an opaque directory there is nothing to hide, and a listing would show the device."""
        top = self._directory(path)
        for _, _, names, fd in os.fwalk(b".", dir_fd=top.fd):
            for name in names:
                if is_whiteout(os.lstat(name, dir_fd=fd)):
                    os.unlink(name, dir_fd=fd)


def set_trusted(files: str, attributes: Iterable[tuple[str, str, bytes]]) -> list[str]:
    """Sets attributes that take more rights than the worker has: (path below `files`, name, value). Raises `OSError`.

    Returns warnings: in a user namespace only what makes a directory opaque can be set.

    What the worker says is not trusted: the way is walked name by name, through directories only, nothing is opened for
    reading, and of overlayfs's attributes only the one that makes a directory opaque is set.
    """
    left_out = []
    for path, name, value in attributes:
        if not name.startswith("trusted.") or (name.startswith("trusted.overlay.") and name != TRUSTED_OPAQUE):
            raise OSError(errno.EINVAL, f"an attribute that no layer gets: {name!r}")
        if name == TRUSTED_OPAQUE:
            name = opaque_attribute()
        elif in_user_namespace():
            left_out.append(path)
            continue
        fd = os.open(files, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in path.split("/") if path else ():
                if part in ("", ".", ".."):
                    raise OSError(errno.EINVAL, f"no path of a layer: {path!r}")
                below = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = below
            os.setxattr(f"/proc/self/fd/{fd}", name, value)
        finally:
            os.close(fd)
    if not left_out:
        return []
    more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
    return [f"trusted attributes, which take the machine's root to set, are left out: {left_out[0]!r}{more}"]


class NoTree(Tree):
    """Nothing on disk, for whoever only wants to know what a blob comes to."""

    def apply(self, entry: Entry, stream: TarStream) -> None:
        """Counts the entry; the stream passes over its data."""
        self.entries += 1


class FlatTree(Tree):
    """Layers applied one after the other to one directory; one object for each layer."""

    def __init__(self, root: int, below: int = NOTHING) -> None:
        super().__init__(root, below)
        self._mine: set[Path] = set()  # what this layer made, with all directories on the way
        self._times[()] = os.fstat(root).st_mtime_ns

    def _wrote(self, path: Path) -> None:
        while path and path not in self._mine:
            self._mine.add(path)
            path = path[:-1]

    def _hide(self, parent: OpenDirectory, name: bytes) -> None:
        try:
            status = os.lstat(name, dir_fd=parent.fd)
        except FileNotFoundError:
            return
        path = (*parent.path, name)
        if path not in self._mine:
            self._clear(parent, name)
        elif stat.S_ISDIR(status.st_mode):
            self._hide_below(self._directory(path))

    def _hide_below(self, directory: OpenDirectory) -> None:
        todo = [directory.path]  # no recursion: a tree may be as deep as Python recurses
        while todo:
            parent = self._directory(todo.pop())
            fd = os.open(".", _OPEN, dir_fd=parent.fd)
            try:
                with os.scandir(fd) as entries:
                    found = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
            finally:
                os.close(fd)
            for name, is_directory in found:
                if (*parent.path, name) not in self._mine:
                    self._clear(parent, name)
                elif is_directory:
                    todo.append((*parent.path, name))

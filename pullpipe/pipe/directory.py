"""Tar entries in, a directory tree out. Every path is opened inside the root.

How nothing can get out: a directory is entered one name at a time, from the directory before it, with `O_NOFOLLOW`, and
stays open; a symlink on the way is read and followed here, inside the root, where `/` is the tree's own root and `..`
stops there. Whatever an entry makes, it makes by a single name in such an open directory, and never through a symlink
that stands at that name. No string is ever compared to decide what lies inside. (In a worker the process is in a chroot
besides.)

What an entry does follows LAYERS.md of the design: directory over directory keeps the children, in any other collision
the new entry wins, and the last of several wins. `Tree` is the part that all forms on disk share; `OverlayTree` and
`FlatTree` (in `whiteouts`) say what a whiteout becomes.

This file stands on the hot path: a small file costs five system calls and about 20 µs.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from typing import TypeAlias

from pullpipe.errors import LayerError
from pullpipe.pipe import tarstream
from pullpipe.pipe.tarstream import Entry, Sparse, TarStream

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ENTER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NOTHING = -1  # for a descriptor
_DEPTH_LIMIT = 512  # directories in directories; removing a tree recurses, and the kernel's longest path has 2048
_SYMLINKS_LIMIT = 40  # on the way to one directory; the kernel's own limit
_OPEN_LIMIT = 256  # directories held open; the usual limit of a process is 1024 files
# Overlayfs's own attributes: an image that carries them would steer the stack it becomes part of.
_OVERLAY_XATTRS = (b"trusted.overlay.", b"user.overlay.")
# Not the archive's fault: the caller hears of them as what they are.
_MACHINE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
)

Path: TypeAlias = tuple[bytes, ...]  # names from the root down; no `.`, no `..`, nothing empty


class _Directory:
    """A directory of the tree, open; it closes itself when nobody uses it any more."""

    __slots__ = ("below", "fd", "path")

    def __init__(self, fd: int, path: Path, below: int = NOTHING) -> None:
        self.fd = fd
        self.path = path  # where it really is, symlinks followed
        self.below = below  # the same directory in the stack of the layers below, open, where that is known

    def __del__(self) -> None:
        os.close(self.fd)
        if self.below != NOTHING:
            os.close(self.below)


class Tree:
    """A tree that entries are applied to, below the open directory `root`.

    `below` is the open root of the stacked layers below, for a layer that cannot be unpacked without them: there, a
    directory that no entry describes may be a symlink, and a hard link's target may be.

    `apply` raises `LayerError` for what cannot be applied, with the entry's name and offset, and `OSError` for what is
    the machine's fault, such as a full disk. `finish` does what has to wait for the last entry.
    """

    def __init__(self, root: int, below: int = NOTHING) -> None:
        self._root = _Directory(os.dup(root), (), below if below == NOTHING else os.dup(below))
        self._open: dict[Path, _Directory] = {}
        self._times: dict[Path, int] = {}  # of directories, set at the end: every new child changes them
        self._late: dict[Path, Entry] = {}  # hardlinks to what has not come yet
        self.unresolved: list[str] = []  # hard links to what is not here
        self.implied: set[Path] = {()}  # directories, the root among them, that no entry has described
        self.size = 0
        self.entries = 0
        self.whiteouts = 0
        self.opaque_root = False
        self.trusted: list[tuple[Path, bytes, bytes]] = []  # attributes for `whiteouts.set_trusted`
        self._warned: dict[str, tuple[str, int]] = {}

    def apply(self, entry: Entry, stream: TarStream) -> None:
        """Makes what the entry says; takes its data from the stream."""
        self.entries += 1
        try:
            if not entry.name:
                raise _error(entry, "it has no name")
            path = clean(entry.name)
            if len(path) > _DEPTH_LIMIT:
                raise _error(entry, f"nested more than {_DEPTH_LIMIT} directories deep")
            if b".wh." in entry.name and self._is_whiteout(path, entry):
                return
            if path:
                self._make(self._directory(path[:-1]), path[-1], entry, stream)
            else:
                self._set_root(entry)
        except OSError as error:
            raise _blame(entry, error) from error

    @property
    def emptied(self) -> set[Path]:
        """Those of the opaque directories that are still what they were below, but for what is in them."""
        return set()

    @property
    def hiding(self) -> set[Path]:
        """Directories in which something hides what is below."""
        return set()

    def finish(self) -> None:
        """Makes the hardlinks that came before their targets, and sets the directories' times."""
        while self._late:
            waiting = self._late
            self._late = {}
            for path, entry in waiting.items():
                try:
                    if not self._link(self._directory(path[:-1]), path[-1], entry):
                        self._late[path] = entry
                except OSError as error:
                    raise _blame(entry, error) from error
            if len(self._late) == len(waiting):  # links to links came one further each time
                for entry in waiting.values():
                    self._cannot_link(entry)
                break
        for path, mtime_ns in self._times.items():
            if path:
                os.utime(path[-1], ns=(mtime_ns, mtime_ns), dir_fd=self._directory(path[:-1]).fd, follow_symlinks=False)
            else:
                os.utime(self._root.fd, ns=(mtime_ns, mtime_ns))

    def _is_whiteout(self, path: Path, entry: Entry) -> bool:
        """Whether the entry only hides something, or is nothing; whatever its type, the name decides."""
        if any(name.startswith(b".wh..wh.") and name != b".wh..wh..opq" for name in path):
            return True  # AUFS's own book-keeping, left over in old images
        if not path or not path[-1].startswith(b".wh."):
            return False
        name = path[-1].removeprefix(b".wh.")
        if name in (b"", b".", b".."):
            raise _error(entry, "a whiteout that names nothing")
        parent = self._directory(path[:-1])
        if name == b".wh..opq":
            self._hide_below(parent)
        else:
            self.whiteouts += 1
            self._hide(parent, name)
        return True

    # What differs between the forms on disk.

    def _hide(self, parent: _Directory, name: bytes) -> None:
        """Hides the name of the layers below; what this layer itself makes there stays, whichever comes first."""
        raise NotImplementedError

    def _hide_below(self, directory: _Directory) -> None:
        """Hides all that the layers below have in the directory."""
        raise NotImplementedError

    def _is_opaque(self, path: Path) -> bool:
        """Whether the directory hides what is below it."""
        return False

    def _wrote(self, path: Path) -> None:
        """Told of every name that the layer makes."""

    def _cannot_link(self, entry: Entry) -> None:
        """Told of a hard link whose target is nowhere."""
        raise _error(entry, missing_target(entry))

    def _replaced(self, directory: Path) -> None:
        """Told of a directory that has been made where this layer had put something else, or a whiteout."""

    # Directories.

    def _directory(self, path: Path, *, make: bool = True) -> _Directory:
        """The directory, entered name by name; with `make`, what is missing on the way is made.

        Raises `FileNotFoundError` without `make`.
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
            directory = self._enter(directory, path[depth], symlinks, make=make)
            if len(self._open) >= _OPEN_LIMIT:
                self._open.clear()
            self._open[path[: depth + 1]] = directory
        return directory

    def _enter(self, parent: _Directory, name: bytes, symlinks: list[int], *, make: bool) -> _Directory:
        path = (*parent.path, name)
        if len(path) > _DEPTH_LIMIT:  # by symlinks that lead ever deeper
            raise OSError(errno.ENAMETOOLONG, f"nested more than {_DEPTH_LIMIT} directories deep")
        hides = True  # whether what is here hides what is below
        try:
            fd = os.open(name, _ENTER, dir_fd=parent.fd)
        except FileNotFoundError:
            hides = False
        except NotADirectoryError:
            if stat.S_ISLNK(os.lstat(name, dir_fd=parent.fd).st_mode):
                return self._follow(parent, os.readlink(name, dir_fd=parent.fd), symlinks, make=make)
        else:
            if path not in self._times:  # a directory that was there before us keeps its time
                self._times[path] = os.fstat(fd).st_mtime_ns
            return _Directory(fd, path, NOTHING if self._is_opaque(path) else _enter_below(parent, name))
        below = NOTHING if hides else _enter_below(parent, name)
        if below == NOTHING and not hides and (target := _symlink_below(parent, name)) is not None:
            return self._follow(parent, target, symlinks, make=make)
        if not make:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._late.pop(path, None)
        self._make_directory(parent, name, 0o755)
        # In a setgid directory it would be setgid, too, and of that group.
        os.chown(name, 0, 0, dir_fd=parent.fd, follow_symlinks=False)
        os.chmod(name, 0o755, dir_fd=parent.fd)
        self.implied.add(path)
        self._times[path] = 0
        self._wrote(path)
        return _Directory(os.open(name, _ENTER, dir_fd=parent.fd), path, below)

    def _follow(self, parent: _Directory, target: bytes, symlinks: list[int], *, make: bool) -> _Directory:
        symlinks[0] -= 1
        if symlinks[0] < 0:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        directory = self._root if target.startswith(b"/") else parent
        for name in target.split(b"/"):
            if name == b"..":
                directory = self._directory(directory.path[:-1])
            elif name not in (b"", b"."):
                directory = self._enter(directory, name, symlinks, make=make)
        return directory

    def _make_directory(self, parent: _Directory, name: bytes, mode: int) -> None:
        """A directory where nothing is, or no directory."""
        try:
            os.mkdir(name, mode, dir_fd=parent.fd)
        except FileExistsError:
            self._clear(parent, name)
            os.mkdir(name, mode, dir_fd=parent.fd)
            self._replaced((*parent.path, name))

    def _clear(self, parent: _Directory, name: bytes) -> None:
        """Removes whatever stands at the name, a directory with all that is in it."""
        mode = os.lstat(name, dir_fd=parent.fd).st_mode
        if not stat.S_ISDIR(mode):
            os.unlink(name, dir_fd=parent.fd)
            if stat.S_ISLNK(mode):
                self._open.clear()  # directories may be open by the way that led through it
            return
        shutil.rmtree(name, dir_fd=parent.fd)
        gone = (*parent.path, name)
        self._open.clear()
        self._times = {path: time for path, time in self._times.items() if path[: len(gone)] != gone}
        self.implied = {path for path in self.implied if path[: len(gone)] != gone}
        self._late = {path: entry for path, entry in self._late.items() if path[: len(gone)] != gone}

    # Entries.

    def _make(self, parent: _Directory, name: bytes, entry: Entry, stream: TarStream) -> None:
        kind = entry.kind
        if self._late:
            self._late.pop((*parent.path, name), None)  # the last of several wins
        if kind == tarstream.REGULAR:
            self._make_file(parent, name, entry, stream)
        elif kind == tarstream.DIRECTORY:
            self._make_or_set_directory(parent, name, entry)
        elif kind == tarstream.HARDLINK:
            if not self._link(parent, name, entry):
                self._late[*parent.path, name] = entry
                return
        else:
            try:
                made = self._make_special(parent, name, entry)
            except FileExistsError:
                self._clear(parent, name)
                made = self._make_special(parent, name, entry)
            if not made:
                return
            self._set(parent, name, entry)
        self._wrote((*parent.path, name))

    def _make_file(self, parent: _Directory, name: bytes, entry: Entry, stream: TarStream) -> None:
        try:
            fd = os.open(name, _NEW_FILE, entry.mode, dir_fd=parent.fd)
        except FileExistsError:
            self._clear(parent, name)
            fd = os.open(name, _NEW_FILE, entry.mode, dir_fd=parent.fd)
        try:
            if entry.sparse is None:
                for piece in stream.data():
                    _write(fd, piece)
            else:
                _write_sparse(fd, entry.sparse, stream)
            # Always, though it is nearly always ours already: in a setgid directory a new file takes its group.
            os.fchown(fd, entry.uid, entry.gid)
            if entry.mode & 0o7000:
                os.fchmod(fd, entry.mode)  # chown took setuid and setgid away
            if entry.xattrs:
                self._set_xattrs(fd, (*parent.path, name), entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)
        self.size += entry.size

    def _make_or_set_directory(self, parent: _Directory, name: bytes, entry: Entry) -> None:
        path = (*parent.path, name)
        try:
            os.mkdir(name, entry.mode, dir_fd=parent.fd)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=parent.fd).st_mode):
                self._make_directory(parent, name, entry.mode)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent.fd, follow_symlinks=False)
        os.chmod(name, entry.mode, dir_fd=parent.fd)  # nobody else writes here: the name is still the directory
        if entry.xattrs:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent.fd)
            try:
                self._set_xattrs(fd, path, entry)
            finally:
                os.close(fd)
        self._times[path] = entry.mtime_ns
        self.implied.discard(path)

    def _make_special(self, parent: _Directory, name: bytes, entry: Entry) -> bool:
        """A symlink, a device or a FIFO; says whether it was made."""
        if entry.kind == tarstream.SYMLINK:
            os.symlink(entry.linkname, name, dir_fd=parent.fd)
            return True
        if entry.kind == tarstream.FIFO:
            os.mkfifo(name, entry.mode, dir_fd=parent.fd)
            return True
        if entry.major == entry.minor == 0 and entry.kind == tarstream.CHARACTER:
            self._warn("character devices 0:0, which would act as whiteouts, are left out", entry)
            return False
        if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
            raise _error(entry, f"device number {entry.major}:{entry.minor} is out of range")
        kind = stat.S_IFCHR if entry.kind == tarstream.CHARACTER else stat.S_IFBLK
        os.mknod(name, kind | entry.mode, os.makedev(entry.major, entry.minor), dir_fd=parent.fd)
        return True

    def _set(self, parent: _Directory, name: bytes, entry: Entry) -> None:
        """Owner, mode, extended attributes and time of what cannot be opened."""
        os.chown(name, entry.uid, entry.gid, dir_fd=parent.fd, follow_symlinks=False)
        if entry.kind != tarstream.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent.fd)
        if entry.xattrs:
            os.fchdir(parent.fd)  # no call sets an attribute below an open directory before Linux 6.13
            self._set_xattrs(name, (*parent.path, name), entry)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent.fd, follow_symlinks=False)

    def _set_root(self, entry: Entry) -> None:
        if entry.kind != tarstream.DIRECTORY:
            raise _error(entry, "the root can only be a directory")
        os.fchown(self._root.fd, entry.uid, entry.gid)
        os.fchmod(self._root.fd, entry.mode)
        self._set_xattrs(self._root.fd, (), entry)
        self._times[()] = entry.mtime_ns
        self.implied.discard(())

    def _set_xattrs(self, target: int | bytes, path: Path, entry: Entry) -> None:
        for name, value in entry.xattrs.items():
            if name.startswith(_OVERLAY_XATTRS):
                self._warn("extended attributes that would steer overlayfs are left out", entry)
                continue
            try:
                if isinstance(target, int):
                    os.setxattr(target, name, value)
                else:
                    os.setxattr(target, name, value, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP):
                    raise
                if name.startswith(b"trusted."):
                    self.trusted.append((path, name, value))
                else:
                    self._warn("extended attributes that cannot be set here are left out", entry)

    def _link(self, parent: _Directory, name: bytes, entry: Entry) -> bool:
        """A hard link; False when its target is not there. Owner, mode and the rest of the header do not count."""
        target = clean(entry.linkname)
        if not target:
            raise _error(entry, "a hard link to the root")
        try:
            # With the layers below at hand, the way to the target may have to be made, for the target to be brought up.
            source = self._directory(target[:-1], make=self._root.below != NOTHING)
            status = self._status(source, target[-1])
        except FileNotFoundError:
            return False
        if is_whiteout(status):
            return False
        if stat.S_ISDIR(status.st_mode):
            raise _error(entry, f"a hard link to the directory {_show(entry.linkname)}")
        if (source.path, target[-1]) == (parent.path, name):
            return True  # to itself
        try:
            os.link(target[-1], name, src_dir_fd=source.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
        except FileExistsError:
            self._clear(parent, name)
            os.link(target[-1], name, src_dir_fd=source.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
        return True

    def _status(self, directory: _Directory, name: bytes) -> os.stat_result:
        """Of what stands at the name; what only the layers below have is brought up, as writing to it would."""
        try:
            return os.lstat(name, dir_fd=directory.fd)
        except FileNotFoundError:
            if directory.below == NOTHING:
                raise
        status = os.lstat(name, dir_fd=directory.below)
        if not stat.S_ISDIR(status.st_mode):
            _bring_up(directory, name, status)
            self._wrote((*directory.path, name))
        return status

    def _warn(self, what: str, entry: Entry) -> None:
        """Once for each thing that there is to say, with the first entry that it is about."""
        first, count = self._warned.get(what, (_show(entry.name), 0))
        self._warned[what] = first, count + 1

    @property
    def warnings(self) -> list[str]:
        """What was left out, a line for each kind."""
        return [
            f"{what}: {first}" + (f" and {count - 1} more" if count > 1 else "")
            for what, (first, count) in self._warned.items()
        ]


def missing_target(entry: Entry) -> str:
    """For messages."""
    return f"it is a hard link to {_show(entry.linkname)}, which is in no layer"


def exists_below(parent: _Directory, name: bytes) -> bool:
    """Whether the stacked layers below have the name in this directory."""
    if parent.below == NOTHING:
        return False
    try:
        return not is_whiteout(os.lstat(name, dir_fd=parent.below))
    except FileNotFoundError:
        return False


def _enter_below(parent: _Directory, name: bytes) -> int:
    if parent.below == NOTHING:
        return NOTHING
    try:
        return os.open(name, _ENTER, dir_fd=parent.below)
    except OSError:
        return NOTHING


def _symlink_below(parent: _Directory, name: bytes) -> bytes | None:
    if parent.below == NOTHING:
        return None
    try:
        return os.readlink(name, dir_fd=parent.below)
    except OSError:
        return None


def _bring_up(directory: _Directory, name: bytes, status: os.stat_result) -> None:
    """Copies what is no directory from the layers below, with all its attributes, as overlayfs's copy-up does."""
    if stat.S_ISREG(status.st_mode):
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.below)
        target = os.open(name, _NEW_FILE, 0, dir_fd=directory.fd)
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


def _write(fd: int, piece: memoryview) -> None:
    written = os.write(fd, piece)
    while written < len(piece):
        written += os.write(fd, piece[written:])


def _write_sparse(fd: int, sparse: Sparse, stream: TarStream) -> None:
    """Each segment to its place; what lies between them stays a hole."""
    segments = iter(sparse.segments)
    left = 0
    for piece in stream.data():
        while piece:
            while not left:
                start, left = next(segments)
                os.lseek(fd, start, os.SEEK_SET)
            _write(fd, piece[:left])
            taken = min(left, len(piece))
            left -= taken
            piece = piece[taken:]
    os.truncate(fd, sparse.size)


def clean(name: bytes) -> Path:
    """The names from the root down. Clamped to the root by the text, as containerd and umoci do: `a/../../x` is `x`."""
    parts = [part for part in name.split(b"/") if part and part != b"."]
    if b".." not in parts:
        return tuple(parts)
    path: list[bytes] = []
    for part in parts:
        if part != b"..":
            path.append(part)
        elif path:
            path.pop()
    return tuple(path)


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this is overlayfs's whiteout; an image's own 0:0 devices are never made, so it is one of ours."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _show(name: bytes) -> str:
    text = name.decode(errors="backslashreplace")
    return repr(text if len(text) <= 200 else text[:200] + "…")


def describe(entry: Entry, what: str) -> str:
    """A message that names the entry and where it stands."""
    return f"entry {_show(entry.name)} at byte {entry.offset} of the layer's archive: {what}"


def _error(entry: Entry, what: str) -> LayerError:
    return LayerError(describe(entry, what))


def _blame(entry: Entry, error: OSError) -> Exception:
    """The machine's own trouble as it is; anything else is the entry's."""
    return error if error.errno in _MACHINE_ERRORS else _error(entry, error.strerror or str(error))

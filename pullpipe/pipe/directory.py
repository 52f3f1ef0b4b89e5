"""Tar entries in, a directory tree out. Every path is opened inside the root, as `walk` describes.

Whatever an entry makes, it makes by a single name in an open directory, and never through a symlink that stands at that
name. What an entry does follows LAYERS.md of the design: directory over directory keeps the children, in any other
collision the new entry wins, and the last of several wins. `Tree` is the part that all forms on disk share;
`OverlayTree` and `FlatTree` (in `whiteouts`) say what a whiteout becomes.

This file stands on the hot path: a small file costs five system calls and about 20 µs.
"""

from __future__ import annotations

import errno
import os
import stat

from pullpipe.errors import LayerError, UnmappableOwner
from pullpipe.pipe import tarstream
from pullpipe.pipe.below import NEW_FILE, NOTHING, OpenDirectory, Path, bring_up, is_whiteout
from pullpipe.pipe.tarstream import Entry, Sparse, TarStream
from pullpipe.pipe.walk import DEPTH_LIMIT, Walk

_TRUSTED_LIMIT = 8 << 20  # bytes of trusted attributes, which the worker holds and hands on
_SYMLINKS_LIMIT = 40  # between a link that has to wait and another's name
_SPARE = b".wh..wh.spare"  # a name that no entry makes
# Overlayfs's own attributes: an image that carries them would steer the stack it becomes part of.
_OVERLAY_XATTRS = (b"trusted.overlay.", b"user.overlay.")
# Not the archive's fault: the caller hears of them as what they are.
_MACHINE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
)


class Tree(Walk):
    """A tree that entries are applied to, below the open directory `root`.

    `below` is the open root of the stacked layers below, for a layer that cannot be unpacked without them: there, a
    directory that no entry describes may be a symlink, and a hard link's target may be.

    With `ignore_owners`, what an owner has that the user namespace does not have becomes root's. It is to be set before
    the first entry.

    `apply` raises `LayerError` for what cannot be applied, with the entry's name and offset, and `OSError` for what is
    the machine's fault, such as a full disk. `finish` does what has to wait for the last entry.
    """

    def __init__(self, root: int, below: int = NOTHING) -> None:
        super().__init__(root, below)
        self._uid, self._gid = os.geteuid(), os.getegid()
        self.ignore_owners = False
        self.owners_ignored = False  # whether there were such
        self._late: dict[Path, Entry] = {}  # hardlinks to what has not come yet
        self.unresolved: list[str] = []  # hard links to what is not here
        self.size = 0
        self.entries = 0
        self.whiteouts = 0
        self.opaque_root = False
        self.brought_up: list[Path] = []  # files copied from below, without the trusted attributes that we cannot see
        self.trusted: list[tuple[Path, bytes, bytes]] = []  # attributes for `whiteouts.set_trusted`
        self._trusted_size = 0
        self._warned: dict[str, tuple[str, int]] = {}

    def apply(self, entry: Entry, stream: TarStream) -> None:
        """Makes what the entry says; takes its data from the stream."""
        self.entries += 1
        try:
            if not entry.name:
                raise _error(entry, "it has no name")
            path = clean(entry.name)
            if len(path) > DEPTH_LIMIT:
                raise _error(entry, f"nested more than {DEPTH_LIMIT} directories deep")
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
        for _ in range(_SYMLINKS_LIMIT):
            before = len(self._late)
            self._link_late()
            if not self._late or len(self._late) == before:
                break
        for entry in self._late.values():
            self._cannot_link(entry, self._what_is_wrong(entry))
        self._set_times()

    def _link_late(self) -> None:
        """One pass over the links that had to wait, each after its target where that is such a link itself."""
        waiting, self._late = self._late, {}
        while waiting:
            path = next(iter(waiting))
            chain = []
            while path in waiting:
                chain.append((path, waiting.pop(path)))
                path = clean(chain[-1][1].linkname)
            for name, entry in reversed(chain):
                try:
                    if not self._link(self._directory(name[:-1]), name[-1], entry):
                        self._late[name] = entry
                except OSError as error:
                    raise _blame(entry, error) from error

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

    def _hide(self, parent: OpenDirectory, name: bytes) -> None:
        """Hides the name of the layers below; what this layer itself makes there stays, whichever comes first."""
        raise NotImplementedError

    def _hide_below(self, directory: OpenDirectory) -> None:
        """Hides all that the layers below have in the directory."""
        raise NotImplementedError

    def _wrote(self, path: Path) -> None:
        """Told of every name that the layer makes."""

    def _cannot_link(self, entry: Entry, why: str) -> None:
        """Told of a hard link whose target is nowhere, or a directory."""
        raise _error(entry, why)

    # What the walk tells.

    def _implied(self, path: Path) -> None:
        self._late.pop(path, None)
        self._wrote(path)

    def _removed(self, directory: Path) -> None:
        if not self._late:
            return
        self._late = {path: entry for path, entry in self._late.items() if path[: len(directory)] != directory}

    # Entries.

    def _make(self, parent: OpenDirectory, name: bytes, entry: Entry, stream: TarStream) -> None:
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

    def _make_file(self, parent: OpenDirectory, name: bytes, entry: Entry, stream: TarStream) -> None:
        try:
            fd = os.open(name, NEW_FILE, entry.mode, dir_fd=parent.fd)
        except FileExistsError:
            self._clear(parent, name)
            fd = os.open(name, NEW_FILE, entry.mode, dir_fd=parent.fd)
        try:
            if entry.sparse is None:
                for piece in stream.data():
                    _write(fd, piece)
            else:
                _write_sparse(fd, entry.sparse, stream)
            # A new file is ours, with our group or, in a setgid directory, the directory's.
            if not (entry.uid == self._uid and entry.gid == self._gid == parent.gid):
                self._own(fd, entry)
            if entry.mode & 0o7000:
                os.fchmod(fd, entry.mode)  # chown took setuid and setgid away
            if entry.xattrs:
                self._set_xattrs(fd, (*parent.path, name), entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)
        self.size += entry.size

    def _make_or_set_directory(self, parent: OpenDirectory, name: bytes, entry: Entry) -> None:
        path = (*parent.path, name)
        try:
            os.mkdir(name, entry.mode, dir_fd=parent.fd)
        except FileExistsError:
            if stat.S_ISDIR(os.lstat(name, dir_fd=parent.fd).st_mode):
                self._forget_xattrs(parent, name)
                if entry.gid != self._gid:
                    self._open.clear()  # an open directory remembers its group
            else:
                self._make_directory(parent, name, entry.mode)
        self._own(name, entry, parent.fd)
        os.chmod(name, entry.mode, dir_fd=parent.fd)  # nobody else writes here: the name is still the directory
        if entry.xattrs:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent.fd)
            try:
                self._set_xattrs(fd, path, entry)
            finally:
                os.close(fd)
        self._know(path, entry.mtime_ns)
        self._not_implied(path)

    def _forget_xattrs(self, parent: OpenDirectory, name: bytes) -> None:
        """A directory that is described anew has what the new entry says, and nothing else."""
        path = (*parent.path, name) if name != b"." else ()
        self.trusted = [attribute for attribute in self.trusted if attribute[0] != path]
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent.fd)
        try:
            for attribute in os.listxattr(fd):
                if not os.fsencode(attribute).startswith(_OVERLAY_XATTRS):
                    os.removexattr(fd, attribute)
        finally:
            os.close(fd)

    def _make_special(self, parent: OpenDirectory, name: bytes, entry: Entry) -> bool:
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
        try:
            os.mknod(name, kind | entry.mode, os.makedev(entry.major, entry.minor), dir_fd=parent.fd)
        except PermissionError:  # in a user namespace
            self._warn("devices, which take the machine's root to make, are left out", entry)
            return False
        return True

    def _set(self, parent: OpenDirectory, name: bytes, entry: Entry) -> None:
        """Owner, mode, extended attributes and time of what cannot be opened."""
        self._own(name, entry, parent.fd)
        if entry.kind != tarstream.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent.fd)
        if entry.xattrs:
            os.fchdir(parent.fd)  # no call sets an attribute below an open directory before Linux 6.13
            self._set_xattrs(name, (*parent.path, name), entry)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent.fd, follow_symlinks=False)

    def _set_root(self, entry: Entry) -> None:
        if entry.kind != tarstream.DIRECTORY:
            raise _error(entry, "the root can only be a directory")
        self._forget_xattrs(self._root, b".")
        self._own(self._root.fd, entry)
        os.fchmod(self._root.fd, entry.mode)
        self._root.gid = entry.gid
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
                    self._remember_trusted(path, name, value, entry)
                else:
                    self._warn("extended attributes that cannot be set here are left out", entry)

    def _remember_trusted(self, path: Path, name: bytes, value: bytes, entry: Entry) -> None:
        self._trusted_size += len(name) + len(value) + sum(map(len, path))
        if self._trusted_size > _TRUSTED_LIMIT:
            raise _error(entry, "the layer has too many trusted attributes in all")
        self.trusted.append((path, name, value))

    def _link(self, parent: OpenDirectory, name: bytes, entry: Entry) -> bool:
        """A hard link; False when its target is not there. Owner, mode and the rest of the header do not count."""
        target = clean(entry.linkname)
        if not target:
            raise _error(entry, "a hard link to the root")
        try:
            # With the layers below at hand, the way to the target may have to be made, for the target to be brought up.
            source = self._directory(target[:-1], "below" if self._has_below else "none")
            status = self._status(source, target[-1])
        except FileNotFoundError:
            return False
        if is_whiteout(status):
            return False
        if stat.S_ISDIR(status.st_mode):
            return False  # a later entry may put something else there, or a layer below have it
        if (source.path, target[-1]) == (parent.path, name):
            return True  # to itself
        try:
            os.link(target[-1], name, src_dir_fd=source.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
        except FileExistsError:  # what is in the way may be a directory that holds the target
            os.link(target[-1], _SPARE, src_dir_fd=source.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
            self._clear(parent, name)
            os.rename(_SPARE, name, src_dir_fd=parent.fd, dst_dir_fd=parent.fd)
        return True

    def _what_is_wrong(self, entry: Entry) -> str:
        target = clean(entry.linkname)
        try:
            parent = self._directory(target[:-1], "none")
            is_directory = stat.S_ISDIR(os.lstat(target[-1], dir_fd=parent.fd).st_mode)
        except OSError:
            is_directory = False
        link = f"it is a hard link to {_show(entry.linkname)}"
        return f"{link}, a directory" if is_directory else f"{link}, which is in no layer"

    def _status(self, directory: OpenDirectory, name: bytes) -> os.stat_result:
        """Of what stands at the name; what only the layers below have is brought up, as writing to it would."""
        try:
            return os.lstat(name, dir_fd=directory.fd)
        except FileNotFoundError:
            if directory.below == NOTHING:
                raise
        status = os.lstat(name, dir_fd=directory.below)
        if not stat.S_ISDIR(status.st_mode):
            bring_up(directory, name, status)
            self.size += status.st_size if stat.S_ISREG(status.st_mode) else 0
            self.brought_up.append((*directory.path, name))
            self._wrote((*directory.path, name))
        return status

    def _own(self, target: int | bytes, entry: Entry, directory: int | None = None) -> None:
        """chown(2) of something open, or of a name in an open directory."""
        follow = isinstance(target, int)
        try:
            os.chown(target, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=follow)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            if self.ignore_owners:
                self.owners_ignored = True
                self._warn("owners that the user namespace does not have are ignored", entry)
                os.chown(target, 0, 0, dir_fd=directory, follow_symlinks=follow)
                return
            unmapped = (
                f"the user namespace does not have its owner, {entry.uid}:{entry.gid}; give the user more ids in "
                "/etc/subuid and /etc/subgid, or ignore such owners with --ignore-owners"
            )
            raise UnmappableOwner(describe(entry, unmapped)) from error

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

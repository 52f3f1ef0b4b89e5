"""Files as a tar stream, and back: for copies out of a container and into it, on both sides.

Whatever writes to the tree meanwhile may be hostile. So each directory is opened from the one before it, name by name,
what is opened is looked at, and what is made has its owner and mode set by its descriptor. Only plain things are
copied: no devices, no sockets, and no attributes but the user's. Whatever is no directory gets its name when it is
whole: what it takes the place of is there until then.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from pullpipe.errors import BadArgument
from pullpipe.pipe import tarheader, tarstream
from pullpipe.pipe.directory import clean
from pullpipe.pipe.tarheader import header
from pullpipe.pipe.tarstream import Entry, TarStream

_PIECE = 1 << 20  # bytes
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OURS = "user."  # attributes that everybody may set


# Out.


def pieces(parent: int, name: str, called: str, hollow: Collection[str] = ()) -> Iterator[bytes]:
    """A tar archive of what has the name in an open directory, with all that is in it; it is `called` so in there.

    Of the directories in it that are called as in `hollow` nothing but themselves is taken. What vanishes meanwhile is
    left out. Raises `OSError`, `BadArgument`.
    """
    yield from _Sender(parent, name, called, hollow).pieces()
    yield tarheader.END


class _Sender:
    def __init__(self, parent: int, name: str, called: str, hollow: Collection[str]) -> None:
        self._parent, self._name, self._called = parent, name, called
        self._hollow = {(name,) for name in hollow}
        self._linked: dict[tuple[int, int], str] = {}  # of files with several names: the first

    def pieces(self) -> Iterator[bytes]:
        todo: list[tuple[str, ...]] = [()]
        while todo:
            names = todo.pop()
            path = "/".join((self._called, *names))
            with suppress(FileNotFoundError, NotADirectoryError):
                directory = self._open((self._name, *names)[:-1])
                try:
                    name = (self._name, *names)[-1]
                    if not stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
                        yield from self._other(directory, name, path)
                        continue
                    opened = os.open(name, _DIRECTORY, dir_fd=directory)
                finally:
                    os.close(directory)
                try:
                    yield header(path, os.fstat(opened), attributes=_attributes(opened))
                    if names not in self._hollow:
                        todo += [(*names, below) for below in sorted(os.listdir(opened), reverse=True)]
                finally:
                    os.close(opened)

    def _open(self, names: Iterable[str]) -> int:
        return enter(self._parent, map(os.fsencode, names))

    def _other(self, directory: int, name: str, path: str) -> Iterator[bytes]:
        status = os.lstat(name, dir_fd=directory)
        if stat.S_ISREG(status.st_mode):
            yield from self._file(directory, name, path)
        elif stat.S_ISLNK(status.st_mode):
            yield header(path, status, target=os.readlink(name, dir_fd=directory))
        elif stat.S_ISFIFO(status.st_mode):
            yield header(path, status)
        elif path == self._called:
            raise BadArgument(f"{name} is a device or a socket, and no copies are made of such")

    def _file(self, directory: int, name: str, path: str) -> Iterator[bytes]:
        fd = os.open(name, _FILE, dir_fd=directory)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return  # it has just become something else
            first = self._linked.setdefault((status.st_dev, status.st_ino), path) if status.st_nlink > 1 else path
            if first != path:
                yield header(path, status, link=first)
                return
            yield header(path, status, attributes=_attributes(fd))
            left = status.st_size
            while left and (piece := os.read(fd, min(left, _PIECE))):
                left -= len(piece)
                yield piece
            if left:
                raise BadArgument(f"{path} has become shorter while it was read; try again when nobody writes to it")
            yield tarheader.padding(status.st_size)
        finally:
            os.close(fd)


def _attributes(fd: int) -> dict[str, bytes]:
    with suppress(OSError):  # a file system without any
        return {
            name: os.getxattr(fd, name)
            for name in os.listxattr(fd)
            if name.startswith(_OURS) and not name.startswith("user.overlay.")
        }
    return {}


# In.


class Rules(NamedTuple):
    """What becomes of owners and modes."""

    owner: tuple[int, int] | None = None  # of everything; None is as the archive says
    mode: int = 0o7777  # which bits may be set


def enter(top: int, names: Iterable[bytes]) -> int:
    """The directory below an open one, without following a symlink."""
    directory = os.dup(top)
    for name in names:
        try:
            below = os.open(name, _DIRECTORY, dir_fd=directory)
        finally:
            os.close(directory)
        directory = below
    return directory


class Receiver:
    """Makes what the entries of an archive say. `find` opens the directory that has the path below the destination.

    With `name`, the archive's first name becomes that one; `b""` is the destination itself, which stays as it is.
    """

    def __init__(self, find: Callable[[tuple[bytes, ...]], int], name: bytes | None, rules: Rules) -> None:
        self._find, self._name, self._rules = find, name, rules
        self._at: tuple[bytes, ...] | None = None
        self._parent = -1
        self._times: list[tuple[tuple[bytes, ...], int]] = []  # of directories, to be set at the end

    def receive(self, stream: TarStream) -> None:
        """All of it. Raises `LayerError` for what is no archive, `BadArgument`, `OSError`."""
        try:
            for entry in stream:
                path = self._mapped(entry.name)
                if path:
                    self._make(path, entry, stream)
            for path, mtime_ns in reversed(self._times):
                with suppress(OSError):
                    fd = self._find(path)
                    os.utime(".", ns=(mtime_ns, mtime_ns), dir_fd=fd)
                    os.close(fd)
        finally:
            self._go(None)

    def _mapped(self, name: bytes) -> tuple[bytes, ...]:
        path = clean(name)
        if self._name is None or not path:
            return path
        return (*filter(None, (self._name,)), *path[1:])

    def _go(self, path: tuple[bytes, ...] | None) -> int:
        if path != self._at or path is None:
            if self._parent >= 0:
                os.close(self._parent)
                self._parent = -1
            self._at = None
            if path is not None:
                self._parent = self._find(path)
                self._at = path
        return self._parent

    def _make(self, path: tuple[bytes, ...], entry: Entry, stream: TarStream) -> None:
        parent, name = self._go(path[:-1]), path[-1]
        if entry.kind == tarstream.DIRECTORY:
            self._directory(parent, path, entry)
        elif entry.kind not in (tarstream.CHARACTER, tarstream.BLOCK_DEVICE):
            new = f".pullpipe-{os.urandom(8).hex()}".encode()
            try:
                self._other(parent, new, entry, stream)
                os.rename(new, name, src_dir_fd=parent, dst_dir_fd=parent)
            except IsADirectoryError:
                raise _refused(path, "a directory of that name is there") from None
            except OSError as error:
                raise OSError(error.errno, error.strerror, os.fsdecode(b"/".join(path))) from error
            finally:
                with suppress(FileNotFoundError):  # it has its name, unless that is of the same file already
                    os.unlink(new, dir_fd=parent)

    def _other(self, parent: int, name: bytes, entry: Entry, stream: TarStream) -> None:
        mode = entry.mode & self._rules.mode
        if entry.kind == tarstream.HARDLINK:
            target = self._mapped(entry.linkname)
            if not target:
                raise _refused((entry.name,), "it is a hard link to a directory")
            source = self._find(target[:-1])
            try:
                os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(source)
        elif entry.kind == tarstream.SYMLINK:
            os.symlink(entry.linkname, name, dir_fd=parent)
            self._own(name, entry, parent)
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
        elif entry.kind == tarstream.FIFO:
            os.mkfifo(name, mode & 0o777, dir_fd=parent)
            self._own(name, entry, parent)
        else:
            fd = os.open(name, _NEW, 0o600, dir_fd=parent)
            try:
                for piece in stream.data():
                    while piece:
                        piece = piece[os.write(fd, piece) :]
                self._set(fd, mode, entry)
                os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
            finally:
                os.close(fd)

    def _directory(self, parent: int, path: tuple[bytes, ...], entry: Entry) -> None:
        try:
            os.mkdir(path[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path[-1], dir_fd=parent).st_mode):
                raise _refused(path, "it is there, and no directory") from None
        fd = os.open(path[-1], _DIRECTORY, dir_fd=parent)
        try:
            self._set(fd, entry.mode & self._rules.mode, entry)
        finally:
            os.close(fd)
        self._times.append((path, entry.mtime_ns))

    def _set(self, fd: int, mode: int, entry: Entry) -> None:
        self._own(fd, entry)
        os.fchmod(fd, mode)
        for name, value in entry.xattrs.items():
            if name.startswith(_OURS.encode()) and not name.startswith(b"user.overlay."):
                with suppress(OSError):  # a file system without any
                    os.setxattr(fd, name, value)

    def _own(self, target: int | bytes, entry: Entry, directory: int | None = None) -> None:
        uid, gid = self._rules.owner or (entry.uid, entry.gid)
        try:
            os.chown(target, uid, gid, dir_fd=directory, follow_symlinks=isinstance(target, int))
        except OSError as error:
            why = f"it cannot be given to {uid}:{gid} ({(error.strerror or 'refused').lower()})"
            raise _refused(self._mapped(entry.name), f"{why}; copy it without -a, or as an archive: to `-`") from error


def _refused(path: tuple[bytes, ...], why: str) -> BadArgument:
    return BadArgument(f"{os.fsdecode(b'/'.join(path))!r} cannot be copied: {why}")

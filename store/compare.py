"""Whether two trees are the same: every name, its type, mode, owner, time, attributes, content, and hard links.

By one look at both, or by a digest of all that, for when only one of them will be there.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack

from store.digest import Digest, new_hash
from store.errors import UNREADABLE

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 20  # bytes of content at a time
_STEP = 15  # names of a path at a time: the kernel takes 4096 bytes
_NAMESPACES = ("user.", "trusted.", "security.", "system.")  # others tell of the file system: btrfs.compression
_OF_THE_MACHINE = frozenset({"security.selinux", "security.ima", "security.evm"})  # which gives and changes them


def differences(tree: str, original: str) -> Iterator[str]:
    """How the tree differs from what it should be, a line for each path. Raises `OSError`.

    Not compared: the time of a whiteout, which is when it was made; sizes of directories; where files have holes; what
    the machine or the file system notes in extended attributes.
    """
    tree_fd, original_fd = os.open(tree, _DIRECTORY), os.open(original, _DIRECTORY)
    try:
        yield from _Comparison(tree_fd, original_fd).lines()
    finally:
        os.close(tree_fd)
        os.close(original_fd)


def tree_digest(tree: str) -> Digest:
    """The digest of all that `differences` compares. Raises `OSError`.

    Of what is a line of JSON for each path, a directory before what is in it, and behind a file's the file.
    """
    digest = new_hash("sha256")
    linked: dict[int, str] = {}
    for path, directory, below in _directories(tree):
        digest.update(_line(path, os.fstat(directory), place_of(directory)))
        for name in sorted(os.listdir(directory)):
            status = os.lstat(name, dir_fd=directory)
            if stat.S_ISDIR(status.st_mode):
                below.append(f"{path}{name}/")
                continue
            first = linked.setdefault(status.st_ino, path + name) if status.st_nlink > 1 else path + name
            target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else first
            digest.update(_line(path + name, status, place_of(directory, name), first, target))
            if stat.S_ISREG(status.st_mode) and first == path + name:
                for piece in _pieces(directory, name):
                    digest.update(piece)
    return Digest("sha256", digest.hexdigest())


def _directories(tree: str) -> Iterator[tuple[str, int, list[str]]]:
    """Each directory of the tree: its path, itself, open until the next, and a list for the paths of those in it."""
    top = os.open(tree, _DIRECTORY)
    try:
        todo = [""]
        while todo:
            path, below = todo.pop(), list[str]()
            directory = open_directory(top, path)
            try:
                yield path, directory, below
            finally:
                os.close(directory)
            todo += reversed(below)
    finally:
        os.close(top)


def _line(path: str, status: os.stat_result, place: bytes, *links: str) -> bytes:
    whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
    what = [path, status.st_mode, status.st_uid, status.st_gid, status.st_rdev, *links]
    what.append(0 if whiteout else status.st_mtime_ns)
    what.append(status.st_size if stat.S_ISREG(status.st_mode) else 0)
    what.append({name: value.hex() for name, value in attributes_of(place).items()})
    return json.dumps(what, sort_keys=True).encode() + b"\n"


def _pieces(directory: int, name: str) -> Iterator[bytes]:
    file = os.open(name, _FILE, dir_fd=directory)
    try:
        while piece := os.read(file, _PIECE):
            yield piece
    finally:
        os.close(file)


class _Comparison:
    """Of two open trees. Paths end with a slash where they are those of directories."""

    def __init__(self, tree: int, original: int) -> None:
        self._tree = tree
        self._original = original
        # The first name of each file that has several, by its number.
        self._linked: tuple[dict[int, str], dict[int, str]] = ({}, {})

    def lines(self) -> Iterator[str]:
        wrong = ", ".join(
            _attributes(os.stat(self._tree), os.stat(self._original), place_of(self._tree), place_of(self._original))
        )
        if wrong:
            yield f"its root: {wrong}"
        todo = [""]
        while todo:
            path = todo.pop()
            here, there = open_directory(self._tree, path), open_directory(self._original, path)
            try:
                mine, others = set(os.listdir(here)), set(os.listdir(there))
                for name in sorted(mine | others):
                    if name not in mine:
                        yield f"{path}{name}: it is missing"
                    elif name not in others:
                        yield f"{path}{name}: the layer does not have it"
                    elif wrong := ", ".join(self._compare(here, there, path, name, todo)):
                        yield f"{path}{name}: {wrong}"
            finally:
                os.close(here)
                os.close(there)

    def _compare(self, here: int, there: int, path: str, name: str, todo: list[str]) -> Iterator[str]:
        mine, other = os.lstat(name, dir_fd=here), os.lstat(name, dir_fd=there)
        if stat.S_IFMT(mine.st_mode) != stat.S_IFMT(other.st_mode):
            yield "it is something else"
            return
        if stat.S_ISDIR(mine.st_mode):
            todo.append(f"{path}{name}/")
        elif self._first(0, mine, path + name) != self._first(1, other, path + name):
            yield "its hard links differ"
        yield from _attributes(mine, other, place_of(here, name), place_of(there, name))
        if stat.S_ISLNK(mine.st_mode):
            if os.readlink(name, dir_fd=here) != os.readlink(name, dir_fd=there):
                yield "it leads elsewhere"
        elif stat.S_ISREG(mine.st_mode):
            if mine.st_size != other.st_size:
                yield f"it has {mine.st_size} bytes instead of {other.st_size}"
            elif not same_content(here, there, name):
                yield "its content differs"

    def _first(self, side: int, status: os.stat_result, path: str) -> str:
        return self._linked[side].setdefault(status.st_ino, path) if status.st_nlink > 1 else path


def _attributes(mine: os.stat_result, other: os.stat_result, place: bytes, original: bytes) -> Iterator[str]:
    if stat.S_IMODE(mine.st_mode) != stat.S_IMODE(other.st_mode):
        yield f"its mode is {stat.S_IMODE(mine.st_mode):04o} instead of {stat.S_IMODE(other.st_mode):04o}"
    if (mine.st_uid, mine.st_gid) != (other.st_uid, other.st_gid):
        yield f"its owner is {mine.st_uid}:{mine.st_gid} instead of {other.st_uid}:{other.st_gid}"
    if mine.st_rdev != other.st_rdev:
        yield "its device number differs"
    whiteout = stat.S_ISCHR(mine.st_mode) and mine.st_rdev == 0
    if mine.st_mtime_ns != other.st_mtime_ns and not whiteout:
        yield f"its time is {_seconds(mine.st_mtime_ns)} instead of {_seconds(other.st_mtime_ns)}"
    if attributes_of(place) != attributes_of(original):
        yield "its extended attributes differ"


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09}".rstrip("0").rstrip(".")


def attributes_of(place: bytes) -> dict[str, bytes]:
    """The extended attributes of what is there, but for those that the machine or the file system notes in them."""
    return {
        name: os.getxattr(place, name, follow_symlinks=False)
        for name in os.listxattr(place, follow_symlinks=False)
        if name.startswith(_NAMESPACES) and name not in _OF_THE_MACHINE
    }


def same_content(here: int, there: int, name: str) -> bool:
    """Of two files of one size. Where the disk does not give it any more, it is not the same."""
    with ExitStack() as opened:
        mine, other = (os.open(name, _FILE, dir_fd=directory) for directory in (here, there))
        opened.callback(os.close, mine)
        opened.callback(os.close, other)
        try:
            while piece := os.read(mine, _PIECE):
                if piece != os.read(other, _PIECE):
                    return False
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            return False
    return True


def open_directory(top: int, path: str) -> int:
    """The directory at a path that ends with a slash, or the top; in steps that the kernel's limit allows."""
    directory = os.dup(top)
    names = path.split("/")[:-1]
    for start in range(0, len(names), _STEP):
        below = os.open("/".join(names[start : start + _STEP]), _DIRECTORY, dir_fd=directory)
        os.close(directory)
        directory = below
    return directory


def place_of(directory: int, name: str = ".") -> bytes:
    """A path to the name in the open directory, for the calls that take no such directory."""
    return b"/proc/self/fd/%d/%s" % (directory, os.fsencode(name))

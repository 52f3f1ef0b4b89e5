"""A directory tree as a layer's tar stream. The same tree makes the same bytes, whoever writes it and whenever.

The form is pax, which keeps nanoseconds, long names, large numbers and extended attributes. A directory comes with all
that is in it before the next one, its files first, in the order of their names' bytes. An upper directory of overlayfs
becomes what it means: whiteouts and opaque directories in the form of image-spec, layer.md.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from pullpipe.errors import BadArgument, KernelRefused
from pullpipe.pipe import tarheader
from pullpipe.pipe.below import is_opaque, is_whiteout
from store.compare import attributes_of, open_directory, place_of

_PIECE = 1 << 20  # bytes
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OVERLAY = ("trusted.overlay.", "user.overlay.")
_ELSEWHERE = ("redirect", "metacopy")  # overlay's attributes that say: the rest of this lies in a layer below
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"


class Rules(NamedTuple):
    """How a tree becomes an archive."""

    at: str = ""  # where it goes in the image: a relative path
    owner: tuple[int, int] | None = None  # of everything, instead of what it is
    latest: int | None = None  # seconds since 1970; what is younger has this time instead
    root: bool = False  # with an entry for the tree's root
    upper: bool = False  # the tree is an upper directory of overlayfs
    marks: bool = False  # the tree has whiteouts of image-spec's form, which are empty files; an upper one has its own
    left_out: frozenset[str] = frozenset()  # paths in the tree


def pieces(tree: str, rules: Rules) -> Iterator[bytes]:
    """The archive, piece by piece. Sockets are left out, as tar does.

    Raises `BadArgument` for what cannot be in a layer, `KernelRefused`, and `OSError`.
    """
    top = os.open(tree, _DIRECTORY)
    try:
        yield from _Archive(top, rules).pieces()
    finally:
        os.close(top)
    yield tarheader.END


class _Archive:
    """Paths end with a slash where they are those of directories."""

    def __init__(self, top: int, rules: Rules) -> None:
        self._top = top
        self._rules = rules
        self._at = f"{rules.at}/" if rules.at else ""
        self._names: dict[tuple[int, int], str] = {}  # of files with several: the first

    def pieces(self) -> Iterator[bytes]:
        todo = [""]
        while todo:
            path = todo.pop()
            directory = open_directory(self._top, path)
            try:
                if path or self._rules.root:
                    yield self._header(self._at + (path or "./"), directory, ".", os.fstat(directory))
                if self._rules.upper and is_opaque(os.fsdecode(place_of(directory))):
                    yield tarheader.empty(self._at + path + _OPAQUE)
                below = []
                for name in sorted(os.listdir(directory), key=os.fsencode):
                    if path + name in self._rules.left_out:
                        continue
                    status = os.lstat(name, dir_fd=directory)
                    self._check(path + name, status)
                    if stat.S_ISDIR(status.st_mode):
                        below.append(f"{path}{name}/")
                    else:
                        yield from self._file(directory, path, name, status)
                todo += reversed(below)
            finally:
                os.close(directory)

    def _check(self, path: str, status: os.stat_result) -> None:
        """Raises `BadArgument` for what has a whiteout's name and is none."""
        if not os.path.basename(path).startswith(_WHITEOUT):
            return
        is_mark = stat.S_ISREG(status.st_mode) and status.st_size == 0
        if self._rules.upper or (self._rules.marks and not is_mark):
            raise BadArgument(
                f"/{path} cannot be in a layer, where such a name means that another file is removed; rename it"
            )

    def _file(self, directory: int, path: str, name: str, status: os.stat_result) -> Iterator[bytes]:
        if self._rules.upper and is_whiteout(status):
            yield tarheader.empty(self._at + path + _WHITEOUT + name)
            return
        if stat.S_ISSOCK(status.st_mode):
            return
        entry = self._at + path + name
        first = self._names.setdefault((status.st_dev, status.st_ino), entry) if status.st_nlink > 1 else entry
        yield self._header(entry, directory, name, status, link=first if first != entry else "")
        if stat.S_ISREG(status.st_mode) and first == entry:
            yield from _content(directory, name, path + name, status)

    def _header(self, entry: str, directory: int, name: str, status: os.stat_result, *, link: str = "") -> bytes:
        attributes = {} if link else self._attributes(directory, name, entry)
        target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else ""
        rules = self._rules
        return tarheader.header(
            entry, status, target=target, link=link, attributes=attributes, owner=rules.owner, latest=rules.latest
        )

    def _attributes(self, directory: int, name: str, entry: str) -> dict[str, bytes]:
        found = attributes_of(place_of(directory, name))
        overlays = [key for key in found if key.startswith(_OVERLAY)]
        if self._rules.upper and any(key.endswith(_ELSEWHERE) for key in overlays):
            raise KernelRefused(
                f"/{entry} was renamed, and overlayfs has kept only that; "
                "turn its redirect_dir and metacopy off (/sys/module/overlay/parameters), and do it again"
            )
        return {key: value for key, value in found.items() if key not in overlays}


def _content(directory: int, name: str, path: str, status: os.stat_result) -> Iterator[bytes]:
    left = status.st_size
    with open(os.open(name, _FILE, dir_fd=directory), "rb", 0) as file:
        while left and (piece := file.read(min(left, _PIECE))):
            left -= len(piece)
            yield piece
    if left:
        raise BadArgument(f"/{path} has become shorter while it was read; try again when nobody writes to it")
    yield tarheader.padding(status.st_size)

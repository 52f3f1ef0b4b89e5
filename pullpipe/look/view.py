"""What layers come to when they are stacked, or what one has alone: names, attributes, contents. Nothing is mounted.

The layers' own directories are read, as `stack` would have overlayfs merge them, and what `pipe.settle` adds to that is
reckoned here: a directory that no entry of a layer describes has the attributes that a layer below gives it. So every
file is known by the layer that it comes from, and any part of a stack can be seen.

Names are an image's, and nothing is ever looked up by one that a symlink could lead out of the tree: directories are
opened one by one, from the tree's root, and symlinks are followed here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from pullpipe.errors import BadArgument
from pullpipe.local import LocalImage
from pullpipe.oci import chain_ids
from pullpipe.pipe.below import is_opaque, is_whiteout
from store import LayerInfo, Store
from store.compare import open_directory, place_of

_TREE = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SYMLINKS_LIMIT = 40  # on the way to one file; the kernel's own
_ROOT = os.stat_result((stat.S_IFDIR | 0o755, *[0] * 9), {"st_mtime_ns": 0, "st_rdev": 0})


class Source(NamedTuple):
    """A layer, and where its tree is."""

    number: int  # 1 is the lowest
    files: str
    info: LayerInfo


class Entry(NamedTuple):
    """Something in the tree, under one of its names."""

    path: str  # from the root on, which is ""; as `os.fsdecode` gives it
    status: os.stat_result
    layer: int  # the number of the layer that it comes from; 0 if none says what it is
    tree: str  # that has it, with this status
    merged: tuple[str, ...] = ()  # of a directory: the trees whose content it shows, the topmost first
    opaque: bool = False  # a directory, that hides what the layers below have there
    described: bool = True  # the layer's archive has an entry for it; else it was made on the way to another
    target: str = ""  # of a symlink

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_whiteout(self) -> bool:
        return is_whiteout(self.status)

    @property
    def absolute(self) -> str:
        """Its path as it is in a container."""
        return f"/{self.path}"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def sources(store: Store, image: LocalImage) -> list[Source]:
    """The image's layers, the lowest first; of one that takes its parents, what it came to on top of them.

    Raises `NotInStore` or `Corrupt`.
    """
    diff_ids = image.config.diff_ids
    found = []
    for number, (diff_id, chain_id) in enumerate(zip(diff_ids, chain_ids(diff_ids), strict=True), 1):
        trees, digest = (store.variants, chain_id) if chain_id in store.variants else (store.layers, diff_id)
        found.append(Source(number, trees.files(digest), trees.info(digest)))
    return found


class View:
    """The tree that these layers come to, the lowest first. With `whiteouts` these are shown, of one layer alone.

    `name` is what messages call it. Its methods raise `OSError`: a layer that is removed meanwhile is not there.
    """

    def __init__(self, name: str, layers: Sequence[Source], *, whiteouts: bool = False) -> None:
        self._name = name
        self._whiteouts = whiteouts
        self._layers: dict[str, Source] = {}  # by their trees; the topmost first, and each once, as in a stack
        for source in reversed(layers):
            self._layers.setdefault(source.files, source)
        self._implied = {files: frozenset(source.info.implied) for files, source in self._layers.items()}
        self._emptied = {files: frozenset(source.info.emptied) for files, source in self._layers.items()}

    @classmethod
    def of(cls, store: Store, image: LocalImage, layer: int | None = None) -> View:
        """An image's tree, or that of one of its layers alone. Raises `NotInStore` or `Corrupt`."""
        found, name = sources(store, image), image.record.reference
        if layer is None:
            return cls(name, found)
        return cls(f"{name}#{layer}", [found[layer - 1]], whiteouts=True)

    def root(self) -> Entry:
        """The directory that all the rest is in."""
        merged: list[str] = []
        for files in self._layers:
            merged.append(files)
            if self._layers[files].info.opaque_root:
                break
        opaque = bool(merged) and self._layers[merged[0]].info.opaque_root
        describing = next((files for files in self._layers if "" not in self._implied[files]), None)
        if describing is None:
            return Entry("", _ROOT, 0, "", tuple(merged), opaque, described=False)
        return Entry("", os.stat(describing), self._layers[describing].number, describing, tuple(merged), opaque)

    def children(self, directory: Entry) -> list[Entry]:
        """What is in the directory, sorted by name."""
        prefix = f"{directory.path}/" if directory.path else ""
        found: dict[str, _Merging] = {}
        for files in directory.merged:
            top = os.open(files, _TREE)
            try:
                place = open_directory(top, prefix)
                try:
                    for name in os.listdir(place):
                        merging = found.setdefault(name, _Merging())
                        if not merging.complete:
                            self._add(merging, files, prefix + name, place, name)
                finally:
                    os.close(place)
            finally:
                os.close(top)
        entries = (merging.entry for _, merging in sorted(found.items()))
        return [entry for entry in entries if entry and (self._whiteouts or not entry.is_whiteout)]

    def _add(self, merging: _Merging, files: str, path: str, place: int, name: str) -> None:
        """What this tree, the next lower one, has under the name."""
        status = os.lstat(name, dir_fd=place)
        number, first = self._layers[files].number, merging.entry
        if not stat.S_ISDIR(status.st_mode):
            merging.complete = True
            if first is None:
                target = os.readlink(name, dir_fd=place) if stat.S_ISLNK(status.st_mode) else ""
                merging.entry = Entry(path, status, number, files, target=target)
            return
        opaque = is_opaque(os.fsdecode(place_of(place, name)))
        described = path not in self._implied[files]
        if first is None:
            merging.entry = Entry(path, status, number, files, (files,), opaque, described)
        else:
            if not first.described and (described or not merging.hidden):
                first = first._replace(status=status, layer=number, tree=files, described=described)
            merging.entry = first if merging.hidden else first._replace(merged=(*first.merged, files))
        merging.hidden = merging.hidden or opaque
        # An opaque directory that no entry describes stays what it was, however little is left in it.
        seen_through = opaque and path in self._emptied[files]
        merging.complete = merging.hidden and (merging.entry.described or (not seen_through and opaque))

    def walk(self, top: Entry, *, depth: int = -1) -> Iterator[Entry]:
        """The entry, and if it is a directory all that is in it, so many directories deep; sorted by name."""
        todo: list[Iterator[Entry]] = [iter((top,))]
        while todo:
            entry = next(todo[-1], None)
            if entry is None:
                todo.pop()
                continue
            yield entry
            if entry.is_directory and (depth < 0 or len(todo) <= depth):
                todo.append(iter(self.children(entry)))

    def among(self, paths: Collection[str]) -> dict[str, Entry]:
        """What is at these paths, by them, as far as it is there; no symlink is followed."""
        ways = {path[:end] for path in paths for end in range(1, len(path)) if path[end] == "/"}
        found = {}
        todo = [self.root()]
        while todo:
            for entry in self.children(todo.pop()):
                if entry.path in paths:
                    found[entry.path] = entry
                if entry.path in ways and entry.is_directory:
                    todo.append(entry)
        return found

    def find(self, path: str, *, follow: bool = False) -> Entry:
        """What is at the path. Symlinks on the way are followed inside the tree, and with `follow`, or where the path
        ends with a slash, one at its end, too. Raises `BadArgument`.
        """
        left = [name for name in path.split("/")[::-1] if name not in ("", ".")]  # to be walked, the next one last
        follow = follow or path.endswith("/")
        way = [self.root()]
        symlinks = 0
        while left:
            name = left.pop()
            if name == "..":
                del way[max(len(way) - 1, 1) :]
                continue
            entry = next((entry for entry in self.children(way[-1]) if entry.name == name), None)
            if entry is None:
                where = f", because {way[-1].absolute!r} has no {name!r}" if symlinks else ""
                raise BadArgument(f"{self._name} has no {path!r}{where}")
            if entry.target and (left or follow):
                symlinks += 1
                if symlinks > _SYMLINKS_LIMIT:
                    raise BadArgument(f"{path!r} leads through too many symlinks in {self._name}")
                if entry.target.startswith("/"):
                    del way[1:]
                left += [name for name in entry.target.split("/")[::-1] if name not in ("", ".")]
            elif left and not entry.is_directory:
                raise BadArgument(f"{self._name} has no {path!r}, because {entry.absolute!r} is not a directory")
            else:
                way.append(entry)
        return way[-1]


class _Merging:
    """What has been found under one name so far."""

    __slots__ = ("complete", "entry", "hidden")

    def __init__(self) -> None:
        self.entry: Entry | None = None
        self.hidden = False  # what lies lower is not shown
        self.complete = False  # nor does it count in any other way


def open_parent(entry: Entry) -> int:
    """A descriptor of the directory that the entry is in, in its tree."""
    top = os.open(entry.tree, _TREE)
    try:
        return open_directory(top, entry.path[: len(entry.path) - len(entry.name)])
    finally:
        os.close(top)


def open_file(entry: Entry) -> int:
    """A descriptor of a regular file, to be read."""
    parent = open_parent(entry)
    try:
        return os.open(entry.name, _FILE, dir_fd=parent)
    finally:
        os.close(parent)

"""Layers applied in order to one tree, by the image-spec's simplest reading: what any stack of them has to look like.

In memory and without any of pullpipe's code. A node remembers which layer made it, for a whiteout speaks of the layers
below its own and the order of a layer's entries must not matter.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tests.support.images import Device, Dir, Entry, Fifo, File, Hardlink, Opaque, Symlink, Whiteout
from tests.support.tree import Node, Snapshot

_SYMLINKS = 40
_DEVICES = {"char": "character device", "block": "block device"}


class Unresolved(Exception):
    """A path or a hard link that leads nowhere."""


@dataclass(eq=False)
class Inode:
    """A file under all its names; a directory has children."""

    type: str
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    data: bytes = b""
    target: bytes | None = None
    device: tuple[int, int] | None = None
    xattrs: tuple[tuple[str, bytes], ...] = ()
    children: dict[bytes, Inode] = field(default_factory=dict)
    layer: int = -1  # which layer made it
    touched: int = -1  # directories: the last layer that made something in it


class Oracle:
    """The tree, layer by layer."""

    def __init__(self) -> None:
        self.root = Inode("directory", 0o755)
        self._number = -1
        self._last: dict[tuple[Inode, bytes], Entry | None] = {}  # what this layer made there last; None: on the way

    def apply(self, entries: Sequence[Entry]) -> None:
        """Applies one layer's entries in this order; hard links whose targets come later wait for the end."""
        self._number += 1
        self._last.clear()
        late = []
        for entry in entries:
            if not self._apply(entry):
                *way, name = _parts(entry.path)
                parent = self._directory(way)
                self._last[parent, name] = entry
                late.append((entry, parent, name))
        dangling = []
        for entry, parent, name in late:
            if not self._counts(entry, parent, name):
                continue
            assert isinstance(entry, Hardlink)
            inode = self._link_target(_parts(entry.target))
            if inode is None:
                dangling.append((entry, parent, name))
                continue
            parent.children[name] = inode
            self._touch(parent)
        if any(self._counts(*link) for link in dangling):
            raise Unresolved

    def snapshot(self) -> Snapshot:
        """In the form that a walk over a real tree has."""
        nodes: Snapshot = {b".": _node(self.root)}
        names: dict[int, list[bytes]] = {}
        todo = [(b"", self.root)]
        while todo:
            prefix, directory = todo.pop()
            for name, inode in directory.children.items():
                path = prefix + name
                nodes[path] = _node(inode)
                if inode.type == "directory":
                    todo.append((path + b"/", inode))
                else:
                    names.setdefault(id(inode), []).append(path)
        for paths in names.values():
            for path in paths:
                nodes[path] = replace(nodes[path], links=frozenset(paths) - {path})
        return nodes

    def _apply(self, entry: Entry) -> bool:
        path = _parts(entry.path)
        if isinstance(entry, Opaque):
            self._hide_below(self._directory(path))
            return True
        if not path:
            assert isinstance(entry, Dir)
            _describe(self.root, entry)
            return True
        parent = self._directory(path[:-1])
        name = path[-1]
        if isinstance(entry, Whiteout):
            self._hide(parent, name)
            return True
        if isinstance(entry, Hardlink):
            inode = self._link_target(_parts(entry.target))
            if inode is None:
                return False
        elif isinstance(entry, Dir):
            old = parent.children.get(name)
            inode = old if old is not None and old.type == "directory" else Inode("directory", layer=self._number)
            _describe(inode, entry)
            inode.touched = self._number
        else:
            inode = _make(entry)
            inode.layer = self._number
        parent.children[name] = inode
        self._last[parent, name] = entry
        self._touch(parent)
        return True

    def _counts(self, entry: Entry, parent: Inode, name: bytes) -> bool:
        """Whether a link that had to wait is still to be made.

        The last of several entries of one name wins, also over such a link; a directory that was needed there is one,
        too. With its directory the link is gone.
        """
        return self._holds(self.root, parent) and self._last[parent, name] is entry

    def _holds(self, directory: Inode, wanted: Inode) -> bool:
        return directory is wanted or any(self._holds(child, wanted) for child in directory.children.values())

    def _touch(self, directory: Inode) -> None:
        directory.touched = self._number

    def _hide(self, parent: Inode, name: bytes) -> None:
        inode = parent.children.get(name)
        if inode is None:
            return
        if inode.type == "directory" and self._is_mine(inode):
            self._hide_below(inode)
        elif not self._is_mine(inode):
            del parent.children[name]

    def _hide_below(self, directory: Inode) -> None:
        for name in list(directory.children):
            self._hide(directory, name)

    def _is_mine(self, inode: Inode) -> bool:
        """Whether this layer made it, or something in it."""
        return self._number in (inode.layer, inode.touched) or any(map(self._is_mine, inode.children.values()))

    def _link_target(self, path: list[bytes]) -> Inode | None:
        try:
            parent = self._directory(path[:-1], make=False)
        except Unresolved:
            return None
        inode = parent.children.get(path[-1])
        if inode is None or inode.type == "directory":
            return None
        if inode.layer != self._number:  # brought up, as by any write in a stack: other names below stay as they are
            inode = replace(inode, layer=self._number)
            parent.children[path[-1]] = inode
            self._touch(parent)
        return inode

    def _directory(self, path: list[bytes], *, make: bool = True) -> Inode:
        """Follows symlinks inside the root; what is missing is made."""
        todo = list(path)
        way = [self.root]
        symlinks = _SYMLINKS
        while todo:
            name = todo.pop(0)
            if name in (b"", b"."):
                continue
            if name == b"..":
                way = way[:-1] or [self.root]
                continue
            inode = way[-1].children.get(name)
            if inode is not None and inode.type == "symlink":
                symlinks -= 1
                if symlinks < 0:
                    raise Unresolved(path)
                assert inode.target is not None
                if inode.target.startswith(b"/"):
                    way = [self.root]
                todo = [*inode.target.split(b"/"), *todo]
                continue
            if inode is None or inode.type != "directory":
                if not make:
                    raise Unresolved(path)
                inode = Inode("directory", 0o755, layer=self._number)
                way[-1].children[name] = inode
                self._last[way[-1], name] = None
                self._touch(way[-1])
            way.append(inode)
        return way[-1]


def flattened(layers: Sequence[Sequence[Entry]]) -> Snapshot | None:
    """What a stack of these layers has to look like; None where the spec leaves that open.

    It does so where a layer means something else when its entries stand in another order: read with the whiteouts
    first, as they stand, and backwards. Raises `Unresolved` when it leads nowhere in each of them.
    """
    readings = [_read(layers, order) for order in (_whiteouts_first, list, _backwards)]
    if all(reading is None for reading in readings):
        raise Unresolved
    first = readings[0]
    return first if all(reading == first for reading in readings[1:]) else None


def _read(layers: Sequence[Sequence[Entry]], order: Callable[[Sequence[Entry]], list[Entry]]) -> Snapshot | None:
    oracle = Oracle()
    try:
        for entries in layers:
            oracle.apply(order(entries))
    except Unresolved:
        return None
    return oracle.snapshot()


def _whiteouts_first(entries: Sequence[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: not isinstance(entry, Whiteout | Opaque))


def _backwards(entries: Sequence[Entry]) -> list[Entry]:
    return list(reversed(entries))


def _parts(path: str | bytes) -> list[bytes]:
    """Clamped to the root by its text, as containerd and umoci do."""
    parts: list[bytes] = []
    for part in (path if isinstance(path, bytes) else path.encode()).split(b"/"):
        if part == b"..":
            parts = parts[:-1]
        elif part not in (b"", b"."):
            parts.append(part)
    return parts


def _describe(inode: Inode, entry: Dir) -> None:
    inode.mode, inode.uid, inode.gid, inode.mtime_ns = entry.mode, entry.uid, entry.gid, entry.mtime_ns
    inode.xattrs = tuple(sorted(entry.xattrs.items()))


def _make(entry: File | Symlink | Device | Fifo) -> Inode:
    common = {
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
        "xattrs": tuple(sorted(entry.xattrs.items())),
    }
    if isinstance(entry, File):
        return Inode("file", entry.mode, data=entry.data, **common)  # type: ignore[arg-type]
    if isinstance(entry, Symlink):
        target = entry.target if isinstance(entry.target, bytes) else entry.target.encode()
        return Inode("symlink", 0o777, target=target, **common)  # type: ignore[arg-type]
    if isinstance(entry, Device):
        return Inode(_DEVICES[entry.kind], entry.mode, device=(entry.major, entry.minor), **common)  # type: ignore[arg-type]
    return Inode("fifo", entry.mode, **common)  # type: ignore[arg-type]


def _node(inode: Inode) -> Node:
    is_file = inode.type == "file"
    return Node(
        type=inode.type,
        mode=stat.S_IMODE(inode.mode),
        uid=inode.uid,
        gid=inode.gid,
        mtime_ns=inode.mtime_ns,
        size=len(inode.data) if is_file else 0,
        sha256=hashlib.sha256(inode.data).hexdigest() if is_file else None,
        target=inode.target,
        device=inode.device,
        xattrs=inode.xattrs,
    )

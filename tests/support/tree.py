"""What a directory tree looks like, for comparing two of them.

Deliberately independent of pullpipe: an extractor's mistake must not hide in the code that looks for it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

Snapshot = dict[bytes, "Node"]

# Their bookkeeping: overlayfs writes these, and hides them in a mounted stack.
_IGNORED_XATTRS = "trusted.overlay."
_MAX_PATH = 4096


def nest(top: Path, name: str, depth: int) -> int:
    """Makes so many directories of this name, each in the one before, however long that path is. The last one, open."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    return here


@dataclass(frozen=True)
class Node:
    """One inode under one of its names. Directories have no size: it depends on the file system."""

    type: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    sha256: str | None
    target: bytes | None
    device: tuple[int, int] | None
    xattrs: tuple[tuple[str, bytes], ...]
    links: frozenset[bytes] = frozenset()
    """The other paths in the tree that are the same inode."""


def snapshot(root: Path) -> Snapshot:
    """Every path under `root`, relative to it, as bytes; `root` itself is `b"."`.

    Nothing is followed, and a path longer than the kernel's limit is found too.
    """
    nodes: Snapshot = {}
    names: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    with _opened(root, b".") as top:
        _record(nodes, names, b".", os.stat(top), f"/proc/self/fd/{top}")
    pending = [b"."]
    while pending:
        directory = pending.pop()
        with _opened(root, directory) as handle, os.scandir(handle) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                path = name if directory == b"." else directory + b"/" + name
                status = os.lstat(f"/proc/self/fd/{handle}/{entry.name}")
                _record(nodes, names, path, status, f"/proc/self/fd/{handle}/{entry.name}")
                if stat.S_ISDIR(status.st_mode):
                    pending.append(path)
    for paths in names.values():
        for path in paths:
            nodes[path] = replace(nodes[path], links=frozenset(paths) - {path})
    return nodes


def difference(a: Snapshot, b: Snapshot) -> list[str]:
    """What differs between two snapshots, one readable line for each path and attribute; empty if nothing."""
    lines: list[str] = []
    for path in sorted(a.keys() | b.keys()):
        shown = path.decode("utf-8", "backslashreplace")
        if path not in b:
            lines.append(f"{shown}: only in the first ({a[path].type})")
        elif path not in a:
            lines.append(f"{shown}: only in the second ({b[path].type})")
        else:
            for attribute in fields(Node):
                one, other = (getattr(node, attribute.name) for node in (a[path], b[path]))
                if one != other:
                    lines.append(
                        f"{shown}: {attribute.name} {_show(attribute.name, one)} != {_show(attribute.name, other)}"
                    )
    return lines


def _record(
    nodes: Snapshot,
    names: dict[tuple[int, int], list[bytes]],
    path: bytes,
    status: os.stat_result,
    place: str,
) -> None:
    nodes[path] = node_at(status, place, root=path == b".")
    if not stat.S_ISDIR(status.st_mode):
        names[status.st_dev, status.st_ino].append(path)


def node_at(status: os.stat_result, place: str, *, root: bool = False) -> Node:
    """What is at the path `place`, its links apart; `root` if that is a link to it."""
    kind = stat.S_IFMT(status.st_mode)
    regular, link = kind == stat.S_IFREG, kind == stat.S_IFLNK
    is_device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    return Node(
        type=_TYPES[kind],
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=status.st_size if regular else 0,
        sha256=_content(place) if regular else None,
        target=os.readlink(os.fsencode(place)) if link else None,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else None,
        # The root's own place is a link to it, which has to be followed.
        xattrs=_xattrs(place, follow=root),
    )


def _xattrs(place: str, *, follow: bool) -> tuple[tuple[str, bytes], ...]:
    names = (name for name in os.listxattr(place, follow_symlinks=follow) if not name.startswith(_IGNORED_XATTRS))
    return tuple((name, os.getxattr(place, name, follow_symlinks=follow)) for name in sorted(names))


def _content(place: str) -> str:
    with open(place, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened(root: Path, path: bytes) -> Iterator[int]:
    """A descriptor of the directory `path` under `root`, opened in steps that the kernel's limit allows."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        parts = path.split(b"/")
        steps = [path] if len(path) < _MAX_PATH else parts
        for step in steps:
            below = os.open(step, flags, dir_fd=handle)
            os.close(handle)
            handle = below
        yield handle
    finally:
        os.close(handle)


def _show(attribute: str, value: object) -> str:
    return f"{value:04o}" if attribute == "mode" else str(value)


_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}

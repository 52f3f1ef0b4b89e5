"""Whether two trees are the same: what a user of an image can see of its files."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

Tree = dict[str, tuple[object, ...]]


def read(root: Path) -> Tree:
    """Each path with its type, mode, owner, time and content. Times of directories do not count: few agree on them."""
    found: Tree = {}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            seen: tuple[object, ...] = (oct(status.st_mode), status.st_uid, status.st_gid)
            if stat.S_ISREG(status.st_mode):
                seen += (status.st_size, int(status.st_mtime), _sha256(path))
            elif stat.S_ISLNK(status.st_mode):
                seen += (os.readlink(path),)
            found[os.path.relpath(path, root)] = seen
    return found


def difference(ours: Tree, theirs: Tree) -> str:
    """How many paths differ, and one of them; empty when none does."""
    paths = sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))
    if not paths:
        return ""
    return f"{len(paths)} paths differ, such as {paths[0]}: {ours.get(paths[0])} / {theirs.get(paths[0])}"


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""What stands below a directory of the store by its digest, as ALGORITHM/HEX; and what else, which is a stray."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from store.digest import Digest
from store.errors import Corrupt, InvalidDigest


class Listing(NamedTuple):
    """Both in the order of their names."""

    digests: list[Digest]
    strays: list[str]  # paths


def listed(directory: str, *, trees: bool) -> Listing:
    """Of files, or of directories if they are `trees`. Whatever else has such a name is a stray. Raises `OSError`."""
    found = Listing([], [])
    for algorithm in entries(directory):
        if not algorithm.is_dir(follow_symlinks=False):
            found.strays.append(algorithm.path)
            continue
        for entry in entries(algorithm.path):
            try:
                digest = Digest.parse(f"{algorithm.name}:{entry.name}")
            except InvalidDigest:
                found.strays.append(entry.path)
                continue
            if entry.is_dir(follow_symlinks=False) if trees else entry.is_file(follow_symlinks=False):
                found.digests.append(digest)
            else:
                found.strays.append(entry.path)
    return found


def status_of(path: str, *, tree: bool) -> os.stat_result | None:
    """Of the blob, or tree, at `path`; None when there is none, whatever else `listed` takes for a stray there. Raises
    `OSError` when that cannot be told."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if (stat.S_ISDIR if tree else stat.S_ISREG)(status.st_mode) else None


def in_the_way(path: str) -> Corrupt:
    """What to raise where a stray stands and a blob or a tree is to go."""
    return Corrupt(f"{path} is in the way, and the store has not made it; move it elsewhere, and try again")


def entries(directory: str) -> list[os.DirEntry[str]]:
    """Of the directory, sorted by name. Raises `OSError`."""
    with os.scandir(directory) as found:
        return sorted(found, key=lambda entry: entry.name)

"""What stands below a directory of the store by its digest, as ALGORITHM/HEX; and what else, which is a stray."""

from __future__ import annotations

import os
from typing import NamedTuple

from store.digest import Digest
from store.errors import InvalidDigest


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


def entries(directory: str) -> list[os.DirEntry[str]]:
    """Of the directory, sorted by name. Raises `OSError`."""
    with os.scandir(directory) as found:
        return sorted(found, key=lambda entry: entry.name)

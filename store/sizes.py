"""What is at a path comes to so many bytes: however deep it is, and whoever changes it meanwhile.

A container may nest directories deeper than a path can name or descriptors last, and swap them for symlinks while they
are looked at. So each is entered by its name from the one that it is in, and left by `..`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def disk_usage(path: str) -> int:
    """Bytes on disk of what is at `path`, each file in there counted once; what vanishes counts nothing."""
    return sum(status.st_blocks for status in _statuses(path)) * 512


def content_size(path: str) -> int:
    """Bytes of all regular files there, likewise."""
    return sum(status.st_size for status in _statuses(path) if stat.S_ISREG(status.st_mode))


def _statuses(path: str) -> Iterator[os.stat_result]:
    """Of what is at the path, and of all that is in it. Raises `OSError`."""
    seen: set[tuple[int, int]] = set()  # of files with several names; all would be too many
    with suppress(FileNotFoundError, NotADirectoryError):
        status = os.lstat(path)
        yield status
        for directory, below in _directories(os.path.abspath(path)) if stat.S_ISDIR(status.st_mode) else ():
            with suppress(FileNotFoundError), os.scandir(directory) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        below.append(entry.name)
                    elif status.st_nlink > 1:
                        if (status.st_dev, status.st_ino) in seen:
                            continue
                        seen.add((status.st_dev, status.st_ino))
                    yield status


class _Level(NamedTuple):
    """A directory on the way down."""

    name: str
    status: os.stat_result
    below: list[str]  # the directories in it that are still to be entered


def _directories(top: str) -> Iterator[tuple[int, list[str]]]:
    """Each directory, open until the next, and a list for the names of those in it."""
    here = os.open(top, _DIRECTORY)
    try:
        way = [_Level(top, os.fstat(here), [])]
        yield here, way[0].below
        while way[-1].below or len(way) > 1:
            if way[-1].below:
                name = way[-1].below.pop()
                with suppress(FileNotFoundError, NotADirectoryError):
                    here = _instead_of(here, name)
                    way.append(_Level(name, os.fstat(here), []))
                    yield here, way[-1].below
                continue
            way.pop()
            here = _instead_of(here, "..", os.O_PATH | os.O_CLOEXEC)  # which may be where we cannot read
            if os.path.samestat(os.fstat(here), way[-1].status):
                continue
            # What we were in has been moved: down again from the top, as far as that leads where it led.
            here = _instead_of(here, top)
            lost, way[1:] = way[1:], []
            with suppress(FileNotFoundError, NotADirectoryError):
                for level in lost:
                    here = _instead_of(here, level.name)
                    status = os.fstat(here)
                    same = os.path.samestat(status, level.status)
                    way.append(level if same else _Level(level.name, status, []))
                    if not same:
                        break
    finally:
        os.close(here)


def _instead_of(here: int, name: str, flags: int = _DIRECTORY) -> int:
    """Opens the directory of that name in the open one, and closes that."""
    there = os.open(name, flags, dir_fd=here)
    os.close(here)
    return there

"""How two trees differ: what one of them adds to the other, changes in it, and deletes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from pullpipe.local import LocalImage
from pullpipe.look.view import Entry, View, open_parent, sources
from store import Store
from store.compare import attributes_of, place_of, same_content

_OVERLAY = ("trusted.overlay.", "user.overlay.")


class Change(NamedTuple):
    """One path at which they differ. What is in a directory that is deleted is not told."""

    kind: Literal["A", "C", "D"]  # added, changed, deleted
    path: str  # absolute
    what: tuple[str, ...]  # of what is changed: type, content, target, device, mode, owner, time, attributes
    before: Entry | None
    after: Entry | None


def of_layer(store: Store, image: LocalImage, number: int) -> Iterator[Change]:
    """What the image's layer of this number does to those below it. Raises `NotInStore` or `Corrupt`, and `OSError`."""
    found, name = sources(store, image), image.record.reference
    return changes(View(name, found[: number - 1]), View(name, found[:number]))


def changes(before: View, after: View) -> Iterator[Change]:
    """From one tree to another, in the order of the paths. What both have of the same layers is not even read."""
    todo: list[Iterator[tuple[Entry | None, Entry | None]]] = [iter([(before.root(), after.root())])]
    while todo:
        old, new = next(todo[-1], (None, None))
        if new is None:
            if old is None:
                todo.pop()
            else:
                yield Change("D", old.absolute, (), old, None)
            continue
        if old is None:
            yield Change("A", new.absolute, (), None, new)
        elif what := tuple(_differing(old, new)):
            yield Change("C", new.absolute, what, old, new)
        if new.is_directory and (old is None or old.merged != new.merged):
            lower = before.children(old) if old is not None and old.is_directory else []
            todo.append(_pairs(lower, after.children(new)))


def _pairs(old: Sequence[Entry], new: Sequence[Entry]) -> Iterator[tuple[Entry | None, Entry | None]]:
    """By their names; sorted."""
    left, right = ({entry.name: entry for entry in entries} for entries in (old, new))
    return ((left.get(name), right.get(name)) for name in sorted(left.keys() | right.keys()))


def _differing(old: Entry, new: Entry) -> Iterator[str]:
    if (old.tree, old.path) == (new.tree, new.path) and old.tree:
        return
    mine, other = old.status, new.status
    if stat.S_IFMT(mine.st_mode) != stat.S_IFMT(other.st_mode):
        yield "type"
    elif stat.S_ISREG(mine.st_mode):
        if mine.st_size != other.st_size or not _same_content(old, new):
            yield "content"
    elif old.target != new.target:
        yield "target"
    elif mine.st_rdev != other.st_rdev:
        yield "device"
    if stat.S_IMODE(mine.st_mode) != stat.S_IMODE(other.st_mode):
        yield "mode"
    if (mine.st_uid, mine.st_gid) != (other.st_uid, other.st_gid):
        yield "owner"
    if mine.st_mtime_ns != other.st_mtime_ns:
        yield "time"
    if _attributes(old) != _attributes(new):
        yield "attributes"


def _same_content(old: Entry, new: Entry) -> bool:
    here, there = open_parent(old), open_parent(new)
    try:
        return same_content(here, there, new.name)
    finally:
        os.close(here)
        os.close(there)


def _attributes(entry: Entry) -> dict[str, bytes]:
    """The extended ones, without overlayfs's own."""
    if not entry.tree:
        return {}
    parent = open_parent(entry)
    try:
        found = attributes_of(place_of(parent, entry.name or "."))
    finally:
        os.close(parent)
    return {name: value for name, value in found.items() if not name.startswith(_OVERLAY)}

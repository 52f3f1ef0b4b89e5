"""What `pullpipe.look` sees of an image, as a snapshot; and what it tells of changes, held against two snapshots."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace

from pullpipe.local import LocalImage
from pullpipe.look.changes import changes
from pullpipe.look.view import Entry, View, open_parent, sources
from store import Store
from tests.support.tree import Node, Snapshot, node_at


def views(store: Store, image: LocalImage) -> list[Snapshot]:
    """Of the lowest layer, of the lowest two, and so on. What changes from each to the next is checked."""
    layers = sources(store, image)
    seen = [View("", layers[:count]) for count in range(len(layers) + 1)]
    found = [seen_tree(view) for view in seen]
    for number in range(len(layers)):
        _check(seen[number], seen[number + 1], found[number], found[number + 1])
    return found[1:]


def seen_tree(view: View) -> Snapshot:
    """All of it, with contents and attributes."""
    nodes: Snapshot = {}
    names: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for entry in view.walk(view.root()):
        path = os.fsencode(entry.path) or b"."
        nodes[path] = _node(entry)
        if not entry.is_directory:
            names[entry.status.st_dev, entry.status.st_ino].append(path)
    for paths in names.values():
        for path in paths:
            nodes[path] = replace(nodes[path], links=frozenset(paths) - {path})
    return nodes


def _node(entry: Entry) -> Node:
    if not entry.tree:  # a root that no layer describes
        return Node("directory", 0o755, 0, 0, 0, 0, None, None, None, ())
    parent = open_parent(entry)
    try:
        return node_at(entry.status, f"/proc/self/fd/{parent}/{entry.name}")
    finally:
        os.close(parent)


def _check(before: View, after: View, old: Snapshot, new: Snapshot) -> None:
    """What is told is what differs, and nothing else."""
    told = {os.fsencode(change.path[1:]) or b".": change.kind for change in changes(before, after)}
    deleted = {path for path, kind in told.items() if kind == "D" or new[path].type != "directory"}
    for path in old.keys() | new.keys():
        gone_with = any(path.startswith(top + b"/") for top in deleted)
        if path not in new:
            assert told.get(path) == "D" or gone_with, path
        elif path not in old:
            assert told.get(path) == "A", path
        else:
            same = replace(old[path], links=frozenset()) == replace(new[path], links=frozenset())
            assert told.get(path) == (None if same else "C"), path

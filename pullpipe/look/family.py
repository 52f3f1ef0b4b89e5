"""Which images of a store are built on which: a tree by the layers that they begin with, the lowest first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from pullpipe import local
from pullpipe.local import LocalImage
from pullpipe.oci import chain_ids
from store import Digest, Store, StoreError


class Member(NamedTuple):
    """Layers that lie on each other wherever they occur, and the images that end with the last of them."""

    images: tuple[str, ...]  # references; none where several images go on from here, each in its way
    layers: tuple[tuple[int, Digest, int], ...]  # (number, diffID, unpacked bytes), the lowest first
    own: int  # unpacked bytes of all layers of these images that no other image has
    shared: int  # the same, of those that others have, too
    children: tuple[Member, ...]  # built on these


def family(store: Store, wanted: Collection[str] = ()) -> list[Member]:
    """The store's images; or only those that share a layer with the images of these names, and these."""
    everybody = images = list(local.readable(store))
    if wanted:
        known = {diff_id for one in images if one.record.reference in wanted for diff_id in one.config.diff_ids}
        images = [one for one in images if one.record.reference in wanted or not known.isdisjoint(one.config.diff_ids)]
    return _Tree(store, images, everybody).members()


class _Tree:
    def __init__(self, store: Store, images: Sequence[LocalImage], everybody: Sequence[LocalImage]) -> None:
        self._store = store
        self._ends: dict[Digest | None, list[LocalImage]] = {}  # by the chainID of all their layers
        self._above: dict[Digest | None, dict[Digest, Digest]] = {}  # chainIDs on top of this one, and their diffIDs
        for image in sorted(images, key=lambda one: one.record.reference):
            below: Digest | None = None
            for diff_id, chain_id in zip(image.config.diff_ids, chain_ids(image.config.diff_ids), strict=True):
                self._above.setdefault(below, {})[chain_id] = diff_id
                below = chain_id
            self._ends.setdefault(below, []).append(image)
        # Of images that are the same layer by layer, each is no other.
        chains = {one.chain_id: set(one.config.diff_ids) for one in everybody}
        self._users = Counter(diff_id for diff_ids in chains.values() for diff_id in diff_ids)
        self._sizes: dict[Digest, int] = {}

    def members(self) -> list[Member]:
        empty = [self._member(None, [], [])] if None in self._ends else []
        return empty + self._children(None, 0)

    def _children(self, chain_id: Digest | None, height: int) -> list[Member]:
        found = []
        todo = list(self._above.get(chain_id, {}).items())
        for top, diff_id in todo:
            layers = [(height + 1, diff_id, self._size(diff_id))]
            while top not in self._ends and len(self._above[top]) == 1:
                ((top, diff_id),) = self._above[top].items()
                layers.append((height + len(layers) + 1, diff_id, self._size(diff_id)))
            found.append(self._member(top, layers, self._children(top, height + len(layers))))
        return sorted(found, key=lambda member: _names(member)[:1])

    def _member(self, chain_id: Digest | None, layers: list[tuple[int, Digest, int]], children: list[Member]) -> Member:
        images = self._ends.get(chain_id, [])
        diff_ids = set(images[0].config.diff_ids) if images else {diff_id for _, diff_id, _ in layers}
        own = sum(self._size(diff_id) for diff_id in diff_ids if self._users[diff_id] == 1)
        shared = sum(self._size(diff_id) for diff_id in diff_ids if self._users[diff_id] > 1)
        return Member(tuple(one.record.reference for one in images), tuple(layers), own, shared, tuple(children))

    def _size(self, diff_id: Digest) -> int:
        if diff_id not in self._sizes:
            try:
                self._sizes[diff_id] = self._store.layers.info(diff_id).size
            except StoreError:  # `verify` tells of it
                self._sizes[diff_id] = 0
        return self._sizes[diff_id]


def _names(member: Member) -> list[str]:
    """Of it, or of what is built on it."""
    return list(member.images) or sorted(name for child in member.children for name in _names(child))

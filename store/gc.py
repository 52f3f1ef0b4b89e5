"""Removing what no record needs: mark from the records, sweep the rest.

The store does not know what a manifest means, so the marks come from the caller: everything that an image record
or a container leads to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from store.digest import Digest
from store.removal import removing
from store.root import Store


class Marks(NamedTuple):
    """What must stay."""

    blobs: set[Digest]
    layers: set[Digest]
    variants: set[Digest]
    stacks: set[Digest]


class Unused(NamedTuple):
    """What is not marked."""

    blobs: list[Digest]
    layers: list[Digest]
    variants: list[Digest]
    stacks: list[Digest]


class Swept(NamedTuple):
    """What a sweep removed."""

    blobs: int
    layers: int  # variants among them
    blob_bytes: int


def unused(store: Store, marks: Marks) -> Unused:
    """What a sweep would remove. The caller holds the store, shared at least, since before the marks."""
    leased = store.leases.current()
    return Unused(
        [digest for digest in store.blobs if digest not in marks.blobs and digest not in leased],
        [diff_id for diff_id in store.layers if diff_id not in marks.layers and diff_id not in leased],
        [chain_id for chain_id in store.variants if chain_id not in marks.variants and chain_id not in leased],
        [chain_id for chain_id in store.stacks if chain_id not in marks.stacks and chain_id not in leased],
    )


def sweep(store: Store, mark: Callable[[], Marks]) -> Swept:
    """Removes every blob, layer, variant and stack that is not marked, and those first that lead to others.

    It has the store exclusively from before it asks for the marks until all of that is out of sight: no pull is between
    publishing a layer and recording its image, and no runner between reading a record and stacking its layers. What a
    pull or a push has so far is not held by this lock, but by `Store.leases`. The layers' files, which may be many, are
    removed when others go on.
    """
    with removing() as doomed, store.exclusive():
        marks = mark()
        store.leases.forget()
        dead = unused(store, marks)
        doomed.extend(store.stacks.take_away(chain_id) for chain_id in dead.stacks)
        doomed.extend(store.variants.take_away(chain_id) for chain_id in dead.variants)
        doomed.extend(store.layers.take_away(diff_id) for diff_id in dead.layers)
        size = sum(store.blobs.remove(digest) for digest in dead.blobs)
    store.reserve.keep()
    return Swept(len(dead.blobs), len(dead.layers) + len(dead.variants), size)

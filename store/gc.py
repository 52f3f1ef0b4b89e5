"""Removing what no record needs: mark from the records, sweep the rest.

The store does not know what a manifest means, so the marks come from the caller: everything that an image record
or a container leads to.
"""

from __future__ import annotations

from typing import NamedTuple

from store.digest import Digest
from store.root import Store


class Marks(NamedTuple):
    """What must stay."""

    blobs: set[Digest]
    layers: set[Digest]
    variants: set[Digest]
    stacks: set[Digest]


class Swept(NamedTuple):
    """What a sweep removed."""

    blobs: int
    layers: int  # variants among them
    blob_bytes: int


def sweep(store: Store, marks: Marks) -> Swept:
    """Removes every blob, layer, variant and stack that is not marked, and those first that lead to others.

    The caller holds the store exclusively (`Store.exclusive`) since before it collected the marks: no pull is between
    publishing a layer and recording its image, and no runner between reading a record and stacking its layers. What a
    push has so far is not held by a lock, but by `Store.leases`.
    """
    for chain_id in [chain_id for chain_id in store.stacks if chain_id not in marks.stacks]:
        store.stacks.remove(chain_id)
    dead_variants = [chain_id for chain_id in store.variants if chain_id not in marks.variants]
    for chain_id in dead_variants:
        store.variants.remove(chain_id)
    dead_layers = [diff_id for diff_id in store.layers if diff_id not in marks.layers]
    for diff_id in dead_layers:
        store.layers.remove(diff_id)
    leased = store.leases.current()
    dead_blobs = [digest for digest in store.blobs if digest not in marks.blobs and digest not in leased]
    size = sum(store.blobs.remove(digest) for digest in dead_blobs)
    return Swept(len(dead_blobs), len(dead_layers) + len(dead_variants), size)

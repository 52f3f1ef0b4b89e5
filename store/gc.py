"""Removing what no record needs: mark from the records, sweep the rest.

The store does not know what a manifest means, so the marks come from the caller: every blob and layer that an
image record or a container leads to.
"""

from __future__ import annotations

from typing import NamedTuple

from store.digest import Digest
from store.root import Store


class Swept(NamedTuple):
    """What a sweep removed."""

    blobs: int
    layers: int
    blob_bytes: int


def sweep(store: Store, *, blobs: set[Digest], layers: set[Digest]) -> Swept:
    """Removes every blob and layer that is not among these.

    The caller holds the store exclusively (`Store.exclusive`) since before it collected the marks: no pull is between
    publishing a layer and recording its image, and no runner between reading a record and stacking its layers.
    """
    dead_blobs = [digest for digest in store.blobs if digest not in blobs]
    dead_layers = [diff_id for diff_id in store.layers if diff_id not in layers]
    size = sum(store.blobs.remove(digest) for digest in dead_blobs)
    for diff_id in dead_layers:
        store.layers.remove(diff_id)
    return Swept(len(dead_blobs), len(dead_layers), size)

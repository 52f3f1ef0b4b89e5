"""Blobs of the store as streams, proven while they are read."""

from __future__ import annotations

from collections.abc import Iterator

from pullpipe import local
from pullpipe.errors import NotFound, VerificationError
from store import Digest, Store
from store.digest import new_hash

PIECE = 1 << 20  # bytes


def proven(store: Store, blob: Digest, reference: str) -> Iterator[bytes]:
    """The blob's bytes; `reference` is an image that it belongs to.

    Raises `NotFound`, and behind the last piece `VerificationError` when they do not have the blob's digest.
    """
    blob_hash = new_hash(blob.algorithm)
    try:
        file = open(store.blobs.path(blob), "rb", 0)
    except FileNotFoundError as error:
        raise NotFound(local.not_kept(store, blob, reference)) from error
    with file:
        while piece := file.read(PIECE):
            blob_hash.update(piece)
            yield piece
    if blob_hash.hexdigest() != blob.hex:
        raise VerificationError(local.damaged(blob, reference))

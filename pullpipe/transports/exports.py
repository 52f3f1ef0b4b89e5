"""What an image comes to outside the store: documents and blobs as they are, so that every digest stays."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from pullpipe.errors import InvalidDocument
from pullpipe.local import LocalImage
from pullpipe.oci import DOCUMENT_LIMIT, Index, parse_document
from store import Digest, Store, StoreError

# Layers that may not be handed on; their descriptors say where they are to be had (image-spec, layer.md).
_NOT_DISTRIBUTED = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)


class Export(NamedTuple):
    """The index that an image was chosen from, if all that it leads to is in the store; else its manifest."""

    reference: str  # the image's name
    digest: Digest
    media_type: str
    size: int  # bytes
    documents: dict[Digest, str]  # with their media types; what a document lists stands before it, so `digest` is last
    blobs: list[Digest]  # that those need
    foreign: frozenset[Digest]  # of these blobs, the ones that are to be had elsewhere, and may not be handed on


def export(store: Store, image: LocalImage) -> Export:
    """What there is of the image. Of the blobs of a manifest, some may not be in the store."""
    record = image.record
    if record.resolved != record.manifest and (whole := _index(store, image)):
        return whole
    foreign = [layer.digest for layer in image.manifest.layers if _is_foreign(layer.media_type, layer.urls)]
    return Export(
        record.reference,
        record.manifest,
        record.media_type,
        record.size,
        {record.manifest: record.media_type},
        sorted({image.manifest.config.digest, *(layer.digest for layer in image.manifest.layers)}),
        frozenset(foreign),
    )


def _index(store: Store, image: LocalImage) -> Export | None:
    """The image's index; None when not all that it leads to is in the store."""
    digest = image.record.resolved
    documents: dict[Digest, str] = {}
    blobs: dict[Digest, bool] = {}
    try:
        data = store.blobs.read(digest)
        index = parse_document(data)
        _follow(store, digest, index.media_type, documents, blobs)
    except (StoreError, InvalidDocument, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(index, Index) or not all(blob in store.blobs for blob in blobs):
        return None
    foreign = frozenset(blob for blob, is_foreign in blobs.items() if is_foreign)
    reference = image.record.reference
    return Export(reference, digest, index.media_type, len(data), documents, sorted(blobs), foreign)


def _follow(
    store: Store, digest: Digest, media_type: str, documents: dict[Digest, str], blobs: dict[Digest, bool]
) -> None:
    """Adds a document, and before it all that it leads to: also things that are no images, as attestations.

    Of a blob it is noted whether it is foreign. Raises `StoreError`, and what JSON of another form leads to.
    """
    if digest in documents:
        return
    if (store.blobs.size(digest) or 0) > DOCUMENT_LIMIT:
        raise InvalidDocument(f"{digest} is too large for a manifest")
    fields: dict[str, Any] = json.loads(store.blobs.read(digest))
    for entry in fields.get("manifests") or ():
        _follow(store, Digest.parse(entry["digest"]), str(entry.get("mediaType", "")), documents, blobs)
    config = [fields["config"]] if fields.get("config") else []
    for entry in (*config, *(fields.get("layers") or ())):
        blobs[Digest.parse(entry["digest"])] = _is_foreign(str(entry.get("mediaType", "")), entry.get("urls"))
    documents[digest] = fields.get("mediaType") or media_type


def _is_foreign(media_type: str, urls: object) -> bool:
    return bool(urls) and media_type.startswith(_NOT_DISTRIBUTED)

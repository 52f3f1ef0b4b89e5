"""What is known of an image's layers, and of the steps that it was made in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from pullpipe import local
from pullpipe.local import LocalImage
from store import Digest, LayerInfo, Store, StoreError


class LayerFacts(NamedTuple):
    """Of one layer. What only its unpacked tree tells is None where that is missing or damaged."""

    number: int  # 1 is the lowest
    digest: Digest  # of the blob
    diff_id: Digest
    media_type: str
    size: int  # bytes, compressed
    unpacked_size: int | None  # bytes of its files' content
    entries: int | None  # of its archive, whiteouts included
    whiteouts: int | None  # names that it hides, opaque directories not counted
    shared_with: tuple[str, ...]  # other images that have it, too


class Step(NamedTuple):
    """One step of an image's history; what its author's tool has not told is empty."""

    created: str  # RFC 3339, most often
    created_by: str
    author: str
    comment: str
    layer: LayerFacts | None  # None for a step that changed nothing but the image's config


def layers(store: Store, image: LocalImage) -> list[LayerFacts]:
    """Of each layer of the image, the lowest first."""
    users: dict[Digest, list[str]] = {}
    for other in local.readable(store):
        for diff_id in set(other.config.diff_ids):
            users.setdefault(diff_id, []).append(other.record.reference)
    found = []
    for number, (blob, diff_id) in enumerate(image.layers, 1):
        info = _info(store, diff_id)
        found.append(
            LayerFacts(
                number,
                blob.digest,
                diff_id,
                blob.media_type,
                blob.size,
                info.size if info else None,
                info.entries if info else None,
                info.whiteouts if info else None,
                tuple(sorted(name for name in users.get(diff_id, ()) if name != image.record.reference)),
            )
        )
    return found


def history(store: Store, image: LocalImage) -> list[Step]:
    """The steps that the image was made in, the first one first (image-spec, config.md, `history`).

    It is the author's word, and nothing is built on it: layers that it leaves out stand at its end.
    """
    left = iter(layers(store, image))
    steps = []
    for fields in _told(json.loads(store.blobs.read(image.manifest.config.digest))):
        layer = None if fields.get("empty_layer") is True else next(left, None)
        created, created_by, author, comment = (
            text if isinstance(text, str) else ""
            for text in map(fields.get, ("created", "created_by", "author", "comment"))
        )
        steps.append(Step(created, created_by, author, comment, layer))
    return steps + [Step("", "", "", "", layer) for layer in left]


def _told(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    told = config.get("history")
    return (fields for fields in (told if isinstance(told, list) else ()) if isinstance(fields, dict))


def _info(store: Store, diff_id: Digest) -> LayerInfo | None:
    try:
        return store.layers.info(diff_id)
    except StoreError:
        return None  # `verify` tells of it

"""Images of the store as a Docker archive, for `docker load` and all else that reads those.

    manifest.json         [{"Config": "<id>.json", "RepoTags": ["docker.io/library/alpine:3.20"], "Layers": […]}]
    <id>.json             the config; its digest is the image's id
    <diffID>/layer.tar    a layer, uncompressed

The form keeps configs and diffIDs, but neither manifests nor compressed layers, and no names with digests.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from pullpipe import local
from pullpipe.errors import BadArgument, LayerError, VerificationError
from pullpipe.local import LocalImage
from pullpipe.pipe.inflate import inflate
from pullpipe.reference import Reference
from pullpipe.transports.outputs import Tar
from pullpipe.transports.stored import PIECE, proven
from store import Digest, Store
from store.digest import new_hash


class Image(NamedTuple):
    """One image of the archive."""

    image: LocalImage
    tags: list[str]


class _Layer(NamedTuple):
    diff_id: Digest
    blob: Digest  # of any compression
    reference: str  # of an image that it belongs to


def plan(images: Sequence[LocalImage]) -> list[Image]:
    """The images with their tags; two names of one image are one. Raises `BadArgument` when a tag is two images'."""
    found: dict[Digest, Image] = {}
    owners: dict[str, Digest] = {}
    for image in images:
        config = image.manifest.config.digest
        tags = found.setdefault(config, Image(image, [])).tags
        reference = Reference.parse(image.record.reference)._replace(digest=None)
        if reference.tag is None:
            continue
        if owners.setdefault(str(reference), config) != config:
            raise BadArgument(f"a Docker archive cannot have two images called {reference}; save them one by one")
        if str(reference) not in tags:
            tags.append(str(reference))
    return list(found.values())


def write_archive(store: Store, images: Sequence[Image], archive: Tar) -> None:
    """Writes the archive's files. Raises `NotFound`, or `VerificationError` when a blob of the store is damaged."""
    layers: dict[Digest, _Layer] = {}
    for image, _ in images:
        for descriptor, diff_id in image.layers:
            blob = local.kept(store, image, descriptor, diff_id).digest
            layers[diff_id] = _Layer(diff_id, blob, image.record.reference)
    for layer in layers.values():
        _add_layer(store, layer, archive)
    manifest = []
    for image, tags in images:
        config = image.manifest.config
        archive.add(f"{config.digest.hex}.json", config.size, proven(store, config.digest, image.record.reference))
        names = [_name(diff_id) for diff_id in image.config.diff_ids]
        manifest.append({"Config": f"{config.digest.hex}.json", "RepoTags": tags or None, "Layers": names})
    document = json.dumps(manifest).encode()
    archive.add("manifest.json", len(document), [document])


def _add_layer(store: Store, layer: _Layer, archive: Tar) -> None:
    """By way of a temporary file: the archive wants to know first how large it is."""
    blob = proven(store, layer.blob, layer.reference)
    if layer.blob == layer.diff_id:
        archive.add(_name(layer.diff_id), store.blobs.size(layer.blob) or 0, blob)
        return
    diff_hash = new_hash(layer.diff_id.algorithm)
    with tempfile.TemporaryFile(dir=store.root) as plain:
        try:
            for piece in inflate(lambda: next(blob, b"")):
                diff_hash.update(piece)
                plain.write(piece)
        except LayerError as error:  # it was whole when it was pulled
            raise VerificationError(local.damaged(layer.blob, layer.reference)) from error
        if diff_hash.hexdigest() != layer.diff_id.hex:
            raise VerificationError(local.damaged(layer.blob, layer.reference))
        size = plain.tell()
        plain.seek(0)
        archive.add(_name(layer.diff_id), size, iter(partial(plain.read, PIECE), b""))


def _name(diff_id: Digest) -> str:
    return f"{diff_id.hex}/layer.tar"

"""Images that are in the store: from a record to its manifest, config and layers."""

from __future__ import annotations

from typing import NamedTuple

from pullpipe.errors import InvalidDocument, NotFound
from pullpipe.oci import ImageConfig, Index, Manifest, Platform, chain_ids, parse_document
from pullpipe.reference import Reference
from store import Digest, ImageRecord, Store, StoreError
from store.gc import Marks, Swept, sweep


class LocalImage(NamedTuple):
    """An image of the store, with what its documents say."""

    record: ImageRecord
    manifest: Manifest
    config: ImageConfig

    @property
    def chain_id(self) -> Digest:
        """What its settled stack is kept by; an image without layers has one, too."""
        return chain_ids(self.config.diff_ids)[-1] if self.config.diff_ids else Digest.of(b"")

    @property
    def size(self) -> int:
        """Of its compressed layers, in bytes."""
        return sum(layer.size for layer in self.manifest.layers)


def platform_of(record: ImageRecord) -> Platform:
    """What the recorded image is for."""
    return Platform(record.os, record.architecture, record.variant)


def load(store: Store, record: ImageRecord) -> LocalImage:
    """Reads the record's documents. Raises `StoreError` or `InvalidDocument`, with the image's name."""
    try:
        manifest = parse_document(store.blobs.read(record.manifest), record.media_type)
        if isinstance(manifest, Index):
            raise InvalidDocument("its record names an index; remove the image and pull it again")
        config = ImageConfig.parse(store.blobs.read(manifest.config.digest), layers=len(manifest.layers))
    except (InvalidDocument, StoreError) as error:
        raise type(error)(f"{record.reference}: {error}") from error
    return LocalImage(record, manifest, config)


def load_whole(store: Store, record: ImageRecord) -> LocalImage | None:
    """The image, if nothing of it is missing or damaged: every layer unpacked, and what they come to settled."""
    try:
        image = load(store, record)
    except (InvalidDocument, StoreError):
        return None
    whole = image.chain_id in store.stacks and all(diff_id in store.layers for diff_id in image.config.diff_ids)
    return image if whole else None


def find(store: Store, reference: Reference) -> LocalImage:
    """The image of this name. Raises `NotFound` with what to do."""
    record = store.images.get(str(reference))
    if record is None:
        raise NotFound(f"{reference} is not in the store; `pullpipe pull {reference}` fetches it")
    return load(store, record)


def remove(store: Store, reference: Reference) -> Swept:
    """Removes the image's record, and what no other image and no container needs. Raises `NotInStore`."""
    with store.exclusive():
        store.images.remove(str(reference))
        return collect(store)


def collect(store: Store) -> Swept:
    """Removes what no image and no container leads to. The caller holds the store exclusively."""
    marks = Marks(blobs=set(), layers=set(), variants=set(), stacks={container.stack for container in store.containers})
    for record in store.images:
        marks.blobs.update({record.manifest, record.resolved})
        try:
            image = load(store, record)
        except (InvalidDocument, StoreError):
            continue  # damaged: what it names cannot be known, and it cannot be used either
        marks.blobs.update({image.manifest.config.digest, *(layer.digest for layer in image.manifest.layers)})
        marks.layers.update(image.config.diff_ids)
        marks.stacks.add(image.chain_id)
    for digest in store.images.foreign():
        _mark_documents(store, digest, marks.blobs)
    for chain_id in marks.stacks:
        if chain_id in store.stacks:
            info = store.stacks.info(chain_id)
            marks.layers.update(info.layers)
            marks.variants.update(info.variants)
    return sweep(store, marks)


def _mark_documents(store: Store, digest: Digest, blobs: set[Digest]) -> None:
    """Another program's manifest or index, and all blobs that it leads to."""
    if digest in blobs or digest not in store.blobs:
        return
    blobs.add(digest)
    try:
        parsed = parse_document(store.blobs.read(digest))
    except (InvalidDocument, StoreError):
        return  # of a kind that we do not know
    if isinstance(parsed, Index):
        for entry in parsed.manifests:
            _mark_documents(store, entry.digest, blobs)
    else:
        blobs.update({parsed.config.digest, *(layer.digest for layer in parsed.layers)})

"""Images that are in the store: from a record to its manifest, config and layers."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from pullpipe.errors import BadArgument, InvalidDocument, InvalidReference, NotFound
from pullpipe.oci import DOCUMENT_LIMIT, Descriptor, ImageConfig, Index, Manifest, chain_ids, parse_document
from pullpipe.outline import Outline, Part
from pullpipe.platforms import Platform
from pullpipe.reference import Reference
from store import Container, Corrupt, Digest, ImageRecord, NotInStore, Store, StoreError
from store.gc import Marks, Swept, sweep

_ID_LENGTH = 64
_NOTHING = Marks(set(), set(), set(), set())
_ID = re.compile(r"(sha256:)?([0-9a-f]{4,64})")


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
    def layers(self) -> list[tuple[Descriptor, Digest]]:
        """(blob, diffID) of each layer, the lowest first."""
        return list(zip(self.manifest.layers, self.config.diff_ids, strict=True))

    @property
    def size(self) -> int:
        """Of its compressed layers, in bytes."""
        return sum(layer.size for layer in self.manifest.layers)


class Led(NamedTuple):
    """What a manifest or an index leads to, or that itself."""

    digest: Digest
    here: bool  # in the store; a document is not if it is damaged, nor if it is none
    part: Part | None = None  # of the document that names it; None for a manifest or an index
    damaged: bool = False  # a document, of which nobody can know what it leads to


def platform_of(record: ImageRecord) -> Platform:
    """What the recorded image is for."""
    return Platform(record.os, record.architecture, record.variant)


def load(store: Store, record: ImageRecord) -> LocalImage:
    """Reads the record's documents. Raises `StoreError` or `InvalidDocument`, with the image's name."""
    try:
        manifest = manifest_of(store, record)
        config = ImageConfig.parse(store.blobs.read(manifest.config.digest), layers=len(manifest.layers))
    except (InvalidDocument, StoreError) as error:
        raise type(error)(f"{record.reference}: {error}") from error
    return LocalImage(record, manifest, config)


def manifest_of(store: Store, record: ImageRecord) -> Manifest:
    """The record's manifest. Raises `StoreError` or `InvalidDocument`."""
    manifest = parse_document(store.blobs.read(record.manifest), record.media_type)
    if isinstance(manifest, Index):
        raise InvalidDocument("its record names an index; remove the image and pull it again")
    return manifest


def load_whole(store: Store, record: ImageRecord) -> LocalImage | None:
    """The image, if nothing of it is missing or damaged: every layer unpacked, and what they come to settled."""
    try:
        image = load(store, record)
    except (InvalidDocument, StoreError):
        return None
    whole = image.chain_id in store.stacks and all(diff_id in store.layers for diff_id in image.config.diff_ids)
    return image if whole else None


def is_complete(store: Store, record: ImageRecord, *, all_platforms: bool = False) -> bool:
    """Whether nothing of the image is missing or damaged; nor, when that counts, of what its index leads to besides."""
    return load_whole(store, record) is not None and (not all_platforms or whole(store, record.resolved))


def checked(name: str) -> str:
    """The text, if it can be the name or the id of an image. Raises `InvalidReference`."""
    if not _ID.fullmatch(name):
        Reference.parse(name)
    return name


def find(store: Store, name: str) -> LocalImage:
    """The image that the name, or an id, means here. Raises as `record_of` does, and as `load`."""
    return load(store, record_of(store, name))


def record_of(store: Store, name: str) -> ImageRecord:
    """Its record. Raises `InvalidReference`, `NotFound`, and `BadArgument` as `by_id` does."""
    record = by_id(store, name) or by_name(store, Reference.parse(name))
    if record is None:
        reference = Reference.parse(name)
        raise NotFound(
            f"{reference} is not in the store; `pullpipe pull {reference}` fetches it, `pullpipe images` lists what is"
        )
    return record


def by_name(store: Store, reference: Reference) -> ImageRecord | None:
    """The image of this name; with a digest, also the name's own image if it has that."""
    record = store.images.get(str(reference))
    if record is None and reference.digest is not None:
        for other in store.images:
            name = Reference.parse(other.reference)
            same = name.name == reference.name and reference.tag in (None, name.tag)
            if same and reference.digest in (other.manifest, other.resolved):
                return other
    return record


def by_id(store: Store, text: str) -> ImageRecord | None:
    """The image whose id this is, or begins like this; None for what is, or may be, a name.

    An id is the digest of the image's manifest or config, or its first digits, four at least. Raises `BadArgument`
    where the ids of several images begin so, and `NotFound` for an id that no image has.
    """
    match = _ID.fullmatch(text)
    if match is None:
        return None
    certain = bool(match[1]) or len(match[2]) == _ID_LENGTH
    if not certain and by_name(store, Reference.parse(text)):
        return None
    found: dict[Digest, ImageRecord] = {}
    for record in store.images:
        if any(digest.hex.startswith(match[2]) for digest in _ids(store, record)):
            found.setdefault(record.manifest, record)
    if len(found) > 1:
        names = ", ".join(record.reference for record in found.values())
        raise BadArgument(f"the ids of several images begin with {text}: of {names}; give more of it, or a name")
    if certain and not found:
        raise NotFound(f"no image here has the id {text}; `pullpipe images` lists what is here")
    return next(iter(found.values()), None)


def _ids(store: Store, record: ImageRecord) -> Iterator[Digest]:
    yield record.manifest
    with suppress(InvalidDocument, StoreError):
        yield manifest_of(store, record).config.digest


def only_name(store: Store, name: str) -> str:
    """The reference of that image, for what changes or removes it: an id does if the image has no other name.

    Raises as `record_of` does.
    """
    record = record_of(store, name)
    names = [one.reference for one in store.images if one.manifest == record.manifest]
    if len(names) > 1 and by_id(store, name):
        raise BadArgument(f"{name} is the id of {', '.join(names)}; say which name is meant")
    return record.reference


def to_pull(store: Store, name: str) -> Reference:
    """What to ask a registry for. Raises `InvalidReference`, and `BadArgument` for what is the id of an image here."""
    if record := by_id(store, name):
        raise BadArgument(
            f"{name} is the id of an image that is here, and no registry's name; `pullpipe pull {record.reference}` "
            "has it as its registry has it now"
        )
    return Reference.parse(name)


def container_or_image(store: Store, name: str) -> Container | LocalImage:
    """What is called so; a container first, as with Docker, but by the beginning of its id only if no image is.

    Raises as `find` does; and `Corrupt` for a damaged container, if no image is called so.
    """
    try:
        container = store.containers.find(name)
    except NotInStore:
        return find(store, name)
    except Corrupt:
        with suppress(InvalidReference, NotFound):
            return find(store, name)
        raise
    if name not in (container.name, container.id):
        with suppress(InvalidReference):
            if record := by_name(store, Reference.parse(name)):
                return load(store, record)
    return container


def kept(store: Store, image: LocalImage, layer: Descriptor, diff_id: Digest) -> Descriptor:
    """The layer's blob; or another image's, which is the same layer under another compression. Raises `NotFound`."""
    if layer.digest in store.blobs:
        return layer
    for other in readable(store):
        for blob, other_diff_id in other.layers:
            if other_diff_id == diff_id and blob.digest in store.blobs:
                return blob
    raise NotFound(not_kept(store, layer.digest, image.record.reference))


def not_kept(store: Store, blob: Digest, reference: str) -> str:
    """The message for a blob of the image `reference` that is needed and not in the store."""
    return (
        f"the store has not kept blob {blob} of {reference}; {fetched_again(store, blob, reference)}, "
        f"or make an image that does without it by `pullpipe squash -t NEW {reference}`"
    )


def fetched_again(store: Store, blob: Digest, reference: str) -> str:
    """What to do to have a blob that was not kept, of the image `reference` or one that it was made of."""
    users = (image for image in readable(store) if any(layer.digest == blob for layer in image.manifest.layers))
    # The one of the fewest layers is what the others were made of, so it came from somewhere.
    _, origin = min(((len(image.manifest.layers), image.record.reference) for image in users), default=(0, reference))
    return f"have it fetched by `pullpipe pull --all-platforms {origin}`, load that image again"


def damaged(blob: Digest, reference: str) -> str:
    """The message for a blob of the image `reference` that does not have its digest."""
    return f"blob {blob} of {reference} is damaged in the store; `pullpipe repair {reference}` fetches it again"


def readable(store: Store) -> Iterator[LocalImage]:
    """The images whose documents are whole."""
    for record in store.images:
        try:
            yield load(store, record)
        except (InvalidDocument, StoreError):
            continue  # damaged: what it names cannot be known


def neighbours(store: Store, reference: Reference) -> dict[Digest, str]:
    """Blobs of layers that the registry should have in other repositories than the reference's, with such a one."""
    others = [(Reference.parse(image.record.reference), image) for image in readable(store)]
    return {
        layer.digest: other.repository
        for other, image in others
        if other.registry == reference.registry and other.repository != reference.repository
        for layer in image.manifest.layers
    }


def clean(store: Store, note: Callable[[str], None]) -> None:
    """Removes what a crash has left. What stays is noted, and in nobody's way, unless nothing can be written at all.

    Raises `OSError`.
    """
    try:
        store.clean()
    except OSError as error:
        if error.errno == errno.EROFS:
            raise
        reason = (error.strerror or str(error)).lower()
        note(
            f"cannot remove {error.filename or 'what was left half done'}: {reason}; remove it by hand to save its room"
        )


def everything(store: Store) -> Marks:
    """All blobs and trees that are here."""
    return Marks(set(store.blobs), set(store.layers), set(store.variants), set(store.stacks))


def collect(store: Store, but: Marks = _NOTHING) -> Swept:
    """Removes what no image and no container leads to, `but` these."""

    def mark() -> Marks:
        needed = marks(store, store.images, store.containers)
        return Marks(*(one | other for one, other in zip(needed, but, strict=True)))

    return sweep(store, mark)


def marks(store: Store, images: Iterable[ImageRecord], containers: Iterable[Container]) -> Marks:
    """What these images and containers need, and what was pushed here. The caller holds the store, shared at least.

    Of an image that came from an index all that the index leads to stays, as far as it is here: other platforms'
    blobs, attestations. While a document is damaged, what it leads to cannot be known, and everything stays.
    """
    images, containers = list(images), list(containers)
    leads = [led for record in images for led in led_to(store, record.manifest, record.resolved)]
    leads += led_to(store, *store.images.foreign(), *(container.manifest for container in containers))
    found = Marks({led.digest for led in leads}, set(), set(), {container.stack for container in containers})
    certain = not any(led.damaged for led in leads)
    for record in images:
        try:
            image = load(store, record)
        except InvalidDocument:
            continue  # no image
        except StoreError:
            certain = False
            continue
        found.layers.update(image.config.diff_ids)
        found.stacks.add(image.chain_id)
    for chain_id in found.stacks:
        try:
            info = store.stacks.info(chain_id)
        except NotInStore:
            continue
        except Corrupt:
            certain = False
            continue
        found.layers.update(info.layers)
        found.variants.update(info.variants)
    return found if certain else everything(store)


def missing(store: Store, digest: Digest) -> list[Digest]:
    """What a manifest or index leads to, itself included, and the store does not have.

    A document that is missing, or damaged, may lead to more. An index's entries of unknown media types do not count.
    """
    return [led.digest for led in led_to(store, digest) if not led.here]


def whole(store: Store, digest: Digest) -> bool:
    """Whether the store has all that a manifest or index leads to: all platforms' blobs, if it is an index."""
    return not missing(store, digest)


def led_to(store: Store, *documents: Digest) -> Iterator[Led]:
    """All that manifests and indexes lead to, themselves first."""
    todo = list(documents)
    blobs: dict[Digest, Part] = {}
    seen: set[Digest] = set()
    while todo:
        digest = todo.pop()
        if digest in seen:
            continue
        seen.add(digest)
        if (store.blobs.size(digest) or 0) > DOCUMENT_LIMIT:
            yield Led(digest, here=True)  # no document
            continue
        try:
            found = Outline.of(store.blobs.read(digest))
        except (InvalidDocument, StoreError) as error:
            yield Led(digest, here=False, damaged=isinstance(error, Corrupt))
            continue
        yield Led(digest, here=True)
        todo += [entry.digest for entry in found.manifests if entry.is_document]
        blobs |= {blob.digest: blob for blob in found.blobs}
        yield from (Led(entry.digest, here=True, part=entry) for entry in found.manifests if not entry.is_document)
    yield from (Led(digest, digest in store.blobs, blob) for digest, blob in blobs.items())

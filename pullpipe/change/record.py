"""A draft becomes an image of the store: by a pull, from this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from pullpipe import local
from pullpipe.change.draft import Draft
from pullpipe.errors import InvalidDocument, NotFound
from pullpipe.local import LocalImage, platform_of
from pullpipe.oci import Descriptor, ImageConfig, Index, parse_document
from pullpipe.pipe.pull import Options, pull
from pullpipe.progress import Progress
from pullpipe.reference import Reference
from pullpipe.transports import Document
from pullpipe.transports.files import Extent
from store import Digest, ImageRecord, Store, StoreError


def draft_of(store: Store, image: LocalImage) -> Draft:
    """The image, to be changed. Raises `StoreError`."""
    manifest, config = store.blobs.read(image.record.manifest), store.blobs.read(image.manifest.config.digest)
    return Draft.of(manifest, config, platform_of(image.record))


def draft_of_manifest(store: Store, digest: Digest) -> Draft:
    """The same of an image that need not have a name any more. Raises `StoreError`, `InvalidDocument`."""
    data = store.blobs.read(digest)
    manifest = parse_document(data)
    if isinstance(manifest, Index):
        raise InvalidDocument(f"{digest} is an index, and no image")
    config = store.blobs.read(manifest.config.digest)
    return Draft.of(data, config, ImageConfig.parse(config, layers=len(manifest.layers)).platform)


async def record(store: Store, draft: Draft, reference: Reference, options: Options, progress: Progress) -> ImageRecord:
    """Has the image in the store under this name. Layers of the image that it is made of are not unpacked again.

    Raises what a pull does; the store is then as before.
    """
    source = _DraftSource(draft, store, reference)
    options = options._replace(platform=draft.platform)
    before = local.everything(store)
    try:
        return (await pull(source, str(source.manifest.digest), str(reference), store, options, progress)).record
    except BaseException:
        with suppress(StoreError, OSError):
            local.collect(store, but=before)  # a layer that is whole, and that nothing can go on with
        raise


class _DraftSource:
    """The draft's documents, and its new layer."""

    def __init__(self, draft: Draft, store: Store, reference: Reference) -> None:
        self._store = store
        self._reference = str(reference)
        manifest, self._config = draft.documents()
        self.manifest = Document(manifest, str(draft.manifest.get("mediaType", "")), Digest.of(manifest))
        self._top = draft.top

    async def resolve(self, _wanted: str) -> Digest:
        return self.manifest.digest

    async def document(self, _wanted: str) -> Document:
        return self.manifest

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
        if self._top and descriptor.digest == self._top.digest:
            async with aclosing(Extent(self._top.path, 0, self._top.size).pieces(offset)) as pieces:
                yield pieces
        elif descriptor.digest == Digest.of(self._config):
            yield _once(self._config[offset:])
        else:
            blob = descriptor.digest
            raise NotFound(
                f"a layer would have to be unpacked anew, and the store has not kept its blob {blob}; "
                f"{local.fetched_again(self._store, blob, self._reference)}, and then change it"
            )

    def has_here(self, blob: Digest) -> bool:
        return self._top is not None and blob == self._top.digest

    def doubt(self, _blob: Digest) -> list[str]:
        return []


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data

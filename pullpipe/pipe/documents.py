"""The documents of one pull: manifests, indexes and configs, each proven, and remembered until they are published."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pullpipe.errors import InvalidDocument, VerificationError, WrongBlob, first_cause
from pullpipe.oci import DOCUMENT_LIMIT, Descriptor, Index, Manifest, parse_document
from pullpipe.outline import Outline
from pullpipe.pipe.proof import with_second_try, wrong_size
from pullpipe.transports import Document, Source, open_blob
from store import Digest, Store, StoreError

NESTED_LIMIT = 4  # indexes, each named by the one before: an index may name an index, and not for ever
_COUNT_LIMIT = 1000
_SIZE_LIMIT = 64 << 20  # bytes of all of them


class Documents:
    """What a descriptor has in it is not asked for, nor what the store has and is not damaged."""

    def __init__(self, source: Source, store: Store, note: Callable[[str], None] = lambda text: None) -> None:
        self._source = source
        self._store = store
        self._note = note  # hears what is fetched again
        self._size = 0
        self.found: dict[Digest, bytes] = {}  # all that were asked for so far

    async def named(self, resolved: Digest) -> Document:
        """The manifest or index with this digest, which the source has given for what is wanted."""
        data = self._present(resolved)
        document = await self._source.document(str(resolved)) if data is None else Document(data, "", resolved)
        self._remember(document.digest, document.data)
        return document

    async def manifest(self, descriptor: Descriptor) -> Document:
        """The manifest or index of an index's entry. Raises `VerificationError` when it is not what that promises."""
        data = self._present(descriptor.digest) if descriptor.data is None else descriptor.data
        if data is not None:
            document = Document(data, descriptor.media_type, descriptor.digest)
        else:
            document = await self._source.document(str(descriptor.digest))
        if document.digest != descriptor.digest or len(document.data) != descriptor.size:
            raise VerificationError(f"the manifest {descriptor.digest} is not what the index that names it promises")
        self._remember(document.digest, document.data)
        return document

    async def image(self, descriptor: Descriptor) -> Manifest:
        """The image manifest of an index's entry. Raises `InvalidDocument` when it is something else."""
        parsed = await self._parsed(descriptor)
        if not isinstance(parsed, Manifest):
            raise _other_kind(descriptor, parsed)
        return parsed

    async def index(self, descriptor: Descriptor) -> Index:
        """The index of an index's entry. Raises `InvalidDocument` when it is something else."""
        parsed = await self._parsed(descriptor)
        if not isinstance(parsed, Index):
            raise _other_kind(descriptor, parsed)
        return parsed

    async def _parsed(self, descriptor: Descriptor) -> Manifest | Index:
        document = await self.manifest(descriptor)
        return parse_document(document.data, document.media_type)

    async def config(self, descriptor: Descriptor) -> bytes:
        """An image's config. Raises `VerificationError` when it is not what the manifest promises."""
        data = self._present(descriptor.digest)
        if data is None:
            data = await with_second_try(self._source, descriptor.digest, self._note, lambda: self._read(descriptor))
        if len(data) != descriptor.size:
            raise wrong_size(descriptor, len(data))
        self._remember(descriptor.digest, data)
        return data

    async def blobs_below(self, top: Document) -> dict[Digest, Descriptor]:
        """All blobs that a manifest or index leads to, of whatever kind it is; what is between them is remembered."""
        blobs: dict[Digest, Descriptor] = {}
        seen: set[Digest] = set()
        level = [top]
        for _ in range(NESTED_LIMIT + 1):
            found = [Outline.of(document.data) for document in level]
            blobs |= {blob.digest: blob.descriptor() for one in found for blob in one.blobs}
            parts = [part for one in found for part in one.manifests if part.is_document and part.digest not in seen]
            entries = {part.digest: part.descriptor() for part in parts}
            if not entries:
                return blobs
            seen |= entries.keys()
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self.manifest(entry)) for entry in entries.values()]
            except BaseExceptionGroup as errors:
                raise first_cause(errors) from None
            level = [task.result() for task in tasks]
        raise nested_too_deep()

    def _present(self, digest: Digest) -> bytes | None:
        if digest in self.found:
            return self.found[digest]
        try:
            return self._store.blobs.read(digest)
        except StoreError:
            return None  # not here, or damaged: what comes instead will be published in its place

    async def _read(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > DOCUMENT_LIMIT:
            raise InvalidDocument(
                f"the config {descriptor.digest} claims {descriptor.size} bytes; {DOCUMENT_LIMIT} is the limit"
            )
        data = b""
        async with open_blob(self._source, descriptor) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > descriptor.size:
                    break
        if len(data) != descriptor.size or not descriptor.digest.matches(data):
            raise WrongBlob(
                f"the config's bytes do not have the digest {descriptor.digest}; the source is damaged or lying"
            )
        return data

    def _remember(self, digest: Digest, data: bytes) -> None:
        if digest not in self.found:
            self._size += len(data)
            self.found[digest] = data
        if len(self.found) > _COUNT_LIMIT or self._size > _SIZE_LIMIT:
            raise InvalidDocument(
                f"it has more than {_COUNT_LIMIT} documents, or more than {_SIZE_LIMIT >> 20} MiB of them: refused"
            )


def _other_kind(descriptor: Descriptor, parsed: Manifest | Index) -> InvalidDocument:
    return InvalidDocument(
        f"the manifest {descriptor.digest} is {parsed.media_type}, and its index calls it {descriptor.media_type}: "
        "refused, one of the two is wrong"
    )


def nested_too_deep() -> InvalidDocument:
    """What to raise."""
    return InvalidDocument(f"it nests indexes more than {NESTED_LIMIT} deep")

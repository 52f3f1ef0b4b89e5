"""OCI image layouts as a source (image-spec, image-layout.md): directories and archives of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from pullpipe.errors import InvalidDocument, NotFound, VerificationError
from pullpipe.oci import Descriptor, Index, parse_document
from pullpipe.transports import CONTAINERD_NAME, REF_NAME, Document
from pullpipe.transports.files import Files
from store import Digest


class LayoutSource:
    """The images of a layout."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def images(self) -> list[tuple[str, Digest]]:
        """(name, digest) of each image that the layout's index lists; the name may be empty, or a tag alone.

        Raises `NotFound`, `InvalidDocument`, and `VerificationError` where one has another size than is listed.
        """
        index = self._files.find("index.json")
        if index is None:
            raise NotFound("there is no index.json: not an OCI image layout")
        data = index.document()
        parsed = parse_document(data)
        if not isinstance(parsed, Index):
            raise InvalidDocument("index.json is not an index: the layout is damaged")
        for entry in parsed.manifests:
            extent = self._files.find(_blob(entry.digest))
            if extent is not None and extent.size != entry.size:
                raise VerificationError(
                    f"the layout's blob {entry.digest} has {extent.size} bytes, and its index.json says {entry.size}: "
                    "the layout is damaged; make it anew"
                )
        return [
            (entry.annotations.get(CONTAINERD_NAME) or entry.annotations.get(REF_NAME, ""), entry.digest)
            for entry in parsed.manifests
        ]

    async def resolve(self, wanted: str) -> Digest:
        """A digest names itself; tags are `images`' matter."""
        return Digest.parse(wanted)

    async def document(self, wanted: str) -> Document:
        """The blob with this digest, proven."""
        digest = Digest.parse(wanted)
        extent = self._files.find(_blob(digest))
        if extent is None:
            raise NotFound(f"the layout has no blob {digest}; it is incomplete")
        data = extent.document()
        if not digest.matches(data):
            raise VerificationError(f"the layout's blob {digest} does not have that digest; it is damaged")
        return Document(data, "", digest)

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """The blob's bytes from `offset` on."""
        extent = self._files.find(_blob(descriptor.digest))
        if extent is None:
            raise NotFound(f"the layout has no blob {descriptor.digest}; it is incomplete")
        async with aclosing(extent.pieces(offset)) as pieces:
            yield pieces

    def has_here(self, blob: Digest) -> bool:
        """Whether the layout has it."""
        return self._files.find(_blob(blob)) is not None

    def doubt(self, blob: Digest) -> list[str]:
        """There is no other place to have it from."""
        return []


def _blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"

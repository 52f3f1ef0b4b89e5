"""Where images come from, and what `save` makes of them: a registry, a layout on disk, an archive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple, Protocol

from pullpipe.oci import Descriptor
from store.digest import Digest

# What an OCI layout's index calls an image: a tag by the spec, the whole reference by skopeo and podman.
REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"  # the whole reference, by containerd and Docker


class Document(NamedTuple):
    """A manifest or an index as it came; its bytes have the digest."""

    data: bytes
    media_type: str  # what the source said it is; may be empty
    digest: Digest


class Source(Protocol):
    """A place that images can be pulled from. Each method raises `TransferError`."""

    async def resolve(self, wanted: str) -> Digest:
        """What the tag or digest names now: the digest of a manifest or index."""

    async def document(self, wanted: str) -> Document:
        """The manifest or index that the tag or digest names."""

    def blob(self, descriptor: Descriptor, offset: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The blob's bytes from `offset` on. They are not verified."""

    def has_here(self, blob: Digest) -> bool:
        """Whether the blob is on this machine: then the store keeps it, though it may have the layer by another."""

    def doubt(self, blob: Digest) -> list[str]:
        """The blob that came was wrong. Whoever gave it, in messages, where there are several who might."""


def open_blob(
    source: Source, descriptor: Descriptor, offset: int = 0
) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
    """The blob's bytes from `offset` on: from the descriptor, if it has them in it, or else from the source."""
    return source.blob(descriptor, offset) if descriptor.data is None else _inline(descriptor.data, offset)


@asynccontextmanager
async def _inline(data: bytes, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
    async def pieces() -> AsyncIterator[bytes]:
        yield data[offset:]

    yield pieces()

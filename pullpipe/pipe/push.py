"""One push: what the registry lacks of an image, and then the image's documents, the one that names it last."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from pullpipe import local
from pullpipe.errors import NotFound, first_cause
from pullpipe.oci import Descriptor
from pullpipe.progress import Progress, counted
from pullpipe.registry.uploads import UploadClient
from pullpipe.transports.exports import Export
from pullpipe.transports.stored import proven
from store import Digest, Store

_T = TypeVar("_T")
_JOBS = 4  # requests at a time


async def push(
    store: Store,
    image: Export,
    client: UploadClient,
    tag: str | None,
    sources: Mapping[Digest, str],
    progress: Progress,
) -> None:
    """Has the image be at the registry, by the tag, if there is one.

    `sources` names other repositories of the registry that have blobs. Each blob is proven while it is read. Nothing of
    the image can be seen there before all of it is.

    Raises `NotFound` when a blob is needed that the store has not kept, `VerificationError` when one is damaged in it,
    and `TransferError`.
    """
    blobs = [
        Descriptor("", digest, store.blobs.size(digest) or 0) for digest in image.blobs if digest not in image.foreign
    ]
    if count := len(image.foreign):
        layers = counted(count, "layers")
        progress.note(f"{layers} may not be handed on, and will be fetched from their owner")
    there = await _each(blobs, lambda blob: client.has(blob.digest))
    lacking = [blob for blob, here in zip(blobs, there, strict=True) if not here]
    mounted = await _each(lacking, lambda blob: _mount(client, blob.digest, sources.get(blob.digest)))
    missing = [blob for blob, here in zip(lacking, mounted, strict=True) if not here]
    for blob in missing:
        if blob.digest not in store.blobs:
            raise NotFound(local.not_kept(store, blob.digest, image.reference))
    progress.plan(blobs, missing, "blobs")

    async def upload(blob: Descriptor) -> None:
        progress.started(blob)
        await client.upload(
            blob, lambda: proven(store, blob.digest, image.reference), lambda count: progress.sent(blob, count)
        )
        progress.stored(blob)

    await _each(missing, upload)
    for digest, media_type in image.documents.items():
        await client.put(store.blobs.read(digest), media_type, digest, tag if digest == image.digest else None)


async def _mount(client: UploadClient, blob: Digest, source: str | None) -> bool:
    return source is not None and await client.mount(blob, source)


async def _each(blobs: Sequence[Descriptor], work: Callable[[Descriptor], Awaitable[_T]]) -> list[_T]:
    """The results of the work on each blob, done on some at a time; the first error ends it all."""
    slots = asyncio.Semaphore(_JOBS)

    async def one(blob: Descriptor) -> _T:
        async with slots:
            return await work(blob)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(blob)) for blob in blobs]
    except BaseExceptionGroup as errors:
        raise first_cause(errors) from None
    return [task.result() for task in tasks]

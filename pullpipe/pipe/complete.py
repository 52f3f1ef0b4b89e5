"""The rest of an index: the blobs of other platforms, and of attestations, fetched and proven, and not unpacked.

They stay in the store as long as an image does that came from the index (`local.collect`), so that a pull for another
platform finds them, and that the index can go elsewhere as a whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Container, Mapping
from contextlib import ExitStack, suppress

from pullpipe.errors import first_cause
from pullpipe.local import LocalImage
from pullpipe.oci import Descriptor
from pullpipe.pipe.fetch import fetch, is_wasted
from pullpipe.pipe.proof import prove_blob, with_second_try
from pullpipe.pipe.room import check_room
from pullpipe.progress import Progress
from pullpipe.trace import Times
from pullpipe.transports import Source
from store import Digest, Ingest, InUse, Store

_POLL = 0.05  # seconds between two looks at a blob that another process fetches
_BATCH = 256  # blobs that wait for their publication; each is an open file


class Rest:
    """The blobs below an index, as far as the store does not have them when one platform's image is there."""

    def __init__(
        self, source: Source, store: Store, jobs: int, progress: Progress, blobs: Mapping[Digest, Descriptor]
    ) -> None:
        self._source = source
        self._store = store
        self._slots = asyncio.Semaphore(jobs)
        self._progress = progress
        self._blobs = blobs

    def plan(self, image: LocalImage, documents: Container[Digest]) -> None:
        """Tells what there will be to fetch besides the image and the documents that are here by now."""
        layers = zip(image.config.diff_ids, image.manifest.layers, strict=True)
        coming = {layer.digest for diff_id, layer in layers if diff_id not in self._store.layers}
        rest = [blob for digest, blob in self._blobs.items() if digest not in coming and digest not in documents]
        if rest:
            self._progress.plan(rest, [blob for blob in rest if blob.digest not in self._store.blobs], "other blobs")

    async def provide(self) -> None:
        """Has them all in the store. What has arrived stays, also when another one fails.

        No blob is waited for while others are held, which another process may be waiting for: first come those that
        nobody else fetches, and once they are published, the others.
        """
        while missing := [blob for digest, blob in self._blobs.items() if digest not in self._store.blobs]:
            if not await self._fetch_all(missing[:_BATCH]):
                ingest = await free_ingest(self._store, missing[0], self._progress)
                if ingest is not None:  # the other process has given up
                    ingest.close()

    async def _fetch_all(self, blobs: Collection[Descriptor]) -> int:
        """Fetches those that no other process is at, and publishes them; says how many there were."""
        arrived: list[Ingest] = []
        with ExitStack() as owned:
            try:
                async with asyncio.TaskGroup() as group:
                    for blob in sorted(blobs, key=lambda blob: -blob.size):
                        group.create_task(self._fetch(blob, owned, arrived))
            except BaseExceptionGroup as errors:
                raise first_cause(errors) from None
            finally:
                if arrived:
                    await asyncio.to_thread(self._store.flush)
                    with self._store.shared():
                        self._store.publish(arrived, [], flushed=True)
        return len(arrived)

    async def _fetch(self, blob: Descriptor, owned: ExitStack, arrived: list[Ingest]) -> None:
        async with self._slots:
            check_room(self._store, [blob])
            with suppress(InUse):  # another process is at it
                arrived.append(owned.enter_context(await arrive(self._source, self._store, blob, self._progress)))


async def arrive(source: Source, store: Store, blob: Descriptor, progress: Progress) -> Ingest:
    """The blob, fetched and proven; the caller publishes it, or discards it, and closes it.

    Raises `InUse` when another process is at it.
    """
    return await with_second_try(source, blob.digest, progress.note, lambda: _arrive(source, store, blob, progress))


async def _arrive(source: Source, store: Store, blob: Descriptor, progress: Progress) -> Ingest:
    async def available(count: int) -> None:
        progress.fetched(blob, count)

    ingest = store.blobs.ingest(blob.digest, blob.size)
    progress.started(blob)
    times = Times(detailed=progress.trace is not None)
    try:
        await fetch(source, blob, ingest, available, times)
        await prove_blob(ingest.fileno(), blob)
    except BaseException as error:
        if is_wasted(error):
            ingest.discard()
        ingest.close()
        raise
    progress.worked(blob, times.spans)
    progress.stored(blob)
    return ingest


async def free_ingest(store: Store, blob: Descriptor, progress: Progress) -> Ingest | None:
    """The blob's ingest, as soon as no other process is at it; None when the store has the blob."""
    waiting = False
    while blob.digest not in store.blobs:
        try:
            return store.blobs.ingest(blob.digest, blob.size)
        except InUse:
            if not waiting:
                progress.waiting(blob)
            waiting = True
            await asyncio.sleep(_POLL)
    return None

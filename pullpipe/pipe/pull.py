"""One pull: resolve, plan, fetch and unpack all layers at once, publish, record.

Every layer flows once, network → blob file → inflate → tar → files, and nothing is visible until both its digests are
proven. Layers are shared by diffID, so what the store has under any compression is not fetched again; but a blob that
is at hand on this machine is copied all the same, since nobody else may have it. It is proven like all others, for
`verify` and `repair` will make the layer of it.

Several pulls may want one layer. Each layer has a lock; a pull takes those it can get at once, publishes what it made
under them, and only then waits for the others, holding nothing. So every layer is made once, and no two pulls wait for
each other.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

from pullpipe import local
from pullpipe.errors import (
    InvalidDocument,
    LayerError,
    PullpipeError,
    VerificationError,
    WrongBlob,
    first_cause,
)
from pullpipe.oci import Descriptor, chain_ids
from pullpipe.pipe import settle
from pullpipe.pipe.complete import Rest, free_ingest
from pullpipe.pipe.documents import Documents
from pullpipe.pipe.fetch import fetch, is_wasted
from pullpipe.pipe.layer import Unpacker, info_of
from pullpipe.pipe.proof import check_sizes, prove_blob, proven, with_second_try
from pullpipe.pipe.resolve import resolve
from pullpipe.pipe.room import check_room
from pullpipe.pipe.unpack import Worker, channel
from pullpipe.pipe.worker import Limits, Result
from pullpipe.platforms import Platform
from pullpipe.progress import Progress
from pullpipe.trace import Times
from pullpipe.transports import Source
from store import Digest, ImageRecord, Ingest, LayerInfo, Over, Staging, Store, StoreError

_LARGE = 16 << 20  # bytes of a blob
_POLL = 0.05  # seconds between two looks at a lock that another process holds


class Options(NamedTuple):
    """How to pull."""

    platform: Platform
    jobs: int = 4  # layers in flight; each costs one process and about 25 MB of memory
    keep_blobs: bool = True  # False: keep the unpacked layers only
    limits: Limits = Limits()
    ignore_owners: bool = False  # files of owners that the user namespace does not have become root's
    over: Over = "anything"  # what the reference may name until the image is there
    all_platforms: bool = False  # have the other platforms' blobs, too, and whatever else the index leads to


class Pulled(NamedTuple):
    """What a pull came to."""

    record: ImageRecord
    fetched: bool  # False: everything was there already


async def pull(
    source: Source, wanted: str, reference: str, store: Store, options: Options, progress: Progress
) -> Pulled:
    """Pulls what `wanted` (a tag or a digest) names at the source, and records it under `reference`.

    Raises `PullpipeError`, `StoreError` or `OSError`; the store is then as before, but for whole layers that had
    arrived, and partial blobs, which the next pull continues. With all platforms, the image itself comes first.
    """
    local.clean(store, progress.note)
    record = store.images.get(reference)
    resolved = await source.resolve(wanted)
    if (
        record is not None
        and record.resolved == resolved
        and options.platform.distance(local.platform_of(record)) == 0
        and local.is_complete(store, record, all_platforms=options.all_platforms)
        and not _lacking(source, store, local.manifest_of(store, record).layers, options)
    ):
        return Pulled(record, fetched=False)
    with Worker() as worker:
        if resolved not in store.blobs:
            worker.start()  # while the manifest travels
        documents = Documents(source, store, progress.note)
        try:
            with progress.stage("resolve"):
                top = await documents.named(resolved)
                image = await resolve(documents, top, reference, options.platform)
                below = await documents.blobs_below(top) if options.all_platforms else {}
        except InvalidDocument as error:
            raise InvalidDocument(f"{reference}: {error}") from error
        lacking = _lacking(source, store, image.manifest.layers, options)
        if (
            image.record == record
            and local.is_complete(store, record, all_platforms=options.all_platforms)
            and not lacking
        ):
            return Pulled(record, fetched=False)
        with ExitStack() as leased:
            with store.shared():
                leased.enter_context(store.leases.needed(_needed(image)))
            rest = Rest(source, store, options.jobs, progress, below)
            rest.plan(image, documents.found)
            await asyncio.to_thread(check_sizes, store, [*image.manifest.layers, *below.values()])
            layers = {layer.digest: layer for layer, diff_id in image.layers if diff_id not in store.layers}
            check_room(store, {**layers, **below, **lacking}.values())
            await _Layers(source, store, worker, options, progress).provide(image, documents.found)
    await rest.provide()
    return Pulled(image.record, fetched=True)


def _lacking(source: Source, store: Store, layers: Sequence[Descriptor], options: Options) -> dict[Digest, Descriptor]:
    """Blobs that are to be in the store even where their layers are, by other blobs: nobody else may have them."""
    if not options.keep_blobs:
        return {}
    found = {layer.digest: layer for layer in layers if layer.digest not in store.blobs}
    return {digest: layer for digest, layer in found.items() if source.has_here(digest)}


def _needed(image: local.LocalImage) -> set[Digest]:
    """Blobs, layers, variants and stack."""
    blobs = {layer.digest for layer in image.manifest.layers}
    return {*blobs, *image.config.diff_ids, *chain_ids(image.config.diff_ids), image.chain_id}


class _Settled(NamedTuple):
    """What an image's layers come to together."""

    made: list[Staging[Any]]  # variants, and the stack last
    in_place: Callable[[], bool]  # whether all that it stands on is still in the store


class _Layers:
    """The layers of one pull on their way into the store."""

    def __init__(self, source: Source, store: Store, worker: Worker, options: Options, progress: Progress) -> None:
        self._source = source
        self._store = store
        self._unpacker = Unpacker(worker, options.limits, progress, ignore_owners=options.ignore_owners)
        self._prover = Unpacker(worker, options.limits, progress, form="none")
        self._options = options
        self._progress = progress
        self._slots = asyncio.Semaphore(options.jobs)
        self._large_slots = asyncio.Semaphore(max(options.jobs - 1, 1))
        self._turns: defaultdict[Digest, asyncio.Lock] = defaultdict(asyncio.Lock)  # of layers that have one blob
        self._blobs: dict[Digest, Ingest] = {}  # what has arrived and is proven, to be published if blobs are kept
        self._staged: dict[Digest, tuple[Staging[LayerInfo], LayerInfo]] = {}

    async def provide(self, image: local.LocalImage, documents: Mapping[Digest, bytes]) -> None:
        """Has every layer in the store, unpacked and settled, and the image recorded.

        When a layer fails, those that are proven by then are published all the same, and the image is not recorded.
        """
        wanted = dict(zip(image.config.diff_ids, image.manifest.layers, strict=True))
        missing = self._missing(wanted)
        self._progress.plan(list(wanted.values()), list(missing.values()))
        recorded = False
        while not recorded:
            with ExitStack() as owned:
                mine = await self._lock(self._missing(wanted), owned)
                settled = None
                try:
                    await self._make(self._missing(mine), owned)
                    if self._staged.keys() >= self._missing(wanted).keys():
                        await self._copy(image, wanted, owned)
                        with self._progress.stage("settle"):
                            settled = await self._settle(image, wanted, owned)
                finally:
                    with self._progress.stage("publish"):
                        recorded = await self._publish(image, documents, settled)

    def _times(self) -> Times:
        return Times(detailed=self._progress.trace is not None)

    def _missing(self, layers: Mapping[Digest, Descriptor]) -> dict[Digest, Descriptor]:
        return {diff_id: layer for diff_id, layer in layers.items() if diff_id not in self._store.layers}

    async def _lock(self, layers: Mapping[Digest, Descriptor], owned: ExitStack) -> dict[Digest, Descriptor]:
        """Those of the layers that are ours to make: all whose locks are free, as soon as there are any."""
        locks = {diff_id: self._store.layers.lock(diff_id) for diff_id in layers}
        held: dict[Digest, Descriptor] = {}
        told = False
        while locks and not held:
            for diff_id, lock in locks.items():
                if lock.try_acquire():
                    owned.callback(lock.release, remove=True)
                    held[diff_id] = layers[diff_id]
            if not held:
                if not told:
                    self._progress.waiting(next(iter(layers.values())))
                told = True
                await asyncio.sleep(_POLL)  # flock has no event to wait for, and a thread in it cannot be cancelled
        return held

    async def _publish(
        self, image: local.LocalImage, documents: Mapping[Digest, bytes], settled: _Settled | None
    ) -> bool:
        """Makes visible what has been made, and records the image when that was the last of it; says whether it was.

        Under the store's lock, so that nothing is swept between a layer's publication and the record that needs it;
        but flushed before, for others wait for that lock.
        """
        layers = [staging for staging, _ in self._staged.values()]
        blobs = list(self._blobs.values()) if self._options.keep_blobs else []
        with ExitStack() as owned:
            last: list[Ingest] = []
            if settled is not None:
                last = [owned.enter_context(self._store.blobs.document(*item)) for item in documents.items()]
            if blobs or layers or settled is not None:
                await asyncio.to_thread(self._store.flush)
            with self._store.shared():
                lacking = _lacking(self._source, self._store, image.manifest.layers, self._options)
                if settled is not None and settled.in_place() and lacking.keys() <= self._blobs.keys():
                    self._store.publish([*blobs, *last], [*layers, *settled.made], flushed=True)
                    complete = True
                else:
                    self._store.publish(blobs, layers, flushed=True)
                    complete = False
                for ingest in () if self._options.keep_blobs else self._blobs.values():
                    ingest.discard()  # only now: until its layer is there, a pull that is killed is continued from it
                self._blobs.clear()
                self._staged.clear()
                if complete:
                    self._store.images.put(image.record, self._options.over)
        return complete

    async def _settle(
        self, image: local.LocalImage, wanted: Mapping[Digest, Descriptor], owned: ExitStack
    ) -> _Settled | None:
        """All layers are there: what they come to together. None if somebody removes meanwhile what that stands on."""
        made: list[Staging[Any]] = []
        stored = [diff_id for diff_id in wanted if diff_id not in self._staged]
        pins = [owned.enter_context(self._store.layers.pinned(stored))]

        def in_place() -> bool:
            return all(pin() for pin in pins)

        async def variant(layer: settle.Layer, below: Sequence[str]) -> tuple[str, LayerInfo]:
            if layer.chain_id in self._store.variants:
                pins.append(owned.enter_context(self._store.variants.pinned([layer.chain_id])))
                return self._store.variants.files(layer.chain_id), self._store.variants.info(layer.chain_id)
            staging = self._store.variants.stage_alone(layer.chain_id)
            owned.callback(staging.discard)
            descriptor = wanted[layer.diff_id]
            blob = await self._blob(descriptor, owned)
            with self._removing_damage(descriptor):
                info = await self._unpacker.unpack_variant(blob, layer, descriptor, staging, below)
            await self._describe(staging, info)
            made.append(staging)
            return staging.files, info

        stack = self._store.stacks.stage_alone(image.chain_id)
        owned.callback(stack.discard)
        try:
            layers = settle.plan(self._store, image.config.diff_ids, self._staged)
            stack.describe(await settle.settle(self._store, layers, stack.files, variant))
        except (PullpipeError, StoreError, OSError):
            if in_place():
                raise
            return None
        return _Settled([*made, stack], in_place)

    async def _make(self, layers: Mapping[Digest, Descriptor], owned: ExitStack) -> None:
        """Fetches and unpacks these layers, whose locks we hold; the largest first, for they take longest."""
        try:
            async with asyncio.TaskGroup() as group:
                for diff_id, layer in sorted(layers.items(), key=lambda item: -item[1].size):
                    group.create_task(self._make_one(diff_id, layer, owned))
        except BaseExceptionGroup as errors:
            raise first_cause(errors) from None

    async def _make_one(self, diff_id: Digest, layer: Descriptor, owned: ExitStack) -> None:
        """One layer, from the network to a proven directory that waits to be published.

        Large layers leave one slot to the others, which would all wait for them.
        """
        large = self._large_slots if layer.size >= _LARGE else nullcontext()
        async with large, self._slots, self._turns[layer.digest]:
            check_room(self._store, [layer])
            self._progress.started(layer)
            staging, result = await with_second_try(
                self._source, layer.digest, self._progress.note, lambda: self._stage(diff_id, layer, owned)
            )
            info = info_of(diff_id, result)
            await self._describe(staging, info)
            self._staged[diff_id] = staging, info
            self._progress.finished(layer)
            for warning in result.warnings:
                self._progress.note(f"{layer.digest.short}: {warning}")

    async def _describe(self, staging: Staging[LayerInfo], info: LayerInfo) -> None:
        """The tree is complete. When its blob is not kept, nothing else will tell whether it has been damaged."""
        staging.describe(info)
        if not self._options.keep_blobs:
            await asyncio.to_thread(staging.seal)

    async def _stage(self, diff_id: Digest, layer: Descriptor, owned: ExitStack) -> tuple[Staging[LayerInfo], Result]:
        """The layer, unpacked and proven, in a new staging directory. Raises `WrongBlob` when the bytes were wrong."""
        staging = self._store.layers.stage(diff_id)
        owned.callback(staging.discard)  # nothing, once it is published
        try:
            arrived = layer.digest in self._blobs  # for another diffID: one may be of another algorithm, or a lie
            ingest = None if arrived else await free_ingest(self._store, layer, self._progress)
            if ingest is None:
                blob = await self._blob(layer, owned)
                with self._removing_damage(layer):
                    return staging, await self._unpacker.unpack(blob, diff_id, layer, staging)
            ingest = owned.enter_context(ingest)
            return staging, await self._fetch_and_unpack(self._unpacker, diff_id, layer, staging, ingest)
        except WrongBlob:
            staging.discard()
            raise

    async def _blob(self, layer: Descriptor, owned: ExitStack) -> int:
        """The whole blob, open: as it has just arrived, or from the store, or fetched if that has not kept it."""
        if layer.digest in self._blobs:
            return self._blobs[layer.digest].fileno()
        if layer.digest in self._store.blobs:
            fd = os.open(self._store.blobs.path(layer.digest), os.O_RDONLY | os.O_CLOEXEC)
            owned.callback(os.close, fd)
            return fd
        await self._fetch(layer, owned)
        return self._blobs[layer.digest].fileno()

    async def _fetch(self, layer: Descriptor, owned: ExitStack) -> None:
        """Has the blob of a layer that is in the store arrive, and proves it.

        Each process fetches its own, for we may hold what another one waits for; so it does not go on from a part.
        """
        check_room(self._store, [layer])
        await with_second_try(self._source, layer.digest, self._progress.note, lambda: self._fetch_anew(layer, owned))

    async def _fetch_anew(self, layer: Descriptor, owned: ExitStack) -> None:
        async def available(count: int) -> None:
            self._progress.fetched(layer, count)

        times = self._times()
        ingest = owned.enter_context(self._store.blobs.incoming())
        try:
            await fetch(self._source, layer, ingest, available, times)
            await prove_blob(ingest.fileno(), layer)
        except BaseException:
            ingest.close()
            raise
        self._progress.worked(layer, times.spans)
        self._store.blobs.name(ingest, layer.digest)
        self._blobs[layer.digest] = ingest

    @contextmanager
    def _removing_damage(self, layer: Descriptor) -> Iterator[None]:
        """The block unpacks the store's blob, which is removed if it turns out to be damaged."""
        try:
            yield
        except WrongBlob as error:
            self._store.blobs.remove(layer.digest)
            raise WrongBlob(
                f"blob {layer.digest} was damaged in the store and has been removed; pull again to fetch it"
            ) from error

    async def _copy(self, image: local.LocalImage, wanted: Mapping[Digest, Descriptor], owned: ExitStack) -> None:
        """Has the blobs that are lacking though their layers are there; and proves of every new one that it is all the
        layers that the image says it is."""
        lacking = _lacking(self._source, self._store, image.manifest.layers, self._options)
        new = lacking.keys() | self._blobs.keys()
        for (_, diff_id), layer in {(layer.digest, diff_id): layer for layer, diff_id in image.layers}.items():
            made_of_it = diff_id in self._staged and wanted[diff_id].digest == layer.digest
            if layer.digest in new and not made_of_it:
                await with_second_try(
                    self._source, layer.digest, self._progress.note, partial(self._prove, diff_id, layer, owned)
                )

    async def _prove(self, diff_id: Digest, layer: Descriptor, owned: ExitStack) -> None:
        """That the blob unpacks to this diffID. It arrives for that, unless it has."""
        staging = self._store.layers.stage_alone(diff_id, replace=True)  # for the worker to be locked into
        try:
            if layer.digest in self._blobs:
                await self._prover.unpack(self._blobs[layer.digest].fileno(), diff_id, layer, staging)
            else:
                check_room(self._store, [layer])
                ingest = owned.enter_context(self._store.blobs.incoming())
                await self._fetch_and_unpack(self._prover, diff_id, layer, staging, ingest)
                self._store.blobs.name(ingest, layer.digest)
        finally:
            staging.discard()

    async def _fetch_and_unpack(
        self, unpacker: Unpacker, diff_id: Digest, layer: Descriptor, staging: Staging[LayerInfo], ingest: Ingest
    ) -> Result:
        """The blob flows into its file while the worker follows it there."""
        times = self._times()
        try:
            async with channel() as words, asyncio.TaskGroup() as group:

                async def available(count: int) -> None:
                    self._progress.fetched(layer, count)
                    await words.available(count)

                unpacking = group.create_task(unpacker.follow(ingest.fileno(), diff_id, layer, staging, words))
                group.create_task(fetch(self._source, layer, ingest, available, times))
            self._progress.worked(layer, times.spans)
            result = await proven(unpacking.result(), ingest.fileno(), diff_id, layer)
        except BaseExceptionGroup as errors:
            error = first_cause(errors)
            if is_wasted(error):
                ingest.discard()
            raise error from None
        except (VerificationError, LayerError):
            ingest.discard()
            raise
        self._blobs[layer.digest] = ingest
        return result

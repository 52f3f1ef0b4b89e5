"""The store's layers made again from their blobs, the way a pull makes them, and compared with what is there.

So both digests of a layer are proven once more, and every name, attribute and byte of its tree; then the variants and
the stack that an image's layers come to. What has been made is thrown away; for whoever repairs, it takes the place of
what it differs from.

It holds no lock while it reads: what is removed or replaced meanwhile does not count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from io import FileIO
from typing import Any, TypeVar

from pullpipe.errors import (
    LayerError,
    NotFound,
    PullpipeError,
    TransferError,
    VerificationError,
    WrongBlob,
    first_cause,
)
from pullpipe.local import LocalImage
from pullpipe.oci import Descriptor, chain_ids
from pullpipe.pipe import settle
from pullpipe.pipe.layer import Unpacker, info_of
from pullpipe.pipe.mending import Mending, not_mended
from pullpipe.pipe.proof import prove_blob
from pullpipe.pipe.unpack import Worker
from pullpipe.pipe.worker import Limits
from pullpipe.progress import Progress
from pullpipe.verify import WRONG_DIGEST, Finding, Key, Survey
from store import Digest, LayerInfo, StackInfo, Staging, StoreError
from store.errors import UNREADABLE
from store.locks import is_at
from store.trees import pinned

_T = TypeVar("_T")
_OF_THE_STORE = (TransferError, VerificationError, LayerError, StoreError)
_NO_LIMITS = Limits(0, 0, 0)  # whatever a blob comes to, it was allowed when it was pulled


class Replay:
    """Checks what a survey has found to be there; `findings` is what came of it."""

    def __init__(
        self, survey: Survey, worker: Worker, jobs: int, progress: Progress, mending: Mending | None = None
    ) -> None:
        self._survey = survey
        self._store = survey.store
        self._worker = worker
        self._slots = asyncio.Semaphore(jobs)
        self._progress = progress
        self._mending = mending
        self._seen: set[Key] = set()  # what has been compared, or told
        self._failed: set[Key] = set()  # what could not be mended
        self._wrong_layers: set[Digest] = set()
        self._seals: dict[Key, str | None] = {}
        self.findings: list[Finding] = []

    async def check_all(self) -> None:
        """Everything that the survey is about."""
        survey = self._survey
        keys = [key for key in survey.users if survey.concerns(key)]
        layers = [digest for kind, digest in keys if kind == "layer"]
        replayed = {blob.digest: blob for diff_id in layers for blob in self._kept(diff_id)[:1]}
        blobs = [blob for blob in survey.stored_blobs() if blob.digest not in replayed]
        self._progress.plan_check([*replayed.values(), *blobs])
        await self._check(layers, blobs, survey.chosen)
        for key in keys:
            if key[0] in ("variant", "stack") and key not in self._seen:
                self._leave_out(key, NotFound("no image tells what it should be"))

    async def check(self, suspects: Collection[Key]) -> None:
        """These layers and variants."""
        layers = [digest for kind, digest in suspects if kind == "layer"]
        users = {name for key in suspects if key[0] == "variant" for name in self._survey.users[key]}
        images = [image for image in self._survey.chosen if image.record.reference in users]
        self._progress.plan_check([blob for diff_id in layers for blob in self._kept(diff_id)[:1]])
        await self._check(layers, [], images)

    async def _check(self, layers: Sequence[Digest], blobs: Sequence[Descriptor], images: Sequence[LocalImage]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for diff_id in layers:
                    group.create_task(self._check_layer(diff_id))
                for blob in blobs:
                    group.create_task(self._check_blob(blob))
        except BaseExceptionGroup as errors:
            raise first_cause(errors) from None
        for image in {image.chain_id: image for image in images}.values():
            await self._check_stack(image)

    def _kept(self, diff_id: Digest) -> list[Descriptor]:
        """The blobs in the store that the layer can be made of."""
        sizes = self._store.blobs.size
        return [blob for blob in self._survey.sources(diff_id) if sizes(blob.digest) == blob.size]

    async def _check_blob(self, blob: Descriptor) -> None:
        async with self._slots:
            with suppress(FileNotFoundError), self._open(blob) as file:
                self._progress.started(blob)
                await self._prove(blob, file.fileno())
                self._progress.fetched(blob, blob.size)
                self._progress.checked(blob)

    async def _prove(self, blob: Descriptor, fd: int) -> bool:
        """Whether the open blob is right, or has been replaced by one that is."""
        try:
            await prove_blob(fd, blob)
        except WrongBlob:
            problem = WRONG_DIGEST
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            problem = f"it cannot be read: {error.strerror}"
        else:
            return True
        key = "blob", blob.digest
        if not is_at(fd, self._store.blobs.path(blob.digest)):
            return False  # removed meanwhile
        return await self._tell(key, problem, lambda mending: mending.replace_blob(self._survey, key))

    async def _check_layer(self, diff_id: Digest) -> None:
        key = "layer", diff_id
        layers = self._store.layers
        known = self._survey.problems.get(key, "")

        async def make(blob: Descriptor, fd: int) -> bool:
            staging = layers.stage_alone(diff_id, replace=True)
            try:
                info = info_of(diff_id, await self._unpacker(key).unpack(fd, diff_id, blob, staging))
                return await self._compare(key, staging, info, lambda: bool(known) or diff_id in layers)
            finally:
                staging.discard()

        async with self._slots:
            if known and self._mending is None:
                right = False
            else:
                try:
                    right = await self._from_blob(key, diff_id, make)
                except _OF_THE_STORE as error:
                    right = await self._check_seal(key, error)
        if not right:
            self._wrong_layers.add(diff_id)

    async def _from_blob(self, key: Key, diff_id: Digest, make: Callable[[Descriptor, int], Awaitable[_T]]) -> _T:
        """Has the layer, or a variant of it, made from one of its blobs.

        Raises `NotFound` when there is none, and what `make` does. To repair what is damaged, or seems to be, the blob
        is fetched where it has not been kept. An image may say of a blob that it is this layer, and be wrong; so each
        of them gets its turn.
        """
        sources = self._survey.sources(diff_id)
        why: Exception = NotFound("its blob is not kept" if sources else "no image tells which blob it came from")
        if any(blob.digest in self._store.blobs for blob in sources):
            why = NotFound("its blob is damaged")  # unless what follows finds it to be right
        refused: dict[Digest, Exception] = {}
        for blob in self._kept(diff_id):
            try:
                made = await self._from_kept(blob, make)
            except WrongBlob as error:  # again: it has just changed
                why = error
                continue
            except (LayerError, VerificationError) as error:
                refused[blob.digest] = why = error
                continue
            if made is not None:
                self._progress.fetched(blob, blob.size)
                self._progress.checked(blob)
                self._tell_mistaken(diff_id, refused)
                return made
        seal = await self._seal(key)
        suspicion = self._survey.problems.get(key) or (self._survey.suspect(key) if seal is None else seal)
        if suspicion and self._mending:
            for blob in sources:
                if blob.digest in refused:
                    continue
                try:
                    ingest, _ = await self._mending.fetch(self._survey, ("blob", blob.digest))
                except (PullpipeError, StoreError) as error:
                    why = NotFound(str(error))
                    continue
                with ingest:
                    try:
                        made = await make(blob, ingest.fileno())
                    except (LayerError, VerificationError) as error:
                        refused[blob.digest] = why = error
                        continue
                    finally:
                        ingest.discard()
                self._tell_mistaken(diff_id, refused)
                return made
        # What cannot be unpacked here and now may be the layer all the same.
        self._tell_mistaken(diff_id, [blob for blob, error in refused.items() if isinstance(error, VerificationError)])
        if suspicion and not self._mending:
            raise NotFound(f"{why} and {suspicion}: `pullpipe repair` fetches it to make sure")
        raise why

    async def _from_kept(self, blob: Descriptor, make: Callable[[Descriptor, int], Awaitable[_T]]) -> _T | None:
        """The same from this blob of the store; None if that has been removed meanwhile, or is damaged and stays so."""
        try:
            file = self._open(blob)
        except FileNotFoundError:
            return None
        with file:
            self._progress.started(blob)
            try:
                return await make(blob, file.fileno())
            except (WrongBlob, OSError) as error:
                if isinstance(error, OSError) and error.errno not in UNREADABLE:
                    raise
                if not await self._prove(blob, file.fileno()):
                    return None
            with self._open(blob) as another:
                return await make(blob, another.fileno())

    def _tell_mistaken(self, diff_id: Digest, blobs: Collection[Digest]) -> None:
        """Of images: these blobs are right, and not the layer that the images say they are."""
        for image in self._survey.chosen:
            for blob in [blob for blob, layer in image.layers if layer == diff_id and blob.digest in blobs]:
                name = image.record.reference
                problem = f"its blob {blob.digest} does not unpack to {diff_id}, as its config says"
                remedy = "`pullpipe repair --remove` removes the image"
                finding = Finding("damaged", "image", name, problem, (name,), remedy)
                if finding not in self.findings:  # told of the layer, and then of a variant
                    self.findings.append(finding)

    def _unpacker(self, key: Key) -> Unpacker:
        """That ignores owners only where the pull did."""
        try:
            ignored = self._survey.trees[key[0]].info(key[1]).owners_ignored
        except StoreError:
            ignored = False
        return Unpacker(self._worker, _NO_LIMITS, self._progress, ignore_owners=ignored)

    def _open(self, blob: Descriptor) -> FileIO:
        return open(self._store.blobs.path(blob.digest), "rb", 0)

    async def _check_stack(self, image: LocalImage) -> None:
        key = "stack", image.chain_id
        self._seen.update(("variant", chain_id) for chain_id in chain_ids(image.config.diff_ids))  # as far as they are
        if key in self._survey.problems and self._mending is None:
            return
        if not self._wrong_layers.isdisjoint(image.config.diff_ids):
            self._leave_out(key, NotFound("a layer of it is damaged"))
            return
        paths = [self._store.layers.files(diff_id) for diff_id in image.config.diff_ids]
        if key not in self._survey.problems:
            paths.append(self._store.stacks.files(image.chain_id))  # of what is removed, the first to go
        with ExitStack() as owned:
            in_place = owned.enter_context(pinned(paths))

            async def variant(layer: settle.Layer, below: Sequence[str]) -> tuple[str, LayerInfo]:
                return await self._check_variant(layer, below, owned, in_place)

            staging = self._store.stacks.stage_alone(image.chain_id, replace=True)
            owned.callback(staging.discard)
            try:
                layers = settle.plan(self._store, image.config.diff_ids, {})
                info = await settle.settle(self._store, layers, staging.files, variant)
            except (PullpipeError, StoreError, OSError) as error:
                if not in_place():
                    return
                if not isinstance(error, _OF_THE_STORE):
                    raise  # the machine's: what it refuses now says nothing of what is stored
                self._leave_out(key, error)
            else:
                await self._compare(key, staging, info, in_place)

    async def _check_variant(
        self, layer: settle.Layer, below: Sequence[str], owned: ExitStack, in_place: Callable[[], bool]
    ) -> tuple[str, LayerInfo]:
        """The variant as it should be, for the layers above it."""
        key = "variant", layer.chain_id
        variants = self._store.variants

        async def make(blob: Descriptor, fd: int) -> tuple[str, LayerInfo]:
            staging = variants.stage_alone(layer.chain_id, replace=True)
            owned.callback(staging.discard)
            info = await self._unpacker(key).unpack_variant(fd, layer, blob, staging, below)
            right = await self._compare(key, staging, info, in_place)
            return (variants.files(layer.chain_id) if right else staging.files), info

        try:
            return await self._from_blob(key, layer.diff_id, make)
        except (TransferError, VerificationError) as error:
            if not await self._check_seal(key, error):
                raise
            return variants.files(layer.chain_id), variants.info(layer.chain_id)

    async def _compare(
        self, key: Key, made: Staging[Any], info: LayerInfo | StackInfo, in_place: Callable[[], bool]
    ) -> bool:
        """Whether the tree is as it has been made, or has been replaced by that."""
        self._seen.add(key)
        trees, digest = self._survey.trees[key[0]], key[1]
        problem = self._survey.problems.get(key) or ("" if digest in trees else "it is not there")
        problem = problem or await asyncio.to_thread(trees.difference, digest, made.files, info)
        if not problem or not in_place():
            return True

        async def exchange(mending: Mending) -> str:
            made.describe(info)
            if isinstance(info, LayerInfo) and not self._kept(info.diff_id):
                await asyncio.to_thread(made.seal)
            return await mending.replace_tree(self._survey, key, made)

        return await self._tell(key, problem, exchange)

    async def _tell(self, key: Key, problem: str, mend: Callable[[Mending], Awaitable[str]]) -> bool:
        """Damage: says whether it has been mended."""
        self._seen.add(key)
        survey = self._survey
        if key in self._failed:
            return False
        if self._mending is None:
            if key not in survey.problems:  # which are told anyway
                self.findings.append(survey.finding("damaged", key, problem, survey.remedy(key)))
            return False
        try:
            how = await mend(self._mending)
        except (PullpipeError, StoreError, OSError) as error:
            self._failed.add(key)
            self.findings.append(survey.finding("damaged", key, problem, not_mended(error)))
            return False
        survey.problems.pop(key, None)
        self.findings.append(survey.finding("mended", key, problem, how))
        return True

    async def _seal(self, key: Key) -> str | None:
        """See `Trees.broken_seal`, which is asked once."""
        if key not in self._seals:
            self._seals[key] = await asyncio.to_thread(self._survey.trees[key[0]].broken_seal, key[1])
        return self._seals[key]

    async def _check_seal(self, key: Key, why: Exception) -> bool:
        """What cannot be made again, to be compared: whether it is not known to be damaged."""
        seal = await self._seal(key)
        if key in self._survey.problems or seal is None:
            self._leave_out(key, why)
            return key not in self._survey.problems
        self._seen.add(key)
        if seal:
            remedy = not_mended(why) if self._mending else self._survey.remedy(key)
            self.findings.append(self._survey.finding("damaged", key, seal, remedy))
        return not seal

    def _leave_out(self, key: Key, why: Exception) -> None:
        """What cannot be checked; if it is known to be damaged, it cannot be mended."""
        self._seen.add(key)
        problem = self._survey.problems.get(key)
        if problem is None and key[1] in self._survey.trees[key[0]]:  # else it has been removed meanwhile
            self.findings.append(self._survey.finding("unchecked", key, str(why)))
        elif problem is not None and self._mending:
            self.findings.append(self._survey.finding("damaged", key, problem, not_mended(why)))

"""An image's layers applied in order to one directory: the tree as `tar` and whiteouts alone would make it.

It goes the same way as a pull, from the blobs in the store, only that each layer's entries go into the same directory,
and that a whiteout removes what is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pullpipe import local
from pullpipe.errors import BadArgument, LayerError, VerificationError, WrongBlob
from pullpipe.pipe.proof import proven
from pullpipe.pipe.unpack import Worker, channel
from pullpipe.pipe.whiteouts import set_trusted
from pullpipe.pipe.worker import Job, Result
from pullpipe.progress import Progress
from store import Store
from store.removal import remove_tree


async def flatten(
    store: Store, image: local.LocalImage, directory: str, progress: Progress, *, ignore_owners: bool = False
) -> None:
    """Unpacks the image into `directory`, which is made, or is there and empty.

    With `ignore_owners`, files of owners that the user namespace does not have become root's.

    Raises `BadArgument` when it is not empty, `NotFound` when the store has not kept a blob, `VerificationError` when
    one is damaged, `LayerError`, and `OSError`.
    """
    blobs = [local.kept(store, image, layer, diff_id) for layer, diff_id in image.layers]
    with filling(directory), Worker() as worker:
        os.utime(directory, (0, 0))  # what stays, unless a layer describes its root
        progress.plan(blobs, blobs)
        for diff_id, layer in zip(image.config.diff_ids, blobs, strict=True):
            progress.started(layer)
            job = Job("flat", layer.size, layer.digest.algorithm, diff_id.algorithm, ignore_owners=ignore_owners)
            blob = os.open(store.blobs.path(layer.digest), os.O_RDONLY | os.O_CLOEXEC)
            try:
                outcome: Result | LayerError
                try:
                    async with channel() as words:
                        await words.available(layer.size)
                        outcome = await worker.unpack(job, blob, directory, words, lambda _: None)
                except LayerError as error:
                    outcome = error
                result = await proven(outcome, blob, diff_id, layer)
                warnings = result.warnings + set_trusted(directory, result.trusted_attributes())
            except WrongBlob as error:  # it was right when it was pulled
                raise VerificationError(local.damaged(layer.digest, image.record.reference)) from error
            finally:
                os.close(blob)
            progress.fetched(layer, layer.size)
            progress.finished(layer)
            for warning in warnings:
                progress.note(f"{layer.digest.short}: {warning}")


@contextmanager
def filling(directory: str) -> Iterator[None]:
    """The block fills the directory, which is made, or is there and empty; and so it is again if the block fails.

    Raises `BadArgument` when it is not empty, and `OSError`.
    """
    there = os.path.isdir(directory)
    os.makedirs(directory, exist_ok=True)
    if os.listdir(directory):
        raise BadArgument(f"{directory} is not empty; name a new directory")
    try:
        yield
    except BaseException:
        for path in [os.path.join(directory, name) for name in os.listdir(directory)] if there else [directory]:
            remove_tree(path)
        raise

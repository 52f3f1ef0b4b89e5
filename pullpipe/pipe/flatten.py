"""An image's layers applied in order to one directory: the tree as `tar` and whiteouts alone would make it.

It goes the same way as a pull, from the blobs in the store, only that each layer's entries go into the same directory,
and that a whiteout removes what is there.
"""

from __future__ import annotations

import os

from pullpipe.errors import BadArgument, LayerError, NotFound, VerificationError, WrongBlob
from pullpipe.local import LocalImage, load
from pullpipe.oci import Descriptor
from pullpipe.pipe.proof import proven
from pullpipe.pipe.unpack import Worker, channel
from pullpipe.pipe.whiteouts import set_trusted
from pullpipe.pipe.worker import Job, Result
from pullpipe.progress import Progress
from store import Digest, Store


async def flatten(store: Store, image: LocalImage, directory: str, progress: Progress) -> None:
    """Unpacks the image into `directory`, which is made, or is there and empty.

    Raises `BadArgument` when it is not empty, `NotFound` when the store has not kept a blob, `VerificationError` when
    one is damaged, `LayerError`, and `OSError`. What has been written by then stays, for the user to look at.
    """
    blobs = [_kept(store, image, layer, diff_id) for layer, diff_id in _layers(image)]
    os.makedirs(directory, exist_ok=True)
    if os.listdir(directory):
        raise BadArgument(f"{directory} is not empty; name a new directory")
    os.utime(directory, (0, 0))  # what stays, unless a layer describes its root
    progress.plan(blobs, blobs)
    with Worker() as worker:
        for diff_id, layer in zip(image.config.diff_ids, blobs, strict=True):
            progress.started(layer)
            job = Job("flat", layer.size, layer.digest.algorithm, diff_id.algorithm)
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
                raise VerificationError(
                    f"blob {layer.digest} is damaged in the store; "
                    f"`pullpipe rmi {image.record.reference}`, and pull it again"
                ) from error
            finally:
                os.close(blob)
            progress.fetched(layer, layer.size)
            progress.finished(layer)
            for warning in warnings:
                progress.note(f"{layer.digest.short}: {warning}")


def _layers(image: LocalImage) -> list[tuple[Descriptor, Digest]]:
    return list(zip(image.manifest.layers, image.config.diff_ids, strict=True))


def _kept(store: Store, image: LocalImage, layer: Descriptor, diff_id: Digest) -> Descriptor:
    """The layer's blob; or another image's, which is the same layer under another compression."""
    if layer.digest in store.blobs:
        return layer
    for record in store.images:
        for other, other_diff_id in _layers(load(store, record)):
            if other_diff_id == diff_id and other.digest in store.blobs:
                return other
    raise NotFound(
        f"the store has not kept blob {layer.digest}; pull {image.record.reference} again after `pullpipe rmi`"
    )

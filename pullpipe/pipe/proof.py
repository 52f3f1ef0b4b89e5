"""The last word on a layer: are these its bytes, and did they become what the image says?

A layer that cannot be unpacked may be one that was damaged on its way, so that is looked at before its owner is blamed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from pullpipe.errors import LayerError, VerificationError, WrongBlob, what_and_remedy
from pullpipe.oci import Descriptor
from pullpipe.pipe.worker import Result
from pullpipe.transports import Source
from store import Digest, Store
from store.digest import new_hash

_T = TypeVar("_T")
_ON_THE_WAY = ": damaged on the way, or the source is lying"


async def proven(outcome: Result | LayerError, blob: int, diff_id: Digest, layer: Descriptor) -> Result:
    """What was unpacked, both its digests proven.

    Raises `WrongBlob` when the bytes in the open file `blob` are not the layer's; else `LayerError` for what is wrong
    with the layer itself, or `VerificationError` when it does not unpack to its diffID.
    """
    if isinstance(outcome, LayerError):
        found = await asyncio.to_thread(_digest, blob, layer.digest.algorithm)
        if found != layer.digest.hex:
            raise _wrong_blob(layer, found) from outcome
        raise type(outcome)(outcome.reason, str(layer.digest)) from outcome
    if outcome.blob != layer.digest.hex:
        raise _wrong_blob(layer, outcome.blob)
    if outcome.diff != diff_id.hex:
        raise VerificationError(
            f"layer {layer.digest} unpacks to diffID {diff_id.algorithm}:{outcome.diff}, and the image's config says "
            f"{diff_id}: the image is inconsistent; its owner has to push it anew"
        )
    return outcome


async def prove_blob(fd: int, blob: Descriptor) -> None:
    """Raises `WrongBlob` when the bytes in the open file are not the blob's."""
    found = await asyncio.to_thread(_digest, fd, blob.digest.algorithm)
    if found != blob.digest.hex:
        raise _wrong_blob(blob, found)


def check_sizes(store: Store, blobs: Iterable[Descriptor]) -> None:
    """Of those that the store has. Raises `VerificationError` where a whole blob has another size than is promised.

    One that is damaged in the store is left to whoever needs it.
    """
    for blob in blobs:
        size = store.blobs.size(blob.digest)
        if size not in (None, blob.size):
            with suppress(FileNotFoundError), open(store.blobs.path(blob.digest), "rb") as file:
                if _digest(file.fileno(), blob.digest.algorithm) == blob.digest.hex:
                    raise wrong_size(blob, size)


def wrong_size(blob: Descriptor, size: int | None) -> VerificationError:
    """What to raise."""
    return VerificationError(
        f"blob {blob.digest} has {size} bytes, and the image says {blob.size}: the image is inconsistent; "
        "its owner has to push it anew"
    )


async def with_second_try(
    source: Source, blob: Digest, note: Callable[[str], None], attempt: Callable[[], Awaitable[_T]]
) -> _T:
    """What the attempt comes to. When that raises `WrongBlob`, of which nothing is kept, it is made once more.

    Not where the blob lies on this machine, and would be the same again.
    """
    try:
        return await attempt()
    except WrongBlob as error:
        if source.has_here(blob):
            what = what_and_remedy(error)[0].removesuffix(_ON_THE_WAY)
            why = f" ({error.__cause__})" if isinstance(error.__cause__, LayerError) else ""
            raise WrongBlob(
                f"{what}{why}: it is damaged, or ends too early, where it is loaded from; nothing of it was kept, "
                "make that archive or layout anew"
            ) from error
        note(f"{what_and_remedy(error)[0]}; fetching it again")
        givers = source.doubt(blob)
    try:
        return await attempt()
    except WrongBlob as error:
        what, remedy = what_and_remedy(error)
        givers = [f"from {name}" for name in dict.fromkeys(givers + source.doubt(blob))]
        raise WrongBlob(f"{what} (fetched again{': ' if givers else ''}{', then '.join(givers)}){remedy}") from error


def _digest(fd: int, algorithm: str) -> str:
    """The hex digest of the whole file."""
    blob_hash = new_hash(algorithm)
    at = 0
    while data := os.pread(fd, 1 << 20, at):
        blob_hash.update(data)
        at += len(data)
    return blob_hash.hexdigest()


def _wrong_blob(layer: Descriptor, got: str) -> WrongBlob:
    return WrongBlob(
        f"blob {layer.digest} arrived with the digest {layer.digest.algorithm}:{got}{_ON_THE_WAY}; "
        "nothing of it was kept, try again"
    )

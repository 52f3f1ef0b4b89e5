"""One blob into its ingest file.

The file only grows: what an earlier run left is continued. So whoever follows the file (the unpack worker, which hashes
every byte of it) never sees a byte change.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from time import monotonic

import aiofiles.os

from pullpipe.errors import TransferError, VerificationError
from pullpipe.oci import Descriptor
from pullpipe.trace import Times
from pullpipe.transports import Source, open_blob
from store import Ingest

_WRITE = 1 << 20  # bytes: each write costs a hop to a thread
_PIECES = 1000  # at most in one write; the kernel takes 1024
_pwritev = aiofiles.os.wrap(os.pwritev)


async def fetch(
    source: Source, descriptor: Descriptor, ingest: Ingest, available: Callable[[int], Awaitable[None]], times: Times
) -> None:
    """Appends to the ingest until it has `descriptor.size` bytes, and says each time how many are there.

    Raises `TransferError` when the source ends early, and `VerificationError` when it sends more than was promised.
    """
    present = ingest.present
    await available(present)
    if present == descriptor.size:
        return
    async with open_blob(source, descriptor, present) as arriving:
        pieces: list[bytes] = []
        waiting = 0
        now = monotonic()
        try:
            async for piece in arriving:
                now = times.since("recv", now)
                pieces.append(piece)
                waiting += len(piece)
                if present + waiting > descriptor.size:
                    raise VerificationError(
                        f"blob {descriptor.digest} is longer than the {descriptor.size} bytes that the manifest "
                        "promises; the registry is damaged or lying"
                    )
                if waiting >= _WRITE or len(pieces) == _PIECES:
                    present += await _append(ingest.fileno(), pieces, present)
                    waiting = 0
                    await available(present)
                    now = times.since("store", now)
        finally:
            if waiting:  # also when the connection broke: the next attempt goes on from here
                present += await _append(ingest.fileno(), pieces, present)
                await available(present)
                times.since("store", now)
    if present != descriptor.size:
        raise TransferError(
            f"blob {descriptor.digest} is truncated: the source ended after {present} of {descriptor.size} bytes; "
            "try again, or ask its owner to push the image anew"
        )


def is_wasted(error: BaseException) -> bool:
    """Whether what has arrived before this error is of no use, or in the way of whatever makes room."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or isinstance(error, VerificationError)


async def _append(fd: int, pieces: list[bytes], offset: int) -> int:
    """Writes the pieces as they are, from `offset` on, and returns how many bytes they had."""
    length = sum(map(len, pieces))
    written = await _pwritev(fd, pieces, offset)
    if written < length:  # the kernel may take less than it is given
        rest = b"".join(pieces)
        while written < length:
            written += await _pwritev(fd, [rest[written:]], offset + written)
    pieces.clear()
    return length

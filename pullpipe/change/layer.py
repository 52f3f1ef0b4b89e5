"""A layer that no registry has: its blob in a nameless file, with both digests."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple, Protocol

from pullpipe.errors import BadArgument
from pullpipe.pipe.inflate import HEAD, Compression, archive_called, compression_of, inflate
from store import Digest
from store.digest import new_hash

_PIECE = 1 << 20  # bytes


class NewLayer(NamedTuple):
    """Of what a draft's top layer may be."""

    digest: Digest
    diff_id: Digest
    size: int  # bytes, compressed
    compression: Compression
    path: str  # of the file, as long as that is open


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


@contextmanager
def packed(tar: Iterable[bytes], compression: Compression, spool: str) -> Iterator[NewLayer]:
    """The layer of a tar stream. The same stream comes to the same bytes by the same versions of the compressors.

    `spool` is the directory that the nameless file is made in. Raises `OSError`, and what `tar` does.
    """
    compressor = _compressor(compression)
    diff_hash = new_hash("sha256")
    with tempfile.TemporaryFile(dir=spool) as file:
        writer = _Writer(file)
        for piece in tar:
            diff_hash.update(piece)
            writer.write(compressor.compress(piece))
        writer.write(compressor.flush())
        yield writer.layer(Digest("sha256", diff_hash.hexdigest()), compression)


@contextmanager
def adopted(
    read: Callable[[int], bytes], name: str, compression: Compression | None, spool: str, limit: int
) -> Iterator[NewLayer]:
    """The layer of a tar archive, which keeps its bytes if it is compressed; else it is compressed by gzip.

    With a `compression` it gets that. `name` is what to call it in messages; `limit` is the most bytes that it may
    unpack to, 0 for any number: it may be a stream that has no end. Raises `BadArgument` for that, for what cannot be
    decompressed, and for nothing at all; whether it is a tar archive shows when it is unpacked.
    """
    head = read(_PIECE)
    with archive_called(name):
        found = compression_of(head[:HEAD])
    ahead = [head]

    def plain(heard: Callable[[bytes], object]) -> Iterator[bytes]:
        def next_piece() -> bytes:
            piece = ahead.pop() if ahead else read(_PIECE)
            heard(piece)
            return piece

        size = 0
        with archive_called(name):
            for piece in inflate(next_piece):
                size += len(piece)
                if limit and size > limit:
                    raise BadArgument(f"{name} unpacks to more than {limit} bytes; --max-size allows more")
                yield piece
        if not size:
            raise BadArgument(f"{name} is empty, and no tar archive; see what should have written it")

    if found == "none" or (compression is not None and compression != found):
        with packed(plain(len), compression or "gzip", spool) as layer:
            yield layer
        return
    diff_hash = new_hash("sha256")
    with tempfile.TemporaryFile(dir=spool) as file:
        writer = _Writer(file)
        for piece in plain(writer.write):
            diff_hash.update(piece)
        yield writer.layer(Digest("sha256", diff_hash.hexdigest()), found)


class _Writer:
    """A blob that is being written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = new_hash("sha256")
        self._size = 0

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)
        self._size += len(data)

    def layer(self, diff_id: Digest, compression: Compression) -> NewLayer:
        """What has been written."""
        self._file.flush()
        path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        return NewLayer(Digest("sha256", self._hash.hexdigest()), diff_id, self._size, compression, path)


def _compressor(compression: Compression) -> _Compressor:
    if compression == "gzip":
        return zlib.compressobj(6, wbits=31)
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return _Plain()

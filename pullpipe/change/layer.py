"""A layer that no registry has: its blob in a nameless file, with both digests."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Literal, NamedTuple, Protocol, TypeAlias, get_args

from pullpipe.errors import BadArgument, LayerError
from pullpipe.pipe.inflate import inflate
from store import Digest
from store.digest import new_hash

Compression: TypeAlias = Literal["gzip", "zstd", "none"]
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
_PIECE = 1 << 20  # bytes
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


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
def adopted(read: Callable[[int], bytes], name: str, compression: Compression | None, spool: str) -> Iterator[NewLayer]:
    """The layer of a tar archive, which keeps its bytes if it is compressed; else it is compressed by gzip.

    With a `compression` it gets that. `name` is what to call it in messages. Raises `BadArgument` for what cannot be
    decompressed; whether it is a tar archive shows when it is unpacked.
    """
    head = read(_PIECE)
    found: Compression = "gzip" if head.startswith(_GZIP) else "zstd" if head.startswith(_ZSTD) else "none"
    ahead = [head]

    def plain(heard: Callable[[bytes], object]) -> Iterator[bytes]:
        def next_piece() -> bytes:
            piece = ahead.pop() if ahead else read(_PIECE)
            heard(piece)
            return piece

        try:
            yield from inflate(next_piece)
        except LayerError as error:
            raise BadArgument(f"{name}: {error}".replace("the layer", "the archive")) from error

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

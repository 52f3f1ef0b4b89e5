"""Gzip, zstd or plain: a stream of bytes in, a stream of bytes out.

The first bytes decide which, not a media type. Output comes in pieces of at most `PIECE` bytes however well the input
is compressed, so a bomb costs time and never memory. Damage, truncation and bytes that belong to nothing are errors.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Literal, Protocol, TypeAlias, cast

import zstandard

from pullpipe.errors import BadArgument, LayerError, UnknownCompression

try:
    from isal import igzip_lib
except ImportError:  # no wheel for this machine; zlib does the same at 40 % of the speed
    igzip_lib = None  # type: ignore[assignment]

Compression: TypeAlias = Literal["gzip", "zstd", "none"]
HEAD = 6  # bytes that tell it
PIECE = 1 << 20  # bytes of output at a time: handing on costs threads more than what the caches lose by larger ones
# RFC 8878 asks for 8 MiB windows at least; `zstd --long=27` is the most that decoders take without being told to.
_ZSTD_WINDOW = 1 << 27

_GZIP = b"\x1f\x8b"
_GZIP_HEADER_LIMIT = 128 << 10  # bytes; two texts, and what FEXTRA can hold
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = tuple(bytes((low, 0x2A, 0x4D, 0x18)) for low in range(0x50, 0x60))
_UNSUPPORTED = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x04\x22\x4d\x18": "lz4"}


def inflate(read: Callable[[], bytes]) -> Iterator[bytes]:
    """Yields the decompressed stream. `read` returns the next bytes, and `b""` at the end; raises `LayerError`."""
    source = _Source(read)
    compression = compression_of(source.peek(HEAD))
    return _gzip(source) if compression == "gzip" else _zstd(source) if compression == "zstd" else source.pieces()


@contextmanager
def archive_called(name: str) -> Iterator[None]:
    """For a block that inflates an archive of the user's, called so: what is wrong with it is a `BadArgument`."""
    try:
        yield
    except UnknownCompression as error:
        what = f"{name} is compressed with {error.program}"
        raise BadArgument(f"{what}; decompress it on the way: `{error.program} -dc {name} | pullpipe … -`") from error
    except LayerError as error:
        raise BadArgument(f"{name}: {error}".replace("the layer", "the archive")) from error


def compression_of(head: bytes) -> Compression:
    """Of what begins so. Raises `UnknownCompression`."""
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith((_ZSTD, *_SKIPPABLE)):
        return "zstd"
    for magic, program in _UNSUPPORTED.items():
        if head.startswith(magic):
            raise UnknownCompression(program)
    return "none"


class _Source:
    """Compressed bytes with a look ahead."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._ahead = b""
        self._at = 0  # in what is ahead: a decoder may take three bytes of it at a time

    def take(self, limit: int) -> bytes:
        """At most `limit` of the next bytes, and at least one unless this is the end."""
        if self._at == len(self._ahead):
            self._ahead, self._at = self._read(), 0
        data = self._ahead[self._at : self._at + limit]
        self._at += len(data)
        return data

    def peek(self, count: int) -> bytes:
        """The next `count` bytes without taking them; fewer only at the end."""
        while len(self._ahead) - self._at < count and (more := self._read()):
            self._ahead, self._at = self._ahead[self._at :] + more, 0
        return self._ahead[self._at : self._at + count]

    def give_back(self, data: bytes) -> None:
        """Puts back what was taken last."""
        self._ahead, self._at = data + self._ahead[self._at :], 0

    def pieces(self) -> Iterator[bytes]:
        """All that is left."""
        while data := self.take(PIECE):
            yield data


class _Decompressor(Protocol):
    """The interface of `bz2.BZ2Decompressor`."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _ZlibDecompressor:
    """zlib's decompressor behind the interface that isal's has."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self._tail = b""
        self.eof = False
        self.needs_input = True
        self.unused_data = b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        output = self._inner.decompress(self._tail + data, max_length)
        self._tail = self._inner.unconsumed_tail
        self.eof = self._inner.eof
        self.unused_data = self._inner.unused_data
        self.needs_input = not self._tail and len(output) < max_length
        return output


def _new_member() -> _Decompressor:
    return _ZlibDecompressor() if igzip_lib is None else igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


_GZIP_ERRORS = (zlib.error,) if igzip_lib is None else (zlib.error, cast("type[Exception]", igzip_lib.error))


def _gzip(source: _Source) -> Iterator[bytes]:
    """RFC 1952: members one after the other, then nothing, or zeros up to the end as tapes have them."""
    try:
        while head := source.peek(len(_GZIP)):
            if not head.strip(b"\0"):
                _expect_zeros(source)
                return
            _gather_gzip_header(source)
            member = _new_member()
            while not member.eof:
                data = source.take(PIECE) if member.needs_input else b""
                if member.needs_input and not data:
                    raise LayerError("the layer's gzip stream is truncated")
                if output := member.decompress(data, PIECE):
                    yield output
            source.give_back(member.unused_data)
    except _GZIP_ERRORS as error:
        raise LayerError(f"the layer's gzip stream is damaged: {error}") from error


def _gather_gzip_header(source: _Source) -> None:
    """Has the whole header ahead: isal 2.31 misreads some that come to it in pieces."""
    flags = source.peek(10)[3:4] or b"\0"
    length = 10
    if not source.peek(length).startswith(_GZIP):
        raise LayerError("the layer's gzip stream has garbage behind its end")
    if flags[0] & 0x04:  # FEXTRA
        length += 2 + int.from_bytes(source.peek(length + 2)[length:], "little")
    for flag in (0x08, 0x10):  # FNAME, FCOMMENT
        if flags[0] & flag:
            end = -1
            window = length
            while end < 0:
                window += 256
                ahead = source.peek(window)
                end = ahead.find(b"\0", length)
                if end < 0 and (len(ahead) < window or window > _GZIP_HEADER_LIMIT):
                    raise LayerError("the layer's gzip stream is truncated, or its header is too long")
            length = end + 1
    source.peek(length + 2)  # FHCRC


def _expect_zeros(source: _Source) -> None:
    while data := source.take(PIECE):
        if data.strip(b"\0"):
            raise LayerError("the layer's gzip stream has garbage behind its end")


def _zstd(source: _Source) -> Iterator[bytes]:
    """RFC 8878: frames one after the other, skippable ones anywhere."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    try:
        while head := source.peek(18):  # the longest frame header
            if head.startswith(_SKIPPABLE):
                _skip_frame(source)
            elif head.startswith(_ZSTD):
                frame = cast("IO[bytes]", _ZstdFrame(source, head))
                reader = decompressor.stream_reader(frame, read_size=PIECE)
                while piece := reader.read(PIECE):
                    yield piece
            else:
                raise LayerError("the layer's zstd stream has garbage between or behind its frames")
    except zstandard.ZstdError as error:
        raise LayerError(f"the layer's zstd stream is damaged: {error}") from error


def _exactly(source: _Source, count: int) -> bytes:
    data = source.take(count)
    while len(data) < count:
        more = source.take(count - len(data))
        if not more:
            raise LayerError("the layer's zstd stream is truncated")
        data += more
    return data


def _skip_frame(source: _Source) -> None:
    left = int.from_bytes(_exactly(source, 8)[4:], "little")
    while left:
        piece = source.take(min(left, PIECE))
        if not piece:
            raise LayerError("the layer's zstd stream is truncated")
        left -= len(piece)


class _ZstdFrame:
    """One frame's bytes as a file, by walking its block headers.

    The decoder bounds its output only when it reads from a file, and then it reads ahead, and says nothing when the
    input ends in the middle of a frame. This gives it a file that ends where the frame ends, and an error where it
    does not.
    """

    def __init__(self, source: _Source, head: bytes) -> None:
        self._source = source
        self._left = zstandard.frame_header_size(head)  # of the header, the block or the checksum that we are in
        self._checksum = 4 if zstandard.get_frame_parameters(head).has_checksum else 0
        self._last = False

    def read(self, limit: int) -> bytes:
        """At most `limit` bytes; empty at the frame's end."""
        if self._left:
            data = self._source.take(min(limit, self._left))
            if not data:
                raise LayerError("the layer's zstd stream is truncated")
            self._left -= len(data)
            return data
        if self._last:
            self._left, self._checksum = self._checksum, 0
            return self.read(limit) if self._left else b""
        header = _exactly(self._source, 3)
        fields = int.from_bytes(header, "little")
        self._last = bool(fields & 1)
        run_length = fields >> 1 & 3 == 1  # one byte, repeated
        self._left = 1 if run_length else fields >> 3
        return header

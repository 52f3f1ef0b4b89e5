"""Decompression: what counts as a stream, what is damage, and that a bomb costs no memory (LAYERS.md, lines 32, 33)."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from pullpipe.errors import LayerError
from pullpipe.pipe import inflate as module
from pullpipe.pipe.inflate import inflate
from tests.conftest import PROJECT, require
from tests.pipe.blocks import CHUNKS, pieces

SEED = random.Random(1)
DATA = b"".join(SEED.randbytes(100) + bytes(200) for _ in range(2000))  # half of it compresses
SKIPPABLE = struct.pack("<II", 0x184D2A50, 5) + b"hello"


def plain(data: bytes, chunk: int = 64 << 10) -> bytes:
    """The whole stream."""
    return b"".join(inflate(pieces(data, chunk)))


def zstd(data: bytes, level: int = 3, *, size: bool = True, checksum: bool = False) -> bytes:
    """One frame, with or without the two fields that are optional."""
    compressor = zstandard.ZstdCompressor(level, write_content_size=size, write_checksum=checksum)
    return compressor.compress(data)


def member(data: bytes, flags: int = 0, extra: bytes = b"") -> bytes:
    """One gzip member with a hand-made header (RFC 1952, 2.3)."""
    compressor = zlib.compressobj(wbits=-15)
    body = compressor.compress(data) + compressor.flush()
    head = b"\x1f\x8b\x08" + bytes((flags,)) + bytes(4) + b"\0\xff" + extra
    return head + body + struct.pack("<II", zlib.crc32(data), len(data))


GOOD = {
    "gzip": gzip.compress(DATA),
    "gzip stored": gzip.compress(DATA, 0),
    "gzip best": gzip.compress(DATA, 9),
    "gzip members": gzip.compress(DATA[:1000]) + gzip.compress(DATA[1000:300_000]) + gzip.compress(DATA[300_000:]),
    "gzip empty members": gzip.compress(b"") * 3 + gzip.compress(DATA) + gzip.compress(b"") * 3,
    "gzip zero padding": gzip.compress(DATA) + bytes(10_000),
    "gzip one zero": gzip.compress(DATA) + b"\0",
    "gzip name": member(DATA, 0x08, b"layer.tar\0"),
    "gzip extra": member(DATA, 0x04, struct.pack("<H", 6) + b"AB\2\0xy"),
    "gzip comment": member(DATA, 0x10, b"a comment\0"),
    "gzip all": member(DATA, 0x1C, struct.pack("<H", 300) + bytes(300) + b"n" * 1000 + b"\0" + b"c" * 1000 + b"\0"),
    "zstd": zstd(DATA),
    "zstd no size": zstd(DATA, size=False),
    "zstd checksum": zstd(DATA, checksum=True),
    "zstd best": zstd(DATA, 19),
    "zstd frames": zstd(DATA[:1000]) + zstd(DATA[1000:], size=False, checksum=True),
    "zstd empty frames": zstd(b"") + zstd(b"", size=False) + zstd(DATA) + zstd(b""),
    "zstd skippable": SKIPPABLE + zstd(DATA[:500]) + SKIPPABLE * 2 + zstd(DATA[500:]) + SKIPPABLE,
    "plain": DATA,
}


# Byte by byte where there is a structure to cut, and not through 600,000 bytes that have none.
@pytest.mark.parametrize(
    ("kind", "chunk"),
    [(kind, chunk) for kind in GOOD for chunk in CHUNKS if chunk > 1 or kind not in ("plain", "gzip stored")],
)
def test_every_form_in_pieces_of_any_size(kind: str, chunk: int) -> None:
    """Headers, members and frames may be cut anywhere by the network; the content is the same."""
    assert plain(GOOD[kind], chunk) == DATA


def test_header_checksum_of_gzip() -> None:
    """FHCRC: two bytes behind the header, which belong to no data."""
    head = b"\x1f\x8b\x08\x02" + bytes(4) + b"\0\xff"
    checked = head + struct.pack("<H", zlib.crc32(head) & 0xFFFF) + member(b"data")[10:]
    for chunk in (1, 11, 64):
        assert plain(checked, chunk) == b"data"


@pytest.mark.parametrize(("tool", "options"), [("gzip", ["-9"]), ("zstd", ["-19", "--long=27"]), ("zstd", ["--check"])])
def test_what_the_tools_write(tool: str, options: list[str]) -> None:
    """gzip and zstd themselves, from a pipe: no content size there, and the window that --long=27 asks for."""
    done = subprocess.run([require(tool), *options, "-c"], input=DATA, capture_output=True, check=True)
    assert plain(done.stdout) == DATA


def test_a_window_of_128_mib() -> None:
    """The most that a decoder takes without being told to, and that images are made with."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27, write_content_size=0)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = compressor.compress(DATA) + compressor.flush()
    assert zstandard.get_frame_parameters(frame).window_size == 1 << 27
    assert plain(frame) == DATA


def test_a_window_beyond_128_mib_is_refused() -> None:
    """It would cost its memory before the first byte of output."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, write_content_size=0)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = compressor.compress(DATA) + compressor.flush()
    with pytest.raises(LayerError, match="zstd"):
        plain(frame)


def test_the_first_bytes_decide() -> None:
    """Nothing else can: there is no media type to look at. What begins like nothing known is plain."""
    assert plain(b"\x1f\x8bnot gzip"[:1] + b"plain") == b"\x1fplain"
    assert plain(b"\x28\xb5\x2f") == b"\x28\xb5\x2f"
    assert plain(b"") == b""
    with pytest.raises(LayerError):
        plain(b"\x1f\x8bnot gzip")


@pytest.mark.parametrize(
    ("compress", "name"),
    [
        (bz2.compress, "bzip2"),
        (lzma.compress, "xz"),
        (lambda data: b"\x04\x22\x4d\x18" + data, "lz4"),
    ],
)
def test_other_compressions_are_named(compress: Callable[[bytes], bytes], name: str) -> None:
    """Not "bad checksum": the user learns what to change."""
    with pytest.raises(LayerError, match=name):
        plain(compress(DATA))


SMALL = SEED.randbytes(300) + bytes(300)
TRUNCATED = {
    "gzip": (gzip.compress(SMALL), [0]),
    "gzip stored": (gzip.compress(SMALL, 0), [0]),
    "gzip members": (gzip.compress(SMALL) * 2, [0, len(gzip.compress(SMALL))]),
    "gzip header": (member(SMALL, 0x0C, struct.pack("<H", 3) + b"abc" + b"name\0"), [0]),
    "zstd": (zstd(SMALL), [0]),
    "zstd no size, checksum": (zstd(SMALL, size=False, checksum=True), [0]),
    "zstd frames": (zstd(SMALL) + zstd(SMALL, size=False), [0, len(zstd(SMALL))]),
    "zstd skippable": (zstd(SMALL) + SKIPPABLE, [0, len(zstd(SMALL))]),
    "zstd blocks": (zstd(SEED.randbytes(150_000), 1)[:200_000], [0]),
}


@pytest.mark.parametrize("kind", TRUNCATED)
def test_truncation_anywhere_is_an_error(kind: str) -> None:
    """Cut at any byte but between two members or frames: zlib's and zstd's decoders say nothing by themselves."""
    data, clean = TRUNCATED[kind]
    cuts = range(4, len(data)) if len(data) < 5000 else [4, 9, 12, 17, 131_000, 131_080, 131_090, len(data) - 1]
    for cut in cuts:
        if cut in clean:
            plain(data[:cut])
            continue
        with pytest.raises(LayerError):
            plain(data[:cut], 300)


@pytest.mark.parametrize("garbage", [b"x", b"\x1f", b"garbage" * 100, b"\0\0x", bytes(1000) + b"x", b"\x1f\x8b"])
@pytest.mark.parametrize("chunk", [1, 7, 64 << 10])
def test_garbage_behind_gzip_is_an_error(garbage: bytes, chunk: int) -> None:
    """It is in the blob's digest and nowhere else; other readers may make something of it."""
    with pytest.raises(LayerError, match="gzip"):
        plain(gzip.compress(SMALL) + garbage, chunk)


@pytest.mark.parametrize("zeros", [1, 512, module.PIECE, 2 * module.PIECE])
def test_a_member_behind_zeros_is_the_same_in_any_pieces(zeros: int) -> None:
    """Padding ends a stream. Whether what follows is refused may not depend on how the bytes happen to arrive."""
    data = gzip.compress(SMALL)
    padded = data + bytes(zeros) + data
    for chunk in (len(data), len(data) + zeros, 1000, 64 << 10, len(padded)):
        with pytest.raises(LayerError, match="gzip"):
            plain(padded, chunk)


@pytest.mark.parametrize("garbage", [b"x", b"\0", b"garbage" * 100, bytes(1000), b"\x28\xb5\x2f\xfd"])
@pytest.mark.parametrize("chunk", [1, 7, 64 << 10])
def test_garbage_behind_zstd_is_an_error(garbage: bytes, chunk: int) -> None:
    """A zstd stream is frames and nothing but frames."""
    with pytest.raises(LayerError, match="zstd"):
        plain(zstd(SMALL) + garbage, chunk)
    with pytest.raises(LayerError, match="zstd"):
        plain(SKIPPABLE + garbage, chunk)


@pytest.mark.parametrize("kind", ["gzip", "gzip stored", "zstd checksum"])
def test_flipped_bits_are_errors(kind: str) -> None:
    """Checksums are compared: the content of a damaged stream never passes as whole."""
    good = {"gzip": gzip.compress(SMALL), "gzip stored": gzip.compress(SMALL, 0)}.get(kind, zstd(SMALL, checksum=True))
    for at in range(4, len(good)):
        damaged = bytearray(good)
        damaged[at] ^= 0x04
        try:
            content = plain(bytes(damaged))
        except LayerError:
            continue
        assert content == SMALL, f"byte {at}"  # a field that says nothing of the content: times, system


@pytest.mark.parametrize("at", [-1, -5], ids=["length", "CRC"])
def test_gzip_trailers_are_checked(at: int) -> None:
    """Also the one of a member in the middle."""
    damaged = bytearray(gzip.compress(SMALL))
    damaged[at] ^= 1
    for data in (bytes(damaged), bytes(damaged) + gzip.compress(SMALL), gzip.compress(SMALL) + bytes(damaged)):
        with pytest.raises(LayerError, match="gzip"):
            plain(data)


def test_the_zstd_checksum_is_checked() -> None:
    """The four bytes behind the last block."""
    damaged = bytearray(zstd(SMALL, checksum=True))
    damaged[-1] ^= 1
    with pytest.raises(LayerError, match="zstd"):
        plain(bytes(damaged))


def test_a_huge_skippable_frame_is_not_believed() -> None:
    """It claims 4 GiB, and has none of them."""
    with pytest.raises(LayerError, match="truncated"):
        plain(struct.pack("<II", 0x184D2A5F, 0xFFFFFFFF) + b"x")


def test_pieces_are_bounded() -> None:
    """However well the input is compressed, no piece is larger than PIECE."""
    bomb = bytes(20 << 20)
    for data in (gzip.compress(bomb), zstd(bomb), gzip.compress(b"") + gzip.compress(bomb), bomb):
        sizes = [len(piece) for piece in inflate(pieces(data, 1 << 20))]
        assert sum(sizes) == len(bomb)
        assert 0 < max(sizes) <= module.PIECE


def test_zlib_does_what_isal_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where isal has no wheel, zlib takes over: the same content, the same errors."""
    monkeypatch.setattr(module, "igzip_lib", None)
    monkeypatch.setattr(module, "_GZIP_ERRORS", (zlib.error,))
    for kind, data in GOOD.items():
        if kind.startswith("gzip"):
            assert plain(data, 513) == DATA, kind
    for data in (gzip.compress(SMALL)[:-1], gzip.compress(SMALL) + b"x", b"\x1f\x8b\x08" + os.urandom(100)):
        with pytest.raises(LayerError, match="gzip"):
            plain(data)
    assert max(len(piece) for piece in inflate(pieces(gzip.compress(bytes(20 << 20)), 1 << 20))) <= module.PIECE


MEASURE = """
import resource, sys
from pullpipe.pipe.inflate import inflate
with open(sys.argv[1], "rb") as file:
    stream = inflate(lambda: file.read(256 << 10))
    total = len(next(stream))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for piece in stream:
        total += len(piece)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(total, after - before)
"""


@pytest.mark.parametrize("kind", ["gzip", "zstd", "zstd no size", "zstd --long=27"])
def test_memory_stays_flat_for_a_bomb(kind: str, tmp_path: Path) -> None:
    """256 MiB of zeros, compressed to next to nothing, pass through a process that hardly grows.

    With a window of 128 MiB the window itself is what zstd has to keep.
    """
    size, window = 256 << 20, 128 << 20 if kind == "zstd --long=27" else 8 << 20
    bomb = tmp_path / "bomb"
    if kind == "gzip":
        bomb.write_bytes(gzip.compress(bytes(size), 1))
    else:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            1, window_log=window.bit_length() - 1, write_content_size=kind == "zstd"
        )
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size if kind == "zstd" else -1)
        bomb.write_bytes(compressor.compress(bytes(size)) + compressor.flush())
    assert bomb.stat().st_size < 2 << 20
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, bomb], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    total, grown = map(int, done.stdout.split())
    assert total == size
    assert grown << 10 < window + (8 << 20)

"""Tar archives block by block, for headers that no tool writes (POSIX pax, "ustar Interchange Format")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from pullpipe.pipe.tarstream import Entry, TarStream

BLOCK = 512
END = bytes(2 * BLOCK)
CHUNKS = (1, 511, 512, 513, 64 << 10)

V7, USTAR, GNU = b"", b"ustar\x0000", b"ustar  \0"


def octal(value: int, width: int) -> bytes:
    """A number as every tar writes it."""
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    """A number as GNU tar and star write those that octal digits cannot hold, or that are negative."""
    data = bytearray(value.to_bytes(width, "big", signed=True))
    data[0] |= 0x80
    return bytes(data)


def header(
    name: bytes = b"file",
    *,
    kind: bytes = b"0",
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 0,
    linkname: bytes = b"",
    magic: bytes = USTAR,
    major: int | bytes = 0,
    minor: int | bytes = 0,
    prefix: bytes = b"",
    tail: bytes = b"",
    checksum: bytes | None = None,
    signed: bool = False,
) -> bytes:
    """One header block. Numbers given as bytes are written as they are; `tail` fills the block's last bytes."""

    def number(value: int | bytes, width: int) -> bytes:
        return value.ljust(width, b"\0") if isinstance(value, bytes) else octal(value, width)

    block = bytearray(BLOCK)
    fields: tuple[tuple[int, bytes], ...] = (
        (0, name),
        (100, number(mode, 8)),
        (108, number(uid, 8)),
        (116, number(gid, 8)),
        (124, number(size, 12)),
        (136, number(mtime, 12)),
        (148, b" " * 8),
        (156, kind),
        (157, linkname),
        (257, magic),
        (329, number(major, 8)),
        (337, number(minor, 8)),
        (345, prefix),
        (BLOCK - len(tail), tail),
    )
    for at, value in fields:
        block[at : at + len(value)] = value
    assert len(block) == BLOCK
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % total if checksum is None else checksum.ljust(8, b"\0")
    return bytes(block)


def padded(data: bytes) -> bytes:
    """Data up to the next block's border."""
    return data + bytes(-len(data) % BLOCK)


def file(name: bytes = b"file", data: bytes = b"", **fields: int | bytes) -> bytes:
    """A regular file with its data."""
    return header(name, size=fields.pop("size", len(data)), **fields) + padded(data)  # type: ignore[arg-type]


def record(key: bytes, value: bytes) -> bytes:
    """One record of an extended header; its length counts its own digits."""
    length = len(key) + len(value) + 3
    while len(str(length)) + len(key) + len(value) + 3 != length:
        length = len(str(length)) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def pax(records: Mapping[bytes, bytes] | bytes, *, kind: bytes = b"x", magic: bytes = USTAR) -> bytes:
    """An extended header (`x`, or the archive's `g`) with these records, or with this very text."""
    data = records if isinstance(records, bytes) else b"".join(record(*item) for item in records.items())
    return header(b"PaxHeaders/x", kind=kind, size=len(data), magic=magic) + padded(data)


def gnu_long(text: bytes, *, kind: bytes = b"L") -> bytes:
    """GNU's header for a long name (`L`) or link name (`K`)."""
    return header(b"././@LongLink", kind=kind, size=len(text) + 1, magic=GNU) + padded(text + b"\0")


class Read(NamedTuple):
    """An entry with its data."""

    entry: Entry
    data: bytes


def pieces(data: bytes, chunk: int) -> Callable[[], bytes]:
    """A `read` function that hands out `chunk` bytes at a time."""
    at = 0

    def read() -> bytes:
        nonlocal at
        at += chunk
        return data[at - chunk : at]

    return read


def entries(archive: bytes, chunk: int = 64 << 10) -> list[Read]:
    """All entries of the archive with their data."""
    stream = TarStream(pieces(archive, chunk))
    return [Read(entry, b"".join(map(bytes, stream.data()))) for entry in stream]


def names(archive: bytes, chunk: int = 64 << 10) -> list[bytes]:
    """The entries' names."""
    return [read.entry.name for read in entries(archive, chunk)]


def joined(*parts: bytes | Iterable[bytes]) -> bytes:
    """Parts of an archive, and its end."""
    return b"".join(part if isinstance(part, bytes) else b"".join(part) for part in parts) + END

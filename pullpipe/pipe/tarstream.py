"""A stream of bytes in, tar entries out. Pure parsing: touches no file.

Reads v7, ustar (with prefix), star, GNU (L, K, base-256, sparse) and PAX (x, g, sparse) archives, mixed as they come,
in one pass.
What an entry means for a directory is decided elsewhere; here only the syntax is judged, and strictly: two programs
that read one archive differently are how archives become attacks (CVE-2025-62518). Where the field disagrees, Go's
`archive/tar` decides, for it is what builds and unpacks most images.

Memory is bounded by the chunks that `read` hands over, plus `_EXTENDED_LIMIT`: nothing is allocated on a header's word.
This file stands on the hot path (one header costs about 4 µs): numbers are read from slices that repeat from entry
to entry, so they are remembered, and the checksum is taken by `zlib.adler32`, whose low half is the sum of the bytes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes
from zlib import adler32

from pullpipe.errors import LayerError

BLOCK = 512
_ZEROS = bytes(BLOCK)
_EXTENDED_LIMIT = 1 << 20  # of one x, g, L or K header's data; Go's limit, too
_RECORDS_LIMIT = 4096  # in all headers that count for one entry
_MEMORY_LIMIT = 4096  # entries of the memo for mode, owner and group
_SECONDS_LIMIT = 1 << 62  # of a time: no kernel takes more
_SIZE_LIMIT = (1 << 63) - 1  # bytes of a file
_ID_LIMIT = (1 << 32) - 2  # of an owner or group; the one above means "leave it" to chown

REGULAR, HARDLINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_CONTIGUOUS, _OLD_REGULAR = b"7", b"\0"
_GNU_SPARSE, _GNU_DUMPDIR, _GNU_VOLUME = b"S", b"D", b"V"
_HEADER_ONLY = frozenset({HARDLINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO})
_KINDS = {kind: kind for kind in (REGULAR, *_HEADER_ONLY)} | {
    _CONTIGUOUS: REGULAR,
    _OLD_REGULAR: REGULAR,
    _GNU_SPARSE: REGULAR,
    _GNU_DUMPDIR: DIRECTORY,
}
_PAX_LOCAL, _PAX_SOLARIS, _PAX_GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK = b"x", b"X", b"g", b"L", b"K"
_EXTENDED = frozenset({_PAX_LOCAL, _PAX_SOLARIS, _PAX_GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK, _GNU_VOLUME})

_SPARSE = b"GNU.sparse."
_TEXTS = frozenset({b"path", b"linkpath", b"uname", b"gname", _SPARSE + b"name"})
_SPARSE_LIST = frozenset({_SPARSE + b"offset", _SPARSE + b"numbytes"})
_SEGMENTS_LIMIT = 1 << 16  # of one sparse file; GNU tar makes one for each run of data
_TIME = re.compile(rb"(-?)([0-9]+)(?:\.([0-9]*))?")
_XATTRS = _SCHILY_XATTR, _LIBARCHIVE_XATTR = b"SCHILY.xattr.", b"LIBARCHIVE.xattr."


class Sparse(NamedTuple):
    """Where a sparse file's data belongs; the rest of it is holes."""

    size: int  # of the file in bytes
    segments: tuple[tuple[int, int], ...]  # (offset in the file, length), ascending; their data follows in this order


class Entry(NamedTuple):
    """One member. Names are bytes, as the archive has them."""

    name: bytes
    kind: bytes  # REGULAR … FIFO
    mode: int
    uid: int
    gid: int
    size: int  # bytes of data that follow; of a directory, nothing a reader needs
    mtime_ns: int  # nanoseconds since 1970, may be negative
    linkname: bytes
    major: int
    minor: int
    xattrs: dict[bytes, bytes]
    offset: int  # of its header in the stream, for messages
    sparse: Sparse | None = None  # None: the data is the file


class TarStream:
    """Entries one after the other; the data of the current one by `data`.

    `read` returns the next bytes of the stream, and `b""` at its end. Where there is a faster way past bytes that
    nobody wants, `pass_over` takes it, and returns how many of so many bytes there were. Errors are `LayerError` with
    the offset; what `read` raises passes through.
    """

    def __init__(self, read: Callable[[], bytes], pass_over: Callable[[int], int] | None = None) -> None:
        self._read = read
        self._pass_over = pass_over
        self._buffer = b""
        self._at = 0  # in the buffer
        self._base = 0  # of the buffer in the stream
        self._left = 0  # data of the current entry not yet taken
        self._padding = 0  # after that data
        self._globals: dict[bytes, bytes] = {}
        self._remembered: dict[bytes, tuple[int, int, int]] = {}

    def __iter__(self) -> Iterator[Entry]:
        """The entries, up to the archive's end; what follows there stays unread."""
        local: dict[bytes, bytes] = {}
        while True:
            self._skip()
            offset = self._base + self._at
            header = self._header(offset)
            if not header:
                if local:
                    raise _error(offset, "the archive ends after an extended header, where its entry should follow")
                return
            kind = header[156:157]
            if kind in _EXTENDED:
                self._extended(kind, header, offset, local)
                continue
            yield self._entry(kind, header, offset, local)
            if local:
                local = {}

    def data(self) -> Iterator[memoryview]:
        """What is left of the current entry's data, in pieces as they come."""
        while self._left:
            if self._at == len(self._buffer):
                self._refill()
            piece = memoryview(self._buffer)[self._at : self._at + self._left]
            self._at += len(piece)
            self._left -= len(piece)
            yield piece

    def _refill(self) -> None:
        """Goes on to the next chunk when this one is used up."""
        self._base += len(self._buffer)
        self._buffer = self._read()
        self._at = 0
        if not self._buffer:
            raise _error(self._base, f"the archive is truncated: {self._left} more bytes of data should follow")

    def _skip(self) -> None:
        """Passes over what is left of the data and its padding; Go's writers leave out the last padding of all."""
        if self._left + self._padding <= len(self._buffer) - self._at:  # nearly always
            self._at += self._left + self._padding
            self._left = self._padding = 0
            return
        if self._pass_over and self._left > len(self._buffer) - self._at:
            self._left -= len(self._buffer) - self._at
            passed = self._pass_over(self._left)
            self._base += len(self._buffer) + passed
            self._buffer, self._at = b"", 0
            self._left -= passed
        for _ in self.data():
            pass
        while self._padding:
            if self._at == len(self._buffer):
                self._base += len(self._buffer)
                self._buffer, self._at = self._read(), 0
                if not self._buffer:
                    self._padding = 0
            step = min(self._padding, len(self._buffer) - self._at)
            self._at += step
            self._padding -= step

    def _header(self, offset: int) -> bytes:
        """The next header block, its checksum proven; empty at the archive's end."""
        header = self._block()
        if not header:
            return b""  # no end marker, but a clean end: accepted, as everyone does
        if header == _ZEROS:
            if self._block() not in (b"", _ZEROS):
                raise _error(offset, "a lone block of zeros, with more entries behind it")
            return b""
        field = header[148:156]
        try:
            stated = _number(field, "checksum", offset)
        except LayerError:
            stated = -1  # such a file's bytes are for nobody's eyes
        # The checksum counts its own eight bytes as spaces. adler32 starts at 1 and is taken modulo 65521, which is
        # more than 512 bytes of ASCII sum up to.
        total = (adler32(header) & 0xFFFF) - 1 if header.isascii() else sum(header)
        if total - sum(field) + 256 != stated:
            signed = sum(byte - 256 if byte > 127 else byte for byte in header[:148] + header[156:]) + 256
            if signed != stated:  # old Suns summed signed characters
                raise _error(offset, "bad checksum: the archive is damaged, or no tar archive")
        return header

    def _block(self) -> bytes:
        """The next 512 bytes; empty at the end of the stream."""
        block = self._buffer[self._at : self._at + BLOCK]
        self._at += len(block)
        while len(block) < BLOCK:
            self._base += len(self._buffer)
            self._buffer = self._read()
            self._at = 0
            if not self._buffer:
                if block:
                    raise _error(self._base, f"the archive is truncated: it ends {len(block)} bytes into a header")
                return b""
            piece = self._buffer[: BLOCK - len(block)]
            self._at = len(piece)
            block += piece
        return block

    def _extended(self, kind: bytes, header: bytes, offset: int, local: dict[bytes, bytes]) -> None:
        """Takes an x, g, L, K or V header: its records go to `local` or to the archive's globals."""
        size = _number(header[124:136], "size", offset)
        if not 0 <= size <= _EXTENDED_LIMIT:
            raise _error(offset, f"an extended header of {size} bytes; {_EXTENDED_LIMIT} is the limit")
        self._left, self._padding = size, -size % BLOCK
        data = b"".join(self.data())
        if kind == _GNU_VOLUME:
            return
        if kind == _PAX_GLOBAL:
            self._globals.update(_records(data, offset))
            _check_total(self._globals, offset)
            return
        if kind in (_GNU_LONG_NAME, _GNU_LONG_LINK):
            records = {b"path" if kind == _GNU_LONG_NAME else b"linkpath": data.partition(b"\0")[0]}
        else:
            records = _records(data, offset)
        if twice := records.keys() & local.keys():
            raise _error(offset, f"two extended headers give {sorted(twice)[0]!r} for one entry")
        local.update(records)
        _check_total(local, offset)

    def _entry(self, kind: bytes, header: bytes, offset: int, local: dict[bytes, bytes]) -> Entry:
        numbers = header[100:124]
        remembered = self._remembered.get(numbers)
        if remembered is None:
            remembered = self._remember(numbers, offset)
        mode, uid, gid = remembered
        size = _number(header[124:136], "size", offset)
        seconds = _number(header[136:148], "time", offset)
        mtime_ns = max(-_SECONDS_LIMIT, min(seconds, _SECONDS_LIMIT)) * 1_000_000_000
        name = header[:100].partition(b"\0")[0]
        linkname = header[157:257].partition(b"\0")[0] if header[157] else b""
        major = minor = 0
        xattrs: dict[bytes, bytes] = {}
        if header[345] and header[257:263] == b"ustar\0":
            # star keeps two times behind a shorter prefix, and marks itself at the end.
            name = header[345 : 476 if header[508:512] == b"tar\0" else 500].partition(b"\0")[0] + b"/" + name
        if kind in (CHARACTER, BLOCK_DEVICE):
            major = _number(header[329:337], "device number", offset)
            minor = _number(header[337:345], "device number", offset)
        sparse: Sparse | None = None
        if local or self._globals:
            # An empty value takes back what an earlier header said.
            merged = {**self._globals, **local}
            records = {key: value for key, value in merged.items() if value or key.startswith(_XATTRS)}
            name = records.get(_SPARSE + b"name", records.get(b"path", name))
            linkname = records.get(b"linkpath", linkname)
            if b"size" in records:
                size = _decimal(records[b"size"], "size", offset)
            if b"uid" in records:
                uid = _decimal(records[b"uid"], "uid", offset)
            if b"gid" in records:
                gid = _decimal(records[b"gid"], "gid", offset)
            if b"mtime" in records:
                mtime_ns = _time(records[b"mtime"], offset)
            xattrs = _xattrs(records, offset)
        if not 0 <= size <= _SIZE_LIMIT:
            raise _error(offset, f"{name[:200]!r} has the size {size}, which no file can have")
        if not (0 <= uid <= _ID_LIMIT and 0 <= gid <= _ID_LIMIT):
            raise _error(offset, f"owner {uid}:{gid} of {name[:200]!r} is out of range")
        known = _KINDS.get(kind)
        if known is None:
            raise _error(offset, f"entry {name[:200]!r} has the type {kind!r}, which is not supported")
        if kind == _OLD_REGULAR and name.endswith(b"/"):  # how v7 wrote directories
            known = DIRECTORY
        self._left = 0 if kind in _HEADER_ONLY else size
        self._padding = -self._left % BLOCK
        if kind == _GNU_SPARSE:
            sparse = self._gnu_sparse(header, offset)
        elif local and known == REGULAR and any(key.startswith(_SPARSE) for key in local):
            sparse = self._pax_sparse(local, offset)
        return Entry(
            name,
            known,
            mode,
            uid,
            gid,
            sparse.size if sparse else self._left,
            mtime_ns,
            linkname,
            major,
            minor,
            xattrs,
            offset,
            sparse,
        )

    def _gnu_sparse(self, header: bytes, offset: int) -> Sparse:
        """The old GNU form: four segments in the header, 21 in each further block (tar's manual, "Old GNU Format")."""
        numbers = _segment_numbers(header[386:482], offset)
        extended = header[482]
        while extended:
            if len(numbers) > 2 * _SEGMENTS_LIMIT:
                raise _error(offset, f"a sparse file with more than {_SEGMENTS_LIMIT} segments")
            block = self._block()
            if not block:
                raise _error(offset, "the archive is truncated in a sparse file's map")
            numbers += _segment_numbers(block[:504], offset)
            extended = block[504]
        return self._sparse(_number(header[483:495], "size of a sparse file", offset), numbers, offset)

    def _pax_sparse(self, records: dict[bytes, bytes], offset: int) -> Sparse:
        """The PAX forms 0.0 and 0.1, whose map is in the header, and 1.0, where it stands in front of the data."""
        size = records.get(_SPARSE + b"realsize", records.get(_SPARSE + b"size", b""))
        version = records.get(_SPARSE + b"major", b"0")
        if version not in (b"0", b"1"):
            raise _error(offset, f"a sparse file of version {version[:20]!r}, which is not known")
        if version == b"0":
            listed = records.get(_SPARSE + b"map", b"")
            numbers = [_decimal(number, "sparse map", offset) for number in listed.split(b",") if listed]
            count = records.get(_SPARSE + b"numblocks")
            if count is not None and 2 * _decimal(count, "sparse map", offset) != len(numbers):
                raise _error(offset, "a sparse file's map has another length than it announces")
        else:
            numbers = self._numbers_in_data(offset)
        return self._sparse(_decimal(size, "size of a sparse file", offset), numbers, offset)

    def _numbers_in_data(self, offset: int) -> list[int]:
        """How many segments, then their offsets and lengths, a number a line, filled up to whole blocks."""
        lines: list[bytes] = []
        wanted, text = 1, b""
        while len(lines) < wanted:
            if self._left < BLOCK:
                raise _error(offset, "a sparse file's map is longer than its data")
            text += self._block()
            self._left -= BLOCK
            *whole, text = text.split(b"\n")
            lines += whole
            if lines:
                wanted = 1 + 2 * _decimal(lines[0], "sparse map", offset)
            if wanted > 2 * _SEGMENTS_LIMIT or len(text) > BLOCK:
                raise _error(offset, f"a sparse file with more than {_SEGMENTS_LIMIT} segments")
        return [_decimal(line, "sparse map", offset) for line in lines[1:wanted]]

    def _sparse(self, size: int, numbers: list[int], offset: int) -> Sparse:
        """The map, checked: segments in order, within the file, and as long together as the data that follows."""
        segments = tuple(zip(numbers[::2], numbers[1::2], strict=False))
        end = 0
        for start, length in segments:
            if start < end or length < 0:
                raise _error(offset, "a sparse file's segments overlap, or are out of order")
            end = start + length
        if len(numbers) % 2 or end > size or size > _SIZE_LIMIT or sum(length for _, length in segments) != self._left:
            raise _error(offset, "a sparse file's map does not fit its size")
        return Sparse(size, segments)

    def _remember(self, numbers: bytes, offset: int) -> tuple[int, int, int]:
        values = (
            _number(numbers[:8], "mode", offset) & 0o7777,
            _number(numbers[8:16], "owner", offset),
            _number(numbers[16:24], "group", offset),
        )
        if len(self._remembered) < _MEMORY_LIMIT:
            self._remembered[numbers] = values
        return values


def _segment_numbers(table: bytes, offset: int) -> list[int]:
    """Offsets and lengths, twelve bytes each, up to the first that is not filled in."""
    numbers: list[int] = []
    for at in range(0, len(table), 24):
        if not table[at : at + 24].strip(b"\0"):
            break
        numbers.append(_number(table[at : at + 12], "sparse map", offset))
        numbers.append(_number(table[at + 12 : at + 24], "sparse map", offset))
    return numbers


def _number(field: bytes, what: str, offset: int) -> int:
    """An octal number between spaces and NULs, or a base-256 one whose first bit is set (GNU tar, star)."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = 8 * len(field)
        # The first bit is the mark; the next one is the sign of a two's complement number.
        return (value & ~(1 << bits - 1)) - ((value >> bits - 2 & 1) << bits - 1)
    text = field[:-1]
    if field[-1] or not text.isdigit():  # nearly all are written as digits and a NUL
        text = field.partition(b"\0")[0].strip(b" ")
    try:
        if text.isdigit():  # int() alone would also take "0o7", "+7" and "1_0"
            return int(text, 8)
    except ValueError:
        pass
    if text:
        raise _error(offset, f"bad {what} {field!r} in a header")
    return 0


def _decimal(value: bytes, what: str, offset: int) -> int:
    if not value.isdigit() or len(value) > 20:
        raise _error(offset, f"bad {what} {value[:40]!r} in an extended header")
    return int(value)


def _time(value: bytes, offset: int) -> int:
    match = _TIME.fullmatch(value)
    if not match:
        raise _error(offset, f"bad time {value[:40]!r} in an extended header")
    sign, seconds, fraction = match.groups()
    whole = min(int(seconds[:20]), _SECONDS_LIMIT) if len(seconds) <= 20 else _SECONDS_LIMIT
    nanoseconds = whole * 1_000_000_000 + int((fraction or b"")[:9].ljust(9, b"0"))
    return -nanoseconds if sign else nanoseconds


def _records(data: bytes, offset: int) -> dict[bytes, bytes]:
    """The `LENGTH KEY=VALUE\\n` records of a PAX header (POSIX pax, "Extended Header")."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 8)
        digits = data[at:space] if space > at else b""
        length = int(digits) if digits.isdigit() else 0
        record = data[space + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or not key or length > len(data) - at or record[-1:] != b"\n":
            raise _error(offset, f"malformed extended header at its byte {at}: {data[at : at + 40]!r}")
        if b"\0" in key or (b"\0" in value and key in _TEXTS):
            raise _error(offset, f"a NUL in the extended header's {key[:40]!r}")
        if key in _SPARSE_LIST:  # the form 0.0 repeats these; together they are the form 0.1's map
            value = records.pop(_SPARSE + b"map", b"") + b"," + value
            key, value = _SPARSE + b"map", value.removeprefix(b",")
        if key in records:
            raise _error(offset, f"the extended header gives {key[:40]!r} twice")
        records[key] = value
        at += length
    return records


def _check_total(records: dict[bytes, bytes], offset: int) -> None:
    """Headers add up: what all of them together say is held in memory, and looked through for each entry."""
    if len(records) > _RECORDS_LIMIT or sum(map(len, records.values())) > 2 * _EXTENDED_LIMIT:
        raise _error(offset, "the extended headers say too much in all")


def _xattrs(records: dict[bytes, bytes], offset: int) -> dict[bytes, bytes]:
    """Extended attributes; star's form wins over libarchive's, which says the same in base64."""
    xattrs = {}
    for key, value in records.items():
        if key.startswith(_LIBARCHIVE_XATTR):
            try:
                decoded = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
            except ValueError as error:
                raise _error(offset, f"the extended header's {key[:80]!r} is not base64") from error
            name = unquote_to_bytes(key.removeprefix(_LIBARCHIVE_XATTR))
            if b"\0" in name:
                raise _error(offset, f"a NUL in the extended header's {key[:80]!r}")
            xattrs[name] = decoded
    for key, value in records.items():
        if key.startswith(_SCHILY_XATTR):
            xattrs[key.removeprefix(_SCHILY_XATTR)] = value
    return xattrs


def _error(offset: int, what: str) -> LayerError:
    return LayerError(f"at byte {offset} of the layer's archive: {what}")

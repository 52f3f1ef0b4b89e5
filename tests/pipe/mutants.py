"""Real archives, and what becomes of them when bytes are changed: the material of the fuzzers."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import zstandard
from hypothesis import strategies as st

from tests.pipe.blocks import BLOCK, END, GNU, base256, file, gnu_long, header, padded, pax

VICTIM = b"victim/file"  # beside the directory that the archives are unpacked into

# Of a header: where its numbers stand, with their widths. The last ones are those of old GNU sparse files.
NUMBERS = ((100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (329, 8), (337, 8), (386, 12), (398, 12), (483, 12))
EXTREMES = (
    *(-(1 << 63), -(1 << 40), -1, 0, 1, 511, 512, 513, 0o7777777, 0o77777777777),
    *((1 << 31) - 1, 1 << 32, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 80),
)
KINDS = b"0\0001234567SDVLKxgXA"
KEYS = (
    *(b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"comment"),
    *(b"GNU.sparse.name", b"GNU.sparse.size", b"GNU.sparse.realsize", b"GNU.sparse.map", b"GNU.sparse.major"),
    *(b"GNU.sparse.minor", b"GNU.sparse.offset", b"GNU.sparse.numbytes", b"GNU.sparse.numblocks"),
    *(b"SCHILY.xattr.user.a", b"SCHILY.xattr.", b"SCHILY.xattr.security.capability", b"SCHILY.xattr.trusted.a"),
    *(b"LIBARCHIVE.xattr.user.a", b"LIBARCHIVE.xattr.user.%00", b"LIBARCHIVE.xattr.%zz"),
    *(b"SCHILY.xattr.system.posix_acl_access", b"SCHILY.xattr.trusted.overlay.opaque"),
)
VALUES = (
    *(
        b"",
        b"0",
        b"1",
        b"-1",
        b"512",
        b"0,512",
        b"512,0,0,1",
        b"a",
        b"a\0b",
        b"9" * 19,
        b"9" * 20,
        b"9" * 21,
        b"1" * 400,
    ),
    *(b"1.5", b"-1.999999999999", b"YQ", b"YQ==", b"\xff\xfe", b"../victim/file", b"/victim/file", b"dir/../../victim"),
    *(
        b"dir/.wh..wh..opq",
        b".wh.dir",
        b".wh..wh..opq",
        b".wh.",
        b"dir/.wh..wh.x",
        b"a/" * 600,
        b"n" * 300,
        b"/",
        b"..",
    ),
)


def _written(form: int) -> bytes:
    """What Python's tarfile writes in this format."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:

        def add(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: object) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))

        add("dir", tarfile.DIRTYPE, mode=0o755, mtime=1)
        add("dir/more", data=b"m" * (2 * BLOCK + 1), mode=0o4755)
        add("dir/hard", tarfile.LNKTYPE, linkname="dir/more")
        add("up", tarfile.SYMTYPE, linkname="../victim")
        add("up/file", data=b"through a symlink")
        add("dir/.wh.gone")
        add("dir/null", tarfile.CHRTYPE, devmajor=1, devminor=3)
        add("fifo", tarfile.FIFOTYPE)
        add(("d" * 60 + "/") * 2 + "file", data=b"prefix, or long", uid=1000)
        if form != tarfile.USTAR_FORMAT:
            add("l" * 300 + "/file", data=b"long", uid=1 << 22)
        if form == tarfile.PAX_FORMAT:
            add("attributes", data=b"x", mtime=1.5, pax_headers={"SCHILY.xattr.user.a": "1", "comment": "none"})
            add("dir/.wh..wh..opq")
    return padded(buffer.getvalue().rstrip(b"\0")) + END  # not all of the record's zeros


def _by_hand() -> bytes:
    """The forms that neither tarfile nor GNU tar writes."""
    table = b"".join(b"%011o\0%011o\0" % segment for segment in ((0, 512), (1024, 512), (4096, 0)))
    old = bytearray(header(b"old sparse", kind=b"S", size=1024, magic=GNU))
    old[386 : 386 + len(table)] = table
    old[483:495] = b"%011o\0" % 4096
    return b"".join(
        (
            pax({b"comment": b"global", b"mtime": b"5"}, kind=b"g"),
            mended(bytes(old)) + bytes(1024),
            pax({b"GNU.sparse.size": b"2048", b"GNU.sparse.offset": b"1024", b"GNU.sparse.numbytes": b"4"}),
            file(b"sparse 0.0", b"data"),
            pax({b"GNU.sparse.size": b"2048", b"GNU.sparse.map": b"0,4,1024,4", b"GNU.sparse.name": b"sparse 0.1"}),
            file(b"x", b"datadata"),
            pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"2048"}),
            file(b"sparse 1.0", padded(b"1\n1024\n4\n") + b"data"),
            gnu_long(b"long/" * 40, kind=b"L") + gnu_long(b"link/" * 40, kind=b"K") + header(kind=b"2"),
            file(b"base 256", b"", size=base256(0, 12), uid=base256(70_000, 8)),
            END,
        )
    )


def _by_gnu_tar(tar: str, work: Path) -> dict[str, bytes]:
    tree = work / "tree"
    tree.mkdir()
    (tree / "plain").write_bytes(b"p" * 700)
    (tree / "link").symlink_to("plain")
    os.link(tree / "plain", tree / "hard")
    (tree / ("n" * 120)).mkdir()
    with suppress(OSError):
        os.setxattr(tree / "plain", "user.a", b"binary\0\xff")
    with open(tree / "sparse", "wb") as sparse:
        for at in range(0, 6 << 16, 1 << 16):
            sparse.seek(at)
            sparse.write(b"s" * 4096)
        sparse.truncate(1 << 20)
    common = ["--sort=name", "--owner=7", "--group=8", "--numeric-owner", "--mtime=@1700000000.5", "-C", str(tree)]
    named = "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"
    options = {
        "gnu tar": ["--format=gnu", "--sparse"],
        "gnu tar v7": ["--format=v7", "--exclude=" + "n" * 120],
        **{
            f"gnu tar sparse {v}": ["--format=posix", named, "--sparse", f"--sparse-version={v}"]
            for v in ("0.0", "0.1")
        },
        "gnu tar sparse 1.0": ["--format=posix", named, "--sparse", "--xattrs"],
    }
    return {
        name: subprocess.run([tar, "-c", "-b1", *more, *common, "."], capture_output=True, check=True).stdout
        for name, more in options.items()
    }


@cache
def archives() -> dict[str, bytes]:
    """Tar archives by name, the same in every run on one machine."""
    found = {
        "ustar": _written(tarfile.USTAR_FORMAT),
        "gnu": _written(tarfile.GNU_FORMAT),
        "pax": _written(tarfile.PAX_FORMAT),
        "by hand": _by_hand(),
    }
    if tar := shutil.which("tar"):
        with tempfile.TemporaryDirectory() as directory, suppress(subprocess.CalledProcessError):
            found |= _by_gnu_tar(tar, Path(directory))
    return found


@cache
def streams() -> dict[str, bytes]:
    """The same, compressed, in the shapes that streams come in."""
    data = archives()["pax"]
    skippable = struct.pack("<II", 0x184D2A53, 5) + b"hello"
    frames = [
        zstandard.ZstdCompressor(level, write_checksum=checksum, write_content_size=size).compress(part)
        for level, checksum, size, part in (
            (1, True, True, data[:1000]),
            (3, False, False, data[1000:9000]),
            (19, True, False, data[9000:]),
            (3, False, True, b""),
        )
    ]
    noise = b"".join(struct.pack("<Q", (n * 0x9E3779B97F4A7C15) & (1 << 64) - 1) for n in range(600))
    return {
        "gzip": gzip.compress(data, 6, mtime=0),
        "gzip stored": gzip.compress(data[:3000] + noise, 0, mtime=0),
        "gzip members": b"".join(gzip.compress(data[at : at + 5000], 1, mtime=0) for at in range(0, len(data), 5000)),
        "gzip header": b"\x1f\x8b\x08\x1c" + bytes(6) + b"\4\0abcdname\0note\0" + gzip.compress(data, mtime=0)[10:],
        "gzip padded": gzip.compress(data, mtime=0) + bytes(600),
        "zstd": zstandard.ZstdCompressor(3, write_checksum=True).compress(data),
        "zstd frames": skippable + frames[0] + frames[1] + skippable + frames[2] + frames[3],
        "zstd noise": zstandard.ZstdCompressor(1).compress(noise),
    }


def mended(block: bytes) -> bytes:
    """A header block with the checksum that it should have."""
    total = sum(block[:148]) + sum(block[156:BLOCK]) + 8 * 32
    return block[:148] + b"%06o\0 " % total + block[156:]


def headers(data: bytes) -> list[int]:
    """Where the blocks stand that are headers, by their checksums."""
    return [
        at
        for at in range(0, len(data) - BLOCK + 1, BLOCK)
        if data[at + 148] in b"0123456 " and mended(data[at : at + BLOCK])[148:154] == data[at + 148 : at + 154]
    ]


# Changes are plain tuples, so that Hypothesis shows them, and shrinks them, well. Places are taken modulo the length.
Change = tuple[object, ...]


def changed(data: bytes, changes: Sequence[Change]) -> bytes:
    """The data after these changes, one after the other."""
    for change in changes:
        data = _CHANGES[str(change[0])](data, *change[1:]) if data else data
    return data


def _flip(data: bytes, at: int, bit: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]


def _overwrite(data: bytes, at: int, new: bytes) -> bytes:
    at %= len(data)
    return data[:at] + new + data[at + len(new) :]


def _insert(data: bytes, at: int, new: bytes) -> bytes:
    at %= len(data)
    return data[:at] + new + data[at:]


def _delete(data: bytes, at: int, count: int) -> bytes:
    at %= len(data)
    return data[:at] + data[at + count :]


def _duplicate(data: bytes, at: int, count: int) -> bytes:
    at = at * BLOCK % len(data)
    return data[:at] + data[at : at + count * BLOCK] + data[at:]


def _truncate(data: bytes, at: int) -> bytes:
    return data[: at % len(data)]


def _splice(data: bytes, at: int, other: str, start: int) -> bytes:
    second = (archives() | streams())[other]
    return data[: at % len(data)] + second[start % len(second) :]


def _splice_blocks(data: bytes, at: int, other: str, start: int) -> bytes:
    second = (archives() | streams())[other]
    return data[: at * BLOCK % len(data)] + second[start * BLOCK % len(second) :]


def _number(data: bytes, which: int, field: tuple[int, int], value: int) -> bytes:
    """A header's number, its checksum mended, so that the parser believes it."""
    at, width = field
    digits = b"%0*o" % (width - 1, value) if value >= 0 else b""
    if not digits or len(digits) > width - 1:
        span = 1 << 8 * width - 1
        text = base256(max(-span // 2, min(value, span // 2 - 1)), width)
    else:
        text = digits + b"\0"
    return _in_header(data, which, at, text)


def _in_header(data: bytes, which: int, at: int, new: bytes) -> bytes:
    found = headers(data)
    if not found:
        return data
    start = found[which % len(found)]
    block = data[start : start + at] + new + data[start + at + len(new) : start + BLOCK]
    return data[:start] + mended(block[:BLOCK]) + data[start + BLOCK :]


def _add_pax(data: bytes, which: int, kind: bytes, records: dict[bytes, bytes]) -> bytes:
    """An extended header in front of an entry."""
    found = headers(data)
    at = found[which % len(found)] if found else 0
    return data[:at] + pax(records, kind=kind) + data[at:]


_CHANGES: dict[str, Callable[..., bytes]] = {
    "flip": _flip,
    "overwrite": _overwrite,
    "insert": _insert,
    "delete": _delete,
    "duplicate": _duplicate,
    "truncate": _truncate,
    "splice": _splice,
    "splice blocks": _splice_blocks,
    "number": _number,
    "in header": _in_header,
    "pax": _add_pax,
}

_PLACES = st.integers(0, 1 << 16)
_FEW = st.integers(0, 30)
_NEW = st.one_of(
    st.binary(min_size=1, max_size=12), st.sampled_from((b"\0" * BLOCK, b"\xff" * 12, b"0" * 12, b"\n", b" "))
)


def _anywhere(others: Sequence[str]) -> st.SearchStrategy[Change]:
    return st.one_of(
        st.tuples(st.just("flip"), _PLACES, st.integers(0, 7)),
        st.tuples(st.just("overwrite"), _PLACES, _NEW),
        st.tuples(st.just("insert"), _PLACES, _NEW),
        st.tuples(st.just("delete"), _PLACES, st.sampled_from((1, 2, 100, BLOCK, 3 * BLOCK))),
        st.tuples(st.just("duplicate"), _FEW, st.integers(1, 5)),
        st.tuples(st.just("truncate"), _PLACES),
        st.tuples(st.just("splice"), _PLACES, st.sampled_from(others), _PLACES),
        st.tuples(st.just("splice blocks"), _FEW, st.sampled_from(others), _FEW),
    )


_RECORDS = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), min_size=1, max_size=4)
_IN_HEADERS = st.one_of(
    st.tuples(st.just("number"), _FEW, st.sampled_from(NUMBERS), st.sampled_from(EXTREMES)),
    st.tuples(st.just("in header"), _FEW, st.integers(0, BLOCK - 1), _NEW),
    st.tuples(st.just("in header"), _FEW, st.just(156), st.sampled_from([bytes((kind,)) for kind in KINDS])),
    st.tuples(
        st.just("in header"),
        _FEW,
        st.sampled_from((0, 157)),
        st.sampled_from([value[:99] + b"\0" for value in VALUES]),
    ),
    st.tuples(st.just("pax"), _FEW, st.sampled_from((b"x", b"x", b"g")), _RECORDS),
)


class Mutant(NamedTuple):
    """A seed and what was done to it: short enough to print."""

    seed: str
    changes: Sequence[Change] = ()

    @property
    def data(self) -> bytes:
        return changed((archives() | streams())[self.seed], self.changes)


def mutated_archives() -> st.SearchStrategy[Mutant]:
    """Tar archives, most of them broken."""
    names = sorted(archives())
    changes = st.lists(st.one_of(_IN_HEADERS, _IN_HEADERS, _anywhere(names)), max_size=6)
    return st.builds(Mutant, st.sampled_from(names), changes)


def mutated_streams() -> st.SearchStrategy[Mutant]:
    """Compressed streams, most of them broken."""
    names = sorted(streams())
    return st.builds(Mutant, st.sampled_from(names), st.lists(_anywhere(names), max_size=4))

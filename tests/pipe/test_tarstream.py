"""The tar parser, against archives of Python's tarfile, of GNU tar, and hand-made ones (LAYERS.md, lines 28 to 31)."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tracemalloc
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pullpipe.errors import LayerError
from pullpipe.pipe.tarstream import Entry, TarStream
from tests.conftest import require
from tests.pipe.blocks import (
    BLOCK,
    CHUNKS,
    END,
    GNU,
    USTAR,
    V7,
    Read,
    base256,
    entries,
    file,
    gnu_long,
    header,
    joined,
    names,
    octal,
    padded,
    pax,
    pieces,
    record,
)

LONG = "directory/" * 30 + "file"
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
KINDS = {tarfile.AREGTYPE: b"0", tarfile.CONTTYPE: b"0"}


def members(form: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    """What this format can say, and not much that it cannot."""
    found: list[tuple[tarfile.TarInfo, bytes]] = []

    def add(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: object) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, len(data)
        for field, value in fields.items():
            setattr(info, field, value)
        found.append((info, data))

    add("dir", tarfile.DIRTYPE, mode=0o1777, mtime=1)
    add("dir/empty", mode=0o4755, uid=1000, gid=65534)
    add("dir/block", data=b"b" * BLOCK, mtime=1_700_000_000)
    add("dir/more", data=b"m" * (3 * BLOCK + 1))
    add("dir/link", tarfile.SYMTYPE, linkname="../somewhere")
    add("dir/hard", tarfile.LNKTYPE, linkname="dir/block")
    add("null", tarfile.CHRTYPE, devmajor=1, devminor=3)
    add("disk", tarfile.BLKTYPE, devmajor=8, devminor=17)
    add("fifo", tarfile.FIFOTYPE, mode=0)
    add("a" * 90 + "/" + "b" * 90, data=b"prefix, or long")
    add("ünïcödé", data=b"utf-8")
    if form != "ustar":
        add(LONG, data=b"long")
        add("to-long", tarfile.SYMTYPE, linkname=LONG)
        add(LONG + "2", tarfile.LNKTYPE, linkname=LONG)
        add("big-owner", uid=1 << 21, gid=(1 << 31) + 7, mtime=1 << 34)
    if form == "pax":
        add("times", mtime=1_234_567_890.5)
        add("before", mtime=-1.5)
    return found


def write(form: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[form]) as archive:
        for info, data in members(form):
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def by_tarfile(archive: bytes) -> list[tuple[object, ...]]:
    """What the oracle reads, in the form of `by_us`."""
    found: list[tuple[object, ...]] = []
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for info in tar:
            kind = KINDS.get(info.type, info.type)
            data = tar.extractfile(info) if info.isreg() else None
            found.append(
                (
                    os.fsencode(info.name).rstrip(b"/"),
                    kind,
                    info.mode,
                    info.uid,
                    info.gid,
                    round(info.mtime * 10**9),
                    os.fsencode(info.linkname),
                    (info.devmajor, info.devminor) if kind in b"34" else (0, 0),
                    data.read() if data else b"",
                )
            )
    return found


def by_us(read: list[Read]) -> list[tuple[object, ...]]:
    return [
        (
            entry.name.rstrip(b"/"),
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime_ns,
            entry.linkname,
            (entry.major, entry.minor),
            data,
        )
        for entry, data in read
    ]


def error_of(archive: bytes, chunk: int = 64 << 10) -> str:
    """The message that reading the archive to its end gives."""
    with pytest.raises(LayerError) as caught:
        entries(archive, chunk)
    return str(caught.value)


# Line 28: the formats.


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("form", FORMATS)
def test_reads_what_tarfile_writes(form: str, chunk: int) -> None:
    """Whatever the size of the pieces that arrive, every entry is what Python's own reader makes of it."""
    archive = write(form)
    assert by_us(entries(archive, chunk)) == by_tarfile(archive)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for GNU tar to pack; its names and numbers fit into every format."""
    top = tmp_path_factory.mktemp("tree")
    (top / "directory").mkdir(mode=0o750)
    (top / "directory" / "file").write_bytes(os.urandom(5000))
    (top / "empty").touch(mode=0o600)
    (top / "directory" / "link").symlink_to("../empty")
    (top / "hard").hardlink_to(top / "empty")
    os.mkfifo(top / "fifo")
    (top / "ä ö\n").write_bytes(b"odd name")
    for path in (*top.rglob("*"), top):  # whole seconds: tarfile keeps times as floating-point numbers
        os.utime(path, ns=(0, 10**18), follow_symlinks=False)
    return top


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_reads_what_gnu_tar_writes(form: str, chunk: int, tree: Path) -> None:
    """All five formats of GNU tar; what a format cannot hold (v7 a FIFO) GNU tar leaves out itself."""
    tar = require("tar")
    exclude = ["--exclude=fifo"] if form == "v7" else []
    archive = subprocess.run(
        [tar, f"--format={form}", "--numeric-owner", "--sort=name", *exclude, "-cf", "-", "-C", str(tree), "."],
        capture_output=True,
        check=True,
    ).stdout
    ours, theirs = by_us(entries(archive, chunk)), by_tarfile(archive)
    assert ours == theirs
    assert len(ours) == (7 if form == "v7" else 8)


def test_nanoseconds_of_gnu_tar(tmp_path: Path) -> None:
    """Line 23: POSIX archives carry the whole time."""
    tar = require("tar")
    (tmp_path / "f").touch()
    os.utime(tmp_path / "f", ns=(0, 1_234_567_890_123_456_789))
    archive = subprocess.run(
        [tar, "--format=posix", "-cf", "-", "-C", str(tmp_path), "f"], capture_output=True, check=True
    )
    (read,) = entries(archive.stdout)
    assert read.entry.mtime_ns == 1_234_567_890_123_456_789


def test_long_names_of_gnu_tar(tmp_path: Path) -> None:
    """Names and link names beyond 100 bytes, in the GNU and the POSIX way, are the same names."""
    tar = require("tar")
    target = tmp_path / LONG
    target.parent.mkdir(parents=True)
    target.write_bytes(b"x")
    (tmp_path / ("s" * 120)).symlink_to(LONG)
    (tmp_path / ("h" * 120)).hardlink_to(target)
    read = []
    for form in ("gnu", "posix"):
        command = [tar, f"--format={form}", "--sort=name", "--numeric-owner", "-cf", "-", "-C", str(tmp_path), "."]
        archive = subprocess.run(command, capture_output=True, check=True).stdout
        read.append([(r.entry.name, r.entry.linkname, r.entry.kind, r.data) for r in entries(archive)])
    assert read[0] == read[1]
    assert any(name == b"./" + b"s" * 120 and target == LONG.encode() for name, target, _, _ in read[0])


def test_v7() -> None:
    """No magic, the type a NUL, a directory by its slash: as tar was before POSIX."""
    archive = joined(
        header(b"dir/", kind=b"\0", magic=V7, mode=0o755),
        file(b"dir/file", b"data", kind=b"\0", magic=V7),
        header(b"link", kind=b"2", magic=V7, linkname=b"dir/file"),
    )
    read = entries(archive)
    assert [(r.entry.name, r.entry.kind, r.data) for r in read] == [
        (b"dir/", b"5", b""),
        (b"dir/file", b"0", b"data"),
        (b"link", b"2", b""),
    ]


def test_v7_has_no_prefix() -> None:
    """What stands where ustar keeps its prefix is nothing to an older archive."""
    assert names(joined(header(b"name", magic=V7, prefix=b"junk"))) == [b"name"]
    assert names(joined(header(b"name", magic=GNU, prefix=b"00000000000"))) == [b"name"]  # GNU keeps atime there


def test_ustar_prefix() -> None:
    """Prefix and name make a path; both may fill their fields to the last byte, without a NUL."""
    assert names(joined(header(b"name", prefix=b"some/where"))) == [b"some/where/name"]
    full = header(b"n" * 100, prefix=b"p" * 155)
    assert names(joined(full)) == [b"p" * 155 + b"/" + b"n" * 100]


def test_star_prefix_ends_before_its_times() -> None:
    """star keeps two times behind a prefix of 131 bytes, and says so in the block's last four."""
    block = bytearray(header(b"name", prefix=b"pre"))
    star = header(b"name", prefix=b"pre".ljust(131, b"\0") + octal(5, 12) + octal(6, 12), tail=b"tar\0")
    assert names(joined(star)) == names(joined(bytes(block))) == [b"pre/name"]
    filled = header(b"name", prefix=b"p" * 131 + octal(5, 12) + octal(6, 12), tail=b"tar\0")
    assert names(joined(filled)) == [b"p" * 131 + b"/name"]


def test_link_name_fills_its_field() -> None:
    """100 bytes, no NUL behind them."""
    (read,) = entries(joined(header(b"link", kind=b"2", linkname=b"t" * 100)))
    assert read.entry.linkname == b"t" * 100


def test_contiguous_files_are_files() -> None:
    """Type 7 is a regular file to everyone since the seventies."""
    (read,) = entries(joined(file(b"c", b"contiguous", kind=b"7")))
    assert (read.entry.kind, read.data) == (b"0", b"contiguous")


def test_formats_may_be_mixed() -> None:
    """Old, GNU, ustar and PAX entries in one archive, as appending tools leave them."""
    archive = joined(
        file(b"old", b"1", kind=b"\0", magic=V7),
        gnu_long(b"g" * 200),
        file(b"g" * 100, b"2", magic=GNU),
        file(b"new", b"3", prefix=b"pre"),
        pax({b"path": b"p" * 300}),
        file(b"short", b"4"),
        gnu_long(b"target" * 40, kind=b"K"),
        gnu_long(b"l" * 150),
        header(b"l" * 100, kind=b"2", magic=GNU, linkname=b"target"),
        file(b"last", b"5", magic=GNU),
    )
    read = entries(archive)
    assert [(r.entry.name, r.entry.linkname, r.data) for r in read] == [
        (b"old", b"", b"1"),
        (b"g" * 200, b"", b"2"),
        (b"pre/new", b"", b"3"),
        (b"p" * 300, b"", b"4"),
        (b"l" * 150, b"target" * 40, b""),
        (b"last", b"", b"5"),
    ]


def test_base_256_numbers() -> None:
    """Sizes, owners, times and devices beyond what octal digits hold; negative times."""
    data = b"d" * 700
    archive = joined(
        header(
            b"f",
            size=base256(len(data), 12),
            uid=base256((1 << 32) - 2, 8),
            gid=base256(1 << 21, 8),
            mtime=base256(-86_400, 12),
            magic=GNU,
        ),
        padded(data),
        header(b"d", kind=b"3", major=base256(4095, 8), minor=base256((1 << 20) - 1, 8), mtime=base256(1 << 40, 12)),
    )
    file_, device = entries(archive)
    assert (file_.entry.uid, file_.entry.gid, file_.entry.mtime_ns) == ((1 << 32) - 2, 1 << 21, -86_400 * 10**9)
    assert file_.data == data
    assert (device.entry.major, device.entry.minor) == (4095, (1 << 20) - 1)
    assert device.entry.mtime_ns == (1 << 40) * 10**9


@pytest.mark.parametrize(
    "size", [b"00000000005\0", b"5          \0", b"          5\0", b"          5 ", b"5\0garbage\0"]
)
def test_octal_numbers_come_in_many_paddings(size: bytes) -> None:
    """Zeros, spaces before or behind, what follows a NUL."""
    (read,) = entries(joined(header(size=size), padded(b"12345")))
    assert read.data == b"12345"


def test_empty_number_fields_are_zero() -> None:
    """Many writers leave the fields blank that a type does not need."""
    blank = b" " * 8
    (read,) = entries(joined(header(kind=b"2", linkname=b"t", uid=b"", gid=blank, mode=blank, size=b"", mtime=b"")))
    assert (read.entry.uid, read.entry.gid, read.entry.mode, read.entry.mtime_ns) == (0, 0, 0, 0)


@pytest.mark.parametrize("field", ["size", "mode", "uid", "gid", "mtime"])
@pytest.mark.parametrize("text", [b"0o7", b"+7", b"-7", b"1_0", b"89", b"abc", b"1\xb2", b"7 7"])
def test_malformed_numbers_are_errors(field: str, text: bytes) -> None:
    """What Python's int() would take, and tar does not, is no number; the offset is the header's."""
    archive = joined(file(b"good", b"x"), header(b"bad", **{field: text}))  # type: ignore[arg-type]
    assert "at byte 1024" in error_of(archive)


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_a_size_in_a_header_without_data_skips_nothing(kind: bytes) -> None:
    """Links, devices, directories and FIFOs have no data, whatever their header says: so do all other readers."""
    archive = joined(header(b"odd", kind=kind, size=512, linkname=b"t"), file(b"next", b"data"))
    assert names(archive) == [b"odd", b"next"]
    assert [name for name, *_ in by_tarfile(archive)] == [b"odd", b"next"]


def test_gnu_dump_directories_and_volume_labels() -> None:
    """`tar --incremental` lists names in a directory's data, `--label` adds a header: neither is a file."""
    archive = joined(
        header(b"label", kind=b"V", magic=GNU),
        header(b"dir/", kind=b"D", size=10, magic=GNU),
        padded(b"Yfile\0\0"),
        file(b"dir/file"),
    )
    assert [(r.entry.name, r.entry.kind) for r in entries(archive)] == [(b"dir/", b"5"), (b"dir/file", b"0")]


# Line 29: PAX.


def test_pax_size_drives_the_data_and_the_skip() -> None:
    """CVE-2025-62518: with a size of 0 in the ustar header, an archive in the data must not be read as entries."""
    inner = joined(file(b"smuggled", b"evil"))
    archive = joined(pax({b"size": b"%d" % len(inner)}), header(b"outer.tar", size=0), padded(inner), file(b"next"))
    for chunk in CHUNKS:
        read = entries(archive, chunk)
        assert [r.entry.name for r in read] == [b"outer.tar", b"next"]
        assert read[0].data == inner
        stream = TarStream(pieces(archive, chunk))
        assert [entry.name for entry in stream] == [b"outer.tar", b"next"]  # the skip alone


def test_pax_size_smaller_than_the_header_says() -> None:
    """The other way round, what the ustar header counts as data is the next entry."""
    archive = joined(pax({b"size": b"3"}), header(b"small", size=2 * BLOCK), padded(b"abc"), file(b"next", b"n"))
    assert [(r.entry.name, r.data) for r in entries(archive)] == [(b"small", b"abc"), (b"next", b"n")]


def test_pax_size_beyond_eight_gigabytes() -> None:
    """More than eleven octal digits hold."""
    stream = TarStream(pieces(joined(pax({b"size": b"8589934593"}), header(b"huge")), 512))
    assert next(iter(stream)).size == 8589934593


def test_pax_overrides_every_field() -> None:
    """Names, link names, owners, times and attributes; uname, gname and unknown keys are ignored."""
    records = {
        b"path": b"long/\xff\xc3\xa4",
        b"linkpath": b"to/\xfe",
        b"uid": b"3000000",
        b"gid": b"4000000",
        b"mtime": b"1350244992.023960108",
        b"uname": b"root",
        b"comment": b"a = b\nc",
        b"SCHILY.xattr.user.a": b"v",
    }
    (read,) = entries(joined(pax(records), header(b"short", kind=b"2", linkname=b"short")))
    entry = read.entry
    assert (entry.name, entry.linkname) == (b"long/\xff\xc3\xa4", b"to/\xfe")
    assert (entry.uid, entry.gid, entry.mtime_ns) == (3_000_000, 4_000_000, 1_350_244_992_023_960_108)
    assert entry.xattrs == {b"user.a": b"v"}


def test_pax_headers_count_for_one_entry() -> None:
    """Only a global header lasts."""
    archive = joined(pax({b"mtime": b"7", b"SCHILY.xattr.user.a": b"v"}), file(b"one"), file(b"two"))
    one, two = entries(archive)
    assert (one.entry.mtime_ns, two.entry.mtime_ns) == (7 * 10**9, 0)
    assert two.entry.xattrs == {}


def test_pax_global_headers() -> None:
    """They last until another one; an entry's own header wins over them."""
    archive = joined(
        pax({b"gid": b"5", b"mtime": b"1"}, kind=b"g"),
        file(b"one"),
        pax({b"gid": b"6"}),
        file(b"two"),
        pax({b"gid": b"7"}, kind=b"g"),
        file(b"three"),
    )
    assert [(r.entry.gid, r.entry.mtime_ns) for r in entries(archive)] == [(5, 10**9), (6, 10**9), (7, 10**9)]


def test_an_empty_value_takes_a_global_one_back() -> None:
    """POSIX pax: a zero-length value deletes what an earlier header said, global headers included."""
    archive = joined(
        pax({b"gid": b"5"}, kind=b"g"),
        pax({b"gid": b""}),
        file(b"local", gid=3),
        file(b"global"),
        pax({b"gid": b""}, kind=b"g"),
        file(b"gone", gid=3),
    )
    assert [(r.entry.name, r.entry.gid) for r in entries(archive)] == [(b"local", 3), (b"global", 5), (b"gone", 3)]


MALFORMED = {
    "no space": b"12path=file\n",
    "no length": b" path=file\n",
    "length 0": b"0 path=file\n",
    "negative": b"-1 path=file\n",
    "signed": b"+13 path=file\n",
    "too short": b"11 path=file\n",
    "too long": b"99 path=file\n",
    "endless": b"9" * 600 + b" path=file\n",
    "hexadecimal": b"0xd path=file\n",
    "no equals sign": b"8 path\n\n",
    "no key": b"7 =abc\n",
    "no newline": b"12 path=filex",
    "NUL in the path": record(b"path", b"fi\0le"),
    "NUL in the link's path": record(b"linkpath", b"fi\0le"),
    "NUL in a key": record(b"SCHILY.xattr.user.\0a", b"value"),
    "one key twice": record(b"path", b"one") + record(b"path", b"two"),
    "negative size": record(b"size", b"-1"),
    "size that is none": record(b"size", b"1e3"),
    "size of many digits": record(b"size", b"9" * 40),
    "negative owner": record(b"uid", b"-1"),
    "owner that is none": record(b"gid", b"root"),
    "time that is none": record(b"mtime", b"now"),
    "time with an exponent": record(b"mtime", b"1e9"),
    "two points in a time": record(b"mtime", b"1.2.3"),
    "attribute that is not base64": record(b"LIBARCHIVE.xattr.user.a", b"!!"),
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("chunk", [1, 64 << 10])
def test_malformed_pax_headers_are_errors(text: bytes, chunk: int) -> None:
    """None of them is read in a lenient way, and the message gives the header's offset."""
    archive = joined(file(b"good", b"x"), pax(text), file(b"bad"))
    message = error_of(archive, chunk)
    assert "at byte 1024" in message or "at byte 2048" in message or "at byte 2560" in message, message
    assert "\n" not in message
    assert len(message) < 500


def test_two_headers_for_one_field_are_an_error() -> None:
    """Two x headers, or an x and an L: two programs would choose differently."""
    for second in (pax({b"path": b"b"}), gnu_long(b"b")):
        assert "at byte 1024" in error_of(joined(pax({b"path": b"a"}), second, file(b"c")))


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_extended_headers_have_a_limit(kind: bytes) -> None:
    """One that claims more is refused by its header alone: its data, which never ends, is not read."""
    blocks = 0

    def read() -> bytes:
        nonlocal blocks
        blocks += 1
        return header(b"x", kind=kind, size=64 << 20) if blocks == 1 else b"A" * BLOCK

    with pytest.raises(LayerError, match=r"at byte 0 .*limit"):
        list(TarStream(read))
    assert blocks < 3


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"0"])
def test_nothing_is_allocated_on_a_headers_word(kind: bytes) -> None:
    """A header that claims 2^60 bytes, or the most that is allowed, costs no memory until they come."""
    for claimed in (1 << 60, 1 << 20):
        archive = header(b"x", kind=kind, size=base256(claimed, 12))
        tracemalloc.start()
        try:
            with pytest.raises(LayerError):
                entries(archive + b"A" * BLOCK)
            assert tracemalloc.get_traced_memory()[1] < 200_000
        finally:
            tracemalloc.stop()


def test_an_archive_that_ends_after_an_extended_header() -> None:
    """The entry that it speaks of is missing: with an end marker or without, that is damage."""
    for end in (b"", END):
        assert "at byte 1024" in error_of(pax({b"path": b"a"}) + end)


TIMES = {
    b"0": 0,
    b"1.5": 1_500_000_000,
    b"1.": 1_000_000_000,
    b"1.000000001": 1_000_000_001,
    b"1.0000000019": 1_000_000_001,
    b"-1.5": -1_500_000_000,
    b"-0.000000001": -1,
    b"-2208988800": -2_208_988_800 * 10**9,
    b"8589934592.25": 8_589_934_592_250_000_000,
    b"253402300800": 253_402_300_800 * 10**9,
}


@pytest.mark.parametrize("text", TIMES)
def test_pax_times_to_the_nanosecond(text: bytes) -> None:
    """Line 23: also negative ones, and those beyond 2^33."""
    (read,) = entries(joined(pax({b"mtime": text}), file(b"f")))
    assert read.entry.mtime_ns == TIMES[text]


def test_xattrs_of_schily_are_binary() -> None:
    """Line 24: newlines, equals signs and NULs belong to the value; the key's equals sign ends it."""
    value = b"\0\1\n=\xff\n12 path=evil\n"
    (read,) = entries(joined(pax({b"SCHILY.xattr.user.bin": value, b"path": b"f"}), file(b"x")))
    assert read.entry.xattrs == {b"user.bin": value}
    assert read.entry.name == b"f"


def test_xattrs_of_libarchive() -> None:
    """Line 24: base64 without padding, URL-encoded names; star's form of the same attribute wins."""
    records = {
        b"LIBARCHIVE.xattr.user.a%3Db": b"AAE",
        b"LIBARCHIVE.xattr.user.c": b"bG9zZXI=",
        b"SCHILY.xattr.user.c": b"winner",
    }
    (read,) = entries(joined(pax(records), file(b"x")))
    assert read.entry.xattrs == {b"user.a=b": b"\0\1", b"user.c": b"winner"}


def test_an_empty_attribute_is_one() -> None:
    """Presence counts: `SCHILY.xattr.user.a=` takes nothing back."""
    (read,) = entries(joined(pax({b"SCHILY.xattr.user.a": b""}), file(b"x")))
    assert read.entry.xattrs == {b"user.a": b""}


# Line 30: damage.


@pytest.mark.parametrize("bit", [0, 100, 124, 150, 156, 257, 345, 511])
def test_bad_checksums_are_errors(bit: int) -> None:
    """One flipped bit anywhere in a header is noticed."""
    damaged = bytearray(header(b"bad"))
    damaged[bit] ^= 1
    assert "at byte 1024" in error_of(joined(file(b"good", b"x"), bytes(damaged)))


@pytest.mark.parametrize("delta", [1, -1, 65521, -65521, 65536, 1 << 17])
def test_checksums_are_compared_in_full(delta: int) -> None:
    """Not modulo anything that the way of computing it may bring along."""
    block = header(b"name")
    stated = sum(block[:148] + b" " * 8 + block[156:]) + delta
    field = octal(stated, 8) if stated >= 0 else base256(stated, 8)
    assert "checksum" in error_of(joined(header(b"name", checksum=field)))


def test_signed_checksums_are_accepted() -> None:
    """Old Suns summed signed characters, which differs where a name is not ASCII."""
    assert header(b"\xff\xfe", signed=True) != header(b"\xff\xfe")
    assert names(joined(header(b"\xff\xfe", signed=True))) == [b"\xff\xfe"]


@pytest.mark.parametrize("kind", [b"0", b"5", b"x", b"L"])
def test_negative_sizes_are_errors(kind: bytes) -> None:
    """Base-256 can say -512, which would send a naive reader backwards."""
    bad = header(b"bad", kind=kind, size=base256(-512, 12))
    assert "at byte 1024" in error_of(joined(file(b"good", b"x"), bad))


def test_truncation_at_every_byte() -> None:
    """Cut anywhere but behind an entry's data, an archive is an error that tells where it ends.

    The padding behind the last data may be missing: Go's `archive/tar` does not mind, and umoci writes such layers.
    """
    first, second = file(b"one", b"1" * 600), pax({b"path": b"two"}) + file(b"2", b"2" * 10)
    archive = first + second
    clean: dict[int, list[bytes]] = {0: []}
    clean |= {cut: [b"one"] for cut in range(BLOCK + 600, len(first) + 1)}
    clean |= {cut: [b"one", b"two"] for cut in range(len(archive) - BLOCK + 10, len(archive))}
    for cut in range(len(archive)):
        if cut in clean:
            assert names(archive[:cut]) == clean[cut]
        else:
            message = error_of(archive[:cut], chunk=512)
            assert f"at byte {cut} " in message or cut in (1536 + BLOCK, 1536 + 2 * BLOCK), (cut, message)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_truncation_is_found_while_skipping(chunk: int) -> None:
    """Nobody reads the data, and still it has to be there."""
    stream = TarStream(pieces(header(b"f", size=2000) + bytes(1000), chunk))
    with pytest.raises(LayerError, match=r"at byte 1512 .*truncated"):
        for _ in stream:
            pass


@pytest.mark.parametrize("chunk", CHUNKS)
def test_data_that_is_passed_over(chunk: int) -> None:
    """By a faster way than reading: the same entries at the same places, and what is not there is missed."""
    archive = joined(file(b"a", bytes(1000)), file(b"b", bytes(512)), file(b"c", bytes(3000)), file(b"d"))

    def found(length: int) -> list[Entry]:
        source = io.BytesIO(archive[:length])

        def pass_over(count: int) -> int:
            at = source.tell()
            return source.seek(min(at + count, length)) - at

        stream = TarStream(lambda: source.read(chunk), pass_over)
        read = []
        for entry in stream:
            read.append(entry)
            if entry.name == b"c":
                next(stream.data())  # a part of it
        return read

    assert found(len(archive)) == [read.entry for read in entries(archive)]
    with pytest.raises(LayerError, match=r"at byte 1500 .*truncated: 12 more bytes"):
        found(1500)


@pytest.mark.parametrize("end", [b"", bytes(BLOCK), END, bytes(10240)], ids=["none", "one", "two", "record"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_end_blocks(end: bytes, chunk: int) -> None:
    """No, one or two blocks of zeros, or a whole record of them: all are a clean end."""
    assert names(file(b"f", b"x") + end, chunk) == [b"f"]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_what_follows_the_end_is_not_read(chunk: int) -> None:
    """An archive behind the end marker is no part of this one, and no error."""
    assert names(joined(file(b"f")) + b"garbage" + joined(file(b"hidden")), chunk) == [b"f"]


def test_one_zero_block_between_entries_is_an_error() -> None:
    """Some readers stop there and others go on; the choice made here is Go's: neither, but an error."""
    assert "at byte 512" in error_of(file(b"one") + bytes(BLOCK) + file(b"two") + END)


def test_an_empty_stream_has_no_entries() -> None:
    """Line 21: zero bytes, and nothing but zeros, are empty layers."""
    assert names(b"") == names(END) == []


def test_garbage_is_no_archive() -> None:
    """A text or an HTML page says where it stops being tar: at once."""
    assert "at byte 0" in error_of(b"<html>" * 200)


# Line 31: types.


@pytest.mark.parametrize("kind", [b"8", b"9", b"A", b"M", b"N", b"Z", b"s", b"\xff", b" "])
def test_unknown_types_are_errors(kind: bytes) -> None:
    """The message names entry, type and offset: skipping would lose a file in silence."""
    message = error_of(joined(file(b"good", b"x"), file(b"odd", b"data", kind=kind)))
    assert "at byte 1024" in message
    assert "odd" in message
    assert repr(kind) in message


# Line 31: sparse files.

Segments = Sequence[tuple[int, int]]  # offset and length


def sparse_number(value: int) -> bytes:
    return octal(value, 12) if 0 <= value < 8**11 else base256(value, 12)


def old_gnu(segments: Segments, size: int, data: bytes, **fields: int | bytes) -> bytes:
    """The old GNU form: four segments in the header, 21 in each further block."""
    numbers = [b"".join(map(sparse_number, segment)) for segment in segments]
    tail = b"".join(numbers[:4]).ljust(96, b"\0") + bytes([len(numbers) > 4]) + sparse_number(size) + bytes(17)
    blocks = [
        b"".join(numbers[at : at + 21]).ljust(504, b"\0") + bytes([len(numbers) > at + 21]) + bytes(7)
        for at in range(4, len(numbers), 21)
    ]
    stated = fields.pop("size", len(data))
    head = header(b"sparse", kind=b"S", magic=GNU, size=stated, tail=tail, **fields)  # type: ignore[arg-type]
    return head + b"".join(blocks) + padded(data)


def pax_0_0(segments: Segments, size: int, data: bytes) -> bytes:
    """Two records for each segment, repeated."""
    records = [record(b"GNU.sparse.size", b"%d" % size), record(b"GNU.sparse.numblocks", b"%d" % len(segments))]
    for offset, length in segments:
        records += record(b"GNU.sparse.offset", b"%d" % offset), record(b"GNU.sparse.numbytes", b"%d" % length)
    return pax(b"".join(records)) + file(b"sparse", data)


def pax_0_1(segments: Segments, size: int, data: bytes) -> bytes:
    """One record for the map."""
    numbers = b",".join(b"%d,%d" % segment for segment in segments)
    records = {b"size": b"%d" % size, b"numblocks": b"%d" % len(segments), b"map": numbers, b"name": b"sparse"}
    return pax({b"GNU.sparse." + key: value for key, value in records.items()}) + file(b"GNUSparseFile.1/x", data)


def pax_1_0(segments: Segments, size: int, data: bytes) -> bytes:
    """The map in front of the data, in whole blocks."""
    records = {b"major": b"1", b"minor": b"0", b"name": b"sparse", b"realsize": b"%d" % size}
    numbers = b"%d\n" % len(segments) + b"".join(b"%d\n%d\n" % segment for segment in segments)
    stored = padded(numbers) + data
    return pax({b"GNU.sparse." + key: value for key, value in records.items()}) + file(b"GNUSparseFile.1/x", stored)


SPARSE = {"old GNU": old_gnu, "PAX 0.0": pax_0_0, "PAX 0.1": pax_0_1, "PAX 1.0": pax_1_0}


def restored(read: Read) -> bytes:
    """The whole file, holes and all."""
    if read.entry.sparse is None:
        return read.data
    size, segments = read.entry.sparse
    assert read.entry.size == size
    whole, at = bytearray(size), 0
    for offset, length in segments:
        whole[offset : offset + length] = read.data[at : at + length]
        at += length
    assert (len(whole), at) == (size, len(read.data))
    return bytes(whole)


def expected(segments: Segments, size: int, data: bytes) -> bytes:
    """The same, from what the archive was made of."""
    whole = bytearray(size)
    for offset, length in segments:
        whole[offset : offset + length], data = data[:length], data[length:]
    return bytes(whole)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("form", SPARSE)
@pytest.mark.parametrize(
    ("segments", "size"),
    [
        ([], 0),
        ([], 5000),
        ([(0, 0)], 0),
        ([(5000, 0)], 5000),
        ([(0, 700)], 700),
        ([(0, 1)], 5000),
        ([(4999, 1)], 5000),
        ([(0, 512), (1024, 513), (4999, 1), (5000, 0)], 5000),
        ([(0, 10), (10, 0), (10, 10)], 20),
        *(([(step * 10, step % 9) for step in range(count)], count * 10 + 3) for count in (4, 5, 25, 26, 46, 47, 300)),
    ],
    ids=lambda value: f"{len(value)} segments" if isinstance(value, list) else str(value),
)
def test_line_31_sparse_files_are_restored(segments: Segments, size: int, form: str, chunk: int) -> None:
    """In each form, with maps that end on and beside the borders of the header and its extensions."""
    data = os.urandom(sum(length for _, length in segments))
    archive = joined(file(b"before", b"x"), SPARSE[form](segments, size, data), file(b"after", b"y"))
    read = entries(archive, chunk)
    assert [(r.entry.name, r.entry.kind) for r in read] == [(b"before", b"0"), (b"sparse", b"0"), (b"after", b"0")]
    assert restored(read[1]) == expected(segments, size, data)
    assert (read[0].data, read[2].data) == (b"x", b"y")


@pytest.mark.parametrize("form", SPARSE)
def test_line_31_sparse_files_larger_than_octal_digits(form: str) -> None:
    """Beyond 8 GiB: the numbers are base-256 in the old form."""
    segments, size = [(0, 3), (1 << 40, 2)], (1 << 40) + 7
    [read] = entries(joined(SPARSE[form](segments, size, b"abcde")))
    assert read.entry.sparse == (size, tuple(segments))
    assert read.data == b"abcde"


def test_line_31_the_next_entry_is_not_sparse() -> None:
    """What one extended header says holds for one entry."""
    for make in SPARSE.values():
        read = entries(joined(make([(0, 2)], 100, b"ab"), file(b"plain", b"cd")))
        assert (read[1].entry.sparse, read[1].entry.size, read[1].data) == (None, 2, b"cd")


def test_line_31_an_empty_map_is_all_holes() -> None:
    """In 0.1 with `numblocks` 0 and no map at all, as an empty value would be taken back."""
    archive = pax({b"GNU.sparse.size": b"1000", b"GNU.sparse.numblocks": b"0"}) + file(b"sparse")
    [read] = entries(joined(archive))
    assert restored(read) == bytes(1000)


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "0.0", "0.1", "1.0"])
def test_line_31_sparse_files_of_gnu_tar(form: str, tmp_path: Path) -> None:
    """Real ones: of holes alone, with data first or last, and with more segments than two extension blocks hold."""
    tar = require("tar")
    files = {
        b"holes": ([], 100_000),
        b"first": ([(0, 4096)], 100_000),
        b"last": ([(98_304, 1696)], 100_000),
        b"many": ([(step * 16384, 4096) for step in range(60)], 1_000_000),
    }
    whole = {}
    for name, (segments, size) in files.items():
        path = tmp_path / os.fsdecode(name)
        with path.open("wb") as target:
            target.truncate(size)
            for offset, length in segments:
                os.pwrite(target.fileno(), os.urandom(length), offset)
        whole[name] = path.read_bytes()
    options = [f"--format={form}"] if "gnu" in form else ["--format=posix", f"--sparse-version={form}"]
    command = [tar, "--create", "--sparse", *options, "--directory", str(tmp_path), *map(os.fsdecode, whole)]
    archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    read = entries(archive)
    assert {r.entry.name: restored(r) for r in read} == whole
    assert len(read) == len(whole)
    assert all(r.entry.sparse is not None and len(r.data) < 300_000 for r in read)


@pytest.mark.parametrize("form", SPARSE)
@pytest.mark.parametrize(
    ("segments", "size", "data"),
    [
        ([(0, 10), (5, 10)], 100, 20),
        ([(0, 10), (0, 10)], 100, 20),
        ([(50, 10), (0, 10)], 100, 20),
        ([(-5, 10)], 100, 10),
        ([(10, -5), (20, 5)], 100, 0),
        ([(0, 10), (10, -10)], 100, 0),
        ([(95, 10)], 100, 10),
        ([(200, 0)], 100, 0),
        ([(0, 10)], -1, 10),
        ([], -1, 0),
        ([(0, 10)], 100, 9),
        ([(0, 10)], 100, 11),
        ([(0, 10)], 100, 600),
        ([], 100, 5),
        ([(1 << 70, 10)], 1 << 71, 10),
        ([], 1 << 63, 0),
        ([(0, 10), ((1 << 64) - 5, 10)], 100, 20),
    ],
    ids=[
        "overlap",
        "twice the same",
        "out of order",
        "negative offset",
        "negative length",
        "lengths that cancel out",
        "beyond the size",
        "empty beyond the size",
        "negative size",
        "negative size of holes",
        "more than the data",
        "less than the data",
        "blocks less than the data",
        "data without a map",
        "no such offset",
        "no such size",
        "wraps around",
    ],
)
def test_line_31_malformed_maps_are_errors(segments: Segments, size: int, data: int, form: str) -> None:
    """With the offset of the entry; nothing is guessed."""
    message = error_of(joined(file(b"good", b"x"), SPARSE[form](segments, size, bytes(data))))
    assert "at byte 1024 " in message or "at byte 2048 " in message or "at byte 3072 " in message


@pytest.mark.parametrize("form", SPARSE)
def test_line_31_too_many_segments_are_an_error(form: str) -> None:
    """The map is held in memory, so it has a limit; that of the PAX forms 0.0 and 0.1 is their header's."""
    count = 70_000 if form in ("old GNU", "PAX 1.0") else 200_000
    segments = [(step, 1) for step in range(count)]
    error_of(joined(SPARSE[form](segments, count, bytes(count))))


@pytest.mark.parametrize("count", [4, 5, 30, 60])
@pytest.mark.parametrize("form", SPARSE)
def test_line_31_truncated_sparse_files_are_errors(form: str, count: int) -> None:
    """Wherever the archive ends within the entry, be it in the map or in the data."""
    segments = [(step * 100, 50) for step in range(count)]
    archive = SPARSE[form](segments, count * 100, b"x" * 50 * count)
    end = len(archive) - -50 * count % 512  # of the data; what is missing of its padding is no harm
    for cut in (*range(512, end, 512), *range(300, end, 700)):
        assert "at byte " in error_of(archive[:cut])


def sparse_pax(data: bytes = b"", **records: bytes) -> bytes:
    return pax({b"GNU.sparse." + key.encode(): value for key, value in records.items()}) + file(b"sparse", data)


@pytest.mark.parametrize(
    "archive",
    [
        header(b"sparse", kind=b"S", magic=GNU, size=512) + bytes(512),
        header(b"sparse", kind=b"S", magic=GNU, tail=b"nonsense".ljust(126, b"\0")),
        old_gnu([(0, 1)] * 5, 100, b"")[:512] + b"\xff" * 512,
        sparse_pax(b"x", size=b"1000", numblocks=b"1", map=b"0,1,"),
        sparse_pax(b"x", size=b"1000", numblocks=b"2", map=b"0,1,5"),
        sparse_pax(b"x", size=b"1000", numblocks=b"2", map=b"0,1"),
        sparse_pax(b"x", size=b"1000", numblocks=b"1", map=b"0,1x"),
        sparse_pax(b"x", size=b"1000", numblocks=b"1", map=b"0,,1"),
        sparse_pax(b"x", size=b"1000", numblocks=b"1", map=b"0, 1"),
        sparse_pax(b"x", size=b"1e3", numblocks=b"1", map=b"0,1"),
        sparse_pax(b"x", numblocks=b"1", map=b"0,1"),
        sparse_pax(major=b"1", minor=b"0", name=b"sparse", realsize=b"10"),
        sparse_pax(padded(b"1\n0\n5\n"), major=b"1", minor=b"0", name=b"sparse"),
        sparse_pax(padded(b"1\n0\n") + b"12345", major=b"1", minor=b"0", realsize=b"10"),
        sparse_pax(padded(b"-1\n"), major=b"1", minor=b"0", realsize=b"10"),
        sparse_pax(padded(b"x\n"), major=b"1", minor=b"0", realsize=b"10"),
        sparse_pax(padded(b"\n"), major=b"1", minor=b"0", realsize=b"10"),
        sparse_pax(b"9" * 4096, major=b"1", minor=b"0", realsize=b"10"),
        sparse_pax(padded(b"99999999999\n") + b"1\n" * 1024, major=b"1", minor=b"0", realsize=b"10"),
        sparse_pax(b"1\n0\n5\n12345", major=b"1", minor=b"0", realsize=b"10"),
    ],
    ids=[
        "old GNU without a map",
        "old GNU, no number",
        "old GNU, extension of ones",
        "0.1 ends with a comma",
        "0.1 an odd count",
        "0.1 fewer than announced",
        "0.1 no number",
        "0.1 an empty number",
        "0.1 a space",
        "0.1 size is no number",
        "0.1 no size",
        "1.0 no map",
        "1.0 no size",
        "1.0 map goes on into the data",
        "1.0 negative count",
        "1.0 count is no number",
        "1.0 count is empty",
        "1.0 endless number",
        "1.0 more than the data could hold",
        "1.0 map not in whole blocks",
    ],
)
def test_line_31_maps_that_cannot_be_read_are_errors(archive: bytes) -> None:
    """A clear error; the blocks of a sparse file alone would be a wrong file."""
    assert "at byte " in error_of(joined(file(b"good", b"x"), archive))


# The interface.


def test_data_comes_once_and_may_be_left() -> None:
    """An entry's data may be read in part or not at all; the next entry is found all the same."""
    archive = joined(file(b"a", b"a" * 2000), file(b"b", b"b" * 2000), file(b"c", b"c"))
    stream = TarStream(pieces(archive, 700))
    found = {}
    for entry in stream:
        if entry.name == b"a":
            found[entry.name] = bytes(next(stream.data()))
        elif entry.name == b"c":
            found[entry.name] = b"".join(map(bytes, stream.data()))
            assert list(stream.data()) == []
    assert found == {b"a": b"a" * len(found[b"a"]), b"c": b"c"}
    assert 0 < len(found[b"a"]) < 2000


def test_errors_of_the_source_pass_through() -> None:
    """A broken disk is not the archive's fault."""

    def read() -> bytes:
        raise OSError(5, "input/output error")

    with pytest.raises(OSError, match="input/output"):
        list(TarStream(read))


def test_offsets_are_those_of_the_headers() -> None:
    """For messages: where the entry's own header begins."""
    archive = joined(file(b"a", b"x" * 513), pax({b"path": b"b"}), file(b"x"), gnu_long(b"c" * 600), file(b"y"))
    for chunk in CHUNKS:
        offsets = [(r.entry.name[:1], r.entry.offset) for r in entries(archive, chunk)]
        assert offsets == [(b"a", 0), (b"b", 2560), (b"c", 2560 + 512 + 512 + 1024)]


NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=200)
ENTRIES = st.tuples(NAMES, st.binary(max_size=1500), st.integers(0, 1 << 31), st.integers(0, 1 << 36))


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(ENTRIES, max_size=6), st.sampled_from(["gnu", "pax"]), st.integers(1, 2000))
def test_any_archive_of_tarfile(items: list[tuple[str, bytes, int, int]], form: str, chunk: int) -> None:
    """Any names, data, owners and times, in pieces of any size."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[form]) as archive:
        for name, data, owner, mtime in items:
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.gid, info.mtime = len(data), owner, owner, mtime
            archive.addfile(info, io.BytesIO(data))
    read = [(r.entry.name, r.data, r.entry.uid, r.entry.mtime_ns) for r in entries(buffer.getvalue(), chunk)]
    assert read == [(name.encode(), data, owner, mtime * 10**9) for name, data, owner, mtime in items]


@settings(max_examples=200, deadline=None, database=None)
@given(st.integers(0, 3071), st.binary(min_size=1, max_size=40), st.integers(1, 2000))
def test_damage_is_an_error_or_other_entries(at: int, noise: bytes, chunk: int) -> None:
    """Overwritten anywhere, an archive is read or refused with LayerError: nothing else is ever raised."""
    archive = joined(pax({b"path": b"p" * 120, b"mtime": b"1.5"}), file(b"f", b"d" * 100), gnu_long(b"g" * 120), file())
    damaged = archive[:at] + noise + archive[at + len(noise) :]
    with suppress(LayerError):
        entries(damaged, chunk)


def test_ustar_magic_matters_only_for_the_prefix() -> None:
    """A header with a magic of its own is still read by the fields that all formats share."""
    assert names(joined(file(b"f", b"x", magic=b"other\0 1"))) == [b"f"]
    assert USTAR != GNU

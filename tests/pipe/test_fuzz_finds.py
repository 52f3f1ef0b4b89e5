"""What fuzzing and hostile reading have found, made small by hand; each refused, or done, and never a crash."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import os
import resource
import shutil
import struct
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard

from pullpipe.errors import LayerError
from pullpipe.pipe.inflate import inflate
from pullpipe.pipe.tarstream import TarStream
from pullpipe.pipe.unpack import Worker, channel
from pullpipe.pipe.worker import Job, Limits
from tests.pipe.blocks import END, entries, file, header, joined, pax, pieces
from tests.pipe.test_fuzz_bytes import FORMS, applied, built, in_a_child
from tests.support.processes import jobs_of

SPARSE = b"GNU.sparse."
DEEP = b"/".join([b"d"] * 505)  # the extractor's limit is 512


@pytest.fixture
def apply() -> Iterator[Callable[[str, bytes], str]]:
    """Applies an archive by a form, in a child: "applied", "refused", or what went wrong."""
    made: list[Path] = []

    def run(form: str, archive: bytes) -> str:
        top = Path(tempfile.mkdtemp(prefix="pullpipe-finds-"))
        made.append(top)
        built(top)
        return in_a_child(lambda: applied(top, form, archive))

    yield run
    for top in made:
        shutil.rmtree(top)


# What the parser lets through and no system call takes: a ValueError or an OverflowError, so a "bug" in the worker.

REFUSED = {
    "NUL in the name of a sparse file": joined(
        pax({SPARSE + b"map": b"", SPARSE + b"size": b"1", SPARSE + b"name": b"a\0b"}), file()
    ),
    "NUL in an attribute's name by %00": joined(pax({b"LIBARCHIVE.xattr.user.%00": b"YQ"}), file()),
    "sparse size beyond 2^63": joined(pax({SPARSE + b"size": b"9" * 20, SPARSE + b"map": b""}), file()),
    "sparse offset beyond 2^63": joined(
        pax({SPARSE + b"size": b"9" * 20, SPARSE + b"map": b"%d,1" % (1 << 63)}), file(data=b"x")
    ),
}


@pytest.mark.needs_root
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_system_call_takes_is_refused(name: str, form: str, apply: Callable[[str, bytes], str]) -> None:
    """As the archive's fault."""
    assert apply(form, REFUSED[name]) == "refused"


# Deep trees.

DEEP_TREES = {
    "opaque": joined(pax({b"path": DEEP}), header(kind=b"5"), header(b".wh..wh..opq")),
    "whiteout": joined(pax({b"path": DEEP}), header(kind=b"5"), header(b".wh.d")),
    "replaced": joined(pax({b"path": DEEP}), header(kind=b"5"), header(b"d", kind=b"2", linkname=b"x")),
}


@pytest.mark.needs_root
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", DEEP_TREES)
def test_deep_trees(name: str, form: str, apply: Callable[[str, bytes], str]) -> None:
    """Within the limit on depth nothing recurses until Python gives up."""
    assert apply(form, DEEP_TREES[name]) == "applied"


# Memory.


@pytest.mark.parametrize("kind", [b"g", b"x"])
def test_extended_headers_do_not_add_up(kind: bytes) -> None:
    """One has a limit of 1 MiB; many of them, each with another key, make the limit a thousand times that.

    They are zeros: in a blob they cost a thousandth of what they take.
    """
    value = bytes(1_000_000)
    stream = itertools.chain((pax({b"comment.%d" % n: value}, kind=kind) for n in range(40)), (header(), END))
    tracemalloc.start()
    try:
        with suppress(LayerError):
            for _ in TarStream(lambda: next(stream, b"")):
                pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20


async def _unpack(worker: Worker, blob: bytes, top: Path) -> None:
    with tempfile.TemporaryFile() as arrived:
        arrived.write(blob)
        arrived.flush()
        async with channel() as words:
            await words.available(len(blob))
            job = Job("overlay", len(blob), "sha256", "sha256")
            await worker.unpack(job, arrived.fileno(), str(top / "root"), words, lambda _: None)


@pytest.mark.needs_root
def test_a_result_beyond_the_longest_line(worker: Worker, tmp_path: Path) -> None:
    """Each implied directory is told by its whole path: 500 deep, with long names, that is 30 MB an entry.

    The answer is more than the owner reads of one line; that is the layer's fault, not a crash.
    """
    built(tmp_path)
    parts = [b"%d" % n + b"n" * 250 for n in range(3)]
    archive = joined(*(pax({b"path": b"/".join([part] * 500) + b"/f"}) + header() for part in parts))
    try:
        with suppress(LayerError):
            asyncio.run(_unpack(worker, gzip.compress(archive, 1), tmp_path))
    finally:
        shutil.rmtree(tmp_path / "root")


# Time: what costs the archive a header may not cost us all the headers before it. The processor's: others are at work.


def spent() -> float:
    """Seconds of a processor: this process's, and those of its children that have ended."""
    both = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


@pytest.mark.needs_root
def test_time_of_links_to_links(apply: Callable[[str, bytes], str]) -> None:
    """Each a link to the next, the file last: four times the links take about four times as long, not sixteen."""
    took = []
    for count in (400, 1600):
        links = (header(b"l%d" % n, kind=b"1", linkname=b"l%d" % (n + 1)) for n in range(count))
        archive = joined(*links, header(b"l%d" % count))
        start = spent()
        assert apply("overlay", archive) == "applied"
        took.append(spent() - start)
    assert took[1] < 8 * took[0] + 0.3, took


@pytest.mark.needs_root
def test_time_of_replacing_a_directory(apply: Callable[[str, bytes], str]) -> None:
    """It does not grow with the directories that stand elsewhere."""
    there = b"".join(header(b"d%d" % n, kind=b"5") for n in range(10_000))
    replaced = b"".join(header(b"z", kind=kind) for _ in range(1000) for kind in (b"5", b"0"))
    took = []
    for archive in (there, replaced, there + replaced):
        start = spent()
        assert apply("overlay", archive + END) == "applied"
        took.append(spent() - start)
    assert took[2] < 1.5 * (took[0] + took[1]) + 0.5, took


def test_time_of_an_entry_does_not_grow_with_the_globals() -> None:
    """A global header with 70,000 records is one; it is not gone through again for each entry."""
    archive = joined(
        pax({b"c%d" % n: b"" for n in range(70_000)}, kind=b"g"), *(header(b"f%d" % n) for n in range(200))
    )
    start = spent()
    with suppress(LayerError):  # too many records: as good
        assert len(entries(archive)) == 200
    assert spent() - start < 1


SMALL_STEPS = {
    "gzip members": gzip.compress(b"", mtime=0) * 20_000,
    "zstd skippable frames": struct.pack("<II", 0x184D2A50, 0) * 50_000,
    "zstd empty blocks": b"\x28\xb5\x2f\xfd\x00\x58" + bytes(3) * 130_000 + b"\1\0\0",
    "zstd frames": zstandard.ZstdCompressor().compress(b"") * 40_000,
}


@pytest.mark.parametrize("name", SMALL_STEPS)
def test_small_steps_do_not_copy_the_chunk(name: str) -> None:
    """400 KB that say nothing. What is ahead in the chunk is not copied for every three bytes taken from it:
    in large chunks it takes about as long as in small ones.
    """
    took = []
    for chunk in (4 << 10, 256 << 10):
        start = spent()
        assert sum(map(len, inflate(pieces(SMALL_STEPS[name], chunk)))) == 0
        took.append(spent() - start)
    assert took[1] < 3 * took[0] + 0.1, took


# Bombs in a real job (LAYERS.md, line 33).

SIZE = 3 << 30
PART = 128 << 20
GROWTH = 150 << 20


def _gzip_bomb(head: bytes, tail: bytes) -> bytes:
    """Members of zeros, SIZE in all, between two others."""
    return gzip.compress(head) + gzip.compress(bytes(PART), 1) * (SIZE // PART) + gzip.compress(tail)


def _zstd_bomb(head: bytes, tail: bytes) -> bytes:
    frame = zstandard.ZstdCompressor(1).compress
    return frame(head) + frame(bytes(PART)) * (SIZE // PART) + frame(tail)


BOMBS = {"gzip": _gzip_bomb, "zstd": _zstd_bomb}
# Where the zeros stand, so that none of them are written: the data of an entry that is left out, or behind the end.
PLACES = {
    "skipped entry": (file(b"first", b"1") + header(b".wh..wh.plnk", size=SIZE), file(b"last", b"2") + END),
    "behind the end": (file(b"first", b"1") + file(b"last", b"2") + END, b""),
}


@pytest.mark.needs_root
@pytest.mark.parametrize(("kind", "place"), [("gzip", "skipped entry"), ("zstd", "behind the end")])
def test_a_bomb_costs_a_job_no_memory(kind: str, place: str, tmp_path: Path, worker: Worker) -> None:
    """Gigabytes of zeros pass through a job that hardly grows beyond the worker that it was forked from."""
    worker.start()
    blob = BOMBS[kind](*PLACES[place])
    assert len(blob) < 16 << 20
    (tmp_path / "root").mkdir()
    assert worker._process is not None
    worker_pid = worker._process.pid
    start = _memory(worker_pid, "VmRSS")
    peaks: list[int] = []

    def look(_: int) -> None:
        if len(peaks) % 8 == 0:
            peaks.extend(_memory(pid, "VmHWM") for pid in jobs_of(worker_pid))
        else:
            peaks.append(peaks[-1])

    async def work() -> None:
        with tempfile.TemporaryFile() as arrived:
            arrived.write(blob)
            arrived.flush()
            async with channel() as words:
                await words.available(len(blob))
                job = Job("overlay", len(blob), "sha256", "sha256", limits=Limits(0, 0, 0))
                result = await worker.unpack(job, arrived.fileno(), str(tmp_path / "root"), words, look)
                assert result.size == 2

    asyncio.run(work())
    assert sorted(os.listdir(tmp_path / "root")) == ["first", "last"]
    assert len(peaks) > 100
    assert start > 0
    assert max(peaks) - start < GROWTH


def _memory(pid: int, what: str) -> int:
    """Bytes; 0 when the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(what)), 0)

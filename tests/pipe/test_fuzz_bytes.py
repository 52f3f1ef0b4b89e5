"""Real archives with changed bytes: whatever comes, it is read or refused, in bounded time and memory, and inside.

`make fuzz` runs thousands of cases; `make test` a fixed few.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import select
import shutil
import signal
import tempfile
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pullpipe.errors import LayerError
from pullpipe.pipe.directory import Tree
from pullpipe.pipe.inflate import PIECE, inflate
from pullpipe.pipe.tarstream import BLOCK, Entry, TarStream
from pullpipe.pipe.unpack import Worker, channel
from pullpipe.pipe.whiteouts import FlatTree, OverlayTree
from pullpipe.pipe.worker import Job
from tests.pipe.blocks import CHUNKS
from tests.pipe.mutants import Mutant, archives, mutated_archives, mutated_streams, streams
from tests.support.tree import Snapshot, difference, snapshot

FEW = 150
CASES = int(os.environ.get("PULLPIPE_FUZZ_CASES", str(FEW)))
PATIENCE = 60.0  # seconds; only a case that hangs waits so long
SPREAD = st.sampled_from(CHUNKS)
FORMS: dict[str, type[Tree]] = {"overlay": OverlayTree, "flat": FlatTree}

fuzzed = settings(
    max_examples=CASES,
    derandomize=CASES == FEW,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


class Source:
    """A `read` that hands out pieces, and counts."""

    def __init__(self, data: bytes, chunk: int) -> None:
        self._data = data
        self._chunk = chunk
        self._at = 0
        self._limit = len(data) // chunk + 20  # nobody reads on and on behind the end

    def __call__(self) -> bytes:
        self._limit -= 1
        assert self._limit >= 0, "it reads and reads"
        self._at += self._chunk
        return self._data[self._at - self._chunk : self._at]


def parsed(data: bytes, chunk: int) -> tuple[list[tuple[Entry, str]], bool]:
    """The entries, with a digest of their data, and whether the archive was read to its end."""
    stream = TarStream(Source(data, chunk))
    found: list[tuple[Entry, str]] = []
    taken = 0
    with suppress(LayerError):
        for entry in stream:
            content = hashlib.sha256()
            for piece in stream.data():
                assert piece
                content.update(piece)
                taken += len(piece)
            found.append((entry, content.hexdigest()))
            assert len(found) <= len(data) // BLOCK
        return found, True
    assert taken <= len(data)
    return found, False


def inflated(data: bytes, chunk: int) -> tuple[str, bool]:
    """A digest of the output, and whether the stream was read to its end."""
    content = hashlib.sha256()
    # A zstd block says 128 KiB in four bytes; nothing says more in fewer.
    left = len(data) * PIECE
    with suppress(LayerError):
        for piece in inflate(Source(data, chunk)):
            assert 0 < len(piece) <= PIECE
            content.update(piece)
            left -= len(piece)
            assert left >= 0
        return content.hexdigest(), True
    return "", False


@pytest.mark.parametrize("name", [*archives(), *streams()])
def test_the_seeds_are_sound(name: str) -> None:
    """Mutants of what is refused anyway would test little."""
    if name in archives():
        found, whole = parsed(archives()[name], 512)
        assert whole
        assert len(found) > 3
    else:
        assert inflated(streams()[name], 512)[1]


@fuzzed
@given(mutated_archives(), SPREAD)
def test_archives_are_read_or_refused(mutant: Mutant, chunk: int) -> None:
    """Nothing but `LayerError`, an end, no more data than came, and the same however it is cut."""
    assert parsed(mutant.data, chunk) == parsed(mutant.data, 64 << 10)


@fuzzed
@given(mutated_archives())
def test_skipping_is_reading(mutant: Mutant) -> None:
    """An entry's data that nobody asks for changes nothing of what follows."""
    data = mutant.data
    entries: list[Entry] = []
    with suppress(LayerError):
        entries.extend(TarStream(Source(data, 700)))
    found, _ = parsed(data, 700)
    assert [entry for entry, _ in found] == entries[: len(found)]
    assert len(entries) - len(found) in (0, 1)  # of the last, the data was missing


@fuzzed
@given(st.binary(max_size=2000), SPREAD)
def test_noise_is_read_or_refused(data: bytes, chunk: int) -> None:
    """No structure at all."""
    assert parsed(data, chunk) == parsed(data, 64 << 10)
    assert inflated(data, chunk) == inflated(data, 64 << 10)


@fuzzed
@given(mutated_streams(), SPREAD)
def test_streams_are_inflated_or_refused(mutant: Mutant, chunk: int) -> None:
    """Nothing but `LayerError`, an end, bounded pieces, and the same however it is cut."""
    assert inflated(mutant.data, chunk) == inflated(mutant.data, 64 << 10)


@settings(fuzzed, max_examples=max(CASES // 5, 30))
@given(mutated_archives(), mutated_streams())
def test_memory_is_that_of_the_input(archive: Mutant, stream: Mutant) -> None:
    """Nothing is allocated because a header says so."""
    for run, data in ((parsed, archive.data), (inflated, stream.data)):
        tracemalloc.start()
        try:
            run(data, 4096)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 * len(data) + 3 * PIECE


# Applying them.


def neighbours(top: Path) -> dict[str, Snapshot]:
    """All that is beside the root."""
    return {name: snapshot(top / name) for name in ("victim", "root-evil")} | {
        name: {} for name in os.listdir(top) if name not in ("victim", "root-evil")
    }


def built(top: Path) -> None:
    """A root, and what lies beside it."""
    for name in ("root", "root-evil", "victim"):
        (top / name).mkdir()
    for name in ("root-evil", "victim"):
        (top / name / "file").write_bytes(b"precious")


def untouched(before: dict[str, Snapshot], after: dict[str, Snapshot]) -> None:
    """The neighbours are what they were."""
    assert before.keys() == after.keys()
    assert [line for name in before for line in difference(before[name], after[name])] == []


def in_a_child(work: Callable[[], str]) -> str:
    """What `work` returns, in a process of its own that must end in time."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = work()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writing, text.encode(errors="backslashreplace")[:4000])
        os._exit(0)
    os.close(writing)
    try:
        if not select.select([reading], [], [], PATIENCE)[0]:
            os.kill(child, signal.SIGKILL)
            return "it hangs"
        return os.read(reading, 4000).decode()
    finally:
        os.close(reading)
        os.waitpid(child, 0)


def applied(top: Path, form: str, archive: bytes) -> str:
    """Applies the archive to /root, with nothing but the tree's own care between that and its neighbours."""
    os.umask(0)
    os.chroot(top)  # what gets out gets no further than this
    os.chdir("/")
    root = os.open("/root", os.O_RDONLY | os.O_DIRECTORY)
    tree = FORMS[form](root)
    stream = TarStream(Source(archive, 4096))
    try:
        for entry in stream:
            tree.apply(entry, stream)
        tree.finish()
    except (LayerError, OSError):
        return "refused"
    return "applied"


@pytest.mark.needs_root
@pytest.mark.parametrize("form", FORMS)
@fuzzed
@given(mutant=mutated_archives())
@example(mutant=Mutant("pax"))
@example(mutant=Mutant("gnu"))
@example(mutant=Mutant("by hand"))
def test_trees_stay_inside(mutant: Mutant, form: str) -> None:
    """Only `LayerError` and `OSError`, no hanging, and the neighbours are what they were."""
    top = Path(tempfile.mkdtemp(prefix="pullpipe-fuzz-"))
    try:
        built(top)
        before = neighbours(top)
        assert in_a_child(lambda: applied(top, form, mutant.data)) in ("applied", "refused")
        untouched(before, neighbours(top))
    finally:
        shutil.rmtree(top)


@pytest.mark.needs_root
@settings(fuzzed, max_examples=max(CASES // 5, 30))
@given(mutated_archives(), st.sampled_from(sorted(FORMS)), st.booleans())
def test_the_worker_stays_inside(worker: Worker, mutant: Mutant, form: str, compressed: bool) -> None:
    """The same in a real job: it is done or refused, never a bug (`WorkerDied`), and never silent."""
    blob = gzip.compress(mutant.data, 1) if compressed else mutant.data
    top = Path(tempfile.mkdtemp(prefix="pullpipe-fuzz-"))
    try:
        built(top)
        before = neighbours(top)
        try:
            asyncio.run(asyncio.wait_for(_job(worker, blob, form, top), PATIENCE))
        except TimeoutError:  # which is an OSError, too
            pytest.fail("it hangs")
        except (LayerError, OSError):
            pass
        untouched(before, neighbours(top))
    finally:
        shutil.rmtree(top)


async def _job(worker: Worker, blob: bytes, form: str, top: Path) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(blob)
        file.flush()
        async with channel() as words:
            await words.available(len(blob))
            job = Job(form, len(blob), "sha256", "sha256")
            await worker.unpack(job, file.fileno(), str(top / "root"), words, lambda _: None)

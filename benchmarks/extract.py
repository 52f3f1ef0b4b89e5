"""µs for each entry of one layer, beside tar programs, in one run.

Every contender gets the same uncompressed tar of small files, from the page cache, and a directory of its own on tmpfs.
They take turns, and medians are compared, for machines are noisy.
"""

from __future__ import annotations

import asyncio
import io
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.images import Layer, members
from benchmarks.report import Report
from pullpipe.pipe.unpack import Worker, channel
from pullpipe.pipe.worker import Job


def extract(*, files: int, runs: int, directory: str | None) -> Report:
    """Measures; `directory` is on a tmpfs."""
    contenders: dict[str, Callable[[Path, Path], float]] = {"pullpipe": _by_worker}
    contenders |= {name: _by_command(name, "-xpf") for name in ("tar", "bsdtar") if shutil.which(name)}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        layer = Path(scratch, "layer.tar")
        entries = _make_layer(layer, files)
        size = layer.stat().st_size
        for turn in range(runs):
            for name, work in contenders.items():
                target = Path(scratch, f"{name}-{turn}")
                target.mkdir()
                times[name].append(work(layer, target))
                shutil.rmtree(target)
    report = Report(
        "extract",
        f"{entries} entries, {size / 1e6:.0f} MB, medians of {runs} runs in turn, on {directory or 'a temporary one'}",
        ("contender", "µs/entry", "entries/s", "MB/s"),
    )
    for name, values in times.items():
        seconds = statistics.median(values)
        report.add(name, round(seconds / entries * 1e6, 1), round(entries / seconds), round(size / seconds / 1e6))
    return report


def _make_layer(path: Path, files: int) -> int:
    """Writes the tar, and returns its number of entries."""
    entries = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for member, data in members(Layer(1, files, 4_500)):
            archive.addfile(member, io.BytesIO(data))
            entries += 1
    return entries


def _by_worker(layer: Path, directory: Path) -> float:
    """Seconds that the unpack worker takes, digests included, its start left out as a pull does not wait for it."""

    async def work() -> float:
        size = layer.stat().st_size
        with Worker() as worker, layer.open("rb") as blob:
            empty, target = directory / "empty", directory / "fs"
            empty.mkdir()
            target.mkdir()
            with tempfile.TemporaryFile() as nothing:
                async with channel() as words:  # one empty layer first: the worker is up when the clock starts
                    job = Job("overlay", 0, "sha256", "sha256")
                    await worker.unpack(job, nothing.fileno(), str(empty), words, _ignore)
            async with channel() as words:
                await words.available(size)
                job = Job("overlay", size, "sha256", "sha256")
                started = time.perf_counter()
                await worker.unpack(job, blob.fileno(), str(target), words, _ignore)
                return time.perf_counter() - started

    return asyncio.run(work())


def _ignore(_: int) -> None:
    pass


def _by_command(*command: str) -> Callable[[Path, Path], float]:
    """Seconds that a program takes, its start included; it is given the archive and the directory."""

    def work(layer: Path, directory: Path) -> float:
        started = time.perf_counter()
        subprocess.run([*command, str(layer), "-C", str(directory)], check=True)
        return time.perf_counter() - started

    return work

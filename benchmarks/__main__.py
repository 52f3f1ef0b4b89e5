"""`python -m benchmarks extract`: µs for each entry of a layer, beside GNU tar and bsdtar, in one run.

Every contender gets the same uncompressed tar of small files, from the page cache, and a directory of its own on tmpfs.
They take turns, and medians are compared, for machines are noisy.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pullpipe.pipe.unpack import Worker, channel
from pullpipe.pipe.worker import Job

_SEED = 20241123
_PER_DIRECTORY = 40


def make_layer(path: Path, files: int) -> int:
    """Writes a tar of small files, 0 to 8 KiB, the same at every call, and returns its number of entries."""
    rng = random.Random(_SEED)
    entries = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(files):
            if number % _PER_DIRECTORY == 0:
                directory = tarfile.TarInfo(f"data/{number // _PER_DIRECTORY:05}")
                directory.type, directory.mode, directory.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
                archive.addfile(directory)
                entries += 1
            member = tarfile.TarInfo(f"{directory.name}/file-{number:06}")
            member.size, member.mode, member.mtime = rng.randrange(8192), 0o644, 1_700_000_000
            archive.addfile(member, io.BytesIO(rng.randbytes(member.size)))
            entries += 1
    return entries


def by_worker(layer: Path, directory: Path) -> float:
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


def by_command(*command: str) -> Callable[[Path, Path], float]:
    """Seconds that a program takes, its start included; it is given the archive and the directory."""

    def work(layer: Path, directory: Path) -> float:
        started = time.perf_counter()
        subprocess.run([*command, str(layer), "-C", str(directory)], check=True)
        return time.perf_counter() - started

    return work


def extract(arguments: argparse.Namespace) -> None:
    contenders: dict[str, Callable[[Path, Path], float]] = {"pullpipe": by_worker}
    contenders |= {name: by_command(name, "-xpf") for name in ("tar", "bsdtar") if shutil.which(name)}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        layer = Path(scratch, "layer.tar")
        entries = make_layer(layer, arguments.files)
        size = layer.stat().st_size
        for turn in range(arguments.runs):
            for name, work in contenders.items():
                directory = Path(scratch, f"{name}-{turn}")
                directory.mkdir()
                times[name].append(work(layer, directory))
                shutil.rmtree(directory)
    rows = [
        {
            "contender": name,
            "seconds": round(statistics.median(values), 4),
            "us_per_entry": round(statistics.median(values) / entries * 1e6, 1),
            "entries_per_s": round(entries / statistics.median(values)),
            "mb_per_s": round(size / statistics.median(values) / 1e6),
        }
        for name, values in times.items()
    ]
    if arguments.json:
        json.dump({"entries": entries, "bytes": size, "runs": arguments.runs, "results": rows}, sys.stdout, indent=1)
        print()
        return
    print(f"{entries} entries, {size / 1e6:.0f} MB, medians of {arguments.runs} runs in turn, on {arguments.directory}")
    for row in rows:
        print(
            f"{row['contender']:10} {row['us_per_entry']:6} µs/entry {row['entries_per_s']:8} entries/s "
            f"{row['mb_per_s']:6} MB/s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(title="benchmarks", dest="benchmark", required=True)
    sub = commands.add_parser("extract", help="one layer of small files, beside tar programs")
    sub.add_argument("--files", type=int, default=20_000)
    sub.add_argument("--runs", type=int, default=5)
    sub.add_argument("--directory", default="/dev/shm" if os.path.isdir("/dev/shm") else None, help="a tmpfs")
    sub.add_argument("--json", action="store_true")
    sub.set_defaults(run=extract)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()

"""The floor of this machine: what each stage of an image costs alone, on one core, with nothing else going on."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from benchmarks import contenders, images, places
from benchmarks.report import Report
from pullpipe.pipe.inflate import PIECE, inflate
from pullpipe.pipe.tarstream import TarStream
from pullpipe.pipe.whiteouts import OverlayTree


def floor(image: str, cache: Path) -> Report:
    """Measures one image of the list."""
    blobs = contenders.layer_blobs(images.provide(image, cache))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        with tempfile.TemporaryDirectory(prefix="pullpipe-bench-", dir=cache) as scratch:
            tars = [_inflated(blob, Path(scratch)) for blob in blobs]
            stages: dict[str, tuple[Callable[[Path], None], list[Path]]] = {
                "copy blob": (lambda blob: _copy(blob, Path(scratch, "copy")), blobs),
                "hash blob": (_hash, blobs),
                "inflate": (_drain, blobs),
                "hash tar": (_hash, tars),
                "parse": (_parse, tars),
            }
            report = Report("floor", f"{image}, each stage alone on one core", ("stage", "seconds", "MB/s"))
            size = sum(tar.stat().st_size for tar in tars)
            for name, (stage, files) in stages.items():
                report.add(name, *_timed(lambda stage=stage, files=files: _each(stage, files), size))  # type: ignore[misc]
            with places.fresh() as place:
                report.add("parse and write", *_timed(lambda: _extract(tars, place), size))
    finally:
        os.sched_setaffinity(0, before)
    return report


def _timed(work: Callable[[], None], size: int) -> tuple[float, int]:
    started = perf_counter()
    work()
    seconds = perf_counter() - started
    return round(seconds, 3), round(size / seconds / 1e6)


def _each(stage: Callable[[Path], None], files: list[Path]) -> None:
    for file in files:
        stage(file)


def _copy(blob: Path, target: Path) -> None:
    shutil.copyfile(blob, target)


def _inflated(blob: Path, directory: Path) -> Path:
    tar = directory / blob.name
    with blob.open("rb") as source, tar.open("wb") as target:
        for piece in inflate(lambda: source.read(PIECE)):
            target.write(piece)
    return tar


def _hash(path: Path) -> None:
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def _drain(blob: Path) -> None:
    with blob.open("rb") as file:
        for _ in inflate(lambda: file.read(PIECE)):
            pass


def _parse(tar: Path) -> None:
    with tar.open("rb") as file:
        for _ in TarStream(lambda: file.read(PIECE)):
            pass


def _extract(tars: list[Path], place: Path) -> None:
    for number, tar in enumerate(tars):
        directory = place / f"layer-{number}"
        directory.mkdir()
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        with tar.open("rb") as file:
            tree = OverlayTree(root)
            stream = TarStream(lambda file=file: file.read(PIECE))  # type: ignore[misc]
            for entry in stream:
                tree.apply(entry, stream)
            tree.finish()
        os.close(root)

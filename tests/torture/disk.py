"""A disk that can lose its power: all that was written to it is known, and what it may look like after a cut is made
from that.

A drive keeps what it was told to flush. Of what was written after that it keeps whatever it likes: each sector of each
write, or not (of 4 KiB, as drives have them; ext4's superblock does not survive being torn at 512 bytes). So one
recording of a busy disk gives as many power cuts as anybody wants to look at.
"""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.processes import until
from tests.torture import drive

_SECTOR = 4096


class Write(NamedTuple):
    """One write to the drive."""

    offset: int
    data: bytes


FLUSH = None  # between the writes of a recording
Recording = list[Write | None]


class Disk:
    """A block device, `device`, that records; it begins as a copy of the image file `start`. A context manager."""

    def __init__(self, start: Path, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.start = start
        self._place, self._storage, self._log, self._control = (
            directory / name for name in ("drive", "storage", "log", "control")
        )
        subprocess.run(["cp", "--sparse=always", start, self._storage], check=True)
        self._place.touch()
        self._log.touch()
        self._control.write_bytes(bytes(drive.NUMBERS.size))
        self._loop = ""

    def __enter__(self) -> Disk:
        files = map(str, (self._place, self._storage, self._log, self._control))
        program = [sys.executable, "-I", "-S", drive.__file__, *files]
        self._process = subprocess.Popen(program, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        done = subprocess.run(["losetup", "--find", "--show", self._place], check=True, capture_output=True, text=True)
        self.device = done.stdout.strip()
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["losetup", "--detach", self.device], check=True)
        until(lambda: str(self._place) not in _backing_file(self.device), "the loop device lets go of the drive")
        # It is told a moment before it is done.
        until(lambda: subprocess.run(["umount", self._place]).returncode == 0, "the drive can be unmounted")
        self._process.wait(20)
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def now(self) -> int:
        """How much has been recorded: a moment in time."""
        return self._log.stat().st_size

    def fail(self, *, writes_from: int = 0, reads: bool = False) -> None:
        """Has all writes fail from so many on from now (1: the next one; 0: none), or all reads."""
        with self._control.open("r+b") as file, mmap.mmap(file.fileno(), drive.NUMBERS.size) as control:
            writes, _, _ = drive.NUMBERS.unpack_from(control)
            drive.NUMBERS.pack_into(control, 0, writes, writes + writes_from if writes_from else 0, int(reads))

    def recorded(self, moments: Sequence[int]) -> tuple[Recording, list[int]]:
        """What has been written, and the moments as positions in it."""
        recording: Recording = []
        ends: list[int] = []
        with self._log.open("rb") as file:
            while note := file.read(drive.NOTE.size):
                kind, offset, size = drive.NOTE.unpack(note)
                recording.append(FLUSH if kind == drive.FLUSH else Write(offset, file.read(size)))
                ends.append(file.tell())
        return recording, [bisect_right(ends, moment) for moment in moments]  # a note may be half there


class Cut(NamedTuple):
    """A power cut."""

    at: int  # how much of the recording had happened
    kept: float  # of each sector that had been written since the last flush, how likely it is to be there
    seed: int

    def __str__(self) -> str:
        return f"after {self.at} of the recording, {self.kept:.0%} of what was not flushed"


@contextmanager
def after_cuts(
    start: Path, recording: Recording, cuts: Sequence[Cut], directory: Path
) -> Iterator[Iterator[tuple[Cut, Path]]]:
    """The disk after each of these, as an image file that is gone when the next one is made; in the order of time."""
    flushed, image = directory / "flushed", directory / "after"
    subprocess.run(["cp", "--sparse=always", start, flushed], check=True)

    def images() -> Iterator[tuple[Cut, Path]]:
        done = 0
        for cut in sorted(cuts):
            last = max((number + 1 for number in range(cut.at) if recording[number] is FLUSH), default=0)
            _write(flushed, recording[done:last])
            done = max(done, last)
            image.unlink(missing_ok=True)  # not to be taken for what a loop device may still hold
            subprocess.run(["cp", "--sparse=always", flushed, image], check=True)
            rng = random.Random(cut.seed)
            _write(
                image, [part for write in recording[last : cut.at] if write for part in _parts(write, cut.kept, rng)]
            )
            yield cut, image

    try:
        yield images()
    finally:
        for path in (flushed, image):
            path.unlink(missing_ok=True)


def _backing_file(device: str) -> str:
    try:
        return Path("/sys/block", Path(device).name, "loop/backing_file").read_text()
    except FileNotFoundError:
        return ""


def _parts(write: Write, kept: float, rng: random.Random) -> Iterator[Write]:
    """Those sectors of a write that had got to where they stay."""
    if kept in (0, 1):
        yield from [write] * int(kept)
        return
    whole = rng.random()  # many a write is there as a whole, or not at all
    if whole < 0.4:
        yield from [write] if rng.random() < kept else []
        return
    at, end = write.offset, write.offset + len(write.data)
    while at < end:
        after = min(at - at % _SECTOR + _SECTOR, end)
        if rng.random() < kept:
            yield Write(at, write.data[at - write.offset : after - write.offset])
        at = after


def _write(path: Path, writes: Sequence[Write | None]) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        for write in writes:
            if write is not None:
                os.pwrite(fd, write.data, write.offset)
    finally:
        os.close(fd)

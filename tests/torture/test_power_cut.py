"""Power cuts: what `store.durable` promises, on a drive that keeps what it flushed, and of the rest what it likes.

One recording of pulls, removals and runs, with the kernel writing back at random moments besides, gives many cuts. Each
is mounted, whereby the file system recovers as it does after a real cut, and looked at; then everything is pulled.

What this cannot show: what a drive does that loses what it has flushed, or damages what it was not told to write.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.torture.disk import FLUSH, Cut, Disk, Recording, after_cuts
from tests.torture.rig import (
    BTRFS,
    EXT4,
    NAMES,
    SCALE,
    STERN_EXT4,
    XFS,
    Bench,
    FileSystem,
    dice,
    good,
    is_clear,
    pullpipe,
    recorded,
)

pytestmark = pytest.mark.needs_root
CUTS = 12 if SCALE == 1 else 60  # of each recording
SYSTEMS = [EXT4, STERN_EXT4, XFS, BTRFS] if SCALE > 1 else [STERN_EXT4, XFS]
COMMANDS = 5 if SCALE == 1 else 12


class Blank(NamedTuple):
    """An empty file system, in a file."""

    system: FileSystem
    image: Path


class Told(NamedTuple):
    """What had been told to the user at a moment: the command had gone well."""

    moment: int
    records: set[str]


@contextmanager
def written_back(place: Path, rng: random.Random) -> Iterator[None]:
    """The kernel may write what it likes when it likes: random files' data, or what all files are called and where
    their data are, without these; which a file that is flushed beside brings about."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = threading.Event()

    def work() -> None:
        beside = os.open(place / "beside", os.O_WRONLY | os.O_CREAT)
        while not done.wait(rng.uniform(0.002, 0.03)):
            names = [os.path.join(top, name) for top, _, names in os.walk(place) for name in names]
            chosen = rng.sample(names, min(len(names), rng.randrange(4)))
            for name in chosen:
                with suppress(OSError):
                    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                    libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), 2)  # SYNC_FILE_RANGE_WRITE
                    os.close(fd)
            if not chosen:
                os.pwrite(beside, rng.randbytes(10), 0)
                os.fsync(beside)
        os.close(beside)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def work_on(bench: Bench, root: Path, disk: Disk, rng: random.Random, durability: str) -> Iterator[Told]:
    """Random commands, and what is known after each."""
    present: set[str] = set()
    for _ in range(COMMANDS):
        wanted = rng.choice([name for name in NAMES if name not in present] or list(NAMES))
        if durability == "full" and len(present) > rng.randrange(3):
            name = rng.choice(sorted(present))
            good(root, "rmi", bench.reference(name))
            present.remove(name)
            print(f"    rmi {name}, until {disk.now}")
        elif wanted != "three" and rng.random() < 0.3:
            options = ("--rm", "--quiet", "--plain-http", f"--durability={durability}")
            good(root, "run", *options, bench.reference(wanted))
            present.add(wanted)
            print(f"    run {wanted}, until {disk.now}")
        else:
            good(root, *bench.pull(wanted, f"--durability={durability}"))
            present.add(wanted)
            print(f"    pull {wanted}, until {disk.now}")
        yield Told(disk.now, {bench.reference(name) for name in present})


def random_cuts(recording: Recording, told: list[int], count: int, rng: random.Random) -> list[Cut]:
    """At random, beside flushes, and when a command had just ended."""
    beside = [number + shift for number, write in enumerate(recording) if write is FLUSH for shift in (0, 1)]
    moments = [
        rng.choice([rng.randrange(len(recording) + 1), rng.choice(beside), rng.choice(told)]) for _ in range(count)
    ]
    return [Cut(at, rng.choice([0, 0.1, 0.5, 0.5, 0.9, 1]), rng.randrange(10**9)) for at in moments]


def look(bench: Bench, root: Path, allowed: list[set[str]]) -> list[str]:
    """What is wrong after a cut; whatever is recorded has to be one of these."""
    lines = bench.wrong(root)
    if not lines and (found := recorded(root)) not in allowed:
        lines.append(f"recorded are {found}, and should be one of {allowed}")
    return lines or bench.verified(root)


def pull_all(bench: Bench, root: Path) -> None:
    for name in NAMES:
        good(root, *bench.pull(name, "--durability=none"))
    assert bench.wrong(root) == []
    assert bench.verified(root, deep=True) == []
    assert recorded(root) == {bench.reference(name) for name in NAMES}
    assert [*(root / "staging").iterdir(), *(root / "ingest").iterdir()] == []


@pytest.fixture(params=SYSTEMS, ids=lambda system: system.name)
def blank(request: pytest.FixtureRequest, memory: Path) -> Blank:
    """An empty file system in a file."""
    return Blank(request.param, request.param.make(memory / "blank"))


@contextmanager
def busy_disk(
    bench: Bench, blank: Blank, directory: Path, rng: random.Random, durability: str
) -> Iterator[tuple[Recording, list[Told]]]:
    """A recording, and what had been told when."""
    with Disk(blank.image, directory / "disk") as disk:
        with blank.system.mounted(disk.device, directory / "mnt") as place:
            told = [Told(0, set())]
            with written_back(place, rng):
                told += work_on(bench, place / "root", disk, rng, durability)
        recording, positions = disk.recorded([one.moment for one in told])
    shutil.rmtree(directory / "disk")
    yield recording, [Told(at, one.records) for at, one in zip(positions, told, strict=True)]


@pytest.mark.timeout(120 + 20 * CUTS)
def test_whatever_is_recorded_is_whole_after_a_power_cut(bench: Bench, blank: Blank, memory: Path) -> None:
    rng = dice("power cut", blank.system.name)
    failed = []
    with busy_disk(bench, blank, memory, rng, "full") as (recording, told):
        cuts = random_cuts(recording, [one.moment for one in told], CUTS, rng)
        print(f"{len(recording)} writes and flushes")
        with after_cuts(blank.image, recording, cuts, memory) as images:
            for number, (cut, after) in enumerate(images):
                known = max(count for count, one in enumerate(told) if one.moment <= cut.at)
                allowed = [one.records for one in told[known : known + 2]]
                with blank.system.mounted(after, memory / "cut-off") as place:
                    wrong = look(bench, place / "root", allowed)
                    print(f"{cut}: {wrong[:5] or 'whole'}")
                    failed += [(str(cut), line) for line in wrong]
                    if number % 6 == 5 and not wrong:
                        pull_all(bench, place / "root")
    assert failed == []


def test_without_flushes_cuts_do_damage_and_a_command_says_so(bench: Bench, memory: Path) -> None:
    """That the test above can fail; and what `--durability none` leaves is told in one line, or is good."""
    blank = Blank(STERN_EXT4, STERN_EXT4.make(memory / "blank"))
    rng = dice("no flushes")
    damaged = 0
    with busy_disk(bench, blank, memory, rng, "none") as (recording, told):
        cuts = random_cuts(recording, [one.moment for one in told], 4 * CUTS, rng)
        with after_cuts(blank.image, recording, cuts, memory) as images:
            for cut, after in images:
                with blank.system.mounted(after, memory / "cut-off") as place:
                    root = place / "root"
                    wrong = bench.wrong(root)
                    damaged += bool(wrong)
                    print(f"{cut}: {wrong[:3] or 'whole'}")
                    for words in (["images"], bench.pull("one")) if wrong and damaged <= CUTS / 4 else ():
                        done = pullpipe(root, *words)
                        assert done.returncode == 0 or is_clear(done.stderr, [1], done.returncode), done.stderr
    assert damaged

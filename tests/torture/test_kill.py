"""kill -9 at any moment, of a command, of its workers, or of both: nothing that is visible is wrong, and the same
command, given again, comes to the same as if nothing had happened. Also where the disk is full at some moment."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from tests.support.processes import descendants
from tests.torture.calls import Call, Decide, let_through, supervised
from tests.torture.cases import Case
from tests.torture.rig import SCALE, SMALL_EXT4, Bench, command, dice, is_clear, removed

pytestmark = pytest.mark.needs_root
ROUNDS = 30 * SCALE


def killing(number: int, whom: str, delay: float) -> Decide:
    """At that call, or so many seconds after it."""

    def kill(main: int) -> None:
        doomed = {"parent": [main], "workers": descendants(main), "both": [*descendants(main), main]}[whom]
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def decide(call: Call, main: int) -> int:
        if call.number == number:
            if delay:
                threading.Timer(delay, kill, [main]).start()
            else:
                kill(main)
        return 0

    return decide


@contextmanager
def full(place: Path, rng: random.Random) -> Iterator[None]:
    """Only so many bytes, or so many new files, still fit on the disk for the length of the block."""
    ballast = place / "ballast"
    ballast.mkdir()
    found = os.statvfs(place)
    if rng.random() < 0.5:
        left = rng.randrange(rng.choice([8, 80]))
        print(f"    {left} inodes are free")
        for number in range(max(found.f_ffree - left, 0)):
            (ballast / str(number)).touch()
    else:
        left = rng.randrange(1 << 14, rng.choice([1 << 16, 1 << 22]))  # the ballast's own blocks want some
        print(f"    {left} bytes are free")
        with (ballast / "large").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(found.f_bavail * found.f_frsize - left, 1))
    try:
        yield
    finally:
        removed(ballast)


def one_round(bench: Bench, case: Case, rng: random.Random, *, is_full: bool) -> None:
    root = case.prepare(bench)
    reading = rng.random() < 0.3
    number = rng.randint(1, case.calls if reading else len(case.changing))
    whom = rng.choice(["parent", "parent", "both", "workers"])
    delay = rng.choice([0, 0, 0, rng.uniform(0, 0.02)])
    print(f"{case.name}: {whom} at call {number}{' (with reading)' * reading}, {delay:.4f} s later")
    decide = let_through if is_full and rng.random() < 0.7 else killing(number, whom, delay)
    with full(bench.stores, rng) if is_full else nullcontext():
        done = supervised(command(root, *case.words), [bench.stores], decide, reading=reading, timeout=30)
    at = done.calls[number - 1] if number <= len(done.calls) else None
    print(f"    {at}: exit code {done.code}")
    killed = (-signal.SIGKILL, 128 + signal.SIGKILL)  # the command, or what it ran
    if done.code not in (0, *killed):
        assert is_clear(done.said, [125, 1], done.code), done.said
    print(f"    {done.said.strip()}")
    case.check(bench, root)
    case.again(bench, root, deep=rng.random() < 0.1)


def torture(bench: Bench, cases: list[Case], rounds: int, *, is_full: bool = False) -> None:
    failed = []
    for count in range(rounds):
        rng = dice("full" if is_full else "kill", count)
        began = time.monotonic()
        try:
            one_round(bench, rng.choice(cases), rng, is_full=is_full)
        except AssertionError as error:
            print(f"    WRONG: {error}")
            failed.append((count, str(error)))
        print(f"    {time.monotonic() - began:.2f} s")
    assert failed == []


@pytest.mark.timeout(120 + 20 * ROUNDS)
def test_kill(bench: Bench, cases: list[Case]) -> None:
    torture(bench, cases, ROUNDS)


@pytest.mark.timeout(120 + 20 * ROUNDS)
def test_kill_on_a_full_disk(bench: Bench, cases: list[Case], memory: Path) -> None:
    """Room is made afterwards, by others."""
    there = [case for case in cases if case.name != "save"]  # which writes to another disk
    with SMALL_EXT4.mounted(SMALL_EXT4.make(memory / "small"), memory / "small-mnt") as place:
        torture(bench._replace(stores=place), there, ROUNDS // 2, is_full=True)
    (memory / "small").unlink()

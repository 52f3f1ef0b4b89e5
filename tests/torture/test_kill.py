"""kill -9 at any moment, of a command, of its workers, or of both: nothing that is visible is wrong, and the same
command, given again, comes to the same as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.processes import descendants
from tests.support.tree import Snapshot, difference
from tests.torture.calls import Call, Decide, supervised
from tests.torture.rig import (
    SCALE,
    Bench,
    command,
    contents,
    copied,
    dice,
    good,
    is_clear,
    mounts_below,
    recorded,
    removed,
)

pytestmark = pytest.mark.needs_root
ROUNDS = 30 * SCALE


class Case(NamedTuple):
    """A command, on a store that is made for it."""

    name: str
    words: list[str]
    before: Path
    after: Snapshot
    calls: int  # that change something
    reads: int  # and these that read


@pytest.fixture(scope="module")
def cases(bench: Bench) -> list[Case]:
    """Each command undisturbed: what it comes to, by how many calls."""
    one, two, three = map(bench.reference, ("one", "two", "three"))
    empty, some, used = (bench.stores / name for name in ("empty", "some", "used"))
    for store in (some, used):
        for name in ("one", "three"):
            good(store, *bench.pull(name))
    good(used, "run", "--name=c", one)
    saved = bench.stores / "saved.tar"
    wanted = [
        ("pull", bench.pull("one"), empty),
        ("pull beside others", bench.pull("two"), some),
        ("load", ["load", "--quiet", f"{bench.layout}"], empty),
        ("run", ["run", "--rm", one], some),
        ("run and pull", ["run", "--rm", "--quiet", "--plain-http", two], some),
        ("rmi", ["rmi", one, three], some),
        ("save", ["save", "--quiet", "-o", f"{saved}", one], some),
        ("rm", ["rm", "c"], used),
    ]
    found = []
    for name, words, before in wanted:
        root = bench.stores / "root"
        counts = []
        for reading in (False, True):
            prepare(before, root)
            done = supervised(command(root, *words), [bench.stores], reading=reading)
            assert done.code == 0, done.said
            counts.append(len(done.calls))
        found.append(Case(name, words, before, contents(root), *counts))
        print(f"{name}: {counts[0]} calls that change something, {counts[1]} calls in all")
    return found


def prepare(before: Path, root: Path) -> None:
    """The store in its state before; an empty one is not there."""
    removed(root)
    if before.exists():
        copied(before, root)


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


def one_round(bench: Bench, case: Case, rng: random.Random) -> None:
    root = bench.stores / "root"
    prepare(case.before, root)
    reading = rng.random() < 0.3
    number = rng.randint(1, case.reads if reading else case.calls)
    whom = rng.choice(["parent", "parent", "both", "workers"])
    delay = rng.choice([0, 0, 0, rng.uniform(0, 0.02)])
    print(
        f"{case.name}: {whom} at call {number} {'of all' if reading else 'that changes something'}, {delay:.4f} s later"
    )
    done = supervised(
        command(root, *case.words), [bench.stores], killing(number, whom, delay), reading=reading, timeout=30
    )
    at = done.calls[number - 1] if number <= len(done.calls) else None
    print(f"    {at}: exit code {done.code}")
    killed = (-signal.SIGKILL, 128 + signal.SIGKILL)  # the command, or what it ran
    if done.code not in (0, *killed):
        assert is_clear(done.said, [125, 1], done.code), done.said
    assert mounts_below(root) == []
    assert bench.wrong(root) == []
    again(bench, case, root)


def again(bench: Bench, case: Case, root: Path) -> None:
    """The command once more: it goes well, unless it had been done by then, and then all is as it should be."""
    if case.name == "rmi":
        words = ["rmi", *sorted(recorded(root))]
    elif case.name == "rm" and not list((root / "containers").glob("*/config.json")):
        words = []
    else:
        words = case.words
    if len(words) > 1:
        good(root, *words)
    if case.name not in ("pull", "load"):
        good(root, "prune", "--containers")  # removes what a command that was killed left to it
    assert bench.wrong(root) == []
    assert difference(contents(root), case.after) == []


@pytest.mark.timeout(120 + 20 * ROUNDS)
def test_kill(bench: Bench, cases: list[Case]) -> None:
    failed = []
    for count in range(ROUNDS):
        rng = dice("kill", count)
        began = time.monotonic()
        try:
            one_round(bench, rng.choice(cases), rng)
        except AssertionError as error:
            print(f"    WRONG: {error}")
            failed.append((count, str(error)))
        print(f"    {time.monotonic() - began:.2f} s")
    assert failed == []

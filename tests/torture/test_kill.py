"""kill -9 at any moment, of a command, of its workers, or of both: nothing that is visible is wrong, and the same
command, given again, comes to the same as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import suppress

import pytest

from tests.support.processes import descendants
from tests.torture.calls import Call, Decide, supervised
from tests.torture.cases import Case
from tests.torture.rig import SCALE, Bench, command, dice, is_clear

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


def one_round(bench: Bench, case: Case, rng: random.Random) -> None:
    root = case.prepare(bench)
    reading = rng.random() < 0.3
    number = rng.randint(1, case.calls if reading else len(case.changing))
    whom = rng.choice(["parent", "parent", "both", "workers"])
    delay = rng.choice([0, 0, 0, rng.uniform(0, 0.02)])
    print(f"{case.name}: {whom} at call {number}{' (with reading)' * reading}, {delay:.4f} s later")
    decide = killing(number, whom, delay)
    done = supervised(command(root, *case.words), [bench.stores], decide, reading=reading, timeout=30)
    at = done.calls[number - 1] if number <= len(done.calls) else None
    print(f"    {at}: exit code {done.code}")
    killed = (-signal.SIGKILL, 128 + signal.SIGKILL)  # the command, or what it ran
    if done.code not in (0, *killed):
        assert is_clear(done.said, [125, 1], done.code), done.said
    case.check(bench, root)
    case.again(bench, root)


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

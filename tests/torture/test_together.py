"""Many commands on one store at the same time, some of them ended by a signal: nobody waits for ever, what cannot be is
told in a line, and what is left is whole."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.support.processes import interrupted_at_start
from tests.torture.rig import NAMES, SCALE, Bench, command, dice, good, is_clear, mounts_below, removed

pytestmark = pytest.mark.needs_root
AT_ONCE = 16
SECONDS = 12 if SCALE == 1 else 180
PATIENCE = 60  # seconds that a command may take while so many others are at work
# What a command may be told when others were faster; each is true at the moment it is said.
_REASONS = (
    r"is not in the store",
    r"no image \S+ in the store",
    r"no container",
    r"is used by",
    r"is running",
    r"the container name '\S+' is taken",
)


class Crowd:
    """The commands, in threads of `AT_ONCE` users who each do one after the other."""

    def __init__(self, bench: Bench, root: Path) -> None:
        self.outcomes: Counter[str] = Counter()
        self.slowest_end = 0.0  # seconds from a signal to the end
        self.wrong: list[str] = []
        self._bench = bench
        self._root = root
        self._until = time.monotonic() + SECONDS

    def work(self) -> None:
        threads = [threading.Thread(target=self._user, args=(number,)) for number in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _user(self, number: int) -> None:
        rng = dice("together", number)
        while time.monotonic() < self._until and not self.wrong:
            for words in self._errand(rng, f"{number}-{rng.randrange(1 << 30)}"):
                self._run(words, rng.choice([signal.SIGTERM, signal.SIGINT]) if rng.random() < 0.1 else None, rng)

    def _errand(self, rng: random.Random, name: str) -> Iterator[list[str]]:
        image = self._bench.reference(rng.choice(["one", "two"]))
        match rng.randrange(8):
            case 0 | 1:
                yield self._bench.pull(rng.choice(NAMES))
            case 2 | 3:
                yield ["run", "--quiet", "--plain-http", "--rm", image, "true"]
            case 4:
                yield ["run", "--quiet", "--plain-http", "--name", f"c{name}", image, "sh", "-c", "echo kept >/kept"]
                yield ["rm", f"c{name}"]
            case 5:
                yield ["rmi", self._bench.reference(rng.choice(NAMES))]
            case 6:
                yield ["prune", *rng.choice([[], ["--all"], ["--containers"]])]
            case _:
                yield rng.choice([["images"], ["ps"], ["df"], ["verify", "--quiet"]])

    def _run(self, words: list[str], ended_by: signal.Signals | None, rng: random.Random) -> None:
        with subprocess.Popen(
            command(self._root, *words),
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            sent = 0.0
            try:
                if ended_by is not None:
                    try:
                        process.wait(rng.uniform(0, 1.0))
                    except subprocess.TimeoutExpired:
                        process.send_signal(ended_by)
                        sent = time.monotonic()
                out, said = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                self.wrong.append(f"{words} did not end")
                return
        if sent:
            self.slowest_end = max(self.slowest_end, time.monotonic() - sent)
        self._judge(words, process.returncode, out + said, signalled=bool(sent))

    def _judge(self, words: list[str], code: int, said: str, *, signalled: bool) -> None:
        name = words[0]
        if code == 0:
            self.outcomes[f"{name}: well"] += 1
        elif signalled and interrupted_at_start(said):
            self.outcomes["Python, as it started: ended"] += 1  # which tells so in its own way
        elif signalled and code in (130, 143, -signal.SIGTERM, -signal.SIGINT) and "Traceback" not in said:
            self.outcomes[f"{name}: ended"] += 1
        elif is_clear(said, [1, 125], code) and re.search("|".join(_REASONS), said):
            self.outcomes[f"{name}: too late"] += 1
        else:
            self.wrong.append(f"{words}: {code}: {said}")


@pytest.mark.timeout(120 + 4 * SECONDS)
def test_a_crowd(bench: Bench) -> None:
    root = bench.stores / "crowded"
    removed(root)
    for name in NAMES:
        good(root, *bench.pull(name))
    crowd = Crowd(bench, root)
    crowd.work()
    print(dict(sorted(crowd.outcomes.items())), f"slowest end after a signal: {crowd.slowest_end:.2f} s")
    assert crowd.wrong == []
    assert mounts_below(root) == []
    assert bench.wrong(root) == []
    for name in NAMES:
        good(root, *bench.pull(name))
    good(root, "prune", "--containers", "--filter", "until=0s")
    assert bench.wrong(root) == []
    assert bench.verified(root, deep=True) == []
    assert list((root / "staging").iterdir()) == list((root / "containers").iterdir()) == []
    good(root, "run", "--rm", bench.reference("one"), "true")

"""One run of some commands: wall time, CPU time, memory."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

_INTERVAL = 0.05  # seconds between two looks at the memory
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A command that is measured has failed; the message is its own."""


class Run(NamedTuple):
    """What one run took."""

    wall: float  # seconds
    cpu: float  # seconds of all processes of the machine, the kernel's and the registry's among them
    rss: int  # bytes, the most that the processes had together; pages that they share count for each


def run(commands: Sequence[Sequence[str]], *, others: Collection[int] = ()) -> Run:
    """Runs the commands one after the other; memory is that of all our descendants but `others`. Raises `Failed`."""
    with _Memory(others) as memory:
        cpu, started = machine_cpu(), perf_counter()
        largest = max([_one(command) for command in commands])
        wall, cpu = perf_counter() - started, machine_cpu() - cpu
    return Run(wall, cpu, max(memory.most, largest))


def _one(command: Sequence[str]) -> int:
    """Runs it; the bytes of its largest process, which tell also of one that is over before anybody looks. None where
    that is no more than we have ourselves, for a child has that, too, before it becomes the command."""
    ours = _resident(os.getpid())
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise Failed(f"{' '.join(command)}: {output.read().strip()}")
    largest = usage.ru_maxrss << 10
    return largest if largest > ours else 0


def machine_cpu() -> float:
    """Seconds that all cores have worked so far."""
    user, nice, system, _idle, _waiting, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq) / _TICK


class _Memory:
    """The most memory that our descendants had together while this is open."""

    def __init__(self, others: Collection[int]) -> None:
        self.most = 0
        self._others = others
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_INTERVAL):
            self.most = max(self.most, sum(_resident(pid) for pid in self._descendants(os.getpid())))

    def _descendants(self, pid: int) -> list[int]:
        found = []
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                    found += [int(child) for child in file.read().split() if int(child) not in self._others]
        except OSError:  # it has ended
            return []
        return found + [below for child in found for below in self._descendants(child)]


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0

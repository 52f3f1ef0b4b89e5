"""What a container may take of the machine, and what that is for the kernel: files of cgroup v1 and of v2.

Names and meanings are Docker's. `cgroups` writes them.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from pullpipe.errors import RunError

_LEAST_MEMORY = 6 << 20  # bytes, as Docker: what it takes until the command has begun
_PERIOD = 100_000  # microseconds
_SHARES = (2, 262144)  # the kernel's range on v1; on v2 it is 1 to 10000


class Limits(NamedTuple):
    """None and empty are no limit."""

    memory: int | None = None  # bytes
    memory_swap: int | None = None  # bytes of memory and swap together; -1: all swap there is; None: twice the memory
    memory_reservation: int | None = None  # bytes; more than that is taken away first when the machine's runs short
    cpus: float | None = None  # processor time, in processors
    cpu_shares: int | None = None  # its part of the time when others want it, too; 1024 is the usual
    cpuset: str = ""  # the processors that it may use: 0-2,4
    pids: int | None = None  # processes and threads


class Setting(NamedTuple):
    """One of them, as it is written."""

    controller: str
    option: str  # who asked for it
    v1: tuple[tuple[str, str], ...]  # (file, what to write)
    v2: tuple[tuple[str, str], ...]
    optional: bool = False  # nobody asked for just this: it is left out where the kernel does not have it


def settings(limits: Limits) -> list[Setting]:
    """In the order in which they are to be written. Raises `RunError` for what cannot be kept, here or anywhere."""
    found = [*_memory(limits), *_processors(limits)]
    if limits.pids is not None:
        files = (("pids.max", str(limits.pids)),)
        found.append(Setting("pids", "--pids-limit", files, files))
    return found


def _memory(limits: Limits) -> list[Setting]:
    memory, swap, reservation = limits.memory, limits.memory_swap, limits.memory_reservation
    found = []
    if memory is not None:
        if memory < _LEAST_MEMORY:
            raise RunError(f"--memory is {memory} bytes, too little to start a command; give it 6m at least")
        if swap is not None and -1 != swap < memory:
            raise RunError("--memory-swap is memory and swap together, and so not less than --memory; -1 is no limit")
        found.append(
            Setting("memory", "--memory", (("memory.limit_in_bytes", str(memory)),), (("memory.max", str(memory)),))
        )
        total = 2 * memory if swap is None else swap
        rest = "max" if total == -1 else str(total - memory)
        files = (("memory.memsw.limit_in_bytes", str(total)),), (("memory.swap.max", rest),)
        found.append(Setting("memory", "--memory-swap", *files, optional=swap is None))
    elif swap is not None:
        raise RunError("--memory-swap is memory and swap together; say --memory, too")
    if reservation is not None:
        if memory is not None and reservation > memory:
            raise RunError("--memory-reservation is more than --memory, and so never reached; make it less")
        files = (("memory.soft_limit_in_bytes", str(reservation)),), (("memory.low", str(reservation)),)
        found.append(Setting("memory", "--memory-reservation", *files))
    return found


def _processors(limits: Limits) -> list[Setting]:
    found = []
    if limits.cpus is not None:
        processors = os.cpu_count() or 1
        if not 0.01 <= limits.cpus <= processors:
            raise RunError(f"--cpus is {limits.cpus:g}, and this machine can give from 0.01 to {processors}")
        quota = round(limits.cpus * _PERIOD)
        v1 = (("cpu.cfs_period_us", str(_PERIOD)), ("cpu.cfs_quota_us", str(quota)))
        found.append(Setting("cpu", "--cpus", v1, (("cpu.max", f"{quota} {_PERIOD}"),)))
    if limits.cpu_shares is not None:
        least, most = _SHARES
        if not least <= limits.cpu_shares <= most:
            raise RunError(f"--cpu-shares is {limits.cpu_shares}, and may be from {least} to {most}")
        weight = 1 + (limits.cpu_shares - least) * 9999 // (most - least)
        shares = (("cpu.shares", str(limits.cpu_shares)),)
        found.append(Setting("cpu", "--cpu-shares", shares, (("cpu.weight", str(weight)),)))
    if limits.cpuset:
        files = (("cpuset.cpus", limits.cpuset),)
        found.append(Setting("cpuset", "--cpuset-cpus", files, files))
    return found

"""Each system call that the store makes, failing in turn, once or from then on: one clear line, a store that is as
it should be, and the same command goes well when the fault is over."""

from __future__ import annotations

import errno
import os
import random
import time
from collections import Counter
from typing import NamedTuple

import pytest

from tests.torture.calls import Call, supervised
from tests.torture.cases import Case, saved_place
from tests.torture.rig import SCALE, Bench, command, dice, is_clear

pytestmark = pytest.mark.needs_root
FAULTS = 24  # in `make test`; else each call of each case

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_MAKING = (*_FULL, errno.EROFS)
_CHANGING = (errno.EIO, errno.EROFS)
_NEW = "open openat openat2 creat mkdir mkdirat rename renameat renameat2 link linkat symlink symlinkat mknod mknodat"
_OLD = "unlink unlinkat rmdir chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utimensat truncate ftruncate"
_ERRORS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        ["write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range", "fallocate"], _FULL
    ),
    **dict.fromkeys(["fsync", "fdatasync", "syncfs"], _FULL),
    **dict.fromkeys(["setxattr", "lsetxattr", "fsetxattr"], _MAKING),
    **dict.fromkeys(_NEW.split(), _MAKING),
    **dict.fromkeys(_OLD.split(), _CHANGING),
    "flock": (errno.ENOLCK,),
    "mount": (errno.ENOMEM, errno.EPERM),
    "umount2": (errno.ENOMEM,),
    "chroot": (errno.EPERM,),
    "unshare": (errno.EPERM, errno.ENOSPC),
}


class Fault(NamedTuple):
    """What fails."""

    case: Case
    number: int  # of the call; with `reading`, of all calls
    error: int  # 0: one that the call can have
    lasting: bool  # whether all later calls that can have this error have it
    reading: bool = False


def all_faults(cases: list[Case], rng: random.Random) -> list[Fault]:
    """Each call of each case once, with an error by chance; and as many of those that only read."""
    faults = []
    for case in cases:
        for number in range(1, len(case.changing) + 1):
            faults.append(Fault(case, number, 0, rng.random() < 0.3))
            faults.append(Fault(case, rng.randint(1, case.calls), errno.EIO, rng.random() < 0.2, reading=True))
    rng.shuffle(faults)
    return faults


def one_fault(bench: Bench, fault: Fault, rng: random.Random) -> tuple[str, int, int]:
    """Which call failed, with which error, and the exit code."""
    case = fault.case
    root = case.prepare(bench)
    failed: list[Call] = []
    errors: list[int] = []

    def decide(call: Call, _: int) -> int:
        possible = _ERRORS.get(call.name, (errno.EIO,))
        if call.number == fault.number:
            errors.append(fault.error or rng.choice(possible))
        elif not (fault.lasting and errors and errors[0] in possible):
            return 0
        failed.append(call)
        return errors[0]

    done = supervised(command(root, *case.words), [bench.stores], decide, reading=fault.reading, timeout=30)
    what = f"{failed[0].name} of {failed[0].path.removeprefix(str(bench.stores))}" if failed else "nothing"
    error = errors[0] if errors else 0
    print(f"{case.name}: {os.strerror(error)} {'from' if fault.lasting else 'at'} call {fault.number}, {what}")
    print(f"    {done.code}: {done.said.strip()}")
    if done.code:
        assert is_clear(done.said, [1, 125], done.code), done.said
        assert os.strerror(error).lower() in (done.out + done.said).lower(), "it does not tell the cause"
    else:
        without = {"save": True, "pull beside others": failed[0].name == "unshare"}  # nothing is left to unpack
        forgiven = not fault.lasting or fault.reading or failed[0].name in _OLD or without.get(case.name, False)
        reserve = str(bench.stores / "root" / "reserve")  # which is no promise
        assert forgiven or failed[0].path.startswith(reserve), "it claims success"
    assert not list(saved_place(bench).glob(".save*")) or fault.lasting or "unlink" in what
    case.check(bench, root)
    case.again(bench, root, deep=rng.random() < 0.1)
    return failed[0].name if failed else "", error, done.code


def torture(bench: Bench, faults: list[Fault], rng: random.Random) -> None:
    wrong = []
    outcomes: Counter[tuple[str, str, int]] = Counter()
    for fault in faults:
        began = time.monotonic()
        try:
            name, error, code = one_fault(bench, fault, rng)
            outcomes[name, errno.errorcode.get(error, ""), code] += 1
        except AssertionError as error:
            print(f"    WRONG: {error}")
            wrong.append(str(error))
        print(f"    {time.monotonic() - began:.2f} s")
    print(f"{len(faults)} faults, {len(wrong)} violations: {outcomes}")
    assert wrong == []


@pytest.mark.timeout(300 if SCALE == 1 else 4 * 3600)
def test_each_system_call_failing(bench: Bench, cases: list[Case]) -> None:
    rng = dice("faults")
    faults = all_faults(cases, rng)
    torture(bench, faults[:FAULTS] if SCALE == 1 else faults, rng)


class Found(NamedTuple):
    """A fault that once did harm, or was told badly."""

    case: str
    name: str  # of the call
    path: str  # a part of what it is about
    error: int
    lasting: bool = False  # or else the first such call only
    fatal: bool = False  # whether the command cannot do its work without it


FOUND = [
    # What could not be looked at was taken for absent.
    Found("pull beside others", "newfstatat", "config.json", errno.EIO, lasting=True),  # a container, for half made
    Found("pull beside others", "newfstatat", "root/index.json", errno.EIO, lasting=True),  # the images' records
    Found("rm", "newfstatat", "root/stacks/sha256/", errno.EIO),  # what a stack needs
    Found("pull", "lgetxattr", "data/sub", errno.EIO, lasting=True),  # that a directory is opaque
    # A bug was told, or nothing, when the kernel refused what unpacking needs.
    Found("load", "mount", "", errno.EPERM),
    Found("load", "unshare", "", errno.EPERM),
    Found(
        "repair", "mount", "variants-", errno.EIO, fatal=True
    ),  # what could not be unpacked was left out, and all was well
]


@pytest.mark.parametrize("found", FOUND, ids=lambda found: f"{found.case}, {found.name} {found.path}")
def test_found(bench: Bench, cases: list[Case], found: Found) -> None:
    case = next(case for case in cases if case.name == found.case)
    root = case.prepare(bench)
    failed: list[Call] = []

    def decide(call: Call, _: int) -> int:
        if call.name != found.name or found.path not in call.path or (failed and not found.lasting):
            return 0
        failed.append(call)
        return found.error

    done = supervised(command(root, *case.words), [bench.stores], decide, reading=True, timeout=30)
    assert failed
    assert (done.code == 0 and not found.fatal) or is_clear(done.said, [1, 125], done.code), done.said
    assert done.code == 0 or os.strerror(found.error).lower() in done.said.lower()
    case.check(bench, root)
    case.again(bench, root, deep=False)

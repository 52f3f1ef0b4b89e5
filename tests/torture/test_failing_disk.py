"""A disk that fails in the middle of a command: one clear line, and a store that is whole when the disk works again."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import until
from tests.torture.calls import Call, Done, supervised
from tests.torture.disk import Disk
from tests.torture.rig import EXT4, SCALE, Bench, command, dice, good, is_clear, recorded

pytestmark = pytest.mark.needs_root
ROUNDS = 5 * SCALE
# As the kernel tells it: ext4 takes what it cannot read of its maps for full.
_CAUSES = ("input/output error", "read-only file system", "no space left on device")


def disturbed(root: Path, words: list[str], number: int, fail: Callable[[], None]) -> Done:
    """The command, whose disk fails from that system call on."""

    def decide(call: Call, _: int) -> int:
        if call.number == number:
            fail()
        return 0

    return supervised(command(root, *words), [root], decide, reading=True)


@pytest.mark.parametrize("what", ["writes", "reads"])
@pytest.mark.timeout(120 + 40 * ROUNDS)
def test_a_disk_that_fails(bench: Bench, memory: Path, what: str) -> None:
    """Nothing is lost that was there, and whatever is recorded is whole; the same command then goes well."""
    EXT4.make(memory / "blank")
    codes = [one_round(bench, memory, what, dice(f"failing {what}", count)) for count in range(ROUNDS)]
    assert any(codes)
    (memory / "blank").unlink()


def one_round(bench: Bench, memory: Path, what: str, rng: random.Random) -> int:
    """The exit code of the command."""
    one, two = bench.reference("one"), bench.reference("two")
    words, after = rng.choice(
        [
            (bench.pull("two"), {one, two}),
            (bench.pull("two"), {one, two}),
            (["run", "--rm", one, "true"], {one}),
            (["verify", "--deep", "--quiet"], {one}),
            (["repair", "--quiet"], {one}),
            (["rmi", one], set()),
        ]
    )
    number = rng.randint(1, 200)
    with Disk(memory / "blank", memory / "failing") as disk:
        with EXT4.mounted(disk.device, memory / "failing-mnt") as place:
            good(place / "root", *bench.pull("one"))
        with EXT4.mounted(disk.device, memory / "failing-mnt") as place:
            # Nothing of it is in memory any more.
            how = {"reads": True} if what == "reads" else {"writes_from": rng.choice([1, 1, 3, 20])}
            done = disturbed(place / "root", words, number, lambda: disk.fail(**how))
            print(f"{words[0]}: {what} fail from call {number} on: {done.code}: {done.said.strip()}")
        until(lambda: is_free(disk.device), "nobody has it mounted any more")
        disk.fail()
        if done.code:
            assert is_clear(done.said, [1, 125], done.code), done.said
            assert any(cause in (done.out + done.said).lower() for cause in _CAUSES), "it does not tell the cause"
        with EXT4.mounted(disk.device, memory / "failing-mnt") as place:
            root = place / "root"
            assert bench.wrong(root) == []
            assert bench.verified(root, deep=True) == []
            assert recorded(root) == after or (done.code and recorded(root) in ({one}, after))
            if recorded(root) != after:
                good(root, *words)
            assert recorded(root) == after
            assert bench.verified(root, deep=True) == []
    return done.code


def is_free(device: str) -> bool:
    """Whether no mount namespace has the file system of the device: else it would be mounted again as it is."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True

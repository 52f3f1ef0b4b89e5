"""Locks between processes: one holder, no stale ones, a file that may be removed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from store.locks import Lock, held
from tests.store.rig import another_process
from tests.support.processes import is_waited_for, until


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "lock")


def test_one_holder(path: str) -> None:
    """A second one is told so at once, and gets it when the first has given it back."""
    first, second = Lock(path), Lock(path)
    assert first.try_acquire()
    assert not second.try_acquire()
    first.release()
    assert second.try_acquire()
    second.release()


def test_shared(path: str) -> None:
    """Many readers, and no writer beside them."""
    readers, writer = [Lock(path), Lock(path)], Lock(path)
    assert [reader.try_acquire(shared=True) for reader in readers] == [True, True]
    assert not writer.try_acquire()
    for reader in readers:
        reader.release()
    assert writer.try_acquire()
    assert not readers[0].try_acquire(shared=True)
    writer.release()


def test_release_without_holding(path: str) -> None:
    """Nothing happens: not to the file, not to another holder's lock."""
    holder, other = Lock(path), Lock(path)
    other.release(remove=True)
    assert holder.try_acquire()
    other.release(remove=True)
    assert Path(path).exists()
    assert not other.try_acquire()
    holder.release(remove=True)
    holder.release(remove=True)
    assert not Path(path).exists()


def test_a_file_that_cannot_be_removed(path: str, tmp_path: Path) -> None:
    """The lock is given back all the same: who goes on would wait for himself."""
    holder, other = Lock(path), Lock(path)
    assert holder.try_acquire()
    Path(path).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        holder.release(remove=True)
    (tmp_path / "elsewhere").rename(path)
    assert other.try_acquire()
    other.release(remove=True)


@pytest.mark.parametrize("take", [Lock.acquire, Lock.try_acquire, Lock.is_held, Lock.wait_for_note])
def test_a_symlink_is_none(path: str, tmp_path: Path, take: Callable[[Lock], object]) -> None:
    """Whoever has put it there would have a file of ours made, or locked, elsewhere."""
    Path(path).symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        take(Lock(path))
    assert not (tmp_path / "target").exists()


def test_waiter_gets_the_lock_that_counts(path: str) -> None:
    """Its holder removes the file while another waits: the waiter holds the new file, which excludes a third."""
    first, second, third = Lock(path), Lock(path), Lock(path)
    first.acquire()
    waiter = threading.Thread(target=second.acquire)
    waiter.start()
    until(lambda: is_waited_for(Path(path)), "nobody waits")
    first.release(remove=True)
    waiter.join(timeout=10)
    assert not waiter.is_alive()
    assert Path(path).exists()
    assert not third.try_acquire()
    second.release(remove=True)
    assert third.try_acquire()
    third.release(remove=True)


def test_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    """Killed, not ended: no lock is ever stale."""
    root = tmp_path / "root"
    lock = Lock(str(root / "mine.lock"))
    take = f"from store.locks import Lock\nlock = Lock({lock.path!r})\nassert lock.try_acquire()"
    with another_process(take, root) as process:
        assert not lock.try_acquire()
        process.kill()
        process.wait()
        assert lock.try_acquire()
        lock.release()


def test_programs_that_are_started_do_not_inherit_it(path: str) -> None:
    """A command that outlives its caller must not keep the caller's locks."""
    lock, other = Lock(path), Lock(path)
    lock.acquire()
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False) as child:
        assert child.stdout is not None
        child.stdout.readline()
        lock.release()
        assert other.try_acquire()
        other.release()
        child.communicate(b"\n")


def test_held_ends_with_its_block(path: str) -> None:
    """Also when the block fails."""
    lock = Lock(path)
    with held(path):
        assert not lock.try_acquire()
    with pytest.raises(KeyError), held(path):
        raise KeyError
    assert lock.try_acquire()
    lock.release()

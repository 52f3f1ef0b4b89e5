"""Leases: what a push is about to need survives a sweep, for a day."""

from __future__ import annotations

import os
import time
from pathlib import Path

from store import Digest, Store
from store.gc import Marks, sweep
from store.leases import LENGTH
from tests.store.rig import another_process, at_once, everything, killed_at_every_step, put_blob, put_layer


def swept(store: Store) -> list[Digest]:
    """What is left when nothing is marked."""
    sweep(store, lambda: Marks(set(), set(), set(), set()))
    return list(store.blobs)


def grant(store: Store, digest: Digest) -> None:
    with store.shared():
        store.leases.grant(digest)


def age(store: Store, digest: Digest, seconds: float) -> None:
    """Has the lease begun so many seconds ago."""
    began = time.time() - seconds
    os.utime(Path(store.root, "leases", f"{digest.algorithm}-{digest.hex}"), (began, began))


def test_a_leased_blob_stays(store: Store) -> None:
    """And only that, in the next process, too."""
    leased, other = put_blob(store, b"leased"), put_blob(store, b"other")
    grant(store, leased)
    assert swept(Store(store.root)) == [leased]
    assert other not in store.blobs


def test_what_is_needed_stays(store: Store, store_root: Path) -> None:
    """Of any kind, there or not, and for as long as the block runs or its process lives."""
    blob, layer = put_blob(store, b"needed"), put_layer(store, "needed")
    with store.shared():
        needed = store.leases.needed([blob, layer, Digest.of(b"not here")])
        needed.__enter__()
    assert swept(Store(store.root)) == [blob]
    assert list(store.layers) == [layer]
    needed.__exit__(None, None, None)
    assert everything(store_root / "staging") == []
    program = 'needed = store.leases.needed([Digest.of(b"needed")])\nneeded.__enter__()'
    with another_process(program, store_root):
        assert swept(store) == [blob]
        assert list(store.layers) == [layer]  # by the same name
    assert swept(store) == []
    store.clean()
    assert everything(store_root / "staging") == []


def test_no_room_to_say_what_is_needed(store: Store, store_root: Path) -> None:
    """Where a part of it would fit, too: who needs it fails at once, and leaves nothing in the way."""
    program = """
import os, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with store.leases.needed([Digest.of(bytes([number])) for number in range(100)]):
        raise AssertionError("it claims that all is noted")
except OSError as error:
    assert os.strerror(error.errno) == "File too large"
assert store.leases.current() == set()
"""
    [done] = at_once(program, store_root, 1)
    assert done.returncode == 0, done.stderr
    assert everything(store_root / "staging") == []


def test_a_note_that_is_being_written(store: Store, store_root: Path) -> None:
    """Who only looks at the store may meet it."""
    needed = put_blob(store, b"needed")
    program = """
from store.locks import Lock
lock = Lock(f"{store.root}/staging/needed.1.2.lock")
lock.acquire()
lock.leave(f"{Digest.of(b'needed')}\\n{Digest.of(b'other')}".encode()[:100])
"""
    with another_process(program, store_root), store.shared():
        assert store.leases.current() == {needed}


def test_after_a_day_it_goes(store: Store) -> None:
    """Nothing is left of the lease either."""
    digest = put_blob(store, b"x")
    grant(store, digest)
    age(store, digest, LENGTH - 60)
    assert swept(store) == [digest]
    age(store, digest, LENGTH + 60)
    assert swept(store) == []
    assert everything(Path(store.root, "leases")) == []


def test_a_lease_can_be_prolonged(store: Store) -> None:
    digest = put_blob(store, b"x")
    grant(store, digest)
    age(store, digest, LENGTH + 60)
    grant(store, digest)
    assert swept(store) == [digest]


def test_a_store_of_an_older_program(store: Store) -> None:
    """It has no such directory: that is no lease, until one is granted."""
    Path(store.root, "leases").rmdir()
    digest = put_blob(store, b"x")
    assert swept(store) == []
    digest = put_blob(store, b"x")
    grant(store, digest)
    assert swept(store) == [digest]


def test_what_is_no_lease_is_left_alone(store: Store) -> None:
    Path(store.root, "leases", "note").write_text("mine")
    assert swept(store) == []
    assert everything(Path(store.root, "leases")) == [str(Path("note"))]


def test_granting_killed_at_any_step(store: Store, store_root: Path) -> None:
    """There is a lease or none, and the next one goes through."""
    digest = put_blob(store, b"x")
    program = 'store = Store(ROOT)\nwith store.shared():\n    store.leases.grant(Digest.of(b"x"))'
    for _ in killed_at_every_step(program, store_root):
        assert store.leases.current() <= {digest}
    assert swept(store) == [digest]

"""Sweeping: what is marked stays, the rest goes, and a sweep that is cut short did no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from store import Digest, Store
from store.gc import Marks, Swept, sweep
from store.trees import clean
from tests.store.rig import another_process, everything, killed_at_every_step, put_blob, put_layer


def marks(*, blobs: set[Digest] | None = None, layers: set[Digest] | None = None) -> Marks:
    return Marks(blobs or set(), layers or set(), variants=set(), stacks=set())


def test_keeps_what_is_marked(store: Store) -> None:
    """And says what it removed."""
    kept, dead = put_blob(store, b"kept"), put_blob(store, b"dead blob")
    kept_layer, dead_layer = put_layer(store, "kept"), put_layer(store, "dead")
    swept = sweep(store, lambda: marks(blobs={kept}, layers={kept_layer}))
    assert swept == Swept(blobs=1, layers=1, blob_bytes=len(b"dead blob"))
    assert list(store.blobs) == [kept]
    assert list(store.layers) == [kept_layer]
    assert not [path for path in everything(Path(store.root)) if dead.hex in path or dead_layer.hex in path]


def test_a_mark_of_what_is_not_there(store: Store) -> None:
    """An image whose blobs were not kept: nothing to do."""
    assert sweep(store, lambda: marks(blobs={Digest.of(b"x")}, layers={Digest.of(b"y")})) == Swept(0, 0, 0)


def test_leaves_what_is_arriving(store: Store) -> None:
    """A pull in another process: its partial blob and its layer in the making are no garbage."""
    program = """
import os
ingest = store.blobs.ingest(Digest.of(b"arriving"), 8)
os.write(ingest.fileno(), b"arri")
lock = store.layers.lock(Digest.of(b"tree"))
assert lock.try_acquire()
staging = store.layers.stage(Digest.of(b"tree"))
"""
    with another_process(program, Path(store.root)):
        before = everything(Path(store.root, "staging")) + everything(Path(store.root, "ingest"))
        sweep(store, marks)
        assert everything(Path(store.root, "staging")) + everything(Path(store.root, "ingest")) == before


@pytest.mark.parametrize("what", ["blobs", "layers"])
def test_killed_at_any_step(store: Store, store_root: Path, what: str) -> None:
    """What is marked is whole; a later sweep removes the rest."""
    program = """
store = Store(ROOT, durable=False)
sweep(store, lambda: Marks({Digest.of(b"kept")}, {Digest.of(b"kept")}, set(), set()))
"""

    def fill() -> None:
        if what == "blobs":
            put_blob(store, b"dead")
        elif not any(diff_id != kept_layer for diff_id in store.layers):
            put_layer(store, "dead")

    kept, kept_layer = put_blob(store, b"kept"), put_layer(store, "kept")
    fill()
    for _ in killed_at_every_step(program, store_root):
        assert store.blobs.read(kept) == b"kept"
        assert store.layers.info(kept_layer).diff_id == kept_layer
        fill()
    assert (list(store.blobs), list(store.layers)) == ([kept], [kept_layer])
    clean(store.root)
    assert everything(store_root / "staging") == []


def test_others_go_on_while_files_are_removed(store: Store) -> None:
    """A layer may have a million of them: when the first is removed, the store is free again."""
    put_layer(store, "dead")
    program = """
from store.gc import Marks, sweep
from store.locks import Lock
free = []
def hook(event, arguments):
    if event == "os.remove" and not free:
        lock = Lock(f"{store.root}/use.lock")
        free.append(lock.try_acquire())
        lock.release()
sys.addaudithook(hook)
sweep(store, lambda: Marks(set(), set(), set(), set()))
assert free == [True], free
"""
    with another_process(program, Path(store.root)):
        assert list(store.layers) == []


def test_what_fails_holds_nothing_up(store: Store) -> None:
    """The disk refuses to take the second layer away: the first is removed, and no lock stays."""
    put_layer(store, "one")
    put_layer(store, "two")
    program = """
import os
from store.gc import Marks, sweep
renames = []
def hook(event, arguments):
    if event == "os.rename":
        renames.append(arguments)
        if len(renames) == 2:
            raise OSError(5, "Input/output error")
sys.addaudithook(hook)
try:
    sweep(store, lambda: Marks(set(), set(), set(), set()))
except OSError:
    assert os.listdir(f"{store.root}/staging") == []
else:
    raise AssertionError("nothing failed")
"""
    with another_process(program, Path(store.root)):
        assert len(list(store.layers)) == 1
        assert sweep(store, marks) == Swept(blobs=0, layers=1, blob_bytes=0)

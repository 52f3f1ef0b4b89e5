"""Stacks of generated layers, mounted, against an oracle that applies them in order by the spec's simplest reading.

`make fuzz` runs thousands of cases; `make test` a fixed hundred.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, note, settings
from hypothesis import strategies as st

from pullpipe import linux, local, stack
from pullpipe.errors import LayerError
from pullpipe.pipe.flatten import flatten
from pullpipe.pipe.pull import Options, pull
from pullpipe.platforms import Platform
from pullpipe.progress import Progress
from pullpipe.transports.files import Directory
from pullpipe.transports.layout import LayoutSource
from store import Store
from tests.look.seen import views
from tests.pipe.oracle import Unresolved, flattened
from tests.support.images import (
    Device,
    Dir,
    Entry,
    Fifo,
    File,
    Hardlink,
    Image,
    Layer,
    Opaque,
    Symlink,
    Whiteout,
    write_layout,
)
from tests.support.tree import Snapshot, difference, snapshot

CASES = int(os.environ.get("PULLPIPE_FUZZ_CASES", "100"))

NAMES = st.sampled_from(["a", "b", "c", "dd"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TARGETS = st.one_of(
    PATHS, PATHS.map("/{}".format), PATHS.map("../{}".format), st.sampled_from(["..", ".", "/", "nowhere", "../../.."])
)
OWNERS = st.sampled_from([0, 0, 1, 1000, 70_000])
TIMES = st.sampled_from([0, 1, 1_700_000_000_123_456_789, -86_400 * 10**9])
XATTRS = st.sampled_from([{}, {}, {"user.one": b"1"}, {"user.binary": b"\0\xff="}])
COMMON = {"uid": OWNERS, "gid": OWNERS, "mtime_ns": TIMES}
MODES = st.sampled_from([0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0o000])

ENTRIES = st.one_of(
    st.builds(File, PATHS, st.sampled_from([b"", b"one", b"two" * 400]), MODES, xattrs=XATTRS, **COMMON),
    st.builds(Dir, PATHS, MODES, xattrs=XATTRS, **COMMON),
    st.builds(Dir, PATHS, MODES, xattrs=XATTRS, **COMMON),
    st.builds(Symlink, PATHS, TARGETS, **COMMON),
    st.builds(Hardlink, PATHS, PATHS),
    st.builds(Whiteout, PATHS),
    st.builds(Whiteout, PATHS),
    st.builds(Opaque, st.one_of(PATHS, st.just(""))),
    st.builds(Device, PATHS, st.integers(1, 200), st.integers(0, 9), st.sampled_from(["char", "block"]), **COMMON),
    st.builds(Fifo, PATHS, MODES, **COMMON),
)
LAYERS = st.lists(st.lists(ENTRIES, min_size=0, max_size=7), min_size=1, max_size=4)


@pytest.mark.needs_root
@settings(
    max_examples=CASES,
    derandomize=CASES == 100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
@given(LAYERS)
@example([[Dir("a", mode=0o700), File("a/b")], [Opaque("a"), File("a/c")]])
@example([[Dir("usr/lib"), Symlink("lib", "usr/lib")], [File("lib/x"), Whiteout("lib/y")]])
@example([[File("a", b"x", uid=5)], [Hardlink("b", "a")], [Hardlink("c/d", "b")]])
@example([[File("a")], [Whiteout("a"), Hardlink("b", "a"), Opaque("")]])
@example([[File("d/a")], [Whiteout("d/a"), Hardlink("b", "d/a"), Opaque("d")]])
@example([[Hardlink("a", "a"), Dir("a/a")]])
@example([[Hardlink("b/a", "a"), File("b")]])
@example([[Dir("a"), Hardlink("a/a", "a/a"), File("a/a/a"), Symlink("a", "a")]])
@example([[File("a/b/a")], [Hardlink("a", "a/b/a")]])
@example([[Hardlink("a", "a/a"), Dir("a")]])
@example([[Symlink("a", "a")], [Hardlink("a/a", "b"), File("a")]])
@example([[Symlink("b/a", "b")], [Hardlink("b/a/a", "b/a")]])
@example([[Symlink("b/a", "b/b")], [Whiteout("b/a/a"), Symlink("b/a", "b/b")]])
@example([[Dir("b"), Hardlink("b", "b"), Dir("b")]])
@example([[File("a"), Dir("b"), Hardlink("b", "a/a"), Whiteout("a"), Dir("b")]])
@example([[File("a"), Hardlink("b/a", "dd"), Dir("a"), Hardlink("b", "a"), File("a")]])
@example([[Dir("a/b", mtime_ns=5), Dir("c/b", mtime_ns=7), Symlink("a", "c")]])
def test_stack(layers: Sequence[Sequence[Entry]]) -> None:
    """The mounted stack, the layers flattened into one directory, and what is seen in the store without a mount, of all
    layers and of the lower ones, are what the oracle says, in every attribute.
    """
    try:
        expected = flattened(layers)
    except Unresolved:
        expected = None
        unresolved = True
    else:
        unresolved = False
        assume(expected is not None)
    with tempfile.TemporaryDirectory(prefix="pullpipe-differential-") as directory, _pulled(Path(directory)) as pulled:
        if unresolved:
            with pytest.raises(LayerError):
                pulled(layers)
            return
        assert expected is not None
        mounted, flat, seen = pulled(layers)
    lines = difference(expected, mounted)
    for count, view in enumerate(seen, 1):
        below = flattened(layers[:count])
        lines += [f"{count} layers looked at: {line}" for line in difference(below, view)] if below else []
    # In one directory a file keeps all its names, also where writing in a stack would part them.
    lines += ["flat: " + line for line in difference(_without_links(expected), _without_links(flat))]
    for line in lines:
        note(line)
    assert not lines


def _without_links(nodes: Snapshot) -> Snapshot:
    return {path: replace(node, links=frozenset()) for path, node in nodes.items()}


class _Pulled:
    """Pulls layers into a store below `directory`, and shows them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(self, layers: Sequence[Sequence[Entry]]) -> tuple[Snapshot, Snapshot, list[Snapshot]]:
        layout, target, flat = (self._directory / name for name in ("layout", "mounted", "flat"))
        image = Image([Layer(entries, compression=None) for entries in layers])
        digest = write_layout(layout, {"t": image})["t"]["digest"]
        source = LayoutSource(Directory(str(layout)))
        store = Store(str(self._directory / "store"), durable=False)
        options = Options(Platform.of_this_machine())

        async def work() -> None:
            await pull(source, digest, "localhost/t:1", store, options, Progress())
            await flatten(store, local.load(store, next(iter(store.images))), str(flat), Progress())

        asyncio.run(work())
        loaded = local.load(store, next(iter(store.images)))
        container, lock = store.containers.create(
            image="localhost/t:1", manifest=loaded.record.manifest, stack=loaded.chain_id
        )
        lock.release()
        target.mkdir()
        stack.mount_read_only(stack.build(store, container), str(target))
        try:
            return snapshot(target), snapshot(flat), views(store, loaded)
        finally:
            linux.umount(str(target))


@contextmanager
def _pulled(directory: Path) -> Iterator[_Pulled]:
    yield _Pulled(directory)
    shutil.rmtree(directory / "store", ignore_errors=True)

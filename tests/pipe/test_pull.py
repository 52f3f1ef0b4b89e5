"""A pull's failures: dead workers, cancellation, signals, a bad layer among good ones. Nothing may be left behind."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from pullpipe import local, stack
from pullpipe.errors import LayerError, PullpipeError, TransferError, VerificationError, WorkerDied
from pullpipe.oci import Descriptor
from pullpipe.pipe.pull import Options, Pulled, pull
from pullpipe.platforms import Platform
from pullpipe.progress import Progress
from pullpipe.transports import Document
from pullpipe.transports.files import Directory
from pullpipe.transports.layout import LayoutSource
from store import Digest, Store
from store.gc import Swept
from tests.conftest import PROJECT, Cli
from tests.support.hostile import Fault, FaultyRegistry
from tests.support.images import Dir, Entry, File, Image, Layer, Symlink, write_layout
from tests.support.processes import PATIENCE, Watched, children, descendants, jobs_of, until, watched_descendants
from tests.torture.calls import Call, supervised
from tests.torture.rig import command

pytestmark = pytest.mark.needs_root

REFERENCE = "example.org/test:latest"
NAMES = ("one", "two", "three")
SIZE = 3 << 20  # of each layer: a pull collects a megabyte before it writes
LAYERS = {name: Layer([File(f"{name}-{part}", os.urandom(SIZE // 3)) for part in range(3)], None) for name in NAMES}
DIGESTS = {name: f"sha256:{hashlib.sha256(layer.blob).hexdigest()}" for name, layer in LAYERS.items()}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image of three layers, which nothing compresses."""
    directory = tmp_path_factory.mktemp("pull") / "layout"
    write_layout(directory, {"t": Image(list(LAYERS.values()))})
    return directory


@pytest.fixture
def store(store_root: Path) -> Store:
    return Store(str(store_root), durable=False)


Act = Callable[[Descriptor], Awaitable[None]]


class Slow(LayoutSource):
    """A layout whose blobs arrive in two halves; in between, what the test wants to happen happens."""

    def __init__(self, layout: Path, between: Mapping[str, Act] | None = None) -> None:
        super().__init__(Directory(str(layout)))
        self.manifest = self.images()[0][1]
        self.between = dict(between or {})
        self.fetched: list[str] = []

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
        async with super().blob(descriptor, offset) as pieces:
            data = b"".join([piece async for piece in pieces])
        self.fetched.append(str(descriptor.digest))
        yield self._halves(data, descriptor)

    async def _halves(self, data: bytes, descriptor: Descriptor) -> AsyncIterator[bytes]:
        act = self.between.get(str(descriptor.digest))
        if act is None:
            yield data
            return
        yield data[: len(data) // 2]
        await act(descriptor)
        yield data[len(data) // 2 :]


class Heard(Progress):
    """Knows which layers are proven, and how far the others are."""

    def __init__(self) -> None:
        self.arrived: dict[str, asyncio.Event] = {digest: asyncio.Event() for digest in DIGESTS.values()}
        self.proven: dict[str, asyncio.Event] = {digest: asyncio.Event() for digest in DIGESTS.values()}

    def fetched(self, layer: Descriptor, count: int) -> None:
        if count:
            self.arrived[str(layer.digest)].set()

    def finished(self, layer: Descriptor) -> None:
        self.proven[str(layer.digest)].set()


async def start(source: Slow, store: Store, progress: Progress | None = None, jobs: int = 6) -> Pulled:
    return await pull(
        source,
        str(source.manifest),
        REFERENCE,
        store,
        Options(Platform.of_this_machine(), jobs),
        progress or Progress(),
    )


async def forever(_: Descriptor) -> None:
    await asyncio.Event().wait()


def workers() -> list[int]:
    """The worker processes that this one has started."""
    return [pid for pid in children(os.getpid()) if "pullpipe.pipe.worker" in command_line(pid)]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextmanager
def nothing_left_behind(store: Store) -> Iterator[None]:
    """No worker or job, nothing half made under staging/, no lock held, no descriptor lost."""
    before = open_files()
    yield
    assert workers() == []
    assert os.listdir(os.path.join(store.root, "staging")) == []
    assert held_locks(store.root) == []
    assert open_files() == before


def open_files() -> list[str]:
    """What this process has open, but for what Python's event loops share."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(name for name in found if name.startswith("/") and not name.startswith("/proc"))


def held_locks(root: str) -> list[str]:
    """Files below `root` that somebody has locked."""
    held = []
    for directory, _, names in os.walk(root):
        if "/layers/" in directory:
            continue
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held.append(name)
    return held


def published(store: Store) -> set[str]:
    """Names of the layers that are visible."""
    ids = {layer.diff_id: name for name, layer in LAYERS.items()}
    return {ids[str(diff_id)] for diff_id in store.layers}


def check_whole(store: Store) -> None:
    """The image is recorded, and all its layers are there with all that is in them."""
    assert store.images.get(REFERENCE) is not None
    assert published(store) == set(NAMES)
    for name, layer in LAYERS.items():
        files = Path(store.layers.files(Digest.parse(layer.diff_id)))
        assert sorted(os.listdir(files)) == [f"{name}-{part}" for part in range(3)]


def test_a_pull_and_the_same_again(layout: Path, store: Store) -> None:
    """Everything is fetched once; the second pull opens no blob."""
    source = Slow(layout)
    with nothing_left_behind(store):
        assert asyncio.run(start(source, store)).fetched
        assert set(DIGESTS.values()) <= set(source.fetched)
        first = list(source.fetched)
        assert not asyncio.run(start(source, store)).fetched
    assert source.fetched == first
    check_whole(store)


@pytest.mark.parametrize("jobs", [1, 2])
def test_fewer_jobs_than_layers(jobs: int, layout: Path, store: Store) -> None:
    """Layers wait for a slot, and all get one."""
    with nothing_left_behind(store):
        asyncio.run(start(Slow(layout), store, jobs=jobs))
    check_whole(store)


def test_small_layers_do_not_wait_for_large_ones(tmp_path: Path, store: Store) -> None:
    """Five large ones get no further before the small one is proven, and would take all slots."""
    large = [Layer([File(f"large-{number}", bytes(17 << 20))], None) for number in range(5)]
    small = Layer([File("small")], None)
    write_layout(tmp_path, {"t": Image([*large, small])})
    proven = asyncio.Event()

    class Hears(Progress):
        def finished(self, layer: Descriptor) -> None:
            if layer.size < 1 << 20:
                proven.set()

    async def wait(_: Descriptor) -> None:
        await proven.wait()

    between = {f"sha256:{hashlib.sha256(layer.blob).hexdigest()}": wait for layer in large}
    asyncio.run(asyncio.wait_for(start(Slow(tmp_path, between), store, Hears(), jobs=4), PATIENCE))


@pytest.mark.parametrize("whom", ["worker", "job"])
def test_a_worker_killed_in_the_middle_of_a_layer(whom: str, layout: Path, store: Store) -> None:
    """By the kernel's memory killer, say: a clear error, and the next pull works."""

    async def kill(_: Descriptor) -> None:
        (worker,) = workers()
        await asyncio.to_thread(until, lambda: bool(jobs_of(worker)), "a job of the worker")
        for pid in jobs_of(worker) if whom == "job" else [worker]:
            os.kill(pid, signal.SIGKILL)
        await asyncio.Event().wait()  # the rest of the blob never comes, and nobody waits for it

    with nothing_left_behind(store), pytest.raises(WorkerDied, match="try again"):
        asyncio.run(asyncio.wait_for(start(Slow(layout, {DIGESTS["one"]: kill}), store), PATIENCE))
    assert store.images.get(REFERENCE) is None
    with nothing_left_behind(store):
        asyncio.run(start(Slow(layout), store))
    check_whole(store)


def test_a_worker_killed_while_it_starts_a_job(layout: Path, store: Store) -> None:
    """The job, or the first process before it, is not tied to the worker yet at that moment: it has to notice."""

    def kill_at_first_job() -> Watched:
        worker = next_worker()
        while not (jobs := jobs_of(worker)):
            pass
        watched = Watched(jobs[0])
        os.kill(worker, signal.SIGKILL)
        return watched

    def next_worker() -> int:
        until(lambda: bool(workers()), "a worker")
        return workers()[0]

    async def once() -> None:
        killer = asyncio.ensure_future(asyncio.to_thread(kill_at_first_job))
        pulling = asyncio.ensure_future(start(Slow(layout, dict.fromkeys(DIGESTS.values(), forever)), store))
        job = await killer
        try:
            assert await asyncio.to_thread(job.ended), "a job outlives its worker"
        finally:
            if not job.ended(0):
                os.kill(job.pid, signal.SIGKILL)
            job.close()
            with pytest.raises(WorkerDied):
                await pulling

    with nothing_left_behind(store):
        for _ in range(5):
            asyncio.run(once())


def test_a_worker_that_is_dead_before_the_first_layer(layout: Path, store: Store) -> None:
    """Its socket is closed when the job is sent: the same clear error."""

    class Killer(Slow):
        async def document(self, wanted: str) -> Document:
            until(lambda: bool(workers()), "the worker to have a command line")
            until(lambda: bool(workers()), "the worker")
            for pid in workers():
                watched = Watched(pid)
                os.kill(pid, signal.SIGKILL)
                assert watched.ended()
                watched.close()
            return await super().document(wanted)

    with nothing_left_behind(store), pytest.raises(WorkerDied):
        asyncio.run(asyncio.wait_for(start(Killer(layout), store), PATIENCE))
    asyncio.run(start(Slow(layout), store))
    check_whole(store)


@pytest.mark.parametrize("stuck", [("one",), ("one", "two"), NAMES])
def test_cancelling_leaves_nothing(stuck: tuple[str, ...], layout: Path, store: Store) -> None:
    """With one or all of the layers on their way; the next pull continues what had arrived."""

    async def cancelled() -> None:
        progress = Heard()
        task = asyncio.ensure_future(start(Slow(layout, {DIGESTS[name]: forever for name in stuck}), store, progress))
        for name in NAMES:
            await (progress.arrived if name in stuck else progress.proven)[DIGESTS[name]].wait()
        (worker,) = workers()
        await asyncio.to_thread(until, lambda: len(jobs_of(worker)) == len(stuck), "the jobs that are stuck")
        watched = [Watched(pid) for pid in (worker, *descendants(worker))]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert all(process.ended(0) for process in watched), "processes outlive the pull"
        for process in watched:
            process.close()

    with nothing_left_behind(store):
        asyncio.run(asyncio.wait_for(cancelled(), PATIENCE))
    assert store.images.get(REFERENCE) is None
    assert published(store) == set(NAMES) - set(stuck)
    source = Slow(layout)
    with nothing_left_behind(store):
        asyncio.run(start(source, store))
    assert {DIGESTS[name] for name in set(NAMES) - set(stuck)}.isdisjoint(source.fetched)
    check_whole(store)


def test_cancelling_while_waiting_for_another_pull(layout: Path, store: Store) -> None:
    """Two pulls of one image: the second waits for the first one's layers, and can be cancelled; the first goes on."""

    async def both() -> None:
        go_on = asyncio.Event()

        async def wait(_: Descriptor) -> None:
            await go_on.wait()

        progress, waiting = Heard(), asyncio.Event()
        first = asyncio.ensure_future(start(Slow(layout, {DIGESTS[name]: wait for name in NAMES}), store, progress))
        for name in NAMES:
            await progress.arrived[DIGESTS[name]].wait()

        class Waiting(Progress):
            def waiting(self, layer: Descriptor) -> None:
                waiting.set()

        second = asyncio.ensure_future(start(Slow(layout), store, Waiting()))
        await waiting.wait()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        go_on.set()
        assert (await first).fetched

    with nothing_left_behind(store):
        asyncio.run(asyncio.wait_for(both(), PATIENCE))
    check_whole(store)


def test_whichever_layer_becomes_free_is_made(layout: Path, store: Store) -> None:
    """Others hold all of them. The last is given back, and is made while the first is still held."""
    locks = {name: store.layers.lock(Digest.parse(LAYERS[name].diff_id)) for name in NAMES}

    async def waits() -> None:
        for lock in locks.values():
            assert lock.try_acquire()
        waiting = asyncio.Event()

        class Waiting(Heard):
            def waiting(self, layer: Descriptor) -> None:
                waiting.set()

        progress = Waiting()
        pulling = asyncio.ensure_future(start(Slow(layout), store, progress))
        await waiting.wait()
        locks["three"].release(remove=True)
        await progress.proven[DIGESTS["three"]].wait()
        assert not progress.arrived[DIGESTS["one"]].is_set()
        locks["one"].release(remove=True)
        locks["two"].release(remove=True)
        assert (await pulling).fetched

    with nothing_left_behind(store):
        asyncio.run(asyncio.wait_for(waits(), PATIENCE))
    check_whole(store)


def test_a_lock_that_cannot_be_had_keeps_none(layout: Path, store: Store) -> None:
    """Somebody puts something else where the last one's should be."""
    in_the_way = Path(store.layers.lock(Digest.parse(LAYERS["three"].diff_id)).path)

    class Hindered(Slow):
        async def resolve(self, wanted: str) -> Digest:
            in_the_way.mkdir()
            return await super().resolve(wanted)

    with pytest.raises(IsADirectoryError):
        asyncio.run(start(Hindered(layout), store))
    in_the_way.rmdir()
    with nothing_left_behind(store):
        asyncio.run(asyncio.wait_for(start(Slow(layout), store), PATIENCE))
    check_whole(store)


def test_two_pulls_make_each_layer_once(layout: Path, store: Store) -> None:
    """At the same time, in one process: every blob is fetched by one of them, and both succeed."""

    async def both() -> list[str]:
        sources = Slow(layout), Slow(layout)
        await asyncio.gather(*(start(source, store) for source in sources))
        return [digest for source in sources for digest in source.fetched if digest in DIGESTS.values()]

    with nothing_left_behind(store):
        assert sorted(asyncio.run(both())) == sorted(DIGESTS.values())
    check_whole(store)


def test_layers_stay_while_their_pull_waits_for_others(tmp_path: Path, store: Store) -> None:
    """Another pull makes the layer that both need. No record needs what this one has made, and no sweep removes it."""
    base = LAYERS["one"]
    for name, layers in (("first", [base]), ("second", [base, LAYERS["two"]])):
        write_layout(tmp_path / name, {"t": Image(layers)})

    async def both() -> list[str]:
        go_on, waiting = asyncio.Event(), asyncio.Event()

        async def wait(_: Descriptor) -> None:
            await go_on.wait()

        class Waiting(Progress):
            def waiting(self, layer: Descriptor) -> None:
                waiting.set()

        options = Options(Platform.of_this_machine())
        slow, second = Slow(tmp_path / "first", {DIGESTS["one"]: wait}), Slow(tmp_path / "second")
        progress = Heard()
        making = asyncio.ensure_future(pull(slow, str(slow.manifest), "first:1", store, options, progress))
        await progress.arrived[DIGESTS["one"]].wait()
        pulling = pull(second, str(second.manifest), "second:1", store, options, Waiting())
        other = asyncio.ensure_future(pulling)
        await waiting.wait()
        assert local.collect(store) == Swept(0, 0, 0)
        making.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await making
        await other
        return second.fetched

    with nothing_left_behind(store):
        fetched = asyncio.run(asyncio.wait_for(both(), PATIENCE))
    assert len(fetched) == len(set(fetched))
    assert local.collect(store) == Swept(0, 0, 0)


class Stages(Progress):
    """Has something happen when a stage begins for the first time."""

    def __init__(self, name: str, act: Callable[[], object]) -> None:
        self._acts = {name: act}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._acts.pop(name, lambda: None)()
        yield


@pytest.mark.parametrize("stage", ["settle", "publish"])
@pytest.mark.parametrize("how", ["rmi", "variants are damaged", "all is damaged"])
def test_what_a_pull_relies_on_is_removed(stage: str, how: str, tmp_path: Path, store: Store) -> None:
    """Layers that the store had, and a variant of one, are needed by no image any more: they stay for the pull. What
    is taken away as damaged is made anew."""
    link: list[Entry] = [Dir("usr/lib"), Symlink("lib", "usr/lib")]
    through: list[Entry] = [File("lib/x")]
    images: dict[str, list[list[Entry]]] = {"before": [link, through], "wanted": [link, through, [File("y")]]}

    def provide(name: str, progress: Progress) -> list[str]:
        write_layout(tmp_path / name, {"t": Image([Layer(entries, None) for entries in images[name]])})
        source, options = Slow(tmp_path / name), Options(Platform.of_this_machine())
        asyncio.run(pull(source, str(source.manifest), f"example.org/{name}:1", store, options, progress))
        return source.fetched

    def remove() -> None:
        store.images.remove(str(removed))
        local.collect(store)
        if how != "rmi":
            with store.exclusive():
                trees = (store.variants, store.layers) if how == "all is damaged" else (store.variants,)
                doomed = [kind.take_away(digest) for kind in trees for digest in kind]
            for tree in doomed:
                tree.remove()

    provide("before", Progress())
    removed = "example.org/before:1"
    with nothing_left_behind(store):
        fetched = provide("wanted", Stages(stage, remove))
    assert len(fetched) == 2  # a config and the third layer: the other blobs are there
    assert store.images.get(removed) is None
    image = local.find(store, "example.org/wanted:1")
    assert all(map(os.path.isdir, stack.lower_of(store, image.chain_id)))
    assert len(list(store.variants)) == 1


def test_another_name_of_an_image_takes_no_worker(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layout may have hundreds of names for one image, and each worker is the start of an interpreter."""
    write_layout(tmp_path / "one", {"t": Image([Layer([File("one")])])})
    write_layout(tmp_path / "two", {"t": Image([Layer([File("two")])])})

    def provide(layout: str, name: str) -> None:
        source, options = Slow(tmp_path / layout), Options(Platform.of_this_machine())
        asyncio.run(pull(source, str(source.manifest), f"example.org/{name}:1", store, options, Progress()))

    provide("one", "a")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    provide("one", "b")
    assert [record.reference for record in store.images] == ["example.org/a:1", "example.org/b:1"]
    with pytest.raises(FileNotFoundError):
        provide("two", "c")


class TestVariantWithoutItsBlob:
    """The store has the layer and has not kept its blob, which an image needs that has a symlink below it."""

    THROUGH = Layer([File("lib/x")], None)
    DIGEST = f"sha256:{hashlib.sha256(THROUGH.blob).hexdigest()}"

    class Wrong(Slow):
        """Its blob has a wrong byte, so many times. It is somewhere else, as a registry is."""

        times = 0

        def has_here(self, blob: Digest) -> bool:
            return False

        async def _halves(self, data: bytes, descriptor: Descriptor) -> AsyncIterator[bytes]:
            if str(descriptor.digest) == TestVariantWithoutItsBlob.DIGEST and self.times:
                self.times -= 1
                data = data[:1000] + b"x" + data[1001:]
            async for piece in super()._halves(data, descriptor):
                yield piece

    @pytest.fixture
    def source(self, tmp_path: Path, store: Store) -> Wrong:
        """Of the second such image; the first is there."""
        for name in ("first", "second", "third"):
            link = Layer([Dir("usr/lib"), Symlink("lib", "usr/lib"), File(name)], None)
            write_layout(tmp_path / name, {"t": Image([link, self.THROUGH])})
        asyncio.run(self.pull(Slow(tmp_path / "first"), store))
        return self.Wrong(tmp_path / "second")

    async def pull(self, source: Slow, store: Store, *, keep: bool = False) -> None:
        options = Options(Platform.of_this_machine(), keep_blobs=keep)
        await pull(source, str(source.manifest), f"{source.manifest.hex}:1", store, options, Progress())

    def check(self, store: Store, images: int = 2) -> None:
        """They have their variants, and nothing else has stayed."""
        assert len(list(store.images)) == len(list(store.variants)) == images
        assert os.listdir(os.path.join(store.root, "ingest")) == []

    @pytest.mark.parametrize("keep", [False, True])
    def test_is_fetched_again(self, source: Wrong, store: Store, keep: bool) -> None:
        """At once, if it came wrong; and it is kept by who keeps blobs."""
        source.times = 1
        with nothing_left_behind(store):
            asyncio.run(self.pull(source, store, keep=keep))
        assert source.fetched.count(self.DIGEST) == 2
        assert (Digest.parse(self.DIGEST) in store.blobs) == keep
        self.check(store)

    def test_wrong_bytes_are_not_kept(self, source: Wrong, store: Store) -> None:
        """When the registry has the right ones again, the next pull goes well."""
        source.times = 2
        with nothing_left_behind(store), pytest.raises(VerificationError, match="fetched again"):
            asyncio.run(self.pull(source, store))
        asyncio.run(self.pull(source, store))
        self.check(store)

    def test_two_pulls_at_once(self, source: Wrong, tmp_path: Path, store: Store) -> None:
        """Neither waits for the other, nor fails because of it: each fetches the blob."""

        async def both() -> None:
            meeting = asyncio.Barrier(2)

            async def meet(_: Descriptor) -> None:
                await meeting.wait()

            sources = source, Slow(tmp_path / "third")
            for one in sources:
                one.between[self.DIGEST] = meet
            await asyncio.gather(*(self.pull(one, store) for one in sources))

        with nothing_left_behind(store):
            asyncio.run(asyncio.wait_for(both(), PATIENCE))
        self.check(store, images=3)


class Bad(Slow):
    """A layout in which one layer's blob is not what its digest says, and comes last."""

    def __init__(self, layout: Path, progress: Heard, kind: str) -> None:
        async def wait(_: Descriptor) -> None:
            for name in ("one", "two"):
                await progress.proven[DIGESTS[name]].wait()

        super().__init__(layout, {DIGESTS["three"]: wait})
        self._kind = kind

    async def _halves(self, data: bytes, descriptor: Descriptor) -> AsyncIterator[bytes]:
        if str(descriptor.digest) == DIGESTS["three"]:
            data = {
                "changed": data[:-2000] + b"x" + data[-1999:],
                "no tar": b"x" * len(data),
                "short": data[:-1000],
                "long": data + b"x",
                "other": LAYERS["one"].blob[: len(data)],
            }[self._kind]
        async for piece in super()._halves(data, descriptor):
            yield piece


@pytest.mark.parametrize("kind", ["changed", "no tar", "short", "long", "other"])
def test_one_bad_layer_among_good_ones(kind: str, layout: Path, store: Store) -> None:
    """The good ones are published, the bad bytes are not kept, the image is not recorded; then the next pull works."""
    progress = Heard()
    error = TransferError if kind == "short" else VerificationError
    with nothing_left_behind(store), pytest.raises(error) as caught:
        asyncio.run(asyncio.wait_for(start(Bad(layout, progress, kind), store, progress), PATIENCE))
    assert DIGESTS["three"] in str(caught.value)
    assert published(store) == {"one", "two"}
    assert store.images.get(REFERENCE) is None
    if kind != "short":  # what came of a truncated blob is right so far, and the next pull continues it
        assert os.listdir(os.path.join(store.root, "ingest")) == []
    source = Slow(layout)
    with nothing_left_behind(store):
        asyncio.run(start(source, store))
    assert [digest for digest in source.fetched if digest in DIGESTS.values()] == [DIGESTS["three"]]
    check_whole(store)


def test_a_wrong_diff_id(tmp_path: Path, store: Store) -> None:
    """The blob is what the manifest says, and unpacks to something else than the config says."""
    layout = tmp_path / "layout"
    write_layout(layout, {"t": Image([LAYERS["one"]])})
    write_config(layout, lambda config: config["rootfs"].update(diff_ids=[LAYERS["two"].diff_id]))
    with nothing_left_behind(store), pytest.raises(VerificationError, match="diffID"):
        asyncio.run(start(Slow(layout), store))
    assert published(store) == set()
    assert os.listdir(os.path.join(store.root, "ingest")) == []


@pytest.mark.parametrize("true", [True, False])
def test_one_blob_by_two_diff_ids(true: bool, tmp_path: Path, store: Store) -> None:
    """Of two algorithms; or one of them is a lie. The pull does not wait for itself."""
    layer = LAYERS["one"]
    other = f"sha512:{hashlib.sha512(layer.tar).hexdigest()}" if true else LAYERS["two"].diff_id
    write_layout(tmp_path / "layout", {"t": Image([layer, layer])})
    write_config(tmp_path / "layout", lambda config: config["rootfs"].update(diff_ids=[layer.diff_id, other]))
    with nothing_left_behind(store), contextlib.nullcontext() if true else pytest.raises(VerificationError):
        asyncio.run(asyncio.wait_for(start(Slow(tmp_path / "layout"), store), PATIENCE))
    assert len(list(store.layers)) == 1 + true
    assert os.listdir(os.path.join(store.root, "ingest")) == []


@pytest.mark.parametrize("what", ["config", "layer"])
@pytest.mark.parametrize("bytes_more", [-1, 1])
def test_a_wrong_size(what: str, bytes_more: int, tmp_path: Path, store: Store) -> None:
    """Also where the store has the blob, from an image that has the right one; that stays as it is."""
    for name in ("right", "wrong"):
        write_layout(tmp_path / name, {"t": Image([LAYERS["one"]])})

    def lie(manifest: dict[str, Any]) -> None:
        (manifest["config"] if what == "config" else manifest["layers"][0])["size"] += bytes_more

    write_config(tmp_path / "wrong", lambda config: None, lie)
    with nothing_left_behind(store):
        with pytest.raises(PullpipeError):
            asyncio.run(start(Slow(tmp_path / "wrong"), store))
        asyncio.run(start(Slow(tmp_path / "right"), store))
        record = store.images.get(REFERENCE)
        with pytest.raises(VerificationError, match="owner has to push it anew"):
            asyncio.run(start(Slow(tmp_path / "wrong"), store))
    assert store.images.get(REFERENCE) == record
    assert Digest.parse(DIGESTS["one"]) in store.blobs


def test_a_wrong_size_of_a_blob_without_its_layer(tmp_path: Path, store: Store) -> None:
    """The blob is not taken for a damaged one."""
    for name in ("right", "wrong"):
        write_layout(tmp_path / name, {"t": Image([LAYERS["one"]])})
    write_config(tmp_path / "wrong", lambda config: None, lambda manifest: manifest["layers"][0].update(size=512))
    asyncio.run(start(Slow(tmp_path / "right"), store))
    shutil.rmtree(os.path.dirname(store.layers.files(Digest.parse(LAYERS["one"].diff_id))))
    with nothing_left_behind(store), pytest.raises(VerificationError, match="512"):
        asyncio.run(start(Slow(tmp_path / "wrong"), store))
    assert Digest.parse(DIGESTS["one"]) in store.blobs


def write_config(
    layout: Path, change: Callable[..., None], change_manifest: Callable[..., None] = lambda manifest: None
) -> None:
    """Changes the config, and the manifest, of a layout's only image, and the digests that lead to them."""

    def put(document: object) -> dict[str, Any]:
        data = json.dumps(document).encode()
        digest = hashlib.sha256(data).hexdigest()
        (layout / "blobs" / "sha256" / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def get(descriptor: dict[str, Any]) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(
            (layout / "blobs" / "sha256" / descriptor["digest"].partition(":")[2]).read_bytes()
        )
        return document

    index = json.loads((layout / "index.json").read_bytes())
    manifest = get(index["manifests"][0])
    config = get(manifest["config"])
    change(config)
    manifest["config"].update(put(config))
    change_manifest(manifest)
    index["manifests"][0].update(put(manifest))
    (layout / "index.json").write_text(json.dumps(index))


def test_a_layer_that_is_no_archive(tmp_path: Path, store: Store) -> None:
    """Both digests are right, and the bytes are a text: the archive's error, after all of it has come."""

    layer = Layer([], None)
    vars(layer)["tar"] = vars(layer)["blob"] = b"this is no archive" * 100_000
    layout = tmp_path / "layout"
    write_layout(layout, {"t": Image([layer, LAYERS["one"]])})
    with nothing_left_behind(store), pytest.raises(LayerError, match="at byte 0 "):
        asyncio.run(start(Slow(layout), store))
    assert store.images.get(REFERENCE) is None


# The command, with signals.


@contextmanager
def stuck_pull(root: Path, layout: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, FaultyRegistry]]:
    """`pullpipe pull` in a process of its own, from a registry that stalls in the middle of every blob."""
    with FaultyRegistry(layout, [Fault.STALLED_BLOB]) as registry:
        registry.only = DIGESTS["one"]
        reference = f"{registry.host}/test:t"
        command = [sys.executable, "-m", "pullpipe", "--root", str(root), "pull", "--plain-http", *options, reference]
        with subprocess.Popen(
            command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                ingest = root / "ingest" / DIGESTS["one"].replace(":", "-")
                until(lambda: ingest.exists() and ingest.stat().st_size > 0, "the first half of the blob")
                until(lambda: len(descendants(process.pid)) >= 2, "the worker and its job")
                yield process, reference, registry
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command(number: signal.Signals, layout: Path, store_root: Path, cli: Cli) -> None:
    """Ctrl-C and SIGTERM end it with 128+N, without a traceback; nothing is left, and the next pull works."""
    with stuck_pull(store_root, layout) as (process, reference, registry):
        watched = watched_descendants(process.pid)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + number
        assert out == ""
        assert "Traceback" not in err
        assert all(one.ended(0) for one in watched), "processes outlive the command"
        for one in watched:
            one.close()
        assert os.listdir(store_root / "staging") == []
        assert held_locks(str(store_root)) == []
        registry.faults.clear()
        done = cli("pull", "--plain-http", "--quiet", reference)
        assert done.returncode == 0, done.stderr
    assert len(list(Store(str(store_root)).layers)) == 3


def test_signals_while_it_cleans_up(layout: Path, store_root: Path, cli: Cli) -> None:
    """Who presses Ctrl-C again and again does not keep it from that."""
    cleaning: list[Call] = []

    def interrupt(call: Call, main: int) -> int:
        removing = call.thread == main and call.name in ("unlink", "unlinkat", "rmdir") and "/staging/" in call.path
        if call.name == "syncfs" or removing:
            os.kill(main, signal.SIGINT)
            cleaning.extend([call] * removing)
        return 0

    done = supervised(command(store_root, "load", "--quiet", "-t", "test", layout), [store_root], interrupt)
    assert (done.code, done.out, done.said) == (128 + signal.SIGINT, "", "")
    assert len(cleaning) > 1
    assert os.listdir(store_root / "staging") == []
    assert cli("load", "--quiet", "-t", "test", layout).returncode == 0


def test_killing_the_command(layout: Path, store_root: Path, cli: Cli) -> None:
    """SIGKILL: nobody can clean up, but no process lives on, and the next pull is not disturbed by what is left."""
    with stuck_pull(store_root, layout) as (process, reference, registry):
        watched = watched_descendants(process.pid)
        process.kill()
        process.communicate(timeout=PATIENCE)
        assert all(one.ended() for one in watched), "processes outlive the command"
        for one in watched:
            one.close()
        registry.faults.clear()
        done = cli("pull", "--plain-http", "--quiet", reference)
        assert done.returncode == 0, done.stderr
        assert any("Range" in request.headers for request in registry.arrived(DIGESTS["one"]))
    assert os.listdir(store_root / "staging") == []
    assert len(list(Store(str(store_root)).layers)) == 3


@pytest.mark.parametrize("options", [(), ("--discard-blobs",)])
def test_killing_the_command_with_finished_layers(
    options: tuple[str, ...], layout: Path, store_root: Path, cli: Cli
) -> None:
    """SIGKILL before they are published: they are not fetched again, whether their blobs are to be kept or not."""
    with stuck_pull(store_root, layout, "--progress", "plain", *options) as (process, reference, registry):
        assert process.stderr is not None
        for _ in range(2):
            until_line(process.stderr, "pulled and unpacked")
        process.kill()
        process.communicate(timeout=PATIENCE)
        registry.faults.clear()
        registry.requests.clear()
        done = cli("pull", "--plain-http", "--quiet", *options, reference)
        assert done.returncode == 0, done.stderr
        assert [len(registry.arrived(DIGESTS[name])) for name in NAMES] == [1, 0, 0]
    assert os.listdir(store_root / "ingest") == []


def until_line(lines: IO[str], text: str) -> None:
    assert any(text in line for line in lines), f"no {text}"


def test_what_a_pull_raises_is_pullpipes(layout: Path, store: Store) -> None:
    """A source that breaks in the middle: its own error, no exception group, not what its end did to others."""

    async def broken(_: Descriptor) -> None:
        raise TransferError("the line is cut")

    between: dict[str, Act] = {DIGESTS["one"]: forever, DIGESTS["two"]: broken, DIGESTS["three"]: forever}
    for _ in range(5):
        with nothing_left_behind(store), pytest.raises(PullpipeError, match="the line is cut"):
            asyncio.run(start(Slow(layout, between), store))

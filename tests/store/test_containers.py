"""Containers: made, found, running, removed."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from store import Container, Corrupt, Digest, InUse, NotInStore, Store
from tests.store.rig import another_process, at_once, everything, killed_at_every_step

MANIFEST, STACK = Digest.of(b"manifest"), Digest.of(b"stack")


def create(store: Store, name: str = "") -> Container:
    container, lock = store.containers.create(
        image="example.org/a:1", manifest=MANIFEST, stack=STACK, command=("echo", "ä", ""), name=name
    )
    lock.release()
    return container


def test_create(store: Store) -> None:
    """A record with all that was said, and the directories that a stack needs."""
    container = create(store, "web")
    [found] = Store(store.root).containers
    assert found == container
    assert (found.name, found.image, found.manifest, found.stack) == ("web", "example.org/a:1", MANIFEST, STACK)
    assert (found.command, found.exit_code, found.target) == (("echo", "ä", ""), None, "")
    assert len(found.id) == 64
    assert found.id.startswith(found.short_id)
    directory = Path(store.containers.path(found))
    assert {"upper", "work", "rootfs"} <= {path.name for path in directory.iterdir()}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_upper_is_open_to_the_containers_users(store: Store) -> None:
    """It becomes the root of their tree: without x for all, no user but root could do anything in it."""
    container = create(store)
    assert stat.S_IMODE(Path(store.containers.path(container), "upper").stat().st_mode) == 0o755


def test_a_name_is_given_where_none_is(store: Store) -> None:
    first, second = create(store), create(store)
    assert first.name
    assert first.name != second.name
    assert store.containers.find(second.name) == second


def test_a_name_is_taken_once(store: Store) -> None:
    """And free again when its container is removed."""
    first = create(store, "web")
    with pytest.raises(InUse, match="web"):
        create(store, "web")
    assert list(store.containers) == [first]
    store.containers.remove(first)
    assert create(store, "web").name == "web"


def test_a_name_is_taken_once_by_processes_too(store: Store, store_root: Path) -> None:
    """Of eight that want it at the same moment one gets it, and the others are told that it is taken."""
    program = """
for attempt in range(20):
    try:
        store.containers.create(image="i", manifest=Digest.of(b""), stack=Digest.of(b""), name=f"web{attempt}")
    except InUse:
        pass
"""
    assert [done.stderr for done in at_once(program, store_root, 8)] == [""] * 8
    names = sorted(container.name for container in store.containers)
    assert names == sorted(f"web{attempt}" for attempt in range(20))


def test_oldest_first(store: Store) -> None:
    made = [create(store) for _ in range(5)]
    assert list(store.containers) == made


class TestFind:
    def test_by_name_and_by_id(self, store: Store) -> None:
        container, _ = create(store, "web"), create(store, "db")
        for wanted in ("web", container.id, container.short_id):
            assert store.containers.find(wanted) == container

    def test_a_name_goes_before_the_start_of_an_id(self, store: Store) -> None:
        first = create(store)
        second = create(store, first.id[:6])
        assert store.containers.find(first.id[:6]) == second
        assert store.containers.find(first.id[:7]) == first

    def test_a_damaged_one_hides_no_other(self, store: Store) -> None:
        """What may be its name is nobody's until it is gone."""
        whole, damaged = create(store, "web"), create(store, "db")
        Path(store.containers.path(damaged), "config.json").write_bytes(b"{")
        for wanted in ("web", whole.id, whole.short_id):
            assert store.containers.find(wanted) == whole
        for wanted in ("db", "other", damaged.id, damaged.short_id):
            with pytest.raises(Corrupt, match=f"rm {damaged.id}"):
                store.containers.find(wanted)

    def test_not_by_part_of_a_name(self, store: Store) -> None:
        """Nor by nothing, nor by what two have."""
        create(store, "web")
        for wanted in ("we", "", "ö", "../web"):
            with pytest.raises(NotInStore):
                store.containers.find(wanted)

    def test_ambiguous(self, store: Store) -> None:
        """The start of several ids names none of them: 17 ids share at least one first digit."""
        made = [create(store) for _ in range(17)]
        firsts = [container.id[0] for container in made]
        shared = next(first for first in firsts if firsts.count(first) > 1)
        with pytest.raises(NotInStore, match="several"):
            store.containers.find(shared)


def test_update(store: Store) -> None:
    container = create(store)
    store.containers.update(container._replace(exit_code=7, target="/mnt"))
    [found] = store.containers
    assert (found.exit_code, found.target, found.id) == (7, "/mnt", container.id)


def test_running(store: Store) -> None:
    """For as long as another process holds its lock, and not a moment longer, however that ends."""
    container = create(store)
    assert not store.containers.is_running(container)
    hold = f"lock = store.containers.lock(store.containers.find({container.id!r}))"
    with another_process(hold, Path(store.root)) as process:
        assert store.containers.is_running(container)
        with pytest.raises(InUse, match=container.name):
            store.containers.remove(container)
        assert list(store.containers) == [container]
        process.kill()
        process.wait()
        assert not store.containers.is_running(container)
    store.containers.remove(container)
    assert list(store.containers) == []


def test_remove_takes_all_of_it(store: Store, tmp_path: Path) -> None:
    """What it wrote too, and nothing that its links point to."""
    store.containers.remove(create(store))
    before = everything(Path(store.root))
    container = create(store)
    upper = Path(store.containers.path(container), "upper")
    (tmp_path / "victim").touch()
    (upper / "directory").mkdir()
    (upper / "directory" / "link").symlink_to(tmp_path / "victim")
    store.containers.remove(container)
    assert everything(Path(store.root)) == before
    assert (tmp_path / "victim").exists()


def test_remove_takes_a_tree_as_deep_as_any(store: Store) -> None:
    """Its command may have nested more directories than Python recurses, and than a process opens."""
    container = create(store)
    here = os.open(os.path.join(store.containers.path(container), "upper"), os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        store.containers.remove(container)
        assert os.listdir(os.path.join(store.root, "containers")) == []
    finally:
        subprocess.run(["rm", "-rf", os.path.join(store.root, "containers")], check=True)  # shutil cannot


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"id": 1, "manifest": "x", "layers": []}'])
def test_damaged(store: Store, content: bytes) -> None:
    """The error names the file and what to do; what it needs cannot be known, so nothing goes on."""
    other, container = create(store), create(store)
    path = Path(store.containers.path(container), "config.json")
    path.write_bytes(content)
    with pytest.raises(Corrupt, match=f"damaged.*rm {container.id}"):
        list(store.containers)
    readable, damaged = store.containers.salvaged()
    assert (readable, list(damaged)) == ([other], [container.id])
    for nothing in ("", "..", "../images", container.id[:-1], f"{container.id}/upper"):
        assert not store.containers.discard(nothing)
    assert store.containers.discard(container.id)
    assert list(store.containers) == [other]
    assert store.containers.salvaged() == ([other], {})


def test_creation_killed_at_any_step(store: Store, store_root: Path) -> None:
    """There is a whole container or none, and its name can be used."""
    program = """
Store(ROOT).containers.create(image="i", manifest=Digest.of(b""), stack=Digest.of(b""), name="web")
"""
    for steps in killed_at_every_step(program, store_root):
        for container in store.containers:
            assert Path(store.containers.path(container), "rootfs").is_dir(), steps
            store.containers.remove(container)
        store.containers.remove(create(store, "web"))
        forget_all(store)
    assert [container.name for container in store.containers] == ["web"]


def test_removal_killed_at_any_step(store: Store, store_root: Path) -> None:
    """It is still a container that can be removed, or it is none."""
    program = "store = Store(ROOT)\nstore.containers.remove(store.containers.find('web'))"
    create(store, "web")
    outcomes = set()
    for _ in killed_at_every_step(program, store_root):
        found = [container.name for container in store.containers]
        assert found in (["web"], [])
        outcomes.add(len(found))
        for container in store.containers:
            store.containers.remove(container)
        forget_all(store)
        create(store, "web")
    assert outcomes == {0, 1}
    assert list(store.containers) == []


@pytest.mark.parametrize("removal", ["remove(container)", "discard(container.id)"])
def test_removed_while_others_clean(store_root: Path, removal: str) -> None:
    """Whichever step of a removal it is at which somebody sweeps what is half made, neither is in the other's way."""
    program = f"""
import os
left = 0
def step(event, arguments):
    global left
    if event in STEPS:
        left -= 1
        if left == 0:
            Store(store.root).clean()
sys.addaudithook(step)
for steps in range(1, 1000):
    container, lock = store.containers.create(image="i", manifest=Digest.of(b""), stack=Digest.of(b""))
    os.mkdir(os.path.join(store.containers.path(container), "upper", "directory"))
    lock.release()
    left = steps
    store.containers.{removal}
    if left > 0:
        break
    assert os.listdir(os.path.join(store.root, "containers")) == [], steps
assert steps > 10
left = 0
"""
    with another_process(program, store_root):
        pass


def forget_all(store: Store) -> None:
    """So that each round makes the same steps, and does not look at what earlier ones left."""
    for path in Path(store.root, "containers").iterdir():
        shutil.rmtree(path)


def test_one_that_begins_is_running(store: Store) -> None:
    """From the first moment that others see it, until its lock is released: it is not removed before it has begun."""
    container, lock = store.containers.create(image="i", manifest=MANIFEST, stack=STACK)
    [seen] = Store(store.root).containers
    assert store.containers.is_running(seen)
    with pytest.raises(InUse):
        Store(store.root).containers.remove(seen)
    lock.release()
    assert not store.containers.is_running(container)


def test_removed_meanwhile(store: Store) -> None:
    """Whoever still has it in hand is told so."""
    container = create(store, "web")
    Store(store.root).containers.remove(container)
    assert not store.containers.is_running(container)
    assert not store.containers.discard(container.id)
    with pytest.raises(NotInStore, match="no container 'web'"):
        store.containers.remove(container)

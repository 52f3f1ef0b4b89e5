"""Layers: in the making, published, abandoned, removed."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from store import Corrupt, Digest, NotInStore, StackInfo, Store
from store.trees import clean, pinned
from tests.store.rig import another_process, everything, killed_at_every_step, layer_info, put_layer

DIFF_ID = Digest.of(b"name")
STAGE = """
from pathlib import Path
diff_id = Digest.of(b"name")
lock = store.layers.lock(diff_id)
assert lock.try_acquire()
staging = store.layers.stage(diff_id)
Path(staging.files, "half").touch()
"""


def staged(store: Store) -> list[str]:
    return everything(Path(store.root, "staging"))


class TestStaging:
    def test_becomes_the_layer(self, store: Store) -> None:
        """Its tree, what was recorded of it, and nothing in staging."""
        diff_id = put_layer(store, "name")
        assert list(store.layers) == [diff_id]
        assert Path(store.layers.files(diff_id), "name", "name").read_text() == "name"
        assert store.layers.info(diff_id) == layer_info(diff_id)
        assert staged(store) == []

    def test_begins_empty(self, store: Store) -> None:
        """With the mode that a root directory has when nothing describes it."""
        staging = store.layers.stage(DIFF_ID)
        assert os.listdir(staging.files) == []
        assert stat.S_IMODE(os.stat(staging.files).st_mode) == 0o755
        assert stat.S_IMODE(os.stat(staging.path).st_mode) == 0o700

    def test_sha512(self, store: Store) -> None:
        """Another algorithm, another directory; it is listed with the rest."""
        first = put_layer(store, "name")
        second = Digest.of(b"name", "sha512")
        staging = store.layers.stage(second)
        staging.describe(layer_info(second))
        store.publish([], [staging])
        assert list(store.layers) == [first, second]
        assert store.layers.info(second).diff_id == second

    def test_what_a_dead_owner_left_is_gone(self, store: Store) -> None:
        """Whoever gets the layer's lock next begins with an empty directory."""
        with another_process(STAGE, Path(store.root)) as process:
            process.kill()
            process.wait()
        assert any(path.endswith("half") for path in staged(store))
        lock = store.layers.lock(DIFF_ID)
        assert lock.try_acquire()
        assert os.listdir(store.layers.stage(DIFF_ID).files) == []
        lock.release(remove=True)

    def test_discarded(self, store: Store) -> None:
        """Nothing of it stays; what has been published is not touched by it."""
        staging = store.layers.stage(DIFF_ID)
        Path(staging.files, "file").touch()
        staging.discard()
        staging.discard()
        assert everything(Path(store.root, "staging")) == []
        assert DIFF_ID not in store.layers
        staging = store.layers.stage(DIFF_ID)
        staging.describe(layer_info(DIFF_ID))
        store.publish([], [staging])
        staging.discard()
        assert store.layers.info(DIFF_ID) == layer_info(DIFF_ID)

    def test_one_maker(self, store: Store) -> None:
        """A layer's lock is held by one process, and another layer's is free."""
        with another_process(STAGE, Path(store.root)):
            assert not store.layers.lock(DIFF_ID).try_acquire()
            other = store.layers.lock(Digest.of(b"another"))
            assert other.try_acquire()
            other.release(remove=True)


class TestClean:
    def test_dead_ones_go(self, store: Store) -> None:
        with another_process(STAGE, Path(store.root)) as process:
            process.kill()
            process.wait()
        assert staged(store)
        clean(store.root)
        assert staged(store) == []

    def test_live_ones_stay(self, store: Store) -> None:
        """Another process is unpacking there at this moment, and has a dead neighbour."""
        store.layers.stage(Digest.of(b"dead"))
        with another_process(STAGE, Path(store.root)):
            clean(store.root)
            left = staged(store)
            assert sum(path.endswith("half") for path in left) == 1
            assert all(DIFF_ID.hex in path for path in left)
            assert not store.layers.lock(DIFF_ID).try_acquire()

    def test_published_layers_stay(self, store: Store) -> None:
        diff_id = put_layer(store, "name")
        clean(store.root)
        assert store.layers.info(diff_id) == layer_info(diff_id)

    def test_killed_at_any_step(self, store: Store, store_root: Path) -> None:
        """Cleaning up is itself cleaned up after."""
        program = "clean(ROOT)"
        Path(store.layers.stage(DIFF_ID).files, "file").touch()
        for _ in killed_at_every_step(program, store_root):
            clean(store.root)
            assert staged(store) == []
            Path(store.layers.stage(DIFF_ID).files, "file").touch()
        assert staged(store) == []

    def test_whatever_it_is(self, store: Store, tmp_path: Path) -> None:
        """Somebody has put something there that is no tree."""
        Path(store.root, "staging", "file").touch()
        Path(store.root, "staging", "link").symlink_to(tmp_path)
        clean(store.root)
        assert staged(store) == []
        assert tmp_path.is_dir()

    def test_follows_no_link(self, store: Store, tmp_path: Path) -> None:
        """A tree that nobody finished may hold links to anywhere."""
        (tmp_path / "victim").mkdir()
        (tmp_path / "victim" / "file").touch()
        staging = store.layers.stage(DIFF_ID)
        Path(staging.files, "link").symlink_to(tmp_path / "victim")
        clean(store.root)
        assert (tmp_path / "victim" / "file").exists()
        assert staged(store) == []


class TestRemove:
    def test_gone(self, store: Store) -> None:
        """From sight and from the disk; the others stay."""
        first, second = put_layer(store, "first"), put_layer(store, "second")
        with store.exclusive():
            store.layers.take_away(first).remove()
        assert list(store.layers) == [second]
        assert first not in store.layers
        assert not [path for path in everything(Path(store.root)) if first.hex in path]

    def test_can_be_made_again(self, store: Store) -> None:
        diff_id = put_layer(store, "name")
        with store.exclusive():
            store.layers.take_away(diff_id).remove()
        assert put_layer(store, "name") in store.layers

    def test_follows_no_link(self, store: Store, tmp_path: Path) -> None:
        diff_id = put_layer(store, "name")
        (tmp_path / "victim").mkdir()
        Path(store.layers.files(diff_id), "link").symlink_to(tmp_path / "victim")
        with store.exclusive():
            store.layers.take_away(diff_id).remove()
        assert (tmp_path / "victim").is_dir()

    def test_what_another_began_to_remove(self, store: Store) -> None:
        """Each moves directories to the top, under names of its own; a layer may have such names, too."""
        tree = Path(store.root, "staging", "doomed")
        for number in range(3):
            (tree / f".moved.{number}" / "not" / "empty").mkdir(parents=True)
        with another_process("from store.trees import clean\nclean(store.root)", Path(store.root)):
            assert staged(store) == []

    def test_killed_at_any_step(self, store: Store, store_root: Path) -> None:
        """The layer is there and whole, or it is not there; what was left on the way is cleaned up."""
        program = """
store = Store(ROOT, durable=False)
with store.exclusive():
    store.layers.take_away(Digest.of(b"name")).remove()
"""
        put_layer(store, "name")
        outcomes = set()
        for _ in killed_at_every_step(program, store_root):
            outcomes.add(DIFF_ID in store.layers)
            if DIFF_ID in store.layers:
                assert store.layers.info(DIFF_ID) == layer_info(DIFF_ID)
                assert Path(store.layers.files(DIFF_ID), "name", "name").read_text() == "name"
            else:
                put_layer(store, "name")
            clean(store.root)
            assert staged(store) == []
        assert outcomes == {True, False}
        assert DIFF_ID not in store.layers


class TestReplace:
    """A tree that is not what it should be any more."""

    def test_the_new_one_is_there_and_the_old_one_goes(self, store: Store) -> None:
        """Whoever stands in the old one keeps it until then."""
        diff_id = put_layer(store, "name")
        inside = os.open(store.layers.files(diff_id), os.O_RDONLY)
        staging = store.layers.stage_alone(diff_id, replace=True)
        Path(staging.files, "new").touch()
        staging.describe(layer_info(diff_id))
        store.publish([], [staging])
        assert os.listdir(store.layers.files(diff_id)) == ["new"]
        assert os.listdir(inside) == ["name"]
        staging.discard()
        assert os.listdir(store.layers.files(diff_id)) == ["new"]
        assert os.listdir(inside) == []
        assert staged(store) == []
        os.close(inside)

    def test_where_nothing_is(self, store: Store) -> None:
        """Or no directory."""
        for _ in range(2):
            staging = store.layers.stage_alone(DIFF_ID, replace=True)
            staging.describe(layer_info(DIFF_ID))
            store.publish([], [staging])
            staging.discard()
            assert (store.layers.info(DIFF_ID), staged(store)) == (layer_info(DIFF_ID), [])
            store.layers.take_away(DIFF_ID).remove()
            Path(store.layers.files(DIFF_ID)).parent.write_text("no tree")

    def test_not_published(self, store: Store) -> None:
        diff_id = put_layer(store, "name")
        staging = store.layers.stage_alone(diff_id, replace=True)
        staging.discard()
        assert os.listdir(store.layers.files(diff_id)) == ["name"]
        assert staged(store) == []

    def test_killed_at_any_step(self, store: Store, store_root: Path) -> None:
        """One of the two is there at any time."""
        program = """
store = Store(ROOT)
staging = store.layers.stage_alone(Digest.of(b"name"), replace=True)
os.mkdir(os.path.join(staging.files, "new"))
staging.describe(layer_info(Digest.of(b"name")))
store.publish([], [staging])
staging.discard()
"""
        put_layer(store, "name")
        outcomes = set()
        for _ in killed_at_every_step(program, store_root):
            [name] = os.listdir(store.layers.files(DIFF_ID))
            outcomes.add(name)
            assert store.layers.info(DIFF_ID) == layer_info(DIFF_ID)
            clean(store.root)
            assert staged(store) == []
            if name == "new":
                with store.exclusive():
                    store.layers.take_away(DIFF_ID).remove()
                put_layer(store, "name")
        assert outcomes == {"name", "new"}


class TestProblem:
    """What is wrong with a tree, from outside and inside."""

    def test_none(self, store: Store) -> None:
        assert store.layers.problem(put_layer(store, "name")) == ""

    @pytest.mark.parametrize(
        ("damage", "problem"),
        [
            ("rm -r ..", "it is not there"),
            ("rm -r ../fs", "its directory fs is not there"),
            ("rm -r ../fs; touch ../fs", "its directory fs is not there"),
            ("mv ../fs ../x; ln -s x ../fs", "its directory fs is not there"),
            ("rm ../layer.json", "its layer.json is not there"),
            ("> ../layer.json", "its layer.json is damaged"),
        ],
    )
    def test_of_its_outside(self, store: Store, damage: str, problem: str) -> None:
        diff_id = put_layer(store, "name")
        subprocess.run(damage.replace("..", os.path.dirname(store.layers.files(diff_id))), shell=True, check=True)
        assert store.layers.problem(diff_id) == problem

    def test_difference(self, store: Store, tmp_path: Path) -> None:
        """The first, and how many more there are; or the record's."""
        diff_id = put_layer(store, "name")
        right = layer_info(diff_id)
        made = tmp_path / "made"
        subprocess.run(["cp", "-a", store.layers.files(diff_id), made], check=True)
        assert store.layers.difference(diff_id, str(made), right) == ""
        assert store.layers.difference(diff_id, str(made), right._replace(size=1)) == "its layer.json differs"
        (made / "name" / "name").write_text("longer")
        assert store.layers.difference(diff_id, str(made), right).startswith("name/name: it")
        (made / "a").touch()
        (made / "b").touch()
        found = store.layers.difference(diff_id, str(made), right)
        assert found.startswith("its root: its time")
        assert found.endswith(" (and 3 more)")

    def test_what_is_removed_meanwhile_does_not_differ(self, store: Store, tmp_path: Path) -> None:
        """Nor what takes its place."""
        diff_id = put_layer(store, "name")
        assert store.layers.difference(Digest.of(b"gone"), str(tmp_path), layer_info(DIFF_ID)) == ""
        with pinned([store.layers.files(diff_id)]) as in_place:
            assert in_place()
            with store.exclusive():
                store.layers.take_away(diff_id).remove()
            assert not in_place()
            put_layer(store, "name")
            assert not in_place()


class TestInfo:
    def test_names_that_are_not_utf_8(self, store: Store) -> None:
        """They are bytes to the kernel, and come back as the same bytes."""
        names = ("", "a/b", os.fsdecode(b"caf\xe9"), "new\nline", "日本")
        info = layer_info(DIFF_ID)._replace(size=1 << 40, opaque_root=True, implied=names, unresolved=names[2:])
        staging = store.layers.stage(DIFF_ID)
        staging.describe(info)
        store.publish([], [staging])
        assert store.layers.info(DIFF_ID) == info
        assert os.fsencode(store.layers.info(DIFF_ID).implied[2]) == b"caf\xe9"

    def test_not_here(self, store: Store) -> None:
        with pytest.raises(NotInStore, match=DIFF_ID.hex):
            store.layers.info(DIFF_ID)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b'{"diff_id": "sha256:1"}', b"\xff"])
    def test_damaged(self, store: Store, content: bytes) -> None:
        """One error, whatever stands there."""
        diff_id = put_layer(store, "name")
        Path(store.layers.files(diff_id)).with_name("layer.json").write_bytes(content)
        with pytest.raises(Corrupt, match="damaged"):
            store.layers.info(diff_id)


def test_a_listing_has_layers_only(store: Store) -> None:
    diff_ids = [put_layer(store, f"layer {number}") for number in range(5)]
    Path(store.root, "layers", "sha256", "lost").mkdir()
    assert list(store.layers) == sorted(diff_ids)


class TestStacks:
    """What several layers come to is a tree too, of another kind."""

    INFO = StackInfo(lower=("layers/sha256/x/fs", "stacks/sha256/y/fs"), layers=(DIFF_ID,), variants=(DIFF_ID,))

    def test_each_kind_for_itself(self, store: Store) -> None:
        """One digest may name a layer, a variant and a stack; each has its own record."""
        put_layer(store, "name")
        assert DIFF_ID not in store.stacks
        assert DIFF_ID not in store.variants
        stack, variant = store.stacks.stage(DIFF_ID), store.variants.stage(DIFF_ID)
        stack.describe(self.INFO)
        variant.describe(layer_info(DIFF_ID))
        store.publish([], [stack, variant])
        assert store.stacks.info(DIFF_ID) == self.INFO
        assert store.variants.info(DIFF_ID) == store.layers.info(DIFF_ID) == layer_info(DIFF_ID)
        store.stacks.take_away(DIFF_ID).remove()
        assert (DIFF_ID in store.stacks, DIFF_ID in store.variants, DIFF_ID in store.layers) == (False, True, True)

    def test_the_first_of_two_makers_wins(self, store: Store) -> None:
        """They made the same without waiting for each other; what the second made goes."""
        makers = [store.stacks.stage_alone(DIFF_ID) for _ in range(2)]
        for number, staging in enumerate(makers):
            Path(staging.files, str(number)).touch()
            staging.describe(self.INFO)
        for staging in makers:
            store.publish([], [staging])
            staging.discard()
        assert os.listdir(store.stacks.files(DIFF_ID)) == ["0"]
        assert staged(store) == []

    def test_made_alone_is_not_cleaned_meanwhile(self, store: Store) -> None:
        """Nor is it left when its maker dies."""
        program = "staging = store.stacks.stage_alone(Digest.of(b'name'))"
        with another_process(program, Path(store.root)) as process:
            clean(store.root)
            assert any(path.endswith("/fs") for path in staged(store))
            process.kill()
            process.wait()
        clean(store.root)
        assert staged(store) == []

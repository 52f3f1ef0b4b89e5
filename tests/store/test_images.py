"""Image records: index.json as we and as other programs use it."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from store import Corrupt, Digest, InUse, NotInStore, Store
from tests.conftest import require
from tests.store.rig import at_once, image_record, killed_at_every_step

A, B = image_record("example.org/a:1"), image_record("example.org/b:1", variant="v7")


def index(store: Store) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(store.root, "index.json").read_text())
    return document


def foreign(**fields: object) -> dict[str, Any]:
    """An entry as another program writes it."""
    digest = str(Digest.of(b"foreign"))
    return {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 7, **fields}


def add_foreign(store: Store, entry: dict[str, Any]) -> None:
    document = index(store)
    document["manifests"].append(entry)
    Path(store.root, "index.json").write_text(json.dumps(document))


def test_put_and_get(store: Store) -> None:
    """All its fields come back, in this process and the next."""
    store.images.put(A)
    store.images.put(B)
    for images in (store.images, Store(store.root).images):
        assert images.get(A.reference) == A
        assert images.get(B.reference) == B
        assert images.get("example.org/a") is None
        assert list(images) == [A, B]


def test_put_replaces_the_same_reference(store: Store) -> None:
    """A tag that moved."""
    store.images.put(A)
    moved = image_record(A.reference, Digest.of(b"new"))
    store.images.put(moved)
    assert list(store.images) == [moved]


def test_put_over_what_it_was(store: Store) -> None:
    """Who has looked first does not take the name from who was faster; the same image is no other."""
    moved = image_record(A.reference, Digest.of(b"new"))
    with pytest.raises(InUse):
        store.images.put(moved, A.manifest)
    store.images.put(A, "nothing")
    store.images.put(A, "nothing")
    with pytest.raises(InUse):
        store.images.put(moved, "nothing")
    with pytest.raises(InUse):
        store.images.put(moved, Digest.of(b"older"))
    assert list(store.images) == [A]
    store.images.put(moved, A.manifest)
    store.images.put(A, "anything")
    assert list(store.images) == [A]


def test_the_text_does_not_depend_on_the_order(store: Store) -> None:
    """Two stores with the same images have the same index.json."""
    texts = []
    for order in ((A, B), (B, A)):
        for record in order:
            store.images.put(record)
        texts.append(Path(store.root, "index.json").read_bytes())
        for record in order:
            store.images.remove(record.reference)
    assert texts[0] == texts[1]


def test_is_what_the_spec_says(store: Store) -> None:
    """image-layout.md: a descriptor, with the platform, and the reference as its ref.name annotation."""
    store.images.put(B)
    [entry] = index(store)["manifests"]
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == B.reference
    assert entry["platform"] == {"os": "linux", "architecture": "arm", "variant": "v7"}
    assert (entry["mediaType"], entry["digest"], entry["size"]) == (B.media_type, str(B.manifest), B.size)
    assert stat.S_IMODE(Path(store.root, "index.json").stat().st_mode) == 0o600


def test_remove(store: Store) -> None:
    store.images.put(A)
    store.images.put(B)
    store.images.remove(A.reference)
    assert list(store.images) == [B]
    with pytest.raises(NotInStore, match=A.reference):
        store.images.remove(A.reference)
    assert list(store.images) == [B]


@pytest.mark.parametrize(
    "entry",
    [
        foreign(),
        foreign(annotations={}),
        foreign(annotations={"org.opencontainers.image.ref.name": "theirs"}, urls=["https://example.org"]),
        foreign(platform={"os": "linux"}, annotations={"theirs": "1"}),
    ],
)
def test_entries_of_other_programs_are_kept(store: Store, entry: dict[str, Any]) -> None:
    """`skopeo copy … oci:ROOT:theirs` is not ours to list, and not ours to lose."""
    store.images.put(A)
    add_foreign(store, entry)
    assert list(store.images) == [A]
    store.images.put(B)
    store.images.remove(A.reference)
    assert list(store.images) == [B]
    assert entry in index(store)["manifests"]


def pushed(store: Store) -> list[tuple[str, str, str]]:
    """(name, repository, the digest's start) of what was pushed."""
    return [(entry.name, entry.repository, entry.digest.short) for entry in store.images.entries() if not entry.record]


ONE, TWO = Digest.of(b"1"), Digest.of(b"2")


def push(store: Store, repository: str, tag: str, digest: Digest) -> None:
    store.images.push(repository, tag, digest, "application/vnd.oci.image.manifest.v1+json", 7)


def test_a_push_is_in_its_repository_and_has_its_tag(store: Store) -> None:
    """Its two entries are as image-layout.md says; it is no record of a pull, and nothing that a sweep may touch."""
    push(store, "a/b", "1", ONE)
    assert pushed(store) == [("", "a/b", ONE.short), ("a/b:1", "", ONE.short)]
    assert list(store.images) == []
    assert set(store.images.foreign()) == {ONE}
    by_digest, by_tag = index(store)["manifests"]
    assert by_tag["annotations"] == {"org.opencontainers.image.ref.name": "a/b:1"}
    for entry in (by_digest, by_tag):
        assert (entry["mediaType"], entry["digest"], entry["size"]) == (A.media_type, str(ONE), 7)


def test_a_tag_that_moves_leaves_the_manifest(store: Store) -> None:
    push(store, "a", "1", ONE)
    push(store, "a", "1", TWO)
    assert pushed(store) == [("", "a", ONE.short), ("", "a", TWO.short), ("a:1", "", TWO.short)]


def test_the_same_push_again_changes_nothing(store: Store) -> None:
    push(store, "a", "1", ONE)
    before = index(store)
    push(store, "a", "1", ONE)
    push(store, "a", "", ONE)
    assert index(store) == before


def test_a_tag_is_removed_without_its_manifest(store: Store) -> None:
    push(store, "a", "1", ONE)
    push(store, "b", "1", ONE)
    assert store.images.untag("a", "1")
    assert pushed(store) == [("", "a", ONE.short), ("", "b", ONE.short), ("b:1", "", ONE.short)]
    assert not store.images.untag("a", "1")


def test_a_manifest_is_removed_with_its_tags_from_its_repository_only(store: Store) -> None:
    for repository in ("a", "b"):
        push(store, repository, "1", ONE)
        push(store, repository, "2", ONE)
        push(store, repository, "3", TWO)
    assert store.images.withdraw("a", ONE)
    left = [("a", TWO.short), ("b", ONE.short), ("b", TWO.short)]
    assert pushed(store) == [
        *[("", *one) for one in left],
        ("a:3", "", TWO.short),
        *[(f"b:{tag}", "", digest.short) for tag, digest in (("1", ONE), ("2", ONE), ("3", TWO))],
    ]
    assert not store.images.withdraw("a", ONE)


def test_what_was_pulled_is_not_pushed_over_nor_removed(store: Store) -> None:
    """That would take a record from containers that run on it; a pull, though, may take a push's name."""
    store.images.put(A)
    repository, _, tag = A.reference.rpartition(":")
    with pytest.raises(InUse, match="was pulled"):
        push(store, repository, tag, ONE)
    assert not store.images.untag(repository, tag)
    assert not store.images.withdraw(repository, A.manifest)
    assert (list(store.images), pushed(store)) == ([A], [])
    store.images.remove(A.reference)
    push(store, repository, tag, ONE)
    store.images.put(A)
    assert list(store.images) == [A]
    assert pushed(store) == [("", repository, ONE.short)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"manifests": null}',
        b'{"manifests": ["x"]}',
        b'{"manifests": [{"annotations": {"dev.pullpipe.resolved": "x"}}]}',
    ],
)
def test_damaged(store: Store, content: bytes) -> None:
    """One error for all, from each operation; nothing is written over it."""
    path = Path(store.root, "index.json")
    path.write_bytes(content)
    with pytest.raises(Corrupt, match="damaged"):
        store.images.get(A.reference)
    with pytest.raises(Corrupt, match="damaged"):
        store.images.put(A)
    with pytest.raises(Corrupt, match="damaged"):
        store.images.remove(A.reference)
    assert path.read_bytes() == content


def test_what_can_be_read_of_a_damaged_one_is_kept(store: Store) -> None:
    """Cut anywhere, it still has the entries that end before; and mended, it is a document with those."""
    for record in (A, B):
        store.images.put(record)
    add_foreign(store, foreign())
    assert store.images.salvaged() == (store.images.entries(), False)
    everything, path = store.images.entries(), Path(store.root, "index.json")
    text = path.read_text()
    counts = []
    for end in [*range(0, len(text), 7), len(text) - 1]:
        path.write_text(text[:end])
        entries, damaged = store.images.salvaged()
        assert damaged
        assert entries == everything[: len(entries)]
        counts.append(len(entries))
        store.images.mend()
        mended, damaged = store.images.salvaged()
        assert not damaged
        assert sorted(mended, key=str) == sorted(entries, key=str)
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3}


@pytest.mark.parametrize("flaw", ["{", "x", '"', ":", "}", "\x00", "\udcff"])
def test_an_entry_that_cannot_be_read_takes_no_other_with_it(store: Store, flaw: str) -> None:
    for record in (A, B):
        store.images.put(record)
    path = Path(store.root, "index.json")
    text = path.read_text().replace("sha256:", f"sha{flaw}256:", 1)
    path.write_text(text, errors="surrogateescape")
    entries, damaged = store.images.salvaged()
    assert damaged
    assert [entry.record for entry in entries] == [B]


def test_mending_what_is_not_damaged_changes_nothing(store: Store) -> None:
    store.images.put(A)

    def written() -> tuple[int, int]:
        found = Path(store.root, "index.json").stat()  # whose time of access may be another one
        return found.st_ino, found.st_ctime_ns

    before = written()
    store.images.mend()
    assert written() == before


def test_many_at_once(store: Store, store_root: Path) -> None:
    """Processes that record images at the same moment lose none of each other's."""
    program = 'for n in range(10):\n    store.images.put(image_record(f"example.org/{number}:{n}"))'
    assert [done.stderr for done in at_once(program, store_root, 6)] == [""] * 6
    found = {record.reference for record in store.images}
    assert found == {f"example.org/{number}:{n}" for number in range(6) for n in range(10)}


@pytest.mark.parametrize("change", ["put(image_record('example.org/b:1', variant='v7'))", "remove('example.org/a:1')"])
def test_killed_at_any_step(store: Store, store_root: Path, change: str) -> None:
    """A reader sees the old records or the new ones, and the next change goes through and leaves nothing else."""
    store.images.put(A)
    old, seen = Path(store_root, "index.json").read_bytes(), set()
    for _ in killed_at_every_step(f"store = Store(ROOT)\nstore.images.{change}", store_root):
        seen.add(tuple(store.images))
        store.images.put(A)
        for record in list(store.images):
            if record != A:
                store.images.remove(record.reference)
        assert Path(store_root, "index.json").read_bytes() == old
        assert list(store_root.glob("*.tmp")) == []
    new = tuple(store.images)
    assert seen <= {(A,), new}
    assert new == ((A, B) if change.startswith("put") else ())


def test_a_reader_never_sees_half(store: Store, store_root: Path) -> None:
    """Readers take no lock: while others write, each look finds a whole document."""
    program = """
if number % 2:
    for n in range(60):
        store.images.put(image_record(f"example.org/{number}:{n}"))
else:
    seen = 0
    for n in range(300):
        before, seen = seen, len(list(store.images))
        assert seen >= before
"""
    assert [done.stderr for done in at_once(program, store_root, 4)] == [""] * 4
    assert len(list(store.images)) == 120


@pytest.mark.parametrize("reference", ["example.org/a:1", "127.0.0.1:5000/b@sha256:" + "a" * 64])
def test_umoci_lists_the_references(store: Store, reference: str) -> None:
    """Other programs find the images by their names, digests in them included."""
    require("umoci")
    store.images.put(image_record(reference))
    done = subprocess.run(["umoci", "ls", "--layout", store.root], capture_output=True, text=True)
    assert (done.stdout.split(), done.returncode) == ([reference], 0), done.stderr

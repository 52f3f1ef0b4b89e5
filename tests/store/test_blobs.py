"""Blobs: arriving, whole, damaged, gone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from store import Corrupt, Digest, Ingest, InUse, NotInStore, Store
from tests.store.rig import another_process, everything, put_blob

DATA = b"what a blob holds"
DIGEST = Digest.of(DATA)


def arrive(store: Store, data: bytes, *, size: int = len(DATA)) -> None:
    """A fetch that ends after `data`."""
    with store.blobs.ingest(DIGEST, size) as ingest:
        append(ingest, data)


def append(ingest: Ingest, data: bytes) -> None:
    with open(ingest.fileno(), "ab", closefd=False) as file:
        file.write(data)


def write(data: bytes) -> str:
    """A program whose fetch ends after `data`, and which does not close it."""
    return f"""
import os
ingest = store.blobs.ingest(Digest.of({DATA!r}), {len(DATA)})
os.write(ingest.fileno(), {data!r})
"""


def ingests(store: Store) -> list[str]:
    return os.listdir(os.path.join(store.root, "ingest"))


class TestIngest:
    def test_becomes_the_blob(self, store: Store) -> None:
        """Under its name in the layout, and nothing stays of the ingest."""
        digest = put_blob(store, DATA)
        path = Path(store.root, "blobs", "sha256", digest.hex)
        assert path.read_bytes() == DATA
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ingests(store) == []

    def test_sha512_has_a_directory_of_its_own(self, store: Store) -> None:
        digest = Digest.of(DATA, "sha512")
        with store.blobs.ingest(digest, len(DATA)) as ingest:
            append(ingest, DATA)
            store.publish([ingest], [])
        assert Path(store.root, "blobs", "sha512", digest.hex).read_bytes() == DATA
        assert stat.S_IMODE(Path(store.root, "blobs", "sha512").stat().st_mode) == 0o700
        assert list(store.blobs) == [digest]

    def test_a_partial_survives_and_is_continued(self, store: Store) -> None:
        """The next process finds what arrived, and appends to it."""
        arrive(store, DATA[:5])
        again = Store(store.root, durable=False)
        with again.blobs.ingest(DIGEST, len(DATA)) as ingest:
            assert ingest.present == 5
            append(ingest, DATA[5:])
            again.publish([ingest], [])
        assert again.blobs.read(DIGEST) == DATA

    def test_a_killed_process_leaves_its_partial(self, store: Store) -> None:
        """What it had written is there, and its lock is not."""
        write = (
            f"ingest = store.blobs.ingest(Digest.of({DATA!r}), {len(DATA)})\nos.write(ingest.fileno(), {DATA[:7]!r})"
        )
        with another_process(f"import os\n{write}", Path(store.root)) as process:
            process.kill()
            process.wait()
            with store.blobs.ingest(DIGEST, len(DATA)) as ingest:
                assert ingest.present == 7

    def test_all_of_it_may_be_there(self, store: Store) -> None:
        """Killed between the last byte and the rename: nothing has to come again."""
        arrive(store, DATA)
        with store.blobs.ingest(DIGEST, len(DATA)) as ingest:
            assert ingest.present == len(DATA)

    def test_longer_than_promised_starts_anew(self, store: Store) -> None:
        """Such a file cannot be the beginning of this blob."""
        arrive(store, DATA + b"!", size=len(DATA))
        with store.blobs.ingest(DIGEST, len(DATA)) as ingest:
            assert ingest.present == 0
            assert os.fstat(ingest.fileno()).st_size == 0

    def test_nothing_leaves_nothing(self, store: Store) -> None:
        """An attempt that got no byte leaves no file."""
        arrive(store, b"")
        assert ingests(store) == []

    def test_two_cannot_have_it(self, store: Store) -> None:
        """The second is told so, and may try when the first has closed it."""
        with store.blobs.ingest(DIGEST, len(DATA)) as ingest:
            append(ingest, DATA[:3])
            with pytest.raises(InUse, match="another process"):
                store.blobs.ingest(DIGEST, len(DATA))
            assert os.fstat(ingest.fileno()).st_size == 3
            with store.blobs.ingest(Digest.of(b"another"), 7) as other:
                assert other.present == 0
        with store.blobs.ingest(DIGEST, len(DATA)) as ingest:
            assert ingest.present == 3

    def test_another_process_cannot_have_it(self, store: Store) -> None:
        hold = f"ingest = store.blobs.ingest(Digest.of({DATA!r}), {len(DATA)})"
        with another_process(hold, Path(store.root)), pytest.raises(InUse):
            store.blobs.ingest(DIGEST, len(DATA))

    def test_discarded(self, store: Store) -> None:
        """Wrong bytes are not continued; to discard what has become the blob does nothing."""
        with store.blobs.ingest(DIGEST, len(DATA)) as ingest:
            append(ingest, b"wrong")
            ingest.discard()
            ingest.discard()
        assert ingests(store) == []
        with store.blobs.ingest(DIGEST, len(DATA)) as ingest:
            assert ingest.present == 0
            append(ingest, DATA)
            store.publish([ingest], [])
            ingest.discard()
        assert store.blobs.read(DIGEST) == DATA

    def test_closing_twice(self, store: Store) -> None:
        """Does nothing, in particular not to the file that has the number now."""
        ingest = store.blobs.ingest(DIGEST, len(DATA))
        number = ingest.fileno()
        ingest.close()
        with open(os.path.join(store.root, "version"), "rb") as file:
            assert file.fileno() == number
            ingest.close()
            assert file.read() == b"1\n"

    def test_a_link_in_its_place_is_not_followed(self, store: Store, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_text("mine")
        arrive(store, DATA[:1])
        [name] = ingests(store)
        place = Path(store.root, "ingest", name)
        place.unlink()
        place.symlink_to(victim)
        with pytest.raises(OSError, match="symbolic links"):
            store.blobs.ingest(DIGEST, 2)
        assert victim.read_text() == "mine"


class TestDocument:
    def test_is_published_like_any_blob(self, store: Store) -> None:
        with store.blobs.document(DIGEST, DATA) as document:
            assert DIGEST not in store.blobs
            store.publish([document], [])
        assert store.blobs.read(DIGEST) == DATA
        assert ingests(store) == []

    def test_waits_for_nobody(self, store: Store) -> None:
        """Two processes may bring the same manifest at once; it is the same."""
        hold = f"document = store.blobs.document(Digest.of({DATA!r}), {DATA!r})"
        with another_process(hold, Path(store.root)), store.blobs.document(DIGEST, DATA) as document:
            store.publish([document], [])
        assert store.blobs.read(DIGEST) == DATA

    def test_leaves_nothing_when_it_is_not_published(self, store: Store) -> None:
        with store.blobs.document(DIGEST, DATA):
            assert len(ingests(store)) == 1
        assert ingests(store) == []
        assert DIGEST not in store.blobs

    def test_again_when_it_is_there(self, store: Store) -> None:
        """Published over itself."""
        for _ in range(2):
            with store.blobs.document(DIGEST, DATA) as document:
                store.publish([document], [])
        assert store.blobs.read(DIGEST) == DATA


class TestIncoming:
    """Blobs whose digest is known last."""

    def test_is_named_last(self, store: Store) -> None:
        with store.blobs.incoming() as incoming:
            append(incoming, DATA)
            store.blobs.name(incoming, DIGEST)
            store.publish([incoming], [])
        assert store.blobs.read(DIGEST) == DATA
        assert ingests(store) == []

    def test_many_at_once_are_each_their_own(self, store: Store) -> None:
        with store.blobs.incoming() as one, store.blobs.incoming() as two:
            append(one, b"1")
            append(two, b"2")
            for incoming, data in ((two, b"2"), (one, b"1")):
                store.blobs.name(incoming, Digest.of(data))
                store.publish([incoming], [])
        assert set(store.blobs) == {Digest.of(b"1"), Digest.of(b"2")}

    def test_cleaning_removes_what_a_killed_process_left(self, store: Store) -> None:
        """And nothing of one that lives."""
        write = f"import os\nincoming = store.blobs.incoming()\nos.write(incoming.fileno(), {DATA!r})"
        with another_process(write, Path(store.root)) as process:
            store.clean()
            assert len(ingests(store)) == 1
            process.kill()
            process.wait()
        store.clean()
        assert ingests(store) == []


class TestBlob:
    def test_size_and_presence(self, store: Store) -> None:
        assert DIGEST not in store.blobs
        assert store.blobs.size(DIGEST) is None
        put_blob(store, DATA)
        assert DIGEST in store.blobs
        assert store.blobs.size(DIGEST) == len(DATA)

    def test_not_here(self, store: Store) -> None:
        """The error names the blob."""
        with pytest.raises(NotInStore, match=DIGEST.hex):
            store.blobs.read(DIGEST)

    def test_damaged(self, store: Store) -> None:
        """A bit that flipped on disk is found whenever the blob is read, unless the caller does not want to know."""
        put_blob(store, DATA)
        damaged = DATA[:-1] + b"!"
        Path(store.blobs.path(DIGEST)).write_bytes(damaged)
        with pytest.raises(Corrupt, match=DIGEST.hex):
            store.blobs.read(DIGEST)
        assert store.blobs.read(DIGEST, verify=False) == damaged

    def test_removed(self, store: Store) -> None:
        """Says what that freed."""
        put_blob(store, DATA)
        assert store.blobs.remove(DIGEST) == len(DATA)
        assert DIGEST not in store.blobs
        assert store.blobs.remove(DIGEST) == 0

    def test_a_listing_has_blobs_only(self, store: Store) -> None:
        """In a settled order, and without what another program left among them."""
        digests = [put_blob(store, bytes([number])) for number in range(20)]
        Path(store.root, "blobs", "sha256", "copy.tmp").touch()
        assert list(store.blobs) == sorted(digests)


def test_a_killed_publish_leaves_no_half_blob(store: Store) -> None:
    """Another process dies while its blob arrives: nothing is visible, and the store takes the blob from here."""
    with another_process(write(DATA), Path(store.root)) as process:
        process.kill()
        process.wait()
    assert list(store.blobs) == []
    assert not [path for path in everything(Path(store.root)) if path.startswith("blobs/sha256/")]
    with store.blobs.ingest(DIGEST, len(DATA)) as ingest:
        store.publish([ingest], [])
    assert store.blobs.read(DIGEST) == DATA

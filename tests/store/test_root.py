"""The store as a whole: how it is made, whom it refuses, in which order a pull becomes visible."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from store import Digest, Store, UnusableRoot
from store.locks import Lock
from store.trees import clean
from tests.store.rig import PROJECT, everything, image_record, killed_at_every_step, put_blob, put_layer
from tests.support.processes import is_waited_for, until


def test_imports_nothing_of_pullpipe_and_no_network() -> None:
    """`store` is for others too: it stands alone, and is quick to load."""
    program = "import sys, store\nprint(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"pullpipe", "aiohttp", "asyncio", "ssl", "socket", "hashlib"}


def test_everything_is_its_owners_alone(store_root: Path) -> None:
    """Mode 0700, whatever the umask: layers hold setuid programs that are nobody else's to run."""
    before = os.umask(0)
    try:
        Store(str(store_root))
    finally:
        os.umask(before)
    assert stat.S_IMODE(store_root.stat().st_mode) == 0o700
    for path in store_root.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_an_empty_directory_becomes_a_store(store_root: Path) -> None:
    """Also the empty root of a file system of its own."""
    store_root.mkdir(mode=0o755)
    (store_root / "lost+found").mkdir()
    Store(str(store_root))
    assert stat.S_IMODE(store_root.stat().st_mode) == 0o700


def test_is_an_oci_layout_from_the_start(store: Store) -> None:
    root = Path(store.root)
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((root / "index.json").read_text())
    assert (index["schemaVersion"], index["manifests"]) == (2, [])
    assert (root / "blobs" / "sha256").is_dir()


def test_opening_changes_nothing(store: Store) -> None:
    """Blobs, layers and records are there for the next process."""
    blob, layer = put_blob(store, b"data"), put_layer(store, "name")
    store.images.put(image_record("example.org/a:1"))
    before = everything(Path(store.root))
    again = Store(store.root)
    assert everything(Path(store.root)) == before
    assert (blob in again.blobs, layer in again.layers) == (True, True)
    assert again.images.get("example.org/a:1") == image_record("example.org/a:1")


def test_a_relative_root_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("here")
    monkeypatch.chdir("/")
    digest = put_blob(store, b"data")
    assert (tmp_path / "here" / "blobs" / "sha256" / digest.hex).read_bytes() == b"data"


def test_a_newer_format_is_refused(store: Store) -> None:
    """The message tells both numbers, and the store is left alone."""
    Path(store.root, "version").write_text("7\n")
    with pytest.raises(UnusableRoot, match=r"format 7.*up to 1.*newer"):
        Store(store.root)
    assert Path(store.root, "version").read_text() == "7\n"


@pytest.mark.parametrize("content", [b"", b"one\n", b"-1\n", b"1.5\n", b"\xff\n"])
def test_a_damaged_version_is_refused(store: Store, content: bytes) -> None:
    Path(store.root, "version").write_bytes(content)
    with pytest.raises(UnusableRoot, match="damaged"):
        Store(store.root)


def test_a_foreign_directory_is_refused_and_untouched(tmp_path: Path) -> None:
    """Somebody's home, say: nothing is made in it and its mode stays."""
    tmp_path.chmod(0o755)
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(UnusableRoot, match="not empty"):
        Store(str(tmp_path))
    assert everything(tmp_path) == ["letter"]
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((UnusableRoot, NotADirectoryError)):
        Store(str(tmp_path / "file" / below))


@pytest.mark.needs_root
def test_another_users_store_is_refused(store: Store) -> None:
    """Its owner could change it under us, and what root writes there would lock its owner out."""
    os.chown(store.root, 12345, 12345)
    with pytest.raises(UnusableRoot, match="12345"):
        Store(store.root)


@pytest.mark.needs_root
def test_what_another_user_has_prepared_is_refused(tmp_path: Path) -> None:
    """An empty directory of theirs, or one with a symlink in it that our own names would go through."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    (root / "blobs").symlink_to(elsewhere)
    with pytest.raises(UnusableRoot, match="blobs is not a directory of the store's owner"):
        Store(str(root))
    (root / "blobs").unlink()
    os.chown(root, 12345, 12345)
    with pytest.raises(UnusableRoot, match="12345"):
        Store(str(root))
    assert everything(root) == everything(elsewhere) == []


@pytest.mark.needs_root
class TestWhatAnotherUserHasPrepared:
    """In a directory of ours that anybody could write to."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = tmp_path / "root"
        root.mkdir()
        root.chmod(0o777)
        return root

    def test_nothing(self, root: Path) -> None:
        """So it is closed, and used."""
        Store(str(root))
        assert stat.S_IMODE(root.stat().st_mode) == 0o700

    @pytest.mark.parametrize("name", ["create.lock", "use.lock", "version.tmp", "index.json", "version"])
    def test_a_symlink(self, root: Path, tmp_path: Path, name: str) -> None:
        (root / name).symlink_to(tmp_path / "target")
        with pytest.raises(UnusableRoot, match=f"{name} is not a file of the store's owner"):
            Store(str(root))
        assert not (tmp_path / "target").exists()
        assert everything(root) == [name]

    @pytest.mark.parametrize("name", ["index.json", "oci-layout", "version", "create.lock"])
    def test_a_file(self, root: Path, name: str) -> None:
        """Also when the directory has been closed since."""
        (root / name).write_text("1\n")
        os.chown(root / name, 12345, 12345)
        for mode in (0o777, 0o700):
            root.chmod(mode)
            with pytest.raises(UnusableRoot, match=f"{name} is not a file of the store's owner"):
                Store(str(root))
        assert everything(root) == [name]

    def test_at_the_last_moment(self, root: Path, tmp_path: Path) -> None:
        """Between the look and the closing."""
        program = """
import os, sys
from store import Store, UnusableRoot
root, target = sys.argv[1:]
def hook(event, arguments):
    if event == "os.chmod" and arguments[0] == root:
        os.symlink(target, root + "/create.lock")
sys.addaudithook(hook)
try:
    Store(root)
except UnusableRoot as error:
    print(error)
"""
        command = [sys.executable, "-c", program, str(root), str(tmp_path / "target")]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=30)
        assert "create.lock is not a file of the store's owner" in done.stdout, done.stderr
        assert not (tmp_path / "target").exists()


def test_a_store_that_others_may_enter_is_refused(store: Store) -> None:
    os.chmod(store.root, 0o711)
    with pytest.raises(UnusableRoot, match=r"mode 0711.*chmod 700"):
        Store(store.root)


@pytest.mark.needs_root
class TestTheWayToTheRoot:
    def test_a_directory_that_anybody_may_change(self, tmp_path: Path) -> None:
        open_to_all = tmp_path / "open"
        open_to_all.mkdir()
        open_to_all.chmod(0o777)
        with pytest.raises(UnusableRoot, match="others may change"):
            Store(str(open_to_all / "root"))
        assert everything(open_to_all) == []

    def test_one_that_is_sticky(self, tmp_path: Path) -> None:
        """As /tmp: what is ours in it stays where it is, and what another put there may move."""
        sticky = tmp_path / "sticky"
        sticky.mkdir()
        sticky.chmod(0o1777)
        Store(str(sticky / "root"))
        link = sticky / "link"
        link.symlink_to(tmp_path)
        os.lchown(link, 12345, 12345)
        with pytest.raises(UnusableRoot, match="others may change"):
            Store(str(link / "other"))

    def test_one_of_another_user(self, tmp_path: Path) -> None:
        """Unless it is somebody who is to be trusted."""
        home = tmp_path / "home"
        home.mkdir()
        os.chown(home, 12345, 12345)
        with pytest.raises(UnusableRoot, match="others may change"):
            Store(str(home / "root"))
        Store(str(home / "root"), trusted=[12345])

    @pytest.mark.parametrize(
        ("owner", "group", "refused"),
        [("root", "nogroup", True), ("root", "root", False), ("root", "daemon", False), ("daemon", "daemon", False)],
    )
    def test_one_that_a_group_may_change(self, tmp_path: Path, owner: str, group: str, refused: bool) -> None:
        """A user's own group, with nobody else in it, is as good as the user; here daemon is one who is trusted."""
        shared = tmp_path / "shared"
        shared.mkdir()
        shutil.chown(shared, owner, group)
        shared.chmod(0o775)
        trusted = [pwd.getpwnam("daemon").pw_uid]
        if not refused:
            Store(str(shared / "root"), trusted=trusted)
            return
        with pytest.raises(UnusableRoot, match="others may change"):
            Store(str(shared / "root"), trusted=trusted)
        assert everything(shared) == []

    def test_symlinks_of_our_own(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "link").symlink_to("disk/../disk")
        Store(str(tmp_path / "link" / "root"))
        assert (tmp_path / "disk" / "root" / "version").exists()

    def test_symlinks_in_a_circle(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("link")
        with pytest.raises((UnusableRoot, OSError)):
            Store(str(tmp_path / "link"))


def test_a_killed_creation_is_completed(store_root: Path) -> None:
    """At whatever step it was killed, the next process makes of it a store that works."""
    for steps in killed_at_every_step("store = Store(ROOT)", store_root):
        store = Store(str(store_root), durable=False)
        assert put_blob(store, b"data") in store.blobs, steps
        assert list(store.images) == [], steps
        subprocess.run(["rm", "-r", store_root], check=True)


def test_two_processes_make_one_store(tmp_path: Path) -> None:
    """One makes it between the other's finding none and its making it: both have the same store."""
    program = """
import sys
from store import Store
first = True
def other(event, arguments):
    global first
    if event == "os.mkdir" and first:
        first = False
        Store(sys.argv[1]).images
sys.addaudithook(other)
Store(sys.argv[1])
"""
    root = tmp_path / "root"
    done = subprocess.run([sys.executable, "-c", program, str(root)], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(Store(str(root)).images) == []


class TestProblems:
    """Of the store's own files and directories."""

    @pytest.mark.parametrize(
        ("damage", "problems"),
        [
            ("chmod 1700 ROOT/blobs/sha256", [("blobs/sha256", "its mode is 1700 instead of 0700")]),
            ("rmdir ROOT/staging", [("staging", "it is not there")]),
            ("rm -r ROOT/variants", [("variants", "it is not there"), ("variants/sha256", "it is not there")]),
            ("rm ROOT/oci-layout", [("oci-layout", "it is not there")]),
            ("> ROOT/oci-layout", [("oci-layout", "it is damaged")]),
            (
                """echo '{"imageLayoutVersion": "2.0.0"}' > ROOT/oci-layout""",
                [("oci-layout", "it is of another version")],
            ),
            ("rmdir ROOT/leases", []),  # older programs did not make it
        ],
    )
    def test_are_found_and_mended(self, store: Store, damage: str, problems: list[tuple[str, str]]) -> None:
        digest = put_blob(store, b"x")
        subprocess.run(damage.replace("ROOT", store.root), shell=True, check=True)
        assert list(store.problems()) == problems
        store.mend()
        assert list(store.problems()) == []
        assert list(store.blobs) == [digest]


def test_a_reserve_that_somebody_was_killed_at(tmp_path: Path) -> None:
    """It is there and holds no room; whoever has it next makes it whole."""
    store = Store(str(tmp_path / "root"))
    reserve = tmp_path / "root" / "reserve"
    store.reserve.keep()
    whole = reserve.stat().st_blocks
    reserve.write_bytes(b"")
    store.reserve.keep()
    assert reserve.stat().st_blocks == whole > 0


class TestPublish:
    def test_visible_only_then(self, store: Store) -> None:
        """Neither by name nor in a listing, however complete it is."""
        blob = b"data"
        digest, diff_id = Digest.of(blob), Digest.of(b"tree")
        staging = store.layers.stage(diff_id)
        with store.blobs.ingest(digest, len(blob)) as ingest:
            os.write(ingest.fileno(), blob)
            assert digest not in store.blobs
            assert diff_id not in store.layers
            assert [*store.blobs, *store.layers] == []
            store.publish([ingest], [staging])
        assert list(store.blobs) == [digest]
        assert list(store.layers) == [diff_id]
        assert store.blobs.read(digest) == blob

    def test_nothing_to_publish(self, store: Store) -> None:
        before = everything(Path(store.root))
        store.publish([], [])
        assert everything(Path(store.root)) == before

    @pytest.mark.parametrize("durable", [True, False])
    def test_flushes_first_if_durable(self, store_root: Path, durable: bool) -> None:
        """One flush of the file system before the first name appears, the directory's after; or none of it."""
        program = """
import ctypes, sys
from store import Store
from tests.store.rig import put_layer
store, seen = Store(sys.argv[1], durable=sys.argv[2] == "True"), []
def hook(event, arguments):
    if event == "ctypes.dlsym" and arguments[1] == "syncfs":
        seen.append("flush")
    elif event == "os.rename" and "/layers/" in arguments[1]:
        seen.append("rename")
    elif event == "open" and str(arguments[0]).endswith("/layers/sha256"):
        seen.append("directory")
sys.addaudithook(hook)
put_layer(store, "x")
print(*seen)
"""
        command = [sys.executable, "-c", program, str(store_root), str(durable)]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == ("flush rename directory" if durable else "rename")

    def test_killed_at_any_step(self, store_root: Path) -> None:
        """What is visible is whole, no record names what is missing, and the next attempt succeeds."""
        program = """
store = Store(ROOT)
put_blob(store, b"data")
put_layer(store, "name")
with store.shared():
    store.images.put(image_record("example.org/a:1"))
"""
        Store(str(store_root))
        for steps in killed_at_every_step(program, store_root):
            store = Store(str(store_root), durable=False)
            for digest in store.blobs:
                store.blobs.read(digest)
            for diff_id in store.layers:
                assert store.layers.info(diff_id).diff_id == diff_id, steps
                assert Path(store.layers.files(diff_id), "name", "name").read_text() == "name", steps
            if store.images.get("example.org/a:1"):
                assert (len(list(store.blobs)), len(list(store.layers))) == (1, 1), steps
            clean(store.root)
            assert everything(store_root / "staging") == [], steps
            put_blob(store, b"data")
            if not list(store.layers):
                put_layer(store, "name")
            subprocess.run(["rm", "-r", store_root], check=True)
            Store(str(store_root), durable=False)


class TestUse:
    def test_many_rely_on_it(self, store: Store) -> None:
        """Sharing hinders nobody but whoever wants to remove."""
        remover = Lock(os.path.join(store.root, "use.lock"))
        with store.shared(), store.shared():
            assert not remover.try_acquire()
        with store.exclusive():
            assert not remover.try_acquire(shared=True)
        assert remover.try_acquire()
        remover.release()

    def test_removal_waits(self, store: Store) -> None:
        """`exclusive` begins when the last who relied on the store has ended."""
        order = []

        def remove() -> None:
            with store.exclusive():
                order.append("removed")

        remover = threading.Thread(target=remove)
        with store.shared():
            remover.start()
            until(lambda: is_waited_for(Path(store.root) / "use.lock"), "nobody waits")
            order.append("used")
        remover.join(timeout=10)
        assert order == ["used", "removed"]

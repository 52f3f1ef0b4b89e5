"""`pullpipe cp`: copies out of containers and into them."""

from __future__ import annotations

import io
import os
import re
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT, Cli, require
from tests.runner.rig import BASE, emptied, error, filled, out
from tests.support.images import Dir, Entry, File, Hardlink, Image, Layer, Symlink, write_layout
from tests.support.mounts import tmpfs
from tests.support.processes import until
from tests.support.tree import difference, snapshot

pytestmark = pytest.mark.needs_root

TREE: list[Entry] = [
    Dir("d", uid=1000, gid=1000, mtime_ns=10**18 + 5),
    File("d/f", b"content", uid=1000, gid=1001, mode=0o640, mtime_ns=10**18 + 1),
    File("d/setuid", b"", mode=0o4755),
    Dir("d/below"),
    Symlink("d/below/up", "../f"),
    Symlink("d/away", "/etc/passwd"),
    Symlink("to-d", "/d"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store for all of these tests; each leaves it without containers."""
    require("busybox")
    return filled(tmp_path_factory.mktemp("shared"), Layer(TREE))


@pytest.fixture
def store_root(shared: Path) -> Iterator[Path]:
    yield shared
    emptied(shared)


@pytest.fixture(params=["running", "ended"])
def container(request: pytest.FixtureRequest, cli: Cli) -> str:
    """`c`, with the tree in it."""
    if request.param == "running":
        out(cli("run", "-d", "--name", "c", "test", "sleep", "10000"))
    else:
        out(cli("run", "--name", "c", "test", "true"))
    return "c"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """An empty directory of the host's."""
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


BELOW = {"f", "setuid", "below", "below/up", "away"}


def test_a_file_out(container: str, cli: Cli, there: Path) -> None:
    """Under its own name, or a new one, or in place of another; it is ours, with its mode and time."""
    for target, made in ((there, "f"), (there / "new", "new"), (there / "new", "new")):
        out(cli("cp", "c:/d/f", target))
        assert (there / made).read_text() == "content"
    status = (there / "f").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, 0o640)
    assert status.st_mtime_ns == 10**18 + 1
    assert names(there) == {"f", "new"}


def test_a_directory_out(container: str, cli: Cli, there: Path) -> None:
    """Docker's rules: into a directory, or as a new one; with /. only what is in it."""
    out(cli("cp", "c:/d", there))
    assert names(there) == {"d", *(f"d/{name}" for name in BELOW)}
    out(cli("cp", "c:d", there / "new"))
    assert names(there / "new") == BELOW
    assert difference(snapshot(there / "d"), snapshot(there / "new")) == []
    assert (there / "d").stat().st_mtime_ns == 10**18 + 5
    (there / "old").mkdir()
    out(cli("cp", "c:/d/.", there / "old"))
    assert names(there / "old") == BELOW
    assert os.readlink(there / "d/away") == "/etc/passwd"
    assert stat.S_IMODE((there / "d/setuid").stat().st_mode) == 0o755  # it would be our setuid program


def test_owners(container: str, cli: Cli, there: Path) -> None:
    """With -a they are kept, and setuid bits."""
    out(cli("cp", "-a", "c:/d", there))
    status = (there / "d/f").stat()
    assert (status.st_uid, status.st_gid) == (1000, 1001)
    assert stat.S_IMODE((there / "d/setuid").stat().st_mode) == 0o4755
    out(cli("cp", there / "d", "c:/roots"))
    out(cli("cp", "-a", there / "d", "c:/kept"))
    for name in ("roots", "kept"):
        out(cli("cp", "-a", f"c:/{name}", there))
    assert (there / "roots/f").stat().st_uid == 0
    assert (there / "kept/f").stat().st_uid == 1000


def test_symlinks(container: str, cli: Cli, there: Path) -> None:
    """Themselves, or with -L what they lead to in the container; on the way there they are followed."""
    out(cli("cp", "c:/d/away", there))
    assert os.readlink(there / "away") == "/etc/passwd"
    out(cli("cp", "-L", "c:/d/away", there / "followed"))
    assert (there / "followed").read_text() != Path("/etc/passwd").read_text()
    out(cli("cp", "c:/to-d/below/../f", there))
    assert (there / "f").read_text() == "content"
    out(cli("cp", "c:/to-d/", there / "dir"))
    assert names(there / "dir") == BELOW


def test_in(container: str, cli: Cli, store_root: Path, there: Path) -> None:
    """The same rules the other way; all becomes root's."""
    (there / "f").write_text("mine")
    os.chown(there / "f", 1000, 1000)
    (there / "d/below").mkdir(parents=True)
    (there / "d/below/g").write_text("deep")
    copies = (
        (there / "f", "c:/", "/f"),
        (there / "f", "c:/d", "/d/f"),
        (there / "f", "c:/to-d/below/h", "/d/below/h"),
        (there / "d", "c:/", "/d/below/g"),
        (there / "d", "c:/new", "/new/below/g"),
        (f"{there}/d/.", "c:/tmp", "/tmp/below/g"),
    )
    for source, target, _ in copies:
        out(cli("cp", source, target))
    with tarfile.open(fileobj=io.BytesIO(tar_of(store_root, "/"))) as archive:
        for *_, made in copies:
            member = archive.getmember(f".{made}")
            assert (member.uid, member.gid, member.isfile()) == (0, 0, True)
            content = archive.extractfile(member)
            assert content is not None
            assert content.read() == (b"deep" if made.endswith("g") else b"mine")
        found = archive.getnames()
    assert {"./proc", "./sys", "./dev"} <= set(found)
    assert not [name for name in found if name.startswith(("./proc/", "./sys/", "./dev/"))]


def tar_of(root: Path, path: str) -> bytes:
    """`cp CONTAINER:PATH -`."""
    command = [sys.executable, "-m", "pullpipe", "--root", str(root), "cp", f"c:{path}", "-"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_archives(container: str, cli: Cli, store_root: Path, there: Path) -> None:
    """- is one: out with owners, in with owners; directories that it does not have are made."""
    with tarfile.open(fileobj=io.BytesIO(tar_of(store_root, "/d"))) as archive:
        members = {member.name: member for member in archive.getmembers()}
    assert members.keys() == {"d", *(f"d/{name}" for name in BELOW)}
    assert (members["d/f"].uid, members["d/f"].gid, members["d/f"].mode) == (1000, 1001, 0o640)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("to-d/deep/x")  # by way of a symlink in the container
        info.uid, info.size = 33, 4
        archive.addfile(info, io.BytesIO(b"tarx"))
    command = [sys.executable, "-m", "pullpipe", "--root", str(store_root), "cp", "-", "c:/"]
    done = subprocess.run(command, cwd=PROJECT, input=buffer.getvalue(), capture_output=True)
    assert done.returncode == 0, done.stderr
    out(cli("cp", "-a", "c:/d/deep", there))
    assert ((there / "deep/x").read_text(), (there / "deep/x").stat().st_uid) == ("tarx", 33)
    done = subprocess.run(command, cwd=PROJECT, input=b"no archive" * 100, capture_output=True)
    assert done.returncode == 1
    assert b"error: at byte 0 of the archive" in done.stderr


def take(root: Path, archive: bytes) -> subprocess.CompletedProcess[str]:
    """`cp - c:/tmp`, of this archive."""
    command = [sys.executable, "-m", "pullpipe", "--root", str(root), "cp", "-", "c:/tmp"]
    done = subprocess.run(command, cwd=PROJECT, input=archive, capture_output=True)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_what_fails_midway(container: str, cli: Cli, store_root: Path, there: Path) -> None:
    """A file is there when it is whole, and the one that it takes the place of until then."""
    content = os.urandom(3000)
    layer = Layer([File("old", content), File("new", content)]).tar
    out(take(store_root, Layer([File("old", b"old")]).tar))
    error(take(store_root, layer[: 512 + 1488]), 1)
    out(cli("cp", "c:/tmp", there))
    assert {path.name: path.read_bytes() for path in (there / "tmp").iterdir()} == {"old": b"old"}
    error(take(store_root, layer[: 512 + 3072 + 512 + 1488]), 1)
    out(cli("cp", "c:/tmp/.", there))
    assert {path.name: path.read_bytes() for path in there.iterdir() if path.is_file()} == {"old": content}


@pytest.mark.parametrize("container", ["running"], indirect=True)
def test_where_there_is_no_room(container: str, cli: Cli, there: Path) -> None:
    """The file is named as the user knows it, nothing of it stays, and the store is not to blame."""
    with tmpfs(there, "size=64k"):
        line = error(cli("cp", "c:/bin/busybox", there / "copy"), 1)
        assert line == "pullpipe: error: cannot use copy: no space left on device; free some space\n"
        assert names(there) == set()


def test_hard_links(container: str, store_root: Path, cli: Cli, there: Path) -> None:
    """To what the archive has, to what is there already, to themselves; never to a directory."""
    out(take(store_root, Layer([File("a", b"a"), Hardlink("b", "a"), Hardlink("b", "a"), Hardlink("a", "a")]).tar))
    out(take(store_root, Layer([Hardlink("c", "b")]).tar))
    out(cli("cp", "c:/tmp", there))
    assert {path.name: path.read_text() for path in (there / "tmp").iterdir()} == {"a": "a", "b": "a", "c": "a"}
    for target in ("/", ".", "a/.."):
        assert "hard link" in error(take(store_root, Layer([Hardlink("a", target)]).tar), 1)


REFUSED = [
    ("c:/nope", "OUT", "there is no /nope in the container"),
    ("c:/d/f/x", "OUT", "no directory"),
    ("c:/dev/null", "OUT", "null is a device or a socket"),
    ("/dev/null", "c:/", "null is a device or a socket"),
    ("c:/d/f/", "OUT", "no directory"),
    ("c:/d/f", "OUT/no/where", "make it first"),
    ("c:/d/f", "OUT/nope/", "make it first"),
    ("c:/d", "OUT/file", "is a file"),
    ("OUT/nope", "c:/", "there is no"),
    ("OUT/file", "c:/no/where", "there is no /no in the container"),
    ("OUT/file", "c:/nope/", "make it first"),
    ("OUT", "c:/d/f", "is a file"),
    ("OUT/dir/d", "c:/", "a directory of that name"),
    ("c:/d", "c:/e", "one of the two"),
    ("OUT/file", "OUT", "one of the two"),
    ("nope:/d", "OUT", "no container 'nope'"),
]


@pytest.mark.parametrize("container", ["running"], indirect=True)
def test_refused(container: str, cli: Cli, there: Path) -> None:
    """One line, and nothing is made."""
    (there / "file").touch()
    (there / "dir").mkdir()
    (there / "dir/d").touch()
    for source, target, why in REFUSED:
        done = cli("cp", source.replace("OUT", str(there)), target.replace("OUT", str(there)))
        assert why in error(done, 1), (source, target)
    assert names(there) == {"file", "dir", "dir/d"}
    assert out(cli("diff", "c")) == ""


# Attacks.


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host that is neither read nor changed."""
    directory = tmp_path / "victim"
    directory.mkdir()
    (directory / "secret").write_text("precious")
    yield directory
    assert {path.name: path.read_text() for path in directory.iterdir()} == {"secret": "precious"}


def hostile(cli: Cli, script: str, *options: str) -> None:
    out(cli("run", "-d", "--name", "c", *options, "test", "sh", "-c", script))


def test_symlinks_to_the_host(cli: Cli, victim: Path, there: Path) -> None:
    """Absolute or by .., they lead into the container; /proc's own lead nowhere."""
    hostile(cli, f"ln -s {victim} /a; ln -s ../../../../{victim} /b; ln -s /proc/1/root /p; echo up; sleep 1000")
    until(lambda: "up" in cli("logs", "c").stdout, "it does not begin")
    for way in ("/a", "/b", "/p/a", f"/p{victim}", f"/../..{victim}", f"/proc/self/root{victim}"):
        line = error(cli("cp", f"c:{way}/secret", there), 1)
        assert "there is no" in line or "cannot be reached" in line
        error(cli("cp", "/etc/hostname", f"c:{way}/secret"), 1)
    assert names(there) == set()


@pytest.mark.parametrize("way", ["out", "in"])
def test_a_race(way: str, cli: Cli, victim: Path, there: Path) -> None:
    """CVE-2018-15664: a directory on the way becomes a symlink to the host's, and back, while it is copied."""
    script = f"""
        mkdir -p /t/real; echo harmless > /t/real/secret; ln -s {victim} /t/link
        while :; do mv /t/real /t/x; mv /t/link /t/real; mv /t/real /t/link; mv /t/x /t/real; done
    """
    hostile(cli, script)
    for number in range(4):
        if way == "out":
            cli("cp", "c:/t", there / str(number))
            cli("cp", "c:/t/real/secret", there)
        else:
            cli("cp", "/etc/hostname", "c:/t/real/secret")
    for path in there.rglob("secret"):
        assert path.is_symlink() or path.read_text() != "precious"


def test_what_is_planted_for_us(cli: Cli, there: Path) -> None:
    """Neither setuid programs nor devices get to the host, whoever copies them."""
    hostile(cli, "mkdir /t; cp /bin/busybox /t/su; chmod 4777 /t/su; mknod /t/disk b 8 0; mkfifo /t/p; sleep 1000")
    until(lambda: "A /t/p" in cli("diff", "c").stdout, "it does not begin")
    out(cli("cp", "c:/t", there))
    assert names(there) == {"t", "t/su", "t/p"}
    assert not (there / "t/su").stat().st_mode & 0o7000


def test_handed_over(cli: Cli, there: Path) -> None:
    """The first process of a container of runc's is runc, whose root is the machine's: nothing is copied by that."""
    runc = require("runc")
    out(cli("run", "-d", "--name", "c", "--runtime", runc, "test", "sleep", "1000"))
    assert "handed over" in error(cli("cp", "c:/etc/passwd", there), 1)
    assert "handed over" in error(cli("cp", "/etc/hostname", f"c:{there}/x"), 1)
    assert names(there) == set()


def test_libraries_of_the_container(cli: Cli, store_root: Path, there: Path) -> None:
    """CVE-2019-14271: a name service of the container's own is never asked, nor any other code of it loaded."""
    entries = [
        File("etc/nsswitch.conf", b"passwd: evil\ngroup: evil\n"),
        *(File(f"{place}/libnss_evil.so.2", b"\x7fELF evil") for place in ("lib", "usr/lib", "lib64")),
        *(
            File(f"{directory.lstrip('/')}/tarfile.py", b"evil")
            for directory in sys.path
            if directory.startswith("/usr")
        ),
        File("owned", uid=4711, gid=4711),
    ]
    write_layout(there.parent / "layout", {"t": Image([*BASE, Layer(entries)])})
    out(cli("load", "-q", "--durability=none", "-t", "evil", there.parent / "layout"))
    out(cli("run", "-d", "--name", "c", "evil", "sleep", "1000"))
    trace = there.parent / "trace"
    command = [sys.executable, "-m", "pullpipe", "--root", str(store_root), "cp", "c:/owned", str(there)]
    done = subprocess.run(
        [require("strace"), "-f", "-e", "trace=open,openat,setns", "-o", trace, *command], cwd=PROJECT
    )
    assert done.returncode == 0
    before, joined, after = trace.read_text().partition("setns(")
    assert "openat(" in before
    assert joined
    assert not re.search(r"evil|nsswitch|/etc/passwd|/etc/group|\.so|\.py", after)

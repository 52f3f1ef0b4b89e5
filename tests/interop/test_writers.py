"""Archives that real programs write, unpacked by the worker that a pull uses: the tree that they were made from.

What a format cannot hold (long names in v7, attributes in GNU's) is not in the tree that it is given, so that the
comparison leaves nothing out.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os
import random
import stat
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import pytest
import zstandard

from tests.conftest import require
from tests.pipe.unpacked import Jail, Unpacked
from tests.support.tree import difference, snapshot

pytestmark = pytest.mark.needs_root

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep, as setcap writes it
HOLE = 32 << 10  # bytes from one piece of data to the next in the sparse file
PIECES = 60  # more than an old GNU header and two extension blocks hold


@dataclass(frozen=True, kw_only=True)
class Keeps:
    """What a format can hold."""

    names: int = 4000  # bytes of a path
    targets: int = 4000  # bytes of a link's target
    any_bytes: bool = True  # names that are not UTF-8
    specials: bool = True  # fifos and devices
    owner: int = 70_000  # the largest
    fraction: int = 0  # nanoseconds of a time
    negative: bool = False  # times before 1970
    xattrs: bool = False
    links: bool = True  # hard ones


def plant(root: Path, keeps: Keeps) -> None:
    """A tree with a bit of everything that `keeps` allows."""
    top = os.fsencode(root)
    os.mkdir(top)
    times: dict[bytes, int] = {}

    def at(path: bytes) -> bytes:
        times[path] = (1_600_000_000 + len(times)) * 10**9 + keeps.fraction
        return top + b"/" + path

    def directory(path: bytes, mode: int = 0o755, owner: int = 0) -> None:
        os.mkdir(at(path))
        os.chown(top + b"/" + path, owner, owner)
        os.chmod(top + b"/" + path, mode)

    def file(path: bytes, data: bytes = b"", mode: int = 0o644, owner: int = 0) -> None:
        with open(at(path), "wb") as target:
            target.write(data)
        os.chown(top + b"/" + path, owner, owner)
        os.chmod(top + b"/" + path, mode)

    directory(b"dir", 0o1777)
    directory(b"dir/private", 0o700, 1000)
    directory(b"dir/nobody", 0o000)
    directory(b"dir/group", 0o2775, 50)
    directory(b"empty")
    file(b"dir/empty")
    file(b"dir/block", bytes(range(256)) * 2)
    file(b"dir/large", random.Random(1).randbytes(300_001), 0o640, 33)
    file(b"setuid", b"#!", 0o4755)
    file(b"setgid", b"#!", 0o2711, 7)
    file(b"nothing-allowed", b"secret", 0o000, keeps.owner)
    file(b"dir/private/deep", b"deep")
    file(b"dir/nobody/in", b"x")
    file("ünïcödé ⛵".encode(), b"utf-8")
    file(b"new\nline", b"x")
    file(b" spaces and = signs \\ 'quotes'\t", b"x")
    file(b"-dash", b"x")
    file(b"..dots..", b"x")
    if keeps.any_bytes:
        file(b"latin-1 caf\xe9 \xff\x80", b"x")
    if keeps.links:
        os.link(top + b"/dir/large", at(b"hard"))
        os.link(top + b"/dir/large", at(b"dir/private/hard-too"))
        times[b"hard"] = times[b"dir/private/hard-too"] = times[b"dir/large"]
    for name, target in (
        (b"link", b"dir/block"),
        (b"dir/up", b"../setuid"),
        (b"absolute", b"/etc/passwd"),
        (b"dangling", b"no/where"),
    ):
        os.symlink(target, at(name))
        os.chown(top + b"/" + name, 5, 6, follow_symlinks=False)
    if keeps.specials:
        os.mkfifo(at(b"fifo"), 0o600)
        os.mknod(at(b"null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(at(b"disk"), stat.S_IFBLK | 0o640, os.makedev(259, 65537))
        os.chmod(top + b"/null", 0o666)
        os.chown(top + b"/disk", 0, 6)
    for length in (97, 99, 100, 101, 155, 240, 254, 256, 300, 1000, 3900):
        path = _long(length)
        if length > keeps.names:
            break
        for depth in range(1, path.count(b"/") + 1):
            parent = b"/".join(path.split(b"/")[:depth])
            if parent not in times:
                directory(parent)
        file(path, b"%d" % length)
        if length <= keeps.targets:
            os.symlink(path, at(b"to-%d" % length))
        if length <= keeps.targets and keeps.links:
            os.link(top + b"/" + path, at(b"z-%d" % length))
            times[b"z-%d" % length] = times[path]
    with open(at(b"sparse"), "wb") as sparse:
        sparse.truncate(PIECES * HOLE + 12345)
        for number in range(1, PIECES):
            os.pwrite(sparse.fileno(), bytes([number]) * 4096, number * HOLE)
    if keeps.xattrs:
        _attributes(top)
    if keeps.negative:
        times[b"empty"] = -86_400 * 10**9 + keeps.fraction
    times[b"setuid"] = 0
    for path in sorted(times, reverse=True):
        os.utime(top + b"/" + path, ns=(times[path], times[path]), follow_symlinks=False)
    os.chmod(top, 0o711)
    os.utime(top, (1_500_000_000, 1_500_000_000))


def _attributes(top: bytes) -> None:
    for name in (b"", b"/dir", b"/dir/large"):
        os.setxattr(top + name, b"user.text", b"some text")
    os.setxattr(top + b"/dir/block", b"user.binary", b"\0\xff=\n\0")
    os.setxattr(top + b"/dir/block", b"user.long", bytes(range(256)) * 8)
    os.setxattr(top + b"/setuid", b"security.capability", CAPABILITY)
    os.setxattr(top + b"/dir", b"trusted.note", b"only root sees it")


def _long(length: int) -> bytes:
    """A path of that many bytes: directories of 48, and a name that says how many."""
    path = (b"directory-with-a-name-of-forty-eight-bytes-------/" * 90)[:length]
    name = b"%d" % length
    path = path[: length - len(name) - 1].rstrip(b"/")
    return path + b"x" * (length - len(name) - 1 - len(path)) + b"/" + name


def run(*command: str | bytes | Path, cwd: Path | None = None, **env: str) -> bytes:
    """Its output. Whatever the machine's language, names are bytes."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", **env}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode(errors="backslashreplace")
    return done.stdout


def comes_back(jail: Jail, source: Path, archive: bytes) -> Unpacked:
    """The archive unpacks to the tree that it was made from, in every attribute."""
    assert archive
    done = jail.unpack_blob(archive, archive)
    assert difference(snapshot(source), done.tree) == []
    assert done.result.warnings == []
    return done


def is_sparse(path: Path) -> bool:
    status = path.stat()
    return status.st_blocks * 512 < status.st_size // 2


V7 = Keeps(names=97, targets=97, specials=False)
USTAR = Keeps(names=245, targets=97)
GNU = Keeps(negative=True, owner=3_000_000_000)
PAX = Keeps(negative=True, owner=3_000_000_000, fraction=123_456_789)
ATTRIBUTES = Keeps(negative=True, owner=3_000_000_000, fraction=123_456_789, xattrs=True)

GNU_TAR: dict[str, tuple[Keeps, list[str]]] = {
    "v7": (V7, ["--format=v7"]),
    "oldgnu": (GNU, ["--format=oldgnu"]),
    "gnu": (GNU, ["--format=gnu"]),
    "ustar": (USTAR, ["--format=ustar"]),
    "posix": (PAX, ["--format=posix"]),
    "gnu, sparse": (GNU, ["--format=gnu", "--sparse"]),
    "oldgnu, sparse": (GNU, ["--format=oldgnu", "--sparse"]),
    "posix, sparse 0.0": (PAX, ["--format=posix", "--sparse-version=0.0", "--sparse"]),
    "posix, sparse 0.1": (PAX, ["--format=posix", "--sparse-version=0.1", "--sparse"]),
    "posix, sparse 1.0": (PAX, ["--format=posix", "--sparse-version=1.0", "--sparse"]),
    "raw holes": (PAX, ["--format=posix", "--sparse", "--hole-detection=raw"]),
    "xattrs": (ATTRIBUTES, ["--format=posix", "--xattrs", "--xattrs-include=*"]),
    "xattrs, sparse": (ATTRIBUTES, ["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse"]),
    "incremental, gnu": (GNU, ["--format=gnu", "--listed-incremental=SNAPSHOT"]),
    "incremental, posix": (PAX, ["--format=posix", "--listed-incremental=SNAPSHOT"]),
    "numeric owners": (PAX, ["--format=posix", "--numeric-owner"]),
    "label, gnu": (GNU, ["--format=gnu", "--label=the volume's label"]),
    "label, posix": (PAX, ["--format=posix", "--label=the volume's label"]),
    "a volume of several": (GNU, ["--format=gnu", "--multi-volume", "--tape-length=1G", "--label=one"]),
    "hard links as files": (Keeps(links=False), ["--format=gnu", "--hard-dereference"]),
    "small records": (GNU, ["--format=gnu", "--blocking-factor=1"]),
    "a global header": (PAX, ["--format=posix", "--pax-option=comment=all are alike"]),
    "all times in records": (PAX, ["--format=posix", "--pax-option=exthdr.name=%d/PaxHeaders/%f,atime:={2001-01-01}"]),
    "sorted": (PAX, ["--format=posix", "--sort=name"]),
    "seekless, checkpoints": (GNU, ["--format=gnu", "--no-seek", "--totals"]),
}


@pytest.mark.parametrize("case", GNU_TAR)
def test_gnu_tar(case: str, jail: Jail, tmp_path: Path) -> None:
    """In each of its formats, and with the options that change what it writes."""
    keeps, options = GNU_TAR[case]
    source = tmp_path / "source"
    plant(source, keeps)
    options = [option.replace("SNAPSHOT", str(tmp_path / "snapshot")) for option in options]
    run(require("tar"), "--create", f"--file={tmp_path / 'archive'}", *options, "--directory", source, ".")
    done = comes_back(jail, source, (tmp_path / "archive").read_bytes())
    if "--sparse" in options:
        assert is_sparse(done.root / "sparse"), "its holes have been filled"


def test_gnu_tar_appended(jail: Jail, tmp_path: Path) -> None:
    """`--append` and `--concatenate` leave an archive that still is one; the last of several entries wins."""
    tar, archive, source = require("tar"), tmp_path / "archive", tmp_path / "source"
    source.mkdir()
    (source / "one").write_bytes(b"old")
    run(tar, "--create", f"--file={archive}", "--directory", source, ".")
    (source / "one").write_bytes(b"newer")
    (source / "two").write_bytes(b"two")
    run(tar, "--append", f"--file={archive}", "--directory", source, "one", "two", ".")
    (source / "three").write_bytes(b"three")
    os.utime(source, (1_500_000_000, 1_500_000_000))
    run(tar, "--create", f"--file={archive}2", "--directory", source, ".")
    run(tar, "--concatenate", f"--file={archive}", f"{archive}2")
    for path in (source, *source.iterdir()):  # its default format has whole seconds
        os.utime(path, (int(path.stat().st_mtime), int(path.stat().st_mtime)))
    comes_back(jail, source, archive.read_bytes())


BSDTAR = {
    # It writes a time before 1970 as its two parts, -86400 and .25 as "-86400.25".
    "pax": replace(ATTRIBUTES, negative=False),
    "ustar": USTAR,
    "v7": V7,
    "gnutar": Keeps(owner=3_000_000_000),
}


@pytest.mark.parametrize("form", BSDTAR)
def test_bsdtar(form: str, jail: Jail, tmp_path: Path) -> None:
    """libarchive's; in pax it writes sparse files by itself, and attributes in two forms."""
    source = tmp_path / "source"
    plant(source, BSDTAR[form])
    archive = tmp_path / "archive"
    command = [require("bsdtar"), "-c", "-f", str(archive), "--format", form, "-C", str(source), "."]
    done = subprocess.run(command, env={**os.environ, "LC_ALL": "C.UTF-8"}, capture_output=True)
    # It says that a name is not UTF-8, and writes it all the same.
    assert all(b"translate" in line for line in done.stderr.splitlines()), done.stderr
    unpacked = comes_back(jail, source, archive.read_bytes())
    if form == "pax":
        assert is_sparse(unpacked.root / "sparse")


@pytest.mark.parametrize(
    ("form", "keeps"),
    [
        (tarfile.USTAR_FORMAT, USTAR),
        (tarfile.GNU_FORMAT, GNU),
        (tarfile.PAX_FORMAT, Keeps(negative=True, owner=3_000_000_000, fraction=500_000_000)),
    ],
    ids=["ustar", "gnu", "pax"],
)
def test_tarfile(form: int, keeps: Keeps, jail: Jail, tmp_path: Path) -> None:
    """Python's own; its times are floating point numbers."""
    source = tmp_path / "source"
    plant(source, keeps)
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        archive.add(source, ".")
    comes_back(jail, source, buffer.getvalue())


def test_busybox(jail: Jail, tmp_path: Path) -> None:
    """Its tar writes ustar with GNU's long names."""
    source = tmp_path / "source"
    plant(source, Keeps())
    run(require("busybox"), "tar", "-c", "-f", tmp_path / "archive", "-C", source, ".")
    comes_back(jail, source, (tmp_path / "archive").read_bytes())


@pytest.mark.parametrize(("form", "keeps"), [("ustar", USTAR), ("tar", V7)], ids=["ustar", "tar"])
def test_pax(form: str, keeps: Keeps, jail: Jail, tmp_path: Path) -> None:
    """BSD's: ustar, and what came before."""
    source = tmp_path / "source"
    plant(source, keeps)
    run(require("pax"), "-w", "-x", form, "-f", tmp_path / "archive", ".", cwd=source)
    comes_back(jail, source, (tmp_path / "archive").read_bytes())


def _layer(layout: Path) -> tuple[bytes, bytes]:
    """The only layer of the layout's only image, and its archive."""

    def document(digest: str) -> bytes:
        return (layout / "blobs" / digest.replace(":", "/")).read_bytes()

    [manifest] = json.loads((layout / "index.json").read_bytes())["manifests"]
    [layer] = json.loads(document(manifest["digest"]))["layers"]
    blob = document(layer["digest"])
    return blob, gzip.decompress(blob) if blob.startswith(b"\x1f\x8b") else blob


def test_umoci(jail: Jail, tmp_path: Path) -> None:
    """Go's archive/tar, as `umoci insert` uses it: whole seconds, attributes in PAX records."""
    umoci, source, layout = require("umoci"), tmp_path / "source", tmp_path / "layout"
    plant(source, Keeps(negative=True, owner=3_000_000_000, xattrs=True))
    os.removexattr(source / "dir", "trusted.note")  # it leaves those out
    run(umoci, "init", "--layout", layout)
    run(umoci, "new", "--image", f"{layout}:t")
    run(umoci, "insert", "--image", f"{layout}:t", source, "/")
    blob, archive = _layer(layout)
    assert difference(snapshot(source), jail.unpack_blob(blob, archive).tree) == []


def test_buildah(jail: Jail, tmp_path: Path) -> None:
    """Go's archive/tar, as containers/storage uses it, and Docker the same code."""
    source, layout = tmp_path / "source", tmp_path / "layout"
    plant(source, Keeps(owner=3_000_000_000, xattrs=True))
    os.removexattr(source / "dir", "trusted.note")
    storage = ["--root", str(tmp_path / "storage"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]
    buildah = functools.partial(run, require("buildah"), *storage)
    container = buildah("from", "scratch").decode().strip()
    try:
        mounted = buildah("mount", container).decode().strip()
        run("cp", "--archive", "--no-target-directory", source, mounted)
        buildah("commit", "--quiet", container, f"oci:{layout}:t")
    finally:
        buildah("umount", container)
        buildah("rm", container)
    blob, archive = _layer(layout)
    expected, found = snapshot(source), jail.unpack_blob(blob, archive).tree
    del expected[b"."], found[b"."]  # it describes the root in no layer
    assert difference(expected, found) == []


# Compressors.


def _filter(command: Sequence[str], data: bytes) -> bytes:
    return subprocess.run([require(command[0]), *command[1:]], input=data, stdout=subprocess.PIPE, check=True).stdout


COMPRESSORS: dict[str, list[str]] = {
    "gzip -1": ["gzip", "-1"],
    "gzip -9": ["gzip", "-9"],
    "pigz": ["pigz", "-p", "4"],
    "pigz, independent blocks": ["pigz", "-p", "4", "-i"],
    "igzip": ["igzip", "-3", "-c"],
    "bgzip": ["bgzip", "-c"],
    "zstd -1": ["zstd", "-1"],
    "zstd -19": ["zstd", "-19", "-T4"],
    "zstd, no checksum": ["zstd", "--no-check"],
    "zstd, threads": ["zstd", "-3", "-T4", "-B1M"],
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Some megabytes by GNU tar: enough for many blocks and threads."""
    source = tmp_path_factory.mktemp("archive") / "source"
    plant(source, PAX)
    (source / "text").write_bytes(b"".join(b"%d lines\n" % number for number in range(80_000)))
    (source / "noise").write_bytes(random.Random(2).randbytes(1 << 20))
    return run(require("tar"), "--create", "--format=posix", "--directory", source, ".")


@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressors(name: str, archive: bytes, jail: Jail) -> None:
    """The worker's digest of the stream is the archive's, and the last entry is there."""
    blob = _filter(COMPRESSORS[name], archive)
    if name == "bgzip":
        assert blob.count(b"\x1f\x8b\x08\x04") > 20, "one member for each 64 KiB"
    tree = jail.unpack_blob(blob, archive).tree
    assert len(tree) > 50
    assert (tree[b"text"].size, tree[b"noise"].size) == (948_890, 1 << 20)


def test_pzstd(archive: bytes, jail: Jail) -> None:
    """Many frames, each behind a skippable one that gives its size."""
    blob = _filter(["pzstd", "-1", "-p", "8", "-c"], archive)
    assert blob.count(b"\x28\xb5\x2f\xfd") > 1
    assert blob[:4] == b"\x50\x2a\x4d\x18"
    assert b"noise" in jail.unpack_blob(blob, archive).tree


def test_zstd_long(tmp_path: Path, jail: Jail) -> None:
    """`--long=27`: a window of 128 MiB, and a match that needs most of it."""
    noise = random.Random(3).randbytes(1 << 20)
    source = tmp_path / "source"
    source.mkdir()
    for name, data in (("1", noise), ("2", bytes(100 << 20)), ("3", noise)):
        (source / name).write_bytes(data)
    archive = run(require("tar"), "--create", "--directory", source, "1", "2", "3")
    blob = _filter(["zstd", "-1", "--long=27"], archive)
    assert zstandard.get_frame_parameters(blob).window_size == 1 << 27
    assert len(blob) < 3 << 19, "the noise is there once"
    tree = jail.unpack_blob(blob, archive).tree
    assert tree[b"3"].sha256 == hashlib.sha256(noise).hexdigest()

"""`pullpipe unpack`: an image's tree in a plain directory. What it is like, the tests of mount and pull prove."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.rig import fails, file_layer, layers_of, layout_of, ok
from tests.conftest import PROJECT, Cli
from tests.support.images import Dir, Layer, Whiteout
from tests.support.tree import snapshot

pytestmark = pytest.mark.needs_root


def test_into_a_new_directory(cli: Cli, image: str, tmp_path: Path) -> None:
    """Made with its parents; its path is the result."""
    target = tmp_path / "a" / "b"
    done = cli("unpack", image, target)
    assert (done.returncode, done.stdout) == (0, f"{target}\n")
    assert "pulled and unpacked" in done.stderr
    assert snapshot(target).keys() == {b".", b"lower", b"upper"}


def test_into_an_empty_directory(cli: Cli, image: str, tmp_path: Path) -> None:
    """Quietly."""
    (tmp_path / "empty").mkdir()
    done = cli("unpack", "--quiet", image, tmp_path / "empty")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "empty" / "upper").read_text() == "upper"


def test_not_into_a_full_one(cli: Cli, image: str, tmp_path: Path) -> None:
    """Nothing in it is touched."""
    target = tmp_path / "full"
    target.mkdir()
    (target / "lower").write_text("mine")
    before = snapshot(target)
    assert "not empty" in fails(cli, "unpack", image, target)
    assert snapshot(target) == before


def test_not_over_a_file(cli: Cli, image: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    fails(cli, "unpack", image, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_no_such_image(cli: Cli, tmp_path: Path) -> None:
    """Nothing is made."""
    assert "pullpipe pull" in fails(cli, "unpack", "other", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_blobs_that_were_not_kept(cli: Cli, layout: Path, tmp_path: Path) -> None:
    """It unpacks the blobs: without them it says so, before it makes anything."""
    ok(cli, "load", "-q", "--discard-blobs", "-t", "a:1", layout)
    assert "not kept" in fails(cli, "unpack", "a:1", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_damaged_blob(cli: Cli, image: str, layout: Path, store_root: Path, tmp_path: Path) -> None:
    """Every byte is proven again: an error that names the blob."""
    digest = layers_of(layout)[0]["digest"]
    path = store_root / "blobs" / digest.replace(":", "/")
    data = bytearray(path.read_bytes())
    data[5] ^= 1  # in the gzip header's time: what it inflates to stays the same
    path.chmod(0o600)
    path.write_bytes(data)
    assert digest in fails(cli, "unpack", "-q", image, tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("command", ["unpack", "bundle"])
@pytest.mark.parametrize("there", [False, True])
def test_what_fails_in_the_middle(cli: Cli, store_root: Path, tmp_path: Path, command: str, there: bool) -> None:
    """Nothing of it stays, so that the same command can be tried again; and the image is not blamed."""
    layers = file_layer("small"), file_layer("large", bytes(9 << 20))
    ok(cli, "load", "-q", "-t", "a:1", layout_of(tmp_path / "layout", *layers))
    target = tmp_path / "target"
    if there:
        target.mkdir()
    words = [sys.executable, "-m", "pullpipe", "--root", str(store_root), command, "-q", "a:1", str(target)]
    limited = ["prlimit", f"--fsize={8 << 20}", *words]
    done = subprocess.run(limited, cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"pullpipe: error: .*: file too large; .*\n", done.stderr)
    assert list(target.iterdir()) == [] if there else not target.exists()
    ok(cli, command, "-q", "a:1", target)


def test_whiteouts_touch_nothing_outside(cli: Cli, tmp_path: Path) -> None:
    """In a plain directory a whiteout deletes: only ever inside of it."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").touch()
    layers = [
        Layer([Dir("victim"), *file_layer("victim/file").entries]),
        Layer([Whiteout("../victim/file"), Whiteout("../../victim")]),
    ]
    ok(cli, "load", "-q", "-t", "a:1", layout_of(tmp_path / "layout", *layers))
    ok(cli, "unpack", "-q", "a:1", tmp_path / "target")
    assert (tmp_path / "victim" / "file").exists()
    assert b"victim" not in snapshot(tmp_path / "target")

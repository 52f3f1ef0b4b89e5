"""An image to look into, of three layers that add, change, hide and empty, and another one that shares two of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pullpipe.cli import main
from tests.conftest import PROJECT
from tests.support.images import Dir, File, Hardlink, Image, Layer, Opaque, Symlink, Whiteout, write_layout

IMAGE = "docker.io/library/looked:1"
OTHER = "docker.io/library/other:1"
HOUR = 3600 * 10**9

BASE = Layer(
    [
        Dir("etc", mtime_ns=HOUR),
        File("etc/passwd", b"root\n", mtime_ns=HOUR),
        File("etc/old", b"old", mtime_ns=HOUR),
        Dir("srv/cache", mode=0o700, uid=33, gid=34, mtime_ns=HOUR),
        File("srv/cache/a", b"aa", mtime_ns=HOUR),
        Dir("usr/bin", mtime_ns=HOUR),
        File("usr/bin/tool", b"#!", 0o4755, mtime_ns=HOUR),
        Hardlink("usr/bin/too", "usr/bin/tool"),
        Symlink("bin", "usr/bin", mtime_ns=HOUR),
    ]
)
MIDDLE = Layer(
    [
        File("etc/passwd", b"root\nuser\n", mtime_ns=HOUR),
        Whiteout("etc/old"),
        Opaque("srv/cache"),
        File("srv/cache/b", b"b", 0o600, uid=33, mtime_ns=HOUR),
    ],
    "zstd",
)
TOP = Layer([File("app/run", b"run", 0o755, mtime_ns=2 * HOUR), Symlink("app/up", "../../etc/passwd")], None)

Load = Callable[..., str]


@pytest.fixture(scope="session")
def _library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with both, which nothing changes: what is looked at stays as it is."""
    directory = tmp_path_factory.mktemp("library")
    images = {IMAGE: [BASE, MIDDLE, TOP], OTHER: [BASE, MIDDLE, Layer([File("other", b"other")])]}
    for number, (name, layers) in enumerate(images.items()):
        load_into(directory / "root", directory / f"layout{number}", name, Image(layers, {"Cmd": ["/app/run"]}))
    return directory / "root"


def load_into(root: Path, layout: Path, name: str, image: Image) -> str:
    """Has the image in the store by this name, which is returned in full."""
    write_layout(layout, {"t": image})
    command = [sys.executable, "-m", "pullpipe", "--root", str(root), "load", "-q", "--durability=none", "-t", name]
    return subprocess.run(
        [*command, str(layout)], check=True, cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


@pytest.fixture
def store_root(_library: Path) -> Path:
    """That store, for all tests; which may put images of their own into it."""
    return _library


@pytest.fixture
def looked() -> str:
    """The image's reference."""
    return IMAGE


@pytest.fixture
def other() -> str:
    """The other one's, that has the lower two layers and one of its own."""
    return OTHER


@pytest.fixture
def load(store_root: Path, tmp_path: Path) -> Load:
    """A function that has an image of these layers in the store, by this name."""
    return lambda name, *layers: load_into(store_root, tmp_path / name, name, Image(layers))


class See:
    """`pullpipe` in this process: for commands that only look, and of which many are wanted."""

    def __init__(self, root: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        self._root = root
        self._captured = capfdbinary

    def __call__(self, *words: str) -> str:
        """What it prints."""
        return self.raw(*words).decode()

    def raw(self, *words: str) -> bytes:
        """The same, of a command that prints what is no text."""
        code, out, err = self._run(*words)
        assert (code, err) == (0, b""), err
        return out

    def json(self, *words: str) -> Any:
        """What it prints with --format json."""
        return json.loads(self(*words, "--format", "json"))

    def failing(self, *words: str, code: int = 1) -> str:
        """The one line that it fails with."""
        found, out, err = self._run(*words)
        assert (found, out, err.count(b"\n")) == (code, b"", 1)
        assert err.startswith(b"pullpipe: error: ")
        return err.decode()

    def _run(self, *words: str) -> tuple[int, bytes, bytes]:
        self._captured.readouterr()
        code = main(["--root", str(self._root), *words])
        return code, *self._captured.readouterr()


@pytest.fixture
def see(store_root: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> See:
    return See(store_root, capfdbinary)

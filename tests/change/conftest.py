"""An image to change, called `base:1`, of two layers; and the layout that it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.rig import layout_of, ok
from tests.conftest import Cli
from tests.support.images import Dir, File, Image, Layer, Symlink

BASE = Layer(
    [
        Dir("etc", mtime_ns=10**9),
        File("etc/motd", b"hello\n", mtime_ns=10**9),
        File("etc/old", b"old", uid=7, mtime_ns=10**9),
        Dir("srv/cache", mode=0o711, mtime_ns=10**9),
        File("srv/cache/a", b"a"),
        Dir("srv/gone"),
        File("srv/gone/b", b"b"),
    ]
)
TOP = Layer([File("etc/top", b"top"), Symlink("srv/link", "cache")])


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """The image as an OCI layout."""
    return layout_of(tmp_path / "layout", base=Image([BASE, TOP], {"Cmd": ["/bin/sh"], "Env": ["A=1", "B=2"]}))


@pytest.fixture
def base(cli: Cli, layout: Path) -> str:
    """Its name in the store."""
    ok(cli, "load", "--quiet", "--durability=none", "-t", "base:1", layout)
    return "base:1"

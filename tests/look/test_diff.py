"""`pullpipe diff`, of images and of layers. That it tells all there is, `tests/pipe/test_differential` checks."""

from __future__ import annotations

import pytest

from tests.look.conftest import HOUR, IMAGE, OTHER, Load, See
from tests.support.images import Device, Dir, Entry, File, Layer, Opaque, Symlink, Whiteout

pytestmark = pytest.mark.needs_root


def test_layers(see: See) -> None:
    """What each does to those below it."""
    assert see("diff", f"{IMAGE}#1").splitlines()[:4] == ["A /bin", "A /etc/", "A /etc/old", "A /etc/passwd"]
    assert see("diff", f"{IMAGE}#2").splitlines() == [
        "D /etc/old",
        "C /etc/passwd  (content)",
        "D /srv/cache/a",
        "A /srv/cache/b",
    ]
    assert see("diff", f"{IMAGE}#3").splitlines() == ["A /app/", "A /app/run", "A /app/up"]


def test_images(see: See) -> None:
    """From one to the other, and back; what is in a deleted directory is not told."""
    assert see("diff", IMAGE, OTHER).splitlines() == ["D /app/", "A /other"]
    assert see("diff", OTHER, IMAGE).splitlines() == ["A /app/", "A /app/run", "A /app/up", "D /other"]
    assert see("diff", IMAGE, IMAGE) == ""


def test_what_has_changed(see: See, load: Load) -> None:
    """Every attribute; what a layer says again is no change."""
    names = ("content", "mode", "owner", "time", "same", "attributes", "size")
    lower: list[Entry] = [
        *(File(name, b"12", mtime_ns=HOUR) for name in names),
        Symlink("target", "a"),
        Device("device", 1, 3),
        Dir("directory"),
        File("directory/f"),
        File("file"),
    ]
    upper: list[Entry] = [
        File("content", b"21", mtime_ns=HOUR),
        File("mode", b"12", 0o600, mtime_ns=HOUR),
        File("owner", b"12", gid=1, mtime_ns=HOUR),
        File("time", b"12", mtime_ns=HOUR + 1),
        File("same", b"12", mtime_ns=HOUR),
        File("attributes", b"12", mtime_ns=HOUR, xattrs={"user.a": b"1"}),
        File("size", b"123", 0o600, mtime_ns=HOUR),
        Symlink("target", "b"),
        Device("device", 1, 5),
        File("directory"),
        Dir("file", mode=0o644),
        File("file/f"),
    ]
    load("changed", Layer(lower), Layer(upper))
    assert see("diff", "changed#2").splitlines() == [
        "C /attributes  (attributes)",
        "C /content  (content)",
        "C /device  (device)",
        "C /directory  (type, mode)",
        "C /file/  (type)",
        "A /file/f",
        "C /mode  (mode)",
        "C /owner  (owner)",
        "C /size  (content, mode)",
        "C /target  (target)",
        "C /time  (time)",
    ]


def test_root(see: See, load: Load) -> None:
    load("root", Layer([File("f")]), Layer([Dir(".", mode=0o700), Opaque("")]))
    assert see("diff", "root#2").splitlines() == ["C /  (mode)", "D /f"]


def test_json(see: See) -> None:
    gone, changed, *_ = see.json("diff", f"{IMAGE}#2")
    assert (gone["kind"], gone["path"], gone["after"], gone["before"]["layer"]) == ("D", "/etc/old", None, 1)
    assert (changed["kind"], changed["what"]) == ("C", ["content"])
    assert (changed["before"]["size"], changed["after"]["size"], changed["after"]["layer"]) == (5, 10, 2)


def test_nothing_to_hide(see: See, load: Load) -> None:
    """A whiteout of what is not there changes nothing; an opaque directory is one, in any case."""
    load("vain", Layer([File("a")]), Layer([Whiteout("b"), Opaque("c")]))
    assert see("diff", "vain#2").splitlines() == ["A /c/"]


def test_usage(see: See) -> None:
    assert f"{IMAGE}#1" in see.failing("diff", IMAGE)
    assert "leave #1 away" in see.failing("diff", f"{IMAGE}#1", OTHER)
    assert "leave #2 away" in see.failing("diff", IMAGE, f"{OTHER}#2")
    assert "has no layer 9" in see.failing("diff", f"{IMAGE}#9")

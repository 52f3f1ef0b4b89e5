"""`pullpipe ls` and `pullpipe cat`: an image's tree, one layer alone, and names that were chosen to do harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.look.conftest import IMAGE, Load, See
from tests.support.images import Device, Dir, Fifo, File, Hardlink, Layer, Opaque, Symlink, Whiteout

pytestmark = pytest.mark.needs_root

STACKED = """\
  - drwxr-xr-x 0/0           0 1970-01-01 00:00 ./
  3 drwxr-xr-x 0/0           0 1970-01-01 00:00 app/
  3 -rwxr-xr-x 0/0           3 1970-01-01 02:00 app/run
  3 lrwxrwxrwx 0/0           0 1970-01-01 00:00 app/up -> ../../etc/passwd
  1 lrwxrwxrwx 0/0           0 1970-01-01 01:00 bin -> usr/bin
  1 drwxr-xr-x 0/0           0 1970-01-01 01:00 etc/
  2 -rw-r--r-- 0/0          10 1970-01-01 01:00 etc/passwd
  1 drwxr-xr-x 0/0           0 1970-01-01 00:00 srv/
  1 drwx------ 33/34         0 1970-01-01 01:00 srv/cache/
  2 -rw------- 33/0          1 1970-01-01 01:00 srv/cache/b
  1 drwxr-xr-x 0/0           0 1970-01-01 00:00 usr/
  1 drwxr-xr-x 0/0           0 1970-01-01 01:00 usr/bin/
  1 -rwsr-xr-x 0/0           2 1970-01-01 01:00 usr/bin/too
  1 hrwsr-xr-x 0/0           2 1970-01-01 01:00 usr/bin/tool link to usr/bin/too
"""

# As `tar --list --verbose` has the archive: what it does not describe is not there.
ALONE = """\
whiteout                                    etc/old
-rw-r--r-- 0/0          10 1970-01-01 01:00 etc/passwd
opaque                                      srv/cache/
-rw------- 33/0          1 1970-01-01 01:00 srv/cache/b
"""


def test_stacked(see: See) -> None:
    """Each file with the layer that it comes from, a directory with the one that describes it."""
    assert see("ls", IMAGE) == STACKED


def test_one_layer(see: See) -> None:
    assert see("ls", "looked:1#2") == ALONE
    assert see("ls", "looked:1#2", "etc") == "".join(ALONE.splitlines(keepends=True)[:2])


def test_a_part(see: See) -> None:
    """A path, with symlinks on its way or at its end."""
    tool = "  1 -rwsr-xr-x 0/0           2 1970-01-01 01:00 usr/bin/tool\n"
    for path in ("usr/bin/tool", "/usr/bin/tool", "bin/tool", "/srv/../bin/./tool", "app/../../bin/tool"):
        assert see("ls", IMAGE, path) == tool
    assert see("ls", IMAGE, "bin") == STACKED.splitlines(keepends=True)[4]
    assert see("ls", IMAGE, "bin/", "--depth", "0").endswith(" usr/bin/\n")
    top = [line.split()[-1] for line in see("ls", IMAGE, "--depth", "1").splitlines() if "->" not in line]
    assert top == ["./", "app/", "etc/", "srv/", "usr/"]


def test_json(see: See) -> None:
    found = {entry["path"]: entry for entry in see.json("ls", IMAGE)}
    assert found["/usr/bin/tool"] == {
        "path": "/usr/bin/tool",
        "type": "file",
        "mode": "4755",
        "uid": 0,
        "gid": 0,
        "size": 2,
        "mtime": "1970-01-01T01:00:00Z",
        "target": None,
        "device": None,
        "opaque": False,
        "layer": 1,
        "link": "/usr/bin/too",
    }
    assert (found["/bin"]["type"], found["/bin"]["target"]) == ("symlink", "usr/bin")
    alone = {entry["path"]: entry for entry in see.json("ls", f"{IMAGE}#2")}
    assert alone.keys() == {"/etc/old", "/etc/passwd", "/srv/cache", "/srv/cache/b"}
    assert (alone["/etc/old"]["type"], alone["/srv/cache"]["opaque"]) == ("whiteout", True)


def test_all_kinds(see: See, load: Load) -> None:
    """Devices, pipes, the root of an image, one that hides all below it, a layer that occurs twice."""
    kinds = Layer([Dir("."), Device("dev/null", 1, 3, mode=0o666), Device("dev/sda", 8, 0, "block"), Fifo("run/pipe")])
    load("kinds", Layer([File("gone")]), Layer([Opaque(""), File("x", mtime_ns=10**18 + 5)]), kinds, Layer([]))
    lines = see("ls", "kinds").splitlines()
    assert lines[0] == "  3 drwxr-xr-x 0/0           0 1970-01-01 00:00 ./"
    assert lines[2].startswith("  3 crw-rw-rw- 0/0         1,3 ")
    assert lines[3].startswith("  3 brw------- 0/0         8,0 ")
    assert lines[5].startswith("  3 prw-r--r-- 0/0           0 ")
    assert lines[6] == "  2 -rw-r--r-- 0/0           0 2001-09-09 01:46 x"
    assert len(lines) == 7
    assert see("ls", "kinds#2").splitlines()[0].split() == ["opaque", "./"]
    assert see("ls", "kinds#4") == ""
    [null] = see.json("ls", "kinds", "dev/null")
    assert (null["type"], null["device"]) == ("character device", "1,3")
    assert see.json("ls", "kinds", "x")[0]["mtime"] == "2001-09-09T01:46:40.000000005Z"


def test_a_layer_that_takes_its_parents(see: See, load: Load) -> None:
    """It is shown as what it comes to on top of them, and its files are its own."""
    load(
        "variant", Layer([File("usr/lib/a"), Symlink("lib", "usr/lib")]), Layer([File("lib/b"), Hardlink("c", "lib/a")])
    )
    layers = {entry["path"]: entry["layer"] for entry in see.json("ls", "variant")}
    assert (layers["/usr/lib/b"], layers["/usr/lib"], layers["/c"]) == (2, 1, 2)
    assert "usr/lib/b" in see("ls", "variant#2")
    assert see("diff", "variant#2").splitlines() == ["A /c", "A /usr/lib/b"]


def test_names_that_would_do_harm(see: See, load: Load) -> None:
    """They reach no terminal as they are, and JSON keeps them."""
    evil = ["esc\x1b[2J", "new\nline", "back\\slash", "tab\t", "bidi\u202e"]
    raw = b"not\xffutf8"
    load("evil", Layer([*(File(name) for name in evil), File(raw), Symlink("link", "to\x1b]0;x\x07"), File("ü")]))
    text = see("ls", "evil")
    assert not {"\x1b", "\t", "\u202e", "\x07"} & set(text)
    assert text.count("\n") == 1 + len(evil) + 3
    for shown in (r"esc\x1b[2J", r"new\nline", "back\\slash", r"bidi\u202e", r"not\udcffutf8", r"to\x1b]0;x\x07", "ü"):
        assert shown in text
    names = {entry["path"] for entry in see.json("ls", "evil")}
    assert {f"/{name}" for name in evil} <= names
    assert "/not\udcffutf8" in names
    assert r"esc\x1b[2J" in see("diff", "evil#1")
    assert r"no\x1bthing" in see.failing("ls", "evil", "no\x1bthing")


def test_cat(see: See, load: Load, tmp_path: Path) -> None:
    """Bytes as they are; symlinks lead nowhere but into the image, however they try."""
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    data = bytes(range(256)) * 5000
    tricks = [Symlink("out", f"{'../' * 40}{str(secret)[1:]}"), Symlink("absolute", str(secret)), Symlink("up", "..")]
    load("cats", Layer([File("data", data), *tricks, Symlink("loop", "loop"), Fifo("fifo"), Device("null", 1, 3)]))
    assert see.raw("cat", "cats", "data") == data
    assert see.raw("cat", "cats", "/up/up/up/data", "up/data") == data * 2
    for path in ("out", "absolute", f"up/{'../' * 40}{str(secret)[1:]}"):
        assert "has no" in see.failing("cat", "cats", path)
    assert "too many symlinks" in see.failing("cat", "cats", "loop")
    for path in ("fifo", "null"):
        assert "is no regular file" in see.failing("cat", "cats", path)
    assert "is a directory" in see.failing("cat", "cats", "data", "/")
    assert see("cat", "looked:1", "app/up") == "root\nuser\n"
    assert see("cat", "looked:1#1", "etc/passwd") == "root\n"
    assert "has no 'app/up', because '/' has no 'etc'" in see.failing("cat", "looked:1#3", "app/up")
    assert "is no regular file" in see.failing("cat", "looked:1#2", "etc/old")


def test_what_is_not_there(see: See) -> None:
    assert "looked:1 has no 'etc/old'" in see.failing("ls", IMAGE, "etc/old")
    assert "because '/etc/passwd' is not a directory" in see.failing("ls", IMAGE, "etc/passwd/x")
    assert "its 3 layers are #1 to #3" in see.failing("ls", f"{IMAGE}#4")
    for wrong in ("", "x", "0", "-1", "1#1", "1" * 5000):
        assert "names no layer" in see.failing("ls", f"{IMAGE}#{wrong}")
    assert "pullpipe pull" in see.failing("ls", "nothing#1")


def test_deeper_than_a_path_can_name(see: See, load: Load) -> None:
    """Tar can, and so can whoever opens directories one by one."""
    name = "d" * 200
    load("deep", Layer([File("/".join([name] * 30) + "/end", b"end")]), Layer([Whiteout("no")]))
    assert see.json("ls", "deep")[-1]["path"] == "/" + "/".join([name] * 30) + "/end"
    assert see("cat", "deep", "/".join([name] * 30) + "/end") == "end"


def test_a_reader_that_has_seen_enough(cli: Cli, looked: str) -> None:
    """As a program of its own."""
    done = cli("ls", looked)
    assert (done.returncode, done.stdout) == (0, STACKED)

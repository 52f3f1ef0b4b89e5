"""`pullpipe explain`: what it prints is executed as it stands, and comes to what pullpipe itself makes of the image."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.rig import mounted_tree, ok
from tests.conftest import Cli, require
from tests.look.conftest import HOUR, Load, See, load_into
from tests.support.images import (
    Device,
    Dir,
    Fifo,
    File,
    Hardlink,
    Image,
    Layer,
    Opaque,
    Symlink,
    Whiteout,
    host_shell_layers,
    write_layout,
)
from tests.support.registry import Registry
from tests.support.tokens import TokenServer
from tests.support.tree import Snapshot, difference, snapshot

pytestmark = pytest.mark.needs_root

ODD = ["it's", "new\nline", "\x1b[2J", "$(touch /tmp/pwned)", "a b", "ü", "INSIDE", "back\\slash", "-n"]

LAYERS = [
    Layer(
        [
            Dir("etc", mtime_ns=HOUR),
            File("etc/shadow", b"secret", 0o640, gid=42, mtime_ns=HOUR),
            Dir("srv/cache", mode=0o2700, uid=33, gid=34, mtime_ns=HOUR),
            File("srv/cache/a", b"a"),
            File("srv/gone", b"gone"),
            Dir("srv/empty", mtime_ns=HOUR),
            File("srv/empty/x"),
            Dir("usr/lib,1", mtime_ns=HOUR),
            File("usr/lib,1/a", b"linked", 0o4755, uid=7, mtime_ns=HOUR, xattrs={"user.a": b"1"}),
            Symlink("l.b", "usr/lib,1"),
            Device("dev.d/null", 1, 3),
            Fifo("pipe", uid=5),
        ],
        "zstd",
    ),
    Layer(
        [
            Whiteout("srv/gone"),
            Whiteout("srv/nothing"),
            Opaque("srv/cache"),
            File("srv/cache/b", b"b", uid=33),
            Opaque("srv/empty"),
            File("etc/new", b"new"),
            *(File(f"odd/{name}") for name in ODD),
            *(Dir(f"odder/{name}/d") for name in ODD),
        ]
    ),
    Layer([File("l.b/c", b"c"), Hardlink("l.b/d", "usr/lib,1/a"), Hardlink("e", "l.b/a"), Whiteout("no/such")], None),
    Layer([*(Whiteout(f"odd/{name}") for name in ODD), Dir("srv", mode=0o711), Dir(".", mode=0o751, mtime_ns=HOUR)]),
]
CONFIG = {
    "Cmd": ["sh", "-c", 'id; pwd; env | sort; hostname; grep Cap /proc/self/status; echo $$ "$@"', "sh", *ODD],
    "Env": ["PATH=/bin", "-S=touch /tmp/pwned", *(f"ODD{number}={text}" for number, text in enumerate(ODD))],
    "WorkingDir": "/srv/made here",
}


def executed(text: str, directory: Path, stdin: str = "") -> str:
    """What the script prints, run by bash in the directory; it has nothing to complain of."""
    directory.mkdir(exist_ok=True)
    (directory / "steps").write_text(text)
    done = subprocess.run(["bash", "steps"], cwd=directory, input=stdin, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def stacked(text: str, directory: Path) -> Snapshot:
    """The tree, mounted once more by the script's own words."""
    [mount] = re.findall(r"^ *mount -t overlay .*$", text, re.MULTILINE)
    subprocess.run(["sh", "-c", mount], cwd=directory, check=True)
    try:
        return snapshot(directory / "root")
    finally:
        subprocess.run(["umount", directory / "root"], check=True)


@contextmanager
def _with_tokens(directory: Path) -> Iterator[Registry]:
    with (
        TokenServer(directory / "tokens", {"user": "password"}) as tokens,
        Registry(directory / "registry", tokens=tokens) as running,
    ):
        yield running


def test_the_same_tree_and_the_same_words(cli: Cli, tmp_path: Path) -> None:
    """From a registry that wants tokens, by way of an index; with everything that layers do to each other."""
    for tool in ("curl", "setfattr", "zstd", "docker-registry", "skopeo"):
        require(tool)
    layout = tmp_path / "layout"
    other = Image([Layer([File("f")])], platform="linux/s390x")
    write_layout(layout, {"t": [other, Image([*host_shell_layers(), *LAYERS], CONFIG)]})
    with _with_tokens(tmp_path) as registry:
        reference = registry.push(layout, "t", to="public/it:1")
        ok(cli, "pull", "--quiet", "--durability=none", reference)
        text = ok(cli, "explain", reference)
        assert "\x1b" not in text
        out = executed(text, tmp_path)
    assert out.endswith(ok(cli, "run", "--rm", "--hostname", "pod", reference) + "\n")
    by_hand = stacked(text, tmp_path / "it")
    assert by_hand.pop(b"srv/made here").type == "directory"
    lines = difference(mounted_tree(cli, reference, tmp_path / "m"), by_hand)
    assert [line for line in lines if not line.startswith("srv: mtime")] == []  # that one was made in it
    assert not Path("/tmp/pwned").exists()


def test_run_explain(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    """The options of `run` count; a layer that hides all below it, a user, and standard input."""
    top = Layer([Opaque(""), Dir(".", mode=0o755), *host_shell_layers()[0].entries, Dir("home/me", uid=1000, gid=50)])
    account = File("etc/passwd", b"me:x:1000:50::/home/me:/bin/sh\n")
    image = Image([Layer([File("hidden")]), top, Layer([account])], {"User": "me", "WorkingDir": "/home/me"})
    write_layout(tmp_path / "layout", {"t": image})
    reference = registry.push(tmp_path / "layout", "t", to="explain/user:1", format="v2s2")
    words = [
        "-e",
        "A=b c",
        "--hostname",
        "named",
        reference,
        "sh",
        "-c",
        "id -u; id -g; pwd; hostname; env | sort; ls /; grep Cap /proc/self/status; cat",
    ]
    text = ok(cli, "run", "--explain", "--rm", *words)
    assert ok(cli, "ps", "-q") == ""
    assert "Left out" not in text
    for option, named in (("--read-only", "mounts"), ("-m64m", "limits"), ("-t", "a terminal"), ("-d", "background")):
        assert named in left_out(ok(cli, "run", "--explain", option, reference, "sh"))
    assert left_out(ok(cli, "run", "--explain", "--cpus=1", "-dt", reference, "sh")).count(",") == 2
    out = executed(text, tmp_path / "first", "said")
    assert out.endswith(ok(cli, "run", "-i", "--rm", *words, stdin="said"))
    tree = mounted_tree(cli, reference, tmp_path / "m")
    assert difference(tree, stacked(text, tmp_path / "first/user")) == []
    assert b"hidden" not in tree


def left_out(text: str) -> str:
    """What a script says that it does not show."""
    [line] = [line for line in text.splitlines() if line.startswith("# Left out is what else was asked for: ")]
    return line


def test_an_image_of_no_layers(see: See, load: Load) -> None:
    """Even that can be shown."""
    load("none")
    text = see("explain", "none", "cmd")
    assert "lowerdir=0," in text
    assert "mkdir upper work root 0" in text


@pytest.mark.parametrize(
    ("entry", "config", "why"),
    [
        (Symlink("proc", "/etc"), {}, "/proc is not a directory"),
        (File("dev"), {}, "/dev is not a directory"),
        (File("f"), {"User": "nobody"}, "no user 'nobody'"),
        (File("f"), {"WorkingDir": "/f/x"}, "'/f' is not a directory"),
    ],
)
def test_what_would_not_run(
    see: See, store_root: Path, tmp_path: Path, entry: File | Symlink, config: dict[str, str], why: str
) -> None:
    """As `run` refuses it."""
    load_into(store_root, tmp_path / "layout", "refused", Image([Layer([entry])], config))
    assert why in see.failing("explain", "refused", "cmd", code=125 if "User" in config else 1)


def test_usage(see: See, looked: str) -> None:
    assert "pullpipe pull" in see.failing("explain", "nothing")
    assert "leave #1 away" in see.failing("explain", f"{looked}#1")

"""The halves of LAYERS.md's lines that speak of being without the machine's root: as root of a user namespace.

That namespace has one owner, 0:0. What is stacked there can be seen only there, so the tree is looked at there, too.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import PROJECT, Cli, require
from tests.support.images import (
    Device,
    Dir,
    Entry,
    Fifo,
    File,
    Hardlink,
    Image,
    Layer,
    Opaque,
    Symlink,
    Whiteout,
    write_layout,
)

Entries = Sequence[Entry]
Inside = Callable[..., subprocess.CompletedProcess[str]]

_LIST = "find {directory} -mindepth 1 -printf '%P %y %U:%G\\n' | sort"


@pytest.fixture
def inside(tmp_path: Path, store_root: Path) -> Inside:
    """A function that writes an image of these layers and runs shell commands on it in a new user namespace.

    In them `pullpipe` stands for the command, and `layout` for the image.
    """
    require("unshare")

    def run(commands: str, *layers: Entries) -> subprocess.CompletedProcess[str]:
        write_layout(tmp_path / "layout", {"t": Image([Layer(layer) for layer in layers])})
        command = shlex.join([sys.executable, "-m", "pullpipe", "--root", str(store_root)])
        script = f'pullpipe() {{ {command} "$@"; }}\nlayout={shlex.quote(str(tmp_path / "layout"))}\n'
        return subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", script + commands],
            cwd=PROJECT,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )

    return run


def stacked(inside: Inside, tmp_path: Path, *layers: Entries) -> dict[str, str]:
    """What overlayfs makes of the layers in the namespace: path → type and owner."""
    target = tmp_path / "mnt"
    target.mkdir()
    done = inside(
        f"pullpipe load --quiet -t test $layout; pullpipe mount test {target}; {_LIST.format(directory=target)}",
        *layers,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")[2:-1]  # behind what load and mount say
    return {path: rest for path, _, rest in (line.partition(" ") for line in lines)}


def test_rule_10_whiteouts_in_the_form_of_userxattr(inside: Inside, tmp_path: Path, store_root: Path) -> None:
    """Devices 0:0, which everybody may make, and `user.overlay.opaque`; both hide in the stack."""
    below: Entries = [File("d/old"), File("gone"), File("keep/gone"), File("keep/f"), File("anew/old")]
    above: Entries = [
        Opaque("d"),
        File("d/new"),
        Whiteout("gone"),
        Whiteout("keep/gone"),
        Whiteout("anew"),
        Dir("anew"),
    ]
    assert stacked(inside, tmp_path, below, above) == {
        "anew": "d 0:0",
        "d": "d 0:0",
        "d/new": "f 0:0",
        "keep": "d 0:0",
        "keep/f": "f 0:0",
    }
    opaque = [path for path in store_root.glob("layers/sha256/*/fs/*") if "user.overlay.opaque" in os.listxattr(path)]
    assert sorted(path.name for path in opaque) == ["anew", "d"]


def test_rule_14_an_opaque_root(inside: Inside, tmp_path: Path) -> None:
    assert stacked(inside, tmp_path, [File("old")], [Opaque(""), File("new")]) == {"new": "f 0:0"}


def test_rule_16_attributes_of_overlayfs_do_not_act(inside: Inside, tmp_path: Path) -> None:
    """Here everybody may set those that steer it."""
    steering = {"user.overlay.opaque": b"y", "user.overlay.redirect": b"/other"}
    seen = stacked(inside, tmp_path, [File("d/old"), File("other/f")], [Dir("d", xattrs=steering), File("d/new")])
    assert [path for path in seen if path.startswith("d/")] == ["d/new", "d/old"]


def test_rule_20_layers_that_need_their_parents(inside: Inside, tmp_path: Path) -> None:
    """They are unpacked on top of a mount that takes the same form."""
    below: Entries = [File("usr/lib/f"), Symlink("lib", "usr/lib"), File("gone/f")]
    above: Entries = [File("lib/g"), Hardlink("lib/h", "usr/lib/f"), Whiteout("gone/f")]
    seen = stacked(inside, tmp_path, below, above)
    assert {path: kind[0] for path, kind in seen.items()} == {
        "gone": "d",
        "lib": "l",
        "usr": "d",
        "usr/lib": "d",
        "usr/lib/f": "f",
        "usr/lib/g": "f",
        "usr/lib/h": "f",
    }


def test_rule_24_trusted_attributes_are_one_warning(inside: Inside) -> None:
    """Only the machine's root sets them."""
    files = [File(f"f{number}", xattrs={"trusted.mine": b"1", "user.mine": b"2"}) for number in range(3)]
    done = inside("pullpipe load --progress plain -t test $layout", files)
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "trusted attributes" in line]
    assert warning.endswith("'f0' and 2 more")


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (File("d/f", uid=7), "entry 'd/f' at byte 0 of the layer's archive: .* 7:0;"),
        (Dir("d/f", gid=7), "entry 'd/f/' .* 0:7;"),
        (Fifo("d/f", uid=7, gid=7), "entry 'd/f' .* 7:7;"),
        (Dir(".", uid=7), "entry './' .* 7:0;"),
    ],
)
def test_rule_25_an_owner_that_cannot_be_mapped(entry: Entry, named: str, inside: Inside) -> None:
    """File, owner and remedy in one line, and nothing is kept."""
    done = inside("pullpipe load -t test $layout || pullpipe images --format json", [entry])
    assert (done.returncode, json.loads(done.stdout)) == (0, [])
    (error,) = [line for line in done.stderr.splitlines() if "error:" in line]
    assert re.search(named, error), error
    assert error.endswith("more ids in /etc/subuid and /etc/subgid, or ignore such owners with --ignore-owners")


def test_rule_26_devices_are_skipped(inside: Inside, tmp_path: Path) -> None:
    """With a warning; FIFOs are made."""
    entries: Entries = [Device("null", 1, 3), Device("disk", 8, 0, "block"), Fifo("pipe"), File("f")]
    done = inside("pullpipe load --progress plain -t test $layout", entries)
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "devices" in line]
    assert warning.endswith("'null' and 1 more")
    assert stacked(inside, tmp_path, entries) == {"f": "f 0:0", "pipe": "p 0:0"}


def test_unpacked_into_one_directory(inside: Inside, tmp_path: Path) -> None:
    """The form without overlayfs."""
    target = tmp_path / "flat"
    done = inside(
        f"pullpipe load --quiet -t test $layout; pullpipe unpack test {target}; {_LIST.format(directory=target)}",
        [File("d/old"), Device("null", 1, 3), File("gone")],
        [Opaque("d"), File("d/new"), Whiteout("gone")],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[2:-1] == ["d d 0:0", "d/new f 0:0"]


@pytest.mark.needs_root
def test_a_store_is_of_one_form(inside: Inside, cli: Cli) -> None:
    """Overlayfs would not see what makes a directory opaque, and show files that were deleted."""
    assert inside("pullpipe load --quiet -t test $layout", [File("f")]).returncode == 0
    done = cli("images")
    assert done.returncode == 1
    assert "user namespace" in done.stderr
    assert "--root" in done.stderr

"""`pullpipe tag`, `config`, `squash`, `import` and `export`."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.rig import answer, fails, mounted, mounted_tree, ok
from tests.conftest import Cli, require
from tests.support.images import Device, Dir, File, Image, Layer, Opaque, Symlink, Whiteout, write_layout
from tests.support.tree import difference, snapshot
from tests.torture.calls import Call, supervised
from tests.torture.rig import command

pytestmark = pytest.mark.needs_root


def settings(cli: Cli, name: str) -> dict[str, Any]:
    found: dict[str, Any] = answer(cli, "inspect", name)["config"]["config"]
    return found


def test_tag(cli: Cli, base: str) -> None:
    """The same image under another name, which outlives the first."""
    assert ok(cli, "tag", base, "new:2") == "docker.io/library/new:2"
    digest = answer(cli, "inspect", base)["digest"]
    ok(cli, "rmi", base)
    assert answer(cli, "inspect", "new:2")["digest"] == digest
    ok(cli, "verify", "--quiet")


def test_tag_refused(cli: Cli, base: str) -> None:
    assert "missing:1 is not in the store" in fails(cli, "tag", "missing:1", "new:1")
    assert "by digest" in fails(cli, "tag", base, f"new@sha256:{'0' * 64}")
    assert "invalid" in fails(cli, "tag", base, "New:1")
    assert "leave #1 away" in fails(cli, "tag", f"{base}#1", "new:1")


def test_config(cli: Cli, base: str) -> None:
    """Every setting; and what is not named stays."""
    options = {
        "--env": "C=3=4",
        "--unset-env": "A",
        "--label": "a.b=c",
        "--entrypoint": "/bin/sh -c 'a b'",
        "--cmd": '["x", "y z"]',
        "--workdir": "/srv",
        "--user": "5:6",
        "--stop-signal": "SIGINT",
    }
    words = [word for pair in options.items() for word in pair]
    ok(cli, "config", "--quiet", "-t", "new:1", *words, base)
    assert settings(cli, "new:1") == {
        "Env": ["B=2", "C=3=4"],
        "Labels": {"a.b": "c"},
        "Entrypoint": ["/bin/sh", "-c", "a b"],
        "Cmd": ["x", "y z"],
        "WorkingDir": "/srv",
        "User": "5:6",
        "StopSignal": "SIGINT",
    }
    history = answer(cli, "inspect", "new:1")["config"]["history"]
    assert (len(history), history[-1]["empty_layer"]) == (3, True)
    ok(cli, "config", "--quiet", "--entrypoint=", "--workdir=", "--user=", "--unset-label=a.b", "new:1")
    assert settings(cli, "new:1").keys() == {"Env", "Labels", "Cmd", "StopSignal"}
    assert settings(cli, base) == {"Cmd": ["/bin/sh"], "Env": ["A=1", "B=2"]}


def test_a_layer_of_a_changed_image_is_dropped_rightly(cli: Cli, base: str) -> None:
    """Steps of the history that made no layer are not counted."""
    ok(cli, "config", "--quiet", "--env=C=1", base)
    ok(cli, "layer", "drop", "--quiet", base, "1")
    history = answer(cli, "inspect", base)["config"]["history"]
    assert [entry["created_by"] for entry in history] == ["test layer 1", "pullpipe config"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--env", "A"], "--env A is none"),
        (["--label", "=x"], "--label =x is none"),
        (["--workdir", "srv"], "absolute"),
        (["--cmd", "['x']"], "--cmd ['x'] cannot be read"),
        (["--cmd", "[1]"], "a list of words"),
        (["--entrypoint", "a 'b"], "cannot be read"),
        (["--env", "A=\udcff"], "is not UTF-8"),
        (["--label", "a=\udcff"], "is not UTF-8"),
        (["--message", "\udcff"], "is not UTF-8"),
        (["--env", "A B=1"], "--env 'A B'"),
        (["--user", "a:b:c"], "--user a:b:c is none"),
        (["--stop-signal", "NOSIG"], "no signal 'NOSIG'"),
    ],
)
def test_config_refused(cli: Cli, base: str, words: list[str], why: str) -> None:
    before = answer(cli, "inspect", base)
    assert why in fails(cli, "config", *words, base)
    assert answer(cli, "inspect", base) == before


def test_words_that_only_look_like_json(cli: Cli, base: str) -> None:
    """The shell's test command begins as a list does."""
    for words, meant in (("[ -f x ]", ["[", "-f", "x", "]"]), ('[ "a", "b c"]', ["a", "b c"]), ("[ ]", None)):
        ok(cli, "config", "--quiet", "-t", "new:1", "--replace", "--cmd", words, base)
        assert settings(cli, "new:1").get("Cmd") == meant


def test_an_author_alone(cli: Cli, base: str) -> None:
    """Is a change, too."""
    ok(cli, "config", "--quiet", "--author", "me", "-m", "mine", base)
    config = answer(cli, "inspect", base)["config"]
    assert (config["author"], config["history"][-1]["comment"]) == ("me", "mine")


@dataclass(frozen=True)
class Odd(Image):
    """With a history that is none."""

    history: object = None

    @property
    def config_blob(self) -> bytes:
        return json.dumps({**json.loads(super().config_blob), "history": self.history}).encode()


@pytest.mark.parametrize("history", ["x", [1], {"a": 1}])
@pytest.mark.parametrize("labels", ["a", ["a"]])
def test_an_image_whose_config_is_odd(cli: Cli, tmp_path: Path, history: object, labels: object) -> None:
    """What a pull takes can be changed, too."""
    odd = Odd([Layer([File("a", b"a")]), Layer([File("b", b"b")])], {"Labels": labels}, history=history)
    write_layout(tmp_path / "odd", {"t": odd})
    ok(cli, "load", "--quiet", "-t", "odd:1", tmp_path / "odd")
    ok(cli, "config", "--quiet", "--label", "b=c", "odd:1")
    assert settings(cli, "odd:1")["Labels"] == {"b": "c"}
    (tmp_path / "a.tar").write_bytes(Layer([File("f", b"f")]).tar)
    ok(cli, "layer", "add", "--quiet", "odd:1", tmp_path / "a.tar")
    ok(cli, "layer", "drop", "--quiet", "odd:1", "1")
    assert mounted_tree(cli, "odd:1", tmp_path / "mnt").keys() == {b".", b"b", b"f"}


@pytest.fixture
def layered(cli: Cli, tmp_path: Path) -> str:
    """An image whose layers remove, hide, replace and link."""
    layers = [
        Layer([Dir("a", mode=0o700, uid=3, mtime_ns=5), File("a/x", b"x", uid=3), File("a/y", b"y"), File("z", b"z")]),
        Layer([Whiteout("a/x"), File("b", b"b", xattrs={"user.a": b"\xff"})]),
        Layer([Opaque("a"), File("a/new", b"new", 0o6755), Symlink("z", "b"), Device("null", 1, 3)]),
    ]
    write_layout(tmp_path / "layered", {"t": Image(layers, {"Cmd": ["/b"]})})
    ok(cli, "load", "--quiet", "-t", "layered:1", tmp_path / "layered")
    return "layered:1"


def test_squash(cli: Cli, layered: str, tmp_path: Path) -> None:
    """One layer, the same tree, the same settings."""
    ok(cli, "squash", "--quiet", "-t", "one:1", layered)
    image = answer(cli, "inspect", "one:1")
    assert (len(image["manifest"]["layers"]), len(image["config"]["history"])) == (1, 1)
    assert image["config"]["config"] == {"Cmd": ["/b"]}
    tree = mounted_tree(cli, layered, tmp_path / "mnt")
    assert difference(mounted_tree(cli, "one:1", tmp_path / "mnt"), tree) == []
    assert {b"a/new", b"b", b"z", b"null"} <= tree.keys()


def test_export_and_import(cli: Cli, layered: str, tmp_path: Path) -> None:
    """GNU tar makes the image's tree of it, and an image made of it is the same tree; the bytes are always the same."""
    ok(cli, "export", "--output", tmp_path / "a.tar", layered)
    ok(cli, "export", "--output", tmp_path / "b.tar", layered)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    tree = mounted_tree(cli, layered, tmp_path / "mnt")
    (tmp_path / "tree").mkdir()
    command = ["tar", "-x", "--xattrs", "--xattrs-include=*", "-C", f"{tmp_path}/tree", "-f", f"{tmp_path}/a.tar"]
    subprocess.run(command, check=True)
    assert difference(snapshot(tmp_path / "tree"), tree) == []
    (tmp_path / "a.tgz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    for number, path in enumerate(("a.tar", "a.tgz")):
        ok(cli, "import", "--quiet", "--cmd=/b", "--env=A=1", tmp_path / path, f"imported:{number}")
        assert difference(mounted_tree(cli, f"imported:{number}", tmp_path / "mnt"), tree) == []
        assert settings(cli, f"imported:{number}") == {"Cmd": ["/b"], "Env": ["A=1"]}


def test_export_of_a_container(cli: Cli, layered: str, tmp_path: Path) -> None:
    """With what it has changed."""
    with mounted(cli, layered, tmp_path / "mnt", "--rw"):
        (tmp_path / "mnt" / "written").write_bytes(b"here")
        (tmp_path / "mnt" / "b").unlink()
    [container] = answer(cli, "ps", "--format=json")
    ok(cli, "export", "--output", tmp_path / "c.tar", container["name"])
    listed = subprocess.run(["tar", "-tf", tmp_path / "c.tar"], check=True, capture_output=True, text=True).stdout
    assert "written" in listed.split()
    assert "b" not in listed.split()


@pytest.mark.parametrize("output", [False, True], ids=["squash", "export"])
def test_removed_while_it_is_read(cli: Cli, layered: str, store_root: Path, tmp_path: Path, output: bool) -> None:
    """Between the opening of a directory and the look into it: never a tree that has less, without a word."""
    looked_at: list[str] = []

    def removing(call: Call, _: int) -> int:
        if call.name == "getdents64" and call.path.endswith("/a") and not looked_at:
            looked_at.append(call.path)
            ok(cli, "rmi", layered)
        return 0

    target = tmp_path / "tree.tar"
    words = ["export", "--output", target, layered] if output else ["squash", "--quiet", "-t", "one:1", layered]
    done = supervised(command(store_root, *words), [store_root], removing, reading=True)
    assert looked_at
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(r"pullpipe: error: \S*layered:1 was removed.* while it was read; .*\n", done.said)
    assert not target.exists()
    assert answer(cli, "images", "--format=json") == []
    assert list((store_root / "staging").iterdir()) == []


def test_a_killed_export_leaves_nothing_outside_of_the_store(
    cli: Cli, layered: str, store_root: Path, tmp_path: Path
) -> None:
    """What it leaves there, the next command that cleans removes."""
    (tmp_path / "tmp").mkdir()

    def killing(call: Call, main: int) -> int:
        if call.name == "getdents64" and call.path.endswith("/a"):
            os.kill(main, signal.SIGKILL)
        return 0

    words = command(store_root, "export", "--output", "/dev/null", layered)
    env = {"TMPDIR": f"{tmp_path / 'tmp'}"}
    assert supervised(words, [store_root], killing, reading=True, env=env).code == -signal.SIGKILL
    assert list((tmp_path / "tmp").iterdir()) == []
    assert len(answer(cli, "verify", "--format=json")) == 1
    ok(cli, "prune")
    assert list((store_root / "staging").iterdir()) == []
    assert answer(cli, "verify", "--format=json") == []


def test_import_is_an_image_to_others(cli: Cli, tmp_path: Path) -> None:
    """skopeo inspects it."""
    require("skopeo")
    (tmp_path / "a.tar").write_bytes(Layer([File("f", b"f")]).tar)
    ok(cli, "import", "--quiet", "--platform=linux/arm64/v8", tmp_path / "a.tar", "new:1")
    ok(cli, "save", "--quiet", "--format=oci-dir", "--output", tmp_path / "saved", "new:1")
    command = ["skopeo", "inspect", f"oci:{tmp_path / 'saved'}:docker.io/library/new:1"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert (found["Architecture"], found["Os"], len(found["Layers"])) == ("arm64", "linux", 1)


def test_import_of_a_pipe(cli: Cli, tmp_path: Path) -> None:
    """As <(tar …) is one."""
    os.mkfifo(tmp_path / "pipe")
    writing = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[Layer([File("f", b"f")]).tar])
    writing.start()
    ok(cli, "import", "--quiet", tmp_path / "pipe", "new:1")
    writing.join()
    assert mounted_tree(cli, "new:1", tmp_path / "mnt").keys() == {b".", b"f"}


def test_what_the_other_command_takes(cli: Cli, base: str, tmp_path: Path) -> None:
    """Who imports an image, or loads a root file system, is told what does it."""
    for form in ("docker-archive", "oci-archive"):
        ok(cli, "save", "--quiet", "--format", form, "--output", tmp_path / form, base)
        done = cli("import", tmp_path / form, f"{form}:1")
        assert f"`pullpipe load {tmp_path / form}` takes it" in done.stderr
    ok(cli, "export", "--output", tmp_path / "root.tar", base)
    assert f"`pullpipe import {tmp_path}/root.tar NEW`" in fails(cli, "load", tmp_path / "root.tar")


def test_import_and_export_refused(cli: Cli, layered: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no archive\n" * 100)
    assert f"{tmp_path}/text cannot be a layer: at byte 0" in fails(
        cli, "import", "--quiet", tmp_path / "text", "new:1"
    )
    assert "- is empty" in fails(cli, "import", "--quiet", "-", "new:1")
    assert "is a directory" in fails(cli, "import", tmp_path, "new:1")
    assert "missing" in fails(cli, "export", "--output", tmp_path / "x", "missing")
    assert not (tmp_path / "x").exists()
    assert "cannot write" in fails(cli, "export", "--output", tmp_path / "no" / "x", layered)


def test_a_name_that_is_taken(cli: Cli, base: str, layered: str, tmp_path: Path) -> None:
    """Nothing is made, and nobody loses a name, unless that is wanted; a name for the same image is no matter."""
    (tmp_path / "a.tar").write_bytes(Layer([File("f", b"f")]).tar)
    with mounted(cli, base, tmp_path / "mnt", "--rw"):
        (tmp_path / "mnt" / "written").touch()
    [container] = answer(cli, "ps", "--format=json")
    before = answer(cli, "images", "--format=json")
    commands = [
        ["tag", base, layered],
        ["layer", "add", "-t", layered, base, "/etc/ssl"],
        ["layer", "drop", "-t", layered, base, "1"],
        ["config", "-t", layered, "--env=A=1", base],
        ["squash", "-t", layered, base],
        ["commit", container["name"], layered],
        ["import", str(tmp_path / "a.tar"), layered],
    ]
    for words in commands:
        assert "is another image's name; choose another one, or say --replace" in fails(cli, *words)
    assert answer(cli, "images", "--format=json") == before
    ok(cli, "tag", base, "also:1")
    ok(cli, "tag", base, "also:1")
    for words in commands:
        quiet = [] if words[0] == "tag" else ["--quiet"]
        place = 2 if words[0] == "layer" else 1
        ok(cli, *words[:place], "--replace", *quiet, *words[place:])
    assert answer(cli, "inspect", layered)["config"]["history"][-1]["created_by"] == "pullpipe import"

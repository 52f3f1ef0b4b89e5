"""`pullpipe rmi`: the image goes, and with it what nothing else needs."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from store import Digest
from tests.cli.rig import (
    answer,
    digest_of,
    document,
    fails,
    file_layer,
    layers_of,
    layout_of,
    mounted,
    mounted_tree,
    ok,
)
from tests.cli.store_checker import chain_id
from tests.conftest import Cli, require
from tests.support.images import Dir, Layer
from tests.support.processes import until
from tests.torture.calls import Call, supervised
from tests.torture.rig import command

pytestmark = pytest.mark.needs_root


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def hexes(*digests: str) -> set[str]:
    return {Digest.parse(digest).hex for digest in digests}


def test_the_last_image_takes_everything(cli: Cli, image: str, store_root: Path) -> None:
    """Blobs, layers, the record; what it freed is said on stderr."""
    done = cli("rmi", image)
    assert (done.returncode, done.stdout) == (0, f"{image}\n")
    assert "2 layers and 4 blobs" in done.stderr
    assert answer(cli, "images", "--format", "json") == []
    for directory in ("blobs/sha256", "layers/sha256", "staging", "ingest"):
        assert names(store_root / directory) == set(), directory


def test_does_not_wait_for_a_flush(cli: Cli, image: str, layout: Path, store_root: Path) -> None:
    """Another command that flushes what it has made, which may take its time, holds up nobody."""
    flushes: list[Call] = []

    def remove_meanwhile(call: Call, _: int) -> int:
        if call.name == "syncfs":
            flushes.append(call)
            if len(flushes) == 1:
                ok(cli, "rmi", image)
        return 0

    words = command(store_root, "load", "--quiet", "--tag", "other:1", layout)
    layout_of(layout, file_layer("other"))
    assert supervised(words, [store_root], remove_meanwhile).code == 0
    assert len(flushes) == 1
    assert [each["reference"] for each in answer(cli, "images", "--format", "json")] == ["docker.io/library/other:1"]
    ok(cli, "verify", "--quiet", "--deep")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_files_are_removed(cli: Cli, image: str, store_root: Path, number: signal.Signals) -> None:
    """It ends at once, the image is gone, which has been said; the rest of the files goes all the same."""
    others: list[Call] = []

    def signalling(call: Call, main: int) -> int:
        if call.name in ("unlink", "unlinkat", "rmdir") and "/staging/layers-" in call.path:
            if call.thread == main:
                os.kill(main, number)
            else:
                others.append(call)
                until(lambda: Path(f"/proc/{main}/stat").read_text().split()[2] == "Z", "the command has ended")
                os.kill(call.thread, number)
        return 0

    done = supervised(command(store_root, "rmi", image), [store_root], signalling)
    assert (done.code, done.out, done.said) == (128 + number, f"{image}\n", "")
    assert others
    assert names(store_root / "staging") == names(store_root / "layers" / "sha256") == set()
    assert answer(cli, "verify", "--format", "json") == []


def test_what_another_image_shares_stays(cli: Cli, image: str, layout: Path, store_root: Path, tmp_path: Path) -> None:
    """The other one is whole: it can be mounted, and its blobs are there."""
    other = layout_of(tmp_path / "other", file_layer("lower"), file_layer("third"))
    ok(cli, "load", "-q", "-t", "other:1", other)
    ok(cli, "rmi", image)
    shared, third = layers_of(other)
    assert names(store_root / "layers" / "sha256") == hexes(file_layer("lower").diff_id, file_layer("third").diff_id)
    assert hexes(shared["digest"], third["digest"]) <= names(store_root / "blobs" / "sha256")
    assert not hexes(layers_of(layout)[1]["digest"]) & names(store_root / "blobs" / "sha256")
    assert mounted_tree(cli, "other:1", tmp_path / "m").keys() == {b".", b"lower", b"third"}


def test_one_by_one(cli: Cli, image: str, layout: Path, tmp_path: Path) -> None:
    """One that cannot be removed is told of, and the others go."""
    ok(cli, "load", "-q", "-t", "other:1", layout)
    with mounted(cli, image, tmp_path / "m"):
        done = cli("rmi", image, "nope:1", "A B", "other:1")
    assert (done.returncode, done.stdout) == (1, "docker.io/library/other:1\n")
    assert [image in done.stderr, "nope:1" in done.stderr, "A B" in done.stderr] == [True] * 3
    assert done.stderr.count("pullpipe: error: ") == 3


def test_a_second_name_keeps_all(cli: Cli, image: str, layout: Path, store_root: Path, tmp_path: Path) -> None:
    """Two references, one image: the first rmi takes a name only."""
    ok(cli, "load", "-q", "-t", "second:1", layout)
    before = names(store_root / "blobs" / "sha256")
    ok(cli, "rmi", image)
    assert names(store_root / "blobs" / "sha256") == before
    assert mounted_tree(cli, "second:1", tmp_path / "m").keys() == {b".", b"lower", b"upper"}


def test_several(cli: Cli, image: str, layout: Path) -> None:
    ok(cli, "load", "-q", "-t", "second:1", layout)
    assert ok(cli, "rmi", "image:1", "second:1").split() == [image, "docker.io/library/second:1"]
    assert answer(cli, "images", "--format", "json") == []


def test_no_such_image(cli: Cli, image: str) -> None:
    """Nothing is removed."""
    assert "other" in fails(cli, "rmi", "other")
    assert len(answer(cli, "images", "--format", "json")) == 1


def test_in_use(cli: Cli, image: str, tmp_path: Path) -> None:
    """A container that stands on it forbids it, mounted or ended; the error says how to go on."""
    with mounted(cli, image, tmp_path / "m", "--rw") as target:
        (target / "written").touch()
        [container] = answer(cli, "ps", "--format", "json")
        assert f"pullpipe rm {container['name']}" in fails(cli, "rmi", image)
        assert (target / "lower").read_text() == "lower"
    assert container["name"] in fails(cli, "rmi", image)
    ok(cli, "rm", container["name"])
    ok(cli, "rmi", image)


def test_forced(cli: Cli, image: str, tmp_path: Path) -> None:
    """As Docker's: not from under a container that is there to be seen; one that has ended keeps what it stands on."""
    with mounted(cli, image, tmp_path / "m", "--rw") as target:
        (target / "written").touch()
        [container] = answer(cli, "ps", "--format", "json")
        assert container["name"] in fails(cli, "rmi", "--force", image)
    assert ok(cli, "rmi", "-f", "other", image) == image
    assert answer(cli, "images", "--format", "json") == []
    ok(cli, "commit", container["name"], "again:1")
    assert mounted_tree(cli, "again:1", tmp_path / "m").keys() == {b".", b"lower", b"upper", b"written"}


def test_layers_of_a_container_stay(cli: Cli, layout: Path, tmp_path: Path) -> None:
    """Its image's name went to another image, which is removed: the container's tree is still there."""
    ok(cli, "load", "-q", "-t", "moving:1", layout)
    with mounted(cli, "moving:1", tmp_path / "m") as target:
        ok(cli, "load", "-q", "-t", "moving:1", layout_of(tmp_path / "other", file_layer("other")))
        ok(cli, "load", "-q", "-t", "third:1", layout_of(tmp_path / "third", file_layer("third")))
        ok(cli, "rmi", "third:1")
        assert (target / "lower").read_text() == "lower"
        assert (target / "upper").read_text() == "upper"


def test_a_partial_blob_stays(cli: Cli, image: str, store_root: Path) -> None:
    """It belongs to a pull that will be continued."""
    partial = store_root / "ingest" / f"sha256-{'0' * 64}"
    partial.write_text("some of it")
    ok(cli, "rmi", image)
    assert partial.read_text() == "some of it"


def test_the_blobs_of_another_programs_image_stay(cli: Cli, image: str, layout: Path, store_root: Path) -> None:
    """What skopeo copied into the layout is in index.json, and stays whole: skopeo can copy it out again."""
    theirs = layout_of(layout.parent / "theirs", file_layer("theirs"))
    copy = [require("skopeo"), "copy", "-q", "--insecure-policy"]
    subprocess.run([*copy, f"oci:{theirs}:image", f"oci:{store_root}:theirs"], check=True)
    ok(cli, "rmi", image)
    out = subprocess.run([*copy, f"oci:{store_root}:theirs", f"dir:{store_root}-copy"], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr


@pytest.mark.parametrize("what", ["manifest", "config", "stack"])
def test_what_a_damaged_image_needs_stays(
    cli: Cli, image: str, layout: Path, store_root: Path, tmp_path: Path, what: str
) -> None:
    """What that is cannot be known, so nothing goes: when the document is there again, so is all else."""
    ok(cli, "load", "-q", "-t", "other:1", layout_of(tmp_path / "other", file_layer("other")))
    if what == "stack":
        other = names(store_root / "stacks/sha256") - hexes(chain_id([file_layer("other").diff_id]))
        document_path = store_root / "stacks/sha256" / other.pop() / "stack.json"
    else:
        digest = digest_of(layout) if what == "manifest" else document(layout, digest_of(layout))["config"]["digest"]
        document_path = store_root / "blobs" / digest.replace(":", "/")
    data = document_path.read_bytes()
    document_path.write_bytes(b"")
    ok(cli, "rmi", "other:1")
    document_path.write_bytes(data)
    assert cli("verify", "--deep", image).returncode == 0
    ok(cli, "rmi", image)
    for directory in ("blobs/sha256", "layers/sha256", "stacks/sha256"):
        assert names(store_root / directory) == set(), directory


def test_a_layer_as_deep_as_any(cli: Cli, store_root: Path, tmp_path: Path) -> None:
    """What could be unpacked can be removed."""
    deep = Layer([Dir("/".join(["d"] * 512))])
    ok(cli, "load", "-q", "-t", "deep:1", layout_of(tmp_path / "deep", deep))
    ok(cli, "rmi", "deep:1")
    assert names(store_root / "layers" / "sha256") == set()

"""`pullpipe images`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.rig import answer, digest_of, file_layer, layers_of, layout_of, ok
from tests.conftest import PROJECT, Cli, require
from tests.support.images import HOST_PLATFORM, Image


@pytest.mark.needs_root
def test_json(cli: Cli, image: str, layout: Path) -> None:
    """The documented fields; the size is that of the compressed layers, in bytes."""
    assert answer(cli, "images", "--format", "json") == [
        {
            "reference": image,
            "digest": digest_of(layout),
            "platform": HOST_PLATFORM,
            "layers": 2,
            "size": sum(layer["size"] for layer in layers_of(layout)),
            "created": "",
        }
    ]


@pytest.mark.needs_root
def test_table(cli: Cli, image: str, layout: Path) -> None:
    """A row begins with the whole reference, ready to be pasted."""
    header, row = ok(cli, "images").splitlines()
    assert header.split() == ["IMAGE", "DIGEST", "PLATFORM", "LAYERS", "SIZE", "CREATED"]
    assert row.split()[:4] == [image, digest_of(layout).partition(":")[2][:12], HOST_PLATFORM, "2"]
    assert row.index(row.split()[1]) == header.index("DIGEST")


@pytest.mark.needs_root
def test_many(cli: Cli, tmp_path: Path) -> None:
    """In the order of their names, a platform with its variant in full."""
    layer = file_layer("a")
    arm = layout_of(tmp_path / "arm", image=Image([layer], platform="linux/arm/v7"))
    ok(cli, "load", "-q", "--platform", HOST_PLATFORM, "-t", "z:1", layout_of(tmp_path / "z", layer))
    ok(cli, "load", "-q", "--platform", "linux/arm/v7", "-t", "m:1", arm)
    listed = answer(cli, "images", "--format", "json")
    assert [image["reference"] for image in listed] == ["docker.io/library/m:1", "docker.io/library/z:1"]
    assert [image["platform"] for image in listed] == ["linux/arm/v7", HOST_PLATFORM]


@pytest.mark.needs_root
def test_a_damaged_one(cli: Cli, image: str, layout: Path, tmp_path: Path, store_root: Path) -> None:
    """It is told of, and the others are listed; with their names only, it is, too: that can still be removed."""
    ok(cli, "load", "-q", "-t", "z:1", layout_of(tmp_path / "z", file_layer("a")))
    (store_root / "blobs" / "sha256" / digest_of(layout).partition(":")[2]).write_bytes(b"{}")
    done = cli("images")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert re.match(rf"pullpipe: error: {image}: .* is damaged in the store; `pullpipe repair` ", done.stderr)
    assert [row.split()[0] for row in done.stdout.splitlines()] == ["IMAGE", "docker.io/library/z:1"]
    names = ok(cli, "images", "-q").split()
    assert names == sorted([image, "docker.io/library/z:1"])
    ok(cli, "rmi", *names)
    assert ok(cli, "images", "--quiet") == ""


def test_none(cli: Cli) -> None:
    """Without root too: an empty store has an empty listing."""
    assert ok(cli, "images").split() == ["IMAGE", "DIGEST", "PLATFORM", "LAYERS", "SIZE", "CREATED"]
    assert answer(cli, "images", "--format", "json") == []


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_where_nothing_can_be_written(store_root: Path, unbuffered: str) -> None:
    """Not the store is blamed for what the output does not take."""
    command = [sys.executable, "-m", "pullpipe", "--root", str(store_root), "images"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, cwd=PROJECT, env=environment, stdout=full, stderr=-1, text=True)
    said = "pullpipe: error: cannot write to standard output: no space left on device; send it to another place\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.needs_root
def test_an_image_of_another_program(cli: Cli, image: str, layout: Path, store_root: Path) -> None:
    """What skopeo copies into the layout is not listed, and does not get in the way."""
    copy = [require("skopeo"), "copy", "-q", "--insecure-policy", f"oci:{layout}:image", f"oci:{store_root}:theirs"]
    subprocess.run(copy, check=True)
    assert [one["reference"] for one in answer(cli, "images", "--format", "json")] == [image]

"""`pullpipe tree`: who is built on whom."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT
from tests.look.conftest import See, load_into
from tests.support.images import File, Image, Layer

pytestmark = pytest.mark.needs_root

A, B, C, D = (Layer([File(name, name.encode() * size)]) for name, size in zip("abcd", (10, 20, 30, 40), strict=True))

TREE = """\
IMAGE                            LAYERS  ADDS   OWN  SHARED
docker.io/library/alone:1             2  50 B  10 B    40 B  ███░░░░░░░░░░░░░░
docker.io/library/base:1              1  10 B   0 B    10 B  ░░░
├─ …                                 +1  20 B
│  ├─ docker.io/library/left:1       +1  30 B  30 B    30 B  ██████████░░░░░░░░░░░
│  └─ docker.io/library/right:1      +1  40 B   0 B    70 B  ░░░░░░░░░░░░░░░░░░░░░░░░
│       = localhost/same:1
└─ docker.io/library/top:1           +1  40 B   0 B    50 B  ░░░░░░░░░░░░░░░░░
"""


@pytest.fixture(scope="module")
def _family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a base, images on it that have more layers in common or not, and one that shares no beginning."""
    directory = tmp_path_factory.mktemp("family")
    images = {
        "base:1": [A],
        "left:1": [A, B, C],
        "right:1": [A, B, D],
        "localhost/same:1": [A, B, D],
        "top:1": [A, D],
        "alone:1": [Layer([File("x", b"x" * 10)]), D],
    }
    for number, (name, layers) in enumerate(images.items()):
        load_into(directory / "root", directory / str(number), name, Image(layers))
    return directory / "root"


@pytest.fixture
def store_root(_family: Path) -> Path:
    return _family


def test_tree(see: See) -> None:
    """Each below what it is built on, with the bytes that nobody else has, and those that others do."""
    assert see("tree") == TREE


def test_plain_characters(store_root: Path) -> None:
    """Where the terminal's encoding has no others."""
    command = [sys.executable, "-m", "pullpipe", "--root", str(store_root), "tree", "base:1"]
    done = subprocess.run(command, cwd=PROJECT, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode("ascii").splitlines()
    assert lines[4].startswith("|  `- docker.io/library/right:1 ")
    assert lines[4].endswith(" 70 B  ........................")


def test_chosen_images(see: See) -> None:
    """With those that share a layer with them, wherever it lies; the sizes are still those among all."""
    assert see("tree", "left:1") == "".join(line for line in TREE.splitlines(keepends=True) if "alone" not in line)
    found = see.json("tree", "alone:1")
    assert names(found) == ["docker.io/library/alone:1", "docker.io/library/right:1", "docker.io/library/top:1"]


def names(members: list[dict[str, Any]]) -> list[str]:
    """The first of each image's."""
    return [name for member in members for name in ([*member["images"][:1], *names(member["children"])])]


def test_layers(see: See) -> None:
    """Each by its number and its diffID, under the image that ends with it."""
    lines = see("tree", "--layers", "left:1").splitlines()
    assert lines[2].rstrip().startswith(f"│  1 {A.diff_id[7:19]} ")
    assert lines[6].startswith(f"│  │     3 {C.diff_id[7:19]} ")
    assert lines[6].endswith(" 30 B")
    assert lines[-1].startswith(f"      2 {D.diff_id[7:19]} ")


def test_json(see: See) -> None:
    found = see.json("tree", "left:1")
    [base] = found
    assert (base["images"], base["own"], base["shared"]) == (["docker.io/library/base:1"], 0, 10)
    assert base["layers"] == [{"number": 1, "diff_id": A.diff_id, "size": 10}]
    fork = base["children"][0]
    assert (fork["images"], fork["layers"][0]["number"]) == ([], 2)
    assert [child["images"] for child in fork["children"]] == [
        ["docker.io/library/left:1"],
        ["docker.io/library/right:1", "localhost/same:1"],
    ]


def test_nothing(see: See) -> None:
    assert "pullpipe pull" in see.failing("tree", "nothing")

"""What --format json prints is what the documents say, field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pullpipe.cli import module_of
from pullpipe.cli.whole import every_command, whole_parser
from tests.cli.rig import answer, ok
from tests.conftest import Cli, require
from tests.runner.rig import BASE
from tests.support.images import File, Image, Layer, Whiteout, write_layout

LISTINGS = {
    "images": [["images"]],
    "inspect": [["inspect", "upper:1"], ["inspect", "c"]],
    "history": [["history", "upper:1"]],
    "layers": [["layers", "upper:1"]],
    "ls": [["ls", "upper:1", "/etc"]],
    "diff": [["diff", "base:1", "upper:1"], ["diff", "upper:1#2"], ["diff", "c"]],
    "tree": [["tree"]],
    "ps": [["ps"]],
    "df": [["df"]],
    "prune": [["prune", "--all", "--containers", "--dry-run"]],
    "verify": [["verify", "--quiet"]],
    "repair": [["repair", "--quiet", "--no-fetch"]],
}


def paths(value: Any, fields: set[str], path: str = "") -> Iterator[str]:
    """Of all the fields in it: as deep as the documented ones go, and with their names on the way."""
    if isinstance(value, list):
        assert len({tuple(one) for one in value if isinstance(one, dict)}) <= 1, "not all have the same fields"
        for one in value:
            yield from paths(one, fields, path)
    elif isinstance(value, dict) and (not path or any(field.startswith(f"{path}.") for field in fields)):
        for name, below in value.items():
            here = f"{path}.{name}" if path else name
            yield here
            yield from paths(below, fields, here)


def test_every_listing_is_documented() -> None:
    """And is looked at here."""
    formats = {
        name
        for name, parser in every_command(whole_parser())
        for action in parser._actions
        if "json" in (action.choices or ()) and "--format" in action.option_strings
    }
    assert formats == set(LISTINGS) == {name for name in formats if module_of(name).JSON}


@pytest.mark.needs_root
def test_the_fields_are_those_that_are_documented(cli: Cli, store_root: Path, tmp_path: Path) -> None:
    """All of them, everywhere, and no other."""
    require("busybox")
    base = [*BASE, Layer([File("etc/old"), File("etc/passwd", b"root:x:0:0::/:/bin/sh\n")])]
    images = {"base:1": base, "upper:1": [*base, Layer([File("etc/new"), Whiteout("etc/old")])]}
    for name, layers in images.items():
        write_layout(tmp_path / name, {"t": Image(layers)})
        ok(cli, "load", "--quiet", "--durability=none", "-t", name, tmp_path / name)
    ok(cli, "layer", "add", "--quiet", "upper:1", tmp_path / "base:1")  # which makes an entry of the history
    ok(cli, "run", "--name=c", "--volume", f"{tmp_path}:/mnt", "upper:1", "sh", "-c", "echo >/file")
    for name, listings in LISTINGS.items():
        documented = list(module_of(name).JSON.values())
        if name == "verify":
            blob = answer(cli, "inspect", "base:1")["layers"][0]["digest"]
            (store_root / "blobs" / blob.replace(":", "/")).unlink()
        for number, words in enumerate(listings):
            done = cli(*words, "--format", "json")
            assert done.stderr == "" or name == "prune", done.stderr
            fields = set(documented[min(number, len(documented) - 1)])
            parents = {field[:at] for field in fields for at, letter in enumerate(field) if letter == "."}
            assert set(paths(json.loads(done.stdout), fields)) == fields | parents, words

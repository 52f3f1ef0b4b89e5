"""`pullpipe layers` and `pullpipe history`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.look.conftest import BASE, MIDDLE, TOP, See, load_into
from tests.support.images import File, Image, Layer

pytestmark = pytest.mark.needs_root


@dataclass(frozen=True)
class Told(Image):
    """An image whose config has this history."""

    history: Any = None

    @property
    def config_blob(self) -> bytes:
        return json.dumps({**json.loads(super().config_blob), "history": self.history}).encode()


def test_layers(see: See, looked: str, other: str) -> None:
    """Both digests and sizes of each, and who else has it."""
    found = see.json("layers", "looked:1")
    assert [layer["number"] for layer in found] == [1, 2, 3]
    for layer, made in zip(found, (BASE, MIDDLE, TOP), strict=True):
        assert (layer["diff_id"], layer["size"], layer["media_type"]) == (
            made.diff_id,
            len(made.blob),
            made.media_type,
        )
    sizes = [(layer["unpacked_size"], layer["entries"], layer["whiteouts"]) for layer in found]
    assert sizes == [(5 + 3 + 2 + 2, 9, 0), (10 + 1, 4, 1), (3, 2, 0)]
    assert [layer["shared_with"] for layer in found] == [[other], [other], []]
    assert [layer["shared_with"] for layer in see.json("layers", other)] == [[looked], [looked], []]


def test_layers_as_a_table(see: See, looked: str, other: str) -> None:
    """Short digests, unless all is asked for."""
    lines = see("layers", looked).splitlines()
    assert lines[0].split() == [
        "LAYER",
        "DIGEST",
        "DIFFID",
        "SIZE",
        "UNPACKED",
        "ENTRIES",
        "WHITEOUTS",
        "SHARED",
        "WITH",
    ]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    assert BASE.diff_id[7:19] in lines[1]
    assert lines[1].endswith(other)
    assert BASE.diff_id in see("layers", "--no-trunc", looked)


def test_a_damaged_layer(see: See, looked: str, store_root: Path) -> None:
    """What can be known of it is told."""
    [record] = (store_root / "layers" / MIDDLE.diff_id.replace(":", "/")).glob("layer.json")
    whole = record.read_bytes()
    record.write_text("{")
    try:
        found = see.json("layers", looked)[1]
        assert (found["entries"], found["unpacked_size"], found["diff_id"]) == (None, None, MIDDLE.diff_id)
        assert "-" in see("layers", looked).splitlines()[2].split()
        assert see("history", looked).splitlines()[2].split()[0] == "2"
    finally:
        record.write_bytes(whole)


def test_history(see: See, store_root: Path, tmp_path: Path) -> None:
    """The last step first, and those that made no layer among them."""
    history = [
        {"created": "2024-01-02T03:04:05Z", "created_by": "ADD rootfs /", "comment": "first"},
        {"created": "2024-01-03T03:04:05Z", "created_by": "ENV A=" + "b" * 99, "empty_layer": True},
        {"created_by": "RUN a\tb", "author": "me"},
    ]
    load_into(store_root, tmp_path / "it", "it", Told([BASE, TOP], history=history))
    found = see.json("history", "it")
    assert [(step["layer"], step["empty_layer"], step["size"]) for step in found] == [
        (2, False, 3),
        (None, True, 0),
        (1, False, 12),
    ]
    assert found[0]["diff_id"] == TOP.diff_id
    assert (found[0]["author"], found[0]["created"], found[2]["comment"]) == ("me", "", "first")
    lines = see("history", "it").splitlines()
    assert lines[0].split() == ["LAYER", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert lines[1].split() == ["2", "-", "RUN", "a", "b", "3", "B"]
    assert lines[2].split() == ["-", "2024-01-03", "ENV", f"A={'b' * 38}…", "0", "B"]
    assert lines[3].split() == ["1", "2024-01-02", "ADD", "rootfs", "/", "12", "B", "first"]
    whole = see("history", "--no-trunc", "it")
    assert "b" * 99 in whole
    assert "2024-01-03T03:04:05Z" in whole
    assert r"RUN a\tb" in whole


@pytest.mark.parametrize("history", [None, "x", [1, {"created_by": 7, "empty_layer": "yes"}], [{}] * 5])
def test_history_is_the_authors_word(see: See, store_root: Path, tmp_path: Path, history: Any) -> None:
    """Which may say too little, too much, or nonsense: every layer is there once."""
    load_into(store_root, tmp_path / "it", "it", Told([BASE, TOP], history=history))
    found = see.json("history", "it")
    assert [step["layer"] for step in found if step["layer"]] == [2, 1]


def test_words_that_would_steer_the_terminal(see: See, store_root: Path, tmp_path: Path) -> None:
    """Are shown as text."""
    told = [{"created_by": "\x1b[31mred\u202e", "comment": "a\rb", "created": "\x07"}]
    load_into(store_root, tmp_path / "it", "it", Told([Layer([File("f")])], history=told))
    for options in ((), ("--no-trunc",)):
        text = see("history", "it", *options)
        assert r"\x1b[31mred\u202e" in text
        assert r"a\rb" in text
        assert not {"\x1b", "\r", "\x07", "\u202e"} & set(text)


def test_no_image(see: See, looked: str) -> None:
    """And no layers of a layer."""
    for command in ("layers", "history"):
        assert "pullpipe pull" in see.failing(command, "nothing")
        assert "leave #1 away" in see.failing(command, "looked:1#1")
        assert "names no layer" in see.failing(command, "looked:1#0")

"""The benchmarks run, and tell what they found; how fast anything is, no test says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT, require


def benchmark(*arguments: str | Path, path: Path | None = None) -> str:
    """What it prints; programs are looked for at `path` first."""
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    env = os.environ | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(report["columns"], row, strict=True)) for row in report["rows"]]


def test_list() -> None:
    """Images, contenders, and whether they are installed."""
    told = benchmark("list")
    assert "small-files" in told
    assert "skopeo + umoci" in told


def test_an_unknown_name_is_told() -> None:
    command = [sys.executable, "-m", "benchmarks", "images", "no-such"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no-such" in done.stderr.splitlines()[-1]


@pytest.mark.needs_root
def test_images_are_the_same_at_every_call(tmp_path: Path) -> None:
    """By every byte, so that results of different days can be compared."""
    layouts = [Path(benchmark("images", "tiny", "--cache", tmp_path / name).strip()) for name in "ab"]
    first, second = (
        {path.name: path.read_bytes() for path in layout.rglob("*") if path.is_file()} for layout in layouts
    )
    assert first == second


@pytest.mark.needs_root
def test_contenders_make_the_same_tree(tmp_path: Path) -> None:
    """Everybody who is installed pulls the tiny image; an earlier report is compared with."""
    for tool in ("docker-registry", "skopeo", "umoci", "podman"):
        require(tool)
    arguments: list[str | Path] = [
        "pull",
        "tiny",
        "--runs",
        "1",
        "--cache",
        tmp_path,
        "--output",
        tmp_path / "first.json",
    ]
    report = json.loads(benchmark(*arguments, "--json"))
    found = {row["contender"]: row for row in rows(report)}
    assert found.keys() >= {"pullpipe", "pullpipe, no flush", "podman", "skopeo + umoci"}
    assert {row["tree"] for row in found.values()} == {"same"}, report["notes"]
    for row in found.values():
        assert min(row["wall s"], row["CPU s"], row["most RSS MB"]) > 0, row
    assert set(report["stages"]) >= {"recv", "inflate", "hash tar", "write", "publish"}
    again = benchmark(*arguments, "--only", "podman", "--against", tmp_path / "first.json")
    assert "now/then" in again
    assert again.split()[-1] != "new"


@pytest.mark.needs_root
def test_start_up(tmp_path: Path) -> None:
    """Whoever does not start is named with the reason, and the others are measured."""
    for tool in ("docker-registry", "skopeo", "busybox", "runc"):
        require(tool)
    broken = tmp_path / "bin" / "bwrap"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho broken on purpose >&2; exit 1\n")
    broken.chmod(0o755)
    chosen = ("pullpipe", "runc", "bwrap", "unshare + chroot")
    only = [f"--only={name}" for name in chosen]
    report = json.loads(benchmark("run", "--runs", "1", "--json", "--cache", tmp_path, *only, path=broken.parent))
    assert [row["contender"] for row in rows(report)] == ["pullpipe", "runc", "unshare + chroot"]
    assert rows(report)[0]["of pullpipe"] == 1
    [note] = report["notes"]
    assert note.startswith("bwrap is left out: ")
    assert "broken on purpose" in note


@pytest.mark.needs_root
def test_the_others(tmp_path: Path) -> None:
    """Applying layers, extracting, each stage alone, and growing work."""
    require("busybox")
    cache: list[str | Path] = ["--cache", tmp_path]
    assert "GNU tar" in benchmark("apply", "tiny", "--runs", "1", "--only", "GNU tar", "--only", "pullpipe", *cache)
    assert "µs/entry" in benchmark("extract", "--files", "500", "--runs", "1")
    assert "inflate" in benchmark("floor", "tiny", *cache)
    assert "1000 entries" in benchmark("scale", "entries", "--steps", "1", *cache)

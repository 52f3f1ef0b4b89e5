"""What the tests of the runner share: an image with a shell, and running commands in it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.conftest import Cli, require
from tests.runner.rig import BASE, Run, filled, pullpipe
from tests.support.images import Entry, Image, Layer, write_layout


@pytest.fixture(scope="session")
def busybox() -> None:
    """Most tests want more commands than a shell: those of Debian's busybox."""
    require("busybox")


@pytest.fixture
def load(cli: Cli, tmp_path: Path) -> Callable[..., None]:
    """A function that puts an image called `test` into the store: the shell, these entries, this config."""

    def load(*entries: Entry, config: Mapping[str, object] | None = None, base: bool = True) -> None:
        layers = [*(BASE if base else []), *([Layer(entries)] if entries else [])]
        write_layout(tmp_path / "layout", {"t": Image(layers, config or {})})
        done = cli("load", "--quiet", "--durability=none", "-t", "test", tmp_path / "layout")
        assert done.returncode == 0, done.stderr

    return load


@pytest.fixture
def image(load: Callable[..., None], busybox: None) -> None:
    """The shell alone, as `test`."""
    load()


@pytest.fixture(scope="session")
def shell_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the shell alone, as `test`: for the tests that change nothing in it."""
    require("busybox")
    top = tmp_path_factory.mktemp("shell")
    write_layout(top / "layout", {"t": Image(BASE)})
    done = pullpipe(top / "root", "load", "--quiet", "--durability=none", "-t", "test", str(top / "layout"))
    assert done.returncode == 0, done.stderr
    return top / "root"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store for all tests of a file; each leaves it without containers."""
    require("busybox")
    return filled(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def run(shell_root: Path) -> Run:
    """`pullpipe run --rm OPTIONS test ARGUMENTS`; the options end at the image's name."""

    def run(*arguments: str, options: tuple[str, ...] = (), stdin: str = "") -> subprocess.CompletedProcess[str]:
        return pullpipe(shell_root, "run", "--rm", *options, "test", *arguments, stdin=stdin)

    return run

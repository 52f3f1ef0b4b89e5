"""An image in a real registry, `pullpipe pull` through a proxy that breaks what passes, and how that may end."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.cli.store_checker import wrong
from tests.conftest import Cli
from tests.registry.faults.rig import Breaks, Outcome, Pull, Pushed, pushed
from tests.support.faulty_proxy import FaultProxy
from tests.support.images import Dir, File, Layer
from tests.support.registry import Registry


@pytest.fixture(scope="session")
def long_layer() -> Layer:
    """Random, so that it is as long when it is compressed: a part of it reaches the disk before the rest comes."""
    return Layer([Dir("d"), File("d/long", random.Random(1).randbytes(2_500_000))])


@pytest.fixture(scope="session")
def image(registry: Registry, tmp_path_factory: pytest.TempPathFactory, long_layer: Layer) -> Pushed:
    return pushed(registry, tmp_path_factory.mktemp("image"), "faults/image", long_layer)


@pytest.fixture(scope="session")
def other(registry: Registry, tmp_path_factory: pytest.TempPathFactory, long_layer: Layer) -> Pushed:
    """Another image that has the long layer, too."""
    return pushed(registry, tmp_path_factory.mktemp("other"), "faults/other", long_layer, top="other")


@pytest.fixture
def pull(cli: Cli, image: Pushed) -> Pull:
    default = image

    def run(
        proxy: FaultProxy, *options: str, image: Pushed | None = None, env: Mapping[str, str] | None = None
    ) -> CompletedProcess[str]:
        usual = ["--durability=none", "--retries=2", "--timeout=20"]
        usual += [] if proxy.url.startswith("https") else ["--plain-http"]
        return cli("pull", *usual, *options, (image or default).reference(proxy), env=env)

    return run


@pytest.fixture
def arrives(store_root: Path, image: Pushed) -> Outcome:
    """The pull has succeeded, and the store holds the image as it should be, and nothing half made."""
    default = image

    def check(done: CompletedProcess[str], image: Pushed | None = None) -> None:
        wanted = image or default
        assert (done.returncode, done.stdout) == (0, f"{wanted.manifest}\n"), done.stderr
        assert "Traceback" not in done.stderr
        assert wrong(store_root, {**default.trees, **wanted.trees}) == []
        for layer in wanted.layers:
            assert (store_root / "blobs" / layer.replace(":", "/")).exists()
        assert list((store_root / "staging").iterdir()) == []

    return check


@pytest.fixture
def breaks(store_root: Path, image: Pushed) -> Breaks:
    """The pull has failed with one line, which is returned, after notes of what it tried; nothing is recorded."""

    def check(done: CompletedProcess[str]) -> str:
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        *notes, line = done.stderr.splitlines()
        assert line.startswith("pullpipe: error: ")
        assert not [note for note in notes if "error" in note or "Traceback" in note]
        assert wrong(store_root, image.trees) == []
        assert '"manifests": []' in (store_root / "index.json").read_text()
        assert list((store_root / "staging").iterdir()) == []
        return line

    return check

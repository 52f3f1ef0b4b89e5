"""What every command's test can have in its store: a small image, and one of many layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.damages import Damaged, make_damaged
from tests.cli.rig import file_layer, layout_of, ok
from tests.conftest import Cli
from tests.support.registry import Registry

IMAGE = "docker.io/library/image:1"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout with the image `image` of two layers, of one file each: `lower` and `upper`."""
    return layout_of(tmp_path / "layout", file_layer("lower"), file_layer("upper"))


@pytest.fixture
def image(cli: Cli, layout: Path) -> str:
    """That image in the store, and its reference."""
    assert ok(cli, "load", "--quiet", "--tag", IMAGE, layout) == IMAGE
    return IMAGE


@pytest.fixture(scope="session")
def damaged(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    """A store with damage of each kind, to be looked at and not to be changed."""
    return make_damaged(tmp_path_factory.mktemp("damaged"), registry)

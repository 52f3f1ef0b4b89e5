"""What the tests of the pipe share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pullpipe.pipe.unpack import Worker
from tests.pipe.unpacked import Jail, Way


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One for a module's tests, as one serves all layers of a pull."""
    with Worker() as running:
        yield running


@pytest.fixture
def jail(tmp_path: Path, worker: Worker) -> Jail:
    """Where a layer goes."""
    return Jail(tmp_path / "jail", worker)


@pytest.fixture(params=["worker", "no chroot"])
def way(request: pytest.FixtureRequest, jail: Jail) -> Way:
    """Unpacking in the worker, and without the kernel's wall: what must hold of containment must hold in both."""
    return jail.unpack if request.param == "worker" else jail.unpack_without_walls

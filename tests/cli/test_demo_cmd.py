"""`pullpipe demo`: the whole job as a newcomer sees it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import Cli


@pytest.mark.needs_root
def test_runs_to_its_end(cli: Cli, store_root: Path, tmp_path: Path) -> None:
    """Pulled, stacked, run; the second pull fetches nothing; nothing is left, and the user's store is not made."""
    (tmp_path / "scratch").mkdir()
    done = cli("demo", env={"TMPDIR": str(tmp_path / "scratch")})
    assert done.returncode == 0, done.stderr
    for number in range(1, 7):
        assert f"== {number}. " in done.stdout
    assert "(requests: 1 HEAD; blobs fetched: 0)" in done.stdout
    assert os.listdir(tmp_path / "scratch") == []
    assert not store_root.exists()

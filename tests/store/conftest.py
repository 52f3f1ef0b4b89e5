"""A fresh store."""

from __future__ import annotations

from pathlib import Path

import pytest

from store import Store


@pytest.fixture
def store(store_root: Path) -> Store:
    return Store(str(store_root), durable=False)

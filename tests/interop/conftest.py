"""What the pipe's tests have, too: a worker, and a directory for a layer."""

from __future__ import annotations

from tests.pipe.conftest import jail, worker

__all__ = ["jail", "worker"]

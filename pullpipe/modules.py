"""Where an interpreter that we start finds the modules that we have found, whatever directory it stands in."""

from __future__ import annotations

import os
import sys


def environment() -> dict[str, str]:
    """Ours, with a PYTHONPATH that leads to the same modules; start the interpreter with -P."""
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([ours, *filter(None, sys.path)])}

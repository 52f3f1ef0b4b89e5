"""The program as users have it: as `pullpipe`, on the PATH."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def on_path(directory: Path) -> str:
    """Puts it into the new directory; returns a PATH that begins with that."""
    directory.mkdir()
    program = directory / "pullpipe"
    python, project = shlex.quote(sys.executable), shlex.quote(str(PROJECT))
    program.write_text(f'#!/bin/sh\nPYTHONPATH={project} exec {python} -m pullpipe "$@"\n')
    program.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"

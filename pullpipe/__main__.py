"""The program: `python -m pullpipe`, and what is installed as `pullpipe`."""

from __future__ import annotations

import os
import sys

# What has processes of ours become programs of an image.
_RUNNING = {"run", "exec", "start", "restart"}


def program() -> None:
    """The command line; Ctrl-C while it is still being imported ends it as quietly as later."""
    try:
        if not _RUNNING.isdisjoint(sys.argv):
            from pullpipe.interpreter import put_out_of_reach

            put_out_of_reach()
        from pullpipe.cli import program as cli
    except KeyboardInterrupt:
        os._exit(130)
    cli()


if __name__ == "__main__":
    if not __package__ and (modules := os.environ.pop("PULLPIPE_MODULES", "")):  # by pullpipe.interpreter
        sys.path[:] = modules.split(os.pathsep)
    program()

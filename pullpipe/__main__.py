"""The program: `python -m pullpipe`, and what is installed as `pullpipe`."""

from __future__ import annotations

import os


def program() -> None:
    """The command line; Ctrl-C while it is still being imported ends it as quietly as later."""
    try:
        from pullpipe.cli import program as cli
    except KeyboardInterrupt:
        os._exit(130)
    cli()


if __name__ == "__main__":
    program()

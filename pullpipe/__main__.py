"""The program: `python -m pullpipe`, and what is installed as `pullpipe`."""

from __future__ import annotations

import gc
import os
import sys

# What has processes of ours become programs of an image.
_RUNNING = {"run", "exec", "start", "restart"}


def program() -> None:
    """The command line; Ctrl-C while it is still being imported ends it as quietly as later."""
    _open_streams()
    gc.disable()  # while modules are imported there is nothing to collect, and to look for it takes 2 ms
    try:
        if not _RUNNING.isdisjoint(sys.argv):
            from pullpipe.interpreter import put_out_of_reach

            put_out_of_reach()
        from pullpipe.cli import program as cli
    except KeyboardInterrupt:
        os._exit(130)
    cli()


def _open_streams() -> None:
    """A standard stream that is closed is the null device, or the next thing that is opened would be taken for it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: the one that is missing
            os.set_inheritable(descriptor, True)
            setattr(sys, name, open(descriptor, mode, closefd=False))


if __name__ == "__main__":
    if not __package__ and (modules := os.environ.pop("PULLPIPE_MODULES", "")):  # by pullpipe.interpreter
        sys.path[:] = modules.split(os.pathsep)
    program()

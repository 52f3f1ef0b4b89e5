"""`pullpipe unshare [COMMAND…]`"""

from __future__ import annotations

import argparse
import os
from typing import NoReturn

from pullpipe import linux
from pullpipe.cli.common import open_store
from pullpipe.errors import BadArgument, CommandNotExecutable, CommandNotFound
from store.namespace import is_machines_root

HELP = "without root: run a command, or a shell, in the user namespace that the store's files are of"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "command", metavar="COMMAND", nargs=argparse.REMAINDER, help="with its arguments (default: your shell)"
    )
    parser.epilog = (
        "There you are root, files have the owners that images give them, and what `mount` shows can be seen."
    )


def run(arguments: argparse.Namespace) -> NoReturn:
    """It becomes the command, in a mount namespace of its own, too. Pullpipe works on the same store there."""
    command = arguments.command or [os.environ.get("SHELL") or "/bin/sh"]
    if is_machines_root():
        raise BadArgument("root needs no user namespace; run the command itself")
    store = open_store(arguments, as_root=True)
    linux.unshare(linux.CLONE_NEWNS)
    linux.keep_mounts_here()
    os.environ["PULLPIPE_ROOT"] = store.root
    try:
        os.execvp(command[0], command)
    except FileNotFoundError as error:
        raise CommandNotFound(f"command not found: there is no {command[0]!r}") from error
    except OSError as error:
        raise CommandNotExecutable(f"cannot run {command[0]!r}: {(error.strerror or 'refused').lower()}") from error

"""`pullpipe wait CONTAINER…`"""

from __future__ import annotations

import argparse

from pullpipe.cli.common import open_store
from pullpipe.runner import ending

HELP = "wait for the end of containers, and print their exit codes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="a name, or the start of an id")


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    for container in [store.containers.find(wanted) for wanted in arguments.containers]:
        print(ending.wait(store, container), flush=True)
    return 0

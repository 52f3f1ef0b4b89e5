"""`pullpipe wait CONTAINER…`"""

from __future__ import annotations

import argparse

from pullpipe.cli.common import OneByOne, open_store
from pullpipe.runner import ending

HELP = "wait for the end of containers, and print their exit codes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="a name, or the start of an id")


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    each = OneByOne(arguments)
    for wanted in arguments.containers:
        with each:
            print(ending.wait(store, store.containers.find(wanted)), flush=True)
    return each.code

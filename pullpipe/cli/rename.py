"""`pullpipe rename CONTAINER NAME`"""

from __future__ import annotations

import argparse

from pullpipe.cli.common import open_store
from pullpipe.runner.container import check_name

HELP = "call a container by another name"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="a name, or the start of an id")
    parser.add_argument("name", metavar="NAME", help="the new one: letters, digits, and then also _ . -")


def run(arguments: argparse.Namespace) -> int:
    check_name(arguments.name)
    store = open_store(arguments)
    store.containers.rename(store.containers.find(arguments.container), arguments.name)
    return 0

"""`pullpipe stop CONTAINER…`"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from pullpipe.cli.common import OneByOne, open_store, seconds
from pullpipe.runner import ending
from store import Container, Store

HELP = "end the commands of running containers, by their stop signals first"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-t",
        "--time",
        "--timeout",
        dest="timeout",
        type=seconds,
        metavar="SECONDS",
        help="until SIGKILL; -1 is never (default: what --stop-timeout said, or 10)",
    )
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="a name, or the start of an id")


def run(arguments: argparse.Namespace) -> int:
    store, each = open_store(arguments), OneByOne(arguments)
    for container in stopped(store, arguments, each):
        print(container.name, flush=True)
    return each.code


def stopped(store: Store, arguments: argparse.Namespace, each: OneByOne) -> Iterator[Container]:
    """All of them at once: each when it has ended."""
    found = []
    for wanted in arguments.containers:
        with each:
            found.append(store.containers.find(wanted))
    yield from ending.stop(store, found, arguments.timeout)

"""`pullpipe stop CONTAINER…`"""

from __future__ import annotations

import argparse
import time
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
    asked, found = time.monotonic(), []
    for wanted in arguments.containers:
        with each:
            container = store.containers.find(wanted)
            ending.ask_to_stop(store, container)
            found.append(container)
    for container in found:
        with each:
            ending.stop(store, container, asked, arguments.timeout)
            yield container

"""`pullpipe stop CONTAINER…`"""

from __future__ import annotations

import argparse

from pullpipe.cli.common import open_store
from pullpipe.runner import ending

HELP = "end the commands of running containers, by their stop signals first"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-t",
        "--time",
        "--timeout",
        dest="timeout",
        type=int,
        metavar="SECONDS",
        help="until SIGKILL; -1 is never (default: what --stop-timeout said, or 10)",
    )
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="a name, or the start of an id")


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    wanted = [store.containers.find(text) for text in arguments.containers]
    for container in ending.stop(store, wanted, arguments.timeout):
        print(container.name, flush=True)
    return 0

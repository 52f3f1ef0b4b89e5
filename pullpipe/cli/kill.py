"""`pullpipe kill CONTAINER…`"""

from __future__ import annotations

import argparse

from pullpipe.cli.common import OneByOne, open_store
from pullpipe.runner import ending
from pullpipe.runner.settings import signal_number

HELP = "send a signal to the commands of running containers"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-s", "--signal", default="KILL", metavar="SIGNAL", help="which (default: %(default)s)")
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="a name, or the start of an id")


def run(arguments: argparse.Namespace) -> int:
    number = signal_number(arguments.signal)
    store = open_store(arguments)
    each = OneByOne(arguments)
    for wanted in arguments.containers:
        with each:
            container = store.containers.find(wanted)
            ending.kill(store, container, number)
            print(container.name)
    return each.code

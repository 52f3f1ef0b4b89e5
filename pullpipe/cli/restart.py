"""`pullpipe restart CONTAINER…`"""

from __future__ import annotations

import argparse

from pullpipe.cli import stop
from pullpipe.cli.common import OneByOne, open_store
from pullpipe.cli.start import start

HELP = "stop containers, those that run, and start them"
FAILURE = 125  # as for `run`

configure = stop.configure


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)  # from outside: root of one user namespace may not signal who is in another
    each = OneByOne(arguments, FAILURE)
    ended = [container.id for container in stop.stopped(store, arguments, each)]
    store = open_store(arguments, as_root=True)
    for container_id in ended:
        with each:
            container = store.containers.get(container_id)
            start(store, container)
            print(container.name)
    return each.code

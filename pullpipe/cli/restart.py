"""`pullpipe restart CONTAINER…`"""

from __future__ import annotations

import argparse

from pullpipe.cli import stop
from pullpipe.cli.common import open_store
from pullpipe.cli.start import start
from pullpipe.runner import ending

HELP = "stop containers, those that run, and start them"
FAILURE = 125  # as for `run`

configure = stop.configure


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)  # from outside: root of one user namespace may not signal who is in another
    wanted = [store.containers.find(text) for text in arguments.containers]
    ended = [container.id for container in ending.stop(store, wanted, arguments.timeout)]
    store = open_store(arguments, as_root=True)
    for container in map(store.containers.get, ended):
        start(store, container)
        print(container.name)
    return 0

"""`pullpipe rm CONTAINER…`"""

from __future__ import annotations

import argparse

from pullpipe import local, stack
from pullpipe.cli.common import open_store
from store import Container, Corrupt, InUse, Store

HELP = "remove containers, those that have ended or, when forced, any"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="kill those that run")
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="a name, or the start of an id")


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments, as_root=True)
    for wanted in arguments.containers:
        try:
            container = store.containers.find(wanted)
        except Corrupt:
            if not store.containers.discard(wanted):
                raise
            print(wanted)
            continue
        if stack.is_mounted(container):
            raise InUse(
                f"{container.name} is mounted at {container.target}; `pullpipe umount {container.target}` first"
            )
        if not arguments.force or _end(store, container):
            store.containers.remove(container)
        print(container.name)
    local.collect(store)  # a container may have been the last to need a layer
    return 0


def _end(store: Store, container: Container) -> bool:
    from pullpipe.runner import ending

    return ending.end(store, container)

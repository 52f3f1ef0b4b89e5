"""`pullpipe rm CONTAINER…`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pullpipe import local, stack
from pullpipe.cli.common import OneByOne, open_store
from store import Corrupt, InUse, Store

HELP = "remove containers, those that have ended or, when forced, any"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="kill those that run")
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="a name, or the start of an id")


def run(arguments: argparse.Namespace) -> int:
    each, left = OneByOne(arguments), arguments.containers
    if arguments.force:
        store, left = open_store(arguments), []
        for wanted in arguments.containers:
            with each:
                left += _end(store, wanted)
    store = open_store(arguments, as_root=True)
    for wanted in left:
        with each:
            print(_remove(store, wanted))
    local.collect(store)  # a container may have been the last to need a layer
    return each.code


def _end(store: Store, wanted: str) -> Sequence[str]:
    """Kills it, if it runs, and gives it back unless it is gone by that.

    Without root that can be done from outside only: root of one user namespace may not signal who is in another.
    """
    from pullpipe.runner import ending

    try:
        container = store.containers.find(wanted)
    except Corrupt:
        return [wanted]
    if stack.is_mounted(container) or ending.end(store, container):
        return [wanted]
    print(container.name)
    return []


def _remove(store: Store, wanted: str) -> str:
    try:
        container = store.containers.find(wanted)
    except Corrupt:
        if not store.containers.discard(wanted):
            raise
        return wanted
    if stack.is_mounted(container):
        raise InUse(f"{container.name} is mounted at {container.target}; `pullpipe umount {container.target}` first")
    store.containers.remove(container)
    return container.name

"""`pullpipe rm CONTAINER…`"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pullpipe import local, stack
from pullpipe.cli.common import open_store
from store import Corrupt, InUse, NotInStore, Store

HELP = "remove containers, those that have ended or, when forced, any"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="kill those that run")
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="a name, or the start of an id")


def run(arguments: argparse.Namespace) -> int:
    gone = _end(open_store(arguments), arguments.containers) if arguments.force else {}
    store = open_store(arguments, as_root=True)
    for wanted in arguments.containers:
        if wanted in gone:
            print(gone[wanted])
            continue
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
        store.containers.remove(container)
        print(container.name)
    local.collect(store)  # a container may have been the last to need a layer
    return 0


def _end(store: Store, wanted: Sequence[str]) -> Mapping[str, str]:
    """Kills those that run, and returns the names of those that are gone by that.

    Without root that can be done from outside only: root of one user namespace may not signal who is in another.
    """
    from pullpipe.runner import ending

    gone = {}
    for one in wanted:
        with suppress(Corrupt):
            try:
                container = store.containers.find(one)
            except NotInStore:
                break  # which is said when it is its turn
            if not stack.is_mounted(container) and not ending.end(store, container):
                gone[one] = container.name
    return gone

"""`pullpipe rmi REF…`"""

from __future__ import annotations

import argparse
import sys

from pullpipe import local, usage
from pullpipe.cli.common import OneByOne, open_store
from pullpipe.errors import NotFound
from pullpipe.look.chosen import Chosen
from pullpipe.progress import counted, human_size
from store import InUse, NotInStore, Store

HELP = "remove images, and the layers that nothing else needs"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="also those that ended containers are of; pass over what is not there",
    )
    parser.add_argument("references", metavar="REF", nargs="+")


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments, as_root=True)
    each = OneByOne(arguments)
    for text in arguments.references:
        with each:
            try:
                _remove(store, local.only_name(store, Chosen.image(text)), forced=arguments.force)
            except (NotFound, NotInStore):
                if not arguments.force:
                    raise
    return each.code


def _remove(store: Store, reference: str, *, forced: bool) -> None:
    users = [
        container.name
        for container in store.containers
        if container.image == reference and (not forced or usage.is_in_use(store, container))
    ]
    if users:
        raise InUse(f"{reference} is used by {', '.join(users)}; `pullpipe rm {' '.join(users)}` first")
    store.images.remove(reference)
    print(reference, flush=True)
    swept = local.collect(store)
    freed = f"{counted(swept.layers, 'layers')} and {counted(swept.blobs, 'blobs')} ({human_size(swept.blob_bytes)})"
    print(f"removed {freed}", file=sys.stderr)

"""`pullpipe rmi REF…`"""

from __future__ import annotations

import argparse
import sys

from pullpipe import local
from pullpipe.cli.common import OneByOne, open_store
from pullpipe.look.chosen import Chosen
from pullpipe.progress import counted, human_size
from store import InUse, Store

HELP = "remove images, and the layers that nothing else needs"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="REF", nargs="+")


def run(arguments: argparse.Namespace) -> int:
    names = [Chosen.image(text) for text in arguments.references]
    store = open_store(arguments, as_root=True)
    each = OneByOne(arguments)
    for name in names:
        with each:
            _remove(store, local.only_name(store, name))
    return each.code


def _remove(store: Store, reference: str) -> None:
    users = [container.name for container in store.containers if container.image == reference]
    if users:
        raise InUse(f"{reference} is used by {', '.join(users)}; `pullpipe rm {' '.join(users)}` first")
    swept = local.remove(store, reference)
    print(reference)
    freed = f"{counted(swept.layers, 'layers')} and {counted(swept.blobs, 'blobs')} ({human_size(swept.blob_bytes)})"
    print(f"removed {freed}", file=sys.stderr)

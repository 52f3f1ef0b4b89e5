"""`pullpipe tag REF NEW`"""

from __future__ import annotations

import argparse

from pullpipe import local
from pullpipe.cli.changing import new_name
from pullpipe.cli.common import open_store
from pullpipe.reference import Reference

HELP = "give an image a name more"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REF")
    parser.add_argument("new", metavar="NEW", help="may be another image's name by now, which that loses")


def run(arguments: argparse.Namespace) -> int:
    new = new_name(arguments.new)
    store = open_store(arguments)
    with store.shared():  # nothing of it is swept before it has the name
        image = local.find(store, Reference.parse(arguments.reference))
        store.images.put(image.record._replace(reference=str(new)))
    print(new)
    return 0

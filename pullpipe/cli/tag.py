"""`pullpipe tag REF NEW`"""

from __future__ import annotations

import argparse

from pullpipe import local
from pullpipe.cli.changing import add_replace_option, check_free, new_name
from pullpipe.cli.common import open_store
from pullpipe.reference import Reference

HELP = "give an image a name more"


def configure(parser: argparse.ArgumentParser) -> None:
    add_replace_option(parser)
    parser.add_argument("reference", metavar="REF")
    parser.add_argument("new", metavar="NEW")


def run(arguments: argparse.Namespace) -> int:
    new = new_name(arguments.new)
    store = open_store(arguments)
    with store.shared():  # nothing of it is swept before it has the name
        image = local.find(store, Reference.parse(arguments.reference))
        there = store.images.get(str(new))
        if there is not None and there.manifest != image.record.manifest:
            check_free(store, new, arguments)
        store.images.put(image.record._replace(reference=str(new)))
    print(new)
    return 0

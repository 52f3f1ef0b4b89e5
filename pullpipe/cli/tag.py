"""`pullpipe tag REF NEW`"""

from __future__ import annotations

import argparse

from pullpipe import local
from pullpipe.cli.changing import add_replace_option, may_be, new_name
from pullpipe.cli.common import open_store
from pullpipe.look.chosen import Chosen

HELP = "give an image a name more"


def configure(parser: argparse.ArgumentParser) -> None:
    add_replace_option(parser)
    parser.add_argument("reference", metavar="REF")
    parser.add_argument("new", metavar="NEW")


def run(arguments: argparse.Namespace) -> int:
    new = new_name(arguments.new)
    store = open_store(arguments)
    with store.shared():  # nothing of it is swept before it has the name
        image = local.find(store, Chosen.image(arguments.reference))
        record = image.record._replace(reference=str(new))
        there = store.images.get(str(new))
        same = there if there is not None and there.manifest == record.manifest else None
        store.images.put(record, may_be(store, new, arguments, same))
    print(new)
    return 0

"""`pullpipe export REF|CONTAINER`"""

from __future__ import annotations

import argparse
import os
import sys

from pullpipe import local, stack
from pullpipe.cli.changing import epoch
from pullpipe.cli.common import open_store
from pullpipe.errors import BadArgument, InvalidReference, NotFound
from pullpipe.reference import Reference
from store import NotInStore, Store

HELP = "write the tree of an image or a container as one tar archive"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help="instead of standard output")
    parser.add_argument("name", metavar="REF|CONTAINER")


def run(arguments: argparse.Namespace) -> int:
    if arguments.output is None and sys.stdout.isatty():
        raise BadArgument("a terminal cannot show an archive; name a file with --output, or redirect standard output")
    store = open_store(arguments, as_root=True)
    from pullpipe.change import archive
    from pullpipe.change.merged import merged
    from pullpipe.transports.outputs import output, write_all, writing

    with merged(_lower(store, arguments.name)) as tree, output(arguments.output) as (fd, name):
        for piece in archive.pieces(tree, archive.Rules(latest=epoch(), root=True)):
            with writing(name):
                write_all(fd, piece)
    return 0


def _lower(store: Store, name: str) -> tuple[str, ...]:
    try:
        return stack.lower_of(store, local.find(store, Reference.parse(name)).chain_id)
    except (NotFound, InvalidReference) as no_image:
        try:
            container = store.containers.find(name)
        except NotInStore:
            raise no_image from None
    return os.path.join(store.containers.path(container), "upper"), *stack.lower_of(store, container.stack)

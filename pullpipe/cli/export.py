"""`pullpipe export REF|CONTAINER`"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pullpipe import local, stack
from pullpipe.cli.changing import epoch
from pullpipe.cli.common import open_store
from pullpipe.errors import BadArgument
from pullpipe.local import LocalImage
from store import Store

HELP = "write the tree of an image, or of a container that has ended, as one tar archive"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help="instead of standard output")
    parser.add_argument("name", metavar="REF|CONTAINER")
    parser.epilog = "Of a container that runs, `pullpipe cp CONTAINER:/ -` makes an archive."


def run(arguments: argparse.Namespace) -> int:
    if arguments.output is None and sys.stdout.isatty():
        raise BadArgument("a terminal cannot show an archive; name a file with --output, or redirect standard output")
    store = open_store(arguments, as_root=True)
    from pullpipe.change import archive
    from pullpipe.transports.outputs import output, write_all, writing

    with _tree(store, arguments.name) as (tree, left_out), output(arguments.output) as (fd, name):
        for piece in archive.pieces(tree, archive.Rules(latest=epoch(), root=True, left_out=left_out)):
            with writing(name):
                write_all(fd, piece)
    return 0


@contextmanager
def _tree(store: Store, name: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Where the tree is, and what of it is only there because something was mounted on it."""
    from pullpipe.change import upper

    found = local.container_or_image(store, name)
    if isinstance(found, LocalImage):
        with stack.merged(stack.lower_of(store, found.chain_id)) as tree:
            yield tree, frozenset()
        return
    with upper.ended(store, found) as own:
        lower = stack.lower_of(store, found.stack)
        left_out = {
            path
            for path in upper.left_out(store, found)
            if not any(os.path.lexists(os.path.join(layer, path)) for layer in lower)
        }
        with stack.merged((own, *lower)) as tree:
            yield tree, frozenset(left_out)

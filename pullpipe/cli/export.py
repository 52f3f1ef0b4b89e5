"""`pullpipe export REF|CONTAINER`"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
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

    with _tree(store, arguments.name) as (tree, left_out, check), output(arguments.output) as (fd, name):
        for piece in archive.pieces(tree, archive.Rules(latest=epoch(), root=True, left_out=left_out)):
            with writing(name):
                write_all(fd, piece)
        check()
    return 0


@contextmanager
def _tree(store: Store, name: str) -> Iterator[tuple[str, frozenset[str], Callable[[], None]]]:
    """Where the tree is, what of it is only there because something was mounted on it, and what to call in the end."""
    from pullpipe.change import upper

    found = local.container_or_image(store, name)
    if isinstance(found, LocalImage):
        with stack.merged(store, stack.lower_of(store, found.chain_id), name) as (tree, check):
            yield tree, frozenset(), check
        return
    with upper.ended(store, found) as own:
        lower = stack.lower_of(store, found.stack)
        left_out = {
            path
            for path in upper.left_out(store, found)
            if not any(os.path.lexists(os.path.join(layer, path)) for layer in lower)
        }
        with stack.merged(store, (own, *lower), name) as (tree, check):
            yield tree, frozenset(left_out), check

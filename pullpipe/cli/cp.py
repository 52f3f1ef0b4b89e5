"""`pullpipe cp SOURCE TARGET`"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

from pullpipe.cli.common import open_store
from pullpipe.errors import BadArgument
from store import Container, NotInStore, Store

HELP = "copy files out of a container or into it; `-` is a tar archive on standard output or input"

_PIECE = 1 << 20  # bytes


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--archive", action="store_true", help="keep owners, and setuid bits")
    parser.add_argument("-L", "--follow-link", action="store_true", help="copy what a symlink leads to, not itself")
    parser.add_argument("source", metavar="CONTAINER:PATH|FILE|-")
    parser.add_argument("target", metavar="CONTAINER:PATH|FILE|-")


def run(arguments: argparse.Namespace) -> int:
    """A directory is copied with all that is in it; with /. at its end, only what is in it. What it becomes: into a
    directory that is there, or under the name that is given."""
    store = open_store(arguments)  # not as root: what is ours is read and written as ourselves
    source, target = _container(store, arguments.source), _container(store, arguments.target)
    if (source is None) == (target is None):
        raise BadArgument("one of the two is a path in a container: CONTAINER:PATH")
    from pullpipe.runner import copying

    if target is not None:
        container, path = target
        if arguments.source == "-":
            copying.unpack(store, container, _input(), path)
        else:
            copying.put_in(
                store, container, arguments.source, path, follow=arguments.follow_link, archive=arguments.archive
            )
    elif source is not None:
        container, path = source
        if arguments.target == "-":
            if sys.stdout.isatty():
                raise BadArgument("a terminal cannot show an archive; redirect standard output")
            for piece in copying.show(store, container, path, follow=arguments.follow_link):
                sys.stdout.buffer.write(piece)
        else:
            copying.take_out(
                store, container, path, arguments.target, follow=arguments.follow_link, archive=arguments.archive
            )
    return 0


def _container(store: Store, text: str) -> tuple[Container, str] | None:
    """What is before a colon, unless it is a path."""
    name, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")):
        return None
    try:
        return store.containers.find(name), path or "/"
    except NotInStore as error:
        if os.path.lexists(text):
            return None
        raise BadArgument(f"{error}; a path with a colon can be written as ./{text}") from error


def _input() -> Iterator[bytes]:
    while piece := os.read(sys.stdin.fileno(), _PIECE):
        yield piece

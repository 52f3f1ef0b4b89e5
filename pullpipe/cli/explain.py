"""`pullpipe explain REF [COMMAND…]`"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from pullpipe import local
from pullpipe.cli.common import open_store
from pullpipe.local import LocalImage
from pullpipe.look.chosen import Chosen
from pullpipe.runner import command
from pullpipe.runner.command import Overrides
from store import Store

HELP = "print the shell commands that do by hand what `run` does, for this image"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plain-http", action="store_true", help="the registry speaks HTTP without TLS")
    parser.add_argument("reference", metavar="REF", help="an image in the store")
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="instead of the image's Cmd")
    parser.epilog = "What is printed can be read, typed by root, or run: pullpipe explain REF > steps; sudo bash steps"


def run(arguments: argparse.Namespace) -> int:
    name = Chosen.image(arguments.reference)
    store = open_store(arguments, as_root=True)
    image = local.find(store, name)
    return explain(store, image, Overrides(tuple(arguments.command)), plain_http=arguments.plain_http)


def explain(
    store: Store,
    image: LocalImage,
    overrides: Overrides,
    *,
    hostname: str = "",
    plain_http: bool = False,
    left_out: Sequence[str] = (),
) -> int:
    """Prints it; and what else was asked for and is not in it."""
    from pullpipe.look.explain import Made, script

    planned = command.plan(image.config, overrides, os.environ, terminal=False)
    print(script(store, image, Made(planned, hostname, plain_http, tuple(left_out))), end="")
    return 0

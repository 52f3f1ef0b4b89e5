"""`pullpipe pull REF…`"""

from __future__ import annotations

import argparse

from pullpipe import local
from pullpipe.cli.common import OneByOne, add_pull_options, open_store
from pullpipe.cli.provide import provide
from pullpipe.cli.registries import only_registry
from pullpipe.errors import BadArgument
from pullpipe.look.chosen import Chosen

HELP = "fetch images and unpack them while they arrive; prints the digests of their manifests"


def configure(parser: argparse.ArgumentParser) -> None:
    add_pull_options(parser, policy="always")
    parser.add_argument(
        "--all-platforms",
        action="store_true",
        help="fetch the blobs of the other platforms, too, without unpacking them",
    )
    parser.add_argument(
        "references", metavar="REF", nargs="+", help="such as alpine, ghcr.io/a/b:1, host:5000/c@sha256:…"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.all_platforms and arguments.discard_blobs:
        raise BadArgument("--all-platforms is about blobs, and --discard-blobs keeps none: leave one of them away")
    names = [Chosen.image(text) for text in arguments.references]
    store = open_store(arguments, as_root=True)
    references = [local.to_pull(store, name) for name in names]
    if len(references) > 1 and arguments.trace:
        raise BadArgument("--trace is of one image: name one")
    only_registry(references, arguments)
    each = OneByOne(arguments)
    for reference in references:
        with each:
            print(provide(store, reference, arguments).manifest, flush=True)
    return each.code

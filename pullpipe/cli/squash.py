"""`pullpipe squash REF`"""

from __future__ import annotations

import argparse

from pullpipe import local, stack
from pullpipe.cli.changing import (
    add_compression_option,
    add_making_options,
    add_name_option,
    check_free,
    epoch,
    make,
    new_name,
    note_of,
)
from pullpipe.cli.common import open_store
from pullpipe.reference import Reference

HELP = "make one layer of all that an image has"


def configure(parser: argparse.ArgumentParser) -> None:
    add_name_option(parser)
    add_compression_option(parser)
    add_making_options(parser)
    parser.add_argument("reference", metavar="REF")


def run(arguments: argparse.Namespace) -> int:
    reference = Reference.parse(arguments.reference)
    name = new_name(arguments.tag or arguments.reference)
    store = open_store(arguments, as_root=True)
    check_free(store, name, arguments, old=reference)
    from pullpipe.change import archive, layer
    from pullpipe.change.merged import merged
    from pullpipe.change.record import draft_of

    image = local.find(store, reference)
    draft = draft_of(store, image)
    with merged(stack.lower_of(store, image.chain_id)) as tree:
        tar = archive.pieces(tree, archive.Rules(latest=epoch(), root=True))
        with layer.packed(tar, arguments.compression or "gzip", store.root) as new:
            note = note_of(arguments, f"pullpipe squash of {draft.height} layers")
            make(store, draft.with_one_layer(new, note), name, arguments)
    return 0

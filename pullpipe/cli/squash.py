"""`pullpipe squash REF`"""

from __future__ import annotations

import argparse

from pullpipe import local, stack
from pullpipe.cli.changing import (
    add_compression_option,
    add_name_option,
    add_note_options,
    epoch,
    make,
    may_be,
    new_name,
    note_of,
)
from pullpipe.cli.common import add_unpack_options, open_store
from pullpipe.look.chosen import Chosen

HELP = "make one layer of all that an image has"


def configure(parser: argparse.ArgumentParser) -> None:
    add_name_option(parser)
    add_compression_option(parser)
    add_note_options(parser)
    add_unpack_options(parser)
    parser.add_argument("reference", metavar="REF")


def run(arguments: argparse.Namespace) -> int:
    reference = Chosen.image(arguments.reference)
    store = open_store(arguments, as_root=True)
    from pullpipe.change import archive, layer
    from pullpipe.change.record import draft_of

    image = local.find(store, reference)
    name = new_name(arguments.tag or local.only_name(store, reference))
    over = may_be(store, name, arguments, image.record)
    draft = draft_of(store, image)
    with stack.merged(store, stack.lower_of(store, image.chain_id), str(reference)) as (tree, check):
        tar = archive.pieces(tree, archive.Rules(latest=epoch(), root=True))
        with layer.packed(tar, arguments.compression or "gzip", store.root) as new:
            check()
            note = note_of(arguments, f"pullpipe squash of {draft.height} layers")
            make(store, draft.with_one_layer(new, note), name, over, arguments)
    return 0

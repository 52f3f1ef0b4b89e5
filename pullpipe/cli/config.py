"""`pullpipe config REF`"""

from __future__ import annotations

import argparse

from pullpipe import local
from pullpipe.cli.changing import (
    add_config_options,
    add_name_option,
    add_note_options,
    changes_of,
    make,
    may_be,
    new_name,
    note_of,
)
from pullpipe.cli.common import add_unpack_options, open_store
from pullpipe.look.chosen import Chosen

HELP = "make an image with other defaults: command, variables, user, labels, …"


def configure(parser: argparse.ArgumentParser) -> None:
    add_name_option(parser)
    add_config_options(parser)
    add_note_options(parser)
    add_unpack_options(parser)
    parser.add_argument("reference", metavar="REF")


def run(arguments: argparse.Namespace) -> int:
    reference = Chosen.image(arguments.reference)
    changes = changes_of(arguments)
    store = open_store(arguments, as_root=True)
    from pullpipe.change.record import draft_of

    image = local.find(store, reference)
    name = new_name(arguments.tag or local.only_name(store, reference))
    over = may_be(store, name, arguments, image.record)
    draft = draft_of(store, image).changed(changes, note_of(arguments, "pullpipe config"))
    make(store, draft, name, over, arguments)
    return 0

"""`pullpipe config REF`"""

from __future__ import annotations

import argparse

from pullpipe import local
from pullpipe.cli.changing import (
    add_config_options,
    add_making_options,
    add_name_option,
    changes_of,
    check_free,
    make,
    new_name,
    note_of,
)
from pullpipe.cli.common import open_store
from pullpipe.reference import Reference

HELP = "make an image with other defaults: command, variables, user, labels, …"


def configure(parser: argparse.ArgumentParser) -> None:
    add_name_option(parser)
    add_config_options(parser)
    add_making_options(parser)
    parser.add_argument("reference", metavar="REF")


def run(arguments: argparse.Namespace) -> int:
    reference = Reference.parse(arguments.reference)
    name = new_name(arguments.tag or arguments.reference)
    changes = changes_of(arguments)
    store = open_store(arguments, as_root=True)
    check_free(store, name, arguments, old=reference)
    from pullpipe.change.record import draft_of

    draft = draft_of(store, local.find(store, reference))
    make(store, draft.changed(changes, note_of(arguments, "pullpipe config")), name, arguments)
    return 0

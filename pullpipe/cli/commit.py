"""`pullpipe commit CONTAINER NEW`"""

from __future__ import annotations

import argparse
import os
import shlex

from pullpipe.cli.changing import (
    add_compression_option,
    add_config_options,
    add_note_options,
    add_replace_option,
    changes_of,
    epoch,
    make,
    may_be,
    new_name,
    note_of,
)
from pullpipe.cli.common import add_unpack_options, open_store

HELP = "make an image of a container that has ended: its image, and what it changed as one more layer"


def configure(parser: argparse.ArgumentParser) -> None:
    add_replace_option(parser)
    add_config_options(parser)
    add_compression_option(parser)
    add_note_options(parser)
    add_unpack_options(parser)
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("new", metavar="NEW", help="what to call the image")


def run(arguments: argparse.Namespace) -> int:
    name = new_name(arguments.new)
    changes = changes_of(arguments)
    store = open_store(arguments, as_root=True)
    over = may_be(store, name, arguments)
    from pullpipe.change import archive, layer, upper
    from pullpipe.change.record import draft_of_manifest

    container = store.containers.find(arguments.container)
    with upper.ended(store, container) as directory:
        rules = archive.Rules(
            latest=epoch(),
            root=upper.root_has_changed(store, container),
            upper=True,
            left_out=upper.left_out(store, container),
        )
        draft = draft_of_manifest(store, container.manifest).changed(changes, None)
        with layer.packed(archive.pieces(directory, rules), arguments.compression or "gzip", store.root) as new:
            by = shlex.join(container.command) if container.command else "pullpipe commit"
            by = os.fsencode(by).decode(errors="backslashreplace")
            make(store, draft.with_layer(new, note_of(arguments, by)), name, over, arguments)
    return 0

"""`pullpipe import TAR|- NEW`"""

from __future__ import annotations

import argparse
import os
import sys

from pullpipe.cli.changing import (
    add_compression_option,
    add_config_options,
    add_making_options,
    add_replace_option,
    changes_of,
    check_free,
    make,
    new_name,
    note_of,
)
from pullpipe.cli.common import open_store, platform_of
from pullpipe.errors import BadArgument

HELP = "make an image of a tar archive that holds a root file system"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="what it is for, instead of this machine's")
    add_replace_option(parser)
    add_config_options(parser)
    add_compression_option(parser)
    add_making_options(parser)
    parser.add_argument("path", metavar="TAR|-", help="may be compressed; - is standard input")
    parser.add_argument("new", metavar="NEW", help="what to call the image")


def run(arguments: argparse.Namespace) -> int:
    name, changes, path = new_name(arguments.new), changes_of(arguments), arguments.path
    if path != "-" and not os.path.isfile(path):
        raise BadArgument(f"{path} is no file; a tar archive is wanted, or - for standard input")
    store = open_store(arguments, as_root=True)
    check_free(store, name, arguments)
    from pullpipe.change import layer
    from pullpipe.change.draft import Draft

    file = sys.stdin.buffer if path == "-" else open(path, "rb")
    with layer.adopted(file.read, path, arguments.compression, store.root) as new:
        draft = Draft.empty(platform_of(arguments)).with_layer(new, note_of(arguments, "pullpipe import"))
        make(store, draft.changed(changes, None), name, arguments)
    return 0

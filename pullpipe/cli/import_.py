"""`pullpipe import TAR|- NEW`"""

from __future__ import annotations

import argparse
import os
import sys

from pullpipe.cli.changing import (
    add_compression_option,
    add_config_options,
    add_note_options,
    add_replace_option,
    changes_of,
    make,
    may_be,
    new_name,
    note_of,
    opened,
)
from pullpipe.cli.common import add_unpack_options, open_store, platform_of

_IMAGE = {"oci-layout", "manifest.json"}

HELP = "make an image of a tar archive that holds a root file system"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="what it is for, instead of this machine's")
    add_replace_option(parser)
    add_config_options(parser)
    add_compression_option(parser)
    add_note_options(parser)
    add_unpack_options(parser)
    parser.add_argument("path", metavar="TAR|-", help="may be compressed; - is standard input")
    parser.add_argument("new", metavar="NEW", help="what to call the image")


def run(arguments: argparse.Namespace) -> int:
    name, changes, path = new_name(arguments.new), changes_of(arguments), arguments.path
    store = open_store(arguments, as_root=True)
    over = may_be(store, name, arguments)
    from pullpipe.change import layer
    from pullpipe.change.draft import Draft

    limit = arguments.max_size << 30
    with (
        opened(path) as file,
        layer.adopted(file.read, path, arguments.compression, store.root, limit) as new,
    ):
        draft = Draft.empty(platform_of(arguments)).with_layer(new, note_of(arguments, "pullpipe import"))
        make(store, draft.changed(changes, None), name, over, arguments, made_of=path)
    if not arguments.quiet and _IMAGE & set(os.listdir(store.layers.files(new.diff_id))):
        print(
            f"{path} seems to be an image, as `save` writes it; `pullpipe load {path}` takes it as one", file=sys.stderr
        )
    return 0

"""`pullpipe mount REF DIR`"""

from __future__ import annotations

import argparse
import os

from pullpipe.cli.common import open_store
from pullpipe.errors import NeedsRoot
from pullpipe.look.chosen import Chosen
from pullpipe.mounts import mount

HELP = "show an image's stacked layers at a directory, read-only unless told otherwise"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rw", action="store_true", help="writable, into a layer of its own that `umount` keeps")
    parser.add_argument("reference", metavar="REF")
    parser.add_argument("directory", metavar="DIR")


def run(arguments: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise NeedsRoot(
            "without root a mount can be seen in its own namespace only; `pullpipe unpack` makes a tree that "
            "can be seen, `pullpipe unshare` leads into such a namespace, or use sudo"
        )
    name = Chosen.image(arguments.reference)
    print(mount(open_store(arguments), name, arguments.directory, writable=arguments.rw))
    return 0

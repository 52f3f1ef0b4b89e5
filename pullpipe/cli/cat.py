"""`pullpipe cat REF[#LAYER] PATH…`"""

from __future__ import annotations

import argparse
import stat
import sys

from pullpipe.cli.common import open_store
from pullpipe.errors import BadArgument
from pullpipe.look.chosen import Chosen
from pullpipe.look.view import View, open_file

HELP = "print files of an image, or of one layer of it"
_PIECE = 1 << 20  # bytes at a time


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REF[#LAYER]", help="#1 is the lowest layer")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="symlinks are followed, inside the image")


def run(arguments: argparse.Namespace) -> int:
    """The bytes as they are."""
    chosen = Chosen.parse(arguments.reference)
    store = open_store(arguments, as_root=True)
    view = View.of(store, chosen.find(store), chosen.layer)
    found = [view.find(path, follow=True) for path in arguments.paths]
    for path, entry in zip(arguments.paths, found, strict=True):
        if not stat.S_ISREG(entry.status.st_mode):
            what = "is a directory" if entry.is_directory else "is no regular file"
            raise BadArgument(f"{path!r} {what} in {arguments.reference}; `pullpipe ls` shows what it is")
    for entry in found:
        with open(open_file(entry), "rb", 0) as file:
            while piece := file.read(_PIECE):
                sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    return 0

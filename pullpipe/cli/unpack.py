"""`pullpipe unpack REF DIR`"""

from __future__ import annotations

import argparse

from pullpipe import local
from pullpipe.cli.common import add_owners_option, open_store, reporting, run_until_signal
from pullpipe.look.chosen import Chosen
from pullpipe.pipe.flatten import flatten
from pullpipe.progress import FACES

HELP = "apply an image's layers, one after the other, to a directory"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--progress", choices=FACES, default="auto", help="what standard error shows of it")
    parser.add_argument("-q", "--quiet", action="store_true", help="show nothing but the result")
    add_owners_option(parser)
    parser.add_argument("reference", metavar="REF")
    parser.add_argument("directory", metavar="DIR", help="new, or empty")


def run(arguments: argparse.Namespace) -> int:
    name = Chosen.image(arguments.reference)
    store = open_store(arguments, as_root=True)
    image = local.find(store, name)
    with reporting(arguments) as progress:
        run_until_signal(flatten(store, image, arguments.directory, progress, ignore_owners=arguments.ignore_owners))
    print(arguments.directory)
    return 0

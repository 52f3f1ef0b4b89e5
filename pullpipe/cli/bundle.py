"""`pullpipe bundle REF DIR`"""

from __future__ import annotations

import argparse
import json
import os

from pullpipe import local
from pullpipe.cli.common import add_owners_option, open_store, reporting, run_until_signal
from pullpipe.errors import BadArgument, RunError
from pullpipe.look.chosen import Chosen
from pullpipe.pipe.flatten import filling, flatten
from pullpipe.progress import FACES
from pullpipe.runner import command, spec
from pullpipe.runner.command import Command, Overrides
from pullpipe.runner.walls import Network, Walls
from store import Store

HELP = "make an OCI runtime bundle of an image: config.json and rootfs, for runc and its like"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--progress", choices=FACES, default="auto", help="what standard error shows of it")
    parser.add_argument("-q", "--quiet", action="store_true", help="show nothing but the result")
    add_owners_option(parser)
    parser.add_argument("reference", metavar="REF")
    parser.add_argument("directory", metavar="DIR", help="new, or empty")
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="instead of the image's Cmd")


def run(arguments: argparse.Namespace) -> int:
    name = Chosen.image(arguments.reference)
    store = open_store(arguments, as_root=True)
    image = local.find(store, name)
    try:
        planned = command.plan(image.config, Overrides(tuple(arguments.command)), {}, terminal=False)
        with filling(arguments.directory):
            _fill(store, image, planned, arguments)
    except RunError as error:  # nothing is run here
        raise BadArgument(str(error)) from error
    print(arguments.directory)
    return 0


def _fill(store: Store, image: local.LocalImage, planned: Command, arguments: argparse.Namespace) -> None:
    rootfs = os.path.join(arguments.directory, "rootfs")
    with reporting(arguments) as progress:
        run_until_signal(flatten(store, image, rootfs, progress, ignore_owners=arguments.ignore_owners))
    document = spec.document(
        planned,
        spec.look_inside(rootfs, planned),
        Walls(network=Network("none")),
        rootfs="rootfs",
        annotations=spec.image_annotations(image.config, store.blobs.read(image.manifest.config.digest)),
    )
    with open(os.path.join(arguments.directory, "config.json"), "x", encoding="ascii") as file:
        json.dump(document, file, indent=1)
        file.write("\n")

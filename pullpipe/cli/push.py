"""`pullpipe push REF [DEST]`"""

from __future__ import annotations

import argparse

from pullpipe import local
from pullpipe.cli.common import add_progress_options, add_registry_options, open_store, reporting, run_until_signal
from pullpipe.cli.registries import access_to
from pullpipe.errors import BadArgument
from pullpipe.look.chosen import Chosen
from pullpipe.progress import PUSH
from pullpipe.reference import Reference
from pullpipe.transports.exports import export

HELP = "send an image of the store to a registry; prints the digest that it has there"


def configure(parser: argparse.ArgumentParser) -> None:
    add_registry_options(parser)
    add_progress_options(parser)
    parser.add_argument("reference", metavar="REF", help="the image, as it is called here")
    parser.add_argument("destination", metavar="DEST", nargs="?", help="what to call it there (default: REF)")
    parser.epilog = "With the images of all platforms if they are here (pull --all-platforms), else this one alone."


def run(arguments: argparse.Namespace) -> int:
    name = Chosen.image(arguments.reference)
    store = open_store(arguments)
    image = local.find(store, name)
    reference = image.record.reference
    destination = Reference.parse(arguments.destination or local.only_name(store, name))
    found = export(store, image)
    if destination.digest not in (None, found.digest):
        raise BadArgument(
            f"{reference} has the digest {found.digest} here, and not that of {destination}; leave it away"
        )
    access = access_to(destination, arguments)
    sources = local.neighbours(store, destination)

    from pullpipe.cli.network import network
    from pullpipe.pipe.push import push
    from pullpipe.registry.uploads import UploadClient

    with reporting(arguments, PUSH) as progress:
        if found.digest != image.record.resolved:
            progress.note(f"{reference}: {local.platform_of(image.record)} only, for other platforms are not here")

        async def work() -> None:
            registry, speaking = access.endpoints[-1], network(access, arguments)
            async with UploadClient(destination, registry, speaking, progress.note) as client:
                await push(store, found, client, destination.tag, sources, progress)

        run_until_signal(work())
        progress.note(f"pushed {destination}")
    print(found.digest)
    return 0

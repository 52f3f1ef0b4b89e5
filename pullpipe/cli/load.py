"""`pullpipe load FILE|DIR|-`"""

from __future__ import annotations

import argparse

from pullpipe.cli.common import (
    add_blobs_option,
    add_unpack_options,
    open_store,
    platform_of,
    pull_options,
    reporting,
    run_until_signal,
)
from pullpipe.errors import BadArgument
from pullpipe.pipe.pull import pull
from pullpipe.transports import load

HELP = "take images from an OCI layout or a Docker archive; prints their names"


def configure(parser: argparse.ArgumentParser) -> None:
    add_unpack_options(parser)
    add_blobs_option(parser)
    parser.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="instead of this machine's")
    parser.add_argument("-t", "--tag", metavar="NAME", help="what to call the image, when there is one")
    parser.add_argument(
        "path", metavar="FILE|DIR|-", help="a directory, a tar archive (compressed or not), or a stream"
    )


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments, as_root=True)
    options = pull_options(arguments, platform_of(arguments))
    with load.opened(arguments.path, arguments.tag, spool=store.root) as images:
        if not images:
            raise BadArgument(f"{arguments.path} holds no image")
        for image in images:
            for reference in image.references:
                with reporting(arguments) as progress:
                    run_until_signal(pull(image.source, image.wanted, str(reference), store, options, progress))
                print(reference)
    return 0

"""`pullpipe pull REF`"""

from __future__ import annotations

import argparse

from pullpipe.cli.common import add_pull_options, open_store
from pullpipe.cli.provide import provide
from pullpipe.errors import BadArgument
from pullpipe.reference import Reference

HELP = "fetch an image and unpack it while it arrives; prints the digest of its manifest"


def configure(parser: argparse.ArgumentParser) -> None:
    add_pull_options(parser, policy="always")
    parser.add_argument(
        "--all-platforms",
        action="store_true",
        help="fetch the blobs of the other platforms, too, without unpacking them",
    )
    parser.add_argument("reference", metavar="REF", help="such as alpine, ghcr.io/a/b:1, host:5000/c@sha256:…")


def run(arguments: argparse.Namespace) -> int:
    if arguments.all_platforms and arguments.discard_blobs:
        raise BadArgument("--all-platforms is about blobs, and --discard-blobs keeps none: leave one of them away")
    reference = Reference.parse(arguments.reference)
    print(provide(open_store(arguments, as_root=True), reference, arguments).manifest)
    return 0
